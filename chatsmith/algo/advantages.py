"""From rewards, values and groups to advantages: pure functions, and none of them knows which loss will use them.

A *group* is the answers to one prompt. `prompts` [B] holds a number for each answer, in any order; `valid` [B] is False
for answers that are excluded: they count in no mean and no deviation, and their advantage is 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chatsmith.algo.losses import Total, masked_sum

Baseline = Literal["critic", "others", "group", "none"]
Scale = Literal["none", "group", "batch", "whiten"]

EQUAL = 1e-6  # values that differ by no more (of values above 1: times their size) differ by rounding alone
SMALL = 1e-4  # is added to the deviation of rewards that advantages are divided by, as TRL does


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
        [B, T], 0 outside the mask, and everywhere if they differ by rounding alone: that would only be enlarged.
    """
    count = total(mask.sum()).clamp(min=1)
    mean = total(masked_sum(advantages, mask)) / count
    variance = total(masked_sum((advantages - mean) ** 2, mask)) / count
    deviation = variance.sqrt()
    white = (advantages - mean) / (deviation + 1e-8)
    differs = deviation > EQUAL * mean.abs().clamp(min=1)
    return torch.where(mask & differs, white, torch.zeros_like(white))


@dataclass(frozen=True)
class Groups:
    """Which answers belong together."""

    number: Tensor  # [B] int64, of an answer's group, from 0
    valid: Tensor  # [B] bool
    count: Tensor  # [groups] valid answers

    @classmethod
    def of(cls, prompts: Tensor, valid: Tensor) -> "Groups":
        names, number = torch.unique(prompts, return_inverse=True)
        count = torch.zeros(len(names), device=prompts.device, dtype=torch.int64)
        return cls(number, valid, count.index_add(0, number, valid.long()))

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values [B] over the valid answers of each group: [groups]."""
        kept = torch.where(self.valid, values, torch.zeros_like(values))
        return torch.zeros(len(self.count), device=values.device, dtype=values.dtype).index_add(0, self.number, kept)

    def mean(self, values: Tensor) -> Tensor:
        """[groups], 0 of a group without valid answers."""
        return self.sum(values) / self.count.clamp(min=1)

    def deviation(self, values: Tensor) -> Tensor:
        """Standard deviation with G - 1: [groups], 0 of a group with fewer than two valid answers."""
        squares = self.sum((values - self.mean(values)[self.number]) ** 2)
        return (squares / (self.count - 1).clamp(min=1)).sqrt()

    def equal(self, values: Tensor) -> Tensor:
        """[groups] bool: whether its valid answers, of which there may be one or none, differ by rounding alone."""

        def extreme(sign: int) -> Tensor:
            lowest = torch.full_like(self.count, -torch.inf, dtype=values.dtype)
            kept = torch.where(self.valid, sign * values, torch.full_like(values, -torch.inf))
            return sign * lowest.scatter_reduce(0, self.number, kept, "amax")

        most, least = extreme(1), extreme(-1)
        return (self.count < 2) | (most - least <= EQUAL * torch.maximum(most.abs(), least.abs()).clamp(min=1))


def over_baseline(returns: Tensor, groups: Groups, baseline: Literal["others", "group"]) -> Tensor:
    """What an answer's return is above that of its group: [B], exactly 0 where the group tells nothing apart.

    Args:
        returns: [B] reward of a whole answer, with the price of KL where that is part of the reward.
        baseline: `others`: minus the mean of the other valid answers (RLOO); `group`: minus the mean of all (GRPO),
            which is (G - 1) / G of it.
    Source: RLOO: Ahmadian et al. 2024, arXiv:2402.14740, eq. 4; group: Shao et al. 2024, arXiv:2402.03300, section 4.1.
    """
    count, total = groups.count[groups.number], groups.sum(returns)[groups.number]
    if baseline == "others":
        advantages = returns - (total - returns) / (count - 1).clamp(min=1)
    else:
        advantages = returns - total / count.clamp(min=1)
    counts = groups.valid & ~groups.equal(returns)[groups.number]
    return torch.where(counts, advantages, torch.zeros_like(advantages))


def returns_to_go(token_rewards: Tensor, mask: Tensor) -> Tensor:
    """Sum of the rewards [B, T] from each sampled token to the answer's end, undiscounted; 0 outside the mask.

    As advantages they have no baseline, as in REINFORCE++ (Hu et al. 2025, arXiv:2501.03262), which whitens them.
    """
    kept = torch.where(mask, token_rewards, torch.zeros_like(token_rewards))
    return torch.where(mask, kept.flip(1).cumsum(1).flip(1), torch.zeros_like(kept))


def scaled(advantages: Tensor, returns: Tensor, mask: Tensor, prompts: Tensor, *, scale: Scale, total: Total) -> Tensor:
    """Advantages [B, T] on the scale that the loss sees.

    Args:
        returns: [B] reward of a whole answer. `group` and `batch` divide by its standard deviation (with n - 1), over
            the group or over all valid answers of the global batch; `whiten` looks at the advantages.
        mask: [B, T] bool; answers without any True are excluded.
    Returns:
        [B, T], 0 outside the mask, and where the deviation that would divide is rounding alone.
    Source: `group`: Shao et al. 2024, arXiv:2402.03300; `batch`: Liu et al. 2025, arXiv:2508.08221.
    """
    if scale == "whiten":
        return whiten(advantages, mask, total=total)
    valid = mask.any(1)
    differs = valid
    if scale == "group":
        groups = Groups.of(prompts, valid)
        differs = ~groups.equal(returns)[groups.number]
        advantages = advantages / (groups.deviation(returns)[groups.number] + SMALL)[:, None]
    elif scale == "batch":
        count = total(valid.sum())
        mean = total(torch.where(valid, returns, torch.zeros_like(returns)).sum()) / count.clamp(min=1)
        squares = total(torch.where(valid, (returns - mean) ** 2, torch.zeros_like(returns)).sum())
        deviation = (squares / (count - 1).clamp(min=1)).sqrt()
        differs = (deviation > EQUAL * mean.abs().clamp(min=1)).expand_as(valid)
        advantages = advantages / (deviation + SMALL)
    return torch.where(mask & differs[:, None], advantages, torch.zeros_like(advantages))
