"""The record of a run, `manifest.json`; and a run directory as it is found, whoever made it.

It may have come out of an archive. Wherever a run is opened, read or listed it is checked first: inside it there are
regular files and directories and nothing else, so that no path in it leads out of it. RUN itself and the directories
above it are the user's own, and may be links.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from chatsmith.config import STAGES, StageName
from chatsmith.errors import RunError
from chatsmith.files.checkpoint import save_json
from chatsmith.files.received import LONGEST_JSON, check_directory, parse_json, read_bytes
from chatsmith.screen.text import one_line, quoted

MANIFEST = "manifest.json"
VERSION = 2
FOREIGN = ("trackers/wandb",)  # where W&B makes links of its own


def _number(value: Any) -> Any:
    return math.nan if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "it should be a string")
    return value


Text = Annotated[str, PlainValidator(_text)]  # of a path it may hold half a character, which pydantic's own refuses
Number = Annotated[float, BeforeValidator(_number)]  # JSON has no NaN: null stands for it
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]  # before and after, or the ends of an interval
Seconds = Annotated[FiniteFloat, Field(ge=0, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**12)]
UNKNOWN: Pair = [math.nan, math.nan]

StageStatus = Literal["passed", "failed", "forced", "skipped", "finished"]
RunStatus = Literal["running", "finished", "partial", "forced", "failed", "interrupted"]


class Part(BaseModel):
    """Base of all parts. What is missing, as in older runs, has a default; unknown keys are of later ones, and stay."""

    model_config = ConfigDict(strict=True, extra="allow")


class Summary(Part):
    """Figures over the whole run; of a stage, its part of them."""

    seconds: Seconds = 0.0
    sft_loss_first: Number = math.nan
    sft_loss_last: Number = math.nan
    pairs_accuracy: Number = math.nan
    reward_accuracy: Number = math.nan
    reward_mean_first: Number = math.nan
    reward_mean_last: Number = math.nan
    reward_gain_ci95: Pair = UNKNOWN
    gold_sft: Number = math.nan
    gold_rl: Number = math.nan
    gold_gain: Number = math.nan
    gold_gain_ci95: Pair = UNKNOWN
    gold_components: dict[Text, Pair] = {}
    gold_greedy: Pair = UNKNOWN


class Share(Part):
    """A share with its interval."""

    value: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan


class Histogram(Part):
    counts: list[Count] = []
    edges: list[Number] = []


class Reliability(Part):
    """Of a group of pairs of like confidence."""

    confidence: Number = math.nan
    accuracy: Number = math.nan
    pairs: Count = 0


class StageReport(Part):
    """What a stage measured, as far as it is shown or built upon; every stage has further figures of its own."""

    steps: Count = 0
    dropped_too_long: Count = 0
    # of a reward model
    accuracy: Share = Share()
    accuracy_by_source: dict[Text, Share] = {}
    length_rule: Text = ""
    length_rule_accuracy: Share = Share()
    pairs: Number = math.nan
    margins: Histogram = Histogram()
    reliability: list[Reliability] = []
    calibration_error: Number = math.nan
    length_correlation: Number = math.nan
    # of a policy
    reward_unit: Text = ""


class StageEntry(Part):
    """A stage that is finished or skipped."""

    status: StageStatus = "finished"
    verdict: Text = ""
    headline: Text = ""
    details: Text = ""
    warnings: list[Text] = []
    unfit_for: list[Text] = []
    seconds: Number = math.nan
    model_dir: Text | None = None
    summary: Summary = Summary()
    report: StageReport = StageReport()
    score_mean: Number = math.nan
    score_std: Number = math.nan
    accuracy_by_aspect: dict[Text, Number] = {}
    dropped_too_long: Count = 0
    final_judge: Text = ""

    @property
    def shown(self) -> str:
        """The status in one word for people, to whom a passed one with a warning is another."""
        return "warned" if self.status == "passed" and self.unfit_for else self.status


class Dropped(Part):
    origin: Text = ""
    reason: Text = ""


class DataEntry(Part):
    """A source."""

    spec: Text = ""
    records: Count | None = None
    unused: Count = 0
    dropped: list[Dropped] = []
    dropped_count: Count = 0
    licence: Text | None = None
    sha256: Text | None = None


class _Asked(BaseModel):
    """A part of the configuration of which some keys are asked for."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Data(_Asked):
    sources: list[dict[str, Any] | Text] = []


