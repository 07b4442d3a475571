"""The task world's recipe as ordinary files and settings: from here on its run is like any other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chatsmith.config import Config, LabelConfig, StageName, WorldConfig
from chatsmith.files.checkpoint import save_jsonl, save_text
from chatsmith.files.writing import FreshDirectory, replace_directory
from chatsmith.stages.table import LABEL
from chatsmith.world.demonstrations import TIE, Pair, demonstrations, minimal_pairs, offline_pairs
from chatsmith.world.evaluation import asked
from chatsmith.world.model import build_model, build_tokenizer
from chatsmith.world.tasks import Task, held_out_tasks, train_tasks

EVALUATION_SEED = 7
BASE, DATA = "base", "data"
DEMONSTRATIONS, PROMPTS = "demonstrations.jsonl", "prompts.jsonl"
QUESTIONS, ANSWERED = "questions.jsonl", "answered.jsonl"  # to be labelled
EVALUATION, PROBES = "evaluation.jsonl", "probes.jsonl"  # for the judge alone
LICENCE = "Made on the spot by the task world of chatsmith; nobody else's work is in them."


def ordinary(config: Config, directory: Path) -> Config:
    """The configuration that does what `config` asks for with files in `directory`, which are written if need be.

    One without a task world is that already.
    """
    world = config.world
    if world is None:
        return config
    data = directory / DATA
    if not (directory / BASE).exists():
        write_material(config, world, data, directory / BASE)
    given = {
        "actor_model": str(directory / BASE),
        "judge": "chatsmith.world.evaluation:gold",
        "judge_sources": (str(data / EVALUATION), str(data / PROBES)),
        "stages": _with_labels(config.stages),
        "label": LabelConfig(sources=(str(data / QUESTIONS), str(data / ANSWERED)), tie=TIE, noise=world.label_noise),
        "data": config.data.model_copy(update={"sources": (f"sft:{data / DEMONSTRATIONS}", f"rl:{data / PROMPTS}")}),
        "world": None,
    }
    return config.model_copy(update=given)


def _with_labels(stages: Sequence[StageName]) -> tuple[StageName, ...]:
    """The world has no preferences but those that are labelled."""
    first = next((stage for stage in stages if stage in LABEL.gives), None)
    if first is None or LABEL.name in stages:
        return tuple(stages)
    place = stages.index(first)
    return (*stages[:place], LABEL.name, *stages[place:])


def write_material(config: Config, world: WorldConfig, data: Path, base: Path) -> None:
    """What people would have written, as JSON lines, into `data`; an untrained model with its tokenizer into `base`."""
    shown = demonstrations(world.demonstrations, config.seed)
    save_jsonl(data / DEMONSTRATIONS, [{"prompt": task.prompt, "answer": answer} for task, answer in shown])
    save_jsonl(data / PROMPTS, map(_row, train_tasks(world.prompts, config.seed + 1)))
    save_jsonl(data / QUESTIONS, map(_row, train_tasks(world.pairs_prompts, config.seed + 2)))
    save_jsonl(data / ANSWERED, map(_pair, offline_pairs(world.pairs_offline, config.seed)))
    save_jsonl(data / EVALUATION, map(_row, evaluation_tasks()))
    save_jsonl(data / PROBES, probes(config.seed))
    save_text(data / "LICENSE", f"{LICENCE}\n")
    tokenizer = build_tokenizer(f"{task.prompt} {answer}" for task, answer in shown)
    model = build_model(tokenizer, config.seed, hidden=world.hidden, layers=world.layers, heads=world.heads)

    def fill(path: FreshDirectory) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    replace_directory(base, fill)


def probes(seed: int) -> Iterator[dict[str, Any]]:
    """Pairs of answers to held-out tasks that differ in one aspect alone, which is named."""
    for aspect, pairs in minimal_pairs(evaluation_tasks(), seed).items():
        for pair in pairs:
            yield {**_pair(pair), "aspect": aspect}


def evaluation_tasks() -> list[Task]:
    """Held-out tasks, the same for every run; no stage ever sees their prompts.

    The draw is not the one that the world and the recipe were tuned on (`held_out_tasks` without a seed).
    """
    return held_out_tasks(seed=EVALUATION_SEED)


def _row(task: Task) -> dict[str, Any]:
    return {"prompt": task.prompt, "task": asked(task)}


def _pair(pair: Pair) -> dict[str, Any]:
    task, better, worse = pair
    return {"prompt": task.prompt, "chosen": better, "rejected": worse, "task": asked(task)}
