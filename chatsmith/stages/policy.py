"""One online step in its parts: roll out, score, estimate, update.

`stages/rl.py` runs these parts over a whole stage; a loop of one's own is the same four calls.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from chatsmith.algo.advantages import Groups, gae, over_baseline, returns_to_go, scaled
from chatsmith.algo.losses import Total, kl_estimate, masked_sum, policy_loss
from chatsmith.algo.rewards import adapt_kl_coef, token_rewards
from chatsmith.assistant import Assistant
from chatsmith.config import Config, RlConfig
from chatsmith.data.chat import Encoded
from chatsmith.engine.engine import Sampling
from chatsmith.errors import ConfigError, DataError, RunError
from chatsmith.models.checkpointing import checkpoint_activations
from chatsmith.models.critic import Critic
from chatsmith.models.ema import Ema, default_decay
from chatsmith.models.passes import Pass
from chatsmith.models.reward import Reward, critic_for
from chatsmith.models.scoring import passes_of, token_logprobs
from chatsmith.seeds import derive_seed, permutation
from chatsmith.stages.critic import CriticTrainer
from chatsmith.stages.loop import Guard, Skipped, Trainable, as_text, averaged, batches, learning_rate_factor
from chatsmith.stages.rollout import (
    Prompts,
    encode_questions,
    judge_rollouts,
    roll_out,
    rollout_logprobs,
    rollout_noise,
)
from chatsmith.stages.sft import encoded_passes, language_model_backward
from chatsmith.stages.watch import check_logprob_gap, describe, kl_per_answer
from chatsmith.types import Experience, Message, Record, Rollouts, Scores

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(token_rewards [B, T], mask [B, T], prompts [B], values [B, T] or None) -> advantages [B, T], 0 outside the mask,
before `rl.scale` is applied. `prompts` numbers what each row answers; `values` are the critic's, where there is one.
"""


