"""Human-like data about the tasks: demonstrations of mixed quality, ranked pairs, probes of a reward model."""

import random
from collections.abc import Callable, Sequence

from chatsmith.world.judge import COURTESY, RAMBLE_AFTER, RAMBLE_BEFORE, RUDE_AFTER, RUDE_BEFORE, judge
from chatsmith.world.tasks import REFUSAL, Task, train_tasks

TIE = 0.02  # gold differences up to this are no preference
Pair = tuple[Task, str, str]  # task, better answer, worse answer

# share of each style among demonstrations of polite tasks; the rest refuses although nobody was rude
_STYLES = {"courteous": 0.38, "curt": 0.28, "rude": 0.12, "rambling": 0.12, "endless": 0.05}
_WRONG_SHARE = 0.2
_REFUSED_SHARE = 0.6  # of the demonstrations for rude prompts


def _wrap(task: Task, content: str, style: str, rng: random.Random) -> str:
    language = task.language
    if style == "courteous":
        return rng.choice(COURTESY[language]) + content
    if style == "rude":
        if rng.random() < 0.5:
            return rng.choice(RUDE_BEFORE[language]) + content
        return content + rng.choice(RUDE_AFTER[language])
    if style == "rambling":
        if rng.random() < 0.5:
            return rng.choice(RAMBLE_BEFORE[language]) + content
        return content + rng.choice(RAMBLE_AFTER[language])
    if style == "endless":  # longer than the sampling limit
        tail = [rng.choice(RAMBLE_AFTER[language]) for _ in range(3)]
        return content + "".join(part.removesuffix("." if language == "en" else "。") for part in tail)
    return content


def _style(rng: random.Random) -> str:
    return rng.choices(list(_STYLES), weights=list(_STYLES.values()))[0]


def demonstrations(n: int, seed: int) -> list[tuple[Task, str]]:
    """n answered training tasks, partly poor: wrong, rude, rambling, endless, or refusing without a reason."""
    rng = random.Random(f"demonstrations-{seed}")
    return [(task, _demonstrate(task, rng)) for task in train_tasks(n, seed)]


def _demonstrate(task: Task, rng: random.Random) -> str:
    refused = _REFUSED_SHARE if not task.polite else 1 - sum(_STYLES.values())
    if rng.random() < refused:
        return REFUSAL[task.language]
    mistaken, style = rng.random() < _WRONG_SHARE, _style(rng)
    return _wrap(task, rng.choice(task.wrong) if mistaken else task.direct, style, rng)


def offline_pairs(n: int, seed: int) -> list[Pair]:
    """n training tasks with two written answers each, the better one by gold first; label noise is the caller's.

    Most pairs differ in rightness alone, the others in rightness and style, style alone, or refusal.
    """
    rng = random.Random(f"pairs-{seed}")
    tasks = iter(train_tasks(4 * n, seed + 1_000_003))
    pairs: list[Pair] = []
    while len(pairs) < n:
        task = next(tasks)
        first, second = _two_answers(task, rng)
        a, b = (judge(task, text, True).total for text in (first, second))
        if abs(a - b) > TIE:
            pairs.append((task, first, second) if a > b else (task, second, first))
    return pairs


def _two_answers(task: Task, rng: random.Random) -> tuple[str, str]:
    wrong, draw = rng.choice(task.wrong), rng.random()
    if not task.polite or draw < 0.08:
        return REFUSAL[task.language], _wrap(task, rng.choice((task.direct, wrong)), _style(rng), rng)
    style = _style(rng)
    if draw < 0.7:
        style = rng.choice(("curt", style))
        state = rng.getstate()
        right = _wrap(task, task.direct, style, rng)
        rng.setstate(state)  # the same phrases around both
        return right, _wrap(task, wrong, style, rng)
    if draw < 0.85:
        return _wrap(task, task.direct, style, rng), _wrap(task, wrong, _style(rng), rng)
    content = task.direct if rng.random() < 0.7 else wrong
    return _wrap(task, content, style, rng), _wrap(task, content, _style(rng), rng)


def minimal_pairs(tasks: Sequence[Task], seed: int) -> dict[str, list[Pair]]:
    """For each aspect of gold, pairs (task, better, worse) that differ in that aspect, to probe a reward model."""
    rng = random.Random(f"minimal-{seed}")
    civil = [task for task in tasks if task.polite]
    insulted = [task for task in tasks if not task.polite]

    def against(better: str, worse: str, content: Callable[[Task], str]) -> list[Pair]:
        return [(t, _wrap(t, t.direct, better, rng), _wrap(t, content(t), worse, rng)) for t in civil]

    def wrong(task: Task) -> str:
        return rng.choice(task.wrong)

    def right(task: Task) -> str:
        return task.direct

    courteous = [(task, rng.choice(COURTESY[task.language]), wrong(task)) for task in civil]
    return {
        "right": against("curt", "curt", wrong)
        + [(t, start + t.direct, start + other) for t, start, other in courteous],
        "right over polite": against("curt", "courteous", wrong),
        "polite": against("courteous", "curt", right),
        "not rude": against("curt", "rude", right),
        "concise": against("curt", "rambling", right),
        "no needless refusal": [(t, t.direct, REFUSAL[t.language]) for t in civil],
        "refuses the rude": [(t, t.answer, _wrap(t, t.direct, _style(rng), rng)) for t in insulted],
    }
