"""Answers token by token: what stage 3 changed, and what the critic, if there was one, expected."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from chatsmith.report.answers import short
from chatsmith.report.reading import RecordedRun, Row, number

MOST_TOKENS = 400  # of one answer


@dataclass(frozen=True)
class Spoken:
    """One token: its text in visible pieces, KL and value in words, and both in [-1, 1] of the page's scale.

    Without a critic the value is 0.
    """

    pieces: tuple[tuple[str, str], ...]  # kind (text, space, break, mark) and text
    about: str
    kl: float
    value: float


@dataclass(frozen=True)
class SpokenAnswer:
    """One answer, token by token."""

    why: str
    prompt: str
    tokens: list[Spoken]
    kl: float  # summed, nats
    reward: float
    left_out: int


@dataclass(frozen=True)
class SpokenAnswers:
    """Answers on one scale: the numbers at which and beyond which colours are full; of values 0 without a critic."""

    answers: list[SpokenAnswer]
    full_kl: float
    full_value: float


def token_by_token(run: RecordedRun) -> SpokenAnswers | None:
    """The answer that went furthest from the SFT model, a typical one, and the one with the lowest reward."""
    spoken = [(row, _tokens(row)) for row in run.samples]
    spoken = [(row, tokens) for row, tokens in spoken if tokens]
    if not spoken:
        return None
    ranked = sorted(spoken, key=lambda pair: _kl(pair[1]))
    chosen = {"The furthest from the SFT model": ranked[-1], "A typical one": ranked[len(ranked) // 2]}
    rewarded = [pair for pair in spoken if math.isfinite(number(pair[0].get("rl_reward")))]
    if rewarded:
        chosen["The lowest reward"] = min(rewarded, key=lambda pair: number(pair[0]["rl_reward"]))
    unlike = {id(row): (why, row, tokens) for why, (row, tokens) in reversed(chosen.items())}
    shown = list(reversed(unlike.values()))
    every = [token for _, _, tokens in shown for token in tokens[:MOST_TOKENS]]
    values = [value for _, _, value in every if value is not None]
    full_kl, full_value = _full([kl for _, kl, _ in every]), _full(values) if values else 0.0
    answers = [
        SpokenAnswer(
            why,
            short(row.get("prompt", "")),
            [
                Spoken(
                    tuple(visible(text, empty="∎")),
                    f"KL {_signed(kl)} nats" + ("" if value is None else f", value {_signed(value)}"),
                    _share(kl, full_kl),
                    0.0 if value is None else _share(value, full_value),
                )
                for text, kl, value in tokens[:MOST_TOKENS]
            ],
            _kl(tokens),
            number(row.get("rl_reward")),
            max(0, len(tokens) - MOST_TOKENS),
        )
        for why, row, tokens in shown
    ]
    return SpokenAnswers(answers, full_kl, full_value)


def _full(values: Sequence[float]) -> float:
    """Where a colour is full: nine tenths of the values are below it, so that one outlier does not pale the others."""
    return max(0.1, sorted(map(abs, values))[math.ceil(0.9 * len(values)) - 1])


def _share(value: float, full: float) -> float:
    return round(max(-1.0, min(1.0, value / full)), 3)


def _tokens(row: Row) -> list[tuple[str, float, float | None]]:
    """Text, KL and value (None without a critic) of each token; none if anything is not as it should be."""
    listed = row.get("tokens")
    tokens: list[tuple[str, float, float | None]] = []
    for token in listed if isinstance(listed, list) else []:
        if not isinstance(token, list) or len(token) != 3:
            return []
        text, kl, value = str(token[0]), number(token[1]), None if token[2] is None else number(token[2])
        if not math.isfinite(kl + (value or 0.0)):
            return []
        tokens.append((text, kl, value))
    return tokens


def _kl(tokens: Sequence[tuple[str, float, float | None]]) -> float:
    return sum(kl for _, kl, _ in tokens)


def visible(text: str, *, empty: str) -> list[tuple[str, str]]:
    """A token's text with its white space to be seen; `empty` is the mark of a token without text."""
    if not text:
        return [("mark", empty)]
    kinds = {" ": ("space", "·"), "\n": ("break", "↵"), "\t": ("space", "⇥")}
    pieces: list[tuple[str, str]] = []
    for is_space, group in groupby(text, key=lambda c: c in kinds):
        characters = list(group)
        pieces += [kinds[c] for c in characters] if is_space else [("text", "".join(characters))]
    return pieces


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
