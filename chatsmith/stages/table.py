"""The stages of a run, in the order of the road: what everybody else must know of one.

A new stage is a file beside these that holds what `Work` says, a group of settings in `config.py`, and an entry here.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chatsmith.config import StageName

if TYPE_CHECKING:
    from chatsmith.config import Config
    from chatsmith.runs.run import Run
    from chatsmith.types import Record


class Work(Protocol):
    """What a stage's module holds."""

    def run(self, run: "Run") -> None:
        """Train, judge, save, and note it in the run's manifest."""

    def total_steps(self, config: "Config", records: int) -> int:
        """Of the whole stage, over so many records that can be used."""

    def step_size(self, config: "Config") -> int:
        """Records, or answers, of a step."""

    def measure(self, tokenizer: Any, records: "Sequence[Record]", **options: Any) -> tuple[int, int]:
        """How many of the records can be used, and their tokens in all.

        Args:
            options: `stops`, `max_tokens` and `on_error`.
        """


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: StageName
    short: str  # name for people
    heading: str  # the same, above what a page says of it
    title: str  # what it does, in words
    records: str  # what its data is made of
    enters: Sequence[str]  # settings that have a part in it first
    models: Mapping[str, Sequence[str]]  # folders of what it leaves, each with the tags for the hub
    files: Sequence[str]  # that it leaves, besides those of every stage
    curves: Mapping[str, str]  # metrics worth a curve on the screen, by their names there
    figures: Sequence[str]  # metrics of a line in a log
    phase: str  # heading of its diagrams in a report
    options: Mapping[str, str] = field(
        default_factory=dict
    )  # of `chatsmith NAME`, by their names in `train`, in its words

    @property
    def work(self) -> Work:
        """Its module, which loads torch."""
        module: Any = importlib.import_module(f"chatsmith.stages.{self.name}")
        work: Work = module
        return work


TABLE = (
    Stage(
        "sft",
        short="SFT",
        heading="Supervised fine-tuning",
        title="supervised fine-tuning, learning to answer from demonstrations",
        records="records",
        enters=("actor_model", "data", "sft"),
        models={"model": ("sft",)},
        files=(),
        curves={"sft/loss": "loss", "sft/held_out_loss": "held-out loss", "sft/lr": "learning rate"},
        figures=("sft/loss", "sft/held_out_loss"),
        phase="Before PPO",
    ),
    Stage(
        "reward",
        short="reward model",
        heading="Reward model",
        title="reward model, learning what people prefer",
        records="records",
        enters=("reward_model", "reward"),
        models={"model": ("reward-model",)},
        files=("preferences.jsonl",),
        curves={"reward/loss": "loss", "reward/accuracy": "accuracy", "reward/lr": "learning rate"},
        figures=("reward/loss", "reward/accuracy"),
        phase="Before PPO",
        options={
            "actor_model": "The SFT model, whose answers give the reward its unit.",
            "reward_model": "Base of the reward model. Default: the SFT model.",
        },
    ),
    Stage(
        "rl",
        short="PPO",
        heading="PPO",
        title="PPO, learning to answer as people prefer",
        records="prompts",
        enters=("rl",),
        models={"actor": ("rlhf", "ppo"), "critic": (), "ema": ("rlhf", "ppo")},
        files=("samples.jsonl",),
        curves={
            "gold/total": "gold score",
            "rl/reward_mean": "reward",
            "rl/kl": "KL",
            "rl/entropy": "entropy",
            "rl/answer_length": "length",
        },
        figures=("rl/reward_mean", "rl/kl", "rl/answer_length", "gold/total"),
        phase="PPO",
        options={
            "actor_model": "The SFT model: start and reference of PPO.",
            "rewards": r"Reward models or functions: DIR or FILE.py:function, each \[@WEIGHT].",
        },
    ),
)
BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in TABLE}
