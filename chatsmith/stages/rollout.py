"""Letting a policy answer prompts, and what rewards make of the answers."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from chatsmith.algo.advantages import Groups
from chatsmith.algo.losses import kl_estimate, masked_sum
from chatsmith.algo.rewards import overlong, standardise
from chatsmith.assistant import Assistant
from chatsmith.config import Config, RlConfig, StageName
from chatsmith.data.chat import try_encode_prompts
from chatsmith.data.records import choose
from chatsmith.data.spec import ASKING
from chatsmith.data.store import TokenRows
from chatsmith.data.tokens import Columns, OnError, as_bytes, place_errors, prepared
from chatsmith.engine.engine import Request, Sampling
from chatsmith.engine.text import decode_answers
from chatsmith.errors import DataError, RewardError
from chatsmith.evaluate import MIN_PROMPTS
from chatsmith.models.noise import rounding_noise
from chatsmith.models.passes import pad_mask
from chatsmith.models.reward import Reward, RewardModel, call
from chatsmith.models.scoring import passes_of, token_logprobs
from chatsmith.seeds import derive_seed
from chatsmith.types import Record, Rollouts, Sample

NOISE_TOKENS = 512  # enough to tell by how much forward passes differ


@dataclass(frozen=True)
class Prompts:
    """Records that are asked, with their tokens, and how many were left out, mostly for want of room for an answer."""

    records: Sequence[Record]
    tokens: Sequence[tuple[int, ...]]
    dropped_too_long: int

    def first(self, count: int) -> "Prompts":
        return Prompts(self.records[:count], self.tokens[:count], self.dropped_too_long)


def encode_questions(
    tokenizer: Any, records: Sequence[Record], *, stops: Sequence[int], max_tokens: int, on_error: OnError = "raise"
) -> Prompts:
    """Prompts of at most `max_tokens` tokens, in the records' order.

    Raises:
        DataError: at the first that the chat template cannot carry, unless `on_error` is "skip".
    """

    def encode_chunk(chunk: list[Record]) -> tuple[Columns, Columns]:
        tried = try_encode_prompts(tokenizer, [record.prompt for record in chunk], stops=stops)
        rows = place_errors(chunk, tried, on_error)
        short = [row for row in rows if row is not None and len(row) <= max_tokens]
        return {"tokens": as_bytes(short)}, {"kept": [row is not None and len(row) <= max_tokens for row in rows]}

    entry = prepared(
        *(ASKING, tokenizer, records, encode_chunk),
        settings=[list(stops), max_tokens, on_error],
        ragged={"tokens": "i4"},
        numbers={"kept": "?"},
    )
    kept = choose(records, np.flatnonzero(entry.numbers("kept")))
    return Prompts(kept, TokenRows(entry.rows("tokens")), len(records) - len(kept))


def roll_out(
    policy: Assistant,
    prompts: Prompts,
    index: Sequence[int],
    sampling: Sampling,
    *,
    limit: int,
    samples: int,
    seed: tuple[int | str, ...],
) -> Rollouts:
    """Answer the prompts at `index`, `samples` times each; row p * samples + g is sample g of the p-th of them.

    A sequence's seed is a hash of (`seed`, prompt number, sample): independent of order and batch. A prompt that
    stands in `index` again gets further samples, not the same ones.
    """
    requests = []
    asked: dict[int, int] = defaultdict(int)
    for i in index:
        seeds = tuple(derive_seed(*seed, i, asked[i] + g) for g in range(samples))
        requests.append(Request(prompts.tokens[i], limit, policy.stops, sampling, seeds))
        asked[i] += samples
    answers = [(i, a) for i, group in zip(index, policy.engine.generate(requests), strict=True) for a in group]
    mask = pad_mask([[False] * len(prompts.tokens[i]) + [True] * len(a.tokens) for i, a in answers])
    logprobs = torch.zeros(mask.shape)
    logprobs[mask] = torch.tensor([value for _, a in answers for value in a.logprobs])
    device = policy.model.device
    texts = decode_answers(policy.tokenizer, [a.tokens for _, a in answers], stops=policy.stops)
    return Rollouts(
        sequences=tuple([*prompts.tokens[i], *a.tokens] for i, a in answers),
        mask=mask.to(device),
        logprobs=logprobs.to(device),
        prompts=tuple(number for number in range(len(index)) for _ in range(samples)),
        samples=tuple(
            Sample(prompts.records[i].prompt, text, a.finish_reason, prompts.records[i], len(a.tokens))
            for (i, a), text in zip(answers, texts, strict=True)
        ),
    )


def check_held_out(prompts: Prompts, *, stage: StageName) -> None:
    """
    Raises:
        DataError: if the gate of the stage could not judge on so few.
    """
    different = len({record.prompt for record in prompts.records})
    if different >= MIN_PROMPTS:
        return
    copies = f" (different ones among {len(prompts.records)})" if different < len(prompts.records) else ""
    dropped = f"; {prompts.dropped_too_long} more leave no room for an answer" if prompts.dropped_too_long else ""
    raise DataError(
        f"{stage}: {different} held-out prompts{copies}{dropped}, and its gate judges from {MIN_PROMPTS} on. Raise "
        f"--data.held_out, or give more prompts (--data {stage}:FILE)."
    )


def unit_of(rewards: Sequence[Reward]) -> str:
    """What a reward of 1 is, in words; empty where all rewards are taken as they are."""
    standardised = [reward.name for reward in rewards if reward.std is not None]
    if not standardised:
        return ""
    whose = "the reward" if len(rewards) == 1 else "each reward" if len(standardised) == len(rewards) else ""
    weighted = ", weighted" if any(reward.weight != 1 for reward in rewards) else ""
    return f"in standard deviations of {whose or ' and '.join(standardised)} over the SFT model's answers{weighted}" + (
        "" if whose else ", other rewards as they are"
    )


@torch.no_grad()
def rollout_logprobs(model: Any, rollouts: Rollouts, *, temperature: float, config: Config) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [B, T] of the sampled tokens under `model`, without gradient."""
    logprobs, entropies = torch.zeros_like(rollouts.logprobs), torch.zeros_like(rollouts.logprobs)
    budget = config.engine.max_logits_mib << 20
    for part in passes_of(
        model,
        rows=rollouts.sequences,
        max_tokens=config.engine.max_batch_tokens,
        together=rollouts.prompts,
    ):
        rows, width = list(part.index), part.width
        found = token_logprobs(
            model, part, rollouts.mask[rows, :width], temperature=temperature, max_logits_bytes=budget
        )
        logprobs[rows, :width], entropies[rows, :width] = found
    return logprobs, entropies


