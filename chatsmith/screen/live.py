"""A stage that is watched in a terminal: where the run stands, the stage's curves, the last answer.

It is drawn twice a second by a thread of its own, and leaves a few lines behind. Whatever came from data or models
becomes rich `Text` of printable characters: no markup, no control characters.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.live import Live
from rich.text import Text

from chatsmith.screen.output import Console, guard_streams
from chatsmith.screen.text import Series, duration, figure, one_line, sparkline, unbroken
from chatsmith.stages.table import BY_NAME

MARKS = {
    "passed": ("✓", "green"),
    "warned": ("✓", "yellow"),  # passed with a warning
    "forced": ("!", "yellow"),
    "failed": ("✗", "red"),
    "skipped": ("–", "dim"),
    "running": ("●", "cyan"),
    "to come": ("○", "dim"),
}
REFRESHES_PER_SECOND = 2
RECENT_STEPS = 50  # that the time left is estimated from
INDENT = "  "


class Pace:
    """How far something is, and how long the rest takes by its last steps."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), done)], maxlen=RECENT_STEPS)

    @property
    def done(self) -> int:
        return self._marks[-1][1]

    def add(self, done: int) -> None:
        if done != self.done:
            self._marks.append((time.monotonic(), done))

    def left(self) -> str:
        """In words; "" before the first step."""
        (since, first), (until, last) = self._marks[0], self._marks[-1]
        if last == first:
            return ""
        per_step = (until - since) / (last - first)
        return f"{duration(max(0.0, per_step * (self.total - last) - (time.monotonic() - until)))} left"

    def bar(self, width: int) -> Text:
        """━━━━━━━━╸────  17/36   1 min 12 s left"""
        columns = max(8, min(48, width - 40))
        full = min(columns, columns * self.done // self.total) if self.total else columns
        text = Text(INDENT)
        text.append("━" * full, style="cyan")
        text.append("─" * (columns - full), style="dim")
        text.append(f"  {self.done}/{self.total}", style="bold")
        left = self.left()
        return text.append(f"   {left}" if left else "", style="dim")


class LiveStage:
    """What is known of the running stage, and how it looks in the space there is."""

    def __init__(self, stage: str, total: int, road: Mapping[str, str]) -> None:
        self._road = road
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._pace, self._before = Pace(total), 0
        self._names = BY_NAME[stage].curves
        self._series = {name: Series() for name in self._names}
        self._sample: dict[str, Any] | None = None
        self._over = False
        self.console: Console | None = None

    def resume(self, past: Sequence[Mapping[str, float | None]]) -> None:
        """Steps that were made before this command, by their metrics."""
        with self._lock:
            for metrics in past:
                self._add(metrics)
            self._pace, self._before = Pace(self._pace.total, len(past)), len(past)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        with self._lock:
            self._pace.add(step + 1)
            self._add(metrics)

    def answers(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._lock:
            self._sample = rows[0] if rows else self._sample

    def warn(self, text: str) -> None:
        assert self.console is not None, "warnings need a console: use `show`"
        for line in Text(f"warning: {unbroken(text)}").wrap(self.console, self.console.width - len(INDENT)):
            self.console.print(Text(INDENT) + line, style="yellow")

    def end(self) -> None:
        """From now on the stage is a few lines: how far it came, and where its metrics went."""
        with self._lock:
            self._over = True

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            width = options.max_width
            lines = self._summary(width) if self._over else self._panel(width, console.height - 1)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
        yield Group(*lines)

    def _add(self, metrics: Mapping[str, float | None]) -> None:
        for name, series in self._series.items():
            if name in metrics:
                value = metrics[name]
                series.add(float("nan") if value is None else value)

    def _panel(self, width: int, height: int) -> list[Text]:
        """Everything that fits, the most important first: bar, curves, road, sample; blank lines if there is room."""
        bar, curves, road, sample = [self._pace.bar(width)], self._curves(width), [self._way()], self._sample_lines()
        blocks = [road, bar, curves, sample]
        for spare in ([], sample, road):
            blocks = [block for block in blocks if block is not spare and block]
            if sum(map(len, blocks)) <= height:
                break
        spaced = [line for block in blocks for line in (Text(""), *block)]
        plain = [line for block in blocks for line in block]
        return spaced if len(spaced) <= height else plain[: max(1, height)]

    def _way(self) -> Text:
        """The stages of the run, each with its state."""
        parts = []
        for stage, status in self._road.items():
            mark, style = MARKS.get(status, ("?", "dim"))
            part = Text(f"{mark} ", style=style)
            part.append(
                BY_NAME[stage].short if stage in BY_NAME else stage, style="bold" if status == "running" else "dim"
            )
            if status not in ("running", "to come"):
                part.append(f" {status}", style=style)
            parts.append(part)
        return Text(INDENT) + Text("   ").join(parts)

    def _curves(self, width: int) -> list[Text]:
        known = _labelled(self._series, self._names)
        columns = max(4, min(24, width - len(INDENT) - max((len(label) for label, _ in known), default=0) - 12))
        cells = []
        for label, series in known:
            cell = Text(label, style="dim")
            cell.append(f"  {figure(series.last):>8}", style="bold")
            cell.append(f"  {sparkline(series.points, columns):<{columns}}", style="cyan")
            cells.append(cell)
        return _grid(cells, indent=INDENT, gap=3 * INDENT, width=width)

    def _sample_lines(self) -> list[Text]:
        if self._sample is None:
            return []
        reward = self._sample.get("reward")
        lines = []
        for label in ("prompt", "answer"):
            line = Text(f"{INDENT}{label}  ", style="dim")
            line.append(one_line(str(self._sample.get(label, ""))), style="default not dim")
            lines.append(line)
        if isinstance(reward, float):
            lines.append(Text.assemble((f"{INDENT}reward  ", "dim"), (f"{reward:+.3f}", "bold")))
        return lines

    def _summary(self, width: int) -> list[Text]:
        done, total = self._pace.done, self._pace.total
        whole = done >= total
        steps = f"{done} steps" if whole else f"stopped after {done} of {total} steps"
        head = Text(INDENT)
        head.append("✓ " if whole else "■ ", style="green" if whole else "yellow")
        now = f", {done - self._before} of them now," if self._before else ""
        head.append(f"{steps}{now} in {duration(time.monotonic() - self._started)}", style="dim")
        cells = []
        for label, series in _labelled({n: s for n, s in self._series.items() if not n.endswith("/lr")}, self._names):
            cell = Text(label, style="dim")
            cell.append(f" {figure(series.first):>7} → {figure(series.last):<7}", style="default not dim")
            cell.append(f" {sparkline(series.points, 8):<8}", style="cyan")
            cells.append(cell)
        return [head, *_grid(cells, indent=2 * INDENT, gap=INDENT, width=width)]


def _labelled(all_series: Mapping[str, Series], names: Mapping[str, str]) -> list[tuple[str, Series]]:
    """The curves that have begun, under their `names` on the screen, which are padded to one width."""
    known = [(names[name], series) for name, series in all_series.items() if series.points]
    width = max((len(label) for label, _ in known), default=0)
    return [(f"{label:<{width}}", series) for label, series in known]


def _grid(cells: Sequence[Text], *, indent: str, gap: str, width: int) -> list[Text]:
    """Cells of equal width in as many columns as fit, to be read down the first column, then down the next."""
    if not cells:
        return []
    across = max(1, (width - len(indent) + len(gap)) // (cells[0].cell_len + len(gap)))
    rows = -(-len(cells) // across)
    return [Text(indent) + Text(gap).join(cells[row::rows]) for row in range(rows)]


@contextmanager
def drawn(console: Console, picture: ConsoleRenderable, *, transient: bool = False) -> Iterator[None]:
    """Draw it at the bottom of the terminal while the context lasts; what is printed meanwhile stands above."""
    with Live(picture, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=transient):
        guard_streams()
        yield


@contextmanager
def show(console: Console, stage: LiveStage) -> Iterator[LiveStage]:
    """Draw a stage, of which a summary stays."""
    stage.console = console
    with drawn(console, stage):
        try:
            yield stage
        finally:
            stage.end()
