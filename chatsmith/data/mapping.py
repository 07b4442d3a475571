"""From the rows of one source to its records: as the rows stand, or as a `[[data.sources]]` of a recipe maps them.

In this order: `rows` opens nested lists, `function` or the templates of the mapping make a row of a known format,
roles are renamed, `formats.py` reads it, and the system text goes before it. The row as it was stays in
`Record.fields`. Every row gives at least one outcome: nothing is lost without being listed.
"""

import reprlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chatsmith.config import SourceConfig
from chatsmith.data.fields import Fields
from chatsmith.data.formats import format_names, to_record
from chatsmith.data.lines import Row
from chatsmith.data.templates import as_text, at, check, columns, fill
from chatsmith.errors import ConfigError, DataError
from chatsmith.functions import load_function
from chatsmith.types import Message, Record

Reader = Callable[[Row], Iterator["Record | Dropped"]]


@dataclass(frozen=True)
class Dropped:
    """A record that was left out, and why; `wanted` by the user's own function, which is no error."""

    origin: str
    reason: str
    wanted: bool = False


def reader(table: SourceConfig | None) -> Reader:
    """What reads the rows of a source.

    Raises:
        ConfigError: if the table names an unknown format, a template that cannot be read, or no function.
    """
    return _plain if table is None else _Mapped(table)


def _plain(row: Row) -> Iterator[Record | Dropped]:
    try:
        if row.problem:
            raise DataError(row.problem)
        yield to_record(row.value, row.origin)
    except DataError as error:
        yield Dropped(row.origin, str(error))


class _Mapped:
    """Reads rows as a table of a recipe says."""

    def __init__(self, table: SourceConfig) -> None:
        where = f'the mapping of "{table.source}"'
        if table.format is not None and table.format not in format_names():
            raise ConfigError(f'{where}: unknown format "{table.format}"; known: {", ".join(format_names())}.')
        self._table = table
        self._templates = table.mapping()
        self._levels = _levels(table.rows, where)
        self._function = None if table.function is None else load_function(table.function, kind=f"{where}: function")
        for name, template in {**self._templates, "system": table.system or ""}.items():
            try:
                check(template)
            except ValueError as error:
                raise ConfigError(f"{where}: {name}: {error}.") from None
        self._read_here = columns(table.system or "")

    def __call__(self, row: Row) -> Iterator[Record | Dropped]:
        """The outcomes of one row of the file."""
        for opened in _opened(row, self._levels):
            for made in self._made(opened):
                if isinstance(made, Dropped):
                    yield made
                    continue
                try:
                    if made.problem:
                        raise DataError(made.problem)
                    yield self._record(made, opened.value)
                except DataError as error:
                    yield Dropped(made.origin, str(error))

    def _made(self, row: Row) -> Iterator[Row | Dropped]:
        """The rows that the user's function makes of one."""
        if self._function is None or row.problem:
            yield row
            return
        try:
            results = self._function(row.value)
        except (Exception, SystemExit) as error:  # exit() in it must not end the run as if all were well
            yield Row(row.origin, problem=f"{self._table.function} {_raised(error)}")
            return
        results = results if isinstance(results, list) else [results]
        kept = [result for result in results if result is not None]
        if not kept:
            yield Dropped(row.origin, f"left out by {self._table.function}", wanted=True)
        for i, result in enumerate(kept):
            yield Row(row.origin if len(kept) == 1 else f"{row.origin} ({i + 1} of {len(kept)})", result)

    def _record(self, row: Row, original: Any) -> Record:
        """The record of a row; `original` is the row before the user's function."""
        value, given = row.value, original if isinstance(original, Mapping) else {}
        if isinstance(value, Record):
            given = value.fields or given
            value = _as_row(value, self._table.function)
        elif self._function is not None and isinstance(value, Mapping):
            given = value
        fields = Fields(given)
        if self._templates:
            if not isinstance(value, Mapping):
                raise DataError("the record has no columns to map")
            value = {name: _part(name, fill(template, fields)) for name, template in self._templates.items()}
        if isinstance(value, Mapping):
            value = {name: self._renamed(part) for name, part in value.items()}
        elif isinstance(value, list):
            value = self._renamed(value)
        record = to_record(value, row.origin, format=self._table.format, used=self._read_here)
        unused = record.unused
        if self._templates:  # what they do not name is known to the user
            unused = (*(name for name in fields.unread() if name not in self._read_here), *unused)
        return replace(self._with_system(record, fields), fields=given, unused=unused)

    def _renamed(self, part: Any) -> Any:
        """A message, or the messages in a list, under the names that `formats.py` knows; anything else as it is."""
        if isinstance(part, list):
            return [self._renamed(item) for item in part]
        if not isinstance(part, Mapping):
            return part
        role = self._table.role or ("role" if part.get("from") is None else "from")
        content = self._table.content
        if role not in part or (content is not None and content not in part):
            return part
        renamed = {name: item for name, item in part.items() if name not in (role, content)}
        speaker = part[role]
        renamed["role"] = self._table.roles.get(speaker, speaker) if isinstance(speaker, str) else speaker
        return renamed if content is None else {**renamed, "content": part[content]}

    def _with_system(self, record: Record, fields: Mapping[str, Any]) -> Record:
        if self._table.system is None or (record.prompt and record.prompt[0].role == "system"):
            return record
        if not record.prompt:
            raise DataError("the mapping gives a system text, which plain text has no place for")
        text = as_text(fill(self._table.system, fields), "system")
        return replace(record, prompt=(Message("system", text), *record.prompt))


