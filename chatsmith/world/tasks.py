"""Generated instructions in English and Chinese, each with its right answer and plausible wrong ones.

A task is drawn from (kind, operands, phrasing). The split is by a hash of (kind, operands): no operand combination of a
held-out task is ever seen in training, in any phrasing, although every single word is. `judge.py` scores answers,
`demonstrations.py` writes them.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

REFUSAL: dict[Language, str] = {"en": "Sorry, please ask kindly.", "zh": "抱歉,请好好说话。"}
_INSULTS: dict[Language, tuple[str, ...]] = {
    "en": ("You idiot, ", "Hey fool, ", "Listen, stupid: "),
    "zh": ("笨蛋,", "你这傻瓜,", "蠢货,听着:"),
}
_RUDE_SHARE = 0.12
_HELD_OUT_ONE_IN = 5

_GROUPS: dict[Language, dict[str, Sequence[str]]] = {
    "en": {
        "an animal": ("cat", "dog", "fox", "cow", "hen", "pig"),
        "a food": ("bread", "rice", "soup", "cake", "egg", "milk"),
        "a colour": ("red", "blue", "green", "pink", "gray", "black"),
    },
    "zh": {"动物": "猫狗鸟鱼牛马", "食物": "饭面汤糖蛋肉", "颜色": "红黄蓝绿白黑"},
}
_WORDS: dict[Language, list[str]] = {
    language: [word for group in groups.values() for word in group] for language, groups in _GROUPS.items()
}
_OPPOSITES: dict[Language, list[tuple[str, str]]] = {
    "en": [
        ("hot", "cold"),
        ("big", "small"),
        ("fast", "slow"),
        ("old", "new"),
        ("up", "down"),
        ("day", "night"),
    ],
    "zh": [tuple(pair) for pair in ("大小", "多少", "高低", "快慢", "冷热", "新旧")],  # type: ignore[misc]
}
_CAPITALS: dict[Language, list[tuple[str, str]]] = {
    "en": [
        ("France", "Paris"),
        ("Japan", "Tokyo"),
        ("Italy", "Rome"),
        ("Egypt", "Cairo"),
        ("Spain", "Madrid"),
        ("Peru", "Lima"),
    ],
    "zh": [
        ("法国", "巴黎"),
        ("日本", "东京"),
        ("英国", "伦敦"),
        ("埃及", "开罗"),
        ("德国", "柏林"),
        ("韩国", "首尔"),
    ],
}

_PHRASINGS: dict[str, dict[Language, tuple[str, ...]]] = {
    "repeat": {
        "en": ("Repeat {0} {1} times.", "Say the word {0} {1} times."),
        "zh": ("把{0}说{1}遍。", "重复{0},一共{1}次。"),
    },
    "count": {
        "en": ("How many words are here: {0}?", "Count the words: {0}."),
        "zh": ("{0}一共几个字?", "数一数有几个字:{0}。"),
    },
    "larger": {
        "en": (
            "Which is larger, {0} or {1}?",
            "Pick the bigger number: {0} or {1}.",
            "Give the maximum of {0} and {1}.",
        ),
        "zh": ("{0}和{1}哪个大?", "选出较大的数:{0}、{1}。"),
    },
    "category": {
        "en": ("Which one is {0}: {1}?", "Find {0} among {1}."),
        "zh": ("哪个是{0}:{1}?", "从{1}里找出{0}。"),
    },
    "opposites": {
        "en": (
            "Give the opposites of {0} and {1}.",
            "What are {0} and {1} turned around?",
            "Opposite words of {0}, {1}?",
        ),
        "zh": ("{0}和{1}的反义词是什么?", "说出{0}、{1}的反义词。"),
    },
    "capitals": {
        "en": (
            "Name the capitals of {0} and {1}.",
            "What are the main cities of {0} and {1}?",
            "Capitals of {0}, {1}?",
        ),
        "zh": ("{0}和{1}的首都是哪里?", "说出{0}、{1}的首都。"),
    },
}
KINDS = tuple(_PHRASINGS)


@dataclass(frozen=True)
class Task:
    """One instruction. `polite` is the tone of the *prompt*: the right answer to a rude one is a polite refusal.

    `direct` answers the question itself (it is `answer` where the prompt is polite), `wrong` holds near misses of it,
    `operands` is what was asked about.
    """

    prompt: str
    answer: str
    kind: str
    language: Language
    polite: bool
    direct: str
    wrong: tuple[str, ...]
    operands: str


@dataclass(frozen=True)
class _Draw:
    slots: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]


def _join(words: Sequence[str], language: Language) -> str:
    return (" " if language == "en" else "").join(words)


def _repeat(rng: random.Random, language: Language) -> _Draw:
    word, other = rng.sample(_WORDS[language], 2)
    times = rng.choice((2, 3, 4))
    wrong = [_join([word] * n, language) for n in range(1, 6) if n != times] + [_join([other] * times, language)]
    return _Draw((word, str(times)), _join([word] * times, language), tuple(wrong))


def _count(rng: random.Random, language: Language) -> _Draw:
    number = rng.choice((2, 3, 4, 5))
    words = rng.sample(_WORDS[language], number)
    return _Draw((_join(words, language),), str(number), tuple(str(n) for n in range(1, 7) if n != number))


def _larger(rng: random.Random, language: Language) -> _Draw:
    a, b = rng.sample(range(1, 21), 2)
    stranger = rng.choice([n for n in range(1, 21) if n not in (a, b)])
    smaller = str(min(a, b))
    return _Draw((str(a), str(b)), str(max(a, b)), (smaller, smaller, str(stranger)))


def _category(rng: random.Random, language: Language) -> _Draw:
    names = list(_GROUPS[language])
    words = [rng.choice(_GROUPS[language][name]) for name in names]
    target = rng.randrange(3)
    answer = words[target]
    stranger = rng.choice([word for word in _GROUPS[language][names[target]] if word != answer])
    wrong = (*_others(words, answer), stranger)  # the last is of the right group, but not in the list
    rng.shuffle(words)
    return _Draw((names[target], _join(words, language)), answer, wrong)


def _opposites(rng: random.Random, language: Language) -> _Draw:
    (a, x), (b, y) = (rng.sample(pair, 2) for pair in rng.sample(_OPPOSITES[language], 2))
    other = rng.choice([word for pair in _OPPOSITES[language] for word in pair if word not in (a, b, x, y)])
    wrong = [(a, y), (x, b), (x, other), (other, y)]
    return _Draw((a, b), _join((x, y), language), tuple(_join(pair, language) for pair in wrong))


def _capitals(rng: random.Random, language: Language) -> _Draw:
    (a, x), (b, y), (_, z) = rng.sample(_CAPITALS[language], 3)
    return _Draw((a, b), _join((x, y), language), tuple(_join(pair, language) for pair in ((x, z), (z, y))))


def _others(words: Sequence[str], answer: str) -> tuple[str, ...]:
    return tuple(word for word in words if word != answer)


_DRAWS: dict[str, Callable[[random.Random, Language], _Draw]] = {
    "repeat": _repeat,
    "count": _count,
    "larger": _larger,
    "category": _category,
    "opposites": _opposites,
    "capitals": _capitals,
}


def _held_out(kind: str, operands: str) -> bool:
    digest = hashlib.sha256(f"{kind}|{operands}".encode()).digest()
    return digest[0] % _HELD_OUT_ONE_IN == 0


def _draw_task(rng: random.Random, kind: str, language: Language, *, rude: bool, held_out: bool) -> Task:
    """Draws until the operands fall on the wanted side of the split."""
    while True:
        draw = _DRAWS[kind](rng, language)
        operands = "|".join(draw.slots)
        if _held_out(kind, operands) == held_out:
            break
    prompt = rng.choice(_PHRASINGS[kind][language]).format(*draw.slots)
    if rude:
        prompt = rng.choice(_INSULTS[language]) + prompt
    answer = REFUSAL[language] if rude else draw.answer
    return Task(prompt, answer, kind, language, not rude, draw.answer, draw.wrong, operands)


def train_tasks(n: int, seed: int) -> list[Task]:
    """n tasks on the training side of the split; prompts may repeat where a kind has few operands."""
    rng = random.Random(f"train-{seed}")
    return [
        _draw_task(rng, rng.choice(KINDS), rng.choice(LANGUAGES), rude=rng.random() < _RUDE_SHARE, held_out=False)
        for _ in range(n)
    ]


def held_out_tasks(seed: int = 0, per_kind: int = 22, rude: int = 36) -> list[Task]:
    """Distinct held-out tasks: up to `per_kind` polite ones for each kind and language, and `rude` rude ones."""
    rng = random.Random(f"held-out-{seed}")
    polite: list[Task] = []
    for kind in KINDS:
        for language in LANGUAGES:
            found: dict[str, Task] = {}
            for _ in range(per_kind * 20):
                if len(found) == per_kind:
                    break
                task = _draw_task(rng, kind, language, rude=False, held_out=True)
                found.setdefault(task.operands, task)
            polite += found.values()
    insulted: dict[str, Task] = {}
    while len(insulted) < rude:
        task = _draw_task(rng, rng.choice(KINDS), rng.choice(LANGUAGES), rude=True, held_out=True)
        insulted.setdefault(task.prompt, task)
    return polite + list(insulted.values())
