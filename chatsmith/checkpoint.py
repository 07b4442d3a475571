"""One checkpoint per stage: everything a resumed stage needs, in one file that is replaced atomically.

A file is written beside its target, flushed to the disk and then renamed over it, so that a kill at any moment leaves
either the old checkpoint or the new one, never half of one.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chatsmith.errors import RunError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; replaces `path` atomically."""
    import torch

    _replace(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None if there is none. Nothing but tensors and plain values is unpickled."""
    if not path.exists():
        return None
    import torch

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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
    save_text(path, "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file written here, one per line; none if there is no file.

    The last line of a killed process may be half a line: it is left out. Lines end with a newline and nothing else:
    texts may hold what Python's `splitlines` also takes for the end of one.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def save_text(path: Path, text: str) -> None:
    """Write text; replaces `path` atomically."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a fresh directory that then takes the name `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        mode = temporary.stat().st_mode & 0o666  # what the umask leaves: safetensors writes for the owner alone
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(mode)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(path, error) from error
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return RunError(
        f"{path}: cannot be written: {reason}. What was saved before is untouched: "
        "free some space or mend the permissions, then type the same command again to resume."
    )
