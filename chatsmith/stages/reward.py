"""Stage 2: a reward model from ranked answers."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from chatsmith.algo.losses import pairs_of, preference_loss
from chatsmith.config import Config
from chatsmith.data.chat import try_encode
from chatsmith.data.mix import StageData
from chatsmith.data.store import Array, Entry, Lazy, TokenRows
from chatsmith.data.tokens import Columns, OnError, as_bytes, place_errors, prepared
from chatsmith.errors import DataError, RewardError
from chatsmith.evaluate import (
    Interval,
    Reliability,
    correlation,
    expected_calibration_error,
    histogram,
    reliability,
    share,
)
from chatsmith.intake import deal
from chatsmith.models.checkpointing import checkpoint_activations
from chatsmith.models.load import check_reward_base, context_length, load_stop_ids, load_tokenizer, new_reward_model
from chatsmith.models.reward import RewardModel, score_rows
from chatsmith.models.scoring import passes_of, sequence_scores
from chatsmith.runs.run import Run
from chatsmith.runs.runtime import StageRun
from chatsmith.stages.inputs import ask, halves, leave_model, left_out, load_policy, policy_location, say_way
from chatsmith.stages.inputs import sources as sources_of
from chatsmith.stages.loop import Guard, Trainable, as_text, batches, learning_rate_factor, steps_of
from chatsmith.stages.rollout import mean_and_std
from chatsmith.types import Answer, Message, Record, Sample, Stage
from chatsmith.verdicts import judge_reward

OF_ANSWERS = {"starts": "i8", "lengths": "i8", "scores": "f8", "marks": "i8"}  # numbers of each, with their dtypes
STANDARDISING_SAMPLES = 512  # SFT answers that give a reward its unit


@dataclass(frozen=True)
class Ranked:
    """A tokenised record of stage 2: its answers as whole conversations, with the scores that rank them."""

    rows: list[list[int]]
    starts: list[int]  # where in its row each answer begins
    lengths: list[int]  # of the answers alone, in tokens
    scores: list[float]
    marks: list[int]  # 1: good, -1: bad, 0: neither; see `marks_of`


@dataclass(frozen=True)
class RewardReport:
    """What stage 2 did, measured on held-out clear preferences."""

    accuracy: Interval
    accuracy_by_source: dict[str, Interval]
    length_rule: str  # "longer wins" or "shorter wins", whichever fits the training part
    length_rule_accuracy: Interval
    pairs: int
    margins: dict[str, Sequence[float]]  # histogram of score(better) - score(worse)
    reliability: list[Reliability]
    calibration_error: float
    length_correlation: float
    dropped_too_long: int
    steps: int
    skipped_steps: int


def train_reward(
    model: Any,
    tokenizer: Any,
    train: Sequence[Record],
    held_out: Sequence[Record],
    config: Config,
    run: StageRun,
    *,
    stops: Sequence[int],
    max_tokens: int,
) -> RewardReport:
    """Train a reward model in place on records with two or more ranked answers.

    Args:
        model: `...ForSequenceClassification` with one label.
        max_tokens: longest conversation; longer answers are dropped, and records left with fewer than two of them.
    Raises:
        DataError: if nothing is left to train or to measure on.
        Interrupted, TrainingStopped: see `runtime` and `loop`.
    """
    settings = config.reward
    options: dict[str, Any] = {"stops": stops, "max_tokens": max_tokens, "on_error": config.data.on_error}
    rows, dropped = encode_ranked(tokenizer, train, **options)
    held_out_rows, also_dropped = encode_ranked(tokenizer, held_out, **options)
    if not rows or not any(_margins(held_out_rows, held_out_rows.scores)):
        raise DataError(
            f"reward: no usable preference: {len(train)} records for training and {len(held_out)} held out, of which "
            f"{len(rows)} and {len(held_out_rows)} have two answers of at most {max_tokens} tokens. "
            "Give more data, or a model with a longer context and a larger --data.max_tokens."
        )
    total = total_steps(config, len(rows))
    if config.engine.activation_checkpointing:
        checkpoint_activations(model)
    learner = Trainable(model, settings, lr=settings.lr)
    guard = Guard("reward", run.skipped)
    start = 0
    state = run.resume()
    if state is not None:
        with run.restoring():
            start = state["step"] + 1
            learner.load_state_dict(state["learner"])
            guard.load_state_dict(state["guard"])
    order = batches(len(rows), size=settings.batch, seed=config.seed, start=start)
    for step in run.steps(start, total):
        batch = [rows[index] for index in next(order)]
        metrics = _preference_backward(learner, model, batch, config)
        factor = learning_rate_factor(settings, step, total)
        rows_of_batch = [row for prompt in batch for row in prompt.rows]
        norms = guard.step([(learner, factor)], partial(as_text, tokenizer, rows_of_batch))
        metrics |= {"reward/lr": settings.lr * factor, "reward/skipped": float(guard.skipped)}
        if norms is not None:
            metrics["reward/grad_norm"] = norms[0]
        run.log(step, metrics)
        run.checkpoint(step, {"learner": learner.state_dict(), "guard": guard.state_dict()})
    asked = [held_out[int(number)] for number in held_out_rows.kept]
    return _report(model, rows, held_out_rows, asked, config, dropped + also_dropped, total, guard.skipped)


def total_steps(config: Config, records: int) -> int:
    return steps_of(config.reward, records)


def step_size(config: Config) -> int:
    return config.reward.batch


def measure(tokenizer: Any, records: Sequence[Record], **options: Any) -> tuple[int, int]:
    rows, _ = encode_ranked(tokenizer, records, **options)
    return len(rows), sum(map(len, rows.answers))


class RankedRows(Lazy[Ranked]):
    """`Ranked` from disk.

    Through all answers of all records, in order: `answers`, whole conversations; where the answer alone `starts` [A],
    and `lengths` [A]; `scores` [A]; `marks` [A]. `ends` [records] counts the answers up to each record's last; `kept`
    says which records these are, `lone` how many more never had enough answers.
    """

    def __init__(self, entry: Entry) -> None:
        self.answers = TokenRows(entry.rows("tokens"))
        self.starts, self.lengths = entry.numbers("starts"), entry.numbers("lengths")
        self.scores, self.marks = entry.numbers("scores"), entry.numbers("marks")
        self.ends = entry.numbers("answers").cumsum()
        self.kept = np.flatnonzero(entry.numbers("kept"))
        self.lone = int(entry.numbers("lone").sum())

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> Ranked:
        mine = self.answers_of(index)
        return Ranked(
            rows=[list(row) for row in self.answers[mine]],
            starts=self.starts[mine].tolist(),
            lengths=self.lengths[mine].tolist(),
            scores=self.scores[mine].tolist(),
            marks=self.marks[mine].tolist(),
        )

    def answers_of(self, index: int) -> slice:
        """Which of all answers are those of a record."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


