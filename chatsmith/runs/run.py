"""The run directory: its manifest, its configuration, and whether a command may continue it.

DIR/manifest.json            status, verdicts, summary: the contract for scripts
DIR/data.json                what the data looks like
DIR/data/                    what a recipe made itself
DIR/trackers/                what trackers write, and the id they know the run by
DIR/<stage>/metrics.jsonl    one JSON object per step
DIR/<stage>/checkpoint.pt    while the stage runs
DIR/<stage>/<model>          what it leaves: sft/model  reward/model  rl/actor  rl/critic  rl/ema
"""

import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatsmith import __version__
from chatsmith.card import card, stated_licence
from chatsmith.config import Config, StageName
from chatsmith.errors import RunError
from chatsmith.files.checkpoint import finite
from chatsmith.files.writing import (
    check_replaceable,
    forget_unfinished,
    hold,
    is_unfinished,
    make_directory,
    remove,
    remove_model,
)
from chatsmith.runs.manifest import (
    VERSION,
    Manifest,
    RecordedConfig,
    StageEntry,
    Summary,
    check_run,
    is_run,
    lock_file,
    read_manifest,
    write_manifest,
)
from chatsmith.runs.runtime import StageRun, StopSignals, choose_device, choose_dtype
from chatsmith.runs.trackers import Tracker, feed, first_step, forget
from chatsmith.screen.console import Screen
from chatsmith.screen.text import one_line, quoted
from chatsmith.stages.table import BY_NAME, TABLE, from_on, named

if TYPE_CHECKING:
    import torch

    from chatsmith.data.sources import Source
    from chatsmith.gold import GoldJudge
    from chatsmith.verdicts import Verdict

ANYTIME = {"gates", "engine", "trackers"}  # settings that may change between two commands on one run
FILES = ("checkpoint.pt", "metrics.jsonl", "answers.jsonl", "warnings.jsonl")  # of every stage


@dataclass
class Run:
    """One invocation on one run directory.

    `config` is what the stages work with; where a recipe makes model and data, these are files of the run by now. The
    manifest holds the configuration as it was given.
    """

    config: Config
    directory: Path
    screen: Screen
    stop: StopSignals
    force: bool
    manifest: Manifest
    trackers: Sequence[Tracker] = ()
    gold: "GoldJudge | None" = None
    data: Sequence["Source"] = ()
    _started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> "torch.device":
        return choose_device(self.config.engine)

    @property
    def dtype(self) -> "torch.dtype":
        return choose_dtype(self.config.engine, self.device)

    def finished(self, stage: StageName) -> bool:
        """Whether the stage's result is saved, whatever its verdict."""
        return stage in self.manifest.stages

    def title(self, stage: StageName) -> str:
        """Its heading on the screen; one that runs alone has the number that it has in a default run."""
        numbered = self.config.stages if len(self.config.stages) > 1 else Config().stages
        place = f" {numbered.index(stage) + 1} of {len(numbered)}" if stage in numbered else ""
        return f"Stage{place}: {named(BY_NAME[stage].title, self.config.rl.algorithm)}"

    def stage(self, stage: StageName) -> StageRun:
        show = partial(self.screen.stage, stage, self.title(stage), road=self.road(stage))
        track = partial(feed, self.trackers, first_step(self.directory, stage)) if self.trackers else None
        save_every_s = self.config.engine.save_every_s
        return StageRun(self.directory / stage, save_every_s=save_every_s, stop=self.stop, show=show, track=track)

    def road(self, running: StageName) -> dict[str, str]:
        """The stages of this run by their names for people, each with its status."""
        entries = self.manifest.stages
        ahead = {stage: "running" if stage == running else "to come" for stage in self.config.stages}
        return {
            named(BY_NAME[stage].short, self.config.rl.algorithm): entries[stage].shown if stage in entries else status
            for stage, status in ahead.items()
        }

    def record(
        self,
        stage: StageName,
        verdict: "Verdict",
        stage_run: StageRun,
        model_dir: str | None,
        summary: dict[str, Any],
        **facts: Any,
    ) -> None:
        """Note a finished stage in the manifest, then forget its checkpoint.

        Args:
            summary: the stage's figures for the manifest's `summary`.
        """
        verdict = replace(verdict, warnings=(*verdict.warnings, *stage_run.warnings()))
        entry = {
            "status": "passed" if verdict.passed else "forced" if self.force else "failed",
            "verdict": verdict.text,
            "headline": verdict.headline,
            "details": verdict.details,
            "warnings": verdict.warnings,
            "unfit_for": verdict.unfit_for,
            "seconds": round(stage_run.seconds, 1),
            "model_dir": model_dir,
            "summary": summary,
            **facts,
        }
        self.manifest.stages[stage] = StageEntry.model_validate(finite(entry))
        self.save()
        stage_run.discard_checkpoint()
        self.screen.verdict(stage, verdict, forced=self.force)

    def skip(self, stage: StageName, reason: str) -> None:
        """Note that a stage is not needed."""
        self.manifest.stages[stage] = StageEntry(
            status="skipped",
            verdict=reason,
            headline=reason,
            details="",
            warnings=[],
            unfit_for=[],
            seconds=0.0,
            model_dir=None,
            summary=Summary(),
        )
        self.save()

    def save(self) -> None:
        """Write the manifest; its summary is what the finished stages say."""
        seconds = self.manifest.seconds_before + time.monotonic() - self._started
        figures: dict[str, Any] = {"seconds": round(seconds, 1)}
        for entry in self.manifest.stages.values():
            figures |= entry.summary.model_dump(exclude_unset=True)
        self.manifest.summary = Summary.model_validate(figures)
        write_manifest(self.directory, self.manifest)


