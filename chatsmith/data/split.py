"""Which stage and which side a record belongs to: a matter of hashes, so that it depends on nothing around the record.

Where a record goes depends on the seed, its first user message and the stages that it may go to, on nothing else: a
conversation, its continuations and its copies in other sources stay together as far as these are the same, and neither
the order of the records nor new ones move any. The side depends on seed and message alone.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from chatsmith.data.formats import stages_of
from chatsmith.data.spec import LEARNING, STAGES
from chatsmith.errors import ConfigError
from chatsmith.types import Record, Stage

_SHARES: Mapping[Stage, int] = {"sft": 0, "pairs": 1, "reward": 1, "rl": 2}  # which number of data.split is whose
POINT = np.dtype([("stage", "f8"), ("side", "f8"), ("copy", "f8"), ("able", "u1")])
"""What the split must know of a record: three numbers in [0, 1), and the stages that it can serve, as bits."""


def point(record: Record, seed: int) -> tuple[float, float, float, int]:
    """The record's `POINT`."""
    first = _digest(seed, _key(record))
    texts = (record.text, *(turn.content for turn in record.prompt), *(answer.content for answer in record.answers))
    able = sum(bit(stage) for stage in stages_of(record))
    return _unit(first[:8]), _unit(first[8:16]), _unit(_digest(seed, "\n".join(texts))[16:24]), able


def judge_point(record: Record, seed: int) -> float:
    """A number in [0, 1) that decides whether a preference is kept for the final judge; as `point`, for itself."""
    return _unit(_digest(seed, _key(record))[24:32])


def bit(stage: Stage) -> int:
    """The stage's place among the bits of `able`."""
    return 1 << STAGES.index(stage)


def held_out(points: NDArray[np.void], fraction: float) -> NDArray[np.bool_]:
    """Whether records are kept for evaluation; independent of their stage, and the same in every stage."""
    kept: NDArray[np.bool_] = points["side"] < fraction
    return kept


def assign(
    points: NDArray[np.void], *, split: tuple[float, float, float], allowed: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The bit of the stage that learns from each record; 0 where none may but ptx.

    Args:
        split: shares of sft, of reward and pairs each, and of rl, restricted to the stages that a record may go to.
        allowed: [records] those stages, as bits.
    Raises:
        ConfigError: if several stages are allowed and the split gives none of them a share.
    """
    goes_to = np.zeros(len(points), np.uint8)
    share_of = {stage: split[_SHARES[stage]] for stage in LEARNING}
    every = sum(map(bit, LEARNING))
    for choice in itertools.product((False, True), repeat=len(LEARNING)):
        chosen = [stage for stage, is_chosen in zip(LEARNING, choice, strict=True) if is_chosen]
        bits = list(map(bit, chosen))
        rows = (allowed & every) == sum(bits)
        if not bits or not rows.any():
            continue
        shares = [share_of[stage] for stage in chosen]
        if len(bits) > 1 and not sum(shares) > 0:
            raise ConfigError(
                f"data.split = {list(split)} (sft, reward or pairs, rl) gives no share to any of {', '.join(chosen)}, "
                "but some records can only go to one of them. Give one a share above 0, or name a single stage before the "
                "source."
            )
        bounds = np.cumsum(shares) if len(bits) > 1 else np.ones(1)
        stage = np.searchsorted(bounds, points["stage"][rows] * bounds[-1], side="right")
        goes_to[rows] = np.array(bits, np.uint8)[stage]
    return goes_to


def _key(record: Record) -> str:
    """The first user message, or the text, without regard to letter case, spacing and the way accents are encoded."""
    first = next((turn.content for turn in record.prompt if turn.role == "user"), record.text)
    return " ".join(unicodedata.normalize("NFC", first).casefold().split())


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()


def _unit(eight_bytes: bytes) -> float:
    """A number in [0, 1): 53 bits, since a double would round the largest 64-bit ones up to 1."""
    return (int.from_bytes(eight_bytes, "big") >> 11) / 2**53
