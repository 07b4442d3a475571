"""Stage 1: supervised fine-tuning on the best answer of each record."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatsmith.algo.losses import language_model_loss
from chatsmith.config import Config
from chatsmith.data.batch import batches
from chatsmith.data.chat import Encoded, try_encode, try_encode_prompts
from chatsmith.data.control import unknown_id
from chatsmith.data.formats import best_answer
from chatsmith.data.mix import StageData
from chatsmith.data.store import Array
from chatsmith.data.tokens import EncodedRows, OnError, encoded, lengths_of, place_errors
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import DataError
from chatsmith.intake import deal
from chatsmith.models.checkpointing import checkpoint_activations
from chatsmith.models.load import tokenizer_oddities
from chatsmith.models.passes import Pass, pad_mask
from chatsmith.models.scoring import passes_of, token_logprobs
from chatsmith.runs.run import Run
from chatsmith.runs.runtime import StageRun
from chatsmith.stages.inputs import leave_model, left_out, load_policy
from chatsmith.stages.inputs import sources as sources_of
from chatsmith.stages.loop import Guard, Trainable, as_text, learning_rate_factor, steps_of
from chatsmith.types import Message, Record, Stage
from chatsmith.verdicts import judge_sft

EVALUATIONS = 10  # held-out evaluations per run
GREEDY_SAMPLES = 64
COUNTED = 2_000  # rows in which unknown tokens are counted
COUNTED_ROWS = 20_000  # of which pairs of tokens are counted
PRIOR = 5.0  # tokens that the frequencies of single ones weigh among those of pairs


@dataclass(frozen=True)
class SftReport:
    """What stage 1 did. Losses are means over held-out target tokens, in nats."""

    held_out_loss_first: float
    held_out_loss_last: float
    held_out_loss_min: float
    eos_rate: float  # of greedy answers to held-out prompts
    repetition: float  # share of repeated 4-grams in them
    guessing_loss: float  # of the uniform distribution over the vocabulary
    dropped_too_long: int
    steps: int
    skipped_steps: int
    setback: float = 0.0  # largest rise of the held-out loss above its lowest before
    counting_loss: float = math.nan  # of counting which token follows which
    unknown_share: float = 0.0  # of the tokens, those for what the vocabulary has none for

    @property
    def perplexity(self) -> float:
        """exp of the held-out loss, over target tokens only."""
        return math.exp(min(self.held_out_loss_last, 700.0))


def train_sft(
    actor: Any,
    tokenizer: Any,
    train: Sequence[Record],
    held_out: Sequence[Record],
    config: Config,
    run: StageRun,
    *,
    stops: Sequence[int],
    max_tokens: int,
) -> SftReport:
    """Train `actor` in place.

    Args:
        train, held_out: records with at least one answer; the best-scored one is learned.
        stops: ids that end an answer.
        max_tokens: longest record; longer ones are dropped and counted.
    Raises:
        DataError: if no record is short enough.
        Interrupted, TrainingStopped: see `runtime` and `loop`.
    """
    settings = config.sft
    options: dict[str, Any] = {"stops": stops, "max_tokens": max_tokens, "on_error": config.data.on_error}
    rows, dropped = encode_best_answers(tokenizer, train, **options)
    held_out_rows, also_dropped = encode_best_answers(tokenizer, held_out, **options)
    if not rows or not held_out_rows:
        raise DataError(
            f"sft: no usable record: {len(train)} for training and {len(held_out)} held out, of which "
            f"{len(rows)} and {len(held_out_rows)} have at most {max_tokens} tokens. "
            "Give more data, or a model with a longer context and a larger --data.max_tokens."
        )
    total = total_steps(config, len(rows))
    if config.engine.activation_checkpointing:
        checkpoint_activations(actor)
    learner = Trainable(actor, settings, lr=settings.lr)
    guard = Guard("sft", run.skipped)
    evaluate_every = max(1, total // EVALUATIONS)

    def held_out_loss() -> float:
        return evaluate_language_model(actor, held_out_rows, config)

    state = run.resume()
    if state is None:
        start, losses = 0, [held_out_loss()]
    else:
        with run.restoring():
            start, losses = state["step"] + 1, [float(state["losses"][0]), *map(float, state["losses"][1:])]
            learner.load_state_dict(state["learner"])
            guard.load_state_dict(state["guard"])
    order = batches(len(rows), size=settings.batch, seed=config.seed, start=start)
    for step in run.steps(start, total):
        batch = [rows[index] for index in next(order)]
        loss = language_model_backward(learner, actor, batch, config, loss_on=settings.loss_on)
        factor = learning_rate_factor(settings, step, total)
        norms = guard.step([(learner, factor)], partial(as_text, tokenizer, [row.tokens for row in batch]))
        metrics = {
            "sft/loss": loss,
            "sft/lr": settings.lr * factor,
            "sft/fill": _fill(actor, batch, config),
            "sft/skipped": float(guard.skipped),
        }
        if norms is not None:
            metrics["sft/grad_norm"] = norms[0]
        if (step + 1) % evaluate_every == 0 or step == total - 1:
            losses.append(held_out_loss())
            metrics["sft/held_out_loss"] = losses[-1]
        run.log(step, metrics)
        run.checkpoint(step, {"losses": losses, "learner": learner.state_dict(), "guard": guard.state_dict()})
    eos_rate, repetition = _greedy_habits(actor, tokenizer, held_out, config, stops=stops, max_tokens=max_tokens)
    return SftReport(
        held_out_loss_first=losses[0],
        held_out_loss_last=losses[-1],
        held_out_loss_min=min(losses),
        eos_rate=eos_rate,
        repetition=repetition,
        guessing_loss=math.log(actor.config.get_text_config().vocab_size),
        dropped_too_long=dropped + also_dropped,
        steps=total,
        skipped_steps=guard.skipped,
        unknown_share=_unknown_share(tokenizer, rows),
        setback=max(now - min(losses[: index + 1]) for index, now in enumerate(losses)),
        counting_loss=counting_loss(rows, held_out_rows, vocabulary=actor.config.get_text_config().vocab_size),
    )


def total_steps(config: Config, records: int) -> int:
    return steps_of(config.sft, records)


def step_size(config: Config) -> int:
    return config.sft.batch


def measure(tokenizer: Any, records: Sequence[Record], **options: Any) -> tuple[int, int]:
    rows, _ = encode_best_answers(tokenizer, records, **options)
    return len(rows), sum(lengths_of(rows))


def counting_loss(train: Sequence[Encoded], held_out: Sequence[Encoded], *, vocabulary: int) -> float:
    """Held-out loss, in nats per target token, of counting in the training rows which token follows which.

    A model that does no better makes no use of its prompt.

    Source: smoothing by a Dirichlet prior, MacKay and Peto 1995, doi:10.1017/S1351324900000218.
    """
    (before, target), (asked_before, asked) = _neighbours(train), _neighbours(held_out)
    single = (np.bincount(target, minlength=vocabulary) + 1) / (len(target) + vocabulary)
    seen, counts = np.unique(before * vocabulary + target, return_counts=True)
    wanted = asked_before * vocabulary + asked
    place = np.searchsorted(seen, wanted).clip(max=len(seen) - 1)
    together = np.where(seen[place] == wanted, counts[place], 0)
    often = np.bincount(before, minlength=vocabulary)[asked_before]
    return float(-np.log((together + PRIOR * single[asked]) / (often + PRIOR)).mean())


def _neighbours(rows: Sequence[Encoded]) -> tuple[Array, Array]:
    """Each target token [N] of some of the rows, after the token before it [N]."""
    before, target = [], []
    for number in range(0, len(rows), math.ceil(len(rows) / COUNTED_ROWS)):
        row = rows[number]
        tokens, at = np.array(row.tokens, np.int64), np.flatnonzero(row.targets)
        before.append(tokens[at - 1])
        target.append(tokens[at])
    return np.concatenate(before), np.concatenate(target)


def encode_best_answers(
    tokenizer: Any, records: Sequence[Record], *, stops: Sequence[int], max_tokens: int, on_error: OnError = "raise"
) -> tuple[EncodedRows, int]:
    """Each record's conversation with its best-scored answer, and how many were left out: see `best_answers`."""

    def encode_chunk(chunk: list[Record]) -> list[Encoded]:
        return best_answers(tokenizer, chunk, stops=stops, max_tokens=max_tokens, on_error=on_error)

    rows = encoded("sft", tokenizer, records, encode_chunk, settings=[list(stops), max_tokens, on_error])
    return rows, len(records) - len(rows)


