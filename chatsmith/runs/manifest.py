"""A run directory as it is found, whoever made it: its manifest, and that it holds what a run holds.

It may have come out of an archive. Wherever a run is opened, read or listed it is checked first: inside it there are
regular files and directories and nothing else, so that no path in it leads out of it. RUN itself and the directories
above it are the user's own, and may be links.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from chatsmith.config import StageName
from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_JSON, check_directory, parse_json, read_bytes
from chatsmith.screen.text import one_line, quoted

MANIFEST = "manifest.json"
VERSION = 1
FOREIGN = ("trackers/wandb",)  # where W&B makes links of its own


class _Shape(BaseModel):
    """Unknown keys are of another version, and stay."""

    model_config = ConfigDict(strict=True, extra="ignore")


_Seconds = Annotated[FiniteFloat, Field(ge=0, le=1e12)]


class _Summary(_Shape):
    seconds: _Seconds = 0.0


class _Report(_Shape):
    steps: Annotated[int, Field(ge=0, le=10**12)] = 0


class _Stage(_Shape):
    status: str = ""
    verdict: str = ""
    headline: str = ""
    unfit_for: list[str] = []
    summary: dict[str, Any] = {}
    report: _Report = _Report()


class _Source(_Shape):
    spec: str = ""
    licence: str | None = None
    sha256: str | None = None


class _Manifest(_Shape):
    """What a command relies on that continues a run or talks with its model."""

    stages: dict[StageName, _Stage]
    config: dict[str, Any] = {}
    summary: _Summary = _Summary()
    data: list[_Source] = []
    computation: dict[str, Any] = {}


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


def load_manifest(directory: Path) -> Any:
    """The value in a run's manifest, of whatever kind, once the run has been checked.

    Raises:
        RunError: if `check_run` refuses the run, or its manifest is no JSON. FileNotFoundError: if there is none.
    """
    check_run(directory)
    path = directory / MANIFEST
    try:
        return parse_json(read_bytes(path, limit=LONGEST_JSON, refuse=RunError))
    except ValueError as error:
        raise RunError(
            f"{quoted(path)} is broken, not valid JSON: {error}. It is not the manifest of a run: move the directory "
            "away."
        ) from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """The same, of the kind that a run writes, as far as a command relies on it that continues the run.

    Raises:
        RunError, FileNotFoundError: the same; and where something is of another kind, naming it.
    """
    manifest: dict[str, Any] = load_manifest(directory)
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        said = re.sub(r"^Input should be", "it should be", first["msg"])
        raise RunError(
            f"{quoted(directory / MANIFEST)}: not the manifest of a run ({one_line(where)[:80]}: {said}). Move the "
            "directory away."
        ) from error
    # earlier versions wrote less
    whole: dict[str, Any] = {"config": {}, "summary": {}} | manifest
    for stage, entry in whole["stages"].items():
        whole["stages"][stage] = {"status": "finished", "verdict": "", "summary": {}} | entry
    if "data" in whole:
        whole["data"] = [{"spec": "", "licence": None, "sha256": None} | entry for entry in whole["data"]]
    return whole
