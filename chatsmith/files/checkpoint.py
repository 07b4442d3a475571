"""One checkpoint per stage: everything a resumed stage needs, in one file that is replaced atomically.

And the other files of a run: JSON, lines of JSON, text. `writing.py` puts them in place.
"""

import io
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_LINES, is_stored_plainly, parse_json, read_bytes
from chatsmith.files.writing import append, encoded, replace_file
from chatsmith.machine import out_of_memory, refusal
from chatsmith.screen.text import quoted


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; replaces `path` atomically."""
    import torch

    replace_file(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None if there is none. Nothing but tensors and plain values is unpickled.

    Raises:
        RunError: if it is damaged.
    """
    if not path.exists():
        return None
    if not is_stored_plainly(path):  # as torch.save writes it; anything else could unpack to more than there is memory
        raise damaged(path)
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of what is damaged
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a zip archive, of a pickle, of tensors: whatever is wrong, it cannot be continued
        if refusal(error) is not None or out_of_memory(error):
            raise
        raise damaged(path) from error
    if not isinstance(state, dict):
        raise damaged(path)
    return state


def damaged(path: Path) -> RunError:
    """What is said of a checkpoint that cannot be continued; it stays where it is."""
    return RunError(f"{quoted(path)}: damaged, it cannot be read as a checkpoint. Run the stage anew (--from STAGE).")


def save_json(path: Path, value: Any) -> None:
    """Write JSON, numbers that are not finite as null; replaces `path` atomically."""
    save_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def save_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, numbers that are not finite as null; replaces `path` atomically."""
    save_text(path, "".join(map(_line, rows)))


def read_jsonl(path: Path, **kinds: type) -> list[dict[str, Any]]:
    """The objects of a file written here, one per line; none if there is no file.

    Args:
        kinds: keys that all of them have, and of which kind their values are.

    The last line of a killed process may be half a line: it is left out. Lines end with a newline and nothing else:
    texts may hold what Python's `splitlines` also takes for the end of one.

    Raises:
        RunError: if another line is damaged.
    """
    try:
        text = read_bytes(path, limit=LONGEST_LINES, refuse=RunError)
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(io.BytesIO(text), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(
                f"{quoted(path)}:{number}: damaged, it is no object of JSON. Run the stage anew (--from STAGE)."
            )
        for key, kind in kinds.items():
            if not isinstance(row.get(key), kind):
                raise RunError(f"{quoted(path)}:{number}: damaged, it has no {key}. Run the stage anew (--from STAGE).")
        rows.append(row)
    return rows


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add one JSON object per line, numbers that are not finite as null."""
    append(path, "".join(map(_line, rows)))


def save_text(path: Path, text: str) -> None:
    """Write text; replaces `path` atomically."""
    replace_file(path, lambda file: file.write(encoded(text)))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
