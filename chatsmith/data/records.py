"""Records on disk, and choices among them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from chatsmith.data.store import Array, Lazy, Ragged
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record

T = TypeVar("T")


class Decoded(Lazy[T]):
    """Stored rows as objects."""

    def __init__(self, rows: Ragged, decode: Callable[[bytes], T]) -> None:
        self._rows, self._decode = rows, decode

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> T:
        return self._decode(self._rows.read(index))

    @property
    def sizes(self) -> Array:
        """[rows] bytes on disk."""
        return self._rows.lengths


class Chosen(Sequence[T]):
    """Rows of several sequences, counted through them all and chosen by number; a row may be chosen more than once.

    `numbers` holds them, `parts` the sequences. `sha256` tells what the parts hold, where that is known.
    """

    def __init__(self, parts: Sequence[Sequence[T]], index: Array, sha256: str | None = None) -> None:
        self.parts, self.numbers, self._parts_sha256 = parts, index, sha256
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Chosen[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Chosen[T]":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        number = int(self.numbers[index])
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self.parts[part][number - int(self._ends[part - 1] if part else 0)]

    def take(self, index: Array) -> "Chosen[T]":
        """Some of these rows, in the order of `index`."""
        return Chosen(self.parts, self.numbers[index], self._parts_sha256)

    @property
    def sha256(self) -> str | None:
        """Of all that the chosen rows hold, in their order; None where it would have to be computed."""
        if self._parts_sha256 is None:
            return None
        return hashlib.sha256(self._parts_sha256.encode() + self.numbers.tobytes()).hexdigest()


def choose(rows: Sequence[T], index: Array) -> Chosen[T]:
    """Some of the rows, in the order of `index`."""
    return rows.take(index) if isinstance(rows, Chosen) else Chosen([rows], index)


def sizes_of(rows: Sequence[Any]) -> Array:
    """[rows] about how large each is, in bytes; 0 where it is in memory anyway."""
    if isinstance(rows, Decoded):
        return rows.sizes
    if isinstance(rows, Chosen):
        return np.concatenate([np.zeros(0, np.int64), *map(sizes_of, rows.parts)])[rows.numbers]
    return np.zeros(len(rows), np.int64)


def sha256_of(records: Sequence[Record]) -> str | None:
    """What tells these records from others, if it is known without reading them."""
    return records.sha256 if isinstance(records, Chosen) else None


def to_bytes(record: Record) -> bytes:
    """A record as JSON.

    Raises:
        DataError: if its fields hold what JSON has no word for.
    """
    held = {
        "prompt": [[turn.role, turn.content] for turn in record.prompt],
        "answers": [[answer.content, answer.score, answer.is_marked] for answer in record.answers],
        "text": record.text,
        "fields": record.fields,
        "origin": record.origin,
        "unused": record.unused,
    }
    try:
        # half of a surrogate pair may stand in a field that nobody uses, or in the name of a file
        return json.dumps(held, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"its fields cannot be kept: {error}; return plain text, numbers and lists") from None


def from_bytes(raw: bytes) -> Record:
    """The record that `to_bytes` wrote."""
    held: dict[str, Any] = json.loads(raw.decode("utf-8", "surrogatepass"))
    return Record(
        prompt=tuple(Message(role, content) for role, content in held["prompt"]),
        answers=tuple(Answer(*answer) for answer in held["answers"]),
        text=held["text"],
        fields=held["fields"],
        origin=held["origin"],
        unused=tuple(held["unused"]),
    )
