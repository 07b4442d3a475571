"""Before any work: what a configuration asks for, whether it can be done, and its data, read and dealt to the stages.

Nothing here loads torch or transformers, which takes seconds: most mistakes are refused at once.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from chatsmith.config import Config, SourceConfig, StageName
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData, mix, unused, why_one_sided
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import IMITATING, as_spec
from chatsmith.errors import ConfigError, DataError, RunError
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.models.location import check_location
from chatsmith.rewards import spec as reward_spec
from chatsmith.runs.manifest import DataEntry, Dropped
from chatsmith.runs.run import Run, check_directory
from chatsmith.runs.trackers import check_installed
from chatsmith.stages.table import BY_NAME, RL
from chatsmith.types import Record, Stage

DROPPED = "dropped.jsonl"
LISTED_DROPS = 1000


def take_in(config: Config, directory: Path | None, *, restart_from: StageName | None) -> list[Source]:
    """The configuration's sources, read, once everything has been checked that can be; none where a recipe makes them.

    Args:
        directory: where the run goes; None: nowhere.
        restart_from: see `open_run`.
    Raises:
        ChatsmithError: see `check` and `check_directory`; DataError for data that cannot be read or is too little.
    """
    check(config)
    if directory is not None:
        check_directory(config, directory, restart_from)
    sources = read_sources(config)
    if sources:
        deal(config, sources)
        records_of(config, "label.sources", config.label.sources)
        records_of(config, "judge_sources", config.judge_sources)
    return sources


def check(config: Config) -> None:
    """What can be wrong before any work.

    Raises:
        ConfigError: if there is no model to start from or no data, if the task world is given either, if a stage lacks
            what it needs, if rewards do not go together, if the judge is one of them, or if a tracker is missing.
        ModelError: if there is no such model directory.
    """
    check_installed(config.trackers)
    given = {
        "--actor-model": bool(config.actor_model),
        "--reward-model": bool(config.reward_model),
        "--data": bool(config.data.sources),
        "judge": bool(config.judge),
    }
    if config.world is not None and any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(
            f"{names}: a recipe with a [world] group, such as tiny-cpu, makes its own model and data. For yours, give "
            "--actor-model and --data without a recipe, or with one that has no [world]."
        )
    if config.world is None:
        if not config.actor_model:
            raise ConfigError(
                "no model to train: give --actor-model DIR_OR_ID, or no arguments at all for the tiny demo."
            )
        if not config.data.sources:
            raise ConfigError("no data to train on: give --data FILE_OR_ID, or data.sources in a recipe.")
        for stage in config.stages:
            if lacking := BY_NAME[stage].lacks(config):
                raise ConfigError(lacking)
    if RL.name in config.stages:
        reward_spec.check([parse_reward(spec) for spec in config.rl.rewards], overlong=config.rl.overlong)
    if config.judge and any(f"{config.judge} (" in code for code in _code(config)):
        raise ConfigError(
            f"judge = {config.judge} is a reward too: training must not see who judges it. Leave one of them out."
        )
    for location in filter(None, (config.actor_model, config.reward_model)):
        check_location(location)


def stages_to_train(config: Config) -> list[StageName]:
    """The run's stages, without those that nothing in it needs."""
    return [stage for stage in config.stages if not BY_NAME[stage].unneeded(config)]


def reward_targets(config: Config) -> list[str]:
    """Every reward that is asked, those of a product by themselves."""
    return [part for spec in config.rl.rewards for part in reward_spec.factors(parse_reward(spec)[0])]


def functions(config: Config) -> list[str]:
    """The user's code that a configuration runs, each with what names it: reading data, in stages, and judging."""
    tables = [source for source in config.data.sources if isinstance(source, SourceConfig) and source.function]
    reading = [f"{table.function} (of the source {table.source})" for table in tables]
    return reading + _code(config) + ([f"{config.judge} (the judge)"] if config.judge else [])


