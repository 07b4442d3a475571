"""The road: SFT, reward model, PPO, in order, each judged before the next begins."""

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from chatsmith.checkpoint import save_jsonl
from chatsmith.config import STAGES, Config, StageName
from chatsmith.console import Screen
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData
from chatsmith.data.sources import Source
from chatsmith.engine.forward import check_compiler
from chatsmith.errors import ConfigError, DataError, GateFailed, RunError, TrainingStopped
from chatsmith.inputs import (
    STANDARDISING_SAMPLES,
    ask,
    base_location,
    halves,
    load_policy,
    load_reward,
    load_rewards,
    mixed_rows,
    report_sources,
    say_way,
    score_unit,
    sft_location,
    world_sources,
)
from chatsmith.inspection import record
from chatsmith.intake import deal, parse_reward, reward_targets, stages_to_train, take_in
from chatsmith.manifest import check_run, is_run
from chatsmith.models.load import (
    check_reward_base,
    context_length,
    declared_context,
    load_stop_ids,
    load_tokenizer,
    new_reward_model,
    save_model,
    tokenizer_oddities,
)
from chatsmith.models.reward import RewardModel, critic_for
from chatsmith.promise import Promise, promise
from chatsmith.report.page import write_report
from chatsmith.report.settings import repeated
from chatsmith.run import Run, lock, model_card, open_run
from chatsmith.runtime import Interrupted, StopSignals, choose_device
from chatsmith.seeds import permutation
from chatsmith.stages import final_judge
from chatsmith.stages.reward import train_reward
from chatsmith.stages.rl import RlReport, train_rl
from chatsmith.stages.rollout import Prompts, check_held_out, encode_questions
from chatsmith.stages.sft import train_sft
from chatsmith.text import quoted, shell
from chatsmith.trackers import open_trackers
from chatsmith.types import Stage
from chatsmith.verdicts import LeftOut, judge_reward, judge_rl, judge_sft
from chatsmith.world import evaluation, material
from chatsmith.writing import replace_directory

SHOWN_ANSWERS = 5
SHOWN_FINDINGS = 3
TAGS = {
    "sft/model": ["sft"],
    "reward/model": ["reward-model"],
    "rl/actor": ["rlhf", "ppo"],
    "rl/ema": ["rlhf", "ppo"],
}  # of the models on the hub


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
            run.manifest["status"] = "interrupted" if isinstance(error, Interrupted) else "failed"
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
        _check_prompts(config, config.actor_model, data)
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


def _check_prompts(config: Config, location: str, data: dict[Stage, StageData]) -> None:
    """Refuse before any work what stage 3 would refuse: prompts without room for an answer, too few held-out ones.

    Args:
        location: of the model that the run starts from.
    Raises:
        DataError: if none of the first thousand prompts has room, or if its gate could not judge.
    """
    if "rl" not in config.stages:
        return
    tokenizer = load_tokenizer(location)
    limit = declared_context(location) or config.data.max_tokens
    room = min(limit, config.data.max_tokens) - config.rl.max_new_tokens
    stops = load_stop_ids(location, tokenizer)
    asked: dict[str, Any] = {"stops": stops, "max_tokens": room, "on_error": config.data.on_error}
    if not encode_questions(tokenizer, data["rl"].train[:1000], **asked).tokens:
        raise DataError(
            f"rl: prompt and answer together may have {room + config.rl.max_new_tokens} tokens here, and answers up to "
            f"rl.max_new_tokens = {config.rl.max_new_tokens}: none of the prompts has room. Lower --rl.max_new_tokens."
        )
    check_held_out(_held_out_prompts(config, data, tokenizer, stops, room))


def _held_out_prompts(
    config: Config, data: dict[Stage, StageData], tokenizer: Any, stops: Sequence[int], room: int
) -> Prompts:
    """The fixed prompts on which stage 3 is judged."""
    # shuffled, so that they draw on every source
    order = permutation(len(data["rl"].held_out), config.data.split_seed, "evaluation")
    mixed = data["rl"].held_out.take(order)
    asked: dict[str, Any] = {"stops": stops, "max_tokens": room, "on_error": config.data.on_error}
    return encode_questions(tokenizer, mixed, **asked).first(config.rl.eval_prompts)


def _run_stages(run: Run, sources: Sequence[Source], now: Sequence[StageName]) -> None:
    config = run.config
    if config.world is None:
        report_sources(run, sources)
        _look_at_data(run, sources)
        if "reward" in stages_to_train(config):
            check_reward_base(config.reward_model or config.actor_model)
    elif not (run.directory / "base").exists():
        material.write_material(config, config.world, run.directory / "data", run.directory / "base")
    if not run.finished("rl"):
        _check_prompts(config, base_location(run), deal(config, sources or world_sources(run)))
    steps: dict[StageName, Callable[[Run, Sequence[Source]], None]] = {"sft": _sft, "reward": _reward, "rl": _rl}
    for stage in now:
        before = config.stages[: config.stages.index(stage)]
        missing = [name for name in before if name in stages_to_train(config) and not run.finished(name)]
        if missing:
            raise ConfigError(f"--only {stage}: {missing[0]} comes before it in this run and is not finished.")
        if run.finished(stage):
            run.screen.line(f"{stage}: finished before, {run.manifest['stages'][stage]['status']}")
        elif stage not in stages_to_train(config):
            run.skip(stage, f"ready rewards are used: {', '.join(reward_targets(config))}")
        else:
            steps[stage](run, sources)
        _gate(run, stage)
    _finish(run)


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
    entry = run.manifest["stages"][stage]
    if entry["status"] == "failed" and run.force:
        entry["status"] = "forced"
    if entry["status"] == "failed":
        raise GateFailed(
            f"{stage} failed: {entry['verdict']} Change a setting and type the same command with --from {stage}, "
            "or go on regardless with --force."
        )