class _Rl(_Asked):
    algorithm: Text = "ppo"
    steps: Count | None = None
    rewards: list[Text] = []


class _World(_Asked):
    label_noise: Number = math.nan


class RecordedConfig(_Asked):
    """The configuration as it was, whatever the keys were then: it is kept whole, and these are asked for."""

    seed: int | None = None
    stages: list[Text] = list(STAGES)
    actor_model: Text = ""
    data: _Data = _Data()
    rl: _Rl = _Rl()
    judge: Text = ""
    world: _World | None = None
    _whole: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: "Callable[[Any], RecordedConfig]") -> "RecordedConfig":
        config = handler(value)
        config._whole = value.whole() if isinstance(value, RecordedConfig) else value
        return config

    @model_serializer
    def whole(self) -> dict[str, Any]:
        """Group by group, in the order in which it was written."""
        return self._whole


class Manifest(Part):
    """What a run says about itself: the contract for scripts, see docs/contract.md."""

    version: Annotated[int, Field(ge=1)] = 1
    status: RunStatus = "partial"
    recipe: Text = "defaults"
    config: RecordedConfig = RecordedConfig()
    versions: dict[Text, Text] = {}
    commit: Text | None = None
    threads: Count | None = None
    seconds_before: Seconds = 0.0
    data: list[DataEntry] = []
    computation: dict[Text, dict[str, Any]] = {}
    stages: dict[StageName, StageEntry]
    summary: Summary = Summary()


def is_run(directory: Path) -> bool:
    """Whether a manifest stands there, or something under its name."""
    return os.path.lexists(directory / MANIFEST)


def lock_file(directory: Path) -> Path:
    """Held by the one command that works on the run, by whatever path it was reached; it goes when that ends."""
    real = Path(os.path.realpath(directory))
    return real.parent / f".{real.name}.lock"


def check_run(directory: Path) -> None:
    """
    Raises:
        RunError: naming what is in a run that is neither a regular file nor a directory.
    """
    check_directory(directory, refuse=RunError, links=False, foreign=FOREIGN)


def read_manifest(directory: Path) -> Manifest:
    """The record of a run, once the run has been checked.

    Raises:
        RunError: if `check_run` refuses the run; if its manifest is no JSON, is of a newer version, or holds something
            of another kind, naming it. FileNotFoundError: if there is none.
    """
    check_run(directory)
    path = directory / MANIFEST
    try:
        value = parse_json(read_bytes(path, limit=LONGEST_JSON, refuse=RunError))
    except ValueError as error:
        raise RunError(
            f"{quoted(path)} is broken, not valid JSON: {error}. It is not the manifest of a run: move the directory "
            "away."
        ) from error
    version = value.get("version") if isinstance(value, dict) and "stages" in value else None
    if isinstance(version, int) and version > VERSION:
        raise RunError(
            f"{quoted(path)}: written by a newer version of chatsmith, which this one cannot read. Install that one."
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        said = re.sub(r" or instance of \w+$", "", re.sub(r"^Input should be", "it should be", first["msg"]))
        raise RunError(
            f"{quoted(path)}: not the manifest of a run ({one_line(where)[:80]}: {said}). Move the directory away."
        ) from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the record of a run; numbers that are not finite are written as null.

    Raises:
        RunError: if it cannot be written.
    """
    save_json(directory / MANIFEST, manifest.model_dump(exclude_unset=True))
