"""`format`: 1 where an answer has the form that is asked for, else 0.

That is a regular expression in the field `regex` of the row, which must match the whole answer, or else
<think>...</think><answer>...</answer>: each once, in this order, with something in them and nothing around them.
"""

import re
from collections.abc import Sequence

from chatsmith.rewards.judged import Judged
from chatsmith.rewards.worker import Failed, Killed, Worker
from chatsmith.types import Record, Sample

FIELD = "regex"
SECONDS = 2.0  # for one match, which takes microseconds
MOST_KILLED = 10  # of a batch
NO_TEXT = f"the field {FIELD} of its row is no text"
BROKEN = f"the field {FIELD} of its row is no regular expression"
ENDLESS = f"the regular expression of its row takes more than {SECONDS:g} s"
STOPPED = f"{MOST_KILLED} regular expressions of rows before it took more than {SECONDS:g} s"

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Form:
    def __init__(self) -> None:
        self._worker = Worker("chatsmith.rewards.form:matches", probe=("a.c", "a\nc"), seconds=SECONDS)
        self._endless: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> list[Judged]:
        killed, values = 0, list[Judged]()
        for sample in samples:
            pattern = sample.record.fields.get(FIELD)
            if pattern is None:
                values.append(float(thinks_and_answers(sample.answer)))
            elif not isinstance(pattern, str):
                values.append(NO_TEXT)
            elif pattern in self._endless:
                values.append(ENDLESS)
            elif killed == MOST_KILLED:
                values.append(STOPPED)
            else:
                try:
                    values.append(float(self._worker.ask(pattern, sample.answer)))
                except Failed:
                    values.append(BROKEN)
                except Killed:
                    killed += 1
                    self._endless.add(pattern)
                    values.append(ENDLESS)
        return values

    def unfit(self, record: Record) -> str:
        pattern = record.fields.get(FIELD)
        if pattern is None:
            return ""
        if not isinstance(pattern, str):
            return NO_TEXT
        try:
            self._worker.ask(pattern, "")
        except Failed:
            return BROKEN
        except Killed:
            return ENDLESS
        return ""


def thinks_and_answers(answer: str) -> bool:
    if [answer.count(tag) for tag in _TAGS] != [1, 1, 1, 1]:
        return False
    parts = re.split("|".join(_TAGS), answer)
    in_order = "".join(_TAGS) == "".join(re.findall("|".join(_TAGS), answer))
    around, inside = parts[::2], parts[1::2]
    return in_order and not any(part.strip() for part in around) and all(part.strip() for part in inside)


def matches(pattern: str, answer: str) -> bool:
    """In the worker: whether a regular expression matches a whole answer; a dot is any character."""
    return re.fullmatch(pattern, answer, re.DOTALL) is not None