def _sft(run: Run, sources: Sequence[Source]) -> None:
    config = run.config
    data = deal(config, sources or world_sources(run))["sft"]
    actor = load_policy(run, base_location(run))
    stage = run.stage("sft")
    for oddity in tokenizer_oddities(base_location(run)):
        stage.warn(oddity)
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
    verdict = judge_sft(report, _left_out("sft", data, report.dropped_too_long, sources))
    _save(run, actor.model, actor.tokenizer, "sft/model", actor.stops, what="SFT model", base=base_location(run))
    summary = {"sft_loss_first": report.held_out_loss_first, "sft_loss_last": report.held_out_loss_last}
    run.record("sft", verdict, stage, "sft/model", summary, report=asdict(report))


def _reward(run: Run, sources: Sequence[Source]) -> None:
    config = run.config
    asked = load_policy(run, sft_location(run))
    if config.world is not None:
        sources = world_sources(run, asked)
    data = deal(config, sources)
    location = config.reward_model or sft_location(run)
    tokenizer = load_tokenizer(location)
    model = new_reward_model(location, tokenizer, seed=config.seed, dtype=run.dtype, device=run.device)
    say_way(run, model)
    limit = min(config.data.max_tokens, context_length(model) or config.data.max_tokens)
    stops = load_stop_ids(location, tokenizer)
    stage = run.stage("reward")
    learned, _ = halves(config, data["reward"].train)
    report = train_reward(
        model, tokenizer, learned, data["reward"].held_out, config, stage, stops=stops, max_tokens=limit
    )
    scorer = RewardModel(model, tokenizer, stops, 0.0, 1.0, config.engine.max_batch_tokens)
    prompts = data["rl"].train or data["reward"].train
    mean, std = score_unit(scorer, ask(run, asked, prompts, STANDARDISING_SAMPLES))
    model.config.score_mean, model.config.score_std = mean, std
    facts: dict[str, Any] = {"report": asdict(report), "score_mean": mean, "score_std": std}
    aspects = evaluation.accuracy_by_aspect(scorer, config.seed) if config.world is not None else {}
    if aspects:
        facts["accuracy_by_aspect"] = {aspect: accuracy.value for aspect, accuracy in aspects.items()}
    left_out = _left_out("reward", replace(data["reward"], train=learned), report.dropped_too_long, sources)
    verdict = judge_reward(report, score_std=std, aspects=aspects, left_out=left_out)
    _save(run, model, tokenizer, "reward/model", stops, what="Reward model", base=location)
    run.record("reward", verdict, stage, "reward/model", {"reward_accuracy": report.accuracy.value}, **facts)
    if aspects:
        evaluation.show_aspects(run.screen, aspects)


def _rl(run: Run, sources: Sequence[Source]) -> None:
    config = run.config
    data = deal(config, sources or world_sources(run))
    location = sft_location(run)
    policy = load_policy(run, location)
    rewards = load_rewards(run)
    critic = critic_for(policy.model, policy.tokenizer, rewards, max_tokens=policy.max_tokens)
    run.screen.line(f"The critic starts from {critic.origin}")
    room = policy.max_tokens - config.rl.max_new_tokens
    asked: dict[str, Any] = {"stops": policy.stops, "max_tokens": room, "on_error": config.data.on_error}
    prompts = encode_questions(policy.tokenizer, data["rl"].train, **asked)
    held_out = _held_out_prompts(config, data, policy.tokenizer, policy.stops, room)
    stage = run.stage("rl")
    if config.rl.top_p < 1 or config.rl.top_k > 0:
        stage.warn("with rl.top_p or rl.top_k PPO is off-policy: it assumes plain sampling")
    distinct = len({hash(row) for row in prompts.tokens})
    if distinct < len(prompts.tokens) / 2:
        stage.warn(f"duplicate prompts: only {distinct} of {len(prompts.tokens)} differ; the repeated ones count more")
    sft_gold = evaluation.gold_scores(policy, config) if config.world is not None else None
    report, trainer = train_rl(
        policy,
        critic,
        prompts,
        held_out,
        rewards,
        config,
        stage,
        ptx=mixed_rows(data, policy, on_error=config.data.on_error) if config.rl.ptx_coef > 0 else (),
        probe=(lambda: evaluation.probe(policy, config)) if config.world is not None else None,
    )
    too_long = prompts.dropped_too_long + held_out.dropped_too_long
    facts: dict[str, Any] = {"report": report.figures(), "dropped_too_long": too_long}
    gold_summary, judged = {}, None
    if sft_gold is not None:
        rl_gold = evaluation.gold_scores(policy, config)
        gold_summary = evaluation.summary(sft_gold, rl_gold)
        judged = evaluation.judged(sft_gold, rl_gold, stage.metrics())
    else:
        facts["final_judge"] = _final_judge(run, data, report)
    left_out = _left_out("rl", data["rl"], too_long, sources)
    verdict, gain = judge_rl(report, config.gates, judged, left_out)
    means = report.reward_means()
    _save(run, policy.model, policy.tokenizer, "rl/actor", policy.stops, what="Assistant after PPO", base=location)
    with trainer.averaged():
        what = "Assistant after PPO, averaged"
        _save(run, policy.model, policy.tokenizer, "rl/ema", policy.stops, what=what, base=location)
    replace_directory(run.directory / "rl" / "critic", critic.save)
    samples = report.samples()
    if config.world is not None:
        samples = evaluation.marked(samples, material.prompt_tasks(config, config.world))
    save_jsonl(run.directory / "rl" / "samples.jsonl", samples)
    summary = {
        "reward_mean_first": means["before"],
        "reward_mean_last": means["after"],
        "reward_mean_ema": means["ema"],
        "reward_gain_ci95": [gain.low, gain.high],
        "kl_last": report.after.kl,
        **gold_summary,
    }
    run.record("rl", verdict, stage, "rl/actor", summary, **facts)
    if sft_gold is not None:
        evaluation.show(run.screen, sft_gold, rl_gold, gold_summary)
    else:
        run.screen.line(f"  final judge: {facts['final_judge']}")
        _show_answers(run, report)


