"""Rows on disk: written once, in chunks, and read one by one, so that memory does not grow with a corpus.

Rows are read from the file when asked for and not mapped: pages of a mapping would count as this process's memory.

What is made from data is kept in a cache (`CHATSMITH_CACHE`, by default ~/.cache/chatsmith) under a hash of everything
it was made from, this package's code included: nothing in it can be out of date. What nothing has used for a month
goes. A cache that others could have written is not used.
"""

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from chatsmith.errors import RunError
from chatsmith.files.directories import is_own, own_cache
from chatsmith.files.writing import FreshDirectory, discard, keep, mark_used, scratch
from chatsmith.screen.output import say
from chatsmith.screen.text import unbroken

Array = NDArray[Any]
T = TypeVar("T")

KEPT_DAYS = 30
_OUR_NAMES = re.compile(r"making-\w+|[a-z]+-[0-9a-f]{64}")


class Lazy(Sequence[T], ABC):
    """A sequence whose rows are made when asked for."""

    @abstractmethod
    def row(self, index: int) -> T:
        """The row of that number, from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        chosen = range(len(self))[index]  # IndexError beyond the end, and counts from the end
        return self.row(chosen) if isinstance(chosen, int) else [self.row(i) for i in chosen]


class Ragged(Lazy[Array]):
    """Arrays of different lengths in one flat file."""

    def __init__(self, path: Path, dtype: str, ends: Array) -> None:
        self._file = path.open("rb", buffering=0)
        self._dtype = np.dtype(dtype)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def row(self, index: int) -> Array:
        return np.frombuffer(self.read(index), self._dtype)

    def read(self, index: int) -> bytes:
        """The bytes of a row."""
        begin = int(self._ends[index - 1]) if index else 0
        size = self._dtype.itemsize
        return os.pread(self._file.fileno(), (int(self._ends[index]) - begin) * size, begin * size)

    @property
    def lengths(self) -> Array:
        """[rows] int64."""
        lengths: Array = np.diff(self._ends, prepend=0)
        return lengths


class TokenRows(Lazy[tuple[int, ...]]):
    """Token ids of prompts, from disk."""

    def __init__(self, tokens: Ragged) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def row(self, index: int) -> tuple[int, ...]:
        return tuple(self._tokens.row(index).tolist())


class Writer:
    """Appends to the columns of an entry, each of ragged rows or of plain numbers."""

    def __init__(self, directory: FreshDirectory, ragged: Mapping[str, str], numbers: Mapping[str, Any]) -> None:
        self._directory, self._ragged, self._numbers = directory, ragged, numbers
        names = [*ragged, *(f"{name}.lengths" for name in ragged), *numbers]
        self._files = {name: _new_file(directory, f"{name}.bin") for name in names}

    def rows(self, name: str, rows: Sequence[bytes]) -> None:
        """Append ragged rows, as the bytes of their numbers."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows)) // np.dtype(self._ragged[name]).itemsize
        with _writing(str(self._directory.parent)):
            self._files[f"{name}.lengths"].write(lengths.data)
            self._files[name].writelines(rows)

    def numbers(self, name: str, values: Sequence[Any] | Array) -> None:
        """Append numbers."""
        with _writing(str(self._directory.parent)):
            self._files[name].write(np.asarray(values, self._numbers[name]).tobytes())

    def finish(self, facts: dict[str, Any]) -> None:
        """Close the files; an entry is complete once its facts and their sizes stand beside them."""
        for file in self._files.values():
            file.close()
        sizes = {name: (self._directory / f"{name}.bin").stat().st_size for name in self._files}
        with _new_file(self._directory, "entry.json") as file:
            file.write(json.dumps({"facts": facts, "sizes": sizes}).encode())


def _new_file(directory: FreshDirectory, name: str) -> BinaryIO:
    """That others cannot write, whatever the umask allows."""
    return open(directory / name, "xb", opener=lambda _, flags: os.open(directory / name, flags, 0o600))


class Entry:
    """What a `Writer` wrote.

    Raises:
        OSError, ValueError, KeyError: if it is not all there.
    """

    def __init__(self, directory: Path, ragged: Mapping[str, str], numbers: Mapping[str, Any]) -> None:
        held = json.loads((directory / "entry.json").read_text())
        self.facts: dict[str, Any] = held["facts"]
        for name, size in held["sizes"].items():
            if (directory / f"{name}.bin").stat().st_size != size:
                raise ValueError(f"{directory}: {name} is not {size} bytes long")
        self._rows = {}
        for name, dtype in ragged.items():
            lengths = np.fromfile(directory / f"{name}.lengths.bin", np.int64)
            self._rows[name] = Ragged(directory / f"{name}.bin", dtype, lengths.cumsum(out=lengths))
        self._numbers = {name: np.fromfile(directory / f"{name}.bin", dtype) for name, dtype in numbers.items()}

    def rows(self, name: str) -> Ragged:
        return self._rows[name]

    def numbers(self, name: str) -> Array:
        column: Array = self._numbers[name]
        return column


