"""The runs below a directory as one table, from their manifests. Nothing here can fail on what lies there."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsmith.errors import RunError
from chatsmith.files.writing import is_held
from chatsmith.runs.manifest import MANIFEST, is_run, load_manifest, lock_file
from chatsmith.screen.console import Screen
from chatsmith.screen.text import quoted, unbroken

DEPTH = 3  # runs/NAME, runs/GROUP/NAME, ...


@dataclass(frozen=True)
class Entry:
    """A run, or in `problem` why a directory is none."""

    name: str
    changed: float  # seconds since the epoch
    manifest: Mapping[str, Any]
    problem: str = ""


def show_runs(screen: Screen, directory: Path) -> None:
    """Print the table, the run that changed last first."""
    entries = sorted(find_runs(directory), key=lambda entry: -entry.changed)
    runs = [entry for entry in entries if not entry.problem]
    if not entries:
        screen.line(f"No runs in {quoted(directory)}. To make one:")
        screen.command("chatsmith", "train")
        return
    if runs:
        columns, rows = _table(runs)
        screen.table(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} in {quoted(directory)}", columns, rows)
    for entry in entries:
        if entry.problem:
            screen.line(f"  {quoted(entry.name)}: {entry.problem}", "dim")


def find_runs(directory: Path) -> list[Entry]:
    """Every run below `directory`, and the directories that are none."""
    if is_run(directory):
        return [_read(directory, directory.name)]
    return list(_search(directory, "", DEPTH))


def _search(directory: Path, prefix: str, depth: int) -> Iterator[Entry]:
    try:
        children = sorted(child for child in directory.iterdir() if child.is_dir() and child.name[0] != ".")
    except OSError as error:
        if prefix:
            yield Entry(prefix.rstrip("/"), 0.0, {}, f"cannot be read: {error.strerror}")
        return
    for child in children:
        name = prefix + child.name
        if os.access(child, os.X_OK) and is_run(child):
            yield _read(child, name)
            continue
        below = list(_search(child, f"{name}/", depth - 1)) if depth > 1 else []
        if any(not entry.problem for entry in below):
            yield from below
        else:
            yield Entry(name, 0.0, {}, "no run of chatsmith: it holds no manifest.json")


def _read(directory: Path, name: str) -> Entry:
    path = directory / MANIFEST
    try:
        manifest = load_manifest(directory)
        files = [path, *directory.glob("*/metrics.jsonl")]
        changed = max(file.stat().st_mtime for file in files)
    except OSError as error:
        return Entry(name, 0.0, {}, f"cannot be read: {error.strerror}")
    except RunError as error:
        return Entry(name, 0.0, {}, str(error).removeprefix(f"{directory}/"))
    if not isinstance(manifest, dict) or not {"status", "stages", "summary"} <= set(manifest):
        return Entry(name, 0.0, {}, f"{MANIFEST} is not one of chatsmith")
    if manifest["status"] == "running" and not is_held(lock_file(directory)):
        manifest["status"] = "killed"
    return Entry(name, changed, manifest)


def _table(runs: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; figures that no run has are left out."""
    now = time.time()
    rows = []
    for run in runs:
        summary = run.manifest["summary"] if isinstance(run.manifest["summary"], dict) else {}
        first, last = _number(summary, "reward_mean_first"), _number(summary, "reward_mean_last")
        rows.append(
            {
                "run": quoted(run.name),
                "status": unbroken(str(run.manifest["status"])),
                "age": _coarse(max(0.0, now - run.changed)),  # since its last change
                "took": _written(_number(summary, "seconds"), _coarse),
                "recipe": unbroken(str(run.manifest.get("recipe", ""))),
                "SFT loss": _written(_number(summary, "sft_loss_last"), "{:.3f}".format),
                "acc.": _written(_number(summary, "reward_accuracy"), "{:.0%}".format),
                "reward": _written(last - first, "{:+.2f}".format),
                "gold": _written(_number(summary, "gold_gain"), "{:+.3f}".format),
            }
        )
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return columns, [[row[name] for name in columns] for row in rows]


def _coarse(seconds: float) -> str:
    """A duration in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _number(summary: Mapping[str, Any], name: str) -> float:
    value = summary.get(name)
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON knows integers of any size
        return math.nan


def _written(value: float, write: Callable[[float], str]) -> str:
    return write(value) if math.isfinite(value) else ""
