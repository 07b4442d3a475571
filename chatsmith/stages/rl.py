"""Stage 3 over a whole run. What one step does stands in `stages/policy.py`."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatsmith.assistant import Assistant
from chatsmith.config import Config
from chatsmith.data.chat import Encoded, encode_texts
from chatsmith.data.control import unknown_id
from chatsmith.data.mix import StageData
from chatsmith.data.tokens import OnError, encoded
from chatsmith.engine.forward import check_compiler
from chatsmith.engine.text import token_texts
from chatsmith.errors import DataError
from chatsmith.evaluate import Interval, common, mean_interval, paired_difference
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.files.writing import replace_directory
from chatsmith.intake import deal, parse_reward, reward_targets, stages_to_train
from chatsmith.models.counts import count, measure_peak_flops, step_cost
from chatsmith.models.critic import Critic
from chatsmith.models.load import declared_context, load_stop_ids, load_tokenizer
from chatsmith.models.reward import Reward, critic_for, load_ready_reward
from chatsmith.rewards.ready import ready
from chatsmith.runs.run import Run
from chatsmith.runs.runtime import StageRun, choose_device, choose_dtype
from chatsmith.stages import final_judge
from chatsmith.stages.inputs import (
    MIN_PAIRS,
    halves,
    held_out_prompts,
    leave_model,
    left_out,
    load_policy,
    policy_location,
    show_answers,
)
from chatsmith.stages.inputs import sources as sources_of
from chatsmith.stages.loop import Order
from chatsmith.stages.policy import Estimator, PolicyTrainer
from chatsmith.stages.rollout import (
    PolicyScores,
    Prompts,
    ask_rewards,
    check_held_out,
    encode_questions,
    equal_groups,
    evaluate_policy,
    judge_rollouts,
    together,
    unit_of,
)
from chatsmith.stages.sft import best_answers
from chatsmith.stages.table import named
from chatsmith.stages.tripwires import CONSTANT, Tripwires
from chatsmith.stages.watch import PhaseClock, answer_table, describe
from chatsmith.types import Record, Rollouts, Stage
from chatsmith.verdicts import judge_rl

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
    clipped: float | None = None  # largest clip fraction of a step; None where there is nothing to clip

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
            "clip_fraction_max": self.clipped,
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
    """Train policy and critic, if it has one, in place. The reference is a copy of the policy as it comes in.

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
    if not prompts.tokens:
        raise DataError(
            f"rl: none of {prompts.dropped_too_long} prompts leaves room for an answer of {settings.max_new_tokens} "
            "tokens. Give shorter prompts, or a smaller --rl.max_new_tokens."
        )
    check_held_out(held_out, stage="rl")
    total = total_steps(config, len(prompts.tokens))
    trainer = PolicyTrainer(
        policy, rewards, config, steps=total, estimator=estimator, critic=critic, ptx=ptx, on_skip=run.skipped
    )
    tripwires = Tripwires(config, run.warn)

    def evaluate() -> PolicyScores:
        return evaluate_policy(trainer.policy, trainer.reference, held_out, rewards, config)

    before = evaluate()
    peak_flops = measure_peak_flops(trainer.actor.device, trainer.actor.dtype)
    learner = trainer.learners.critic
    start, drawn, has_critic = 0, 0, learner is not None
    needs = partial(
        step_cost, actor=count(trainer.actor), critic=count(learner.critic.backbone) if learner is not None else None
    )
    variances: list[float] = []
    state = run.resume()
    if state is not None:
        with run.restoring():
            start, drawn = state["step"] + 1, state["drawn"]
            variances = [float(state["variances"][before]) for before in range(start if has_critic else 0)]
            trainer.load_state_dict(state["trainer"])
            tripwires.load_state_dict(state["tripwires"])
    order = Order(len(prompts.tokens), seed=config.seed, drawn=drawn)

    for step in run.steps(start, total):
        probed = probe() if probe is not None and step % math.ceil(total / PROBES) == 0 else {}
        clock = PhaseClock()
        rollouts, raw, refills = _ask(trainer, prompts, order, clock)
        own_logprobs = not trainer.old_from_rollout
        with clock("score"):
            scores, metrics = trainer.score(rollouts, raw)
        with clock("estimate"):
            experience = trainer.estimate(rollouts, scores)
            metrics |= describe(rollouts, scores, experience)
            if settings.skip_equal_groups:
                metrics |= {"rl/answers": float(len(experience.sequences)), "rl/refills": float(refills)}
        with clock("update"):
            metrics = trainer.update(experience) | metrics
        tripwires.check(metrics)
        if has_critic:
            variances.append(metrics["rl/explained_variance"])
        answers = rollouts.mask.sum(1).tolist()
        asked = [len(row) - answer for row, answer in zip(rollouts.sequences, answers, strict=True)]
        epochs = int(metrics["rl/epochs"])
        cost = needs(asked, answers, own_logprobs=own_logprobs, epochs=epochs)
        metrics |= clock.metrics(rollouts, epochs, cost, peak_flops) | probed
        run.log(step, metrics)
        if step % math.ceil(total / LOGGED_TABLES) == 0:
            run.log_answers(step, answer_table(rollouts, scores))
        run.checkpoint(
            step,
            {
                "drawn": order.drawn,
                "variances": variances,
                "trainer": trainer.state_dict(),
                "tripwires": tripwires.state_dict(),
            },
        )

    after = evaluate()
    with trainer.averaged():
        ema = evaluate()
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
        clipped=_most_clipped(config, run.metrics()),
    )
    return report, trainer


