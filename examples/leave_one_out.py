"""An advantage estimator of one's own: leave-one-out, which needs several answers per prompt and no critic.

Used by own_loop.py. Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 4.
"""

from torch import Tensor


def leave_one_out(token_rewards: Tensor, mask: Tensor, prompts: Tensor, _: Tensor | None) -> Tensor:
    """An answer's return minus the mean of the other answers to its prompt, of which there are one or more."""
    returns = token_rewards.sum(1)  # [B]
    same = (prompts[:, None] == prompts[None]).float()  # [B, B]: who answers the same prompt
    others = (same @ returns - returns) / (same.sum(1) - 1)
    return (returns - others)[:, None] * mask  # [B, T]: the same for every token of an answer
