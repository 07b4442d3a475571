"""A line on the terminal for data that takes long to prepare; nothing in logs, and nothing for what is quick."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chatsmith.screen.output import Console, guard_streams
from chatsmith.screen.text import unbroken

QUIET_S = 2.0


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Inside, each call counts so many rows more, of `total` if it is known."""
    started = time.monotonic()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as shown:
        guard_streams()
        task = shown.add_task(unbroken(what), total=total, visible=False)
        yield lambda count: shown.update(task, advance=count, visible=time.monotonic() - started > QUIET_S)
