"""Answers token by token: what a stage changed, and what a critic expected where there was one."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from chatsmith.report.answers import short
from chatsmith.report.reading import RecordedRun, Row, number

MOST_TOKENS = 400  # of one answer
Token = tuple[str, float, float]  # text, KL, and the critic's value: NaN without one


def token_by_token(run: RecordedRun) -> dict[str, Any]:
    """The answer that went furthest from the SFT model, a typical one, and the one with the lowest reward.

    With them the numbers at which and beyond which the colours are full: 0.0 where there are none.
    """
    spoken: list[dict[str, Any]] = [
        {"prompt": short(row.get("prompt", "")), "tokens": tokens, "kl": sum(kl for _, kl, _ in tokens)}
        | {"reward": number(row.get(f"{run.voice}_reward"))}
        for row in run.samples
        if (tokens := _tokens(row))
    ]
    if not spoken:
        return {}
    ranked = sorted(spoken, key=lambda answer: answer["kl"])
    chosen = {"The furthest from the SFT model": ranked[-1], "A typical one": ranked[len(ranked) // 2]}
    rewarded = [answer for answer in spoken if math.isfinite(answer["reward"])]
    if rewarded:
        chosen["The lowest reward"] = min(rewarded, key=lambda answer: answer["reward"])
    unlike = {id(answer): {"why": why} | answer for why, answer in reversed(chosen.items())}
    answers = list(reversed(unlike.values()))
    every = [token for answer in answers for token in answer["tokens"][:MOST_TOKENS]]
    full_kl, full_value = _full([kl for _, kl, _ in every]), _full([value for _, _, value in every])
    return {"answers": answers, "most": MOST_TOKENS, "full_kl": full_kl, "full_value": full_value}


def _full(values: Sequence[float]) -> float:
    """Where a colour is full: nine tenths of the values are below it, so that one outlier does not pale the others."""
    known = sorted(abs(value) for value in values if math.isfinite(value))
    return max(0.1, known[math.ceil(0.9 * len(known)) - 1]) if known else 0.0


def share(value: float, full: float) -> float:
    """A value in [-1, 1] of a colour's scale; NaN where there is none."""
    return round(max(-1.0, min(1.0, value / full)), 3) if math.isfinite(value) else math.nan


def _tokens(row: Row) -> list[Token]:
    """None if anything is not as it should be."""
    listed = row.get("tokens")
    tokens = []
    for token in listed if isinstance(listed, list) else []:
        if not isinstance(token, list) or len(token) != 3:
            return []
        text, kl, value = str(token[0]), number(token[1]), number(token[2])
        if not math.isfinite(kl) or not (math.isfinite(value) or token[2] is None):
            return []
        tokens.append((text, kl, value))
    return tokens


def visible(text: str, empty: str) -> list[tuple[str, str]]:
    """A token's text in pieces (kind: text, space, break, mark; and text), with its white space to be seen.

    Args:
        empty: the mark of a token without text.
    """
    if not text:
        return [("mark", empty)]
    kinds = {" ": ("space", "·"), "\n": ("break", "↵"), "\t": ("space", "⇥")}
    pieces: list[tuple[str, str]] = []
    for is_space, group in groupby(text, key=lambda c: c in kinds):
        characters = list(group)
        pieces += [kinds[c] for c in characters] if is_space else [("text", "".join(characters))]
    return pieces
