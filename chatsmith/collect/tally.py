"""How far a collection is: counted in one place, drawn in a terminal, printed line by line elsewhere."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderResult
from rich.text import Text

from chatsmith.collect.endpoint import Reply
from chatsmith.screen.console import SECONDS_BETWEEN_LINES, Screen
from chatsmith.screen.live import INDENT, Pace, drawn


@dataclass
class Tally:
    """What a collection has come to, over all commands.

    `prices` are US dollars for a million tokens in and out, `budget` is what may be spent; None: not known, no limit.
    """

    wanted: int
    prices: tuple[float, float] | None
    budget: float | None
    kept: int = 0
    tried: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    uncounted: int = 0  # replies without a count of tokens
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, reply: Reply) -> None:
        self.replies += 1
        self.uncounted += reply.input_tokens is None or reply.output_tokens is None
        self.input_tokens += reply.input_tokens or 0
        self.output_tokens += reply.output_tokens or 0

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars; 0 without prices."""
        input_price, output_price = self.prices or (0.0, 0.0)
        return (input_tokens * input_price + output_tokens * output_price) / 1e6

    @property
    def spent(self) -> float:
        return self.cost(self.input_tokens, self.output_tokens)

    def lines(self) -> list[str]:
        """Everything but `kept`, in words."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        used = f"replies: {self.replies:,}; tokens: {self.input_tokens:,} in, {self.output_tokens:,} out"
        if self.uncounted:
            used += f" ({self.uncounted:,} replies without a count)"
        if self.prices:
            used += f"; ${self.spent:.4f}" + (f" of ${self.budget:.2f}" if self.budget is not None else "")
        return [f"instructions: {self.tried:,}; dropped: {reasons or 'none'}", used]


class Progress:
    """The tally on the screen; `update` is called when it has changed."""

    def __init__(self, screen: Screen, tally: Tally, is_stopping: Callable[[], bool]) -> None:
        self._screen, self._tally, self._is_stopping = screen, tally, is_stopping
        self._printed = time.monotonic()
        self._pace: Pace | None = None

    def shown(self) -> AbstractContextManager[None]:
        return drawn(self._screen.console, self, transient=True) if self._screen.is_live else nullcontext()

    def begin(self) -> None:
        """From here on time counts: what was there before took none."""
        self._pace = self._pace or Pace(self._tally.wanted, self._tally.kept)

    def update(self) -> None:
        if self._screen.is_live or time.monotonic() - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = time.monotonic()
        pace = self._paced()
        parts = (f"  {pace.done}/{pace.total}", pace.left(), *self._tally.lines())
        self._screen.line("  ".join(filter(None, parts)))

    def _paced(self) -> Pace:
        pace = self._pace or Pace(self._tally.wanted, self._tally.kept)
        pace.add(self._tally.kept)
        return pace

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        yield self._paced().bar(options.max_width)
        for line in self._tally.lines():
            for part in Text(line).wrap(console, options.max_width - len(INDENT)):
                yield Text(INDENT) + part
        if self._is_stopping():
            yield Text(f"{INDENT}stopping after the requests under way; again: at once", style="yellow")