def open_run(
    config: Config,
    directory: Path,
    *,
    recipe: str,
    force: bool,
    restart_from: StageName | None,
    screen: Screen,
    stop: StopSignals,
) -> Run:
    """Create a run directory, or continue the run of the same configuration that is there.

    Args:
        restart_from: forget this stage and all later ones; their settings may then differ.
    Raises:
        RunError: if the directory holds something else.
    """
    import torch

    before = check_directory(config, directory, restart_from)
    restarted = from_on(restart_from) if before is not None else []
    manifest = before or Manifest(stages={})
    for stage, entry in list(manifest.stages.items()):
        # whether a stage that was skipped is needed follows from the settings of this command
        if stage in restarted or entry.status == "skipped":
            del manifest.stages[stage]
    if restart_from == next(iter(BY_NAME)):
        manifest.data = []  # every stage reads it anew
    manifest.version = VERSION
    manifest.status = "running"
    manifest.recipe = recipe
    manifest.config = RecordedConfig.model_validate(config.model_dump(mode="json"))
    libraries = {name: version(name) for name in ("torch", "transformers")}
    manifest.versions = {"chatsmith": __version__, **libraries, "python": platform.python_version()}
    manifest.commit = commit()
    manifest.threads = torch.get_num_threads()
    manifest.seconds_before = manifest.summary.seconds
    run = Run(config, directory, screen, stop, force, manifest)
    forget_unfinished(directory)
    run.save()
    if restarted:
        forget(directory)
    if restart_from == next(iter(BY_NAME)):
        remove(directory / "data.json")
    for stage in restarted:  # only now: a stage that the manifest calls finished must have its model
        _forget(directory, stage)
    return run


def _forget(directory: Path, stage: StageName) -> None:
    """Delete what a stage wrote; what else is in its folder stays there."""
    for name in (*FILES, *BY_NAME[stage].files):
        remove(directory / stage / name)
    for path in sorted((directory / stage).glob("skipped-*.txt")):
        remove(path)
    for name in BY_NAME[stage].models:
        remove_model(directory / stage / name)


