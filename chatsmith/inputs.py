"""What the stages are given: records, models ready to be asked, rewards, a critic."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from chatsmith.assistant import Assistant
from chatsmith.checkpoint import save_jsonl
from chatsmith.config import Config
from chatsmith.data.chat import Encoded, encode_texts
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData, unused
from chatsmith.data.records import Chosen
from chatsmith.data.sources import Source
from chatsmith.data.split import judge_point
from chatsmith.data.tokens import OnError, encoded
from chatsmith.engine.engine import Engine, Sampling
from chatsmith.errors import DataError, RewardError, RunError
from chatsmith.intake import parse_reward, read, stages_to_train
from chatsmith.models.lm import described
from chatsmith.models.load import context_length, load_actor, load_stop_ids, load_tokenizer
from chatsmith.models.reward import Reward, RewardModel, load_ready_reward
from chatsmith.models.way import way_of
from chatsmith.run import Run
from chatsmith.runtime import choose_device, choose_dtype
from chatsmith.seeds import permutation
from chatsmith.stages.final_judge import MIN_PAIRS
from chatsmith.stages.rollout import encode_questions, mean_and_std, roll_out
from chatsmith.stages.sft import best_answers
from chatsmith.types import Record, Sample, Stage
from chatsmith.world import material

DROPPED = "dropped.jsonl"
LISTED_DROPS = 1000
STANDARDISING_SAMPLES = 512  # SFT answers that give a reward its unit


def load_policy(run: Run, location: str) -> Assistant:
    """The language model at `location`, ready to be asked or trained within the run's limits."""
    tokenizer = load_tokenizer(location)
    model = load_actor(location, tokenizer, dtype=run.dtype, device=run.device)
    say_way(run, model)
    limit = run.config.data.max_tokens
    return Assistant(model, tokenizer, load_stop_ids(location, tokenizer), min(limit, context_length(model) or limit))


def say_way(run: Run, model: Any) -> None:
    """How a model is computed: into the manifest, and if it is not the usual way, once, on the screen."""
    decided = run.manifest.setdefault("computation", {})
    if decided.get(type(model).__name__) != asdict(way_of(model)):
        decided[type(model).__name__] = asdict(way_of(model))
        if words := described(model):
            run.screen.line(f"{type(model).__name__}: {words}", "yellow")


def base_location(run: Run) -> str:
    """The model that the run starts from."""
    return str(run.directory / "base") if run.config.world is not None else run.config.actor_model


def sft_location(run: Run) -> str:
    """The SFT model of this run, or the given model where the run has no stage 1."""
    return str(run.directory / "sft" / "model") if "sft" in run.config.stages else base_location(run)


def report_sources(run: Run, sources: Sequence[Source]) -> None:
    """Sources, licences and dropped records into the manifest, and a line each on the screen.

    The manifest lists the first dropped records of a source, `dropped.jsonl` all of them.

    Raises:
        RunError: if a source has changed since the run began.
    """
    used: list[Stage] = [*stages_to_train(run.config), "ptx"]
    if run.config.rl.ptx_coef > 0:  # without text of their own, the demonstrations are mixed in
        used.append("sft")
    entries: list[dict[str, Any]] = [
        {
            "spec": spec if isinstance(spec, str) else spec.source,
            "records": len(source.records),
            "unused": unused(source, used, run.config.data.on_error),
            "dropped": [asdict(dropped) for dropped in source.dropped[:LISTED_DROPS]],
            "dropped_count": len(source.dropped),
            "licence": source.licence,
            "sha256": source.sha256,
        }
        for spec, source in zip(run.config.data.sources, sources, strict=True)
    ]
    nothing: dict[str, Any] = {"spec": "its data", "sha256": None}
    for before, now in itertools.zip_longest(run.manifest.get("data", entries), entries, fillvalue=nothing):
        if before["sha256"] != now["sha256"]:
            raise RunError(
                f"{run.directory}: {now['spec']} is not what it was when this run began, so its stages would not fit "
                "together. Choose another --run-dir, or put the old data back."
            )
    run.manifest["data"] = entries
    if any(source.dropped for source in sources):
        records = itertools.chain.from_iterable(source.dropped for source in sources)
        save_jsonl(run.directory / DROPPED, map(asdict, records))
    for entry in entries:
        unused_ones = f", {entry['unused']} of them of use to no stage of this run" if entry["unused"] else ""
        dropped = f", {entry['dropped_count']} left out (listed in {DROPPED})" if entry["dropped"] else ""
        licence = f"; not for commercial use: {entry['licence']}" if non_commercial(entry["licence"]) else ""
        run.screen.line(f"{entry['spec']}: {entry['records']} records{unused_ones}{dropped}{licence}")


