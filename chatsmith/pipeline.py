"""The road: SFT, reward model, PPO, in order, each judged before the next begins."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsmith.checkpoint import save_directory
from chatsmith.config import STAGES, Config, StageName
from chatsmith.console import Screen
from chatsmith.data.batch import shuffled
from chatsmith.data.chat import Encoded, encode_texts, stop_ids
from chatsmith.data.mix import StageData, mix
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import parse_spec
from chatsmith.engine.engine import Engine, Sampling
from chatsmith.errors import ConfigError, DataError, GateFailed
from chatsmith.models.critic import critic_from_actor, critic_from_reward_model
from chatsmith.models.load import (
    context_length,
    load_actor,
    load_tokenizer,
    new_reward_model,
    same_tokenizer,
    save_model,
)
from chatsmith.models.reward import Reward, RewardModel, load_ready_reward, parse_reward
from chatsmith.run import Run, model_card, open_run
from chatsmith.runtime import Interrupted, StopSignals, choose_device, choose_dtype
from chatsmith.stages.reward import train_reward
from chatsmith.stages.rl import train_rl
from chatsmith.stages.rollout import encode_questions, mean_and_std, roll_out
from chatsmith.stages.sft import encode_best_answers, train_sft
from chatsmith.types import Record, Sample, Stage
from chatsmith.verdicts import judge_reward, judge_rl, judge_sft
from chatsmith.world import evaluation, material

STANDARDISING_SAMPLES = 512  # SFT answers that give the reward its unit
SHOWN_ANSWERS = 5


@dataclass(frozen=True)
class Language:
    """A causal language model ready to be asked or trained."""

    model: Any
    tokenizer: Any
    stops: tuple[int, ...]
    max_tokens: int  # prompt and answer together


def train(
    config: Config,
    directory: Path,
    *,
    recipe: str,
    only: Sequence[StageName] = STAGES,
    restart_from: StageName | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the stages of `config` that are not yet finished in `directory`.

    Args:
        recipe: name for the records.
        only: stages to run now; the others stay as they are.
        restart_from: run this stage and all later ones anew.
        force: go on past a failed gate, and say so.
        dry_run: check models, data and rewards, print the plan, and stop.
    Raises:
        ChatsmithError: see `errors`; GateFailed where a stage's result cannot be built upon.
        Interrupted: SIGINT or SIGTERM; a checkpoint was saved.
    """
    screen = Screen()
    check(config)
    if dry_run:
        plan(config, directory, screen)
        return
    with StopSignals() as stop:
        run = open_run(
            config, directory, recipe=recipe, force=force, restart_from=restart_from, screen=screen, stop=stop
        )
        try:
            _run_stages(run, [stage for stage in config.stages if stage in only])
        except BaseException as error:
            run.manifest["status"] = "interrupted" if isinstance(error, Interrupted) else "failed"
            run.save()
            raise


def check(config: Config) -> None:
    """What can be wrong before any work.

    Raises:
        ConfigError: if there is no model to start from, or PPO has no reward.
    """
    if not config.actor_model and config.world is None:
        raise ConfigError("no model to train: give --actor-model DIR_OR_ID, or no arguments at all for the tiny demo.")
    if "rl" in config.stages and "reward" not in config.stages and "trained" in _reward_targets(config):
        raise ConfigError("rl has no reward: give --reward DIR or --reward FILE.py:function, or let stage 2 train one.")


def plan(config: Config, directory: Path, screen: Screen) -> None:
    """Load data and tokenizer as a run would, and say what it would do."""
    if config.world is None:
        data = _deal(config, _read_sources(config))
        tokenizer = load_tokenizer(config.actor_model)
        screen.line(f"model: {config.actor_model}, {len(tokenizer)} tokens")
        for stage, records in data.items():
            screen.line(f"{stage}: {len(records.train)} records to train on, {len(records.held_out)} held out")
        for target, weight in map(parse_reward, config.rl.rewards):
            if target != "trained" and "rl" in config.stages:
                _load_reward(target, weight, config)
    screen.line(f"stages: {', '.join(_stages_to_train(config))}; run directory: {directory}")
    screen.line("nothing was written (--dry-run)")