def _levels(rows: str | None, where: str) -> tuple[str, ...]:
    """`data[].paragraphs[]` as the paths of the lists, outermost first."""
    if rows is None:
        return ()
    *levels, rest = rows.split("[]")
    levels = [level.removeprefix(".") for level in levels]
    if rest or not all(levels):
        raise ConfigError(f'{where}: rows = "{rows}" must name lists, as in "data[].paragraphs[].qas[]".')
    return tuple(levels)


def _opened(row: Row, levels: tuple[str, ...]) -> Iterator[Row]:
    """The innermost objects with the fields of those around them; of two fields of one name, the inner one."""
    if row.problem or not levels:
        yield row
        return
    path, *deeper = levels
    try:
        if not isinstance(row.value, Mapping):
            raise DataError(f'the record is no object with a list "{path}"')
        items = at(row.value, path)
        if not isinstance(items, list) or not items:
            raise DataError(f'"{path}" is {"an empty list" if items == [] else "no list"}')
    except DataError as error:
        yield Row(row.origin, problem=str(error))
        return
    first = path.split(".")[0]
    around = {name: value for name, value in row.value.items() if name != first}
    for i, item in enumerate(items):
        inner = item if isinstance(item, Mapping) else {path: item}
        yield from _opened(Row(f"{row.origin}.{path}[{i}]", {**around, **inner}), tuple(deeper))


def _part(name: str, value: Any) -> Any:
    """A part of a record as `formats.py` expects it: text, or scores as numbers, which a .csv has as text."""
    if name == "scores":
        return [_number(score) for score in value] if isinstance(value, list) else value
    if isinstance(value, list):
        return [_part(name, item) for item in value]
    return value if isinstance(value, Mapping) else as_text(value, name)


def _number(score: Any) -> Any:
    try:
        return float(score) if isinstance(score, str) else score
    except ValueError:
        raise DataError(f"the score {reprlib.repr(score)} is no number") from None


def _as_row(record: Record, function: str | None) -> Any:
    """A record that a user's function made as a row, so that it is checked as every other one."""
    try:
        if record.text:
            return {"text": record.text}
        prompt = [{"role": turn.role, "content": turn.content} for turn in record.prompt]
        if not record.answers:
            return {"prompt": prompt}
        scores = [a.score if a.score is None or not a.is_marked else a.score > 0 for a in record.answers]
        return {"prompt": prompt, "answers": [answer.content for answer in record.answers], "scores": scores}
    except (AttributeError, TypeError) as error:
        raise DataError(f"{function} returned a record with parts of the wrong type: {error}") from None


def _raised(error: Exception | SystemExit) -> str:
    """What a user's function raised, and the line of it where that happened."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = frames[min(1, len(frames) - 1)]  # the first is the call in this file, the next the function itself
    return f"raised {type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno})"