def world_sources(run: Run, asked: Assistant | None = None) -> list[Source]:
    """The task world's files as sources; with a model to ask, preferences between its answers are made first."""
    config, data = run.config, run.directory / "data"
    preferences = run.directory / "reward" / material.PREFERENCES
    assert config.world is not None
    if asked is not None and not preferences.exists():
        run.screen.line("")
        run.screen.line("Asking the SFT model for answers to compare")
        tasks = material.preference_tasks(config, config.world)
        records = [material.as_record(task) for task in tasks]
        samples = ask(run, asked, records, len(records), each=2)
        material.write_preferences(config, config.world, tasks, samples, preferences)
    files = {"sft": data / material.DEMONSTRATIONS, "rl": data / material.PROMPTS, "reward": preferences}
    return [read(config, f"{stage}:{file}", on_error="raise") for stage, file in files.items() if file.exists()]


def halves(config: Config, records: Chosen[Record]) -> tuple[Chosen[Record], Chosen[Record]]:
    """Preferences that the reward model learns from, and those kept for the final judge's own head.

    Copies of a record and continuations of a conversation stay together. Nothing is kept where a gold judge exists or
    preferences are few.
    """
    fraction = config.reward.judge_fraction
    if config.world is not None or fraction == 0 or len(np.unique(records.numbers)) < MIN_PAIRS:
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
    engine = Engine(asked.model, max_batch=run.config.engine.max_batch)
    rollouts = roll_out(
        engine,
        asked.tokenizer,
        prompts,
        range(total) if count >= total else permutation(total, run.config.seed, "asked")[:count].tolist(),
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        limit=settings.max_new_tokens,
        stops=asked.stops,
        samples=each,
        seed=(run.config.seed, "asked"),
    )
    return rollouts.samples


def score_unit(scorer: RewardModel, samples: Sequence[Sample]) -> tuple[float, float]:
    """Mean and deviation of a reward model's scores of answers that ended; PPO scores the others by itself.

    Where fewer than two ended, all of them are scored.

    Raises:
        RewardError: if it scores fewer than two answers: one has no deviation.
    """
    scores: list[float] = []
    for answers in ([sample for sample in samples if sample.finish_reason == "stop"], list(samples)):
        if len(scores) < 2 and answers:
            scores = [score for score in scorer(answers) if score is not None and math.isfinite(score)]
    if len(scores) < 2:
        raise RewardError(
            f"the reward model gave a finite score to {len(scores)} of {len(samples)} answers of the SFT model; two or "
            "more give its scores a unit. Give more prompts, or a reward model with a longer context."
        )
    return mean_and_std(scores)


def load_reward(spec: str, config: Config | None = None, *, name: str | None = None) -> Reward:
    """A ready reward: `DIR`, `FILE.py:function` or `package.module:function`, each with an optional `@WEIGHT`.

    Args:
        config: of it `engine`; None: the defaults.
        name: under which its values are logged; None: the directory's or the function's.
    Raises:
        ConfigError, ModelError: if it is none of these.
    """
    config = config or Config()
    target, weight = parse_reward(spec)
    device = choose_device(config.engine)
    return load_ready_reward(
        target,
        weight,
        name=name,
        dtype=choose_dtype(config.engine, device),
        device=device,
        max_tokens_per_pass=config.engine.max_batch_tokens,
    )


def load_rewards(run: Run) -> list[Reward]:
    """The run's rewards, each under a name of its own."""
    rewards: list[Reward] = []
    for spec in run.config.rl.rewards:
        target, weight = parse_reward(spec)
        if target == "trained":
            reward = load_reward(f"{run.directory / 'reward' / 'model'}@{weight}", run.config, name="trained")
        else:
            reward = load_reward(spec, run.config)
        taken = {other.name for other in rewards}
        rewards.append(replace(reward, name=target) if reward.name in taken else reward)
    return rewards


def mixed_rows(data: dict[Stage, StageData], actor: Assistant, *, on_error: OnError) -> Sequence[Encoded]:
    """Rows for mixed training: the ptx sources, or the SFT data where there are none."""

    def encode_chunk(chunk: list[Record]) -> list[Encoded]:
        texts = encode_texts(actor.tokenizer, [r.text for r in chunk if r.text], max_tokens=actor.max_tokens)
        return (
            best_answers(
                actor.tokenizer,
                [r for r in chunk if r.answers],
                stops=actor.stops,
                max_tokens=actor.max_tokens,
                on_error=on_error,
            )
            + texts
        )

    records = data["ptx"].train or data["sft"].train
    return encoded(
        "ptx", actor.tokenizer, records, encode_chunk, settings=[list(actor.stops), actor.max_tokens, on_error]
    )