def _run_stages(run: Run, now: Sequence[StageName]) -> None:
    config = run.config
    if config.world is not None and not (run.directory / "base" / "config.json").exists():
        material.write_material(config, config.world, run.directory / "data", run.directory / "base")
    needed = _stages_to_train(config)
    sources: list[Source] = []
    if config.world is None:
        sources = _read_sources(config)
        _report_sources(run, sources)
    steps: dict[StageName, Callable[[Run, list[Source]], None]] = {"sft": _sft, "reward": _reward, "rl": _rl}
    for stage in now:
        if run.finished(stage):
            run.screen.line(f"{stage}: finished before, {run.manifest['stages'][stage]['status']}")
        elif stage not in needed:
            run.skip(stage, f"ready rewards are used: {', '.join(_reward_targets(config))}")
        else:
            steps[stage](run, sources)
        _gate(run, stage)
    _finish(run)


def _gate(run: Run, stage: StageName) -> None:
    """Go on, or stop at a failed stage and say how to go on."""
    entry = run.manifest["stages"][stage]
    if entry["status"] == "failed" and run.force:
        entry["status"] = "forced"
    if entry["status"] == "failed":
        raise GateFailed(
            f"{stage} failed: {entry['verdict']} Change a setting and type the same command with --from {stage}, "
            "or go on regardless with --force."
        )


def _sft(run: Run, sources: list[Source]) -> None:
    config = run.config
    data = _deal(config, sources or _world_sources(run))["sft"]
    actor = _language(run, _base(run))
    stage = run.stage("sft")
    report = train_sft(
        actor.model,
        actor.tokenizer,
        data.train,
        data.held_out,
        config,
        stage,
        stops=actor.stops,
        max_tokens=actor.max_tokens,
    )
    verdict = judge_sft(report)
    _save(run, actor.model, actor.tokenizer, "sft/model", actor.stops, what="SFT model", base=_base(run))
    run.manifest["summary"] |= {
        "sft_loss_first": report.held_out_loss_first,
        "sft_loss_last": report.held_out_loss_last,
    }
    run.record("sft", verdict, stage, "sft/model", report=_plain(report))
    run.screen.verdict("sft", verdict, forced=run.force)


def _reward(run: Run, sources: list[Source]) -> None:
    config = run.config
    asked = _language(run, _sft_location(run))
    if config.world is not None:
        sources = _world_sources(run, asked)
    data = _deal(config, sources)
    location = config.reward_model or _sft_location(run)
    tokenizer = load_tokenizer(location)
    model = new_reward_model(location, tokenizer, seed=config.seed, dtype=run.dtype, device=run.device)
    limit = min(config.data.max_tokens, context_length(model) or config.data.max_tokens)
    stops = stop_ids(tokenizer, getattr(asked.model, "generation_config", None) if not config.reward_model else None)
    stage = run.stage("reward")
    records = data["reward"]
    report = train_reward(
        model, tokenizer, records.train, records.held_out, config, stage, stops=stops, max_tokens=limit
    )
    scorer = RewardModel(model, tokenizer, stops, 0.0, 1.0, config.engine.max_batch_tokens)
    prompts = data["rl"].train or records.train
    mean, std = mean_and_std(scorer.scores(_answers(run, asked, prompts, STANDARDISING_SAMPLES)))
    model.config.score_mean, model.config.score_std = mean, std
    verdict = judge_reward(report, score_std=std)
    facts = {"report": _plain(report), "score_mean": mean, "score_std": std}
    if config.world is not None:
        facts["accuracy_by_aspect"] = evaluation.accuracy_by_aspect(scorer, config.seed)
    _save(run, model, tokenizer, "reward/model", stops, what="Reward model", base=location)
    run.manifest["summary"]["reward_accuracy"] = report.accuracy.value
    run.record("reward", verdict, stage, "reward/model", **facts)
    run.screen.verdict("reward", verdict, forced=run.force)
    if config.world is not None:
        run.screen.side_by_side(
            "Does it see what matters? Accuracy on held-out pairs that differ in one aspect alone",
            ("aspect", "accuracy"),
            [(aspect, f"{accuracy:.0%}") for aspect, accuracy in facts["accuracy_by_aspect"].items()],
        )


