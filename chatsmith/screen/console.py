"""What a person sees in the terminal: progress, verdicts, answers side by side.

Text that came from data or models is never interpreted: markup is off, and control characters stop at the console.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from chatsmith.screen.live import LiveStage, Pace, show
from chatsmith.screen.output import Console
from chatsmith.screen.text import printable, shell, unbroken
from chatsmith.stages.table import BY_NAME

if TYPE_CHECKING:  # both load torch, which commands that only look do not need
    from chatsmith.runs.runtime import Shown
    from chatsmith.verdicts import Verdict

SECONDS_BETWEEN_LINES = 10.0
SHORT = 12  # a column of a table that is no wider is never folded


class _Lines:
    """For logs and CI: a plain line every ten seconds and at the end."""

    def __init__(self, console: Console, stage: str, total: int) -> None:
        self._console, self._stage, self._pace = console, stage, Pace(total)
        self._printed = time.monotonic()
        self._last: dict[str, float] = {}

    def resume(self, past: Sequence[dict[str, Any]]) -> None:
        self._pace = Pace(self._pace.total, len(past))

    def update(self, step: int, metrics: dict[str, float]) -> None:
        self._last |= metrics
        self._pace.add(step + 1)
        if time.monotonic() - self._printed < SECONDS_BETWEEN_LINES and step + 1 < self._pace.total:
            return
        self._printed = time.monotonic()
        figures = _figures(self._stage, self._last)
        text = f"  {self._stage} {step + 1}/{self._pace.total}  {figures}  {self._pace.left()}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def answers(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def warn(self, text: str) -> None:
        self._console.print(Text(f"  warning: {unbroken(text)}", style="yellow"), soft_wrap=True)


class Screen:
    """Prints a run. One per process."""

    def __init__(self) -> None:
        if hasattr(sys.stdout, "reconfigure"):  # an answer may hold what this terminal's encoding lacks
            sys.stdout.reconfigure(errors="replace")
        self.console = Console(highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether the output is a terminal that can be drawn on, and a person is likely to watch."""
        console, can_draw = self.console, self.console.file.isatty() and not self.console.is_dumb_terminal
        in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
        return console.is_terminal and can_draw and not in_ci and console.encoding.startswith("utf")

    def line(self, text: str, style: str = "") -> None:
        """One line, whatever names are in it."""
        self._print(Text(unbroken(text), style=style))

    def command(self, *words: str | os.PathLike[str]) -> None:
        """Something to copy: for a shell, and never wrapped."""
        self.copied(shell(words))

    def copied(self, text: str) -> None:
        """The same, put together by `text.shell`."""
        self.console.print(Text("  " + unbroken(text)), soft_wrap=True)

    @contextmanager
    def stage(self, stage: str, title: str, total: int, road: Mapping[str, str] | None = None) -> "Iterator[Shown]":
        """Announce a stage of `total` steps and show its progress inside the context.

        Args:
            road: the run's stages in order, each `running`, `to come`, or the status of the finished one.
        """
        self.console.print()
        self.line(title, "bold")
        if not self.is_live:
            yield _Lines(self.console, stage, total)
            return
        with show(self.console, LiveStage(stage, total, road or {stage: "running"})) as shown:
            yield shown

    def verdict(self, stage: str, verdict: "Verdict", *, forced: bool) -> None:
        mark, style = ("PASSED", "green") if verdict.passed else ("FAILED", "red")
        if verdict.passed and verdict.unfit_for:
            mark, style = f"PASSED with a warning, unfit for {'; '.join(verdict.unfit_for)}", "yellow"
        text = Text(f"  {stage} {unbroken(mark)}", style=f"bold {style}")
        text.append(
            ": " + unbroken(verdict.text) + (" (going on: --force)" if forced and not verdict.passed else ""),
            style="default not bold",
        )
        self._print(text)
        for warning in verdict.warnings:
            self.line(f"  warning: {warning}", "yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of prompts and answers, or of scores."""
        widths = [max(cell_len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
        folds = sum(widths) + 2 * (len(widths) - 1) > self.console.width - 2
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            header_style="dim",
            leading=int(folds),
            padding=(0, 1, 0, 0),
        )
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, overflow="fold", no_wrap=width <= SHORT)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print()
        self.line(f"  {title}", "bold")
        self.console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def _print(self, text: Text) -> None:
        """On a terminal what is too long goes on under its own beginning; elsewhere a line stays a line."""
        indent = len(text.plain) - len(text.plain.lstrip(" "))
        if not self.console.is_terminal or not indent:
            self.console.print(text, soft_wrap=not self.console.is_terminal)
            return
        for line in text[indent:].wrap(self.console, self.console.width - indent):
            self.console.print(Text(" " * indent) + line)


def _figures(stage: str, metrics: dict[str, float]) -> str:
    return "  ".join(
        f"{name.removeprefix(f'{stage}/').replace('_', ' ')} {metrics[name]:.3f}"
        for name in BY_NAME[stage].figures
        if name in metrics
    )
