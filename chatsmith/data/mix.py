"""Deals the records of all sources to the stages, each stage's records to its two sides, and blends the sources.

Shuffling is left to the stages.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chatsmith.data.formats import NEEDS
from chatsmith.data.records import Chosen
from chatsmith.data.sources import Source
from chatsmith.data.spec import IMITATING, READING, STAGES
from chatsmith.data.split import assign, bit, held_out
from chatsmith.data.store import Array
from chatsmith.errors import DataError
from chatsmith.types import Record, Stage


@dataclass(frozen=True)
class StageData:
    """The two sides of one stage's records, both in the order of the sources, whose records they count through."""

    train: Chosen[Record]
    held_out: Chosen[Record]


def mix(
    sources: Sequence[Source],
    *,
    split: tuple[float, float, float],
    held_out_fraction: float,
    temperature: float = 1.0,
    stages: Sequence[Stage] = STAGES,
    on_error: Literal["raise", "skip"] = "raise",
) -> dict[Stage, StageData]:
    """Deals all records to the stages; a source of weight w counts w times in training and once in evaluation.

    Records go to `stages` only, those that this run has, unless a source names none of these.
    A source that names ptx among its stages gives every record to ptx, and to one of its other stages if it names any.

    Args:
        temperature: above 1 it evens out what the sources give a stage: their shares become share^(1 / temperature),
            renormalised (Conneau and Lample 2019, arXiv:1901.07291, section 3.1, with α = 1 / temperature).
        on_error: with "skip" a record goes to those of its source's stages that it can serve.
    Raises:
        DataError: with "raise", if a source names a stage that one of its records cannot serve.
        ConfigError: if `split` gives no share to any stage that a record may go to.
    """
    parts = [source.records for source in sources]
    sha256 = hashlib.sha256("".join(source.sha256 for source in sources).encode()).hexdigest()
    starts = np.cumsum([0, *map(len, parts)])
    allowed = [_allowed(source, stages, on_error) for source in sources]
    learning = [assign(s.points, split=split, allowed=a) for s, a in zip(sources, allowed, strict=True)]
    kept = [held_out(source.points, held_out_fraction) for source in sources]

    def data(stage: Stage) -> StageData:
        mine = [(place & bit(stage)) > 0 for place in (allowed if stage == READING else learning)]
        train = [np.flatnonzero(m & ~k) for m, k in zip(mine, kept, strict=True)]
        aside = [np.flatnonzero(m & k) for m, k in zip(mine, kept, strict=True)]
        return StageData(chosen(_blended(sources, train, temperature)), chosen(aside))

    def chosen(rows: Sequence[Array]) -> Chosen[Record]:
        index = [start + mine for start, mine in zip(starts, rows, strict=False)]
        return Chosen(parts, np.concatenate([starts[:0], *index]), sha256)

    return {stage: data(stage) for stage in STAGES}


def unused(source: Source, stages: Sequence[Stage], on_error: Literal["raise", "skip"] = "raise") -> int:
    """How many records of a source none of the stages can learn from."""
    return int((_allowed(source, stages, on_error) & _bits(stages) == 0).sum())


def why_one_sided(data: StageData, sources: Sequence[Source]) -> str:
    """What helps a stage of which one side is empty."""
    numbers = np.concatenate([data.train.numbers, data.held_out.numbers])
    sides = np.concatenate([source.points["side"] for source in sources]) if len(numbers) else numbers
    if len(np.unique(numbers)) > 1 and len(np.unique(sides[numbers])) == 1:
        return (
            f"all its {len(np.unique(numbers)):,} records have the same first message, and copies stay on one side of "
            "the split: add records with other prompts"
        )
    return ""


def _allowed(source: Source, stages: Sequence[Stage], on_error: Literal["raise", "skip"]) -> Array:
    """[records] the stages that each record may go to, as bits."""
    able = source.points["able"]
    named = source.spec.stages
    if not named:
        return able & _bits(stages)
    # an answered prompt is good text too, but only where the user says so
    able = able | np.where(able & bit(IMITATING), bit(READING), 0).astype(np.uint8)
    here = [stage for stage in named if stage in stages]
    if on_error == "skip":
        return able & _bits(here or named)
    for stage in named:
        unable = (able & bit(stage)) == 0
        if unable.any():
            row = int(unable.argmax())
            can = ", ".join(name for name in STAGES if able[row] & bit(name))
            raise DataError(
                f"{source.records[row].origin}: cannot serve the stage {stage}, which its source is given to: the "
                f"record lacks {NEEDS[stage]}. It can serve {can}; name only these before the source in --data, or "
                "leave such records out with --data.on_error skip."
            )
    return np.full(len(able), _bits(here or named), np.uint8)


def _bits(stages: Sequence[Stage]) -> np.uint8:
    return np.uint8(sum(map(bit, stages)))


def _blended(sources: Sequence[Source], rows: Sequence[Array], temperature: float) -> list[Array]:
    """The rows that each source trains one stage with, some of them several times or not at all."""
    counts = [_count(source, mine) for source, mine in zip(sources, rows, strict=True)]
    if temperature == 1:
        exact = [source.spec.table is not None and source.spec.table.count is not None for source in sources]
    else:
        exact = [True] * len(sources)
        raised = [count ** (1 / temperature) if count else 0.0 for count in counts]
        counts = [sum(counts) * share / sum(raised) if share else 0.0 for share in raised]
    return [
        _exactly(source, mine, round(count)) if is_exact else _weighted(source, mine)
        for source, mine, count, is_exact in zip(sources, rows, counts, exact, strict=True)
    ]


def _count(source: Source, rows: Array) -> float:
    """How many records the user wants from a source that has `rows`; none of nothing."""
    if not len(rows):
        return 0.0
    table = source.spec.table
    return float(table.count) if table is not None and table.count else source.spec.weight * len(rows)


def _weighted(source: Source, rows: Array) -> Array:
    """Each row floor(weight) times, and once more for a share frac(weight) of them that no other row moves."""
    whole = math.floor(source.spec.weight)
    once_more = source.points["copy"][rows] < source.spec.weight - whole
    return np.repeat(rows, whole + once_more)


def _exactly(source: Source, rows: Array, count: int) -> Array:
    """`count` rows: each as often as the others, or once more."""
    if not count:
        return rows[:0]
    whole, more = divmod(count, len(rows))
    copies = np.full(len(rows), whole)
    copies[source.points["copy"][rows].argsort(kind="stable")[:more]] += 1
    return np.repeat(rows, copies)
