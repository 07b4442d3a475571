"""Work on many rows, chunk by chunk, on all cores: in processes forked from this one, so that they share what it holds.

They touch neither torch nor the device. Where forking is unsafe, anywhere but on Linux, the work is done here.
"""

import ctypes
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np

from chatsmith.data.progress import progress
from chatsmith.data.store import Array
from chatsmith.errors import DataError

S = TypeVar("S", bound=Sized)
T = TypeVar("T")

CHUNK = 250  # rows that are prepared together
CHUNK_LETTERS = 2_000_000
MEASURED = 10  # of so many rows one is measured
FEW = 8  # chunks for which processes do not pay
MOST_PROCESSES = 16  # each holds some hundred MB at worst
AHEAD = 2  # chunks per process that are done, or being done, before they are asked for

PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_work: Callable[[Any], Any]  # what forked processes do; set right before they are made


def chunks_of(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows in order, `CHUNK` at a time, or fewer if they are long: several chunks wait in memory."""
    chunk: list[T] = []
    letters = 0
    for row in rows:
        if len(chunk) % MEASURED == 0:
            letters += MEASURED * _letters(row)
        chunk.append(row)
        if len(chunk) == CHUNK or letters > CHUNK_LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _letters(value: object) -> int:
    """Of all text in a value as JSON has them."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_letters, value.values()))
    return sum(map(_letters, value)) if isinstance(value, list | tuple) else 0


def ranges_of(sizes: Array) -> Iterator[range]:
    """The numbers of rows of these sizes (in bytes), by the same rule."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + CHUNK_LETTERS, side="right")) + 1
        end = min(start + CHUNK, end, len(sizes))
        yield range(start, end)
        start = end


def in_parallel(
    work: Callable[[S], T], chunks: Iterable[S], what: str, total: int | None = None, *, here: bool = False
) -> Iterator[T]:
    """`work(chunk)` for each chunk, in order.

    Args:
        what: is being done, for the terminal; `total` is how many rows the chunks hold, if that is known.
        here: in this process alone, for work that remembers.
    Raises:
        DataError: if the system ended one of the processes.
    """
    with progress(what, total) as advance:
        for size, result in _results(work, iter(chunks), 1 if here else _processes()):
            yield result
            advance(size)


def _processes() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES) if sys.platform == "linux" else 1


def _results(work: Callable[[S], T], chunks: Iterator[S], processes: int) -> Iterator[tuple[int, T]]:
    first = list(islice(chunks, FEW + 1)) if processes > 1 else []
    if len(first) <= FEW:
        yield from ((len(chunk), work(chunk)) for chunk in chain(first, chunks))
        return
    global _work
    _work = work
    with ProcessPoolExecutor(processes, get_context("fork"), _begin) as pool:
        ahead: deque[tuple[int, Future[T]]] = deque()
        try:
            for chunk in chain(first, chunks):
                ahead.append((len(chunk), pool.submit(_do, chunk)))
                if len(ahead) > AHEAD * processes:
                    size, done = ahead.popleft()
                    yield size, done.result()
            for size, done in ahead:
                yield size, done.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that prepared data was ended by the system, most likely for lack of memory: "
                f"{processes} of them ran side by side. Free memory, or allow fewer cores (taskset -c 0 chatsmith ...)."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    gc.freeze()  # what the parent holds is not searched for garbage again and again
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and if it is killed, nobody else would end this one


def _do(chunk: Any) -> Any:
    return _work(chunk)
