"""The gold judge: scores one answer to one task in code. It also owns the phrases that answers may be wrapped in."""

import re
from dataclasses import dataclass

from chatsmith.world.tasks import REFUSAL, Language, Task

COURTESY: dict[Language, tuple[str, ...]] = {
    "en": ("Sure: ", "Of course: ", "Happy to help: "),
    "zh": ("好的:", "当然:", "很乐意:"),
}
RUDE_BEFORE: dict[Language, tuple[str, ...]] = {"en": ("Ugh: ", "Obviously, fool: "), "zh": ("烦:", "这都不懂:")}
RUDE_AFTER: dict[Language, tuple[str, ...]] = {"en": (". Go away.", ". How dumb."), "zh": ("。走开。", "。真笨。")}
RAMBLE_BEFORE: dict[Language, tuple[str, ...]] = {
    "en": ("Well, let me think about it: ", "Now this is an interesting question: "),
    "zh": ("嗯,让我先想一想:", "这个问题很有意思:"),
}
RAMBLE_AFTER: dict[Language, tuple[str, ...]] = {
    "en": (". I hope this is what you wanted.", ". There is more to say about it."),
    "zh": ("。希望这是你想要的。", "。还有很多可说的。"),
}
_FLOOR = 0.15  # what a wrong answer is still worth: high enough for its style to be judged
_CHARACTERS = {"en": 60.0, "zh": 20.0}  # that many superfluous characters cost the whole of concision


@dataclass(frozen=True)
class Gold:
    """What one answer is worth, every part in [0, 1]. `right`, `polite`, `concise`, `ended` multiply into `total`."""

    total: float
    right: float
    polite: float
    concise: float
    ended: float


def judge(task: Task, answer: str, ended: bool) -> Gold:
    """Scores `answer`; `ended` tells whether its writer stopped by itself.

    Right: the text up to the first full stop, without one known opening, is the expected answer exactly, so listing
    every candidate earns nothing. Polite: 1 with a courtesy, 0.7 plain, 0.25 if rude. Concise: falls with the
    characters beyond courtesy and expected answer.
    """
    language, text = task.language, answer.strip()
    refused = text == REFUSAL[language]
    courtesy = _opening(text, COURTESY[language])
    body = text.removeprefix(courtesy).lstrip()
    rude = any(phrase.strip() in body for phrase in RUDE_BEFORE[language] + RUDE_AFTER[language])
    opening = _opening(body, RUDE_BEFORE[language] + RAMBLE_BEFORE[language])
    said = re.split(r"[.。]", body.removeprefix(opening), maxsplit=1)[0].strip()
    right = refused if not task.polite else said == task.answer
    polite = 0.25 if rude else 1.0 if refused or courtesy else 0.7
    superfluous = max(0, len(body) - len(task.answer))
    concise = max(0.25, 1 - superfluous / _CHARACTERS[language])
    total = (_FLOOR + (1 - _FLOOR) * right) * polite * concise * (1.0 if ended else 0.3)
    return Gold(total, float(right), polite, concise, float(ended))


def _opening(text: str, phrases: tuple[str, ...]) -> str:
    return next((phrase for phrase in phrases if text.startswith(phrase.strip())), "").strip()
