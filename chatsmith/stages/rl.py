"""Stage 3: PPO with a critic.

One step: rollouts with the policy's own weights, scores by reference, critic and rewards, advantages, updates.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatsmith.algo.advantages import gae, whiten
from chatsmith.algo.losses import Total, kl_estimate, masked_sum, policy_loss, value_loss
from chatsmith.algo.rewards import adapt_kl_coef, token_rewards
from chatsmith.config import Config, RlConfig
from chatsmith.data.batch import batches, micro_batches
from chatsmith.data.chat import Encoded
from chatsmith.engine.engine import Engine, Sampling
from chatsmith.errors import DataError
from chatsmith.models.critic import Critic
from chatsmith.models.ema import Ema, default_decay
from chatsmith.models.reward import Reward
from chatsmith.models.scoring import token_logprobs, token_values
from chatsmith.runtime import StageRun, measure_peak_flops
from chatsmith.seeds import derive_seed, permutation
from chatsmith.stages.loop import Guard, Trainable, learning_rate_factor
from chatsmith.stages.rollout import PolicyScores, Prompts, evaluate_policy, judge, roll_out, rollout_logprobs
from chatsmith.stages.sft import language_model_backward
from chatsmith.stages.watch import PhaseClock, answer_table, check_logprob_gap, describe
from chatsmith.types import Experience, Rollouts, Scores

LOGGED_TABLES = 10  # of answers, per run


@dataclass(frozen=True)
class RlReport:
    """What stage 3 did, on the fixed held-out prompts."""

    before: PolicyScores  # the SFT model
    after: PolicyScores  # the actor
    ema: PolicyScores  # the actor's average
    steps: int
    skipped_steps: int
    explained_variance: float  # of the critic, mean over the last quarter of the steps

    def figures(self) -> dict[str, Any]:
        """The report without samples, for the manifest."""
        policies = {name: getattr(self, name) for name in ("before", "after", "ema")}
        return {
            **{name: policy.figures() for name, policy in policies.items()},
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "explained_variance": self.explained_variance,
        }


@dataclass(frozen=True)
class Learners:
    """Everything that moves in stage 3."""

    actor: Trainable
    critic: Trainable
    ema: Ema
    guard: Guard

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in vars(self).items():
            part.load_state_dict(state[name])


def train_rl(
    actor: Any,
    critic: Critic,
    tokenizer: Any,
    prompts: Prompts,
    held_out: Prompts,
    rewards: Sequence[Reward],
    config: Config,
    run: StageRun,
    *,
    stops: Sequence[int],
    ptx: Sequence[Encoded] = (),
) -> tuple[RlReport, Any]:
    """Train `actor` and `critic` in place. The reference is a copy of the actor as it comes in: the SFT model.

    Args:
        prompts, held_out: tokenised prompts; the fixed held-out ones are scored before and after.
        rewards: what is maximised, summed with their weights.
        stops: ids that end an answer.
        ptx: rows for mixed training; used when `ptx_coef` > 0.
    Returns:
        the report, and the averaged actor.
    Raises:
        DataError: if there are too few prompts.
        TrainingStopped: on non-finite steps in a row, or if rollout and training log-probs disagree.
        Interrupted: after saving a checkpoint.
    """
    settings = config.rl
    per_step = settings.rollouts // settings.samples_per_prompt
    if not prompts.tokens or len(held_out.tokens) < 2:
        raise DataError(
            f"rl: {len(prompts.tokens)} prompts to train on and {len(held_out.tokens)} held out leave room for an "
            f"answer of {settings.max_new_tokens} tokens ({prompts.dropped_too_long} were too long). Give more "
            "prompts, or a smaller --rl.max_new_tokens."
        )
    mixes = settings.ptx_coef > 0
    if mixes and not ptx:
        raise DataError(
            f"rl.ptx_coef = {settings.ptx_coef}, but there is no text for mixed training. Add a ptx: source, such as "
            "--data ptx:FILE.txt, or sft data."
        )
    total = settings.steps or math.ceil(len(prompts.tokens) / per_step)
    reference = copy.deepcopy(actor).requires_grad_(False)
    decay = settings.ema_decay or default_decay(total * settings.epochs * settings.minibatches)
    learners = Learners(
        Trainable(actor, settings, lr=settings.lr),
        Trainable(critic, settings, lr=settings.critic_lr),
        Ema(actor, decay),
        Guard("rl"),
    )
    engine = Engine(actor, pad_id=tokenizer.pad_token_id, max_batch=config.engine.max_batch)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    before = evaluate_policy(reference, reference, tokenizer, held_out, rewards, config, stops=stops)
    peak_flops = measure_peak_flops(actor.device, actor.dtype)
    parameters = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("actor", actor), ("critic", critic))
    }

    start, kl_coef, variances = 0, settings.kl_coef, []
    state = run.resume()
    if state is not None:
        start, kl_coef, variances = state["step"] + 1, state["kl_coef"], state["variances"]
        learners.load_state_dict(state["learners"])
    order = batches(len(prompts.tokens), size=per_step, seed=config.seed, start=start)

    for step in run.steps(start, total):
        clock = PhaseClock()
        with clock("rollout"):
            rollouts = roll_out(
                engine,
                tokenizer,
                prompts,
                next(order),
                sampling,
                limit=settings.max_new_tokens,
                stops=stops,
                samples=settings.samples_per_prompt,
                seed=(config.seed, step),
            )
        with clock("score"):
            policy_frozen = step < settings.critic_warmup
            scores, metrics = score(rollouts, actor, reference, critic, rewards, config, policy_frozen=policy_frozen)
        with clock("estimate"):
            experience = estimate(rollouts, scores, settings, kl_coef=kl_coef, total=lambda x: x)
            metrics |= describe(rollouts, scores, experience)
        with clock("update"):
            factor = learning_rate_factor(settings, step, total)
            updated = update(
                actor,
                critic,
                tokenizer,
                learners,
                experience,
                config,
                factor=factor,
                kl_coef=kl_coef,
                order_seed=derive_seed(config.seed, step),
                policy_frozen=policy_frozen,
                texts=_texts(ptx, settings.ptx_batch, derive_seed(config.seed, "ptx", step)) if mixes else None,
            )
            metrics = updated | metrics
        check_logprob_gap(metrics.get("rollout/logprob_gap_mean", 0.0), actor.dtype, settings)
        variances.append(metrics["rl/explained_variance"])
        metrics |= {"rl/lr": settings.lr * factor, "rl/kl_coef": kl_coef, "rl/skipped": float(learners.guard.skipped)}
        metrics |= clock.metrics(rollouts, metrics["rl/epochs"], parameters, peak_flops)
        if settings.kl_target is not None:
            kl_coef = adapt_kl_coef(
                kl_coef,
                metrics["rl/kl_sequence"],
                target=settings.kl_target,
                horizon=settings.kl_horizon,
                answers=settings.rollouts,
            )
        run.log(step, metrics)
        if step % max(1, total // LOGGED_TABLES) == 0:
            run.log_answers(step, answer_table(rollouts, scores))
        run.checkpoint(step, {"kl_coef": kl_coef, "variances": variances, "learners": learners.state_dict()})

    after = evaluate_policy(actor, reference, tokenizer, held_out, rewards, config, stops=stops)
    average = copy.deepcopy(actor)
    learners.ema.copy_to(average)
    ema = evaluate_policy(average, reference, tokenizer, held_out, rewards, config, stops=stops)
    late = variances[-max(1, len(variances) // 4) :]
    return RlReport(before, after, ema, total, learners.guard.skipped, sum(late) / len(late)), average


@torch.no_grad()
def score(
    rollouts: Rollouts,
    actor: Any,
    reference: Any,
    critic: Critic,
    rewards: Sequence[Reward],
    config: Config,
    *,
    policy_frozen: bool,
) -> tuple[Scores, dict[str, float]]:
    """Old and reference log-probs, values and rewards of rollouts.

    Old log-probs come from the rollout (default in fp32: then `update` measures the gap on its first mini-batch) or
    from the training forward, also where the policy is frozen and `update` does not run it.
    """
    settings = config.rl
    values_of, valid, metrics = judge(rollouts.samples, rewards, settings)
    device = rollouts.tokens.device
    reference_logprobs, _ = rollout_logprobs(reference, rollouts, temperature=settings.temperature, config=config)
    takes_rollout = settings.old_logprobs == "auto" and actor.dtype == torch.float32
    from_rollout = (takes_rollout or settings.old_logprobs == "rollout") and not policy_frozen
    logprobs = rollouts.logprobs
    if not from_rollout:
        logprobs, _ = rollout_logprobs(actor, rollouts, temperature=settings.temperature, config=config)
        gap = (logprobs - rollouts.logprobs).abs()[rollouts.mask]
        metrics |= {"rollout/logprob_gap_mean": gap.mean().item(), "rollout/logprob_gap_max": gap.max().item()}
    values = torch.zeros_like(logprobs)
    for group in micro_batches(rollouts.lengths.tolist(), max_tokens=config.engine.max_batch_tokens):
        rows = torch.tensor(group, device=device)
        width = int(rollouts.lengths[rows].max())
        tokens, mask = rollouts.tokens[rows, :width], rollouts.mask[rows, :width]
        values[rows, :width] = token_values(critic, tokens, rollouts.lengths[rows], mask)
    return Scores(logprobs, reference_logprobs, values, values_of.to(device), valid.to(device)), metrics


def estimate(rollouts: Rollouts, scores: Scores, settings: RlConfig, *, kl_coef: float, total: Total) -> Experience:
    """Rewards per token, advantages (whitened) and returns (from the unwhitened ones). Pure."""
    mask = rollouts.mask & scores.valid[:, None]
    in_reward = kl_coef if settings.kl_in == "reward" else 0.0
    per_token = token_rewards(scores.rewards, scores.logprobs, scores.reference_logprobs, mask, kl_coef=in_reward)
    advantages = gae(per_token, scores.values, mask, gamma=settings.gamma, lam=settings.lam)
    for_returns = gae(per_token, scores.values, mask, gamma=settings.gamma, lam=settings.returns_lam)
    returns = torch.where(mask, for_returns + scores.values, torch.zeros_like(for_returns))
    return Experience(
        tokens=rollouts.tokens,
        lengths=rollouts.lengths,
        mask=mask,
        logprobs=scores.logprobs,
        reference_logprobs=scores.reference_logprobs,
        values=scores.values,
        advantages=whiten(advantages, mask, total=total),
        returns=returns,
    )


def update(
    actor: Any,
    critic: Critic,
    tokenizer: Any,
    learners: Learners,
    experience: Experience,
    config: Config,
    *,
    factor: float,
    kl_coef: float,
    order_seed: int,
    policy_frozen: bool,
    texts: Iterator[list[Encoded]] | None,
) -> dict[str, float]:
    """Epochs of mini-batches over one experience; ends early when the policy has moved too far from the old one.

    Args:
        factor: share of the learning rates.
        texts: batches for mixed training, one per mini-batch.
    Returns:
        means over the mini-batches (maxima for `*_max`).
    """
    settings = config.rl
    rows = experience.tokens.shape[0]
    size = rows // settings.minibatches
    per_minibatch: list[dict[str, float]] = []
    for epoch in range(settings.epochs):
        first_of_epoch = len(per_minibatch)
        shuffle = permutation(rows, order_seed, epoch)
        for first in range(0, rows, size):
            batch = experience.rows(torch.tensor(shuffle[first : first + size], device=experience.tokens.device))
            count = batch.mask.sum()
            if count == 0:  # every sample was excluded
                continue
            parts = []
            for group in micro_batches(batch.lengths.tolist(), max_tokens=config.engine.max_batch_tokens):
                part = batch.rows(torch.tensor(group, device=batch.tokens.device))
                metrics: dict[str, float] = {}
                if not policy_frozen:
                    loss, metrics = actor_loss(actor, part, config, count=count, kl_coef=kl_coef)
                    learners.actor.backward(loss)
                values = token_values(critic, part.tokens, part.lengths, part.mask)
                clip = None if policy_frozen else settings.value_clip
                loss = value_loss(values, part.values, part.returns, part.mask, count=count, clip=clip)
                learners.critic.backward(loss)
                parts.append({**metrics, "rl/value_loss": loss.item()})
            whole = _combine(parts, sum)
            if texts is not None and not policy_frozen:
                whole["rl/ptx_loss"] = language_model_backward(
                    learners.actor, actor, tokenizer, next(texts), config, weight=settings.ptx_coef
                )
            moving = [(learners.critic, factor)] + ([] if policy_frozen else [(learners.actor, factor)])
            norms = learners.guard.step(moving)
            if norms is not None:
                whole |= dict(zip(("rl/grad_norm_critic", "rl/grad_norm_actor"), norms, strict=False))
                if not policy_frozen:
                    learners.ema.update(learners.actor.weights)
            per_minibatch.append(whole)
        moved = [whole["rl/kl_old"] for whole in per_minibatch[first_of_epoch:] if "rl/kl_old" in whole]
        if moved and _mean(moved) > settings.max_kl_old:
            break
    result = _combine(per_minibatch, _mean)
    # Before the first optimizer step old and new policy are the same: what differs is rollout against training.
    for name in ("rollout/logprob_gap_mean", "rollout/logprob_gap_max"):
        if name in result:
            result[name] = per_minibatch[0][name]
    return {**result, "rl/epochs": (epoch + 1.0)}


def actor_loss(
    actor: Any, part: Experience, config: Config, *, count: Tensor, kl_coef: float
) -> tuple[Tensor, dict[str, float]]:
    """Policy loss of a micro-batch, with the KL term where it belongs to the loss.

    Args:
        count: valid sampled tokens of the global mini-batch.
    """
    settings = config.rl
    logprobs, entropies = token_logprobs(
        actor,
        part.tokens,
        part.lengths,
        part.mask,
        temperature=settings.temperature,
        max_logits_bytes=config.engine.max_logits_mib << 20,
    )
    loss, parts = policy_loss(
        logprobs,
        part.logprobs,
        part.advantages,
        part.mask,
        count=count,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )
    gap = (logprobs - part.logprobs).detach().abs()
    metrics = {
        "rl/policy_loss": loss.item(),
        "rl/entropy": (masked_sum(entropies, part.mask) / count).item(),
        "rollout/logprob_gap_mean": (masked_sum(gap, part.mask) / count).item(),
        "rollout/logprob_gap_max": torch.where(part.mask, gap, torch.zeros_like(gap)).max().item(),
        **{f"rl/{name}": value.item() for name, value in parts.items()},
    }
    if settings.kl_in == "loss":
        kl = kl_estimate(logprobs, part.reference_logprobs, settings.kl_estimator or "k2")
        loss = loss + kl_coef * masked_sum(kl, part.mask) / count
    return loss, metrics


def _texts(rows: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches of `size` rows for mixed training; every RL step has its own seed, so a resumed one agrees."""
    for index in batches(len(rows), size=size, seed=seed):
        yield [rows[i] for i in index]


def _combine(parts: Sequence[dict[str, float]], how: Callable[[list[float]], float]) -> dict[str, float]:
    """Metrics of parts into one: maxima for names that end in `_max`, `how` for the others."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    gathered = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: max(values) if name.endswith("_max") else how(values) for name, values in gathered.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