def _rl(run: Run, sources: list[Source]) -> None:
    config = run.config
    data = _deal(config, sources or _world_sources(run))
    location = _sft_location(run)
    actor = _language(run, location)
    rewards = _rewards(run)
    trained = next((r.function for r in rewards if isinstance(r.function, RewardModel)), None)
    if trained is not None and same_tokenizer(trained.tokenizer, actor.tokenizer):
        critic = critic_from_reward_model(trained.model, mean=trained.mean, std=trained.std)
    else:
        critic = critic_from_actor(actor.model)
    room = actor.max_tokens - config.rl.max_new_tokens
    prompts = encode_questions(actor.tokenizer, data["rl"].train, stops=actor.stops, max_tokens=room)
    held_out = encode_questions(actor.tokenizer, data["rl"].held_out, stops=actor.stops, max_tokens=room)
    stage = run.stage("rl")
    report, average = train_rl(
        actor.model,
        critic,
        actor.tokenizer,
        prompts,
        held_out.first(config.rl.eval_prompts),
        rewards,
        config,
        stage,
        stops=actor.stops,
        ptx=_mixed_rows(data, actor) if config.rl.ptx_coef > 0 else (),
    )
    verdict, gain = judge_rl(report, config.gates)
    _save(run, actor.model, actor.tokenizer, "rl/actor", actor.stops, what="Assistant after PPO", base=location)
    _save(run, average, actor.tokenizer, "rl/ema", actor.stops, what="Assistant after PPO, averaged", base=location)
    save_directory(run.directory / "rl" / "critic", critic.save)
    _write_samples(run, report.before.samples, report.after.samples, report.ema.samples)
    run.manifest["summary"] |= {
        "reward_mean_first": report.before.reward_mean,
        "reward_mean_last": report.after.reward_mean,
        "reward_gain_ci95": [gain.low, gain.high],
        "kl_last": report.after.kl,
    }
    run.record("rl", verdict, stage, "rl/actor", dropped_too_long=prompts.dropped_too_long)
    run.screen.verdict("rl", verdict, forced=run.force)


def _finish(run: Run) -> None:
    """Gold scores where there is a judge, answers side by side, and what to type next."""
    entries = run.manifest["stages"].values()
    run.manifest["status"] = "forced" if any(entry["status"] == "forced" for entry in entries) else "finished"
    if run.config.world is not None and run.finished("rl") and "gold_rl" not in run.manifest["summary"]:
        run.screen.line("")
        run.screen.line("Held-out questions, answered by the SFT and the PPO model; scored by the gold judge", "bold")
        sft, actor = _language(run, _sft_location(run)), _language(run, str(run.directory / "rl" / "actor"))
        before, after = (evaluation.gold_scores(m.model, m.tokenizer, run.config, stops=m.stops) for m in (sft, actor))
        run.manifest["summary"] |= evaluation.summary(before, after)
        evaluation.show(run.screen, before, after, run.manifest["summary"])
    elif run.finished("rl"):
        lines = (run.directory / "rl" / "samples.jsonl").read_text(encoding="utf-8").splitlines()[:SHOWN_ANSWERS]
        rows = [json.loads(line) for line in lines]
        run.screen.side_by_side(
            "The same held-out prompts before and after PPO",
            ("prompt", "SFT", "PPO"),
            [(row["prompt"][-200:], row["sft"][:200], row["rl"][:200]) for row in rows],
        )
    run.save()
    seconds = run.manifest["summary"]["seconds"]
    run.screen.line("")
    run.screen.line(f"{run.manifest['status']} after {seconds:.0f} s; everything is in {run.directory}", "bold")
    for command in _next_commands(run):
        run.screen.line(f"  {command}")


