"""From the bytes of one file to its rows, one at a time: each with the place it came from, or with what is wrong there.

Read are .json, .jsonl (both also with .gz), .csv, .parquet and .txt. What a row means is decided in `formats.py`.
A row is named "file:line" (.jsonl, .csv and .txt, from 1) or "file[row]" (everything else, from 0).
"""

import codecs
import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsmith.errors import DataError

SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Row:
    """A row as read, or the reason why it could not be."""

    origin: str
    value: Any = None
    problem: str = ""


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of one file, by its suffix.

    Raises:
        DataError: if the file cannot be opened, or makes sense only as a whole and is damaged.
    """
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


def _json_lines(file: Path) -> Iterator[Row]:
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
            yield Row(line.origin, json.loads(line.value))
        except json.JSONDecodeError as error:
            yield Row(line.origin, problem=f"broken JSON at column {error.colno}: {error.msg}")
        except (ValueError, RecursionError) as error:  # a number of too many digits; nesting without end
            yield Row(line.origin, problem=f"JSON that cannot be read: {error}")


def _json_list(file: Path) -> Iterator[Row]:
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
    if isinstance(rows, dict):
        rows = [rows]  # one record, or an object around the records, which a recipe opens
    if not isinstance(rows, list):
        raise DataError(f"{file}: holds a single value. A .json file must be a list of objects or of strings.")
    for i, row in enumerate(rows):
        yield Row(f"{file}[{i}]", row)


def _paragraphs(file: Path) -> Iterator[Row]:
    """Plain text: by paragraphs if blank lines part them, else each line by itself."""
    lines = list(_lines(file))
    while lines and not lines[-1].problem and not lines[-1].value.strip():
        lines.pop()
    start = next((i for i, line in enumerate(lines) if line.problem or line.value.strip()), 0)
    by_line = all(line.problem or line.value.strip() for line in lines[start:])
    paragraph: list[Row] = []
    for line in [*lines[start:], Row("", "")]:
        if paragraph and (by_line or line.problem or not line.value.strip()):
            yield Row(paragraph[0].origin, "\n".join(row.value for row in paragraph))
            paragraph = []
        if line.problem:
            yield line
        elif line.value.strip():
            paragraph.append(line)


def _csv_rows(file: Path) -> Iterator[Row]:
    """The rows under a line of names. Every cell is text: "007" and "NA" may be answers."""
    reader = csv.reader((line + "\n" for line in _whole(file)), strict=True)
    try:
        names = next(reader, [])
        start = reader.line_num
        for cells in reader:
            origin = f"{file}:{start + 1}"
            start = reader.line_num
            if len(cells) == len(names):
                yield Row(origin, dict(zip(names, cells, strict=True)))
            elif cells:  # a blank line has none
                yield Row(origin, problem=f"{len(cells)} cells where the first line names {len(names)}")
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: no valid CSV: {error}. Mend it, or export it again.") from None


def _whole(file: Path) -> list[str]:
    """The lines of a file that makes sense only as a whole."""
    lines = list(_lines(file))
    for line in lines:
        if line.problem:
            raise DataError(f"{line.origin}: {line.problem}. Skipping cannot help: such a file is read as a whole.")
    return [line.value for line in lines]


def _lines(file: Path) -> Iterator[Row]:
    """The lines as text without their ends. Only a line feed ends one: JSON may hold other separators unescaped."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            for raw in stream:
                number += 1
                yield _line(f"{file}:{number}", raw.rstrip(b"\r\n"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"the gzip stream is damaged ({error}) and lost from here on; fetch the file again"
        yield Row(f"{file}:{number + 1}", problem=problem)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. Check the file and its permissions.") from None


def _line(origin: str, raw: bytes) -> Row:
    if raw.startswith(codecs.BOM_UTF8):
        return Row(origin, problem="starts with a UTF-8 byte order mark; save the file as UTF-8 without BOM")
    try:
        return Row(origin, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}"
        return Row(origin, problem=f"not UTF-8 text ({byte}); convert the file to UTF-8")


def _parquet_rows(file: Path) -> Iterator[Row]:
    if file.stat().st_size == 0:
        return
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        try:
            dataset = Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # whatever datasets and pyarrow raise, it means that the file is no such table
            raise DataError(f"{file}: cannot be read as a table: {root_of(error)}. Mend or export it again.") from error
    yield from dataset_rows(dataset, str(file))


def dataset_rows(dataset: Iterable[Any], name: str) -> Iterator[Row]:
    for i, row in enumerate(dataset):
        yield Row(f"{name}[{i}]", row)


def root_of(error: BaseException) -> str:
    """The first line of the innermost cause: libraries wrap what the user needs to read."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
