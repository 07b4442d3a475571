"""Records as the stages read them: their tokens, the limit on them, and which of them are too long.

Without a model they are counted in characters, and torch and transformers are not loaded.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.config import Config
from chatsmith.data.chat import encode_texts
from chatsmith.data.control import unknown_id
from chatsmith.data.formats import best_answer
from chatsmith.data.spec import ASKING, COMPARING, IMITATING, RANKING, READING, OnError
from chatsmith.errors import DataError
from chatsmith.types import Record, Stage


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a stage, the ids that end an answer, and the longest prompt and answer together.

    `limit` is that of the prompt alone in stage rl.
    """

    tokenizer: Any
    stops: tuple[int, ...]
    limit: int


def readers(config: Config) -> dict[Stage, Reader]:
    """How each stage of a run reads; empty where the configuration names no model.

    Raises:
        ModelError: if a model's tokenizer cannot be loaded.
    """
    if not config.actor_model:
        return {}
    actor = _reader(config.actor_model, config)
    prompts = Reader(actor.tokenizer, actor.stops, actor.limit - config.rl.max_new_tokens)
    reward = _reader(config.reward_model, config) if config.reward_model else actor
    return {IMITATING: actor, COMPARING: actor, RANKING: reward, ASKING: prompts, READING: actor}


def _reader(location: str, config: Config) -> Reader:
    from chatsmith.models.load import declared_context, load_stop_ids, load_tokenizer

    tokenizer = load_tokenizer(location)
    limit = min(config.data.max_tokens, declared_context(location) or config.data.max_tokens)
    return Reader(tokenizer, load_stop_ids(location, tokenizer), limit)


@dataclass(frozen=True)
class Length:
    """Of one conversation. `answer` is 0 where there is none to learn."""

    prompt: int
    answer: int

    @property
    def whole(self) -> int:
        """Of prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Measured:
    """What a stage makes of records: lengths of its conversations, tokens in them, and of these unknown ones.

    `too_long` records are dropped, and so are the `refused`: the places of what no template or tokenizer can carry, and
    why. Where one answer of several is refused, the record may be kept.
    """

    lengths: list[Length]
    too_long: int = 0
    tokens: int = 0
    unknown: int = 0
    refused: Sequence[tuple[str, str]] = ()


def measured(stage: Stage, records: Sequence[Record], reader: Reader) -> Measured:
    """Tokens of every conversation that a stage makes of records."""
    rows, lengths, too_long = _token_rows(stage, records, reader, "skip")
    unknown = unknown_id(reader.tokenizer)
    refused = []
    expected = sum(len(record.answers) if stage in (COMPARING, RANKING) else 1 for record in records)
    for record in records if len(lengths) < expected else ():
        try:
            _token_rows(stage, [record], reader, "raise")
        except DataError as error:
            refused.append((record.origin, str(error.__cause__)))
    count = 0 if unknown is None else sum(row.count(unknown) for row in rows)
    return Measured(lengths, too_long, sum(map(len, rows)), count, refused)


def _token_rows(
    stage: Stage, records: Sequence[Record], reader: Reader, on_error: OnError
) -> tuple[list[Sequence[int]], list[Length], int]:
    """The rows of a stage, their lengths, and how many records it drops as too long."""
    from chatsmith.stages.reward import encode_ranked
    from chatsmith.stages.rollout import encode_questions
    from chatsmith.stages.sft import encode_best_answers

    options: dict[str, Any] = {"stops": reader.stops, "max_tokens": sys.maxsize, "on_error": on_error}
    if stage in (COMPARING, RANKING):
        ranked, _ = encode_ranked(reader.tokenizer, records, **options, least=1 if stage == COMPARING else 2)
        rows = [list(zip(map(len, record.rows), record.lengths, strict=True)) for record in ranked]
        too_long = sum(sum(whole <= reader.limit for whole, _ in row) < min(2, len(row)) for row in rows)
        lengths = [Length(whole - answer, answer) for row in rows for whole, answer in row]
        return [row for record in ranked for row in record.rows], lengths, too_long
    if stage == ASKING:
        prompts = encode_questions(reader.tokenizer, records, **options).tokens
        too_long = sum(len(prompt) > reader.limit for prompt in prompts)
        return list(prompts), [Length(len(prompt), 0) for prompt in prompts], too_long
    encoded, _ = encode_best_answers(reader.tokenizer, [r for r in records if r.answers], **options)
    too_long = sum(len(row.tokens) > reader.limit for row in encoded)
    texts = encode_texts(reader.tokenizer, [record.text for record in records if record.text], max_tokens=sys.maxsize)
    every = [*encoded, *texts]
    lengths = [Length(len(row.tokens) - sum(row.targets), sum(row.targets)) for row in every]
    return [row.tokens for row in every], lengths, too_long


def character_lengths(stage: Stage, records: Sequence[Record]) -> list[Length]:
    """The same in characters, without a tokenizer."""
    lengths = []
    for record in records:
        prompt = sum(len(turn.content) for turn in record.prompt)
        answers = [len(answer.content) for answer in record.answers]
        if record.text or stage == ASKING:
            lengths.append(Length(prompt, len(record.text)))
        elif stage in (COMPARING, RANKING):
            lengths += [Length(prompt, answer) for answer in answers]
        else:
            lengths.append(Length(prompt, len(best_answer(record).content)))
    return lengths
