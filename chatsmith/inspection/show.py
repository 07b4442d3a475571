"""The exact tokens that a stage sees of a record, made by the functions that the stage itself uses."""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.algo.losses import pairs_of
from chatsmith.config import Config
from chatsmith.data.chat import Encoded, encode_texts
from chatsmith.data.formats import stages_of, unable
from chatsmith.data.mix import StageData
from chatsmith.data.sources import Source
from chatsmith.data.spec import STAGES
from chatsmith.engine.text import token_texts
from chatsmith.errors import DataError
from chatsmith.inspection.readers import Reader
from chatsmith.seeds import derive_seed
from chatsmith.stages.reward import encode_ranked
from chatsmith.stages.rollout import encode_questions
from chatsmith.stages.sft import encode_best_answers, targets_of
from chatsmith.types import Record, Stage


@dataclass(frozen=True)
class Token:
    """One token: its text, or its name if it is special; "" where its bytes are only part of a character."""

    text: str
    is_learned: bool
    is_special: bool


@dataclass(frozen=True)
class Row:
    """One row of tokens, under a title, and what becomes of it: "" or why it is dropped."""

    title: str
    tokens: tuple[Token, ...]
    fate: str


@dataclass(frozen=True)
class View:
    """A record as one stage sees it."""

    stage: Stage
    where: str
    rows: tuple[Row, ...]
    note: str


def sample(data: Mapping[Stage, StageData], stage: Stage, count: int, *, seed: int) -> list[Record]:
    """Some of the records that a stage trains on, drawn by the seed.

    Raises:
        DataError: if it has none.
    """
    records = data[stage].train
    if not records:
        raise DataError(
            f"{stage}: no record of these sources goes there. Name the stage before the source, as in {stage}:FILE, or "
            "look at another one with --stage."
        )
    numbers = random.Random(derive_seed(seed, "data show")).sample(range(len(records)), min(count, len(records)))
    return [records[number] for number in sorted(numbers)]


def at(sources: Sequence[Source], place: str, stage: Stage) -> Record:
    """The record at "file:line" or "file[row]"; of the path its end is enough.

    Raises:
        DataError: if there is none, or it cannot serve the stage.
    """
    for source in sources:
        for record in source.records:
            if record.origin == place or record.origin.endswith(f"/{place}"):
                if unable(record, [stage]):
                    raise DataError(f"{place}: cannot serve {stage}. Give --stage {', '.join(stages_of(record))}.")
                return record
        for dropped in source.dropped:
            if dropped.origin == place or dropped.origin.endswith(f"/{place}"):
                raise DataError(f"{dropped.origin}: left out: {dropped.reason}.")
    raise DataError(f"--at {place}: no such record. Lines are written FILE:12, rows of .json and .parquet FILE[11].")


def whereabouts(data: Mapping[Stage, StageData], record: Record) -> str:
    """Which stages have a record, and on which side."""
    found = [
        f"{stage}, {side}"
        for stage, sides in data.items()
        for side, records in (("to train on", sides.train), ("held out", sides.held_out))
        if any(other.origin == record.origin for other in records)
    ]
    return "; ".join(found) or "no stage"


def view(record: Record, stage: Stage, reader: Reader, config: Config) -> View:
    """A record as `stage` sees it, whether or not it is dealt to it.

    Raises:
        ModelError: if the chat template cannot be used.
    """
    reading = _text if record.text else _answered
    make = dict(zip(STAGES, (_answered, _compared, _ranked, _asked, reading), strict=True))[stage]
    rows, note = make(record, reader, config)
    return View(stage, record.origin, tuple(rows), note)


def _answered(record: Record, reader: Reader, config: Config) -> tuple[list[Row], str]:
    (row,), _ = encode_best_answers(reader.tokenizer, [record], stops=reader.stops, max_tokens=sys.maxsize)
    row = Encoded(row.tokens, targets_of(row, config.sft.loss_on))
    title = f"the best of {len(record.answers)} answers" if len(record.answers) > 1 else ""
    return [Row(title, _tokens(reader.tokenizer, row), _fate(row.tokens, reader))], ""


def _compared(record: Record, reader: Reader, config: Config) -> tuple[list[Row], str]:
    return _ranked(record, reader, config, least=1, how="log-probs of the answers are compared with those before")


def _ranked(
    record: Record,
    reader: Reader,
    config: Config,
    *,
    least: int = 2,
    how: str = "the score is read at the last token",
) -> tuple[list[Row], str]:
    options: dict[str, Any] = {"stops": reader.stops, "max_tokens": sys.maxsize, "least": least}
    (ranked,), _ = encode_ranked(reader.tokenizer, [record], **options)
    question = _prompt(record, reader)
    rows = []
    for number, (tokens, score) in enumerate(zip(ranked.rows, ranked.scores, strict=True), 1):
        is_answer = [place >= len(question) for place in range(len(tokens))]
        title = f"answer {number}, score {score:g}"
        rows.append(Row(title, _tokens(reader.tokenizer, Encoded(tokens, is_answer)), _fate(tokens, reader)))
    kept = [number for number, row in enumerate(rows) if not row.fate]
    if len(kept) < least:
        return rows, f"dropped: fewer than {'two answers are' if least == 2 else 'one answer is'} short enough"
    pairs = pairs_of([[ranked.scores[number] for number in kept]])
    named = [
        f"{kept[better] + 1} {'>' if target == 1 else '='} {kept[worse] + 1}"
        for better, worse, target in zip(*(x.tolist() for x in (pairs.better, pairs.worse, pairs.target)), strict=True)
    ]
    weight = f", each with weight 1/{len(named)}" if len(named) > 1 else ""
    return rows, f"{how}; pairs: {', '.join(named) or 'none'}{weight}"


def _asked(record: Record, reader: Reader, config: Config) -> tuple[list[Row], str]:
    question = _prompt(record, reader)
    row = Encoded(question, [False] * len(question))
    note = f"here the policy answers, in up to {config.rl.max_new_tokens} tokens, and learns from all of its own"
    return [Row("", _tokens(reader.tokenizer, row), _fate(question, reader))], note


def _text(record: Record, reader: Reader, config: Config) -> tuple[list[Row], str]:
    rows = encode_texts(reader.tokenizer, [record.text], max_tokens=reader.limit)
    titles = [f"row {number} of {len(rows)}" if len(rows) > 1 else "" for number in range(1, len(rows) + 1)]
    return [Row(title, _tokens(reader.tokenizer, row), "") for title, row in zip(titles, rows, strict=True)], ""


def _prompt(record: Record, reader: Reader) -> list[int]:
    prompts = encode_questions(reader.tokenizer, [record], stops=reader.stops, max_tokens=sys.maxsize)
    return list(prompts.tokens[0])


def _fate(tokens: Sequence[int], reader: Reader) -> str:
    return f"dropped: {len(tokens)} tokens, and the limit is {reader.limit}" if len(tokens) > reader.limit else ""


def _tokens(tokenizer: Any, row: Encoded) -> tuple[Token, ...]:
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(row.tokens)
    return tuple(
        Token(name if id in special else text, is_learned, id in special)
        for id, text, name, is_learned in zip(
            row.tokens, token_texts(tokenizer, row.tokens), names, row.targets, strict=True
        )
    )
