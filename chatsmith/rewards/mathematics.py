r"""`math`: 1 where an answer is the gold one as mathematics, else 0.

math-verify compares them, in a process of its own: its own limits need the main thread, and do not end everything. The
gold answer is judged first, and once: it must be readable and equal to itself, or it is the data that is wrong. After
that, whatever an answer does there (hang, take all memory, raise) is the answer's fault.
"""

import functools
import importlib.util
import re
from collections.abc import Sequence
from importlib import import_module

from chatsmith.errors import ConfigError
from chatsmith.rewards.gold import MISSING, final, gold_of
from chatsmith.rewards.judged import Judged
from chatsmith.rewards.worker import Failed, Killed, Worker
from chatsmith.types import Record, Sample

SECONDS = 5.0  # for one comparison, which takes some milliseconds
MOST_KILLED = 12  # answers of a batch, or a minute, after which the others are left out
LONGEST = 20_000  # characters of an answer, of which the last count
PROSE = 3  # words that make a gold answer prose, of which math-verify would make a product of letters
UNREADABLE = "math-verify cannot read the gold answer of its row"
STOPPED = f"{MOST_KILLED} answers before it kept math-verify busy for {SECONDS:g} s each"
PROBE = ("\\frac{1}{2}", "It is $0.5$.")


class Mathematics:
    """
    Raises:
        ConfigError: if math-verify is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("reward math: math-verify is not installed. Type pip install 'chatsmith[math]'.")
        self._worker = Worker("chatsmith.rewards.mathematics:same", probe=PROBE, seconds=SECONDS)
        self._golds: dict[str, bool] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[Judged]:
        killed, values = 0, list[Judged]()
        for sample in samples:
            gold = gold_of(sample.record)
            if gold is None:
                values.append(MISSING)
            elif not self._is_readable(gold):
                values.append(UNREADABLE)
            elif killed == MOST_KILLED:
                values.append(STOPPED)
            else:
                try:
                    values.append(float(self._worker.ask(bare(gold), sample.answer[-LONGEST:])))
                except Failed:
                    values.append(0.0)
                except Killed:
                    killed += 1
                    values.append(0.0)
        return values

    def unfit(self, record: Record) -> str:
        """Whether it is readable takes math-verify some milliseconds a record, and is left for when it is needed."""
        return MISSING if gold_of(record) is None else ""

    def _is_readable(self, gold: str) -> bool:
        if gold not in self._golds:
            try:
                self._golds[gold] = self._worker.ask(bare(gold), None)
            except (Killed, Failed):
                self._golds[gold] = False
        return self._golds[gold]


def bare(gold: str) -> str:
    r"""A gold answer without what stands around it: the content of its \boxed{}, what follows ####, or what is in $."""
    marked = final(gold)
    text = (gold if marked is None else marked).strip()
    for before, after in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(before) and text.endswith(after) and len(text) > len(before + after):
            inside = text[len(before) : -len(after)]
            if before not in inside:
                return inside.strip()
    return text


def same(gold: str, answer: str | None) -> bool:
    """In the worker: whether an answer is the gold one; without an answer, whether the gold one is itself."""
    right = _gold(gold)
    math_verify = import_module("math_verify")
    said = right if answer is None else math_verify.parse(answer, parsing_timeout=None)
    return bool(right) and bool(math_verify.verify(right, said, timeout_seconds=None))


@functools.lru_cache(maxsize=1000)
def _gold(gold: str) -> list[object]:
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\text\w*\{[^{}]*\}", "", gold))) >= PROSE:
        return []
    boxed = f"\\boxed{{{gold}}}"
    # what is only text would be right where an answer says the same letters
    read: list[object] = import_module("math_verify").parse(boxed, fallback_mode="no_fallback", parsing_timeout=None)
    return read
