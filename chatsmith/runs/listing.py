"""The runs below a directory as one table, from their manifests. Nothing here can fail on what lies there."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chatsmith.errors import RunError
from chatsmith.files.writing import is_held
from chatsmith.runs.manifest import MANIFEST, Manifest, is_run, lock_file, read_manifest
from chatsmith.screen.console import Screen
from chatsmith.screen.text import quoted, unbroken
from chatsmith.stages.table import TABLE

DEPTH = 3  # runs/NAME, runs/GROUP/NAME, ...


@dataclass(frozen=True)
class Entry:
    """A run, or in `problem` why a directory is none."""

    name: str
    changed: float = 0.0  # seconds since the epoch
    manifest: Manifest = field(default_factory=lambda: Manifest(stages={}))
    status: str = ""
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
            yield Entry(prefix.rstrip("/"), problem=f"cannot be read: {error.strerror}")
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
            yield Entry(name, problem="no run of chatsmith: it holds no manifest.json")


def _read(directory: Path, name: str) -> Entry:
    try:
        manifest = read_manifest(directory)
        files = [directory / MANIFEST, *directory.glob("*/metrics.jsonl")]
        changed = max(file.stat().st_mtime for file in files)
    except OSError as error:
        return Entry(name, problem=f"cannot be read: {error.strerror}")
    except RunError as error:
        return Entry(name, problem=str(error).removeprefix(f"{directory}/"))
    return Entry(name, changed, manifest, status_of(directory, manifest))


def status_of(directory: Path, manifest: Manifest) -> str:
    """What the run says of itself; "killed" where it says that it is running and nobody holds it."""
    killed = manifest.status == "running" and not is_held(lock_file(directory))
    return "killed" if killed else manifest.status


def _table(runs: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; figures that no run has are left out."""
    now = time.time()
    rows = []
    for run in runs:
        summary = run.manifest.summary
        rows.append(
            {
                "run": quoted(run.name),
                "status": run.status,
                "age": _coarse(max(0.0, now - run.changed)),  # since its last change
                "took": _coarse(summary.seconds) if "seconds" in summary.model_fields_set else "",
                "recipe": unbroken(run.manifest.recipe),
            }
        )
        for column in (column for stage in TABLE for column in stage.columns):
            value = getattr(summary, column.figure) - (getattr(summary, column.since) if column.since else 0.0)
            rows[-1][column.name] = column.written.format(value) if math.isfinite(value) else ""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return columns, [[row[name] for name in columns] for row in rows]


def _coarse(seconds: float) -> str:
    """A duration in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
