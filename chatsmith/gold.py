"""A judge who knows how good answers really are: asked for showing and for the verdict, and never by training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from chatsmith.assistant import Assistant
    from chatsmith.evaluate import Interval
    from chatsmith.models.reward import RewardModel
    from chatsmith.screen.console import Screen
    from chatsmith.verdicts import Judged


class GoldJudge(Protocol):
    """What the stages ask."""

    def probe(self, policy: "Assistant") -> dict[str, float]:
        """Metrics of the policy as it is, for the curve of a run."""

    def scores(self, policy: "Assistant") -> Any:
        """What it makes of the policy's answers; given back to the methods below."""

    def judged(self, before: Any, after: Any, metrics: Sequence[dict[str, Any]]) -> "Judged":
        """What training was good for; `metrics` are those that were logged on the way."""

    def summary(self, before: Any, after: Any) -> dict[str, Any]:
        """Figures for the manifest."""

    def marked(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of samples with what it knows of their answers."""

    def aspects(self, scorer: "RewardModel") -> "dict[str, Interval]":
        """How often a reward model prefers the better of two answers that differ in one aspect alone."""

    def show(self, screen: "Screen", before: Any, after: Any, summary: Mapping[str, Any]) -> None: ...

    def show_aspects(self, screen: "Screen", aspects: "Mapping[str, Interval]") -> None: ...
