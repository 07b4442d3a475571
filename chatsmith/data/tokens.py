"""Tokenised rows on disk, under a hash of everything that decides what they are."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, TypeVar

import numpy as np

from chatsmith.data.chat import Encoded
from chatsmith.data.parallel import in_parallel, ranges_of
from chatsmith.data.records import Decoded, sha256_of, sizes_of
from chatsmith.data.store import Array, Entry, Lazy, Ragged, Writer, hash_of, stored
from chatsmith.errors import ConversationError, DataError
from chatsmith.types import Record

T = TypeVar("T")
OnError = Literal["raise", "skip"]
Columns = Mapping[str, Sequence[Any]]


class EncodedRows(Lazy[Encoded]):
    """Conversations or texts as `Encoded`, from disk."""

    def __init__(self, tokens: Ragged, targets: Ragged) -> None:
        self._tokens, self._targets = tokens, targets

    def __len__(self) -> int:
        return len(self._tokens)

    def row(self, index: int) -> Encoded:
        return Encoded(self._tokens.row(index).tolist(), self._targets.row(index).tolist())

    @property
    def lengths(self) -> Array:
        """[rows] tokens."""
        return self._tokens.lengths


def lengths_of(rows: Sequence[Encoded]) -> list[int]:
    """Tokens of each row; rows on disk need not be read for it."""
    lengths: list[int] = rows.lengths.tolist() if isinstance(rows, EncodedRows) else [len(row.tokens) for row in rows]
    return lengths


class TokenRows(Decoded[tuple[int, ...]]):
    """Token ids of prompts, from disk."""

    def __init__(self, tokens: Ragged) -> None:
        super().__init__(tokens, lambda raw: tuple(np.frombuffer(raw, np.int32).tolist()))


def place_errors(
    records: Sequence[Record], outcomes: Sequence[T | ConversationError], on_error: OnError
) -> list[T | None]:
    """What became of each record: None where template or tokenizer cannot carry it, and such are to be left out.

    Raises:
        DataError: at the first of them, with its place, where they are not.
    """
    for record, outcome in zip(records, outcomes, strict=True):
        if isinstance(outcome, ConversationError) and on_error == "raise":
            raise DataError(
                f"{record.origin or 'a record'}: {outcome} Or leave bad records out with --data.on_error skip."
            ) from outcome
    return [None if isinstance(outcome, ConversationError) else outcome for outcome in outcomes]


def as_bytes(rows: Sequence[Sequence[int]]) -> list[bytes]:
    """Rows of token ids as bytes of int32."""
    return [np.array(row, np.int32).tobytes() for row in rows]


def encoded(
    kind: str,
    tokenizer: Any,
    records: Sequence[Record],
    encode: Callable[[list[Record]], Sequence[Encoded]],
    *,
    settings: Sequence[object],
) -> EncodedRows:
    """All that `encode` makes of the records, given some at a time, as rows on disk."""

    def work(chunk: list[Record]) -> tuple[Columns, Columns]:
        rows = encode(chunk)
        return {"tokens": as_bytes([r.tokens for r in rows]), "targets": [bytes(r.targets) for r in rows]}, {}

    ragged = {"tokens": "i4", "targets": "?"}
    entry = prepared(kind, tokenizer, records, work, settings=settings, ragged=ragged, numbers={})
    return EncodedRows(entry.rows("tokens"), entry.rows("targets"))


def prepared(
    kind: str,
    tokenizer: Any,
    records: Sequence[Record],
    work: Callable[[list[Record]], tuple[Columns, Columns]],
    *,
    settings: Sequence[object],
    ragged: Mapping[str, str],
    numbers: Mapping[str, str],
) -> Entry:
    """The entry of what `work` makes of the records, given some at a time: its ragged rows and its numbers.

    Args:
        kind: what it is made for, with `settings` all that decides the result beside tokenizer and records.
        ragged, numbers: names and dtypes of the columns.
    """
    sha256 = sha256_of(records)
    key = None if sha256 is None else [sha256, tokenizer_hash(tokenizer), json.dumps(settings)]

    def write(writer: Writer) -> dict[str, Any]:
        def work_on(rows: range) -> tuple[Columns, Columns]:
            return work([records[i] for i in rows])

        what = f"Tokenising for {kind}"
        for rows, values in in_parallel(work_on, ranges_of(sizes_of(records)), what, len(records)):
            for name, column in rows.items():
                writer.rows(name, column)
            for name, column in values.items():
                writer.numbers(name, column)
        return {}

    return stored(kind, key, write, ragged=ragged, numbers=numbers)


def tokenizer_hash(tokenizer: Any) -> str:
    """Of all that decides which tokens a conversation becomes."""
    if tokenizer.is_fast:
        reading = tokenizer.backend_tokenizer.to_str()
    else:
        reading = json.dumps([tokenizer.get_vocab(), tokenizer.init_kwargs], sort_keys=True, default=str)
    names = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    template = str(tokenizer.chat_template)
    day = str(date.today()) if "strftime_now" in template else ""  # such a template writes it
    parts = (type(tokenizer).__name__, reading, names, template, day)
    return hash_of(*(hashlib.sha256(part.encode()).hexdigest() for part in parts))
