"""An end to what came with a model: a chat template can count to 10**15, a configuration ask for as many layers."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

SECONDS = 60.0
MEMORY = 4 << 30  # bytes beyond what the process has


class Unbounded(Exception):
    """What was called took more time or memory than anything of its kind needs."""


@contextmanager
def bounded(*, time: bool = True) -> Iterator[None]:
    """What is called inside ends after a minute of Python, unless `time` is no matter, or where it wants gibibytes.

    The minute is looked at in the main thread alone, the memory where the system says how much there is (Linux).

    Raises:
        Unbounded: where it was ended.
    """
    try:
        with _memory(), _time() if time else nullcontext():
            yield
    except MemoryError:
        raise Unbounded(f"it takes more than {MEMORY >> 30} GiB of memory") from None


@contextmanager
def _time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _too_late)
    # once more each second: where an object is being deleted, Python drops what a handler raises
    before = signal.setitimer(signal.ITIMER_REAL, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: not Python's


def _too_late(number: int, frame: FrameType | None) -> None:
    raise Unbounded(f"it takes more than {SECONDS:g} seconds")


@contextmanager
def _memory() -> Iterator[None]:
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = held + MEMORY
    if soft != resource.RLIM_INFINITY and soft <= limit:
        yield
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
