"""The rows of a file by its kind, one at a time: each with the place it came from, or with what is wrong there.

What a row means is decided in `formats.py`. A row is named "file:line" (.jsonl, .csv, .tsv and .txt, from 1) or
"file[row]" (everything else, from 0). Memory does not grow with the file, only with its longest row.
"""

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from chatsmith.data.fields import repeated
from chatsmith.data.json_rows import is_json, line_rows, list_rows
from chatsmith.data.lines import CAP, PACKED, Row, lines, too_long
from chatsmith.data.tables import file_rows
from chatsmith.errors import DataError

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of one file, by its suffix, which is one of `SUFFIXES`.

    Raises:
        DataError: if the file cannot be opened, or makes sense only as a whole and is damaged. Rows may have been
            given by then.
    """
    name = file.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next(read(file) for kind, read in (_TEXT | _TABLES).items() if name.endswith(kind))


def _text_rows(file: Path) -> Iterator[Row]:
    """Plain text in paragraphs; JSON under a name that says text would be learned as it stands."""
    for number, row in enumerate(_paragraphs(file)):
        if number == 0 and not row.problem and is_json(row.value):
            raise DataError(
                f"{row.origin}: this is JSON and no plain text. Rename the file to .jsonl, or to .json if all of it is "
                "one list."
            )
        yield row


def _paragraphs(file: Path) -> Iterator[Row]:
    """Plain text: by paragraphs if blank lines part them, else each line by itself."""
    by_line = not _has_paragraphs(file)
    paragraph: list[str] = []
    size = 0
    origin = ""
    for number, text, problem in lines(file):
        blank = not problem and not text.strip()
        if paragraph and (by_line or problem or blank):
            yield Row(origin, "\n".join(paragraph))
            paragraph, size = [], 0
        if problem:
            yield Row(f"{file}:{number}", None, problem)
        elif not blank:
            if not paragraph:
                origin = f"{file}:{number}"
            paragraph.append(text)
            size += len(text)
            if size > CAP:
                raise too_long(origin, "the paragraph that begins here")
    if paragraph:
        yield Row(origin, "\n".join(paragraph))


def _has_paragraphs(file: Path) -> bool:
    """Whether a blank line stands between two others."""
    text_before = blank_before = False
    for _, text, problem in lines(file):
        if not problem and not text.strip():
            blank_before = text_before
        elif blank_before:
            return True
        else:
            text_before = True
    return False


def _cells(file: Path, delimiter: str) -> Iterator[Row]:
    """The rows under a line of names. Every cell is text: "007" and "NA" may be answers."""
    csv.field_size_limit(max(CAP, csv.field_size_limit()))  # the default of 128 KiB is less than answers have
    names: list[str] | None = None
    begin, size = 1, 0  # of the record that is being read: its first line, and its letters so far

    def read() -> Iterator[str]:
        nonlocal size
        for number, text, problem in lines(file):
            if problem:
                raise DataError(f"{file}:{number}: {problem}. Skipping cannot help: such a file is read as a whole.")
            size += len(text) + 1
            if size > CAP:
                raise too_long(f"{file}:{begin}", "the record that begins here (perhaps an open quote)")
            yield text + "\n"

    reader = csv.reader(read(), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            origin = f"{file}:{begin}"
            begin, size = reader.line_num + 1, 0
            if not cells:  # a blank line
                continue
            if names is None:
                names = cells
                _check_names(names, delimiter, origin)
            elif len(cells) == len(names):
                yield Row(origin, dict(zip(names, cells, strict=True)))
            else:
                yield Row(origin, None, f"{len(cells)} cells where the first line names {len(names)}")
    except csv.Error as error:
        words = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
        raise DataError(
            f"{file}:{begin}: no valid CSV in the record that begins here: {words}. Mend it, or export it again."
        ) from None


def _check_names(names: list[str], delimiter: str, origin: str) -> None:
    long = next((name for name in names if "\n" in name), None)
    if long is not None:  # rows may be in it
        raise DataError(
            f'{origin}: the name of a column, "{" ".join(long.split())[:60]}", goes over several lines. '
            "Is a quote in the first line never closed?"
        )
    twice = repeated(names)
    if twice is not None:
        raise DataError(f'{origin}: two columns are called "{twice}". The first line names the columns; rename one.')
    other = next((mark for mark in _DELIMITERS if len(names) == 1 and mark in names[0]), "")
    if other:
        remedy = {",": "Rename the file to .csv", "\t": "Rename the file to .tsv"}.get(other, "Export it again")
        raise DataError(
            f'{origin}: names a single column "{names[0]}". Are its cells parted by {_DELIMITERS[other]}, '
            f"and not by {_DELIMITERS[delimiter]}? {remedy}."
        )


_TEXT: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": list_rows,
    ".jsonl": line_rows,
    ".csv": partial(_cells, delimiter=","),
    ".tsv": partial(_cells, delimiter="\t"),
    ".txt": _text_rows,
}
_TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {".parquet": file_rows, ".arrow": file_rows}
SUFFIXES = (*_TEXT, *(kind + packed for kind in _TEXT for packed in PACKED), *_TABLES)
KINDS = f"{', '.join(_TEXT)} (each also with {' or '.join(PACKED)}), {' and '.join(_TABLES)}"
