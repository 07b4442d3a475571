"""Losses that learn from comparisons or marks without a reward model. Each is a sum over what is given over `count`.

An answer enters by sums over its tokens: `logprobs` [A] under the policy, `reference` [A] under the frozen copy that it
began as, `tokens` [A] their number, the end of the answer included. `pairs` numbers these answers. A loss takes one
quantity per answer: `log_ratio` (DPO, KTO), the same `per_token` (length-normalised DPO, IPO), or the log-prob per
token (SimPO, ORPO). They differ by the answer's length, and so does the size of `beta` that suits them.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chatsmith.algo.losses import Pairs

LARGEST = -1e-6  # log-prob per token that ORPO's odds are taken of: at 0 they are infinite


def log_ratio(logprobs: Tensor, reference: Tensor) -> Tensor:
    """D [A] = log p(answer) - log p_reference(answer): the reward, over beta, that DPO's policy is the optimum of."""
    return logprobs - reference


def per_token(values: Tensor, tokens: Tensor) -> Tensor:
    """Sums [A] as means over the answers' tokens."""
    return values / tokens


def _lead(values: Tensor, pairs: Pairs) -> Tensor:
    """By how much the better answer of each pair leads: [M]."""
    return values[pairs.better] - values[pairs.worse]


def _mean(won: Tensor, lost: Tensor, pairs: Pairs, count: Tensor) -> Tensor:
    """`won` [M] where the better answer is preferred, `lost` where it is not: a tie is half of each."""
    return (pairs.weight * (pairs.target * won + (1 - pairs.target) * lost)).sum() / count


def dpo_loss(ratios: Tensor, pairs: Pairs, *, count: Tensor, beta: float, smoothing: float) -> Tensor:
    """-(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d), d = D_better - D_worse.

    Args:
        ratios: [A] `log_ratio` of each answer; `per_token` of it: the length-normalised loss.
        count: prompts of the global batch.
        smoothing: share of the preferences that are taken to be the wrong way round; they pull d back.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: the authors' note on conservative DPO.
    """
    x = beta * _lead(ratios, pairs)
    won = -(1 - smoothing) * logsigmoid(x) - smoothing * logsigmoid(-x)
    lost = -(1 - smoothing) * logsigmoid(-x) - smoothing * logsigmoid(x)
    return _mean(won, lost, pairs, count)


def robust_loss(ratios: Tensor, pairs: Pairs, *, count: Tensor, beta: float, smoothing: float) -> Tensor:
    """[-(1 - s) log sigmoid(beta d) + s log sigmoid(-beta d)] / (1 - 2s): DPO's loss where a share s is flipped.

    Over flips its expectation is the loss of the unflipped pairs; it may be below 0. `smoothing` is below 1/2.
    Source: Chowdhury et al. 2024, arXiv:2403.00409.
    """
    x = beta * _lead(ratios, pairs)
    won = (-(1 - smoothing) * logsigmoid(x) + smoothing * logsigmoid(-x)) / (1 - 2 * smoothing)
    lost = (-(1 - smoothing) * logsigmoid(-x) + smoothing * logsigmoid(x)) / (1 - 2 * smoothing)
    return _mean(won, lost, pairs, count)


def ipo_loss(ratios: Tensor, pairs: Pairs, *, count: Tensor, beta: float) -> Tensor:
    """(d - 1 / (2 beta))^2: the lead is to be so much and no more.

    Args:
        ratios: [A] `log_ratio` `per_token`. With sums the same beta asks for a lead that does not grow with length.
    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; means over tokens as in TRL.
    """
    lead = _lead(ratios, pairs)
    return _mean((lead - 1 / (2 * beta)) ** 2, (lead + 1 / (2 * beta)) ** 2, pairs, count)


def simpo_loss(logprobs_per_token: Tensor, pairs: Pairs, *, count: Tensor, beta: float, margin: float) -> Tensor:
    """-log sigmoid(beta x - margin), x the lead in log-prob per token, without a reference. A tie has no margin.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    x = beta * _lead(logprobs_per_token, pairs)
    margins = margin * (pairs.target == 1)
    return _mean(-logsigmoid(x - margins), -logsigmoid(-x - margins), pairs, count)


def orpo_loss(logprobs_per_token: Tensor, pairs: Pairs, *, count: Tensor, weight: float) -> Tensor:
    """-log p(better) - weight * log sigmoid(log odds_better - log odds_worse), odds = p / (1 - p), p per token.

    Without a reference: the first term keeps the better answer likely. Of a tie both answers are learned, half each.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 4 to 7.
    """
    lead = _lead(logprobs_per_token - log1mexp(logprobs_per_token), pairs)
    better, worse = logprobs_per_token[pairs.better], logprobs_per_token[pairs.worse]
    return _mean(-better - weight * logsigmoid(lead), -worse - weight * logsigmoid(-lead), pairs, count)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it, with finite gradients; x is at most `LARGEST`."""
    x = x.clamp(max=LARGEST)
    near = x > -0.6931472  # log 1/2
    # each branch sees only numbers that it can take: `where` hands a NaN gradient of the other one on
    close, far = torch.where(near, x, -0.1), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def kto_loss(
    ratios: Tensor, good: Tensor, *, zero: Tensor, count: Tensor, beta: float, weight_good: float, weight_bad: float
) -> Tensor:
    """Good answers: w (1 - sigmoid(beta (D - zero))); bad ones: w (1 - sigmoid(beta (zero - D))).

    Args:
        ratios: [A] `log_ratio` of answers that need not be paired.
        good: [A] bool.
        zero: [] what `kto_zero` gives, from which gain and loss are counted.
        count: answers of the global batch.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    """
    x = beta * (ratios - zero)
    signed = torch.where(good, x, -x)
    weights = torch.where(good, weight_good, weight_bad)
    return (weights * torch.sigmoid(-signed)).sum() / count


def kto_zero(mismatched: Tensor, *, count: Tensor) -> Tensor:
    """KL of policy and reference as KTO estimates it: the mean `log_ratio` of answers to other prompts, at least 0.

    Args:
        mismatched: [A] sums over *all* answers of the global batch, each after the prompt that `mismatch` gives it.
        count: of these answers.
    """
    return (mismatched.detach().sum() / count).clamp(min=0)


def mismatch(count: int) -> list[int]:
    """For each prompt of a batch, whose answer it gets: that of the next one, so that each answer is used once.

    (Turning the order round would leave the middle one of an odd batch its own answer.)

    Raises:
        ValueError: of a batch of one, whose answer belongs to its prompt.
    """
    if count < 2:
        raise ValueError(f"a batch of {count} has no answer to another prompt")
    return [(number + 1) % count for number in range(count)]
