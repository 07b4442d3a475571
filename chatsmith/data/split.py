"""Which stage and which side a record belongs to: a matter of hashes, so that it depends on nothing around the record.

Where a record goes depends on the seed, its first user message and the stages that it may go to, on nothing else: a
conversation, its continuations and its copies in other sources stay together as far as these are the same, and neither
the order of the records nor new ones move any. The side depends on seed and message alone.
"""

import hashlib
import unicodedata
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from chatsmith.data.formats import stages_of
from chatsmith.data.spec import ASKING, COMPARING, IMITATING, LEARNING, RANKING, STAGES
from chatsmith.errors import ConfigError
from chatsmith.types import Record, Stage

_SHARES: Mapping[Stage, int] = {
    IMITATING: 0,
    COMPARING: 1,
    RANKING: 1,
    ASKING: 2,
}  # which number of data.split is whose
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
    learning = list(map(bit, LEARNING))
    choices = allowed & sum(learning)
    for choice in np.unique(choices[choices > 0]):
        chosen = [i for i, place in enumerate(learning) if choice & place]
        shares = [split[_SHARES[LEARNING[i]]] if len(chosen) > 1 else 1.0 for i in chosen]
        if not sum(shares) > 0:
            names = ", ".join(LEARNING[i] for i in chosen)
            raise ConfigError(
                f"data.split = {list(split)} (sft, reward or pairs, rl) gives no share to any of {names}, but "
                "some records can only go to one of them. Give one a share above 0, or name a stage before the source."
            )
        rows, bounds = choices == choice, np.cumsum(shares)
        stage = np.searchsorted(bounds, points["stage"][rows] * bounds[-1], side="right")
        goes_to[rows] = np.array(learning, np.uint8)[chosen][stage]
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
