"""Opens what a Spec names and reads it into Records; nothing is lost on the way without being listed.

Read are .json, .jsonl (both also with .gz), .csv, .parquet and .txt files, directories of them, directories written by
`datasets.save_to_disk`, and datasets of the Hugging Face hub. What a row means is decided in `formats.py`; which stage
it serves in `mix.py`.

A record is named "file:line" (.jsonl, .csv and .txt, from 1) or "file[row]" (everything else, from 0).
"""

import codecs
import csv
import difflib
import gzip
import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chatsmith.data.formats import to_record
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError
from chatsmith.types import Record

_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".txt")
_LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING")


@dataclass(frozen=True)
class Dropped:
    """A record that was left out, and why."""

    origin: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What one spec gave. Every record that was found is in `records` or in `dropped`.

    `licence` is what the source itself states, the hub's name for it or the first line of a LICENSE file, else None.
    """

    spec: Spec
    records: tuple[Record, ...]
    dropped: tuple[Dropped, ...]
    licence: str | None

    def digest(self) -> str:
        """SHA-256 of everything the records say."""
        said = [(r.prompt, [(a.content, a.score) for a in r.answers], r.text) for r in self.records]
        return hashlib.sha256(repr(said).encode()).hexdigest()


@dataclass(frozen=True)
class _Row:
    """A row as read, or the reason why it could not be."""

    origin: str
    value: Any = None
    problem: str = ""


@dataclass(frozen=True)
class _Table:
    """The rows of one file or data set, read as they are asked for."""

    name: str
    rows: Iterable[_Row]


def read_source(spec: Spec, *, on_error: Literal["raise", "skip"]) -> Source:
    """Reads all records that a spec names, in their order.

    Raises:
        DataError: if the source cannot be opened, if nothing in one of its files is readable, or, with
            on_error="raise", at the first bad record.
    """
    tables, licence = _open(spec)
    records: list[Record] = []
    dropped: list[Dropped] = []
    for table in tables:
        good, bad = _read(table, on_error)
        records += good
        dropped += bad
    return Source(spec, tuple(records), tuple(dropped), licence)


def _read(table: _Table, on_error: Literal["raise", "skip"]) -> tuple[list[Record], list[Dropped]]:
    good: list[Record] = []
    bad: list[Dropped] = []
    for row in table.rows:
        try:
            if row.problem:
                raise DataError(row.problem)
            good.append(to_record(row.value, row.origin))
        except DataError as error:
            if on_error == "raise":
                raise DataError(
                    f"{row.origin}: {error}. Mend the record, or leave bad records out with --data.on_error skip."
                ) from None
            bad.append(Dropped(row.origin, str(error)))
    if bad and not good:
        raise DataError(
            f"{table.name}: none of its {len(bad)} records can be read, so skipping the bad ones leaves nothing. "
            f"The first: {bad[0].origin}: {bad[0].reason}."
        )
    if not good:
        raise DataError(f"{table.name} is empty. Give one with records, or take it out of --data.")
    return good, bad


def _open(spec: Spec) -> tuple[list[_Table], str | None]:
    """The tables that a spec names, and the licence that the source states."""
    path = Path(spec.location).expanduser()
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _saved_dataset(path, spec)
        return [_Table(str(file), _rows(file)) for file in _files_in(path, spec.split)], _licence_in(path)
    if path.exists():
        if spec.split is not None:
            raise DataError(f'{path}: a single file has no splits. Leave "#{spec.split}" out.')
        if not path.name.lower().endswith(_SUFFIXES):
            raise DataError(f"{path}: unknown kind of file. Read are {', '.join(_SUFFIXES)}.")
        return [_Table(str(path), _rows(path))], _licence_in(path.parent)
    if _looks_like_a_path(spec.location):
        raise DataError(f'--data: there is no file or directory "{spec.location}".{_near(path)}')
    return _hub_dataset(spec)


def _looks_like_a_path(location: str) -> bool:
    """A hub id is NAME or OWNER/NAME; everything else can only be meant as a path."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", location) is not None
    return not is_id or location.lower().endswith(_SUFFIXES)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f' The directory "{path.parent}" does not exist either.'
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f' Did you mean "{path.parent / near[0]}"?' if near else f' Check the names in "{path.parent}".'


