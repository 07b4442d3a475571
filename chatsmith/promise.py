"""What a stage will make of its data, before it begins: from the tokens of a sample of its records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.config import Config, StageName
from chatsmith.data.mix import StageData
from chatsmith.data.records import Chosen
from chatsmith.errors import DataError
from chatsmith.seeds import permutation
from chatsmith.stages.table import BY_NAME
from chatsmith.types import Record

SAMPLE = 1000  # records of each side


@dataclass(frozen=True)
class Promise:
    """How much of a stage's data is used, in how many steps. Exact where every record was tokenised."""

    stage: StageName
    train: int  # records short enough to be learned from
    held_out: int
    too_long: int
    limit: int  # longest record, or longest prompt, in tokens
    steps: int
    size: int  # of a step
    tokens: float  # read while training; in stage 3 prompts, and answers at their longest
    is_exact: bool

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        what = BY_NAME[self.stage].records
        dropped = f" ({about}{self.too_long} longer than {self.limit} tokens left out)" if self.too_long else ""
        return (
            f"{self.stage}: {about}{self.train} {what} to train on, {self.held_out} held out{dropped}; "
            f"steps: {about}{self.steps} of {self.size}; {'at most' if what == 'prompts' else 'about'} "
            f"{_rounded(self.tokens)} tokens"
        )


def promise(
    stage: StageName, data: StageData, config: Config, tokenizer: Any, stops: Sequence[int], limit: int
) -> Promise:
    """
    Args:
        data: as the stage will learn from it.
        limit: the longest conversation.
    Raises:
        DataError: if no record of the sample can be used.
    """
    work, asks = BY_NAME[stage].work, BY_NAME[stage].records == "prompts"
    answer = config.rl.max_new_tokens if asks else 0
    longest = limit - answer
    sides = [_measured(stage, records, config, tokenizer, stops, longest) for records in (data.train, data.held_out)]
    (train, tokens), (held_out, _) = sides
    records = len(data.train) + len(data.held_out)
    if not train or not held_out:
        raise DataError(
            f"{stage}: no usable record: of {len(data.train)} for training and {len(data.held_out)} held out, {train} "
            f"and {held_out} have what it takes in at most {longest} tokens. Give more data, or a model with a longer "
            "context and a larger --data.max_tokens."
        )
    steps, size = work.total_steps(config, train), work.step_size(config)
    total = steps * size * (tokens + answer)
    is_exact = max(len(data.train), len(data.held_out)) <= SAMPLE
    return Promise(stage, train, held_out, records - train - held_out, longest, steps, size, total, is_exact)


def _measured(
    stage: StageName, records: Chosen[Record], config: Config, tokenizer: Any, stops: Sequence[int], longest: int
) -> tuple[int, float]:
    """How many of the records can be used, and their mean tokens (of a record of stage 2: of all its answers)."""
    some = records.take(permutation(len(records), config.data.split_seed, "promise")[:SAMPLE])
    options: dict[str, Any] = {"stops": stops, "max_tokens": longest, "on_error": config.data.on_error}
    usable, tokens = BY_NAME[stage].work.measure(tokenizer, some, **options)
    return round(len(records) * usable / max(1, len(some))), tokens / max(1, usable)


def _rounded(count: float) -> str:
    """1234567 as "1.2 million"."""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.2g} {name}" if count < 100 * size else f"{count / size:.0f} {name}"
    return f"{count:.0f}"
