"""What a stage is given by its run, and how it leaves a model there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from chatsmith.assistant import Assistant
from chatsmith.config import Config, StageName
from chatsmith.data.mix import StageData
from chatsmith.data.records import Chosen
from chatsmith.data.sources import Source
from chatsmith.data.spec import ASKING, COMPARING
from chatsmith.data.split import judge_point
from chatsmith.engine.engine import Sampling
from chatsmith.errors import DataError
from chatsmith.files.writing import replace_directory
from chatsmith.intake import read
from chatsmith.models.lm import described
from chatsmith.models.load import context_length, load_actor, load_stop_ids, load_tokenizer, save_model
from chatsmith.models.reward import RewardModel
from chatsmith.models.way import way_of
from chatsmith.runs.run import Run, model_card
from chatsmith.seeds import permutation
from chatsmith.stages.rollout import PolicyScores, encode_questions, roll_out
from chatsmith.stages.table import BY_NAME, TABLE
from chatsmith.types import Record, Sample, Stage
from chatsmith.verdicts import LeftOut

MIN_PAIRS = 500
SHOWN_ANSWERS = 5


def load_policy(run: Run, location: str, *, compiled: bool = False) -> Assistant:
    """The language model at `location`, ready to be asked or trained within the run's limits."""
    tokenizer = load_tokenizer(location)
    model = load_actor(location, tokenizer, dtype=run.dtype, device=run.device)
    say_way(run, model)
    limit = run.config.data.max_tokens
    return Assistant(
        model,
        tokenizer,
        load_stop_ids(location, tokenizer),
        max_tokens=min(limit, context_length(model) or limit),
        max_batch=run.config.engine.max_batch,
        compiled=compiled,
    )


def say_way(run: Run, model: Any) -> None:
    """How a model is computed: into the manifest, and if it is not the usual way, once, on the screen."""
    name, way = type(model).__name__, asdict(way_of(model))
    if run.manifest.computation.get(name) != way:
        run.manifest.computation = run.manifest.computation | {name: way}
        if words := described(model):
            run.screen.line(f"{name}: {words}", "yellow")


def sources(run: Run) -> list[Source]:
    """The run's data, and the records that its stages have made."""
    made = [
        read(run.config, f"{role}:{file}", on_error="raise")
        for stage in TABLE
        for role, name in stage.gives.items()
        if run.finished(stage.name) and (file := run.directory / stage.name / name).exists()
    ]
    return [*run.data, *made]


def policy_location(run: Run, stage: StageName) -> str:
    """The model that a stage starts from: what the last stage before it leaves, or the given one."""
    road = run.config.stages
    before = road[: road.index(stage)] if stage in road else road
    leaving = [BY_NAME[name] for name in before if BY_NAME[name].voices]
    if not leaving:
        return run.config.actor_model
    return str(run.directory / leaving[-1].name / next(iter(leaving[-1].voices.values())).folder)


def held_out_prompts(config: Config, data: Mapping[Stage, StageData]) -> Chosen[Record]:
    """Those on which a policy is judged, from the first on: shuffled, so that they draw on every source."""
    held_out = data[ASKING].held_out or data[COMPARING].held_out
    return held_out.take(permutation(len(held_out), config.data.split_seed, "evaluation"))


def is_ranked(record: Record) -> bool:
    """Whether a record says which of its answers is the better one."""
    return len({answer.score for answer in record.answers if answer.score is not None}) > 1


def ranked_samples(record: Record) -> tuple[Sample, Sample]:
    """Its best and its worst answer, as a reward function or a judge sees them."""
    ranked = sorted((a for a in record.answers if a.score is not None), key=lambda answer: answer.score or 0.0)
    best, worst = (Sample(record.prompt, answer.content, "stop", record) for answer in (ranked[-1], ranked[0]))
    return best, worst


def halves(config: Config, records: Chosen[Record]) -> tuple[Chosen[Record], Chosen[Record]]:
    """Preferences that the reward model learns from, and those kept for the final judge's own head.

    Copies of a record and continuations of a conversation stay together. Nothing is kept where a gold judge exists or
    preferences are few.
    """
    fraction = config.reward.judge_fraction
    if config.judge or fraction == 0 or len(np.unique(records.numbers)) < MIN_PAIRS:
        return records, records.take(np.zeros(0, np.int64))
    kept = np.array([judge_point(record, config.data.split_seed) < fraction for record in records])
    return records.take(np.flatnonzero(~kept)), records.take(np.flatnonzero(kept))


def ask(run: Run, asked: Assistant, records: Sequence[Record], count: int, *, each: int = 1) -> tuple[Sample, ...]:
    """Answers of a model to `count` of the records (`each` per record, in a row), at the training temperature."""
    settings = run.config.rl
    room = asked.max_tokens - settings.max_new_tokens
    prompts = encode_questions(
        asked.tokenizer, records, stops=asked.stops, max_tokens=room, on_error=run.config.data.on_error
    )
    total = len(prompts.tokens)
    if not total:
        raise DataError(
            f"none of {len(records)} prompts leaves room for an answer of {settings.max_new_tokens} tokens in "
            f"{asked.max_tokens}: lower --rl.max_new_tokens or give shorter prompts."
        )
    rollouts = roll_out(
        asked,
        prompts,
        range(total) if count >= total else permutation(total, run.config.seed, "asked")[:count].tolist(),
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        limit=settings.max_new_tokens,
        samples=each,
        seed=(run.config.seed, "asked"),
    )
    return rollouts.samples


def left_out(stage: StageName, data: StageData, too_long: int, sources: Sequence[Source]) -> LeftOut:
    """What a stage was given and did not use; bad records may have been meant for any stage of their source."""
    serving = [source for source in sources if not source.spec.stages or stage in source.spec.stages]
    return LeftOut(
        too_long=too_long,
        of=len(data.train) + len(data.held_out),
        bad=sum(len(source.dropped) for source in serving),
        what=BY_NAME[stage].records,
    )


def show_answers(run: Run, before: PolicyScores, after: PolicyScores, name: str) -> None:
    """Some held-out prompts with the answers of the model before and after a stage.

    Args:
        name: of what was between them.
    """
    pairs = list(zip(before.samples, after.samples, strict=True))[:SHOWN_ANSWERS]
    run.screen.table(
        f"The same held-out prompts, answered before and after {name}",
        ("prompt", "SFT", name),
        [(old.messages[-1].content[-200:], old.answer[:200], new.answer[:200]) for old, new in pairs],
    )


def leave_model(
    run: Run,
    stage: StageName,
    folder: str,
    model: Assistant | RewardModel,
    *,
    what: str,
    base: str,
    tags: Sequence[str] = (),
) -> None:
    """A model of a stage into the run's directory, with its card, on which more tags may stand."""
    card = model_card(run, what=what, base=base, tags=[*BY_NAME[stage].models[folder], *tags])
    replace_directory(
        run.directory / stage / folder,
        lambda path: save_model(model.model, model.tokenizer, path, stops=model.stops, card=card),
    )
