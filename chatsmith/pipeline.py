"""The road: the stages of a run in order, each judged before the next begins."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from chatsmith.config import Config, StageName
from chatsmith.data.licences import non_commercial
from chatsmith.data.sources import Source
from chatsmith.dry_run import dry_run as say_plan
from chatsmith.errors import ConfigError, GateFailed, RunError, TrainingStopped
from chatsmith.gold import open_judge
from chatsmith.inspection.record import look
from chatsmith.intake import deal, note_sources, read_sources, stages_to_train, take_in
from chatsmith.next_commands import next_commands
from chatsmith.report.page import write_report
from chatsmith.runs.manifest import check_run, is_run
from chatsmith.runs.run import Run, lock, open_run
from chatsmith.runs.runtime import Interrupted, StopSignals, choose_device
from chatsmith.runs.trackers import open_trackers
from chatsmith.screen.console import Screen
from chatsmith.screen.text import quoted
from chatsmith.stages.table import BY_NAME
from chatsmith.world.material import ordinary


def train(
    config: Config,
    directory: Path,
    *,
    recipe: str,
    only: Sequence[StageName] | None = None,
    restart_from: StageName | None = None,
    force: bool = False,
    dry_run: bool = False,
    sources: Sequence[Source] | None = None,
) -> None:
    """Run the stages of `config` that are not yet finished in `directory`.

    Args:
        recipe: name for the records.
        only: stages to run now; the others stay as they are. None: all.
        restart_from: run this stage and all later ones anew.
        force: go on past a failed gate, and say so.
        dry_run: check models, data and rewards, print the plan, and stop.
        sources: what `take_in` gave; None: it is asked.
    Raises:
        ChatsmithError: see `errors`; GateFailed where a stage's result cannot be built upon.
        Interrupted: SIGINT or SIGTERM; a checkpoint was saved.
    """
    screen = Screen()
    if sources is None:
        sources = take_in(config, None if dry_run else directory, restart_from=restart_from)
    choose_device(config.engine)  # one that is not here is refused now
    if dry_run:
        if is_run(directory):
            check_run(directory)
        say_plan(config, directory, screen, sources)
        return
    if sources:
        _check(config, sources, stages_to_train(config))
    with lock(directory), StopSignals() as stop:
        run = open_run(
            config, directory, recipe=recipe, force=force, restart_from=restart_from, screen=screen, stop=stop
        )
        try:
            with open_trackers(config, directory, partial(screen.line, style="yellow")) as run.trackers:
                _run_stages(run, sources, only)
        except BaseException as error:
            run.manifest.status = "interrupted" if isinstance(error, Interrupted) else "failed"
            with suppress(RunError):  # of both errors the first is the one to tell
                run.save()
            if isinstance(error, GateFailed | TrainingStopped):
                _draw(run)
            raise
        _draw(run)
        for purpose, command in next_commands(run):
            run.screen.line(f"{purpose}:")
            run.screen.copied(command)


def _check(config: Config, sources: Sequence[Source], stages: Sequence[StageName]) -> None:
    """Refuse before any work what the stages would refuse."""
    data = deal(config, sources)
    for stage in stages:
        BY_NAME[stage].work.check(config, data)


def _run_stages(run: Run, sources: Sequence[Source], only: Sequence[StageName] | None) -> None:
    given, run.config = run.config, ordinary(run.config, run.directory)
    config = run.config
    run.data = sources or read_sources(config)
    note_sources(run, run.data)
    if given.data.sources:  # what a recipe makes needs no look
        look(config, run.data, run.directory, partial(run.screen.line, style="yellow"))
    if not sources:
        _check(config, run.data, [stage for stage in stages_to_train(config) if not run.finished(stage)])
    run.gold = open_judge(config, deal(config, run.data))
    for stage in (stage for stage in config.stages if only is None or stage in only):
        before = config.stages[: config.stages.index(stage)]
        missing = [name for name in before if name in stages_to_train(config) and not run.finished(name)]
        if missing:
            raise ConfigError(f"--only {stage}: {missing[0]} comes before it in this run and is not finished.")
        if run.finished(stage):
            run.screen.line(f"{stage}: finished before, {run.manifest.stages[stage].status}")
        elif reason := BY_NAME[stage].unneeded(config):
            run.skip(stage, reason)
        else:
            BY_NAME[stage].work.run(run)
        _gate(run, stage)
    _finish(run)


def _gate(run: Run, stage: StageName) -> None:
    """Go on, or stop at a failed stage and say how to go on."""
    entry = run.manifest.stages[stage]
    if entry.status == "failed" and run.force:
        entry.status = "forced"
    if entry.status == "failed":
        raise GateFailed(
            f"{stage} failed: {entry.verdict} Change a setting and type the same command with --from {stage}, "
            "or go on regardless with --force."
        )


def _finish(run: Run) -> None:
    """The run's status, and where everything is."""
    manifest = run.manifest
    forced = any(entry.status == "forced" for entry in manifest.stages.values())
    complete = all(run.finished(stage) for stage in run.config.stages)
    manifest.status = "forced" if forced else "finished" if complete else "partial"
    run.save()
    run.screen.line("")
    seconds = manifest.summary.seconds
    run.screen.line(f"{manifest.status} after {seconds:.0f} s; everything is in {quoted(run.directory)}", "bold")
    for source in manifest.data:
        if non_commercial(source.licence):
            run.screen.line(f"not for commercial use: {source.spec} ({source.licence})", "yellow")


def _draw(run: Run) -> None:
    """The report, which must not decide how a run ends."""
    try:
        path = write_report(run.directory)
    except (RunError, OSError) as error:  # the library that draws keeps files of its own
        run.screen.line(f"no report: {error}", "yellow")
    else:
        run.screen.line("What happened, drawn (open it in a browser):")
        run.screen.command(path)
