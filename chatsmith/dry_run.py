"""What a run would do, said without doing it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chatsmith.config import Config, StageName
from chatsmith.data.mix import StageData
from chatsmith.data.sources import Source
from chatsmith.gold import open_judge
from chatsmith.intake import deal, parse_reward, share, stages_to_train
from chatsmith.models.load import declared_context, load_stop_ids, load_tokenizer
from chatsmith.promise import Promise, promise
from chatsmith.screen.console import Screen
from chatsmith.screen.text import quoted
from chatsmith.stages.inputs import halves
from chatsmith.stages.rl import judgeable, load_reward
from chatsmith.stages.table import BY_NAME, REWARD, RL


def dry_run(config: Config, directory: Path, screen: Screen, sources: Sequence[Source]) -> None:
    """Load tokenizer, ready rewards and judge as a run would, and say what it would do with the data.

    Of what a recipe would make itself nothing is known yet.
    """
    if sources:
        data = deal(config, sources)
        if RL.name in config.stages:
            data, aside = judgeable(config, data)
            for what in aside:
                screen.line(what)
        tokenizer = load_tokenizer(config.actor_model)
        screen.line(f"model: {config.actor_model}, a vocabulary of {len(tokenizer)} tokens")
        for stage in stages_to_train(config):
            BY_NAME[stage].work.check(config, data)
        for stage in stages_to_train(config):
            role = BY_NAME[stage].takes
            if role is not None and data[role].train:
                screen.line(str(_promise(stage, data[role], config)))
        if data["ptx"].train:
            screen.line(f"ptx: {len(data['ptx'].train)} records")
        if bad := sum(len(source.dropped) for source in sources):
            screen.line(f"bad records left out: {bad}")
    if RL.name in config.stages:
        for spec in config.rl.rewards:
            if parse_reward(spec)[0] != "trained":
                reward = load_reward(spec, config)
                screen.line(f"reward: {reward.name}, weight {reward.weight:g}")
    judge = open_judge(config, share(config, sources))
    if judge is not None:
        screen.line(f"judge: {judge.name}")
    screen.line(f"stages: {', '.join(stages_to_train(config))}; run directory: {quoted(directory)}")
    screen.line("nothing was written (--dry-run)")


def _promise(stage: StageName, data: StageData, config: Config) -> Promise:
    """What a stage will make of its records."""
    location = config.actor_model
    if stage == REWARD.name:
        location = config.reward_model or location
        data = replace(data, train=halves(config, data.train)[0])
    tokenizer = load_tokenizer(location)
    limit = min(config.data.max_tokens, declared_context(location) or config.data.max_tokens)
    return promise(stage, data, config, tokenizer, load_stop_ids(location, tokenizer), limit)
