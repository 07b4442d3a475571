"""What a report reads of a run directory. A run may be of any age, half done or killed: what is missing is empty."""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsmith.config import STAGES
from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_LINES, parse_json, read_bytes
from chatsmith.runs.listing import find_runs
from chatsmith.runs.manifest import is_run, load_manifest
from chatsmith.screen.text import quoted
from chatsmith.stages.table import named

Row = dict[str, Any]

# They change the order in which the text around them is read, or reach beyond the text they stand in.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class RecordedRun:
    """What a run directory says about itself."""

    name: str
    directory: Path
    status: str
    manifest: Mapping[str, Any]
    metrics: Mapping[str, list[Row]]  # per stage
    warnings: Mapping[str, list[str]]  # per stage, of what was logged while it ran
    samples: list[Row]  # held-out prompts, answered before and after stage 3
    answers: list[Row]  # given during stage 3

    @property
    def algorithm(self) -> str:
        """Name for people of what stage 3 does; older runs say none, for they knew one."""
        return named("PPO", self.get("config", "rl", "algorithm") or "ppo")

    def get(self, *keys: str) -> Any:
        """The manifest's value at a path of keys, or None."""
        return dig(self.manifest, *keys)

    def number(self, *keys: str) -> float:
        """The manifest's number at a path of keys, or NaN."""
        return number(self.get(*keys))

    def column(self, stage: str, metric: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, from the rows that have it; values that were not finite are NaN."""
        rows = [row for row in self.metrics[stage] if metric in row and math.isfinite(number(row.get("step")))]
        return [number(row["step"]) for row in rows], [number(row[metric]) for row in rows]

    def stages(self) -> list[str]:
        """The stages that the run has, finished or not."""
        asked = self.get("config", "stages")
        return [stage for stage in STAGES if not isinstance(asked, list) or stage in asked]


def algorithms(runs: Sequence[RecordedRun]) -> str:
    """The names of what these runs' third stages do, each once."""
    return " and ".join(dict.fromkeys(run.algorithm for run in runs))


def read_run(directory: Path) -> RecordedRun:
    """
    Raises:
        RunError: if there is no run, or its manifest cannot be read.
    """
    directory = directory.resolve()
    if not is_run(directory):
        raise RunError(
            f"{quoted(directory)}: no run of chatsmith, it holds no manifest.json. `chatsmith runs DIRECTORY` lists "
            "runs."
        )
    load_manifest(directory)
    entry = find_runs(directory)[0]
    if entry.problem:
        raise RunError(f"{quoted(directory)}: {entry.problem.removesuffix('.')}.")
    return RecordedRun(
        name=directory.name,
        directory=directory,
        status=str(entry.manifest["status"]),
        manifest=entry.manifest,
        metrics={stage: read_rows(directory / stage / "metrics.jsonl") for stage in STAGES},
        warnings={
            stage: [str(row["warning"]) for row in read_rows(directory / stage / "warnings.jsonl") if "warning" in row]
            for stage in STAGES
        },
        samples=read_rows(directory / "rl" / "samples.jsonl"),
        answers=read_rows(directory / "rl" / "answers.jsonl"),
    )


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSONL file; none if there is no file. Half a line, as a killed process leaves it, is none.

    Raises:
        RunError: if it cannot be read, or is too long to be.
    """
    try:
        text = read_bytes(path, limit=LONGEST_LINES, refuse=RunError)
    except FileNotFoundError:
        return []
    rows = []
    for line in io.BytesIO(text):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def count_lines(path: Path) -> int | None:
    try:
        return read_bytes(path, limit=LONGEST_LINES, refuse=RunError).count(b"\n")
    except FileNotFoundError:
        return None


def dig(value: Any, *keys: str) -> Any:
    """The value at a path of keys, or None where there is none."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(value: Any) -> float:
    """A finite number as float; anything else, null and booleans included, as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # JSON knows integers of any size
        return math.nan


def numbers(value: Any) -> list[float]:
    """A list of finite numbers, or an empty one if it is anything else."""
    items = [number(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    return items if all(map(math.isfinite, items)) else []


def harmless(text: str) -> str:
    """Text without control characters, changes of writing direction and halves of characters."""
    return "".join(
        "�" if c in _DIRECTION or (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")) else c for c in text
    )
