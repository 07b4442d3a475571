"""Drawing the next token: vectorised over rows, one uniform number per row.

The uniform decides everything, so a sequence depends on its own seed and never on what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatsmith.engine.scheduler import Running

COLDEST = 1e-30  # a logit over less would overflow in fp32; far above it the most likely token has all probability


@dataclass(frozen=True)
class Draws:
    """How each of B rows is to be drawn; what no row asks for is None and costs nothing.

    It holds as long as the rows are the same: `note` what is drawn.
    """

    rows: list[Running]
    greedy: Tensor | None  # [B] bool; temperature 0, or as good as that
    temperature: Tensor | None  # [B, 1]; 1 where greedy
    top_k: Tensor | None  # [B, 1]; the whole vocabulary where it is off
    most: int  # the largest of them
    top_p: Tensor | None  # [B, 1] float64; 2 where it is off
    penalty: Tensor | None  # [B, 1]
    seen: Tensor | None  # [B, V] bool, the tokens of prompt and answer; where there is a penalty

    @classmethod
    def of(cls, rows: list[Running], vocabulary: int, device: torch.device) -> "Draws":
        def column(values: list[float], off: float, dtype: torch.dtype | None = None) -> Tensor | None:
            if all(value == off for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        samplings = [row.sampling for row in rows]
        greedy = [sampling.temperature < COLDEST for sampling in samplings]
        top_k = [min(sampling.top_k, vocabulary) or vocabulary for sampling in samplings]
        penalty = column([sampling.repetition_penalty for sampling in samplings], off=1.0)
        return cls(
            rows=rows,
            greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            temperature=column(
                [1.0 if cold else sampling.temperature for cold, sampling in zip(greedy, samplings, strict=True)],
                off=1.0,
            ),
            top_k=column([*top_k], off=vocabulary),
            most=max(top_k),
            # 1 would cut what has the probability 0 in fp32, where others in the batch are cut
            top_p=column(
                [sampling.top_p if sampling.top_p < 1 else 2.0 for sampling in samplings], off=2.0, dtype=torch.float64
            ),
            penalty=penalty,
            seen=None if penalty is None else _seen(rows, vocabulary, device),
        )

    def note(self, tokens: Tensor) -> None:
        """What has been drawn, [B], is seen at the next draw."""
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)


def sample(logits: Tensor, uniform: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution.

    Repetition penalty, temperature, top-k and top-p act in this order, as in transformers.

    Args:
        logits: [B, V].
        uniform: [B] in (0, 1).
    Returns:
        tokens [B]; logprobs [B] under softmax(logits / temperature) over the whole vocabulary (temperature 1 where it
        is 0); sampled_logprobs [B] under the distribution they were drawn from: after penalty, top-k and top-p.
    """
    policy = _tempered(logits.float(), draws)  # [B, V]
    drawn = policy if draws.penalty is None else _tempered(_penalised(logits.float(), draws), draws)
    if draws.top_k is not None or draws.top_p is not None:
        drawn = _restricted(drawn, draws)
    probs = torch.softmax(drawn, -1)
    # On a GPU neighbouring sums are grouped differently: in fp32 they may fall, and draw a token of probability 0.
    cdf = probs.cumsum(-1, dtype=torch.float64 if probs.is_cuda else None)
    # right=True finds the first entry *above* the target, so a token of probability 0 is never drawn; the clamp is for
    # logits that are not numbers
    tokens = torch.searchsorted(cdf, uniform[:, None].to(cdf.dtype) * cdf[:, -1:], right=True).clamp_(
        max=logits.shape[1] - 1
    )
    if draws.greedy is not None:
        tokens = torch.where(draws.greedy[:, None], drawn.argmax(-1, keepdim=True), tokens)
    sampled = probs.gather(1, tokens).log()[:, 0]
    logprobs = sampled if drawn is policy else policy.gather(1, tokens)[:, 0] - policy.logsumexp(-1)
    if draws.greedy is not None:
        sampled = torch.where(draws.greedy, 0.0, sampled)
    return tokens[:, 0], logprobs, sampled


def _tempered(logits: Tensor, draws: Draws) -> Tensor:
    return logits if draws.temperature is None else logits / draws.temperature


def _penalised(logits: Tensor, draws: Draws) -> Tensor:
    """Logits [B, V] in which seen tokens are less likely. Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1.

    As in transformers, negative logits are multiplied: the paper's division would make them more likely.
    """
    assert draws.penalty is not None
    assert draws.seen is not None
    less = torch.where(logits < 0, logits * draws.penalty, logits / draws.penalty)
    return torch.where(draws.seen, less, logits)


def _restricted(logits: Tensor, draws: Draws) -> Tensor:
    """Logits [B, V] of the top-k tokens and, among those, of the smallest set that holds mass top-p; others -inf.

    Tokens exactly as likely as the last one kept are kept, too: nothing then depends on how ties are ordered.
    """
    ordered = logits.topk(draws.most).values  # [B, K], the most likely first
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if draws.top_k is not None:
        keep = torch.arange(draws.most, device=logits.device)[None] < draws.top_k
    if draws.top_p is not None:
        probs = torch.softmax(ordered.masked_fill(~keep, float("-inf")), -1)
        # Summed from the least likely token on: from the other side a tail of small ones is lost in rounding.
        rest = probs.flip(-1).cumsum(-1, dtype=torch.float64).flip(-1)  # each token's mass and that of all after it
        keep = keep & (rest > (1 - draws.top_p) * rest[:, :1])
        keep[:, 0] = True
    least = ordered.masked_fill(~keep, float("inf")).amin(-1, keepdim=True)
    return logits.masked_fill(logits < least, float("-inf"))


def _seen(rows: Sequence[Running], vocabulary: int, device: torch.device) -> Tensor:
    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for row, sequence in enumerate(rows):
        if sequence.sampling.repetition_penalty != 1:
            seen[row, torch.tensor([*sequence.prompt, *sequence.answer])] = True
    return seen.to(device)
