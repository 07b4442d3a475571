"""What rows say of how good an answer is: marks, good or bad, and scores, the higher the better.

A mark that is spelt in no known way is refused: read wrongly, the bad answers would be the ones that are imitated.
"""

import reprlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from chatsmith.data.fields import word_set, words
from chatsmith.errors import DataError

_GOOD = word_set(
    "true t yes y good right correct up thumbsup thumbup like liked upvote upvoted positive pos accept accepted chosen"
    " preferred desirable desired pass passed ok"
)
_BAD = word_set(
    "false f no n bad wrong incorrect down thumbsdown thumbdown dislike disliked downvote downvoted negative neg reject"
    " rejected nonpreferred undesirable undesired fail failed"
)
_SAYS_GOOD = word_set(
    "label feedback thumb thumbs vote mark good right correct thumbsup thumbup liked upvoted accepted chosen preferred"
    " desirable"
)
_SAYS_BAD = word_set("bad wrong incorrect thumbsdown thumbdown disliked downvoted rejected undesirable")
_SCORES = word_set("score rating reward stars overallscore overallrating helpfulness")
_RANKS = word_set("rank")
_OF_WHAT = word_set("answer binary completion human is kto output response user was")


def is_mark(name: str) -> bool:
    return name == "kto_tag" or _bare(name) in _SAYS_GOOD | _SAYS_BAD


def is_score(name: str) -> bool:
    return _bare(name) in _SCORES


def is_rank(name: str) -> bool:
    return _bare(name) in _RANKS


def meaning(name: str, value: Any) -> bool | None:
    """Whether a field that is a mark says good; None where it says neither good nor bad."""
    good = _spelt(value)
    return good if good is None or _bare(name) not in _SAYS_BAD else not good


def mark_of(name: str, value: Any, where: str = "") -> bool | None:
    """Whether a field that is a mark says good; None where it is blank.

    Args:
        where: the place of the value, if it is not the name.
    Raises:
        DataError: if it says neither good nor bad.
    """
    good = meaning(name, value)
    if good is None and not (isinstance(value, str) and not value.strip()):
        raise DataError(
            f'"{where or name}" is {reprlib.repr(value)}, which marks the answer neither as good nor as bad (true, 1, '
            '"yes", "good"; false, 0, -1, "no", "bad"); write it so, or rename the field if it is no mark'
        )
    return good


def the_mark(row: Mapping[str, Any], names: Iterable[str]) -> bool | None:
    """What the marks of a row say together.

    Raises:
        DataError: if one is neither good nor bad, or two contradict each other.
    """
    said = {name: mark for name in names if (mark := mark_of(name, row[name])) is not None}
    if len(set(said.values())) > 1:
        raise DataError(f"{' and '.join(said)} contradict each other on whether the answer is good; keep one of them")
    return next(iter(said.values()), None)


def _spelt(value: Any) -> bool | None:
    if isinstance(value, str):
        text = value.strip().casefold()
        if text[:1] in ("👍", "👎"):
            return text[0] == "👍"
        letters = "".join(filter(str.isalpha, text))
        if letters and not any(map(str.isdigit, text)):
            return True if letters in _GOOD else False if letters in _BAD else None
        try:
            value = float(text)
        except ValueError:
            return None
    if not isinstance(value, bool | int | float):
        return None
    return True if value == 1 else False if value in (0, -1) else None


@lru_cache(maxsize=4096)
def _bare(name: str) -> str:
    """The name without what it is the mark or the score of, and in the singular."""
    bare = "".join(word for word in words(name) if word not in _OF_WHAT)
    singular = bare.removesuffix("s")
    return singular if singular in _SAYS_GOOD | _SAYS_BAD | _SCORES | _RANKS else bare
