"""An advantage estimator of one's own: leave-one-out, which needs several answers per prompt and no critic.

Used by own_loop.py. Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 4.
"""

from collections.abc import Callable

from torch import Tensor


def leave_one_out(samples: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The estimator for `samples` answers per prompt, two or more: an answer's return minus the others' mean."""

    def advantages(token_rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        returns = token_rewards.sum(1).view(-1, samples)  # [P, G]: the answers of one prompt stand in a row
        others = (returns.sum(1, keepdim=True) - returns) / (samples - 1)
        return (returns - others).view(-1, 1) * mask  # [B, T]: the same for every token of an answer

    return advantages