def rollout_noise(model: Any, rollouts: Rollouts, temperature: float) -> float:
    """The model's `rounding_noise` on the sampled tokens of some rows: short ones, for logits are large."""
    rows: list[int] = []
    total = 0
    for row in sorted(range(len(rollouts.sequences)), key=lambda row: len(rollouts.sequences[row])):
        total += len(rollouts.sequences[row])
        if rows and total > NOISE_TOKENS:
            break
        rows.append(row)
    tokens = [torch.tensor(rollouts.sequences[row], device=model.device) for row in rows]
    places = [rollouts.mask[row, : len(rollouts.sequences[row])] for row in rows]
    return rounding_noise(model, tokens, places, temperature=temperature)


def together(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts of one policy as one; each part's prompts are other ones, also where they ask the same."""
    width = max(part.mask.shape[1] for part in parts)
    first, numbers = 0, []
    for part in parts:
        numbers += [first + number for number in part.prompts]
        first += max(part.prompts) + 1
    masks, logprobs = (
        torch.cat([pad(values, (0, width - values.shape[1])) for values in each])
        for each in ([part.mask for part in parts], [part.logprobs for part in parts])
    )
    return Rollouts(
        sequences=tuple(chain.from_iterable(part.sequences for part in parts)),
        mask=masks,
        logprobs=logprobs,
        prompts=tuple(numbers),
        samples=tuple(chain.from_iterable(part.samples for part in parts)),
    )


def ask_rewards(samples: Sequence[Sample], rewards: Sequence[Reward]) -> list[Tensor]:
    """The raw values [B] of each reward, not finite where it gave none."""
    return [torch.tensor(call(reward, list(samples))) for reward in rewards]


def equal_groups(rollouts: Rollouts, rewards: Tensor, valid: Tensor) -> Tensor:
    """For each prompt [P] whether its valid answers have equal rewards, so that there is nothing to compare."""
    return Groups.of(torch.tensor(rollouts.prompts, device=valid.device), valid).equal(rewards)


def judge_rollouts(
    rollouts: Rollouts, rewards: Sequence[Reward], config: RlConfig, raw: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """What `judge` says of rollouts, less what answers lose that come near the limit (`rl.overlong`)."""
    total, valid, metrics = judge(rollouts.samples, rewards, config, raw)
    if config.overlong > 0:
        lengths = rollouts.mask.sum(1).to(total.device)
        total = total + overlong(lengths, limit=config.max_new_tokens, share=config.overlong)
    return total, valid, metrics


def judge(
    samples: Sequence[Sample], rewards: Sequence[Reward], config: RlConfig, raw: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Every reward's values, standardised, clipped and weighted into one number per sample.

    Args:
        raw: what `ask_rewards` gave; None: it is asked.
    Returns:
        rewards [B]; valid [B] bool, False where a reward was None or not finite, or where `truncated_score` masks the
        sample; metrics: `rl/score_raw_mean` and `reward/<name>` (raw means), `rl/excluded` and
        `reward/<name>_excluded` (shares without a value).
    Raises:
        RewardError: if a function failed, or gave no value to more than `max_excluded` of the samples, or
            if none has one.
    """
    truncated = torch.tensor([sample.finish_reason == "length" for sample in samples])
    total, valid = torch.zeros(len(samples)), torch.ones(len(samples), dtype=torch.bool)
    raw_mean, metrics = 0.0, {}
    for reward, given in zip(rewards, ask_rewards(samples, rewards) if raw is None else raw, strict=True):
        has_value = given.isfinite()
        excluded = 1 - has_value.float().mean().item()
        if excluded > config.max_excluded or not has_value.any():
            why = "".join(f"; {count} times: {reason}" for reason, count in reward.reasons().most_common(3))
            raise RewardError(
                f"reward {reward.name!r} gave no finite number to {excluded:.0%} of {len(samples)} answers "
                f"(rl.max_excluded = {config.max_excluded:.0%}){why}. Mend the function, or let it return a number "
                f"for: {samples[int((~has_value).nonzero()[0])].answer[:80]!r}"
            )
        raw_mean += reward.weight * given[has_value].mean().item()
        metrics[f"reward/{reward.name}"] = given[has_value].mean().item()
        metrics[f"reward/{reward.name}_excluded"] = excluded
        values = given
        if reward.mean is not None and reward.std is not None:
            values = standardise(given, mean=reward.mean, std=reward.std, clip=config.score_clip)
        score = None if config.overlong else config.truncated_score
        if isinstance(reward.function, RewardModel) and isinstance(score, float | int):
            values = torch.where(truncated, float(score), values)
        total = total + reward.weight * torch.where(has_value, values, torch.zeros(()))
        valid &= has_value
    if not valid.any():
        raise RewardError(
            f"each of {len(samples)} answers lacks a finite number from one of the rewards. Give them data and "
            "functions that judge the same answers."
        )
    metrics |= {"rl/score_raw_mean": raw_mean, "rl/excluded": 1 - valid.float().mean().item()}
    if config.truncated_score == "mask":
        valid &= ~truncated
    return total, valid, metrics


@dataclass(frozen=True)
class PolicyScores:
    """One policy on a fixed set of prompts, sampled with fixed seeds."""

    rewards: list[float]  # per answer; NaN where the sample was excluded
    kl: float  # k3 to the reference, nats per sampled token
    entropy: float  # nats per sampled token
    length: float  # tokens per answer
    eos_rate: float
    rollouts: Rollouts
    kl_tokens: Tensor  # [B, T] log-prob minus the reference's, 0 outside the mask
    prompts: Sequence[Hashable] = ()  # which one each answer is to, where some are asked more than once

    @property
    def samples(self) -> tuple[Sample, ...]:
        return self.rollouts.samples

    def figures(self) -> dict[str, float]:
        """Means over the answers, all but that of the reward."""
        return {name: getattr(self, name) for name in ("kl", "entropy", "length", "eos_rate")}


def evaluate_policy(
    policy: Assistant, reference: Any, prompts: Prompts, rewards: Sequence[Reward], config: Config
) -> PolicyScores:
    """Answer every prompt once at the training temperature and score the answers."""
    rollouts = roll_out(
        policy,
        prompts,
        range(len(prompts.tokens)),
        Sampling(config.rl.temperature, config.rl.top_k, config.rl.top_p),
        limit=config.rl.max_new_tokens,
        samples=1,
        seed=(config.seed, "held out"),
    )
    values, valid, _ = judge_rollouts(rollouts, rewards, config.rl)
    logprobs, entropies = rollout_logprobs(policy.model, rollouts, temperature=config.rl.temperature, config=config)
    reference_logprobs, _ = rollout_logprobs(reference, rollouts, temperature=config.rl.temperature, config=config)
    count = rollouts.mask.sum()
    kl = masked_sum(kl_estimate(logprobs, reference_logprobs, "k3"), rollouts.mask) / count
    return PolicyScores(
        rewards=torch.where(valid, values, torch.tensor(math.nan)).tolist(),
        kl=kl.item(),
        entropy=(masked_sum(entropies, rollouts.mask) / count).item(),
        length=count.item() / len(rollouts.samples),
        eos_rate=sum(sample.finish_reason == "stop" for sample in rollouts.samples) / len(rollouts.samples),
        rollouts=rollouts,
        kl_tokens=logprobs - reference_logprobs,
        prompts=[sample.messages for sample in rollouts.samples],
    )


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a population."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