def encode_ranked(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    stops: Sequence[int],
    max_tokens: int,
    on_error: OnError = "raise",
    least: int = 2,
) -> tuple[RankedRows, int]:
    """Tokenised records with `least` or more answers of at most `max_tokens`, and how many were too long for that.

    Raises:
        DataError: at the first answer that the chat template cannot carry, unless `on_error` is "skip".
    """

    def encode_chunk(chunk: list[Record]) -> tuple[Columns, Columns]:
        ranked = _ranked(tokenizer, chunk, stops=stops, max_tokens=max_tokens, on_error=on_error)
        kept = [record for record in ranked if len(record.rows) >= least]
        numbers: Columns = {
            "answers": [len(record.rows) for record in kept],
            **{name: [x for record in kept for x in getattr(record, name)] for name in OF_ANSWERS},
            "kept": [len(record.rows) >= least for record in ranked],
            "lone": [len(record.answers) < least for record in chunk],
        }
        return {"tokens": as_bytes([row for record in kept for row in record.rows])}, numbers

    entry = prepared(
        *("reward", tokenizer, records, encode_chunk),
        settings=[list(stops), max_tokens, on_error, least],
        ragged={"tokens": "i4"},
        numbers={"answers": "i8", **OF_ANSWERS, "kept": "?", "lone": "?"},
    )
    rows = RankedRows(entry)
    return rows, len(records) - len(rows) - rows.lone


