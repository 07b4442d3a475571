"""Answers as the page shows them: before and after stage 3, the best and the worst, during training, of two runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from chatsmith.report.reading import RecordedRun, Row, number

OPEN_ANSWERS = 10
EXTREMES = 5
MOST_CHARACTERS = 4000  # of one text
PAGE_CHARACTERS = 300_000  # of all prompts and answers in one list


@dataclass(frozen=True)
class Answer:
    """Who said what, for which reward (NaN where there is none); `right` where a gold judge knows."""

    who: str
    text: str
    reward: float
    kind: str
    right: bool | None


@dataclass(frozen=True)
class Asked:
    """A prompt and answers to it, side by side."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Answered:
    """A list of prompts: some in sight, the others folded, some only in the file."""

    shown: list[Asked]
    folded: list[Asked]
    left_out: int

    @property
    def marked(self) -> bool:
        """Whether a gold judge has marked any of the answers."""
        return any(answer.right is not None for each in (*self.shown, *self.folded) for answer in each.answers)


def before_and_after(run: RecordedRun) -> Answered | None:
    """The held-out prompts with the answers of every policy of the run."""
    return _within_page([_asked(run, row) for row in run.samples if isinstance(row.get("prompt"), str)])


def extremes(run: RecordedRun) -> dict[str, list[Asked]]:
    """The actor's answers with the highest and the lowest rewards, none in both."""
    rows = sorted(
        (row for row in run.samples if math.isfinite(number(row.get("rl_reward")))),
        key=lambda row: -number(row["rl_reward"]),
    )
    count = min(EXTREMES, len(rows) // 2)
    if not count:
        return {}
    worst = reversed(rows[-count:])
    return {
        f"The {count} with the highest reward": [_asked(run, row, ("rl",)) for row in rows[:count]],
        f"The {count} with the lowest": [_asked(run, row, ("rl",)) for row in worst],
    }


def same_prompts(one: RecordedRun, two: RecordedRun) -> Answered | None:
    """Prompts that both runs were asked, with the answers of both actors."""
    there: dict[str, list[Row]] = {}
    for row in two.samples:
        there.setdefault(str(row.get("prompt")), []).append(row)
    asked = []
    for row in one.samples:
        prompt = str(row.get("prompt"))
        if there.get(prompt):
            other = there[prompt].pop(0)
            answers = (_answer(row, "rl", one.name, "one"), _answer(other, "rl", two.name, "two"))
            asked.append(Asked(short(prompt), answers))
    return _within_page(asked)


def during_training(run: RecordedRun) -> list[tuple[int, list[Asked]]]:
    """Per logged step the prompts and answers of its rollouts."""
    rows = [row for row in run.answers if math.isfinite(number(row.get("step"))) and "answer" in row]
    steps = []
    for step, group in groupby(rows, key=lambda row: int(row["step"])):
        asked = [
            Asked(short(row.get("prompt", "")), (_answer(row | {"rl": row["answer"]}, "rl", _end(row), "rl"),))
            for row in group
        ]
        kept = _within_page(asked)
        if kept is not None:
            steps.append((step, kept.shown + kept.folded))
    return steps


def _end(row: Row) -> str:
    return {"stop": "ended by itself", "length": "cut off"}.get(str(row.get("end")), "answer")


def _asked(run: RecordedRun, row: Row, policies: Iterable[str] = ("sft", "rl", "ema")) -> Asked:
    names = {"sft": "SFT", "rl": run.algorithm, "ema": f"{run.algorithm}, averaged"}
    answers = tuple(_answer(row, key, names[key], key) for key in policies if isinstance(row.get(key), str))
    return Asked(short(row.get("prompt", "")), answers)


def _answer(row: Row, key: str, who: str, kind: str) -> Answer:
    reward = row.get(f"{key}_reward", row.get("reward"))
    right = row.get(f"{key}_right")
    return Answer(who, short(row.get(key, "")), number(reward), kind, right if isinstance(right, bool) else None)


def short(text: Any) -> str:
    """At most MOST_CHARACTERS of a text."""
    text = str(text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … (of {len(text)} characters)"


def _within_page(asked: Sequence[Asked]) -> Answered | None:
    """As many as the page has room for, the first ones in sight."""
    kept: list[Asked] = []
    room = PAGE_CHARACTERS
    for each in asked:
        room -= 200 + len(each.prompt) + sum(len(answer.text) for answer in each.answers)
        if room < 0 and kept:
            break
        kept.append(each)
    return Answered(kept[:OPEN_ANSWERS], kept[OPEN_ANSWERS:], len(asked) - len(kept)) if kept else None
