"""The task world's data as ordinary files and an ordinary model directory, to be used like a user's own."""

import random
from collections.abc import Sequence
from pathlib import Path

from chatsmith.config import Config, WorldConfig
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.files.writing import FreshDirectory, replace_directory
from chatsmith.types import Message, Record, Sample
from chatsmith.world.demonstrations import demonstrations, label, minimal_pairs, offline_pairs
from chatsmith.world.judge import Gold, judge
from chatsmith.world.model import build_model, build_tokenizer
from chatsmith.world.tasks import Task, held_out_tasks, train_tasks

EVALUATION_SEED = 7
DEMONSTRATIONS, PROMPTS, PREFERENCES = "demonstrations.jsonl", "prompts.jsonl", "preferences.jsonl"


def write_material(config: Config, world: WorldConfig, data: Path, base: Path) -> None:
    """Demonstrations and prompts as JSON lines into `data`, an untrained model with its tokenizer into `base`."""
    shown = demonstrations(world.demonstrations, config.seed)
    asked = prompt_tasks(config, world)
    save_jsonl(data / DEMONSTRATIONS, [{"prompt": task.prompt, "answer": answer} for task, answer in shown])
    save_jsonl(data / PROMPTS, [{"prompt": task.prompt} for task in asked])
    tokenizer = build_tokenizer(f"{task.prompt} {answer}" for task, answer in shown)
    model = build_model(tokenizer, config.seed, hidden=world.hidden, layers=world.layers, heads=world.heads)

    def fill(path: FreshDirectory) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    replace_directory(base, fill)


def prompt_tasks(config: Config, world: WorldConfig) -> list[Task]:
    """The tasks of `prompts.jsonl`, for stage 3."""
    return train_tasks(world.prompts, config.seed + 1)


def preference_tasks(config: Config, world: WorldConfig) -> list[Task]:
    """Training tasks that the SFT model is to answer for preferences."""
    return train_tasks(world.pairs_prompts, config.seed + 2)


def write_preferences(
    config: Config, world: WorldConfig, tasks: Sequence[Task], samples: Sequence[Sample], file: Path
) -> None:
    """Gold's preferences, partly flipped, between two sampled answers per task and between written answers.

    Args:
        samples: answers to the tasks, two in a row for each.
    """
    rng = random.Random(f"labels-{config.seed}")
    asked = {task.prompt: task for task in tasks}
    rows = []
    for pair in zip(samples[::2], samples[1::2], strict=True):
        task = asked[pair[0].messages[-1].content]
        if any(sample.finish_reason != "stop" or not sample.answer for sample in pair):
            continue  # cut-off answers never reach the reward model
        order = label(task, [(sample.answer, True) for sample in pair], world.label_noise, rng)
        if order is not None:
            better, worse = (pair[i].answer for i in order)
            rows.append({"prompt": task.prompt, "chosen": better, "rejected": worse})
    for task, better, worse in offline_pairs(world.pairs_offline, config.seed):
        if rng.random() < world.label_noise:
            better, worse = worse, better
        rows.append({"prompt": task.prompt, "chosen": better, "rejected": worse})
    rng.shuffle(rows)
    save_jsonl(file, rows)


def gold(task: Task, sample: Sample) -> Gold:
    """What an answer to a task is really worth."""
    return judge(task, sample.answer, sample.finish_reason == "stop")


def as_record(task: Task) -> Record:
    """The task as the rest of chatsmith sees it: a prompt."""
    return Record(prompt=(Message("user", task.prompt),), origin=f"world:{task.kind}")


def evaluation_tasks() -> list[Task]:
    """Held-out tasks, the same for every run; no stage ever sees their prompts.

    The draw is not the one that the world and the recipe were tuned on (`held_out_tasks` without a seed).
    """
    return held_out_tasks(seed=EVALUATION_SEED)


def probes(seed: int) -> dict[str, list[tuple[Sample, Sample]]]:
    """Per aspect of gold, pairs (better, worse) of answers to held-out tasks that differ in that aspect alone."""

    def sample(task: Task, answer: str) -> Sample:
        record = as_record(task)
        return Sample(record.prompt, answer, "stop", record)

    return {
        aspect: [(sample(task, better), sample(task, worse)) for task, better, worse in pairs]
        for aspect, pairs in minimal_pairs(evaluation_tasks(), seed).items()
    }