def _ranked(
    tokenizer: Any, records: Sequence[Record], *, stops: Sequence[int], max_tokens: int, on_error: OnError
) -> list[Ranked]:
    """The records with those of their answers that are short enough."""
    answers = [(record, answer) for record in records for answer in record.answers]
    conversations = [(*record.prompt, Message("assistant", answer.content)) for record, answer in answers]
    asked = [record for record, _ in answers]
    rows = iter(place_errors(asked, try_encode(tokenizer, conversations, stops=stops), on_error))
    ranked = []
    for record in records:
        marked = zip(record.answers, marks_of(record), strict=True)
        scored = [(next(rows), answer.score or 0.0, mark) for answer, mark in marked]
        one = Ranked([], [], [], [], [])
        for row, score, mark in scored:
            if row is not None and len(row.tokens) <= max_tokens:
                answer = last_answer(row.targets)
                one.rows.append(row.tokens)
                one.starts.append(answer.start)
                one.lengths.append(len(answer))
                one.scores.append(score)
                one.marks.append(mark)
        ranked.append(one)
    return ranked


def last_answer(targets: Sequence[bool]) -> range:
    """Where the last answer of a conversation stands: its last run of target tokens."""
    end = len(targets) - next(place for place, target in enumerate(reversed(targets)) if target)
    start = next((place + 1 for place in reversed(range(end)) if not targets[place]), 0)
    return range(start, end)


def marks_of(record: Record) -> list[int]:
    """Of each answer, 1: good, -1: bad, 0: neither. It is what it was marked; else the best is good, the worst bad."""
    scores = [answer.score or 0.0 for answer in record.answers]
    low, high = min(scores, default=0.0), max(scores, default=0.0)

    def mark(answer: Answer, score: float) -> int:
        if answer.is_marked:
            return 1 if score > 0 else -1
        return (score == high) - (score == low)

    return list(map(mark, record.answers, scores))


def source_of(record: Record) -> str:
    """The file or data set a record came from, without its line."""
    return record.origin.rpartition(":")[0] or record.origin.partition("[")[0] or "data"


def _preference_backward(learner: Trainable, model: Any, batch: Sequence[Ranked], config: Config) -> dict[str, float]:
    """Collect the gradient of the pair loss over a batch of prompts, in passes of whole prompts."""
    count = torch.tensor(float(len(batch)), device=model.device)
    rows = [row for prompt in batch for row in prompt.rows]
    whose = [number for number, prompt in enumerate(batch) for _ in prompt.rows]
    found = []
    for part in passes_of(model, rows=rows, max_tokens=config.engine.max_batch_tokens, together=whose, whole=True):
        scores = sequence_scores(model, part)  # [A]
        prompts = dict.fromkeys(whose[row] for row in part.index)  # in their order: no prompt's rows are divided
        pairs = pairs_of([batch[number].scores for number in prompts]).to(model.device)
        loss = preference_loss(scores, pairs, count=count, margin=config.reward.margin, center=config.reward.center)
        learner.backward(loss)
        is_clear = pairs.target == 1
        is_right = is_clear & (scores[pairs.better] > scores[pairs.worse])
        found.append(torch.stack([loss.detach(), is_right.sum(), is_clear.sum()]))
    loss_sum, right, clear = map(sum, zip(*torch.stack(found).tolist(), strict=True))  # waits for the device once
    return {"reward/loss": loss_sum, "reward/accuracy": right / max(1, clear)}


def _report(
    model: Any,
    train: RankedRows,
    held_out: RankedRows,
    asked: Sequence[Record],
    config: Config,
    dropped: int,
    steps: int,
    skipped: int,
) -> RewardReport:
    """
    Args:
        asked: the records of the held-out rows.
    """
    prompts = np.repeat(np.arange(len(held_out)), np.diff(held_out.ends, prepend=0)).tolist()
    scores = score_rows(model, held_out.answers, config.engine.max_batch_tokens, prompts=prompts)
    lengths = held_out.lengths.tolist()
    margins = _margins(held_out, scores)
    every_margin = [margin for values in margins for margin in values]
    questions = [record.prompt for record in asked]
    by_source: dict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(asked):
        by_source[source_of(record)].append(number)
    longer = [sum(margin > 0 for margin in values) / len(values) for values in _margins(train, train.lengths) if values]
    sign = 1.0 if sum(longer) >= 0.5 * len(longer) else -1.0
    return RewardReport(
        accuracy=_accuracy(margins, questions),
        accuracy_by_source={
            source: _accuracy([margins[n] for n in numbers], [questions[n] for n in numbers])
            for source, numbers in by_source.items()
        },
        length_rule_accuracy=_accuracy(_margins(held_out, [sign * length for length in lengths]), questions),
        length_rule="longer wins" if sign > 0 else "shorter wins",
        pairs=len(every_margin),
        margins=histogram(every_margin),
        reliability=reliability(every_margin),
        calibration_error=expected_calibration_error(reliability(every_margin)),
        length_correlation=correlation(scores, lengths),
        dropped_too_long=dropped,
        steps=steps,
        skipped_steps=skipped,
    )


