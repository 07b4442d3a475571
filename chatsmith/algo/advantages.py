"""From rewards and values to advantages."""

import torch
from torch import Tensor

from chatsmith.algo.losses import Total, masked_sum


def gae(token_rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation over the sampled tokens of each sequence.

    Index t of every tensor speaks about token t: values[b, t] = V(tokens before t). The sampled tokens of a row are
    contiguous; after the last one the episode is over (value 0), also when the answer hit its length limit.
    Adding `values` gives the critic's returns.

    Args:
        token_rewards: [B, T] reward received when token t is emitted.
        values: [B, T] critic output, no gradient.
        mask: [B, T] bool, True where the policy sampled the token. Nothing outside it contributes.
        gamma, lam: discount and trace decay, both in [0, 1].
    Returns:
        advantages [B, T], 0 outside the mask.
    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])  # [B] advantage of the token after t
    next_value = torch.zeros_like(values[:, 0])  # [B]
    for t in reversed(range(values.shape[1])):
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, torch.zeros_like(running))
        next_value = torch.where(mask[:, t], values[:, t], torch.zeros_like(next_value))
        advantages[:, t] = running
    return advantages


def whiten(advantages: Tensor, mask: Tensor, *, total: Total) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the masked tokens of the global batch.

    Args:
        advantages: [B, T].
        mask: [B, T] bool.
        total: sums over processes.
    Returns:
        [B, T], 0 outside the mask.
    """
    count = total(mask.sum()).clamp(min=1)
    mean = total(masked_sum(advantages, mask)) / count
    variance = total(masked_sum((advantages - mean) ** 2, mask)) / count
    white = (advantages - mean) / (variance.sqrt() + 1e-8)
    return torch.where(mask, white, torch.zeros_like(white))
