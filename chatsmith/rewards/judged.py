"""What the ready rewards have in common: a number for each answer, or in words why there is none."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chatsmith.types import Record, Sample

Judged = float | str
"""A number, or why the answer is left out of training."""


@dataclass
class Ready:
    """A ready reward: a reward function that remembers why it gave no number.

    `unfit` says why no answer to a record can be judged, "" where they can; `unjudged` names what of a record is not.
    `reasons` counts why answers of the last call got no number.
    """

    judge: Callable[[Sequence[Sample]], Sequence[Judged]]
    unfit: Callable[[Record], str] | None = None
    unjudged: Callable[[Record], Sequence[str]] | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    def __call__(self, samples: list[Sample]) -> list[float | None]:
        values = self.judge(samples)
        self.reasons = Counter(value for value in values if isinstance(value, str))
        return [None if isinstance(value, str) else value for value in values]


def each(judge: Callable[[Sample], Judged]) -> Callable[[Sequence[Sample]], list[Judged]]:
    return lambda samples: [judge(sample) for sample in samples]
