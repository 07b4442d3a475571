"""Before any work: what a configuration asks for, whether it can be done, and its data, read and dealt to the stages.

Nothing here loads torch or transformers, which takes seconds: most mistakes are refused at once.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from chatsmith.config import Config, SourceConfig, StageName
from chatsmith.data.mix import StageData, mix, why_one_sided
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import as_spec
from chatsmith.errors import ConfigError, DataError
from chatsmith.models.location import check_location
from chatsmith.rewards import spec as reward_spec
from chatsmith.runs.run import check_directory
from chatsmith.runs.trackers import check_installed
from chatsmith.types import Stage


def take_in(config: Config, directory: Path | None, *, restart_from: StageName | None) -> list[Source]:
    """The configuration's sources, read, once everything has been checked that can be.

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
    deal(config, sources)
    return sources


def check(config: Config) -> None:
    """What can be wrong before any work.

    Raises:
        ConfigError: if there is no model to start from or no data, if the task world is given either, if PPO has no
            reward or rewards that do not go together, or if a tracker's package is missing.
        ModelError: if there is no such model directory.
    """
    check_installed(config.trackers)
    given = {
        "--actor-model": bool(config.actor_model),
        "--reward-model": bool(config.reward_model),
        "--data": bool(config.data.sources),
    }
    if config.world is not None and any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(
            f"{names}: a recipe with a [world] group, such as tiny-cpu, makes its own model and data. For yours, give "
            "--actor-model and --data without a recipe, or with one that has no [world]."
        )
    if not config.actor_model and config.world is None:
        raise ConfigError("no model to train: give --actor-model DIR_OR_ID, or no arguments at all for the tiny demo.")
    if not config.data.sources and config.world is None:
        raise ConfigError("no data to train on: give --data FILE_OR_ID, or data.sources in a recipe.")
    if "rl" in config.stages and "reward" not in config.stages and "trained" in reward_targets(config):
        raise ConfigError("rl has no reward: give --reward DIR or --reward FILE.py:function, or let stage 2 train one.")
    if "rl" in config.stages:
        reward_spec.check([parse_reward(spec) for spec in config.rl.rewards])
    for location in filter(None, (config.actor_model, config.reward_model)):
        check_location(location)


def stages_to_train(config: Config) -> list[StageName]:
    """The run's stages, without the reward model where PPO uses ready rewards only."""
    ready = "rl" in config.stages and "trained" not in reward_targets(config)
    return [stage for stage in config.stages if not (stage == "reward" and ready)]


def reward_targets(config: Config) -> list[str]:
    """Every reward that is asked, those of a product by themselves."""
    return [part for spec in config.rl.rewards for part in reward_spec.factors(parse_reward(spec)[0])]


def functions(config: Config) -> list[str]:
    """The user's code that a configuration runs, each with what names it: reading data and, in stage 3, rewarding."""
    tables = [source for source in config.data.sources if isinstance(source, SourceConfig) and source.function]
    rewards = list(filter(reward_spec.is_code, reward_targets(config)))
    return [f"{table.function} (of the source {table.source})" for table in tables] + [
        f"{target} (a reward)" for target in (rewards if "rl" in config.stages else [])
    ]


def say_functions(config: Config, *, rewards: bool, say: Callable[[str], None]) -> None:
    """Before any of the user's code runs: what of it does, and what of it is only named.

    Args:
        rewards: whether those are loaded too.
    """
    for what in functions(config):
        is_run = rewards or not what.endswith("(a reward)")
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


def share(config: Config, sources: Sequence[Source]) -> dict[Stage, StageData]:
    """The records of each stage that this run trains; some may have none."""
    return mix(
        sources,
        split=config.data.split,
        held_out_fraction=config.data.held_out,
        temperature=config.data.temperature,
        stages=[*stages_to_train(config), "ptx"],
        on_error=config.data.on_error,
    )


def deal(config: Config, sources: Sequence[Source]) -> dict[Stage, StageData]:
    """The same, for training.

    Raises:
        DataError: if a stage gets none.
    """
    data = share(config, sources)
    for stage in stages_to_train(config) if config.world is None else ():
        if not data[stage].train or not data[stage].held_out:
            why = why_one_sided(data[stage], sources)
            remedy = f"Add a source for it (--data {stage}:FILE), or raise --data.held_out"
            raise DataError(
                f"{stage}: the data gives it {len(data[stage].train)} records to train on and "
                f"{len(data[stage].held_out)} held out; it needs both. {why[:1].upper() + why[1:] or remedy}."
            )
    return data
