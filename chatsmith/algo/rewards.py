"""From scores of whole answers to rewards of single tokens."""

import torch
from torch import Tensor

from chatsmith.algo.losses import kl_estimate


def standardise(scores: Tensor, *, mean: float, std: float, clip: float = 5.0) -> Tensor:
    """(score - mean) / std, clipped to +-clip: one unit is one standard deviation over the SFT model's answers."""
    return ((scores - mean) / std).clamp(-clip, clip)


def token_rewards(
    rewards: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """-kl_coef * (logprob - reference) at every sampled token, plus the answer's reward at its last sampled token.

    Args:
        rewards: [B], one per answer.
        logprobs, reference_logprobs: [B, T].
        mask: [B, T] bool, sampled tokens. A row without any gets nothing.
    Returns:
        [B, T], 0 outside the mask.
    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
    """
    penalty = -kl_coef * kl_estimate(logprobs, reference_logprobs, "k1")
    per_token = torch.where(mask, penalty, torch.zeros_like(penalty))
    is_last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # True at the last True of each row
    return per_token + torch.where(is_last, rewards[:, None], torch.zeros_like(per_token))


def overlong(lengths: Tensor, *, limit: int, share: float) -> Tensor:
    """A reward between 0 and -1 for answers [B] that come near the limit of their length.

    0 up to limit - c, then falling in a straight line to -1 at the limit, where answers are cut off, with
    c = share * limit.
    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13.
    """
    buffer = share * limit
    return ((limit - buffer - lengths) / buffer).clamp(-1, 0)


def adapt_kl_coef(kl_coef: float, kl_sequence: float, *, target: float, horizon: int, answers: int) -> float:
    """One step of the proportional controller that holds the KL per answer near `target` nats.

    Args:
        kl_sequence: measured KL, summed over an answer (k1), mean over answers.
        horizon: answers over which the correction takes full effect; `answers` of them were just seen. One step never
            corrects by more than that, which also keeps the coefficient positive.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    error = min(max(kl_sequence / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * min(1.0, answers / horizon))