def _next_commands(run: Run) -> list[str]:
    if run.finished("rl"):
        model = run.directory / "rl" / "actor"
        lines = [
            f"Load it:       AutoModelForCausalLM.from_pretrained({str(model)!r})",
            "Your own:      chatsmith train --actor-model MODEL --data FILE.jsonl --run-dir DIR",
        ]
        if run.config.world is not None:
            lines.append(f"Over-optimise: chatsmith train {run.manifest['recipe']} --rl.kl_coef 0 --run-dir runs/no-kl")
        return lines
    missing = [stage for stage in STAGES if not run.finished(stage)]
    actor = _sft_location(run)
    return [f"Next stage:    chatsmith {missing[0]} --actor-model {actor} --data FILE.jsonl --run-dir DIR"]


def _stages_to_train(config: Config) -> list[StageName]:
    """The run's stages, without the reward model where only ready rewards are used."""
    ready = "rl" in config.stages and "trained" not in _reward_targets(config)
    return [stage for stage in config.stages if not (stage == "reward" and ready)]


def _reward_targets(config: Config) -> list[str]:
    return [parse_reward(spec)[0] for spec in config.rl.rewards]


def _read_sources(config: Config) -> list[Source]:
    specs = [parse_spec(text) for text in config.data.sources]
    return [read_source(spec, on_error=config.data.on_error) for spec in specs]


def _report_sources(run: Run, sources: Sequence[Source]) -> None:
    """Sources, licences and dropped records into the manifest, and a line each on the screen."""
    run.manifest["data"] = [
        {
            "spec": spec,
            "records": len(source.records),
            "dropped": [{"origin": dropped.origin, "reason": dropped.reason} for dropped in source.dropped],
            "licence": source.licence,
        }
        for spec, source in zip(run.config.data.sources, sources, strict=True)
    ]
    for entry in run.manifest["data"]:
        dropped = f", {len(entry['dropped'])} bad ones skipped (listed in the manifest)" if entry["dropped"] else ""
        run.screen.line(f"{entry['spec']}: {entry['records']} records{dropped}")


def _deal(config: Config, sources: Sequence[Source]) -> dict[Stage, StageData]:
    """The records of each stage that this run trains.

    Raises:
        DataError: if a stage gets none.
    """
    needed = _stages_to_train(config)
    wanted: list[Stage] = [*needed, "ptx"]
    data = mix(
        sources,
        seed=config.data.split_seed,
        split=config.data.split,
        held_out_fraction=config.data.held_out,
        stages=wanted,
    )
    if config.world is not None:
        return data
    for stage in needed:
        if not data[stage].train or not data[stage].held_out:
            raise DataError(
                f"{stage}: the data gives it {len(data[stage].train)} records to train on and "
                f"{len(data[stage].held_out)} held out; it needs both. Add a source for it (--data {stage}:FILE), or "
                "raise --data.held_out."
            )
    return data


def _world_sources(run: Run, asked: Language | None = None) -> list[Source]:
    """The task world's files as sources; with a model to ask, preferences between its answers are made first."""
    config, data = run.config, run.directory / "data"
    assert config.world is not None
    if asked is not None and not (data / material.PREFERENCES).exists():
        run.screen.line("")
        run.screen.line("Asking the SFT model for answers to compare")
        tasks = material.preference_tasks(config, config.world)
        records = [material.as_record(task) for task in tasks]
        samples = _answers(run, asked, records, len(records), each=2)
        material.write_preferences(config, config.world, tasks, samples, data)
    files = {"sft": material.DEMONSTRATIONS, "rl": material.PROMPTS, "reward": material.PREFERENCES}
    specs = [parse_spec(f"{stage}:{data / file}") for stage, file in files.items() if (data / file).exists()]
    return [read_source(spec, on_error="raise") for spec in specs]


