"""The road: SFT, reward model, PPO, in order, each judged before the next begins."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from chatsmith.config import STAGES, Config, StageName
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData, unused
from chatsmith.data.sources import Source
from chatsmith.engine.forward import check_compiler
from chatsmith.errors import ConfigError, GateFailed, RunError, TrainingStopped
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.inspection import record
from chatsmith.intake import deal, parse_reward, reward_targets, stages_to_train, take_in
from chatsmith.models.load import (
    check_reward_base,
    declared_context,
    load_stop_ids,
    load_tokenizer,
)
from chatsmith.promise import Promise, promise
from chatsmith.report.page import write_report
from chatsmith.report.settings import repeated
from chatsmith.runs.manifest import DataEntry, Dropped, check_run, is_run
from chatsmith.runs.run import Run, lock, open_run
from chatsmith.runs.runtime import Interrupted, StopSignals, choose_device
from chatsmith.runs.trackers import open_trackers
from chatsmith.screen.console import Screen
from chatsmith.screen.text import quoted, shell
from chatsmith.stages.inputs import base_location, halves, sft_location
from chatsmith.stages.rl import check_prompts, load_reward
from chatsmith.stages.table import BY_NAME
from chatsmith.types import Stage
from chatsmith.world import material
from chatsmith.world.evaluation import WorldJudge
from chatsmith.world.sources import sources as world_sources

SHOWN_FINDINGS = 3
DROPPED = "dropped.jsonl"
LISTED_DROPS = 1000


def train(
    config: Config,
    directory: Path,
    *,
    recipe: str,
    only: Sequence[StageName] = STAGES,
    restart_from: StageName | None = None,
    force: bool = False,
    dry_run: bool = False,
    sources: Sequence[Source] | None = None,
) -> None:
    """Run the stages of `config` that are not yet finished in `directory`.

    Args:
        recipe: name for the records.
        only: stages to run now; the others stay as they are.
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
    device = choose_device(config.engine)  # one that is not here is refused now
    if "rl" in config.stages and config.engine.compile:
        check_compiler(device)
    if dry_run:
        if is_run(directory):
            check_run(directory)
        plan(config, directory, screen, sources)
        return
    with lock(directory), StopSignals() as stop:
        run = open_run(
            config, directory, recipe=recipe, force=force, restart_from=restart_from, screen=screen, stop=stop
        )
        try:
            with open_trackers(config, directory, partial(screen.line, style="yellow")) as run.trackers:
                _run_stages(run, sources, [stage for stage in config.stages if stage in only])
        except BaseException as error:
            run.manifest.status = "interrupted" if isinstance(error, Interrupted) else "failed"
            with suppress(RunError):  # of both errors the first is the one to tell
                run.save()
            if isinstance(error, GateFailed | TrainingStopped):
                _draw(run)
            raise
        _draw(run)
        for purpose, command in _next_commands(run):
            run.screen.line(f"{purpose}:")
            run.screen.copied(command)


def plan(config: Config, directory: Path, screen: Screen, sources: Sequence[Source]) -> None:
    """Load tokenizer and ready rewards as a run would, and say what it would do with the data."""
    if config.world is None:
        data = deal(config, sources)
        if "reward" in stages_to_train(config):
            check_reward_base(config.reward_model or config.actor_model)
        tokenizer = load_tokenizer(config.actor_model)
        screen.line(f"model: {config.actor_model}, a vocabulary of {len(tokenizer)} tokens")
        check_prompts(config, config.actor_model, data)
        for stage in stages_to_train(config):
            screen.line(str(_promise(stage, data[stage], config)))
        if data["ptx"].train:
            screen.line(f"ptx: {len(data['ptx'].train)} records")
        if bad := sum(len(source.dropped) for source in sources):
            screen.line(f"bad records left out: {bad}")
    if "rl" in config.stages:
        for spec in config.rl.rewards:
            if parse_reward(spec)[0] != "trained":
                reward = load_reward(spec, config)
                screen.line(f"reward: {reward.name}, weight {reward.weight:g}")
    screen.line(f"stages: {', '.join(stages_to_train(config))}; run directory: {quoted(directory)}")
    screen.line("nothing was written (--dry-run)")


def _promise(stage: StageName, data: StageData, config: Config) -> Promise:
    """What a stage will make of its records."""
    location = config.actor_model
    if stage == "reward":
        location = config.reward_model or location
        data = replace(data, train=halves(config, data.train)[0])
    tokenizer = load_tokenizer(location)
    limit = min(config.data.max_tokens, declared_context(location) or config.data.max_tokens)
    return promise(stage, data, config, tokenizer, load_stop_ids(location, tokenizer), limit)