def _files_in(directory: Path, split: str | None) -> list[Path]:
    """The data files of a directory by name; with a split those called so: train.jsonl, train-00001.parquet."""
    files = sorted(
        file
        for file in directory.iterdir()
        if file.name.lower().endswith(_SUFFIXES) and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise DataError(f"{directory}: no data files in this directory. Read are {', '.join(_SUFFIXES)}.")
    if split is None:
        return files
    chosen = [file for file in files if re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name)]
    if not chosen:
        names = ", ".join(file.name for file in files[:10])
        raise DataError(f'{directory}: no file is named after the split "{split}". There are: {names}.')
    return chosen


def _licence_in(directory: Path) -> str | None:
    files = sorted(file for file in directory.iterdir() if file.name.upper().startswith(_LICENCE_FILES))
    for file in files:
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), None)
    return None


def _rows(file: Path) -> Iterator[_Row]:
    """The rows of one file, by its suffix."""
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        yield from _json_lines(file)
    elif name.endswith(".json"):
        yield from _json_list(file)
    elif name.endswith(".txt"):
        yield from _paragraphs(file)
    elif name.endswith(".csv"):
        yield from _csv_rows(file)
    else:
        yield from _parquet_rows(file)


def _json_lines(file: Path) -> Iterator[_Row]:
    first = True
    for line in _lines(file):
        if not line.problem and not line.value.strip():
            continue
        if first and not line.problem and line.value.lstrip().startswith("["):
            raise DataError(f"{line.origin}: this is a JSON array and not one object per line. Rename it to .json.")
        first = False
        if line.problem:
            yield line
            continue
        try:
            yield _Row(line.origin, json.loads(line.value))
        except json.JSONDecodeError as error:
            yield _Row(line.origin, problem=f"broken JSON at column {error.colno}: {error.msg}")
        except (ValueError, RecursionError) as error:  # a number of too many digits; nesting without end
            yield _Row(line.origin, problem=f"JSON that cannot be read: {error}")


def _json_list(file: Path) -> Iterator[_Row]:
    text = "\n".join(_whole(file))
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        remedy = "Mend it: a .json file is read whole or not at all."
        if error.msg == "Extra data":
            remedy = "If each line is an object of its own, rename the file to .jsonl."
        raise DataError(f"{file}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}. {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: JSON that cannot be read: {error}. Mend the file.") from None
    if not isinstance(rows, list):
        held = f"one object with the fields {', '.join(rows)}" if isinstance(rows, dict) else "a single value"
        raise DataError(f"{file}: holds {held}. A .json file must be a list of objects or of strings.")
    for i, row in enumerate(rows):
        yield _Row(f"{file}[{i}]", row)


def _paragraphs(file: Path) -> Iterator[_Row]:
    """Plain text: by paragraphs if blank lines part them, else each line by itself."""
    lines = list(_lines(file))
    while lines and not lines[-1].problem and not lines[-1].value.strip():
        lines.pop()
    start = next((i for i, line in enumerate(lines) if line.problem or line.value.strip()), 0)
    by_line = all(line.problem or line.value.strip() for line in lines[start:])
    paragraph: list[_Row] = []
    for line in [*lines[start:], _Row("", "")]:
        if paragraph and (by_line or line.problem or not line.value.strip()):
            yield _Row(paragraph[0].origin, "\n".join(row.value for row in paragraph))
            paragraph = []
        if line.problem:
            yield line
        elif line.value.strip():
            paragraph.append(line)