def _answers(run: Run, asked: Language, records: Sequence[Record], count: int, *, each: int = 1) -> tuple[Sample, ...]:
    """Answers of a model to `count` of the records (`each` per record, in a row), at the training temperature."""
    room = asked.max_tokens - run.config.rl.max_new_tokens
    prompts = encode_questions(asked.tokenizer, records, stops=asked.stops, max_tokens=room)
    if not prompts.tokens:
        raise DataError(
            f"none of {len(records)} prompts leaves room for an answer of {run.config.rl.max_new_tokens} tokens in "
            f"{asked.max_tokens}: lower --rl.max_new_tokens or give shorter prompts."
        )
    engine = Engine(asked.model, pad_id=asked.tokenizer.pad_token_id, max_batch=run.config.engine.max_batch)
    total = len(prompts.tokens)
    chosen = range(total) if count >= total else shuffled(total, seed=run.config.seed, epoch=0)[:count]
    settings = run.config.rl
    rollouts = roll_out(
        engine,
        asked.tokenizer,
        prompts,
        chosen,
        Sampling(settings.temperature, settings.top_k, settings.top_p),
        limit=settings.max_new_tokens,
        stops=asked.stops,
        samples=each,
        seed=(run.config.seed, "asked"),
    )
    return rollouts.samples


def _language(run: Run, location: str) -> Language:
    tokenizer = load_tokenizer(location)
    model = load_actor(location, tokenizer, dtype=run.dtype, device=run.device)
    limit = run.config.data.max_tokens
    stops = stop_ids(tokenizer, model.generation_config)
    return Language(model, tokenizer, stops, min(limit, context_length(model) or limit))


def _base(run: Run) -> str:
    return str(run.directory / "base") if run.config.world is not None else run.config.actor_model


def _sft_location(run: Run) -> str:
    """The SFT model of this run, or the given model where the run has no stage 1."""
    return str(run.directory / "sft" / "model") if run.finished("sft") else _base(run)


def _rewards(run: Run) -> list[Reward]:
    rewards = []
    for target, weight in map(parse_reward, run.config.rl.rewards):
        location = str(run.directory / "reward" / "model") if target == "trained" else target
        rewards.append(_load_reward(location, weight, run.config, name="trained" if target == "trained" else None))
    return rewards


def _load_reward(target: str, weight: float, config: Config, name: str | None = None) -> Reward:
    device = choose_device(config.engine)
    return load_ready_reward(
        target,
        weight,
        name=name,
        dtype=choose_dtype(config.engine, device),
        device=device,
        max_tokens_per_pass=config.engine.max_batch_tokens,
    )


def _mixed_rows(data: dict[Stage, StageData], actor: Language) -> list[Encoded]:
    """Rows for mixed training: the ptx sources, or the SFT data where there are none."""
    records = data["ptx"].train or data["sft"].train
    texts = [record.text for record in records if record.text]
    answered = [record for record in records if record.answers]
    rows, _ = encode_best_answers(actor.tokenizer, answered, stops=actor.stops, max_tokens=actor.max_tokens)
    return rows + encode_texts(actor.tokenizer, texts, max_tokens=actor.max_tokens)


def _save(run: Run, model: Any, tokenizer: Any, where: str, stops: Sequence[int], *, what: str, base: str) -> None:
    card = model_card(run, what=what, base=base, sources=run.manifest.get("data", []))
    save_directory(run.directory / where, lambda path: save_model(model, tokenizer, path, stops=stops, card=card))


def _write_samples(run: Run, sft: Sequence[Sample], rl: Sequence[Sample], ema: Sequence[Sample]) -> None:
    rows = [
        {"prompt": a.messages[-1].content, "sft": a.answer, "rl": b.answer, "ema": c.answer}
        for a, b, c in zip(sft, rl, ema, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run.directory / "rl" / "samples.jsonl").write_text(text, encoding="utf-8")


def _plain(report: Any) -> Any:
    """A report as JSON: dataclasses become objects."""
    if hasattr(report, "__dataclass_fields__"):
        return {name: _plain(getattr(report, name)) for name in report.__dataclass_fields__}
    if isinstance(report, dict):
        return {name: _plain(value) for name, value in report.items()}
    if isinstance(report, list | tuple):
        return [_plain(value) for value in report]
    if isinstance(report, float) and report != report:
        return None
    return report
