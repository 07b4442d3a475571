"""What a person sees in the terminal: progress, verdicts, answers side by side.

Text that came from data or models is never interpreted: control characters are stripped, markup is off.
"""

import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from chatsmith.runtime import Shown
from chatsmith.verdicts import Verdict

SHOWN = {"sft": ("loss", "held_out_loss"), "reward": ("loss", "accuracy"), "rl": ("reward_mean", "kl", "answer_length")}
SECONDS_BETWEEN_LINES = 10.0


def printable(text: str) -> str:
    """Text without control characters, so that a model's answer cannot move the cursor or ring the bell."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "�" for c in text)


class _Bar:
    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage = progress, stage
        self._task = progress.add_task(stage, total=total, figures="")
        self._last: dict[str, float] = {}

    def update(self, step: int, metrics: dict[str, float]) -> None:
        self._last |= metrics
        self._progress.update(self._task, completed=step + 1, figures=_figures(self._stage, self._last))

    def answers(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def warn(self, text: str) -> None:
        self._progress.console.print(Text(f"  warning: {printable(text)}", style="yellow"))


class _Lines:
    """For logs and CI: a plain line every ten seconds and at the end."""

    def __init__(self, console: Console, stage: str, total: int) -> None:
        self._console, self._stage, self._total = console, stage, total
        self._started = self._printed = time.monotonic()
        self._first: int | None = None
        self._last: dict[str, float] = {}

    def update(self, step: int, metrics: dict[str, float]) -> None:
        self._last |= metrics
        now = time.monotonic()
        self._first = step if self._first is None else self._first
        if now - self._printed < SECONDS_BETWEEN_LINES and step + 1 < self._total:
            return
        self._printed = now
        left = (self._total - step - 1) * (now - self._started) / (step + 1 - self._first)
        self._console.print(
            f"  {self._stage} {step + 1}/{self._total}  {_figures(self._stage, self._last)}  {left:.0f} s left",
            highlight=False,
            markup=False,
        )

    def answers(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def warn(self, text: str) -> None:
        self._console.print(Text(f"  warning: {printable(text)}", style="yellow"))


class Screen:
    """Prints a run. One per process."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(printable(text), style=style))

    def command(self, text: str) -> None:
        """Something to copy: never wrapped."""
        self.console.print(Text("  " + printable(text)), soft_wrap=True)

    @contextmanager
    def stage(self, stage: str, title: str, total: int) -> Iterator[Shown]:
        """Announce a stage of `total` steps and show its progress inside the context."""
        self.console.print()
        self.line(title, "bold")
        if not self.console.is_terminal:
            yield _Lines(self.console, stage, total)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield _Bar(progress, stage, total)

    def verdict(self, stage: str, verdict: Verdict, *, forced: bool) -> None:
        mark, style = ("PASSED", "green") if verdict.passed else ("FAILED", "red")
        text = Text(f"  {stage} {mark}", style=f"bold {style}")
        text.append(
            ": " + printable(verdict.text) + (" (going on: --force)" if forced and not verdict.passed else ""),
            style="default not bold",
        )
        self.console.print(text)
        for warning in verdict.warnings:
            self.line(f"  warning: {warning}", "yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of prompts and answers, or of scores."""
        table = Table(pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print()
        self.line(f"  {title}", "bold")
        self.console.print(Padding(table, (0, 0, 0, 2)))


def _figures(stage: str, metrics: dict[str, float]) -> str:
    return "  ".join(
        f"{name.replace('_', ' ')} {metrics[f'{stage}/{name}']:.3f}"
        for name in SHOWN[stage]
        if f"{stage}/{name}" in metrics
    )
