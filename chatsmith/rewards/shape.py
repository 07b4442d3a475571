"""What is too much of an answer: `repetition` and `overlong`, between 0 and -1."""

import re
from collections.abc import Sequence

from chatsmith.rewards.judged import Judged
from chatsmith.types import Sample

N = 4  # units that make a repetition
LONGEST_WORD = 24  # letters; a longer run is read letter by letter, for words do not repeat inside it
OVERLONG_SHARE = 0.2  # last part of the limit in which answers lose, as in DAPO: 4,096 of 20,480 tokens

# scripts that are written without blanks: Thai to Myanmar, Khmer, kana, ideographs, with those of the other planes
_NO_BLANKS = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_NO_BLANKS}]|[^\W{_NO_BLANKS}]+|[^\w\s]")


def repetition(text: str) -> float:
    """Minus the share of a text's runs of four units that stood in it before; 0 for a text without any.

    A unit is a word in lower case, a sign, or a letter of a script without blanks between words.
    """
    units: list[str] = []
    for unit in _UNIT.findall(text.lower()):
        units += [unit] if len(unit) <= LONGEST_WORD else list(unit)
    runs = [tuple(units[i : i + N]) for i in range(len(units) - N + 1)]
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


def overlong(samples: Sequence[Sample], *, limit: int) -> list[Judged]:
    """Less for answers that come near the limit of their length in tokens, see `algo.rewards.overlong`."""
    import torch

    from chatsmith.algo import rewards

    lengths = torch.tensor([sample.tokens or 0 for sample in samples])
    values = rewards.overlong(lengths, limit=limit, share=OVERLONG_SHARE).tolist()
    return [
        "nobody counted the tokens of the answer" if sample.tokens is None else value
        for sample, value in zip(samples, values, strict=True)
    ]


def is_without_blanks(text: str) -> bool:
    """Whether a text holds letters of a script that is written without blanks between words."""
    return re.search(f"[{_NO_BLANKS}]", text) is not None
