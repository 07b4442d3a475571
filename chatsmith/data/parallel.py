"""Work on many rows, chunk by chunk, on all cores: in processes forked from this one, so that they share what it holds.

They touch neither torch nor the device. Where forking is unsafe, anywhere but on Linux, the work is done here.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from chatsmith.data.progress import progress
from chatsmith.errors import DataError

T = TypeVar("T")

CHUNK = 500  # rows that are prepared together
FEW = 8  # chunks for which processes do not pay

_work: Callable[[range], Any]  # what forked processes do; set right before they are made


def in_chunks(work: Callable[[range], T], count: int, what: str) -> Iterator[T]:
    """`work(rows)` for each chunk of range(count), in order.

    Args:
        what: is being done, for the terminal.
    Raises:
        DataError: if the system ended one of the processes.
    """
    with progress(what, count) as advance:
        for start, result in zip(range(0, count, CHUNK), _results(work, count), strict=True):
            yield result
            advance(min(CHUNK, count - start))


def _results(work: Callable[[range], T], count: int) -> Iterator[T]:
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    processes = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, len(chunks) // FEW)
    if processes < 2:
        yield from map(work, chunks)
        return
    global _work
    _work = work
    with ProcessPoolExecutor(processes, get_context("fork"), _begin) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(_do, chunk))
                if len(ahead) > 4 * processes:  # what is done but not taken waits in memory
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a process that prepared data was ended by the system, most likely for lack of memory: "
                f"{processes} of them ran side by side. Free memory, or allow fewer cores (taskset -c 0 chatsmith ...)."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _do(rows: range) -> Any:
    return _work(rows)
