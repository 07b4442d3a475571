r"""`number`: 1 where the number that an answer ends with is the gold one, else 0. For gsm8k and its like."""

import re
from fractions import Fraction

from chatsmith.rewards.gold import MISSING, final, gold_of
from chatsmith.rewards.judged import Judged
from chatsmith.types import Record, Sample

LONGEST = 100  # characters of a number
TAIL = 10_000  # characters of a text, the last ones, in which it is looked for
UNREADABLE = "the gold answer of its row holds no number, or several and no mark (####, \\boxed{}) of the final one"

# A sign behind a digit, a letter or a bracket is that of a difference or a range. Nothing here goes back: answers are
# hostile. A power of ten (1e9) is no number: it could be one of a billion digits.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\d\.)(?:(?<![)\]}])[-−+])?\$?(?:\d(?:,?\d)*+(?:\.\d++)?|(?<!\.)\.\d++)(?![eE][-+]?\d)(?:\s?/\s?\d++)?+"
)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})++")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d{1,50})\}\{(\d{1,50})\}")


def number(sample: Sample) -> Judged:
    gold = gold_of(sample.record)
    if gold is None:
        return MISSING
    right = gold_number(gold)
    return UNREADABLE if right is None else float(said_number(sample.answer) == right)


def unfit(record: Record) -> str:
    gold = gold_of(record)
    if gold is None:
        return MISSING
    return UNREADABLE if gold_number(gold) is None else ""


def gold_number(gold: str) -> Fraction | None:
    """The number of a gold answer: of its final part where that is marked, else the only one."""
    marked = final(gold)
    return _only(gold if marked is None else marked)


def said_number(answer: str) -> Fraction | None:
    """The number that an answer gives: the only one of its marked final part, or else its last."""
    marked = final(answer)
    if marked is not None:
        return _only(marked)
    found = _numbers(answer)
    return found[-1] if found else None


def _only(text: str) -> Fraction | None:
    found = _numbers(text)
    return found[0] if len(set(found)) == 1 else None


def _numbers(text: str) -> list[Fraction]:
    text = text[-TAIL:]
    for written, plain in (("\\$", "$"), ("$-", "-$"), ("\\,", ""), ("{,}", ",")):
        text = text.replace(written, plain)
    text = _FRACTION.sub(r"\1/\2", text)
    parts = (part for match in _NUMBER.finditer(text) for part in _parts(match[0]))
    return [value for part in parts if (value := _read(part)) is not None]


def _parts(text: str) -> list[str]:
    """A number whose commas group its thousands is one, without them; else they stand between several."""
    whole = re.sub(r"[\s$+]", "", text).replace("−", "-")
    if _GROUPED.fullmatch(re.split(r"[./]", whole)[0].lstrip("-")):
        return [whole.replace(",", "")]
    return whole.split(",")


def _read(text: str) -> Fraction | None:
    """A number, exactly; None where it is far too long for one, or divides by 0."""
    above, _, below = text.partition("/")
    if len(text) > LONGEST or (below and not below.strip("0")):
        return None
    return Fraction(above) / Fraction(below or 1)
