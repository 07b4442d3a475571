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


SAMPLES = "samples.jsonl"
TITLES: Mapping[str, str] = {
    "ppo": "PPO",
    "rloo": "RLOO",
    "reinforce++": "REINFORCE++",
    "reinforce++-baseline": "REINFORCE++-baseline",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
}
"""Names for people of the algorithms of stage 3."""


def named(text: str, algorithm: Any) -> str:
    """What is said of PPO, where stage 3 has another algorithm; one that is not known is called RL."""
    return text.replace("PPO", TITLES.get(str(algorithm), "RL"))


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
class Voice:
    """A model that can be asked: its folder in the stage's, and how people call it."""

    folder: str
    short: str
    who: str


@dataclass(frozen=True)
class Column:
    """A key figure in the table of runs: a number of the run's summary, or what has been gained since another."""

    name: str
    figure: str
    written: str  # as `str.format` takes it
    since: str = ""


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
    voices: Mapping[str, Voice] = field(default_factory=dict)  # by the name to ask for them, the best one first
    columns: Sequence[Column] = ()

    @property
    def shows_answers(self) -> bool:
        """Whether it leaves answers of before and after, to held-out prompts."""
        return SAMPLES in self.files

    @property
    def work(self) -> Work:
        """Its module, which loads torch."""
        module: Any = importlib.import_module(f"chatsmith.stages.{self.name}")
        work: Work = module
        return work


SFT = Stage(
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
    voices={"sft": Voice("model", "SFT", "the SFT model")},
    columns=(Column("SFT loss", "sft_loss_last", "{:.3f}"),),
)
REWARD = Stage(
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
    columns=(Column("acc.", "reward_accuracy", "{:.0%}"),),
)
RL = Stage(
    "rl",
    short="PPO",
    heading="PPO",
    title="PPO, learning to answer as people prefer",
    records="prompts",
    enters=("rl",),
    models={"actor": ("rlhf",), "critic": (), "ema": ("rlhf",)},
    files=(SAMPLES,),
    curves={
        "gold/total": "gold score",
        "rl/reward_mean": "reward",
        "rl/kl": "KL",
        "rl/entropy": "entropy",
        "rl/answer_length": "length",
    },
    figures=("rl/reward_mean", "rl/kl", "rl/answer_length", "gold/total"),
    phase="PPO",
    voices={
        "rl": Voice("actor", "PPO", "the assistant after PPO"),
        "ema": Voice("ema", "PPO, averaged", "the assistant after PPO, averaged over its updates"),
    },
    columns=(
        Column("reward", "reward_mean_last", "{:+.2f}", since="reward_mean_first"),
        Column("gold", "gold_gain", "{:+.3f}"),
    ),
)
TABLE = (SFT, REWARD, RL)
BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in TABLE}
VOICES: Mapping[str, Voice] = {name: voice for stage in TABLE for name, voice in stage.voices.items()}
