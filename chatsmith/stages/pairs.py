"""Stage `pairs`: what people prefer, learned from their preferences alone: DPO and its kin, ORPO, KTO.

No answer is sampled and no reward model asked: the policy's own log-probs, beside those of the model that it starts
from, are the reward. What the losses compare (`algo/pairs.py`) is each answer's gain
D = log p(answer | prompt) - log p_reference(answer | prompt), summed over its tokens.
"""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from chatsmith.algo.losses import Pairs, pairs_of
from chatsmith.algo.pairs import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_zero,
    log_ratio,
    mismatch,
    orpo_loss,
    per_token,
    robust_loss,
    simpo_loss,
)
from chatsmith.assistant import Assistant
from chatsmith.config import Config, PairsConfig
from chatsmith.data.mix import StageData
from chatsmith.data.progress import progress
from chatsmith.data.store import Array
from chatsmith.errors import DataError
from chatsmith.evaluate import (
    Interval,
    common,
    difference_of_means,
    mean_interval,
    paired_difference,
    separation,
    share,
)
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.intake import deal, parse_reward
from chatsmith.models.checkpointing import checkpoint_activations
from chatsmith.models.ema import Ema, default_decay
from chatsmith.models.load import declared_context, load_stop_ids, load_tokenizer
from chatsmith.models.passes import Pass, pad_mask
from chatsmith.models.reward import Reward
from chatsmith.models.scoring import passes_of, token_logprobs
from chatsmith.runs.run import Run
from chatsmith.runs.runtime import StageRun
from chatsmith.seeds import permutation
from chatsmith.stages.inputs import is_ranked, leave_model, left_out, load_policy, policy_location, show_answers
from chatsmith.stages.inputs import sources as sources_of
from chatsmith.stages.loop import Guard, Skipped, Trainable, as_text, averaged, batches, learning_rate_factor, steps_of
from chatsmith.stages.reward import Ranked, RankedRows, encode_ranked, marks_of
from chatsmith.stages.rl import load_reward
from chatsmith.stages.rollout import PolicyScores, Prompts, check_held_out, encode_questions, evaluate_policy
from chatsmith.stages.table import RL, SAMPLES
from chatsmith.types import Record, Stage
from chatsmith.verdicts import judge_pairs

NAME: Final = "pairs"
EVALUATIONS = 10  # held-out evaluations per run
EVALUATED = 512  # held-out records on the way; at the end it is all of them
CHUNK = 1024  # records read at once


