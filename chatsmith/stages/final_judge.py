"""A second opinion on stage 3 where no gold judge exists: another reward head, from preferences that stage 2 never saw.

The head is a logistic regression on the frozen SFT model's last hidden state at the end of an answer. It shares neither
weights nor data with the reward model that stage 3 maximised, so it does not share its flaws by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chatsmith.algo.losses import pairs_of
from chatsmith.evaluate import Interval, share
from chatsmith.models.reward import encode_samples
from chatsmith.models.scoring import last_hidden_states, passes_of
from chatsmith.stages.reward import encode_ranked
from chatsmith.types import Record, Sample

RIDGE = 1e-2


@dataclass(frozen=True)
class Opinion:
    """What the second head says: its own held-out accuracy, and how often it prefers the trained answer to SFT's.

    Both are shares over prompts, each of which counts once.
    """

    accuracy: Interval
    win_rate: Interval

    def __str__(self) -> str:
        if self.accuracy.low <= 0.5:
            return f"not judged: the second reward head is no better than chance (accuracy {self.accuracy.value:.0%})"
        win = self.win_rate
        word = "better" if win.low > 0.5 else "worse" if win.high < 0.5 else "neither better nor worse"
        return (
            f"{word}: a second reward head (held-out accuracy {self.accuracy.value:.0%}) prefers the answer after "
            f"training in {win.value:.0%} [{win.low:.0%}, {win.high:.0%}] of held-out prompts"
        )


def second_opinion(
    sft_model: Any,
    tokenizer: Any,
    train: Sequence[Record],
    held_out: Sequence[Record],
    before: Sequence[Sample],
    after: Sequence[Sample],
    *,
    stops: Sequence[int],
    max_tokens: int,
    max_batch_tokens: int,
) -> Opinion:
    """Fit the head on `train`, measure it on `held_out`, and compare answers before and after, prompt by prompt.

    Args:
        sft_model: causal language model whose body gives the features.
        train, held_out: ranked records that the reward model was not trained on.
        before, after: answers of the SFT model and of the actor to the same prompts. Equal answers count as half.
    """

    def features(rows: Sequence[Sequence[int]]) -> Tensor:
        return _last_states(sft_model, tokenizer, rows, max_batch_tokens)

    ranked, _ = encode_ranked(tokenizer, train, stops=stops, max_tokens=max_tokens, on_error="skip")
    states = features(ranked.answers)
    mean, std = states.mean(0), states.std(0) + 1e-6
    pairs = pairs_of([record.scores for record in ranked])
    clear = pairs.target == 1
    head = _fit(((states - mean) / std)[pairs.better[clear]] - ((states - mean) / std)[pairs.worse[clear]])

    def score(rows: Sequence[Sequence[int]]) -> Tensor:
        return ((features(rows) - mean) / std) @ head

    asked, _ = encode_ranked(tokenizer, held_out, stops=stops, max_tokens=max_tokens, on_error="skip")
    pairs = pairs_of([record.scores for record in asked])
    scores = score(asked.answers)
    clear = pairs.target == 1
    right = (scores[pairs.better] > scores[pairs.worse])[clear].tolist()
    records = np.repeat(asked.kept, np.diff(asked.ends, prepend=0))[pairs.better[clear]]  # of each pair
    rows = zip(*(encode_samples(tokenizer, samples, stops=stops) for samples in (before, after)), strict=True)
    compared = [(sample, one, two) for sample, (one, two) in zip(before, rows, strict=True) if one and two]
    one, two = score([row for _, row, _ in compared]), score([row for _, _, row in compared])
    wins = (two > one).double() + 0.5 * (two == one).double()
    return Opinion(
        accuracy=share(right, [held_out[int(number)].prompt for number in records]),
        win_rate=share(wins.tolist(), [sample.messages for sample, _, _ in compared]),
    )


def _fit(differences: Tensor) -> Tensor:
    """Weights [d] of the ridge-penalised logistic regression that a better answer's features beat a worse one's."""
    weights = torch.zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = -logsigmoid(differences @ weights).mean() + RIDGE * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


@torch.no_grad()
def _last_states(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], max_batch_tokens: int) -> Tensor:
    """Last hidden state [A, d] at the last token of each row, fp32 on the CPU."""
    result: list[Tensor] = [torch.empty(0)] * len(rows)
    for part in passes_of(model.base_model, rows=rows, max_tokens=max_batch_tokens):
        for index, state in zip(part.index, last_hidden_states(model.base_model, part).float().cpu(), strict=True):
            result[index] = state
    return torch.stack(result)