def _ask(
    trainer: PolicyTrainer, prompts: Prompts, order: Order, clock: PhaseClock
) -> tuple[Rollouts, list[Tensor] | None, int]:
    """The answers of a step, what rewards gave them if they were asked, and how often further prompts were.

    Those stand in for prompts whose answers all got the same reward, `rl.max_refills` times at most.
    """
    settings, wanted = trainer.config.rl, _prompts_of_a_step(trainer.config)
    with clock("rollout"):
        rollouts = trainer.roll_out(prompts, order.take(wanted))
    if not settings.max_refills:
        return rollouts, None, 0
    with clock("score"):
        raw = ask_rewards(rollouts.samples, trainer.rewards)
    for refill in range(1, settings.max_refills + 1):
        with clock("score"):
            rewards, valid, _ = judge_rollouts(rollouts, trainer.rewards, settings, raw)
            useful = int((~equal_groups(rollouts, rewards, valid)).sum())
        if useful >= wanted:
            return rollouts, raw, refill - 1
        with clock("rollout"):
            more = trainer.roll_out(prompts, order.take(wanted - useful), refill=refill)
        with clock("score"):
            further = ask_rewards(more.samples, trainer.rewards)
            raw = [torch.cat(both) for both in zip(raw, further, strict=True)]
            rollouts = together([rollouts, more])
    return rollouts, raw, settings.max_refills


