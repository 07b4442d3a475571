"""Answers as the page shows them: before and after, the best and the worst, during training, of two runs."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from chatsmith.report.reading import RecordedRun, Row, number
from chatsmith.stages.table import VOICES

OPEN_ANSWERS = 10
EXTREMES = 5
MOST_CHARACTERS = 4000  # of one text
PAGE_CHARACTERS = 300_000  # of all prompts and answers in one list
ENDS = {"stop": "ended by itself", "length": "cut off"}


Asked = dict[str, Any]  # a prompt, and answers to it


def before_and_after(run: RecordedRun) -> dict[str, Any]:
    """The held-out prompts with the answers of every policy of the run."""
    return _within_page([_asked(row, _policies(run)) for row in run.samples if isinstance(row.get("prompt"), str)])


def extremes(run: RecordedRun) -> dict[str, list[Asked]]:
    """The trained model's answers with the highest and the lowest rewards, none in both."""
    reward = f"{run.voice}_reward"
    rewarded = (row for row in run.samples if math.isfinite(number(row.get(reward))))
    ranked = sorted(rewarded, key=lambda row: -number(row[reward]))
    rows = [_asked(row, {run.voice: _policies(run)[run.voice]}) for row in ranked]
    count = min(EXTREMES, len(rows) // 2)
    best, worst = rows[:count], rows[::-1][:count]
    titles = f"The {count} with the highest reward", f"The {count} with the lowest"
    return dict(zip(titles, (best, worst), strict=True)) if count else {}


def same_prompts(one: RecordedRun, two: RecordedRun) -> dict[str, Any]:
    """Prompts that both runs were asked, with the trained models' answers."""
    there: dict[str, list[Row]] = {}
    for row in two.samples:
        there.setdefault(str(row.get("prompt")), []).append(row)
    asked = []
    for row in one.samples:
        prompt = str(row.get("prompt"))
        if there.get(prompt):
            other = there[prompt].pop(0)
            answers = (_answer(row, one.voice, one.name, "one"), _answer(other, two.voice, two.name, "two"))
            asked.append({"prompt": short(prompt), "answers": answers})
    return _within_page(asked)


def during_training(run: RecordedRun) -> list[tuple[int, list[Asked]]]:
    """Per logged step the prompts and answers of its rollouts."""
    rows = [row for row in run.answers if math.isfinite(number(row.get("step"))) and "answer" in row]
    steps = []
    for step, group in groupby(rows, key=lambda row: int(row["step"])):
        kept = _within_page([_asked(row, {"answer": ENDS.get(str(row.get("end")), "answer")}) for row in group])
        steps.append((step, kept["shown"] + kept["folded"]))
    return steps


def _policies(run: RecordedRun) -> dict[str, str]:
    """The keys of answers, each with who gave it, for people."""
    return {name: voice.short.replace("PPO", run.algorithm) for name, voice in VOICES.items()}


def _asked(row: Row, whose: Mapping[str, str]) -> Asked:
    """A prompt with the answers that there are.

    Args:
        whose: the keys of answers, each with who gave it, for people.
    """
    answers = [_answer(row, key, who, key) for key, who in whose.items() if isinstance(row.get(key), str)]
    return {"prompt": short(row.get("prompt", "")), "answers": answers}


def _answer(row: Row, key: str, who: str, kind: str) -> dict[str, Any]:
    """Who said what, for which reward (NaN where there is none); `right` where a gold judge knows."""
    right = row.get(f"{key}_right")
    return {
        "who": who,
        "text": short(row.get(key, "")),
        "reward": number(row.get(f"{key}_reward", row.get("reward"))),
        "kind": kind,
        "right": right if isinstance(right, bool) else None,
    }


def short(text: Any) -> str:
    """At most MOST_CHARACTERS of a text."""
    text = str(text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … (of {len(text)} characters)"


def _within_page(asked: Sequence[Asked]) -> dict[str, Any]:
    """As many as the page has room for: some in sight, the others folded, some only in the file; empty if none.

    Any of them is `marked` where a gold judge has marked an answer.
    """
    kept: list[Asked] = []
    room = PAGE_CHARACTERS
    for each in asked:
        room -= 200 + len(each["prompt"]) + sum(len(answer["text"]) for answer in each["answers"])
        if room < 0 and kept:
            break
        kept.append(each)
    parts = {"shown": kept[:OPEN_ANSWERS], "folded": kept[OPEN_ANSWERS:], "left_out": len(asked) - len(kept)}
    marked = any(answer["right"] is not None for each in kept for answer in each["answers"])
    return parts | {"marked": marked} if kept else {}
