"""What a report reads of a run directory. A run may be of any age, half done or killed: what is missing is empty."""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_LINES, parse_json, read_bytes
from chatsmith.runs.listing import status_of
from chatsmith.runs.manifest import Manifest, StageEntry, is_run, read_manifest
from chatsmith.screen.text import quoted
from chatsmith.stages.table import RL, SAMPLES, TABLE, Stage, named

Row = dict[str, Any]
Curve = tuple[list[float], list[float]]  # steps and values; a value that was not finite is NaN

# They change the order in which the text around them is read, or reach beyond the text they stand in.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Metrics:
    """What a stage logged: how many steps, and each metric over those that have it."""

    steps: int = 0
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass
class RecordedRun:
    """What a run directory says about itself."""

    name: str
    directory: Path
    status: str
    manifest: Manifest
    metrics: dict[str, Metrics] = field(default_factory=dict)  # per stage
    warnings: dict[str, list[str]] = field(default_factory=dict)  # per stage, of what was logged while it ran
    samples: list[Row] = field(default_factory=list)  # held-out prompts, answered before and after `answering`
    answers: list[Row] = field(default_factory=list)  # given during that stage

    @property
    def stages(self) -> list[Stage]:
        """Those that the run has, finished or not."""
        return [stage for stage in TABLE if stage.name in self.manifest.config.stages]

    @property
    def answering(self) -> Stage:
        """The last one that leaves answers of before and after."""
        return next((stage for stage in reversed(self.stages) if stage.shows_answers), RL)

    @property
    def training(self) -> str:
        """What that stage does, by its name for people."""
        return named(self.answering.short, self.manifest.config.rl.algorithm)

    @property
    def voice(self) -> str:
        """The name of its model."""
        return next(iter(self.answering.voices))

    @property
    def algorithm(self) -> str:
        """What its third stage does, by its name for people."""
        return named("PPO", self.manifest.config.rl.algorithm)

    def entry(self, stage: Stage) -> StageEntry:
        """What the manifest says of a stage."""
        return self.manifest.stages.get(stage.name, StageEntry())

    def column(self, stage: str, metric: str) -> Curve:
        return self.metrics[stage].curves.get(metric, ([], []))

    def finite(self, stage: str, metric: str) -> list[float]:
        """The values of a metric that are numbers."""
        return [value for value in self.column(stage, metric)[1] if math.isfinite(value)]


def algorithms(runs: Sequence[RecordedRun]) -> str:
    """The names of what these runs do in their last stage, each once."""
    return " and ".join(dict.fromkeys(run.training for run in runs))


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
    manifest = read_manifest(directory)
    run = RecordedRun(directory.name, directory, status_of(directory, manifest), manifest)
    for stage in TABLE:
        run.metrics[stage.name] = _columns(read_rows(directory / stage.name / "metrics.jsonl"))
        warned = read_rows(directory / stage.name / "warnings.jsonl")
        run.warnings[stage.name] = [str(row["warning"]) for row in warned if "warning" in row]
    run.samples += read_rows(directory / run.answering.name / SAMPLES)
    run.answers += read_rows(directory / run.answering.name / "answers.jsonl")
    return run


def _columns(rows: Sequence[Row]) -> Metrics:
    curves: dict[str, Curve] = {}
    for row in rows:
        step = number(row.get("step"))
        for name, value in row.items() if math.isfinite(step) else ():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(number(value))
    return Metrics(len(rows), curves)


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
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict)]


def number(value: Any) -> float:
    """A finite number as float; anything else, null and booleans included, as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # JSON knows integers of any size
        return math.nan


def harmless(text: str) -> str:
    """Text without control characters, changes of writing direction and halves of characters."""
    refused = {c for c in set(text) - {"\n", "\t"} if c in _DIRECTION or unicodedata.category(c) in ("Cc", "Cs")}
    return "".join("�" if c in refused else c for c in text)