@dataclass(frozen=True)
class Answers(Ranked):
    """Ranked answers to a prompt, and `reference` [A]: log-probs under the model that the policy started from."""

    reference: list[float]

    def at(self, index: Sequence[int]) -> "Answers":
        return Answers(**{name: [values[i] for i in index] for name, values in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Answers to several prompts, one after the other."""
        return cls(**{name: [x for part in parts for x in getattr(part, name)] for name in vars(parts[0])})


class Preferences:
    """What a loss learns from, one by one: prompts with a clear preference among their answers, or (for KTO, which
    compares none) single answers that are good or bad.

    Args:
        rows: the answers.
        reference: [A] of them.
    """

    def __init__(self, rows: RankedRows, reference: Array, *, compared: bool) -> None:
        self._rows, self._reference = rows, reference
        if compared:
            self._spans = [rows.answers_of(number) for number in clear(rows).tolist()]
        else:
            self._spans = [slice(number, number + 1) for number in np.flatnonzero(rows.marks).tolist()]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Answers:
        span, rows = self._spans[index], self._rows
        numbers = {name: getattr(rows, name)[span].tolist() for name in ("starts", "lengths", "scores", "marks")}
        return Answers(
            rows=[list(row) for row in rows.answers[span]], reference=self._reference[span].tolist(), **numbers
        )


def clear(rows: RankedRows) -> Array:
    """The records among whose answers there is a preference."""
    scores = (rows.scores[rows.answers_of(number)] for number in range(len(rows)))
    return np.flatnonzero([bool(mine.min() < mine.max()) for mine in scores])


class PairsTrainer:
    """A policy that learns from preferences.

    Args:
        policy: its weights move.
        steps: how many there will be, for the learning rate's schedule and the average's decay.
        on_skip: told of every refused optimizer step.
        reference: what D is measured from. None: a copy of the policy as it is now.
    """

    def __init__(
        self, policy: Assistant, config: Config, *, steps: int, on_skip: Skipped, reference: Any = None
    ) -> None:
        self.policy, self.model, self.config, self.steps = policy, policy.model, config, steps
        self.reference = reference or copy.deepcopy(policy.model).requires_grad_(False)
        if config.engine.activation_checkpointing:
            checkpoint_activations(policy.model)
        self.learner = Trainable(policy.model, config.pairs, lr=config.pairs.lr)
        self.ema, self.guard = Ema(policy.model, default_decay(steps)), Guard(NAME, on_skip)

    def update(self, step: int, batch: Sequence[Answers]) -> dict[str, float]:
        """One optimizer step on a batch of `Preferences`."""
        settings = self.config.pairs
        metrics = self._collect(batch)
        factor = learning_rate_factor(settings, step, self.steps)
        rows = [row for answers in batch for row in answers.rows]
        norms = self.guard.step([(self.learner, factor)], partial(as_text, self.policy.tokenizer, rows))
        metrics |= {"pairs/lr": settings.lr * factor, "pairs/skipped": float(self.guard.skipped)}
        if norms is not None:
            metrics["pairs/grad_norm"] = norms[0]
            self.ema.update(self.learner.weights)
        return metrics

    def _collect(self, batch: Sequence[Answers]) -> dict[str, float]:
        """Collect the gradient of the loss over a batch, and say what it saw."""
        return self._collect_marks(batch) if self.config.pairs.loss == "kto" else self._collect_pairs(batch)

    def _collect_pairs(self, batch: Sequence[Answers]) -> dict[str, float]:
        """Collect the gradient of a loss that compares answers to one prompt, in passes of whole prompts."""
        device, everything = self.model.device, Answers.joined(batch)
        whose = [number for number, answers in enumerate(batch) for _ in answers.rows]
        lengths = torch.tensor(everything.lengths, dtype=torch.float32)
        pairs = pairs_of([answers.scores for answers in batch])
        tokens = (pairs.weight * lengths[pairs.better]).sum().to(device)  # that the likelihood term is a mean over
        count = torch.tensor(float(len(batch)), device=device)
        found = []
        for part in passes_of(self.model, rows=everything.rows, together=whose, whole=True, max_tokens=self._budget):
            mine = everything.at(part.index)
            prompts = dict.fromkeys(whose[row] for row in part.index)  # in their order: none is divided
            pairs = pairs_of([batch[number].scores for number in prompts]).to(device)
            logprobs, reference = self._logprobs(self.model, part, mine), torch.tensor(mine.reference, device=device)
            lengths = torch.tensor(mine.lengths, device=device)
            loss = _pair_loss(logprobs, reference, lengths, pairs, self.config.pairs, count=count)
            if self.config.pairs.nll:
                loss = loss - self.config.pairs.nll * (pairs.weight * logprobs[pairs.better]).sum() / tokens
            self.learner.backward(loss)
            gain = log_ratio(logprobs, reference).detach()
            better, worse = gain[pairs.better], gain[pairs.worse]
            sums = [(pairs.weight * of).sum() for of in ((better > worse).float(), better, worse)]
            found.append(torch.stack([loss.detach(), *sums]))
        loss_sum, *sums = torch.stack(found).sum(0).tolist()  # waits for the device once
        right, chosen, rejected = (total / len(batch) for total in sums)
        return {
            "pairs/loss": loss_sum,
            "pairs/accuracy": right,
            "pairs/margin": chosen - rejected,
            "pairs/chosen": chosen,
            "pairs/rejected": rejected,
        }

    def _collect_marks(self, batch: Sequence[Answers]) -> dict[str, float]:
        """Collect the gradient of a loss of single answers, each of them good or bad."""
        settings, device, everything = self.config.pairs, self.model.device, Answers.joined(batch)
        zero = self._zero(everything)
        count = torch.tensor(float(len(batch)), device=device)
        found = []
        for part in passes_of(self.model, rows=everything.rows, max_tokens=self._budget):
            mine = everything.at(part.index)
            logprobs, reference = self._logprobs(self.model, part, mine), torch.tensor(mine.reference, device=device)
            good = torch.tensor(mine.marks, device=device) > 0
            gain = log_ratio(logprobs, reference)
            loss = kto_loss(
                *(gain, good),
                zero=zero,
                count=count,
                beta=settings.strength,
                weight_good=settings.good_weight,
                weight_bad=settings.bad_weight,
            )
            self.learner.backward(loss)
            gain = gain.detach()
            right = torch.where(good, gain > zero, gain < zero).float()
            found.append(torch.stack([loss.detach(), right.sum(), gain[good].sum(), gain[~good].sum()]))
        loss_sum, right, chosen, rejected = torch.stack(found).sum(0).tolist()
        good_ones = sum(mark > 0 for mark in everything.marks)
        chosen = chosen / good_ones if good_ones else float("nan")
        rejected = rejected / (len(batch) - good_ones) if good_ones < len(batch) else float("nan")
        return {
            "pairs/loss": loss_sum,
            "pairs/accuracy": right / len(batch),
            "pairs/margin": chosen - rejected,
            "pairs/chosen": chosen,
            "pairs/rejected": rejected,
            "pairs/zero": zero.item(),
        }

    @torch.no_grad()
    def _zero(self, batch: Answers) -> Tensor:
        """KTO's reference point, from each prompt with the answer to another; rows that get too long are left out."""
        rows, starts, lengths = [], [], []
        for prompt, answer in enumerate(mismatch(len(batch.rows))):
            start, length = batch.starts[answer], batch.lengths[answer]
            row = batch.rows[prompt][: batch.starts[prompt]] + batch.rows[answer][start : start + length]
            if len(row) <= self.policy.max_tokens:
                rows.append(row)
                starts.append(batch.starts[prompt])
                lengths.append(length)
        policy, reference = (
            answer_logprobs(model, rows, starts, lengths, self.config) for model in (self.model, self.reference)
        )
        count = torch.tensor(float(max(1, len(rows))))
        return kto_zero(log_ratio(policy, reference), count=count).to(self.model.device)

    def _logprobs(self, model: Any, part: Pass, of: Ranked) -> Tensor:
        return _logprobs(model, part, of.starts, of.lengths, self.config)

    @property
    def _budget(self) -> int:
        return self.config.engine.max_batch_tokens

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("learner", "ema", "guard")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("learner", "ema", "guard"):
            getattr(self, name).load_state_dict(state[name])


def _pair_loss(
    logprobs: Tensor, reference: Tensor, tokens: Tensor, pairs: Pairs, settings: PairsConfig, *, count: Tensor
) -> Tensor:
    """The loss that `pairs.loss` names, of answers [A]."""
    beta, ratios = settings.strength, log_ratio(logprobs, reference)
    if settings.loss == "ipo":
        return ipo_loss(per_token(ratios, tokens), pairs, count=count, beta=beta)
    if settings.loss == "simpo":
        return simpo_loss(per_token(logprobs, tokens), pairs, count=count, beta=beta, margin=settings.lead)
    if settings.loss == "orpo":
        return orpo_loss(per_token(logprobs, tokens), pairs, count=count, weight=beta)
    loss = robust_loss if settings.loss == "robust" else dpo_loss
    compared = per_token(ratios, tokens) if settings.normalise else ratios
    return loss(compared, pairs, count=count, beta=beta, smoothing=settings.smoothing)


def _logprobs(model: Any, part: Pass, starts: Sequence[int], lengths: Sequence[int], config: Config) -> Tensor:
    """Log-probs [A] of the answers of a pass, each summed over its tokens; the end of an answer is one of them.

    Args:
        starts, lengths: of the answers in the rows of the pass.
    """
    spans = zip(part.rows, starts, lengths, strict=True)
    mask = pad_mask([[start <= place < start + length for place in range(len(row))] for row, start, length in spans])
    logits = config.engine.max_logits_mib << 20
    logprobs, _ = token_logprobs(model, part, mask.to(part.device), temperature=1.0, max_logits_bytes=logits)
    return logprobs.sum(1)


@torch.no_grad()
def answer_logprobs(
    model: Any,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    lengths: Sequence[int],
    config: Config,
    *,
    prompts: Sequence[int] | None = None,
) -> Tensor:
    """Log-probs [A] of answers, without gradient, on the host.

    Args:
        rows: whole conversations.
        starts, lengths: where in its row each answer stands.
        prompts: which prompt each answers.
    """
    found = torch.zeros(len(rows))
    for part in passes_of(model, rows=rows, max_tokens=config.engine.max_batch_tokens, together=prompts):
        index = list(part.index)
        sums = _logprobs(model, part, [starts[i] for i in index], [lengths[i] for i in index], config)
        found[index] = sums.cpu()
    return found


def logprobs_of(model: Any, rows: RankedRows, config: Config, *, records: int) -> Array:
    """Log-probs [A] of all answers of the first `records` records."""
    parts = [np.zeros(0, np.float32)]
    with progress("Log-probs of answers", records) as done:
        for first in range(0, records, CHUNK):
            spans = [rows.answers_of(number) for number in range(first, min(first + CHUNK, records))]
            span = slice(spans[0].start, spans[-1].stop)
            prompts = [number for number, mine in enumerate(spans) for _ in range(mine.start, mine.stop)]
            where = (rows.starts[span].tolist(), rows.lengths[span].tolist())
            parts.append(answer_logprobs(model, rows.answers[span], *where, config, prompts=prompts).numpy())
            done(len(spans))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Implicit:
    """What the policy makes of held-out preferences: D of their answers, in nats."""

    accuracy: Interval  # see `implicit`
    margin: Interval  # D of the better answer minus D of the worse, mean over prompts
    chosen: float  # mean D of the better answers
    rejected: float  # mean D of the worse
    chosen_tokens: float  # mean length of the better answers
    pairs: int  # clear preferences; of KTO, answers that are good or bad


def implicit(
    rows: RankedRows, gains: Array, questions: Sequence[Hashable], *, per_token: bool, compared: bool
) -> Implicit:
    """How far D tells better answers from worse.

    Of preferences the accuracy is the share whose better answer has the larger D, each question counting once. Of
    answers that are good or bad it is the probability that a good one has a larger D than a bad one, and the margin is
    the difference of their means.

    Args:
        gains: [A] D of every answer.
        questions: of the first records, which are looked at; equal ones are not independent.
        per_token: whether the loss compares log-probs per token.
        compared: whether it compares answers to one prompt; else it takes each by itself.
    """
    lengths = rows.lengths[: len(gains)]
    values = gains / lengths if per_token else gains
    pairs: list[tuple[int, int, Hashable]] = []
    for number in clear(rows)[: len(questions)].tolist() if compared else ():
        if number < len(questions):
            mine = rows.answers_of(number)
            found = pairs_of([rows.scores[mine].tolist()])
            places = zip(found.better.tolist(), found.worse.tolist(), strict=True)
            pairs += [(mine.start + b, mine.start + w, questions[number]) for b, w in places]
    if compared:
        better, worse = np.array([(b, w) for b, w, _ in pairs]).T
        whose = [question for _, _, question in pairs]
        accuracy = share((values[better] > values[worse]).astype(float).tolist(), whose)
        margin = mean_interval((gains[better] - gains[worse]).tolist(), whose)
    else:
        better, worse = (np.flatnonzero(rows.marks[: len(gains)] == mark) for mark in (1, -1))
        accuracy = separation(gains[better].tolist(), gains[worse].tolist())
        margin = difference_of_means(gains[worse].tolist(), gains[better].tolist())
    return Implicit(
        *(accuracy, margin),
        chosen=_mean(gains[better]),
        rejected=_mean(gains[worse]),
        chosen_tokens=_mean(lengths[better]),
        pairs=len(pairs) or len(better) + len(worse),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class PairsReport:
    """What the stage did, on held-out preferences and on answers sampled to their prompts."""

    loss: str
    implicit: Implicit
    before: PolicyScores  # the model it starts from
    after: PolicyScores
    ema: PolicyScores
    dropped_too_long: int
    unpaired: int  # records of no use to a loss that compares: they hold no clear preference
    steps: int
    skipped_steps: int

    @property
    def policies(self) -> dict[str, PolicyScores]:
        return {"before": self.before, "after": self.after, "ema": self.ema}

    def figures(self) -> dict[str, Any]:
        """The report without samples, for the manifest."""
        own = {name: value for name, value in vars(self).items() if name not in ("implicit", *self.policies)}
        means = self.reward_means()
        policies = {name: {"reward_mean": means[name], **scores.figures()} for name, scores in self.policies.items()}
        return {**own, **asdict(self.implicit), **policies}

    def reward_means(self) -> dict[str, float]:
        """Of each policy over the answers that have a reward before and after, each prompt once."""
        both = common(self.before.rewards, self.after.rewards)

        def mean(rewards: Sequence[float]) -> float:
            kept = [i for i in both if math.isfinite(rewards[i])]
            return mean_interval([rewards[i] for i in kept], [self.before.prompts[i] for i in kept]).value

        return {name: mean(scores.rewards) for name, scores in self.policies.items()}

    def samples(self, *, is_rewarded: bool) -> list[dict[str, Any]]:
        """Per held-out prompt the answers before and after and of the average, with their rewards if there are any."""
        who = {"sft": self.before, NAME: self.after, f"{NAME}-ema": self.ema}
        return [
            {"prompt": sample.messages[-1].content}
            | {name: scores.samples[i].answer for name, scores in who.items()}
            | {f"{name}_reward": scores.rewards[i] if is_rewarded else None for name, scores in who.items()}
            for i, sample in enumerate(self.before.samples)
        ]


def train_pairs(
    policy: Assistant,
    train: Sequence[Record],
    held_out: Sequence[Record],
    prompts: Prompts,
    rewards: Sequence[Reward],
    config: Config,
    run: StageRun,
) -> tuple[PairsReport, PairsTrainer]:
    """Train a policy in place on records with ranked or marked answers.

    Args:
        prompts: held-out ones, answered before and after.
        rewards: what those answers are scored with, if there is anything.
    Raises:
        DataError: if nothing is left to train or to measure on.
        Interrupted, TrainingStopped: see `runtime` and `loop`.
    """
    settings, tokenizer = config.pairs, policy.tokenizer
    compares = settings.loss != "kto"
    options: dict[str, Any] = {
        "stops": policy.stops,
        "max_tokens": policy.max_tokens,
        "on_error": config.data.on_error,
        "least": 2 if compares else 1,
    }
    rows, dropped = encode_ranked(tokenizer, train, **options)
    held_out_rows, also_dropped = encode_ranked(tokenizer, held_out, **options)
    usable = len(clear(rows)) if compares else int((rows.marks != 0).sum())
    measurable = len(clear(held_out_rows)) if compares else int((held_out_rows.marks != 0).sum())
    if not usable or not measurable:
        what = "two answers of different score" if compares else "an answer that is good or bad"
        raise DataError(
            f"pairs: no usable preference: {len(train)} records for training and {len(held_out)} held out, of which "
            f"{usable} and {measurable} have {what} of at most {policy.max_tokens} tokens. Give more data, or a model "
            "with a longer context and a larger --data.max_tokens."
            + (" Of marks without pairs, --pairs.loss kto learns." if compares else "")
        )
    check_held_out(prompts, stage=NAME)
    total = steps_of(settings, usable)
    trainer = PairsTrainer(policy, config, steps=total, on_skip=run.skipped)

    def evaluate() -> PolicyScores:
        return evaluate_policy(policy, trainer.reference, prompts, rewards, config)

    before = evaluate()
    state, start = run.resume(), 0
    if state is None:
        reference, held_out_reference = (
            logprobs_of(trainer.reference, of, config, records=len(of)) for of in (rows, held_out_rows)
        )
    else:
        with run.restoring():
            start = state["step"] + 1
            reference, held_out_reference = state["reference"].numpy(), state["held_out"].numpy()
            trainer.load_state_dict(state["trainer"])
    learned = Preferences(rows, reference, compared=compares)
    questions = [held_out[int(number)].prompt for number in held_out_rows.kept]
    compares_means = settings.loss in ("ipo", "simpo", "orpo") or settings.normalise

    def held_out_implicit(records: int) -> Implicit:
        found = logprobs_of(policy.model, held_out_rows, config, records=records)
        gains = found - held_out_reference[: len(found)]
        return implicit(held_out_rows, gains, questions[:records], per_token=compares_means, compared=compares)

    order = batches(len(learned), size=settings.batch, seed=config.seed, start=start)
    evaluate_every = max(1, total // EVALUATIONS)
    for step in run.steps(start, total):
        metrics = trainer.update(step, [learned[index] for index in next(order)])
        if (step + 1) % evaluate_every == 0:
            now = held_out_implicit(min(EVALUATED, len(held_out_rows)))
            metrics |= {"pairs/held_out_accuracy": now.accuracy.value, "pairs/held_out_margin": now.margin.value}
        run.log(step, metrics)
        references = {"reference": torch.from_numpy(reference), "held_out": torch.from_numpy(held_out_reference)}
        run.checkpoint(step, {**references, "trainer": trainer.state_dict()})
    last = held_out_implicit(len(held_out_rows))
    policy.engine.refresh()
    after = evaluate()
    with averaged(policy, trainer.learner, trainer.ema):
        ema = evaluate()
    report = PairsReport(
        loss=settings.loss,
        implicit=last,
        before=before,
        after=after,
        ema=ema,
        dropped_too_long=dropped + also_dropped,
        unpaired=len(rows) - usable + rows.lone if compares else 0,
        steps=total,
        skipped_steps=trainer.guard.skipped,
    )
    return report, trainer


def check(config: Config, data: Mapping[Stage, StageData]) -> None:
    """
    Raises:
        DataError: if there is nothing to learn from or to measure on, or too few held-out prompts for its gate.
    """
    sides = (data[NAME].train, data[NAME].held_out)
    if not any(sides):  # a stage before makes them
        return
    for side, records in zip(("train on", "measure on"), sides, strict=True):
        if lacking := _lacks(records, config.pairs.loss):
            raise DataError(f"pairs: no usable preference to {side}: {lacking}.")
    location = config.actor_model
    tokenizer = load_tokenizer(location)
    limit = min(declared_context(location) or config.data.max_tokens, config.data.max_tokens)
    check_held_out(_asked(config, data, tokenizer, load_stop_ids(location, tokenizer), limit), stage=NAME)


def _lacks(records: Sequence[Record], loss: str) -> str:
    """Why a loss can learn nothing from records; empty where it can. Reads no further than it must."""
    wanted = {1, -1}
    for record in records:
        if loss != "kto" and is_ranked(record):
            return ""
        wanted -= set(marks_of(record)) if loss == "kto" else set()
        if not wanted:
            return ""
    if loss != "kto":
        return "no record has two answers of different score. Of marks without pairs, --pairs.loss kto learns"
    kinds = " and ".join("good" if mark > 0 else "bad" for mark in sorted(wanted, reverse=True))
    return f"KTO needs good answers and bad ones, and none is {kinds}"


def total_steps(config: Config, records: int) -> int:
    return steps_of(config.pairs, records)


def step_size(config: Config) -> int:
    return config.pairs.batch


def measure(tokenizer: Any, records: Sequence[Record], **options: Any) -> tuple[int, int]:
    rows, _ = encode_ranked(tokenizer, records, **options, least=1)
    usable = len(clear(rows)) or int((rows.marks != 0).sum())
    return usable, sum(map(len, rows.answers))


def _asked(
    config: Config, data: Mapping[Stage, StageData], tokenizer: Any, stops: Sequence[int], limit: int
) -> Prompts:
    """Held-out prompts that are answered before and after."""
    room = limit - config.rl.max_new_tokens
    asked: dict[str, Any] = {"stops": stops, "max_tokens": room, "on_error": config.data.on_error}
    records = data[NAME].held_out
    order = permutation(len(records), config.data.split_seed, "evaluation")
    return encode_questions(tokenizer, records.take(order), **asked).first(config.rl.eval_prompts)


def run(run: Run) -> None:
    config, gold, sources = run.config, run.gold, sources_of(run)
    data = deal(config, sources)
    location = policy_location(run, NAME)
    policy = load_policy(run, location)
    held_out = data[NAME].held_out
    held_out = held_out.take(permutation(len(held_out), config.data.split_seed, "pairs"))  # the first ones are watched
    prompts = _asked(config, data, policy.tokenizer, policy.stops, policy.max_tokens)
    # what stage 3 is rewarded by may judge answers to its own prompts alone
    given = () if RL.name in config.stages else config.rl.rewards
    rewards = [load_reward(spec, config) for spec in given if parse_reward(spec)[0] != "trained"]
    stage = run.stage(NAME)
    gold_before = gold.scores(policy) if gold is not None else None
    report, trainer = train_pairs(policy, data[NAME].train, held_out, prompts, rewards, config, stage)
    judged, gold_summary = None, {}
    if gold is not None and gold_before is not None:
        gold_after = gold.scores(policy)
        gold_summary = gold.summary(gold_before, gold_after)
        judged = gold.judged(gold_before, gold_after, ())
    verdict = judge_pairs(report, config.gates, judged, left_out(NAME, data[NAME], report.dropped_too_long, sources))
    what = f"Assistant after learning from pairs ({config.pairs.loss})"
    leave_model(run, NAME, "model", policy, what=what, base=location, tags=[config.pairs.loss])
    with averaged(policy, trainer.learner, trainer.ema):
        leave_model(run, NAME, "ema", policy, what=f"{what}, averaged", base=location, tags=[config.pairs.loss])
    save_jsonl(run.directory / NAME / SAMPLES, report.samples(is_rewarded=bool(rewards)))
    summary: dict[str, Any] = {
        "pairs_accuracy": report.implicit.accuracy.value,
        "pairs_margin": report.implicit.margin.value,
    }
    if rewards:
        gain = paired_difference(report.before.rewards, report.after.rewards, report.before.prompts)
        means = report.reward_means()
        summary |= {"reward_mean_first": means["before"], "reward_mean_last": means["after"]}
        summary |= {"reward_gain_ci95": [gain.low, gain.high]}
    run.record(NAME, verdict, stage, f"{NAME}/model", summary | gold_summary, report=report.figures())
    if gold is not None and gold_before is not None:
        gold.show(run.screen, gold_before, gold_after, gold_summary, algorithm=config.pairs.loss.upper())
    else:
        show_answers(run, report.before, report.after, config.pairs.loss.upper())