def best_answers(
    tokenizer: Any, records: Sequence[Record], *, stops: Sequence[int], max_tokens: int, on_error: OnError
) -> list[Encoded]:
    """Conversations with their best-scored answers, as long as they have at most `max_tokens`.

    Raises:
        DataError: at the first that the chat template cannot carry, unless `on_error` is "skip".
    """
    conversations = [(*record.prompt, Message("assistant", best_answer(record).content)) for record in records]
    rows = place_errors(records, try_encode(tokenizer, conversations, stops=stops), on_error)
    return [row for row in rows if row is not None and len(row.tokens) <= max_tokens]


def language_model_backward(
    learner: Trainable,
    model: Any,
    batch: Sequence[Encoded],
    config: Config,
    *,
    loss_on: str = "assistant",
    weight: float = 1.0,
) -> float:
    """Collect the gradient of weight * mean target-token loss of a batch; returns the unweighted loss."""
    losses = []
    count = torch.tensor(float(sum(sum(targets_of(row, loss_on)) for row in batch)))
    for part in _passes(model, batch, config):
        logprobs, mask = _target_logprobs(model, part, batch, config, loss_on)
        loss = language_model_loss(logprobs, mask, count=count.to(mask.device))
        learner.backward(weight * loss)
        losses.append(loss.detach())
    return math.fsum(torch.stack(losses).tolist())  # waits for the device once