@dataclass(frozen=True)
class Learners:
    """Everything that moves."""

    actor: Trainable
    critic: CriticTrainer | None
    ema: Ema
    guard: Guard

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in vars(self).items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            RunError: if the state has a critic and these have none, or the other way round.
        """
        if ("critic" in state) != (self.critic is not None):
            there, here = ("a", "none") if self.critic is None else ("no", "one")
            raise RunError(
                f"rl: the checkpoint is of another algorithm: it has {there} critic, and rl.baseline asks for {here}. "
                "Resume with the settings that it was written with, or run stage 3 anew."
            )
        for name, part in vars(self).items():
            if part is not None:
                part.load_state_dict(state[name])


class PolicyTrainer:
    """A policy that is trained in place, with its reference, its rewards and its critic, if it has one.

        trainer = PolicyTrainer(policy, rewards, config, steps=10)
        experience, metrics = trainer.make_experience(questions)
        metrics |= trainer.update(experience)

    Without `estimator` the configuration says which algorithm this is (`rl.algorithm`): PPO by default.

    Args:
        policy: the SFT model. Its weights move.
        rewards: what is maximised, summed with their weights.
        config: of it `seed`, `rl` and `engine`; how many steps and rollouts there are is the caller's affair.
        steps: how many there will be, for the learning rate's schedule and the average's decay.
        estimator: gives the advantages, which `rl.scale` then scales. None: what `rl.baseline` says.
        critic: None: where `rl.baseline` says so and there is no estimator, it starts from the first reward model that
            reads the policy's tokens, or from the policy; else there is none.
        reference: what the KL is measured to. None: a copy of the policy as it is now.
        ptx: rows for mixed training, used when `rl.ptx_coef` > 0.
        on_skip: told of every refused optimizer step, with its batch as text; None: a Python warning.
    Raises:
        DataError: if `rl.ptx_coef` > 0 and there are no rows for it.
        ConfigError: if there is a critic and nothing that uses it.
    """

    def __init__(
        self,
        policy: Assistant,
        rewards: Sequence[Reward],
        config: Config,
        *,
        steps: int,
        estimator: Estimator | None = None,
        critic: Critic | None = None,
        reference: Any = None,
        ptx: Sequence[Encoded] = (),
        on_skip: Skipped | None = None,
    ) -> None:
        settings = config.rl
        if settings.ptx_coef > 0 and not ptx:
            raise DataError(
                f"rl.ptx_coef = {settings.ptx_coef}, but there is no text for mixed training. Add a ptx: source, such "
                "as --data ptx:FILE.txt, or sft data."
            )
        self.config, self.policy, self.rewards, self.ptx = config, policy.fitted(config.engine), rewards, ptx
        self.actor, self.tokenizer = policy.model, policy.tokenizer
        self.reference = reference or copy.deepcopy(self.actor).requires_grad_(False)
        if critic is not None and estimator is None and settings.baseline != "critic":
            raise ConfigError(
                f"a critic is given, and rl.algorithm = {settings.algorithm!r} with rl.baseline = "
                f"{settings.baseline!r} uses none. Leave it out."
            )
        if critic is None and estimator is None and settings.baseline == "critic":
            critic = critic_for(policy.model, policy.tokenizer, rewards, max_tokens=policy.max_tokens)
        if config.engine.activation_checkpointing:
            for model in (self.actor, critic):
                if model is not None:
                    checkpoint_activations(model)
        self.steps, self.step, self.kl_coef = steps, 0, settings.kl_coef
        self.noise: float | None = None  # of the policy's log-probs, measured on the first rollouts
        self.estimator = estimator or estimator_of(settings)
        decay = default_decay(steps * settings.epochs * settings.minibatches)
        self.learners = Learners(
            Trainable(self.actor, settings, lr=settings.lr),
            CriticTrainer(critic, config) if critic is not None else None,
            Ema(self.actor, decay),
            Guard("rl", on_skip or (lambda reason, _: warnings.warn(reason, stacklevel=2))),
        )
        self.sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)

    def make_experience(self, questions: Sequence[str | Record]) -> tuple[Experience, dict[str, float]]:
        """Answer questions, `rl.samples_per_prompt` times each, and turn the answers into what `update` learns from.

        Before the next `update`, the same questions get the same answers. No further ones are asked (`rl.max_refills`).

        Raises:
            DataError: if there is no question, or if one leaves no room for an answer.
            TrainingStopped: if rollout and training disagree, see `check_logprob_gap`.
        """
        if isinstance(questions, str) or not questions:
            raise DataError("make_experience takes a list of questions, one or more.")
        records = [q if isinstance(q, Record) else Record(prompt=(Message("user", q),)) for q in questions]
        room = self.policy.max_tokens - self.config.rl.max_new_tokens
        prompts = encode_questions(self.tokenizer, records, stops=self.policy.stops, max_tokens=room)
        if prompts.dropped_too_long:
            raise DataError(
                f"{prompts.dropped_too_long} of {len(records)} questions have more than {room} tokens, which leaves no "
                f"room for an answer of {self.config.rl.max_new_tokens}."
            )
        rollouts = self.roll_out(prompts, range(len(prompts.tokens)))
        scores, metrics = self.score(rollouts)
        experience = self.estimate(rollouts, scores)
        return experience, metrics | describe(rollouts, scores, experience)

    def roll_out(self, prompts: Prompts, index: Sequence[int], *, refill: int = 0) -> Rollouts:
        """The policy's answers to the prompts at `index`; in a refill the same prompt gets other answers."""
        settings = self.config.rl
        return roll_out(
            self.policy,
            prompts,
            index,
            self.sampling,
            limit=settings.max_new_tokens,
            samples=settings.samples_per_prompt,
            seed=(self.config.seed, self.step, *(("refill", refill) if refill else ())),
        )

    @torch.no_grad()
    def score(self, rollouts: Rollouts, raw: Sequence[Tensor] | None = None) -> tuple[Scores, dict[str, float]]:
        """Old and reference log-probs, values (of a critic) and rewards of rollouts.

        Old log-probs come from the rollout (default in fp32: then `update` measures the gap on its first mini-batch)
        or from the training forward, also where the policy is frozen and `update` does not run it.

        Args:
            raw: what `ask_rewards` gave; None: it is asked.
        """
        settings = self.config.rl
        if self.noise is None:
            self.noise = rollout_noise(self.actor, rollouts, settings.temperature)
        rewards, valid, metrics = judge_rollouts(rollouts, self.rewards, settings, raw)
        metrics["rollout/logprob_noise"] = self.noise
        temperature, device = settings.temperature, rollouts.mask.device
        reference_logprobs, _ = rollout_logprobs(self.reference, rollouts, temperature=temperature, config=self.config)
        logprobs = rollouts.logprobs
        if not self.old_from_rollout:
            logprobs, _ = rollout_logprobs(self.actor, rollouts, temperature=temperature, config=self.config)
            gap = (logprobs - rollouts.logprobs).abs()[rollouts.mask]
            metrics |= {"rollout/logprob_gap_mean": gap.mean().item(), "rollout/logprob_gap_max": gap.max().item()}
            check_logprob_gap(metrics["rollout/logprob_gap_mean"], self.noise, self.actor.dtype, settings)
        critic = self.learners.critic
        values = critic.values(rollouts) if critic is not None else None
        return Scores(logprobs, reference_logprobs, values, rewards.to(device), valid.to(device)), metrics

    def estimate(self, rollouts: Rollouts, scores: Scores) -> Experience:
        """Rewards per token, advantages and returns, of the answers that `update` learns from."""
        return estimate(
            rollouts,
            scores,
            self.config.rl,
            kl_coef=self.kl_coef,
            estimator=self.estimator,
            total=lambda x: x,
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """Epochs of mini-batches over one experience; ends early when the policy has moved too far from the old one.

        Then the KL coefficient moves towards `rl.kl_target`, if there is one.

        Returns:
            means over the mini-batches (maxima for `*_max`).
        Raises:
            TrainingStopped: after refused steps in a row, or if rollout and training disagree.
        """
        settings = self.config.rl
        self.policy.engine.refresh()  # the weights are about to move
        factor = learning_rate_factor(settings, self.step, self.steps)
        order_seed = derive_seed(self.config.seed, self.step)
        texts = self._texts() if settings.ptx_coef > 0 and not self._policy_frozen else None
        rows = len(experience.sequences)
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(experience.prompts):
            rows_of[prompt].append(row)
        prompts = list(rows_of.values())
        edges = [rows * i // settings.minibatches for i in range(settings.minibatches + 1)]
        per_minibatch: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            first_of_epoch = len(per_minibatch)
            # The rows of a prompt stay together: a mini-batch computes what they share once.
            shuffle = [row for number in permutation(len(prompts), order_seed, epoch) for row in prompts[number]]
            for first, end in pairwise(edges):
                batch = experience.rows(shuffle[first:end])
                if batch.mask.any():  # else every sample was excluded
                    per_minibatch.append(self._update_once(batch, factor, texts))
            moved = [whole["rl/kl_old"] for whole in per_minibatch[first_of_epoch:] if "rl/kl_old" in whole]
            if moved and _mean(moved) > settings.max_kl_old:
                break
        result = _combine(per_minibatch, _mean)
        # Before the first optimizer step old and new policy are the same: what differs is rollout against training,
        # or one training forward against another.
        for name in ("logprob_gap_mean", "logprob_gap_max"):
            if result.pop(f"update/{name}", None) is not None:
                side = "rollout" if self.old_from_rollout else "update"
                result[f"{side}/{name}"] = per_minibatch[0][f"update/{name}"]
        check_logprob_gap(result.get("rollout/logprob_gap_mean", 0.0), self.noise or 0.0, self.actor.dtype, settings)
        result |= {
            "rl/epochs": epoch + 1.0,
            "rl/lr": settings.lr * factor,
            "rl/kl_coef": self.kl_coef,
            "rl/skipped": float(self.learners.guard.skipped),
        }
        self.step += 1
        if settings.kl_target is not None:
            self.kl_coef = adapt_kl_coef(
                self.kl_coef,
                kl_per_answer(experience),
                target=settings.kl_target,
                horizon=settings.kl_horizon,
                answers=rows,
            )
        return result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights, and must not be trained."""
        with averaged(self.policy, self.learners.actor, self.learners.ema):
            yield

    def moving(self) -> dict[str, Trainable]:
        """What the optimizers move, by name; the critic, which is never left out, first."""
        critic = self.learners.critic
        return ({"critic": critic} if critic is not None else {}) | {"actor": self.learners.actor}

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "kl_coef": self.kl_coef,
            "noise": self.noise,
            "learners": self.learners.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.kl_coef, self.noise = state["step"], state["kl_coef"], state["noise"]
        self.learners.load_state_dict(state["learners"])
        self.policy.engine.refresh()

    @property
    def _policy_frozen(self) -> bool:
        return self.learners.critic is not None and self.step < self.config.rl.critic_warmup

    @property
    def old_from_rollout(self) -> bool:
        """Whether this step's old log-probs are the rollout's; else a training forward of their own gives them."""
        chosen = self.config.rl.old_logprobs
        measured_in_update = chosen == "rollout" or (chosen == "auto" and self.actor.dtype == torch.float32)
        return measured_in_update and not self._policy_frozen

    def _texts(self) -> Iterator[list[Encoded]]:
        """Endless batches for mixed training; every step has its own seed, so a resumed one agrees."""
        seed = derive_seed(self.config.seed, "ptx", self.step)
        for index in batches(len(self.ptx), size=self.config.rl.ptx_batch, seed=seed):
            yield [self.ptx[i] for i in index]

    def _update_once(self, batch: Experience, factor: float, texts: Iterator[list[Encoded]] | None) -> dict[str, float]:
        """One optimizer step of critic (if any) and (unless frozen) actor on a mini-batch."""
        settings, learners, frozen = self.config.rl, self.learners, self._policy_frozen
        count, answers = batch.mask.sum(), batch.mask.any(1).sum()
        parts: list[dict[str, Tensor]] = []
        bodies = [self.actor] if learners.critic is None else [self.actor, learners.critic.critic.backbone]
        for of in passes_of(
            *bodies,
            rows=batch.sequences,
            max_tokens=self.config.engine.max_batch_tokens,
            together=batch.prompts,
        ):
            part = batch.rows(of.index)
            metrics: dict[str, Tensor] = {}
            if not frozen:
                loss, metrics = actor_loss(
                    self.actor, of, part, self.config, count=count, answers=answers, kl_coef=self.kl_coef
                )
                learners.actor.backward(loss)
            if learners.critic is not None:
                clip = None if frozen else settings.value_clip
                metrics["rl/value_loss"] = learners.critic.collect(of, part, count=count, clip=clip)
            parts.append(metrics)
        whole = _combine(_numbers(parts), sum)
        if texts is not None:
            rows = next(texts)
            plan = encoded_passes(self.actor, rows, self.config)
            whole["rl/ptx_loss"] = language_model_backward(
                learners.actor, self.actor, rows, plan, self.config, weight=settings.ptx_coef
            )
        moving = self.moving()
        if frozen:
            del moving["actor"]
        steps = [(trainable, factor) for trainable in moving.values()]
        norms = learners.guard.step(steps, lambda: as_text(self.tokenizer, batch.sequences))
        if norms is not None:
            whole |= {f"rl/grad_norm_{name}": norm for name, norm in zip(moving, norms, strict=True)}
            if not frozen:
                learners.ema.update(learners.actor.weights)
        return whole


def estimator_of(settings: RlConfig) -> Estimator:
    """The one that `rl.baseline` names."""
    if settings.baseline == "critic":
        return partial(_generalised, gamma=settings.gamma, lam=settings.lam)
    if settings.baseline == "none":
        return lambda rewards, mask, prompts, values: returns_to_go(rewards, mask)
    return partial(_in_groups, baseline=settings.baseline)


def _generalised(
    rewards: Tensor, mask: Tensor, _: Tensor, values: Tensor | None, *, gamma: float, lam: float
) -> Tensor:
    assert values is not None, "generalised advantages come from a critic's values"
    return gae(rewards, values, mask, gamma=gamma, lam=lam)


def _in_groups(
    rewards: Tensor, mask: Tensor, prompts: Tensor, _: Tensor | None, *, baseline: Literal["others", "group"]
) -> Tensor:
    """The same for every token of an answer."""
    groups = Groups.of(prompts, mask.any(1))
    return over_baseline(rewards.sum(1), groups, baseline)[:, None] * mask


def estimate(
    rollouts: Rollouts, scores: Scores, settings: RlConfig, *, kl_coef: float, estimator: Estimator, total: Total
) -> Experience:
    """Rewards per token, advantages (scaled) and, for a critic, returns (of their own lambda, not scaled). Pure."""
    valid, prompts = scores.valid, torch.tensor(rollouts.prompts, device=rollouts.mask.device)
    if settings.skip_equal_groups:
        groups = Groups.of(prompts, valid)
        valid = valid & ~groups.equal(scores.rewards)[groups.number]
    mask = rollouts.mask & valid[:, None]
    in_reward = kl_coef if settings.kl_in == "reward" else 0.0
    per_token = token_rewards(scores.rewards, scores.logprobs, scores.reference_logprobs, mask, kl_coef=in_reward)
    returns = None
    if scores.values is not None:
        for_returns = gae(per_token, scores.values, mask, gamma=settings.gamma, lam=settings.returns_lam)
        returns = torch.where(mask, for_returns + scores.values, torch.zeros_like(for_returns))
    advantages = estimator(per_token, mask, prompts, scores.values)
    experience = Experience(
        sequences=rollouts.sequences,
        prompts=rollouts.prompts,
        mask=mask,
        logprobs=scores.logprobs,
        reference_logprobs=scores.reference_logprobs,
        values=scores.values,
        advantages=scaled(advantages, per_token.sum(1), mask, prompts, scale=settings.scale, total=total),
        returns=returns,
    )
    return experience.rows(valid.nonzero()[:, 0].tolist()) if settings.skip_equal_groups else experience


def actor_loss(
    actor: Any, of: Pass, part: Experience, config: Config, *, count: Tensor, answers: Tensor, kl_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss of a pass, with the KL term where it belongs to the loss, and its metrics.

    Args:
        part: the experience of the rows of the pass `of`.
        count, answers: valid sampled tokens and valid answers of the global mini-batch.
    """
    settings = config.rl
    logprobs, entropies = token_logprobs(
        actor,
        of,
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
        answers=answers,
        ratio=settings.ratio,
        surrogate=settings.surrogate,
        aggregate=settings.aggregate,
        limit=settings.max_new_tokens,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
        cap=settings.cap,
    )
    gap = (logprobs - part.logprobs).detach().abs()
    metrics = {
        "rl/policy_loss": loss.detach(),
        "rl/entropy": masked_sum(entropies, part.mask) / count,
        "update/logprob_gap_mean": masked_sum(gap, part.mask) / count,
        "update/logprob_gap_max": torch.where(part.mask, gap, torch.zeros_like(gap)).max(),
        **{f"rl/{name}": value.detach() for name, value in parts.items()},
    }
    if settings.kl_in == "loss":
        kl = kl_estimate(logprobs, part.reference_logprobs, settings.kl_estimator or "k2")
        loss = loss + kl_coef * masked_sum(kl, part.mask) / count
    return loss, metrics


def _numbers(parts: Sequence[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Metrics of parts as numbers; waits for the device once."""
    values = iter(torch.stack([value for part in parts for value in part.values()]).tolist())
    return [{name: next(values) for name in part} for part in parts]


def _combine(parts: Sequence[dict[str, float]], how: Callable[[list[float]], float]) -> dict[str, float]:
    """Metrics of parts into one: maxima for names that end in `_max`, `how` for the others."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    gathered = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: max(values) if name.endswith("_max") else how(values) for name, values in gathered.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
