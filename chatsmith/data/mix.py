"""Deals the records of all sources to the stages, and each stage's records to its two sides.

Where a record goes depends on the seed and its first user message alone: a conversation, its continuations and its
copies in other sources stay together, and neither the order of the records nor new ones move any. Shuffling is left to
the stages.
"""

import hashlib
import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from chatsmith.data.formats import stages_of
from chatsmith.data.sources import Source
from chatsmith.data.spec import STAGES
from chatsmith.errors import ConfigError, DataError
from chatsmith.types import Record, Stage

_NEEDS: dict[Stage, str] = {
    "sft": "an answer",
    "reward": "two answers with scores",
    "rl": "a prompt",
    "ptx": "plain text or an answer",
}


@dataclass(frozen=True)
class StageData:
    """The two sides of one stage's records, both in the order of the sources."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


def assign(record: Record, *, seed: int, split: tuple[float, float, float], allowed: tuple[Stage, ...]) -> Stage:
    """The stage that learns from a record; `split` holds the shares of sft, reward and rl, restricted to `allowed`.

    A record that only ptx may have goes there.

    Raises:
        ConfigError: if several stages are allowed and the split gives none of them a share.
    """
    stages = [stage for stage in ("sft", "reward", "rl") if stage in allowed]
    if not stages:
        return "ptx"
    if len(stages) == 1:
        return stages[0]
    shares = [share for stage, share in zip(("sft", "reward", "rl"), split, strict=True) if stage in allowed]
    if not sum(shares) > 0:
        raise ConfigError(
            f"the split {split} (sft, reward, rl) gives no share to any of {', '.join(stages)}, but {record.origin} "
            "can only go to one of them. Give one a share above 0, or name a single stage before the source."
        )
    bounds = list(itertools.accumulate(shares))
    point = _unit(_digest(seed, _key(record))[:8]) * bounds[-1]
    return next(stage for stage, bound in zip(stages, bounds, strict=True) if point < bound)


def held_out(record: Record, seed: int, fraction: float) -> bool:
    """Whether a record is kept for evaluation; independent of its stage, and the same in every stage."""
    return _unit(_digest(seed, _key(record))[8:16]) < fraction


def mix(
    sources: Sequence[Source],
    *,
    seed: int,
    split: tuple[float, float, float],
    held_out_fraction: float,
    stages: Sequence[Stage] = STAGES,
) -> dict[Stage, StageData]:
    """Deals all records to the stages; a source of weight w counts w times in training and once in evaluation.

    Sources that name no stage are dealt to `stages` only: those that this run has.
    A source that names ptx among its stages gives every record to ptx, and to one of its other stages if it names any.

    Raises:
        DataError: if a source names a stage that one of its records cannot serve.
        ConfigError: if `split` gives no share to any stage that a record may go to.
    """
    train: dict[Stage, list[Record]] = {stage: [] for stage in STAGES}
    kept: dict[Stage, list[Record]] = {stage: [] for stage in STAGES}
    for source in sources:
        for record in source.records:
            allowed = _allowed(record, source.spec.stages, stages)
            if not allowed:
                continue
            goes_to = {assign(record, seed=seed, split=split, allowed=allowed)}
            if "ptx" in allowed:
                goes_to.add("ptx")
            for stage in goes_to:
                if held_out(record, seed, held_out_fraction):
                    kept[stage].append(record)
                else:
                    train[stage] += [record] * _copies(record, seed, source.spec.weight)
    return {stage: StageData(tuple(train[stage]), tuple(kept[stage])) for stage in STAGES}


def _allowed(record: Record, named: tuple[Stage, ...], stages: Sequence[Stage]) -> tuple[Stage, ...]:
    able = stages_of(record)
    if not named:
        return tuple(stage for stage in able if stage in stages)
    if record.answers:
        able = (*able, "ptx")  # an answered prompt is good text too, but only where the user says so
    for stage in named:
        if stage not in able:
            raise DataError(
                f"{record.origin}: cannot serve the stage {stage}, which its source is given to: the record lacks "
                f"{_NEEDS[stage]}. It can serve {', '.join(able)}; name only these before the source in --data."
            )
    return named


def _copies(record: Record, seed: int, weight: float) -> int:
    """How often a record is trained on: floor(weight), and once more for a share frac(weight) of the records."""
    whole = "\n".join(
        [record.text, *(turn.content for turn in record.prompt), *(answer.content for answer in record.answers)]
    )
    once_more = _unit(_digest(seed, whole)[16:24]) < weight - math.floor(weight)
    return math.floor(weight) + once_more


def _key(record: Record) -> str:
    """The first user message, or the text, without regard to letter case, spacing and the way accents are encoded."""
    first = next((turn.content for turn in record.prompt if turn.role == "user"), record.text)
    return " ".join(unicodedata.normalize("NFC", first).casefold().split())


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def _unit(eight_bytes: bytes) -> float:
    """A number in [0, 1): 53 bits, since a double would round the largest 64-bit ones up to 1."""
    return (int.from_bytes(eight_bytes, "big") >> 11) / 2**53
