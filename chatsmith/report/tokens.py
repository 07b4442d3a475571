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
    spoken = [(row, tokens) for row in run.samples if (tokens := _tokens(row))]
    if not spoken:
        return {}
    ranked = sorted(spoken, key=lambda pair: _kl(pair[1]))
    chosen = {"The furthest from the SFT model": ranked[-1], "A typical one": ranked[len(ranked) // 2]}
    reward = f"{run.voice}_reward"
    rewarded = [pair for pair in spoken if math.isfinite(number(pair[0].get(reward)))]
    if rewarded:
        chosen["The lowest reward"] = min(rewarded, key=lambda pair: number(pair[0][reward]))
    unlike = {id(row): (why, row, tokens) for why, (row, tokens) in reversed(chosen.items())}
    shown = list(reversed(unlike.values()))
    every = [token for _, _, tokens in shown for token in tokens[:MOST_TOKENS]]
    answers = [
        {
            "why": why,
            "prompt": short(row.get("prompt", "")),
            "tokens": tokens[:MOST_TOKENS],
            "kl": _kl(tokens),
            "reward": number(row.get(reward)),
            "left_out": max(0, len(tokens) - MOST_TOKENS),
        }
        for why, row, tokens in shown
    ]
    return {"answers": answers, "full_kl": _full([t[1] for t in every]), "full_value": _full([t[2] for t in every])}


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


def _kl(tokens: Sequence[Token]) -> float:
    return sum(kl for _, kl, _ in tokens)


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
