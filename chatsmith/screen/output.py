"""The one way out for text: whatever is printed, by whomever, reaches a terminal or a log without control characters.

`guard_streams` puts a guard before standard output and standard error, so that what a library, a warning, a traceback
or a later line of this package prints is harmless without having thought of it. Only rich, which draws, writes past
the guard: `Console` lets it set colours and move the cursor by itself, and never by what a text holds.
"""

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from chatsmith.screen.text import printable


class _Guard:
    """A text stream that shows control characters as "�". Lines and tabs stay, and everything else of the stream."""

    def __init__(self, stream: IO[str]) -> None:
        self.rich_proxied_file = stream  # the name under which rich looks for what it draws on

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def guard_streams() -> None:
    """From now on what is printed is harmless. Inside rich's live displays, which put streams of their own, again."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Guard):
            setattr(sys, name, cast("IO[str]", _Guard(stream)))


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print a text at once, to standard error where it is no result."""
    stream = sys.stderr if error else sys.stdout
    stream.write(printable(text) + end)
    stream.flush()


class Console(rich.console.Console):
    """A console of rich whose texts hold no control characters."""

    @property
    def file(self) -> IO[str]:
        """What is drawn on: the stream behind all guards."""
        stream = super().file
        while (behind := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = behind
        return stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text == "\n" or text.isprintable():
                yield segment
            else:
                yield Segment(printable(text), segment.style)