def stored(
    kind: str,
    key: Sequence[str] | None,
    write: Callable[[Writer], dict[str, Any]],
    *,
    ragged: Mapping[str, str],
    numbers: Mapping[str, Any],
) -> Entry:
    """The entry that `write` makes, from the cache if it was made before.

    Args:
        kind: what it is; with `key` its name in the cache.
        key: hashes and settings of all it is made from. None: it cannot be told, so the entry is made anew and is gone
            with this process.
        write: fills the columns; returns facts about them.
        ragged, numbers: names and dtypes of the two kinds of columns.
    """
    name = None if key is None else f"{kind}-{hash_of(kind, code_hash(), *key)}"
    if name is not None and (found := _found(name, ragged, numbers)) is not None:
        return found
    try:
        return _made(own_cache, name, write, ragged, numbers)
    except _Unwritable as error:
        _say_that_nothing_is_kept(str(error))
    try:  # a cache saves time and no more: without one the rows lie elsewhere, as long as this process needs them
        return _made(lambda: Path(tempfile.gettempdir()), None, write, ragged, numbers)
    except _Unwritable as error:
        raise RunError(
            f"{error}: prepared data cannot be written here either. Set the environment variable CHATSMITH_CACHE to a "
            "directory with room."
        ) from error


def _made(
    root_of: Callable[[], Path],
    name: str | None,
    write: Callable[[Writer], dict[str, Any]],
    ragged: Mapping[str, str],
    numbers: Mapping[str, Any],
) -> Entry:
    """The entry, made anew; it stays under its name if it has one.

    Raises:
        _Unwritable: if the system refuses to write it.
    """
    making = None
    try:
        with _writing("a place for prepared data"):
            root = root_of()
        with _writing(str(root)):
            if name is not None:
                _forget_unused(root)
            making = scratch(root)
            writer = Writer(making, ragged, numbers)
        facts = write(writer)
        with _writing(str(root)):
            writer.finish(facts)
            entry = Entry(making, ragged, numbers)  # open files outlive their names
        if name is not None:
            with suppress(OSError):  # another process made the same meanwhile
                keep(making, root / name)
        return entry
    finally:
        if making is not None:
            discard(making)


class _Unwritable(Exception):
    """Where, and why."""


@contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # which is the same everywhere
            raise
        raise _Unwritable(f"{error.filename or where}: {error.strerror}") from error


@cache
def _say_that_nothing_is_kept(reason: str) -> None:
    """Once per process."""
    say(f"{unbroken(reason)}: prepared data is not kept, and made anew by the next command", error=True)


def _found(name: str, ragged: Mapping[str, str], numbers: Mapping[str, Any]) -> Entry | None:
    """The entry of that name in the cache, if it is there and whole; what is broken goes."""
    try:
        place = own_cache() / name
        if not is_own(place) or not all(map(is_own, place.iterdir())):
            return None
    except OSError:
        return None
    try:
        entry = Entry(place, ragged, numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        discard(place)
        return None
    with suppress(OSError):  # the disk may be read only
        mark_used(place)
    return entry


_SHAPES_TOKENS = ("data/*.py", "files/*.py", "models/*.py", "stages/*.py", "config.py", "functions.py", "types.py")


def hash_of(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Of what shapes tokens: the rooms of this package that read, render and encode, and the libraries they call."""
    versions = [version(name) for name in ("transformers", "tokenizers", "jinja2", "datasets")]
    digest = hashlib.sha256(json.dumps(versions).encode())
    package = Path(__file__).parents[1]
    files = [file for place in _SHAPES_TOKENS for file in sorted(package.glob(place))]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _forget_unused(root: Path) -> None:
    """Once per process."""
    oldest = time.time() - KEPT_DAYS * 86400
    for entry in root.iterdir():
        with suppress(OSError):  # another process was first, or it is not ours
            if _OUR_NAMES.fullmatch(entry.name) and is_own(entry) and entry.stat().st_mtime < oldest:
                discard(entry)
