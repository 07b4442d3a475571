"""Drawing the next token: vectorised over rows, one uniform number per row.

The uniform decides everything, so a sequence depends on its own seed and never on what else is in the batch.
"""

import torch
from torch import Tensor


def sample(
    logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1).
        temperature: [B]; 0 takes the most likely token.
        top_k: [B] int64; 0 keeps all tokens.
        top_p: [B]; 1 keeps all tokens.
    Returns:
        tokens [B]; logprobs [B] under softmax(logits / temperature) over the whole vocabulary (temperature 1 where it
        is 0); sampled_logprobs [B] under the distribution they were drawn from, after top-k and top-p.
    """
    greedy = temperature == 0
    logprobs = torch.log_softmax(logits.float() / torch.where(greedy, 1.0, temperature)[:, None], -1)  # [B, V]
    drawn_from = logprobs
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        drawn_from = _restrict(logprobs, top_k, top_p)
    cdf = drawn_from.exp().cumsum(-1)
    target = uniform[:, None] * cdf[:, -1:]
    # right=True finds the first entry *above* the target, so a token of probability 0 is never drawn.
    tokens = torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    tokens = torch.where(greedy, logprobs.argmax(-1), tokens)
    here = tokens[:, None]
    sampled = torch.where(greedy, 0.0, drawn_from.gather(1, here)[:, 0])
    return tokens, logprobs.gather(1, here)[:, 0], sampled


def _restrict(logprobs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Renormalised log-probs [B, V] of the top-k tokens and, among those, the smallest set that holds mass top-p."""
    ordered, index = logprobs.sort(-1, descending=True)
    rank = torch.arange(logprobs.shape[1], device=logprobs.device)[None]
    ordered = torch.where((top_k[:, None] > 0) & (rank >= top_k[:, None]), float("-inf"), ordered)
    probs = torch.softmax(ordered, -1)
    before = probs.cumsum(-1) - probs  # mass of the more likely tokens; the first token always stays
    ordered = torch.where((before >= top_p[:, None]) & (rank > 0), float("-inf"), ordered)
    ordered = torch.log_softmax(ordered, -1)
    return torch.empty_like(ordered).scatter_(1, index, ordered)
