"""What a step looks like from outside: metrics, time, answers, and whether rollout and training agree."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from chatsmith.algo.losses import kl_estimate, masked_sum
from chatsmith.config import RlConfig
from chatsmith.errors import TrainingStopped
from chatsmith.stages.rollout import equal_groups
from chatsmith.types import Experience, Rollouts, Scores

LOGGED_ANSWERS = 8  # per table
MULTIPLE = 3  # of a model's rounding noise; another function costs about 1 nat
LEAST_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # nats


def describe(rollouts: Rollouts, scores: Scores, experience: Experience) -> dict[str, float]:
    """Metrics of rollouts and advantages, before any update."""
    mask = rollouts.mask & scores.valid[:, None]
    count = mask.sum().clamp(min=1)
    rewards = scores.rewards[scores.valid]
    finished = [sample.finish_reason == "stop" for sample in rollouts.samples]
    return {
        "rl/reward_mean": rewards.mean().item(),
        "rl/reward_std": rewards.std(correction=0).item() if len(rewards) else math.nan,
        "rl/kl": (masked_sum(kl_estimate(scores.logprobs, scores.reference_logprobs, "k3"), mask) / count).item(),
        "rl/kl_sequence": kl_per_answer(experience),
        "rl/answer_length": rollouts.mask.sum().item() / len(finished),
        "rl/eos_rate": sum(finished) / len(finished),
        "rl/truncation_rate": 1 - sum(finished) / len(finished),
        **_of_groups(rollouts, scores),
        **_of_advantages(experience),
    }


def _of_groups(rollouts: Rollouts, scores: Scores) -> dict[str, float]:
    """Where prompts have several answers: in how many of these groups there is nothing to compare."""
    equal = equal_groups(rollouts, scores.rewards, scores.valid)
    return {"rl/equal_groups": equal.float().mean().item()} if len(equal) < len(rollouts.prompts) else {}


def _of_advantages(experience: Experience) -> dict[str, float]:
    if experience.values is None or experience.returns is None:
        advantages = experience.advantages[experience.mask]
        return {"rl/advantage_std": advantages.std(correction=0).item() if len(advantages) else 0.0}
    returns, errors = (x[experience.mask] for x in (experience.returns, experience.returns - experience.values))
    return {
        "rl/explained_variance": (1 - errors.var() / returns.var()).item() if returns.var() > 0 else 0.0,
        "rl/advantage_std": errors.std(correction=0).item(),  # before whitening, with the critic's lambda
    }


def kl_per_answer(experience: Experience) -> float:
    """KL to the reference in nats, k1, summed over each answer, mean over the answers that count."""
    difference = experience.logprobs - experience.reference_logprobs
    answers = experience.mask.any(1).sum().clamp(min=1)
    return float(masked_sum(difference, experience.mask) / answers)


def check_logprob_gap(gap: float, noise: float, dtype: torch.dtype, settings: RlConfig) -> None:
    """Stop when rollout and training compute different functions: nothing learned from such data means anything.

    Args:
        gap: the mean difference of their log-probs, in nats.
        noise: by how much the model's own forward passes differ, see `rounding_noise`.
    """
    limit = settings.max_logprob_gap or max(MULTIPLE * noise, LEAST_LIMIT[dtype])
    if not gap <= limit:  # NaN is no agreement
        raise TrainingStopped(
            f"rl: the log-probs of the rollout differ from those of the training forward by {gap:.2e} nats per token "
            f"on average, while two forward passes of this model differ by {noise:.1e} (limit {limit:.1e}): generation "
            "and training do not compute the same function for this model. Please report the architecture. "
            "rl.max_logprob_gap moves the limit."
        )


class PhaseClock:
    """Seconds per phase of one step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started

    def metrics(
        self, rollouts: Rollouts, epochs: float, parameters: Mapping[str, int], peak_flops: float
    ) -> dict[str, float]:
        """`time/*`, tokens per second of useful tokens, model FLOP utilisation, peak memory."""
        total = time.perf_counter() - self._started
        sampled, tokens = rollouts.mask.sum().item(), sum(map(len, rollouts.sequences))
        # 2 FLOPs per parameter and token forward, 6 with backward: rollout and reference, critic, epochs of updates
        forward = 4 * parameters["actor"] + 2 * parameters.get("critic", 0)
        flops = tokens * (forward + 6 * epochs * sum(parameters.values()))
        on_gpu = torch.cuda.is_available()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peak = torch.cuda.max_memory_allocated() if on_gpu else resident
        return {
            **{f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()},
            "time/other_s": total - sum(self._seconds.values()),
            "rollout/tokens_per_s": sampled / self._seconds["rollout"],
            "update/tokens_per_s": epochs * tokens / self._seconds["update"],
            "step/tokens_per_s": tokens / total,
            "step/mfu": flops / total / peak_flops,
            "memory/peak_gib": peak / 2**30,
        }


def answer_table(rollouts: Rollouts, scores: Scores) -> list[dict[str, Any]]:
    """The first few prompts and answers of a step with their rewards."""
    return [
        {"prompt": sample.messages[-1].content, "answer": sample.answer, "end": sample.finish_reason, "reward": reward}
        for sample, reward in zip(rollouts.samples[:LOGGED_ANSWERS], scores.rewards.tolist(), strict=False)
    ]