def _final_judge(run: Run, data: dict[Stage, StageData], report: RlReport) -> str:
    """What a head of its own, trained on preferences that the reward model never saw, says of PPO's answers."""
    _, kept = halves(run.config, data["reward"].train)
    if not kept or "reward" not in stages_to_train(run.config):
        return f"not judged: it takes {final_judge.MIN_PAIRS} preferences and reward.judge_fraction above 0"
    sft = load_policy(run, sft_location(run))
    opinion = final_judge.second_opinion(
        sft.model,
        sft.tokenizer,
        kept,
        data["reward"].held_out,
        report.before.samples,
        report.after.samples,
        stops=sft.stops,
        max_tokens=sft.max_tokens,
        max_batch_tokens=run.config.engine.max_batch_tokens,
    )
    return str(opinion)


def _left_out(stage: StageName, data: StageData, too_long: int, sources: Sequence[Source]) -> LeftOut:
    """What a stage was given and did not use; bad records may have been meant for any stage of their source."""
    serving = [source for source in sources if not source.spec.stages or stage in source.spec.stages]
    return LeftOut(
        too_long=too_long,
        of=len(data.train) + len(data.held_out),
        bad=sum(len(source.dropped) for source in serving),
        what="prompts" if stage == "rl" else "records",
    )


def _finish(run: Run) -> None:
    """The run's status, and where everything is."""
    entries = run.manifest["stages"]
    forced = any(entry["status"] == "forced" for entry in entries.values())
    complete = all(run.finished(stage) for stage in run.config.stages)
    run.manifest["status"] = "forced" if forced else "finished" if complete else "partial"
    run.save()
    seconds = run.manifest["summary"]["seconds"]
    run.screen.line("")
    run.screen.line(f"{run.manifest['status']} after {seconds:.0f} s; everything is in {quoted(run.directory)}", "bold")
    for source in run.manifest.get("data", []):
        if non_commercial(source["licence"]):
            run.screen.line(f"not for commercial use: {source['spec']} ({source['licence']})", "yellow")


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
    if run.manifest["status"] == "partial":
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
        steps = 2 * run.manifest["stages"]["rl"].get("report", {}).get("steps", 1)
        loose = run.config.rl.model_copy(update={"kl_coef": 0, "schedule": "constant", "steps": steps})
        config = run.config.model_copy(update={"rl": loose})
        words = repeated(config.model_dump(mode="json"), run.manifest["recipe"])
        again = shell([program, *words, "--run-dir", copy, "--from", "rl", "--force"])
        commands.append(
            (
                "Watch PPO over-optimise the reward when nothing holds it",
                f"{shell(['cp', '-r', directory, copy])} && {again}",
            )
        )
    return commands


def _save(run: Run, model: Any, tokenizer: Any, where: str, stops: Sequence[int], *, what: str, base: str) -> None:
    card = model_card(run, what=what, base=base, tags=TAGS[where])
    replace_directory(run.directory / where, lambda path: save_model(model, tokenizer, path, stops=stops, card=card))


def _show_answers(run: Run, report: RlReport) -> None:
    pairs = list(zip(report.before.samples, report.after.samples, strict=True))[:SHOWN_ANSWERS]
    run.screen.table(
        "The same held-out prompts, answered before and after PPO",
        ("prompt", "SFT", "PPO"),
        [(sft.messages[-1].content[-200:], sft.answer[:200], rl.answer[:200]) for sft, rl in pairs],
    )