def check_directory(config: Config, directory: Path, restart_from: StageName | None) -> Manifest | None:
    """The manifest of the run in `directory` that this command may continue; None if there is no run yet.

    Raises:
        RunError: if the directory holds something else, or another configuration's run; if `check_run` refuses it; or
            if --from would delete what chatsmith did not make.
    """
    if is_run(directory):
        manifest = read_manifest(directory)
        _check_same(manifest.config.whole(), config, directory, restart_from)
        for stage in from_on(restart_from):
            for name in BY_NAME[stage].models:
                check_replaceable(directory / stage / name)
        return manifest
    if directory.exists():
        if not directory.is_dir() or not all(map(is_unfinished, directory.iterdir())):
            raise RunError(f"{quoted(directory)}: exists and is no run of chatsmith. Choose another --run-dir.")
        check_run(directory)
    return None


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the run directory; the system lets go of it however the process ends.

    Raises:
        RunError: if another process holds it. OSError: if the lock cannot be made.
    """
    file = lock_file(directory)
    make_directory(file.parent)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(file))
        except BlockingIOError as error:
            raise RunError(
                f"{quoted(directory)}: another chatsmith is working on this run. Wait for it, or stop it."
            ) from error
        yield


def commit() -> str | None:
    """The git commit that this package runs from, or None for an installed release."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():  # one further up is of somebody else, whose settings git would follow
        return None
    command = ["git", "-c", "log.showSignature=false", "-C", str(package)]
    command += ["log", "-1", "--format=%H", "--", str(package)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def model_card(run: Run, *, what: str, base: str, tags: Sequence[str]) -> str:
    """README.md of a model that a run saves, with the verdicts of the stages before."""
    manifest = run.manifest
    # of a stage after the first, whose base is a result of this run
    start = run.config.actor_model if base.startswith(f"{run.directory}/") and run.config.actor_model else base
    licences: list[tuple[str, str | None]] = [(f"base {start}", stated_licence(start))]
    licences += [(f"data {source.spec}", source.licence) for source in manifest.data]
    verdicts = [f"- {stage}: {entry.status}, {entry.verdict}" for stage, entry in manifest.stages.items()]
    return card(
        what,
        tags=tags,
        made=f"Trained by chatsmith {manifest.versions['chatsmith']} (commit {manifest.commit or 'unknown'}) with the "
        f"recipe `{manifest.recipe}`, seed {run.config.seed}" + ("." if base == start else f", from {one_line(base)}."),
        base=start,
        licences=licences,
        more=["", "Verdicts of the stages before:", "", *(verdicts or ["- none"])],
    )


def _check_same(old: dict[str, Any], config: Config, directory: Path, restart_from: StageName | None) -> None:
    """Settings of stages that run again may change, and so may how to compute and to watch; nothing else.

    A key that the run does not know is of a later version, whose default does what was done without it.
    """
    new, defaults = config.model_dump(mode="json"), Config().model_dump(mode="json")
    # the first stage that a setting has a part in: it may change when that runs anew
    enters_at = {setting: stage.name for stage in TABLE for setting in stage.enters}
    anew = from_on(restart_from)
    differing = []
    for group, value in new.items():
        before = old.get(group, defaults[group])
        if isinstance(before, dict) and isinstance(defaults[group], dict):
            before = defaults[group] | before
        if group in ANYTIME or enters_at.get(group) in anew or before == value:
            continue
        both: tuple[Any, Any] = (value, before)
        here, there = both if all(isinstance(each, dict) for each in both) else ({"": each} for each in both)
        for key in here:
            if here[key] != there.get(key):
                name = f"{group}.{key}".removesuffix(".")
                differing.append(f"{name} ({_shortly(there.get(key))} there, {_shortly(here[key])} here)")
    if not differing:
        return
    stages = {enters_at.get(name.split(".")[0].split(" ")[0]) for name in differing}
    first = next((stage for stage in BY_NAME if stage in stages), None)
    restart = "" if None in stages else f", or run anew from the first stage that they enter: --from {first}"
    raise RunError(
        f"{directory}: holds a run with another configuration: {', '.join(differing[:4])}. "
        f"Choose another --run-dir{restart}."
    )


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
