"""The two files of a collection: its records, and beside them a journal of the endpoint's replies.

Both only grow, by a whole line at a time that is flushed at once, so that a kill at any moment loses no line before.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatsmith.collect.endpoint import Reply
from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_LINES, parse_json
from chatsmith.files.writing import make_directory, open_locked


class Ledger:
    """The records in `output`, and in `output.journal` the settings and every reply under the name of its request.

    Raises:
        RunError: if a file cannot be written, is being written by another process, holds a broken line, or was begun
            with other settings.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self._output, self.journal = output, output.with_name(f"{output.name}.journal")
        self._records, self._replies = _Lines(output, warn), _Lines(self.journal, warn)
        if not self._replies.rows:
            if self._records.rows:
                raise RunError(f"{output}: holds records, but {self.journal} is missing. Give another --output.")
            self._replies.append(settings)
            self._replies.rows.append(dict(settings))
        begun, *rows = self._replies.rows
        if others := [f"--{name}" for name in settings if begun.get(name) != settings[name]]:
            raise RunError(
                f"{output}: was begun with another {' and '.join(others)}. Give the old one, or another --output."
            )
        try:
            self.replies = {row.pop("request"): Reply(**row) for row in rows}
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.journal}: not as this version writes it: {error}. Give another --output.") from None

    def __len__(self) -> int:
        """The records that were there when the files were opened."""
        return len(self._records.rows)

    def instructions(self) -> set[str]:
        """Those of the records that were there."""
        return {row["instruction"] for row in self._records.rows if isinstance(row.get("instruction"), str)}

    def note(self, request: str, reply: Reply) -> None:
        self._replies.append({"request": request, **asdict(reply)})

    def keep(self, row: int, record: Mapping[str, Any]) -> None:
        """Append record number `row`, from 0, or see that it is the one that stands there.

        Raises:
            RunError: if another one stands there, or the file cannot be written.
        """
        if row >= len(self):
            self._records.append(record)
        elif self._records.rows[row] != record:
            raise RunError(
                f"{self._output}:{row + 1}: not what {self.journal} says: the file was changed, or begun by another "
                "version of chatsmith. Give another --output to begin anew."
            )

    def close(self) -> None:
        self._records.close()
        self._replies.close()


class _Lines:
    """A file of JSON objects, one per line. `rows` is what it held when it was opened."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        try:
            make_directory(path.parent)
            self._file = open_locked(path)
        except BlockingIOError:
            raise RunError(f"{path}: another chatsmith is writing it. Wait for it, or stop it.") from None
        except OSError as error:
            raise _cannot_write(path, error) from None
        if os.fstat(self._file.fileno()).st_size > LONGEST_LINES:
            self._file.close()
            raise RunError(f"{path}: longer than {LONGEST_LINES >> 30} GiB. Give another --output.")
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        if rest:
            warn(f"{path}: its last line was cut off by a kill; the {len(rest)} bytes of it are taken out")
            self._file.truncate(self._file.tell() - len(rest))
        self.rows = [_object(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]

    def append(self, row: Mapping[str, Any]) -> None:
        # half a surrogate pair, which a reply may hold, is written as JSON spells it
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            if self._file.write(line + b"\n") <= len(line):  # there was no room for the rest
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def close(self) -> None:
        self._file.close()


def _object(line: bytes, origin: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise RunError(f"{origin}: not JSON: {error}. Give another --output, which begins anew.") from None
    if not isinstance(row, dict):
        raise RunError(f"{origin}: not an object. Give another --output, which begins anew.")
    return row


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror}. Mend that; the same command then goes on.")
