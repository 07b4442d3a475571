"""Text made from the columns of a row: `"{Body} {Question}"`, or one of several texts chosen by a column's value.

Nothing is evaluated: between braces stands the path of a value, names and indices alone, as in `{answers.en[0].text}`;
`{name[].text}` gives the list of all; `{{` and `}}` are braces. A part in brackets that holds a placeholder, as in
`[Context: {context}]`, is left out where that is empty; `[[{name}]]` keeps the brackets instead. Used by `mapping.py`
for the templates of a recipe and by `formats.py` for formats that are others under other names.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from chatsmith.data.fields import meant
from chatsmith.errors import DataError

Template = str | float | Sequence["Template"] | Mapping[str, "Template"]
Row = Mapping[str, Any]

_STEP = re.compile(r"(?:\A|\.)([^.\[\]{}]+)|\[(\d*)\]")
_INSIDE = r"(?:[^\[\]{}]|\{\{|\}\})*(?:\{[^{}]*\}(?:[^\[\]{}]|\{\{|\}\})*)+"  # of brackets: at least one placeholder
_PIECE = re.compile(
    rf"(?P<brace>\{{\{{|\}}\}})|\[\[(?P<kept>{_INSIDE})\]\]|\[(?P<optional>{_INSIDE})\]"
    r"|\{(?P<path>[^{}]*)\}|(?P<words>[^{}\[]+|\[)|(?P<stray>[{}])"
)
_Steps = tuple[str | int | None, ...]  # names, indices, and None for [], which goes through a list


class _Piece(NamedTuple):
    """Literal text, or a path, or an optional part made of pieces."""

    text: str
    is_path: bool = False
    parts: tuple["_Piece", ...] = ()


def fill(template: Template, row: Row) -> Any:
    """What a template says about a row. One placeholder alone gives the value as it is, a list of templates a list.

    A table is a choice: `{by = "label", "1" = "{good}", "0" = "{bad}"}`.

    Raises:
        DataError: if a column is missing or null, or is no text or number where others stand around it.
    """
    if isinstance(template, Mapping):
        return fill(_chosen(template, row), row)
    if isinstance(template, str):
        pieces = _pieces(template)
        if len(pieces) == 1 and pieces[0].is_path:
            return at(row, pieces[0].text)
        return "".join(_filled(piece, row) for piece in pieces)
    return [fill(item, row) for item in template] if isinstance(template, Sequence) else template


def check(template: Template) -> None:
    """Raises ValueError, saying what is wrong, if a template cannot be read."""
    columns(template)


def columns(template: Template) -> set[str]:
    """The columns that a template reads."""
    paths = list(_paths(template))
    return {*paths, *(str(_steps(path)[0]) for path in paths)}


def at(row: Row, path: str) -> Any:
    """The value at a path, or of the column that is called exactly so.

    Raises:
        DataError: if it is missing or null, naming what is there.
    """
    value = row[path] if path in row else _walk(row, _steps(path), "")
    if value is None:
        raise DataError(f'"{path}" is null')
    return value


def as_text(value: Any, name: str) -> str:
    """A string as it is, numbers and truth values as JSON writes them.

    Raises:
        DataError: if the value is anything else.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    hint = f"; name one item of it, as in {{{name}[0]}}" if isinstance(value, list) else ""
    raise DataError(f'"{name}" is {kind(value)}, not text or a number{hint}')


def kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else f"of type {type(value).__name__}"


def _chosen(choice: Mapping[str, Template], row: Row) -> Template:
    column = str(choice["by"])
    value = as_text(at(row, column), column)
    known = [name for name in choice if name != "by"]
    if value not in known:
        raise DataError(
            f'"{column}" is {reprlib.repr(value)}, and the mapping has a choice for {", ".join(known)} alone'
        )
    return choice[value]


def _filled(piece: _Piece, row: Row) -> str:
    if piece.parts:
        paths = [part.text for part in piece.parts if part.is_path]
        return "" if any(_is_empty(row, path) for path in paths) else "".join(_filled(p, row) for p in piece.parts)
    return as_text(at(row, piece.text), piece.text) if piece.is_path else piece.text


def _is_empty(row: Row, path: str) -> bool:
    """Whether there is nothing at a path, or blanks alone; a column that is misspelt is no empty one."""
    if path not in row:
        steps = _steps(path)
        if steps[0] not in row and not meant(str(steps[0]), list(row)):
            return True
        if steps[0] in row and row[str(steps[0])] is None:
            return True
    value = row[path] if path in row else _walk(row, _steps(path), "")
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _paths(template: Template) -> Iterator[str]:
    if isinstance(template, Mapping):
        if not isinstance(template.get("by"), str):
            raise ValueError('a choice names its column as by = "column"')
        if len(template) == 1:
            raise ValueError(f'the choice by "{template["by"]}" has nothing to choose from')
        yield str(template["by"])
        template = [item for value, item in template.items() if value != "by"]
    if isinstance(template, str):
        for piece in _pieces(template):
            yield from (part.text for part in piece.parts or (piece,) if part.is_path)
    elif isinstance(template, Sequence):
        for item in template:
            yield from _paths(item)


@lru_cache(maxsize=256)
def _pieces(template: str) -> tuple[_Piece, ...]:
    pieces: list[_Piece] = []
    for match in _PIECE.finditer(template):
        if match["stray"]:
            raise ValueError(f'"{template}" has a single {match["stray"]}; write it twice for the character itself')
        if match["path"] is not None:
            pieces.append(_Piece(match["path"], is_path=True))
        elif match["optional"] is not None:
            pieces.append(_Piece("", parts=_pieces(match["optional"])))
        elif match["kept"] is not None:
            pieces += (_Piece("["), *_pieces(match["kept"]), _Piece("]"))
        else:
            pieces.append(_Piece((match["brace"] or "")[:1] + (match["words"] or "")))
    return tuple(pieces)


@lru_cache(maxsize=256)
def _steps(path: str) -> _Steps:
    steps: list[str | int | None] = []
    end = 0
    for match in _STEP.finditer(path):
        if match.start() != end:
            break
        end = match.end()
        steps.append(match[1] or (int(match[2]) if match[2] else None))
    if end != len(path) or not path:
        raise ValueError(f'"{path}" is no path; write names and indices, as in answers.en[0].text')
    return tuple(steps)


def _walk(value: Any, steps: _Steps, walked: str) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if not isinstance(step, str):
        if not isinstance(value, list):
            raise DataError(f'"{walked}" is {kind(value)}, not a list')
        if step is None:
            return [_walk(item, rest, f"{walked}[{i}]") for i, item in enumerate(value)]
        if step >= len(value):
            raise DataError(f'"{walked}" has {len(value)} items, so there is no {walked}[{step}]')
        return _walk(value[step], rest, f"{walked}[{step}]")
    if walked and not isinstance(value, Mapping):
        raise DataError(f'"{walked}" is {kind(value)}, not an object with a field "{step}"')
    if step not in value:
        near = meant(step, [str(name) for name in value])
        hint = f'; did you mean "{near}"?' if near else "."
        where = f'"{walked}" has no field "{step}"' if walked else f'there is no column "{step}"'
        raise DataError(f"{where}{hint} There are {', '.join(map(str, value)) or 'none'}")
    return _walk(value[step], rest, f"{walked}.{step}" if walked else step)
