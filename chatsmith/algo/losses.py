"""Loss functions. Each returns a scalar to minimise and, where there is something to watch, its metrics.

A loss is a *sum over the tokens given, divided by `count`*, the number of tokens (or prompts) of the whole global
batch. Micro-batches and ranks therefore add up to exactly the loss of one big batch, however they are cut. Metrics
follow the same rule, except `ratio_max`, which is a maximum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

KlEstimator = Literal["k1", "k2", "k3"]
Ratio = Literal["token", "answer"]
Surrogate = Literal["clip", "cispo"]
Aggregate = Literal["token", "answer", "constant"]

# An answer's ratio is a mean over its n tokens, which moves by 1/sqrt(n) of what one token's does.
ANSWER_CLIP_LOW, ANSWER_CLIP_HIGH = 0.12, 0.16  # over sqrt(n): 0.03 and 0.04 for 16 tokens, 0.0038 and 0.005 for 1,000


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of values [B, T] where mask [B, T] is True. NaN or inf outside the mask does not leak in."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def language_model_loss(logprobs: Tensor, mask: Tensor, *, count: Tensor) -> Tensor:
    """Cross entropy: minus the mean log-prob of the target tokens.

    Args:
        logprobs: [B, T] log p(token t | tokens before t).
        mask: [B, T] bool, True on target tokens.
        count: target tokens of the global batch.
    """
    return -masked_sum(logprobs, mask) / count


@dataclass(frozen=True)
class Pairs:
    """Comparisons between answers of a flat batch: answer `better[m]` beats answer `worse[m]`.

    `target` is 1 for a clear preference and 1/2 for a tie. `weight` is 1 / (number of pairs of that prompt), so that
    a prompt counts once however many answers it has.
    """

    better: Tensor  # [M] int64 index into the answers
    worse: Tensor  # [M]
    target: Tensor  # [M] float
    weight: Tensor  # [M] float

    def to(self, device: torch.device) -> "Pairs":
        return Pairs(*(tensor.to(device) for tensor in vars(self).values()))


def pairs_of(scores: Sequence[Sequence[float]]) -> Pairs:
    """Every pair of unequal score within each prompt; a prompt whose answers all tie gives its tied pairs.

    Args:
        scores: per prompt, the given scores of its answers; answers are numbered through the whole batch in order.
    Source: all pairs of one prompt in one batch, Ouyang et al. 2022, arXiv:2203.02155, section 3.5.
    """
    better, worse, target, weight = [], [], [], []
    first = 0
    for prompt in scores:
        every = list(combinations(range(len(prompt)), 2))
        clear = [(a, b) if prompt[a] > prompt[b] else (b, a) for a, b in every if prompt[a] != prompt[b]]
        chosen = clear or every
        for a, b in chosen:
            better.append(first + a)
            worse.append(first + b)
            target.append(1.0 if clear else 0.5)
            weight.append(1.0 / len(chosen))
        first += len(prompt)
    return Pairs(torch.tensor(better), torch.tensor(worse), torch.tensor(target), torch.tensor(weight))


def preference_loss(scores: Tensor, pairs: Pairs, *, count: Tensor, margin: float, center: float) -> Tensor:
    """Bradley-Terry loss over pairs: -p log s(d) - (1-p) log s(-d) + center * (r_a + r_b)^2, d = r_a - r_b - margin.

    The margin applies to clear preferences only. The centring term keeps scores around zero: the pair loss alone
    does not care about a constant.

    Args:
        scores: [A] score of each answer of the batch.
        pairs: comparisons between them.
        count: prompts of the global batch.
    Source: Ouyang et al. 2022, eq. 1; centring: Eisenstein et al. 2023, arXiv:2312.09244.
    """
    better, worse = scores[pairs.better], scores[pairs.worse]  # [M]
    difference = better - worse - margin * (pairs.target == 1)
    loss = -pairs.target * logsigmoid(difference) - (1 - pairs.target) * logsigmoid(-difference)
    return (pairs.weight * (loss + center * (better + worse) ** 2)).sum() / count


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimate [B, T] of KL(policy || reference) from tokens that the policy sampled.

    With x = logprob - reference: k1 = x (unbiased, any sign), k2 = x^2 / 2, k3 = exp(-x) - 1 + x (unbiased, >= 0).
    As a *loss*, k2 has the gradient of the true KL, k3 that of the reverse KL, and k1 an expectation of zero.
    Source: Schulman 2020, "Approximating KL divergence".
    """
    x = logprobs - reference_logprobs
    if estimator == "k1":
        return x
    if estimator == "k2":
        return 0.5 * x**2
    return torch.expm1(-x) + x


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    count: Tensor,
    answers: Tensor,
    ratio: Ratio,
    surrogate: Surrogate,
    aggregate: Aggregate,
    limit: int,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    cap: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the mean of a surrogate of A * ratio that holds the policy near the old one.

    `clip`: min(A * ratio, A * clip(ratio, 1 - clip_low, 1 + clip_high)); with `dual_clip` c > 1 that of negative
    advantages is bounded below by c * A. `cispo`: min(ratio, cap) * A * logprob, where the ratio has no gradient: a
    token above the cap still has one.

    Args:
        logprobs: [B, T] of the policy being trained. Rows are whole answers.
        old_logprobs, advantages: [B, T], constants.
        mask: [B, T] bool, tokens that count.
        count, answers: such tokens, and answers with any, in the global mini-batch.
        ratio: `token`: of each token; `answer`: the geometric mean over the answer, whose gradient reaches each token.
        aggregate: what the loss is a mean of. `token`: all tokens alike; `answer`: all answers alike, each the mean of
            its tokens; `constant`: tokens alike, over `limit` for each answer, so that no length enters.
        limit: tokens of the longest answer that the run allows; the width of a batch changes from one to the next.
        clip_low, clip_high: None: `ANSWER_CLIP_LOW` and `ANSWER_CLIP_HIGH` over the root of the answer's length.
        cap: of `cispo`, the ratio itself.
    Returns:
        the loss, and per token whatever the aggregate: `clip_fraction` (cispo: tokens above the cap), `kl_old` (k3,
        nats), and `ratio_max`.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; dual clip: Ye et al. 2020, arXiv:1912.09729, eq. 5; answer
        ratio: Zheng et al. 2025 (GSPO), arXiv:2507.18071; cispo: MiniMax 2025, arXiv:2506.13585. Aggregates: `token`:
        Yu et al. 2025 (DAPO), arXiv:2503.14476; `answer`: Shao et al. 2024 (GRPO), arXiv:2402.03300; `constant`: Liu et
        al. 2025 (Dr. GRPO), arXiv:2503.20783.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    length = mask.sum(1, keepdim=True).clamp(min=1).to(log_ratio.dtype)  # [B, 1]
    if ratio == "answer":
        kept = torch.where(mask, logprobs, torch.zeros_like(logprobs))
        mean = log_ratio.sum(1, keepdim=True) / length
        log_ratio = mean.detach() + (kept - kept.detach())  # the value of the mean, the gradient of the token
    ratios = log_ratio.exp()
    if surrogate == "clip":
        low = ANSWER_CLIP_LOW / length.sqrt() if clip_low is None else clip_low
        high = ANSWER_CLIP_HIGH / length.sqrt() if clip_high is None else clip_high
        value = torch.minimum(advantages * ratios, advantages * ratios.clamp(min=1 - low).clamp(max=1 + high))
        if dual_clip is not None:
            value = torch.where(advantages < 0, torch.maximum(value, dual_clip * advantages), value)
        clipped = (ratios < 1 - low) | (ratios > 1 + high)
    else:
        assert cap is not None, "the configuration gives cispo a cap"
        value = ratios.detach().clamp(max=cap) * advantages * logprobs
        clipped = ratios > cap
    whole = {"token": count, "answer": answers, "constant": answers * limit}[aggregate]
    loss = -masked_sum(value / length if aggregate == "answer" else value, mask) / whole
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_sum(clipped.float(), mask) / count,
            # KL(old || new): tokens came from the old policy, so it takes the sampling policy's place
            "kl_old": masked_sum(kl_estimate(old_logprobs, logprobs, "k3"), mask) / count,
            "ratio_max": torch.where(mask, ratios, torch.zeros_like(ratios)).max(),
        }
    return loss, metrics


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, count: Tensor, clip: float | None
) -> Tensor:
    """0.5 * mean max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2); without `clip`, plain squared error.

    Args:
        values: [B, T] of the critic being trained.
        old_values, returns: [B, T], constants.
    Source: the clipped value loss of openai/baselines' ppo2.
    """
    loss = (values - returns) ** 2
    if clip is not None:
        clipped = torch.clamp(values, old_values - clip, old_values + clip)
        loss = torch.maximum(loss, (clipped - returns) ** 2)
    return 0.5 * masked_sum(loss, mask) / count


Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity on one."""