def _margins(records: RankedRows, values: Sequence[float] | Array) -> list[list[float]]:
    """Per record, value of the better answer minus value of the worse over its clear pairs; ties are left out.

    Args:
        values: one per answer, through all records in order.
    """
    margins = []
    for number in range(len(records)):
        mine = records.answers_of(number)
        pairs = pairs_of([records.scores[mine].tolist()])
        own = values[mine]
        rows = zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.target.tolist(), strict=True)
        margins.append([float(own[b] - own[w]) for b, w, target in rows if target == 1])
    return margins


def _accuracy(margins: Sequence[Sequence[float]], questions: Sequence[Hashable]) -> Interval:
    """Share of clear pairs won, each question counting once: pairs of one are not independent of each other."""
    wins = [float(margin > 0) for values in margins for margin in values]
    return share(wins, [question for question, values in zip(questions, margins, strict=True) for _ in values])


def score_unit(scorer: RewardModel, samples: Sequence[Sample]) -> tuple[float, float]:
    """Mean and deviation of a reward model's scores of answers that ended; PPO scores the others by itself.

    Where fewer than two ended, all of them are scored.

    Raises:
        RewardError: if it scores fewer than two answers: one has no deviation.
    """
    scores: list[float] = []
    for answers in ([sample for sample in samples if sample.finish_reason == "stop"], list(samples)):
        if len(scores) < 2 and answers:
            scores = [score for score in scorer(answers) if score is not None and math.isfinite(score)]
    if len(scores) < 2:
        raise RewardError(
            f"the reward model gave a finite score to {len(scores)} of {len(samples)} answers of the SFT model; two or "
            "more give its scores a unit. Give more prompts, or a reward model with a longer context."
        )
    return mean_and_std(scores)


def check(config: Config, data: Mapping[Stage, StageData]) -> None:
    check_reward_base(config.reward_model or config.actor_model)


def run(run: Run) -> None:
    config = run.config
    asked = load_policy(run, policy_location(run, "reward"))
    sources = sources_of(run)
    data = deal(config, sources)
    location = config.reward_model or policy_location(run, "reward")
    tokenizer = load_tokenizer(location)
    model = new_reward_model(location, tokenizer, seed=config.seed, dtype=run.dtype, device=run.device)
    say_way(run, model)
    limit = min(config.data.max_tokens, context_length(model) or config.data.max_tokens)
    stops = load_stop_ids(location, tokenizer)
    stage = run.stage("reward")
    learned, _ = halves(config, data["reward"].train)
    report = train_reward(
        model, tokenizer, learned, data["reward"].held_out, config, stage, stops=stops, max_tokens=limit
    )
    scorer = RewardModel(model, tokenizer, stops, 0.0, 1.0, config.engine.max_batch_tokens)
    prompts = data["rl"].train or data["reward"].train
    mean, std = score_unit(scorer, ask(run, asked, prompts, STANDARDISING_SAMPLES))
    model.config.score_mean, model.config.score_std = mean, std
    facts: dict[str, Any] = {"report": asdict(report), "score_mean": mean, "score_std": std}
    aspects = run.gold.aspects(scorer, asked) if run.gold is not None else {}
    if aspects:
        facts["accuracy_by_aspect"] = {aspect: accuracy.value for aspect, accuracy in aspects.items()}
    unused = left_out("reward", replace(data["reward"], train=learned), report.dropped_too_long, sources)
    verdict = judge_reward(report, score_std=std, aspects=aspects, left_out=unused)
    leave_model(run, "reward", "model", scorer, what="Reward model", base=location)
    run.record("reward", verdict, stage, "reward/model", {"reward_accuracy": report.accuracy.value}, **facts)
    if run.gold is not None:
        run.gold.show_aspects(run.screen, aspects)