def _csv_rows(file: Path) -> Iterator[_Row]:
    """The rows under a line of names. Every cell is text: "007" and "NA" may be answers."""
    reader = csv.reader((line + "\n" for line in _whole(file)), strict=True)
    try:
        names = next(reader, [])
        start = reader.line_num
        for cells in reader:
            origin = f"{file}:{start + 1}"
            start = reader.line_num
            if len(cells) == len(names):
                yield _Row(origin, dict(zip(names, cells, strict=True)))
            elif cells:  # a blank line has none
                yield _Row(origin, problem=f"{len(cells)} cells where the first line names {len(names)}")
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: no valid CSV: {error}. Mend it, or export it again.") from None


def _whole(file: Path) -> list[str]:
    """The lines of a file that makes sense only as a whole."""
    lines = list(_lines(file))
    for line in lines:
        if line.problem:
            raise DataError(f"{line.origin}: {line.problem}. Skipping cannot help: such a file is read as a whole.")
    return [line.value for line in lines]


def _lines(file: Path) -> Iterator[_Row]:
    """The lines as text without their ends. Only a line feed ends one: JSON may hold other separators unescaped."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            for raw in stream:
                number += 1
                yield _line(f"{file}:{number}", raw.rstrip(b"\r\n"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"the gzip stream is damaged ({error}) and lost from here on; fetch the file again"
        yield _Row(f"{file}:{number + 1}", problem=problem)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check the file and its permissions.") from None


def _line(origin: str, raw: bytes) -> _Row:
    if raw.startswith(codecs.BOM_UTF8):
        return _Row(origin, problem="starts with a UTF-8 byte order mark; save the file as UTF-8 without BOM")
    try:
        return _Row(origin, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}"
        return _Row(origin, problem=f"not UTF-8 text ({byte}); convert the file to UTF-8")


def _parquet_rows(file: Path) -> Iterator[_Row]:
    if file.stat().st_size == 0:
        return
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        try:
            dataset = Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # whatever datasets and pyarrow raise, it means that the file is no such table
            raise DataError(
                f"{file}: cannot be read as a table: {_root_of(error)}. Mend or export it again."
            ) from error
    yield from _dataset_rows(dataset, str(file))


def _saved_dataset(path: Path, spec: Spec) -> tuple[list[_Table], str | None]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be read as a saved dataset: {_root_of(error)}. Save it again.") from error
    if isinstance(dataset, DatasetDict):
        split = spec.split or "train"
        if split not in dataset:
            raise DataError(f'{path}: no split "{split}". Write one of them after "#": {", ".join(dataset)}.')
        dataset = dataset[split]
    elif spec.split not in (None, dataset.split):
        raise DataError(f'{path}: holds one table without splits. Leave "#{spec.split}" out.')
    return [_Table(str(path), _dataset_rows(dataset, str(path)))], dataset.info.license or _licence_in(path)


def _hub_dataset(spec: Spec) -> tuple[list[_Table], str | None]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(spec.location, split=spec.split or "train")
    except Exception as error:  # offline, unknown, private, without such a split: each its own type, all end here
        raise DataError(
            f'--data "{spec.location}": no such file here, and the Hugging Face hub gave no dataset of this name: '
            f"{_root_of(error)}. Check the name, the #SPLIT and the network, or give a local file, as in "
            "--data sft:./answers.jsonl."
        ) from error
    return [_Table(spec.location, _dataset_rows(dataset, spec.location))], dataset.info.license or _card_licence(spec)


def _card_licence(spec: Spec) -> str | None:
    """The licence named in the card of a hub dataset."""
    from huggingface_hub import DatasetCard

    try:
        licence = DatasetCard.load(spec.location).data.to_dict().get("license")
    except Exception:  # a dataset without a card, or with one that cannot be parsed, states no licence
        return None
    return ", ".join(licence) if isinstance(licence, list) else licence


def _dataset_rows(dataset: Iterable[Any], name: str) -> Iterator[_Row]:
    for i, row in enumerate(dataset):
        yield _Row(f"{name}[{i}]", row)


def _root_of(error: BaseException) -> str:
    """The first line of the innermost cause: libraries wrap what the user needs to read."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