def _run_stages(run: Run, sources: Sequence[Source], now: Sequence[StageName]) -> None:
    config, run.given = run.config, sources
    if config.world is None:
        _report_sources(run, sources)
        _look_at_data(run, sources)
        if "reward" in stages_to_train(config):
            check_reward_base(config.reward_model or config.actor_model)
    else:
        run.gold, run.made = WorldJudge(config, config.world), world_sources
        if not (run.directory / "base").exists():
            material.write_material(config, config.world, run.directory / "data", run.directory / "base")
    if not run.finished("rl"):
        check_prompts(config, base_location(run), deal(config, run.sources()))
    for stage in now:
        before = config.stages[: config.stages.index(stage)]
        missing = [name for name in before if name in stages_to_train(config) and not run.finished(name)]
        if missing:
            raise ConfigError(f"--only {stage}: {missing[0]} comes before it in this run and is not finished.")
        if run.finished(stage):
            run.screen.line(f"{stage}: finished before, {run.manifest.stages[stage].status}")
        elif stage not in stages_to_train(config):
            run.skip(stage, f"ready rewards are used: {', '.join(reward_targets(config))}")
        else:
            BY_NAME[stage].work.run(run)
        _gate(run, stage)
    _finish(run)


def _report_sources(run: Run, sources: Sequence[Source]) -> None:
    """Sources, licences and dropped records into the manifest, and a line each on the screen.

    The manifest lists the first dropped records of a source, `dropped.jsonl` all of them.

    Raises:
        RunError: if a source has changed since the run began.
    """
    used: list[Stage] = [*stages_to_train(run.config), "ptx"]
    if run.config.rl.ptx_coef > 0:  # without text of their own, the demonstrations are mixed in
        used.append("sft")
    entries = [
        DataEntry(
            spec=spec if isinstance(spec, str) else spec.source,
            records=len(source.records),
            unused=unused(source, used, run.config.data.on_error),
            dropped=[Dropped(**asdict(dropped)) for dropped in source.dropped[:LISTED_DROPS]],
            dropped_count=len(source.dropped),
            licence=source.licence,
            sha256=source.sha256,
        )
        for spec, source in zip(run.config.data.sources, sources, strict=True)
    ]
    nothing = DataEntry(spec="its data")
    for before, now in itertools.zip_longest(run.manifest.data or entries, entries, fillvalue=nothing):
        if before.sha256 != now.sha256:
            raise RunError(
                f"{run.directory}: {now.spec} is not what it was when this run began, so its stages would not fit "
                "together. Choose another --run-dir, or put the old data back."
            )
    run.manifest.data = entries
    if any(source.dropped for source in sources):
        records = itertools.chain.from_iterable(source.dropped for source in sources)
        save_jsonl(run.directory / DROPPED, map(asdict, records))
    for entry in entries:
        unused_ones = f", {entry.unused} of them of use to no stage of this run" if entry.unused else ""
        dropped = f", {entry.dropped_count} left out (listed in {DROPPED})" if entry.dropped else ""
        licence = f"; not for commercial use: {entry.licence}" if non_commercial(entry.licence) else ""
        run.screen.line(f"{entry.spec}: {entry.records} records{unused_ones}{dropped}{licence}")


def _look_at_data(run: Run, sources: Sequence[Source]) -> None:
    """Once per run, what the data looks like; a person reads it in the report."""
    if (run.directory / record.FILE).exists():
        return
    findings = record.write_facts(run.config, sources, run.directory).findings
    wrong = [finding for finding in findings if finding.severity != "note"]
    for finding in wrong[:SHOWN_FINDINGS]:
        run.screen.line(
            f"data: {finding.what} ({finding.count} of {finding.of})" if finding.of else finding.what, "yellow"
        )
    if len(wrong) > SHOWN_FINDINGS:
        run.screen.line(f"data: {len(wrong) - SHOWN_FINDINGS} more in {record.FILE} and the report", "yellow")


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


def _next_commands(run: Run) -> list[tuple[str, str]]:
    """What a person may want to type now, for a shell, each with its purpose."""
    typed = sys.argv[0]  # to be typed again, where `chatsmith` alone would not be found
    program = typed if Path(typed).name == "chatsmith" and not shutil.which("chatsmith") else "chatsmith"
    directory = run.directory
    if run.manifest.status == "partial":
        return [("The other stages", "the same command without --only")]
    if not run.finished("rl"):
        following = "rl" if run.finished("reward") else "reward"
        options: list[str | Path] = [program, following, "--actor-model", Path(sft_location(run))]
        options += ["--reward", directory / "reward" / "model"] if following == "rl" else []
        return [("Next stage", shell([*options, "--data", "FILE.jsonl", "--run-dir", "DIR"]))]
    yours = ["--actor-model", "MODEL", "--data", "FILE.jsonl", "--run-dir", "DIR"]
    commands = [
        ("Talk to it", shell([program, "chat", directory])),
        ("Your own model and data", shell([program, "train", *yours])),
    ]
    if run.config.world is not None and run.config.rl.kl_coef > 0:
        copy = run.directory.with_name(f"{run.directory.name}-no-kl")
        steps = 2 * (run.manifest.stages["rl"].report.steps or 1)
        loose = run.config.rl.model_copy(update={"kl_coef": 0, "schedule": "constant", "steps": steps})
        config = run.config.model_copy(update={"rl": loose})
        words = repeated(config.model_dump(mode="json"), run.manifest.recipe)
        again = shell([program, *words, "--run-dir", copy, "--from", "rl", "--force"])
        commands.append(
            (
                "Watch PPO over-optimise the reward when nothing holds it",
                f"{shell(['cp', '-r', directory, copy])} && {again}",
            )
        )
    return commands
