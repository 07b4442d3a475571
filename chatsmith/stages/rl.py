"""Stage 3: PPO over a whole run. What one step does stands in `stages/policy.py`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chatsmith.assistant import Assistant
from chatsmith.config import Config
from chatsmith.data.batch import batches
from chatsmith.data.chat import Encoded, token_texts
from chatsmith.data.control import unknown_id
from chatsmith.errors import DataError
from chatsmith.evaluate import Interval, common, mean_interval, paired_difference
from chatsmith.models.critic import Critic
from chatsmith.models.limits import measure_peak_flops
from chatsmith.models.reward import Reward
from chatsmith.runtime import StageRun
from chatsmith.stages.loop import total_steps
from chatsmith.stages.policy import Estimator, PolicyTrainer
from chatsmith.stages.rollout import PolicyScores, Prompts, check_held_out, evaluate_policy, unit_of
from chatsmith.stages.tripwires import CONSTANT, Tripwires
from chatsmith.stages.watch import PhaseClock, answer_table, describe

LOGGED_TABLES = 10  # of answers, per run, at most
PROBES = 12  # per run, at most

Probe = Callable[[], dict[str, float]]
"""Metrics of the policy as it is, from a judge that training must not know."""


@dataclass(frozen=True)
class SpokenToken:
    """One token of an answer: its text, log-prob minus the reference's (nats), and the critic's value before it."""

    text: str
    kl: float
    value: float | None  # None without a critic


@dataclass(frozen=True)
class RlReport:
    """What stage 3 did, on the fixed held-out prompts."""

    before: PolicyScores  # the SFT model
    after: PolicyScores  # the actor
    ema: PolicyScores  # the actor's average
    tokens: list[list[SpokenToken]]  # of the actor's answers
    steps: int
    skipped_steps: int
    explained_variance: float | None  # of the critic, mean over the last quarter of the steps; None without one
    reward_unit: str = ""  # in words; empty where the reward has none

    def gain(self) -> Interval:
        """Of the reward, over the prompts that count."""
        return paired_difference(self.before.rewards, self.after.rewards, self.before.prompts or None)

    def counted_prompts(self) -> tuple[int, int]:
        """How many different prompts have a finite reward both before and after, of how many."""
        prompts = self.before.prompts
        if not prompts:
            return len(self._counted), len(self.before.rewards)
        return len({prompts[i] for i in self._counted}), len(set(prompts))

    def reward_means(self) -> dict[str, float]:
        """Of each policy over the prompts that count, each once; the average's over those of them that it has."""
        return {name: self._mean(policy.rewards) for name, policy in self._policies.items()}

    def is_constant(self) -> bool:
        """Whether every answer that counts, before and after, got the same reward."""
        values = [policy.rewards[i] for policy in (self.before, self.after) for i in self._counted]
        return bool(values) and max(values) - min(values) < CONSTANT

    @property
    def _policies(self) -> dict[str, PolicyScores]:
        return {"before": self.before, "after": self.after, "ema": self.ema}

    @cached_property
    def _counted(self) -> list[int]:
        return common(self.before.rewards, self.after.rewards)

    def _mean(self, rewards: Sequence[float]) -> float:
        kept = [i for i in self._counted if math.isfinite(rewards[i])]
        prompts = self.before.prompts
        return mean_interval([rewards[i] for i in kept], [prompts[i] for i in kept] if prompts else None).value

    def figures(self) -> dict[str, Any]:
        """The report without samples, for the manifest."""
        means = self.reward_means()
        counted, asked = self.counted_prompts()
        return {
            **{name: {"reward_mean": means[name], **scores.figures()} for name, scores in self._policies.items()},
            "counted_prompts": counted,
            "asked_prompts": asked,
            "reward_unit": self.reward_unit,
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "explained_variance": self.explained_variance,
        }

    def samples(self) -> list[dict[str, Any]]:
        """Per held-out prompt the answers of SFT model, actor and average, their rewards, and the actor's tokens."""
        policies = {"sft": self.before, "rl": self.after, "ema": self.ema}
        return [
            {"prompt": sample.messages[-1].content}
            | {name: policy.samples[i].answer for name, policy in policies.items()}
            | {f"{name}_reward": policy.rewards[i] for name, policy in policies.items()}
            | {"tokens": [[token.text, _rounded(token.kl), _rounded(token.value)] for token in self.tokens[i]]}
            for i, sample in enumerate(self.before.samples)
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def train_rl(
    policy: Assistant,
    critic: Critic | None,
    prompts: Prompts,
    held_out: Prompts,
    rewards: Sequence[Reward],
    config: Config,
    run: StageRun,
    *,
    estimator: Estimator | None = None,
    ptx: Sequence[Encoded] = (),
    probe: Probe | None = None,
) -> tuple[RlReport, PolicyTrainer]:
    """Train policy and critic in place. The reference is a copy of the policy as it comes in: the SFT model.

    Args:
        critic, estimator: see `PolicyTrainer`.
        prompts, held_out: tokenised prompts; the fixed held-out ones are scored before and after.
        rewards: what is maximised, summed with their weights.
        ptx: rows for mixed training; used when `ptx_coef` > 0.
        probe: asked up to twelve times, before that step's update; its metrics are logged and nothing else.
    Returns:
        the report, and the trainer, whose `averaged` gives the policy its averaged weights.
    Raises:
        DataError: if there are too few prompts, or no text for mixed training.
        TrainingStopped: if training cannot sensibly go on, see `Guard` and `check_logprob_gap`.
        Interrupted: after saving a checkpoint.
    """
    settings = config.rl
    per_step = settings.rollouts // settings.samples_per_prompt
    if not prompts.tokens:
        raise DataError(
            f"rl: none of {prompts.dropped_too_long} prompts leaves room for an answer of {settings.max_new_tokens} "
            "tokens. Give shorter prompts, or a smaller --rl.max_new_tokens."
        )
    check_held_out(held_out)
    total = total_steps(config, "rl", len(prompts.tokens))
    trainer = PolicyTrainer(
        policy, rewards, config, steps=total, estimator=estimator, critic=critic, ptx=ptx, on_skip=run.skipped
    )
    tripwires = Tripwires(config, run.warn)

    def evaluate(model: Any) -> PolicyScores:
        return evaluate_policy(
            model, trainer.reference, policy.tokenizer, held_out, rewards, config, stops=policy.stops
        )

    before = evaluate(trainer.reference)
    peak_flops = measure_peak_flops(trainer.actor.device, trainer.actor.dtype)
    parameters = {name: sum(p.numel() for p in part.parameters.values()) for name, part in trainer.moving().items()}
    start = 0
    variances: list[float] = []
    state = run.resume()
    if state is not None:
        with run.restoring():
            start = state["step"] + 1
            variances = [float(value) for value in state["variances"]]
            trainer.load_state_dict(state["trainer"])
            tripwires.load_state_dict(state["tripwires"])
    order = batches(len(prompts.tokens), size=per_step, seed=config.seed, start=start)

    for step in run.steps(start, total):
        probed = probe() if probe is not None and step % math.ceil(total / PROBES) == 0 else {}
        clock = PhaseClock()
        with clock("rollout"):
            rollouts = trainer.roll_out(prompts, next(order))
        with clock("score"):
            scores, metrics = trainer.score(rollouts)
        with clock("estimate"):
            experience = trainer.estimate(rollouts, scores)
            metrics |= describe(rollouts, scores, experience)
        with clock("update"):
            metrics = trainer.update(experience) | metrics
        tripwires.check(metrics)
        variances += [metrics[name] for name in ("rl/explained_variance",) if name in metrics]
        metrics |= clock.metrics(rollouts, metrics["rl/epochs"], parameters, peak_flops) | probed
        run.log(step, metrics)
        if step % math.ceil(total / LOGGED_TABLES) == 0:
            run.log_answers(step, answer_table(rollouts, scores))
        run.checkpoint(
            step, {"variances": variances, "trainer": trainer.state_dict(), "tripwires": tripwires.state_dict()}
        )

    after = evaluate(trainer.actor)
    with trainer.averaged():
        ema = evaluate(trainer.actor)
    late = variances[-max(1, len(variances) // 4) :]
    report = RlReport(
        before=before,
        after=after,
        ema=ema,
        tokens=_spoken(after, trainer, policy.tokenizer),
        steps=total,
        skipped_steps=trainer.learners.guard.skipped,
        explained_variance=sum(late) / len(late) if late else None,
        reward_unit=unit_of(rewards),
    )
    return report, trainer


def _spoken(scores: PolicyScores, trainer: PolicyTrainer, tokenizer: Any) -> list[list[SpokenToken]]:
    """What each token of the answers cost in KL, and what the critic, if there is one, expected before it."""
    rollouts, critic = scores.rollouts, trainer.learners.critic
    values = critic.values(rollouts) if critic is not None else None
    unknown = unknown_id(tokenizer)  # which decoders leave out
    answers = []
    for row, mask in enumerate(rollouts.mask):
        ids = [token for token, sampled in zip(rollouts.sequences[row], mask.tolist(), strict=False) if sampled]
        texts = [
            tokenizer.unk_token if id == unknown else text
            for id, text in zip(ids, token_texts(tokenizer, ids), strict=True)
        ]
        expected = [None] * len(ids) if values is None else values[row][mask].tolist()
        figures = zip(texts, scores.kl_tokens[row][mask].tolist(), expected, strict=True)
        answers.append([SpokenToken(*figure) for figure in figures])
    return answers