def _code(config: Config) -> list[str]:
    """The functions that its stages call."""
    return list(itertools.chain.from_iterable(BY_NAME[stage].code(config) for stage in config.stages))


def say_functions(config: Config, *, rewards: bool, say: Callable[[str], None]) -> None:
    """Before any of the user's code runs: what of it does, and what of it is only named.

    Args:
        rewards: whether those are loaded too, and a judge.
    """
    reading = len(functions(config)) - len(_code(config)) - bool(config.judge)
    for number, what in enumerate(functions(config)):
        is_run = rewards or number < reading
        say(f"{'runs your code' if is_run else 'does not run'}: {what}")


def parse_reward(spec: str) -> tuple[str, float]:
    """`TARGET[@WEIGHT]` as (target, weight)."""
    target, at, weight = spec.rpartition("@")
    if not at:
        return spec, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"reward {spec!r}: the weight after @ must be a number, such as {target}@0.5.")
    return target, number


def read(config: Config, source: str | SourceConfig, *, on_error: Literal["raise", "skip"]) -> Source:
    """One entry of `data.sources`, or what is written like one."""
    data = config.data
    return read_source(as_spec(source), on_error=on_error, split_seed=data.split_seed, on_unfit=data.on_error)


def read_sources(config: Config) -> list[Source]:
    return [read(config, source, on_error=config.data.on_error) for source in config.data.sources]


def records_of(config: Config, key: str, specs: Sequence[str]) -> list[Record]:
    """Every record of sources that are not dealt to stages, in their order.

    Args:
        key: where the sources are named.
    Raises:
        ConfigError: if one is to be for a stage, or for a part of it. DataError: if it cannot be read.
    """
    for text in specs:
        spec = as_spec(text)
        if spec.stages or spec.weight != 1:
            raise ConfigError(
                f"{key}: {text!r} names a stage or a weight, and all of it is used here. Write {spec.location} alone."
            )
    sources = [read(config, text, on_error=config.data.on_error) for text in specs]
    return list(itertools.chain.from_iterable(source.records for source in sources))


def share(config: Config, sources: Sequence[Source]) -> dict[Stage, StageData]:
    """The records of each stage that this run trains; some may have none."""
    return mix(
        sources,
        split=config.data.split,
        held_out_fraction=config.data.held_out,
        temperature=config.data.temperature,
        stages=[*taken(config), "ptx"],
        on_error=config.data.on_error,
    )


def taken(config: Config, *, made: bool = True) -> list[Stage]:
    """Whose shares of the data this run learns from.

    Args:
        made: also of those for whom a stage before makes records.
    """
    found: dict[Stage, None] = {}
    given: set[Stage] = set()
    for name in stages_to_train(config):
        role = BY_NAME[name].takes
        if role is not None and (made or role not in given):
            found[role] = None
        given |= set(BY_NAME[name].gives)
    return list(found)


def deal(config: Config, sources: Sequence[Source]) -> dict[Stage, StageData]:
    """The records of each stage that this run trains, for training.

    Raises:
        DataError: if a stage gets none, and no stage before it makes any.
    """
    data = share(config, sources)
    for stage in taken(config, made=False):
        if not data[stage].train or not data[stage].held_out:
            why = why_one_sided(data[stage], sources)
            remedy = f"Add a source for it (--data {stage}:FILE), or raise --data.held_out"
            raise DataError(
                f"{stage}: the data gives it {len(data[stage].train)} records to train on and "
                f"{len(data[stage].held_out)} held out; it needs both. {why[:1].upper() + why[1:] or remedy}."
            )
    return data


def note_sources(run: Run, sources: Sequence[Source]) -> None:
    """Sources, licences and dropped records into the manifest, and a line each on the screen.

    The manifest lists the first dropped records of a source, `dropped.jsonl` all of them.

    Raises:
        RunError: if a source has changed since the run began.
    """
    used: list[Stage] = [*taken(run.config), "ptx"]
    if run.config.rl.ptx_coef > 0:  # without text of their own, the demonstrations are mixed in
        used.append(IMITATING)
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