def _passes(model: Any, rows: Sequence[Encoded], config: Config) -> list[Pass]:
    return passes_of(model, rows=[row.tokens for row in rows], max_tokens=config.engine.max_batch_tokens)


def _fill(model: Any, rows: Sequence[Encoded], config: Config) -> float:
    """Real tokens over what the passes they take could hold."""
    tokens = sum(len(row.tokens) for row in rows)
    return tokens / (len(_passes(model, rows, config)) * config.engine.max_batch_tokens)


@torch.no_grad()
def evaluate_language_model(model: Any, rows: Sequence[Encoded], config: Config) -> float:
    """Mean loss in nats over the target tokens of all rows."""
    total, count = 0.0, 0
    for part in _passes(model, rows, config):
        logprobs, mask = _target_logprobs(model, part, rows, config, "assistant")
        total -= logprobs.double().sum().item()
        count += int(mask.sum())
    return total / count


def targets_of(row: Encoded, loss_on: str) -> list[bool]:
    """Which tokens of a row are learned, as `sft.loss_on` says."""
    return row.targets if loss_on == "assistant" else [False] + [True] * (len(row.tokens) - 1)


def _target_logprobs(
    model: Any, part: Pass, rows: Sequence[Encoded], config: Config, loss_on: str
) -> tuple[Tensor, Tensor]:
    """Log-probs and mask [B, T] of what is learned from a pass over some of the rows."""
    mask = pad_mask([targets_of(rows[i], loss_on) for i in part.index]).to(model.device)
    budget = config.engine.max_logits_mib << 20
    logprobs, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=budget)
    return logprobs, mask


def _unknown_share(tokenizer: Any, rows: EncodedRows) -> float:
    """Of the tokens in rows that are spread evenly over all."""
    unknown = unknown_id(tokenizer)
    counted = [rows[i].tokens for i in range(0, len(rows), -(-len(rows) // COUNTED))]
    return 0.0 if unknown is None else sum(row.count(unknown) for row in counted) / sum(map(len, counted))


def _greedy_habits(
    actor: Any, tokenizer: Any, records: Sequence[Record], config: Config, *, stops: Sequence[int], max_tokens: int
) -> tuple[float, float]:
    """Share of greedy answers that end by themselves, and share of repeated 4-grams in them."""
    limit = config.rl.max_new_tokens
    prompts: list[list[int]] = []
    for start in range(0, len(records), GREEDY_SAMPLES):
        asked = [record.prompt for record in records[start : start + GREEDY_SAMPLES]]
        encoded_prompts = try_encode_prompts(tokenizer, asked, stops=stops)
        prompts += [p for p in encoded_prompts if isinstance(p, list) and len(p) + limit <= max_tokens]
        if len(prompts) >= GREEDY_SAMPLES:
            break
    prompts = prompts[:GREEDY_SAMPLES]
    if not prompts:
        return float("nan"), float("nan")
    engine = Engine(actor, max_batch=config.engine.max_batch)
    requests = [Request(tuple(prompt), limit, tuple(stops), Sampling(temperature=0.0), (0,)) for prompt in prompts]
    answers = [completions[0] for completions in engine.generate(requests)]
    grams = [(n, *a.tokens[i : i + 4]) for n, a in enumerate(answers) for i in range(len(a.tokens) - 3)]
    repetition = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return sum(a.finish_reason == "stop" for a in answers) / len(answers), repetition


def check(config: Config, data: Mapping[Stage, StageData]) -> None:
    pass


def run(run: Run) -> None:
    config = run.config
    sources = sources_of(run)
    data = deal(config, sources)["sft"]
    actor = load_policy(run, config.actor_model)
    stage = run.stage("sft")
    for oddity in tokenizer_oddities(config.actor_model):
        stage.warn(oddity)
    report = train_sft(
        actor.model,
        actor.tokenizer,
        data.train,
        data.held_out,
        config,
        stage,
        stops=actor.stops,
        max_tokens=actor.max_tokens,
    )
    verdict = judge_sft(report, left_out("sft", data, report.dropped_too_long, sources))
    leave_model(run, "sft", "model", actor, what="SFT model", base=config.actor_model)
    summary = {"sft_loss_first": report.held_out_loss_first, "sft_loss_last": report.held_out_loss_last}
    run.record("sft", verdict, stage, "sft/model", summary, report=asdict(report))
