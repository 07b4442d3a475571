"""JSON to values: one per line (.jsonl), or the elements of one list (.json) without holding the list.

Refused is what `json.loads` would pass and later alter or lose: a key that stands twice, NaN and Infinity, which are no
JSON, and numbers beyond the range of a float.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from chatsmith.data.fields import repeated
from chatsmith.data.lines import CAP, Row, lines, text_blocks, too_long
from chatsmith.errors import DataError
from chatsmith.files.received import DEEPEST_JSON, is_deep

_BLANKS = " \t\n\r"
_LONGEST_MARK = 16  # an error so near to the end of a text may come from its being cut there, as in "-Infin" or "\\ud8"
_BEGINS = re.compile(r'\s*(?:\{\s*"[^"]*"\s*:|\[\s*[\[{"]|[\[{]\s*\Z)')
_NUMBER_GOES_ON = ("", ".", "e", "E")


class _Refused(ValueError):
    """JSON that can be read, but not without loss."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Refused(
            f'the field "{repeated([name for name, _ in pairs])}" stands twice in one object; keep one of them'
        )
    return value


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is no JSON; write null, or leave the field out")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"the number {text[:20]} is too large")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float)
_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)  # finds the end of what the strict one refuses


def line_rows(file: Path) -> Iterator[Row]:
    """One value per line; blank lines are none."""
    first = True
    for number, text, problem in lines(file):
        origin = f"{file}:{number}"
        if problem:
            yield Row(origin, None, problem)
            continue
        body = text.strip(_BLANKS)
        if not body:
            continue
        try:
            if first:
                _refuse_json_over_lines(origin, body)
                first = False
            value, end = _STRICT.raw_decode(body)
            if end < len(body):
                problem = f"more than one value on the line, the second at column {text.index(body) + end + 1}"
            _refuse_deep(value, body, 0, end)
        except json.JSONDecodeError as error:
            problem = f"broken JSON at column {text.index(body) + error.colno}: {error.msg}"
        except (ValueError, RecursionError) as error:
            problem = _reason(error)
        yield Row(origin, None, problem) if problem else Row(origin, value)


def _refuse_deep(value: Any, text: str, begin: int, end: int) -> None:
    """What is done with a value walks down it."""
    if text.count("[", begin, end) + text.count("{", begin, end) > DEEPEST_JSON and is_deep(value):
        raise _Refused(f"it is nested more than {DEEPEST_JSON} deep; leave what is so deep out")


def _refuse_json_over_lines(origin: str, first: str) -> None:
    if first.startswith("[") and not _is_conversation(first):
        raise DataError(f"{origin}: this is a JSON array and not one object per line. Rename it to .json.")
    if first == "{":
        raise DataError(
            f"{origin}: this is JSON over several lines and not one object per line. "
            "Write each object on a line of its own, or put [ ] and commas around them and rename the file to .json."
        )


def _is_conversation(line: str) -> bool:
    """Whether a line is a whole list of objects that say who speaks, and not the beginning of all rows."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(value) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)


def is_json(text: str) -> bool:
    """Whether a text begins as an object with fields does, or a list of objects, lists or strings; or with its mark."""
    return _BEGINS.match(text) is not None


def list_rows(file: Path) -> Iterator[Row]:
    """The elements of the list that the file holds; an object in its place is the only row.

    Raises:
        DataError: where the file is no JSON. The rows before are given by then, and worth nothing.
    """
    window = _Window(file)
    opening = window.next_character()
    if not opening:
        return
    if opening == "[":
        yield from _elements(window, str(file))
        return
    row = window.row(f"{file}[0]")
    _refuse_more(window)
    if opening != "{":
        raise DataError(f"{file}: holds a single value. A .json file must be a list of objects or of strings.")
    yield row


def _elements(window: "_Window", name: str) -> Iterator[Row]:
    window.at += 1
    if window.next_character() == "]":
        window.at += 1
        return _refuse_more(window)
    index = 0
    while True:
        yield window.row(f"{name}[{index}]")
        mark = window.next_character()
        if mark not in ",]" or not mark:
            raise window.broken("Expecting ',' delimiter", window.at)
        window.at += 1
        if mark == "]":
            return _refuse_more(window)
        window.next_character()
        index += 1


def _refuse_more(window: "_Window") -> None:
    if window.next_character():
        raise window.broken("Extra data", window.at)


class _Window:
    """The part of a .json file that is being decoded. It grows at its end, and what is behind `at` is let go."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._blocks = text_blocks(file)
        self._text = ""
        self._whole = False  # whether the file ends where the text does
        self._lines = 0  # before the text
        self._columns = 0  # before the text, on its first line
        self._begin = 0  # of the value that ends at `at`
        self.at = 0

    def next_character(self) -> str:
        """What follows the blanks at `at`, which then points to it; nothing at the end of the file."""
        while True:
            while self.at < len(self._text) and self._text[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if self._whole:
                return ""
            self._grow()

    def row(self, origin: str) -> Row:
        """The value at `at`, which then points behind it."""
        try:
            value = self._value(_STRICT)
        except _Refused as error:
            self._value(_LENIENT)
            return Row(origin, None, str(error))
        try:
            _refuse_deep(value, self._text, self._begin, self.at)
        except _Refused as error:
            return Row(origin, None, str(error))
        return Row(origin, value)

    def broken(self, words: str, at: int) -> DataError:
        remedy = "Mend it: a .json file is read whole or not at all."
        if words == "Extra data":
            remedy = "If each line is an object of its own, rename the file to .jsonl."
        line = self._lines + self._text.count("\n", 0, at) + 1
        newline = self._text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._columns + at + 1
        return DataError(f"{self._file}:{line}: broken JSON at column {column}: {words}. {remedy}")

    def _value(self, decoder: json.JSONDecoder) -> Any:
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self.at)
                # what ends like "10." may be half a number
                if self._whole or self._text[end : end + 1] not in _NUMBER_GOES_ON or not self._is_near_end(end):
                    self._begin, self.at = self.at, end
                    return value
            except json.JSONDecodeError as error:
                if self._whole or not (error.msg.startswith("Unterminated") or self._is_near_end(error.pos)):
                    raise self.broken(error.msg, error.pos) from None
            except RecursionError as error:
                raise DataError(f"{self._file}: {_reason(error)}. Mend the file.") from None
            except ValueError as error:
                raise _Refused(_reason(error)) from None
            self._grow()

    def _is_near_end(self, at: int) -> bool:
        return at > len(self._text) - _LONGEST_MARK

    def _grow(self) -> None:
        """Reads on, and at least as much as is held: so a long value is tried a few times and not with each block."""
        self._lines += self._text.count("\n", 0, self.at)
        newline = self._text.rfind("\n", 0, self.at)
        self._columns = self.at - newline - 1 if newline >= 0 else self._columns + self.at
        parts = [self._text[self.at :]]
        held = size = len(parts[0])
        if held > CAP:
            raise too_long(f"{self._file}:{self._lines + 1}", "the value that begins here")
        while size <= min(2 * held, CAP):
            block = next(self._blocks, None)
            if block is None:
                self._whole = True
                break
            parts.append(block)
            size += len(block)
        self._text, self.at = "".join(parts), 0


def _reason(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    return f"JSON that cannot be read: {'it is nested too deep' if isinstance(error, RecursionError) else error}"