def _most_clipped(config: Config, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Largest clip fraction of a step; None where old and new policy are one, or where a cap is no bound."""
    settings = config.rl
    if settings.epochs * settings.minibatches == 1 or settings.surrogate != "clip":
        return None
    found = [row["rl/clip_fraction"] for row in rows if row.get("rl/clip_fraction") is not None]
    return max(found, default=None)


def _prompts_of_a_step(config: Config) -> int:
    return config.rl.rollouts // config.rl.samples_per_prompt


def total_steps(config: Config, records: int) -> int:
    return config.rl.steps or math.ceil(records / _prompts_of_a_step(config))


def step_size(config: Config) -> int:
    return config.rl.rollouts


def measure(tokenizer: Any, records: Sequence[Record], **options: Any) -> tuple[int, int]:
    prompts = encode_questions(tokenizer, records, **options).tokens
    return len(prompts), sum(map(len, prompts))


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


def run(run: Run) -> None:
    config, gold, sources = run.config, run.gold, sources_of(run)
    data, aside = judgeable(config, deal(config, sources))
    location = policy_location(run, "rl")
    policy = load_policy(run, location, compiled=config.engine.compile)
    rewards = load_rewards(run)
    algorithm, critic = named("PPO", config.rl.algorithm), None
    if config.rl.baseline == "critic":
        critic = critic_for(policy.model, policy.tokenizer, rewards, max_tokens=policy.max_tokens)
        run.screen.line(f"The critic starts from {critic.origin}")
    room = policy.max_tokens - config.rl.max_new_tokens
    asked: dict[str, Any] = {"stops": policy.stops, "max_tokens": room, "on_error": config.data.on_error}
    prompts = encode_questions(policy.tokenizer, data["rl"].train, **asked)
    held_out = _held_out_prompts(config, data, policy.tokenizer, policy.stops, room)
    stage = run.stage("rl")
    for what in aside:
        stage.warn(what)
    if config.rl.top_p < 1 or config.rl.top_k > 0:
        stage.warn(f"with rl.top_p or rl.top_k {algorithm} is off-policy: it assumes plain sampling")
    distinct = len({hash(row) for row in prompts.tokens})
    if distinct < len(prompts.tokens) / 2:
        stage.warn(f"duplicate prompts: only {distinct} of {len(prompts.tokens)} differ; the repeated ones count more")
    sft_gold = gold.scores(policy) if gold is not None else None
    report, trainer = train_rl(
        policy,
        critic,
        prompts,
        held_out,
        rewards,
        config,
        stage,
        ptx=mixed_rows(data, policy, on_error=config.data.on_error) if config.rl.ptx_coef > 0 else (),
        probe=partial(gold.probe, policy) if gold is not None else None,
    )
    too_long = prompts.dropped_too_long + held_out.dropped_too_long
    facts: dict[str, Any] = {"report": report.figures(), "dropped_too_long": too_long}
    gold_summary, judged = {}, None
    if gold is not None and sft_gold is not None:
        rl_gold = gold.scores(policy)
        gold_summary, judged = gold.summary(sft_gold, rl_gold), gold.judged(sft_gold, rl_gold, stage.metrics())
    else:
        facts["final_judge"] = _final_judge(run, data, report)
    unused = left_out("rl", data["rl"], too_long, sources)
    verdict, gain = judge_rl(report, config.gates, judged, unused)
    means = report.reward_means()
    card: dict[str, Any] = {"base": location, "tags": [config.rl.algorithm]}
    leave_model(run, "rl", "actor", policy, what=f"Assistant after {algorithm}", **card)
    with trainer.averaged():
        leave_model(run, "rl", "ema", policy, what=f"Assistant after {algorithm}, averaged", **card)
    if critic is not None:
        replace_directory(run.directory / "rl" / "critic", critic.save)
    samples = report.samples()
    if gold is not None:
        samples = gold.marked(
            samples, {"sft": report.before.samples, "rl": report.after.samples, "ema": report.ema.samples}
        )
    save_jsonl(run.directory / "rl" / "samples.jsonl", samples)
    summary = {
        "reward_mean_first": means["before"],
        "reward_mean_last": means["after"],
        "reward_mean_ema": means["ema"],
        "reward_gain_ci95": [gain.low, gain.high],
        "kl_last": report.after.kl,
        **gold_summary,
    }
    run.record("rl", verdict, stage, "rl/actor", summary, **facts)
    if gold is not None and sft_gold is not None:
        gold.show(run.screen, sft_gold, rl_gold, gold_summary, algorithm=algorithm)
    else:
        run.screen.line(f"  final judge: {facts['final_judge']}")
        show_answers(run, report.before, report.after, algorithm)


def load_rewards(run: Run) -> list[Reward]:
    """The run's rewards, each under a name of its own."""
    rewards: list[Reward] = []
    for spec in run.config.rl.rewards:
        target, weight = parse_reward(spec)
        if target == "trained":
            reward = load_reward(f"{run.directory / 'reward' / 'model'}@{weight}", run.config, name="trained")
        else:
            reward = load_reward(spec, run.config)
        taken = {other.name for other in rewards}
        rewards.append(replace(reward, name=target) if reward.name in taken else reward)
    return rewards


def mixed_rows(data: Mapping[Stage, StageData], actor: Assistant, *, on_error: OnError) -> Sequence[Encoded]:
    """Rows for mixed training: the ptx sources, or the SFT data where there are none."""

    def encode_chunk(chunk: list[Record]) -> list[Encoded]:
        texts = encode_texts(actor.tokenizer, [r.text for r in chunk if r.text], max_tokens=actor.max_tokens)
        return (
            best_answers(
                actor.tokenizer,
                [r for r in chunk if r.answers],
                stops=actor.stops,
                max_tokens=actor.max_tokens,
                on_error=on_error,
            )
            + texts
        )

    records = data["ptx"].train or data["sft"].train
    return encoded(
        "ptx", actor.tokenizer, records, encode_chunk, settings=[list(actor.stops), actor.max_tokens, on_error]
    )


def _final_judge(run: Run, data: Mapping[Stage, StageData], report: RlReport) -> str:
    """What a head of its own, trained on preferences that the reward model never saw, says of the policy's answers."""
    _, kept = halves(run.config, data["reward"].train)
    if not kept or "reward" not in stages_to_train(run.config):
        return f"not judged: it takes {MIN_PAIRS} preferences and reward.judge_fraction above 0"
    sft = load_policy(run, policy_location(run, "rl"))
    opinion = final_judge.second_opinion(
        sft,
        kept,
        data["reward"].held_out,
        report.before.samples,
        report.after.samples,
        max_batch_tokens=run.config.engine.max_batch_tokens,
    )
    return str(opinion)


def check(config: Config, data: Mapping[Stage, StageData]) -> None:
    """Refuse before any work what stage 3 would refuse: prompts without room for an answer, too few held-out ones.

    Raises:
        ConfigError: if rollouts are to be compiled, and there is no compiler.
        DataError: if none of the first thousand prompts has room, if its gate could not judge, or as `judgeable`.
    """
    if config.engine.compile:
        check_compiler(choose_device(config.engine))
    data, _ = judgeable(config, data)
    location = config.actor_model
    tokenizer = load_tokenizer(location)
    limit = declared_context(location) or config.data.max_tokens
    room = min(limit, config.data.max_tokens) - config.rl.max_new_tokens
    stops = load_stop_ids(location, tokenizer)
    asked: dict[str, Any] = {"stops": stops, "max_tokens": room, "on_error": config.data.on_error}
    if not encode_questions(tokenizer, data["rl"].train[:1000], **asked).tokens:
        raise DataError(
            f"rl: prompt and answer together may have {room + config.rl.max_new_tokens} tokens here, and answers up to "
            f"rl.max_new_tokens = {config.rl.max_new_tokens}: none of the prompts has room. Lower --rl.max_new_tokens."
        )
    check_held_out(_held_out_prompts(config, data, tokenizer, stops, room), stage="rl")


def judgeable(config: Config, data: Mapping[Stage, StageData]) -> tuple[dict[Stage, StageData], list[str]]:
    """The data of stage 3 without prompts that a ready reward cannot judge answers to; and in words what is left out.

    Raises:
        ConfigError, RewardError: if a ready reward cannot be had.
        DataError: at the first such prompt, unless `data.on_error` is "skip".
    """
    said: list[str] = []
    for target in dict.fromkeys(reward_targets(config)):
        reward = ready(target, limit=config.rl.max_new_tokens)
        if reward is None:
            continue
        unjudged: Counter[str] = Counter()
        left, of = 0, len(data["rl"].train) + len(data["rl"].held_out)
        sides = []
        for records in (data["rl"].train, data["rl"].held_out):
            kept = []
            for number, record in enumerate(records if reward.unfit or reward.unjudged else ()):
                unjudged.update(reward.unjudged(record) if reward.unjudged else ())
                if why := reward.unfit(record) if reward.unfit else "":
                    if config.data.on_error == "raise":
                        raise DataError(
                            f"{record.origin}: reward {target} cannot judge answers to it: {why}. Mend the row, or "
                            "leave such rows out with --data.on_error skip."
                        )
                    left += 1
                else:
                    kept.append(number)
            sides.append(records.take(np.array(kept, np.int64)) if reward.unfit else records)
        data = {**data, "rl": StageData(*sides)}
        if left:
            said.append(f"reward {target} cannot judge answers to {left} of {of} prompts, which were left out")
        said += [f"reward {target} does not judge {what}, which {n} prompts ask for" for what, n in unjudged.items()]
    return dict(data), said


def _held_out_prompts(
    config: Config, data: Mapping[Stage, StageData], tokenizer: Any, stops: Sequence[int], room: int
) -> Prompts:
    """The fixed prompts on which stage 3 is judged."""
    asked: dict[str, Any] = {"stops": stops, "max_tokens": room, "on_error": config.data.on_error}
    return encode_questions(tokenizer, held_out_prompts(config, data), **asked).first(config.rl.eval_prompts)


def load_reward(spec: str, config: Config | None = None, *, name: str | None = None) -> Reward:
    """A ready reward: its name or address, `DIR`, `FILE.py:function`, `package.module:function` or a product of these,
    with an optional `@WEIGHT`.

    Args:
        config: of it `engine`; None: the defaults.
        name: under which its values are logged; None: its own, the directory's or the function's.
    Raises:
        ConfigError, ModelError: if it is none of these.
        RewardError: if nothing answers at the address.
    """
    config = config or Config()
    target, weight = parse_reward(spec)
    device = choose_device(config.engine)
    return load_ready_reward(
        target,
        weight,
        name=name,
        dtype=choose_dtype(config.engine, device),
        device=device,
        max_tokens_per_pass=config.engine.max_batch_tokens,
        max_new_tokens=config.rl.max_new_tokens,
    )
