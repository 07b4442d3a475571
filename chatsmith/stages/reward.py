"""Stage 2: a reward model from ranked answers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chatsmith.algo.losses import pairs_of, preference_loss
from chatsmith.config import Config
from chatsmith.data.batch import batches, micro_batches, pad
from chatsmith.data.chat import encode
from chatsmith.errors import DataError
from chatsmith.evaluate import Interval, correlation, expected_calibration_error, proportion
from chatsmith.models.reward import score_rows
from chatsmith.models.scoring import sequence_scores
from chatsmith.runtime import StageRun
from chatsmith.stages.loop import Guard, Trainable, learning_rate_factor
from chatsmith.types import Message, Record


@dataclass(frozen=True)
class Ranked:
    """A tokenised record of stage 2: its answers as whole conversations, with the scores that rank them."""

    rows: list[list[int]]
    scores: list[float]
    source: str


@dataclass(frozen=True)
class RewardReport:
    """What stage 2 did, measured on held-out clear preferences."""

    accuracy: Interval
    accuracy_by_source: dict[str, Interval]
    longer_wins: Interval  # the rule "the longer answer wins", or "the shorter", whichever fits the training part
    length_rule: str
    margins: list[float]
    calibration_error: float
    length_correlation: float
    dropped_too_long: int
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
    rows, dropped = encode_ranked(tokenizer, train, stops=stops, max_tokens=max_tokens)
    held_out_rows, _ = encode_ranked(tokenizer, held_out, stops=stops, max_tokens=max_tokens)
    if not rows or not any(len(set(row.scores)) > 1 for row in held_out_rows):
        raise DataError(
            f"reward: no usable preference: {len(train)} records for training and {len(held_out)} held out, of which "
            f"{len(rows)} and {len(held_out_rows)} have two answers of at most {max_tokens} tokens. "
            "Give more data, or a model with a longer context and a larger --data.max_tokens."
        )
    total = max(1, math.ceil(settings.epochs * len(rows) / settings.batch))
    learner = Trainable(model, settings, lr=settings.lr)
    guard = Guard("reward")
    start = 0
    state = run.resume()
    if state is not None:
        start = state["step"] + 1
        learner.load_state_dict(state["learner"])
        guard.load_state_dict(state["guard"])
    order = batches(len(rows), size=settings.batch, seed=config.seed, start=start)
    for step in run.steps(start, total):
        batch = [rows[index] for index in next(order)]
        metrics = _preference_backward(learner, model, tokenizer, batch, config)
        factor = learning_rate_factor(settings, step, total)
        norms = guard.step([(learner, factor)])
        metrics |= {"reward/lr": settings.lr * factor, "reward/skipped": float(guard.skipped)}
        if norms is not None:
            metrics["reward/grad_norm"] = norms[0]
        run.log(step, metrics)
        run.checkpoint(step, {"learner": learner.state_dict(), "guard": guard.state_dict()})
    return _report(model, tokenizer, rows, held_out_rows, config, dropped, guard.skipped)


def encode_ranked(
    tokenizer: Any, records: Sequence[Record], *, stops: Sequence[int], max_tokens: int
) -> tuple[list[Ranked], int]:
    """Tokenised records with two or more answers of at most `max_tokens`, and how many records were dropped."""
    answers = [(record, answer) for record in records for answer in record.answers]
    encoded = iter(
        encode(
            tokenizer,
            [(*record.prompt, Message("assistant", answer.content)) for record, answer in answers],
            stops=stops,
        )
    )
    kept = []
    for record in records:
        pairs = [(next(encoded).tokens, answer.score or 0.0) for answer in record.answers]
        pairs = [(tokens, score) for tokens, score in pairs if len(tokens) <= max_tokens]
        if len(pairs) >= 2:
            kept.append(Ranked([tokens for tokens, _ in pairs], [score for _, score in pairs], source_of(record)))
    return kept, len(records) - len(kept)


def source_of(record: Record) -> str:
    """The file or data set a record came from, without its line."""
    return record.origin.rpartition(":")[0] or record.origin.partition("[")[0] or "data"


def _preference_backward(
    learner: Trainable, model: Any, tokenizer: Any, batch: Sequence[Ranked], config: Config
) -> dict[str, float]:
    """Collect the gradient of the pair loss over a batch of prompts, in groups of whole prompts."""
    count = torch.tensor(float(len(batch)), device=model.device)
    widths = [max(map(len, prompt.rows)) * len(prompt.rows) for prompt in batch]
    loss_sum, right, clear = 0.0, 0, 0
    for group in micro_batches(widths, max_tokens=config.engine.max_batch_tokens):
        prompts = [batch[i] for i in group]
        rows = [row for prompt in prompts for row in prompt.rows]
        tokens, lengths = pad(rows, pad_id=tokenizer.pad_token_id)
        scores = sequence_scores(model, tokens.to(model.device), lengths.to(model.device))  # [A]
        pairs = pairs_of([prompt.scores for prompt in prompts]).to(model.device)
        loss = preference_loss(scores, pairs, count=count, margin=config.reward.margin, center=config.reward.center)
        learner.backward(loss)
        loss_sum += loss.item()
        is_clear = pairs.target == 1
        right += int((scores[pairs.better] > scores[pairs.worse])[is_clear].sum())
        clear += int(is_clear.sum())
    return {"reward/loss": loss_sum, "reward/accuracy": right / max(1, clear)}


def _report(
    model: Any,
    tokenizer: Any,
    train: Sequence[Ranked],
    held_out: Sequence[Ranked],
    config: Config,
    dropped: int,
    skipped: int,
) -> RewardReport:
    flat = [row for record in held_out for row in record.rows]
    scores = score_rows(model, tokenizer, flat, config.engine.max_batch_tokens)
    lengths = [len(row) for row in flat]
    pairs = _clear_pairs(held_out)
    margins = [scores[better] - scores[worse] for better, worse, _ in pairs]
    by_source: dict[str, list[bool]] = defaultdict(list)
    for (_, _, source), margin in zip(pairs, margins, strict=True):
        by_source[source].append(margin > 0)
    train_lengths = [len(row) for record in train for row in record.rows]
    longer = sum(train_lengths[b] > train_lengths[w] for b, w, _ in _clear_pairs(train))
    shorter = sum(train_lengths[b] < train_lengths[w] for b, w, _ in _clear_pairs(train))
    sign = 1 if longer >= shorter else -1
    ruled = sum(sign * (lengths[better] - lengths[worse]) > 0 for better, worse, _ in pairs)
    return RewardReport(
        accuracy=proportion(sum(margin > 0 for margin in margins), len(margins)),
        accuracy_by_source={source: proportion(sum(wins), len(wins)) for source, wins in by_source.items()},
        longer_wins=proportion(ruled, len(margins)),
        length_rule="longer wins" if sign > 0 else "shorter wins",
        margins=margins,
        calibration_error=expected_calibration_error(margins),
        length_correlation=correlation(scores, lengths),
        dropped_too_long=dropped,
        skipped_steps=skipped,
    )


def _clear_pairs(records: Sequence[Ranked]) -> list[tuple[int, int, str]]:
    """(index of the better answer, of the worse, source) over the answers of all records, ties left out."""
    pairs = pairs_of([record.scores for record in records])
    owners = [record.source for record in records for _ in record.rows]
    return [
        (better, worse, owners[better])
        for better, worse, target in zip(
            pairs.better.tolist(), pairs.worse.tolist(), pairs.target.tolist(), strict=True
        )
        if target == 1
    ]
