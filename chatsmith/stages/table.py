"""The stages of a run, in the order of the road: what everybody else must know of one.

A new stage is a file beside these that holds what `Work` says, a group of settings in `config.py`, and an entry here.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chatsmith.config import Config, StageName
from chatsmith.rewards.spec import is_code
from chatsmith.types import Stage as Role

if TYPE_CHECKING:
    from chatsmith.data.mix import StageData
    from chatsmith.runs.run import Run
    from chatsmith.types import Record


SAMPLES = "samples.jsonl"
_JUDGE = {"judge": "A gold judge: FILE.py:function. Training never sees what it says."}
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
    """What a stage's module holds; of one that takes no share of the data, `run` and `check` alone."""

    def run(self, run: "Run") -> None:
        """Train, judge, save, and note it in the run's manifest."""

    def check(self, config: "Config", data: "Mapping[Role, StageData]") -> None:
        """Refuse before any work what it would refuse later."""

    def total_steps(self, config: "Config", records: int) -> int:
        """Of the whole stage, over so many records that can be used."""

    def step_size(self, config: "Config") -> int:
        """Records, or answers, of a step."""

    def measure(self, tokenizer: Any, records: "Sequence[Record]", **options: Any) -> tuple[int, int]:
        """How many of the records can be used, and their tokens in all.

        Args:
            options: `stops`, `max_tokens` and `on_error`.
        """


def _of_rl(config: Config) -> list[str]:
    """Its rewards that are functions of the user's."""
    from chatsmith.intake import reward_targets

    return [f"{target} (a reward)" for target in filter(is_code, reward_targets(config))]


def _unlabelled(config: Config) -> str:
    if not config.judge:
        return 'label has no judge: give judge = "FILE.py:function" in a recipe, or leave label out of stages.'
    if not config.label.sources and "rl" not in config.stages:
        return "label has no prompts: name some in label.sources, or let the run have stage 3."
    return ""


def _unrewarded(config: Config) -> str:
    from chatsmith.intake import reward_targets

    if "reward" in config.stages or "trained" not in reward_targets(config):
        return ""
    return "rl has no reward: give --reward DIR or --reward FILE.py:function, or let stage 2 train one."


def _ready(config: Config) -> str:
    """Why nobody needs a reward model; empty: somebody does."""
    from chatsmith.intake import reward_targets

    targets = reward_targets(config)
    if "rl" not in config.stages or "trained" in targets:
        return ""
    return f"ready rewards are used: {', '.join(targets)}"


def _unasked(config: Config) -> str:
    """Why nobody needs labels."""
    return "" if PAIRS.name in config.stages else _ready(config)


def _nothing(_: Config) -> str:
    return ""


def _none(_: Config) -> list[str]:
    return []


@dataclass(frozen=True)
class Voice:
    """A model that can be asked: its folder in the stage's, and how people call it."""

    folder: str
    short: str
    who: str


@dataclass(frozen=True)
class Column:
    """A key figure in the table of runs: a number of `manifest.Summary`, or what it has gained since another."""

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
    takes: Role | None  # whose share of the data it learns from; None: none
    gives: Mapping[Role, str] = field(default_factory=dict)  # files of records that it leaves, and whose they are
    option: str = ""  # with which a later stage's command takes its model
    lacks: Callable[[Config], str] = _nothing  # what a configuration with it fails to say, an error; empty: nothing
    unneeded: Callable[[Config], str] = _nothing  # why a run with it goes without; empty: it does not
    code: Callable[[Config], list[str]] = _none  # functions of the user's that it calls, and what they are
    module: str = ""  # that holds its work; empty: the one beside this that has its name
    options: Mapping[str, str] = field(default_factory=dict)  # of `chatsmith NAME`, each in words, named as in `train`
    voices: Mapping[str, Voice] = field(default_factory=dict)  # by the name to ask for them, the best one first
    columns: Sequence[Column] = ()

    @property
    def shows_answers(self) -> bool:
        """Whether it leaves answers of before and after, to held-out prompts."""
        return SAMPLES in self.files

    @property
    def work(self) -> Work:
        """Its module, which loads torch."""
        module: Any = importlib.import_module(self.module or f"chatsmith.stages.{self.name}")
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
    takes="sft",
    option="--actor-model",
    voices={"sft": Voice("model", "SFT", "the SFT model")},
    columns=(Column("SFT loss", "sft_loss_last", "{:.3f}"),),
)
LABEL = Stage(
    "label",
    short="labels",
    heading="Labels",
    title="labels, preferences between answers of the SFT model",
    records="prompts",
    enters=("label", "judge", "judge_sources"),
    models={},
    files=("preferences.jsonl",),
    curves={},
    figures=(),
    takes=None,
    gives={"pairs": "preferences.jsonl", "reward": "preferences.jsonl"},
    options={
        "actor_model": "The SFT model, whose answers are labelled.",
        "judge": "Says which answer is better: FILE.py:function.",
    },
    lacks=_unlabelled,
    unneeded=_unasked,
)
PAIRS = Stage(
    "pairs",
    short="pairs",
    heading="Learning from pairs",
    title="learning from preferences without sampling",
    records="records",
    enters=("pairs",),
    models={"model": ("dpo",), "ema": ("dpo",)},
    files=(SAMPLES,),
    curves={
        "pairs/loss": "loss",
        "pairs/held_out_accuracy": "held-out accuracy",
        "pairs/held_out_margin": "held-out margin",
        "pairs/chosen": "better answers",
        "pairs/rejected": "worse answers",
    },
    figures=("pairs/loss", "pairs/accuracy", "pairs/chosen", "pairs/rejected"),
    takes="pairs",
    option="--actor-model",
    code=_of_rl,
    options={
        "actor_model": "The SFT model: start and reference.",
        "rewards": r"What its answers are scored by, before and after: DIR or FILE.py:function, each \[@WEIGHT].",
        **_JUDGE,
    },
    voices={
        "pairs": Voice("model", "pairs", "the assistant after learning from pairs"),
        "pairs-ema": Voice("ema", "pairs, averaged", "the same, averaged over its updates"),
    },
    columns=(Column("pairs", "pairs_accuracy", "{:.0%}"),),
)
REWARD = Stage(
    "reward",
    short="reward model",
    heading="Reward model",
    title="reward model, learning what people prefer",
    records="records",
    enters=("reward_model", "reward"),
    models={"model": ("reward-model",)},
    files=(),
    curves={"reward/loss": "loss", "reward/accuracy": "accuracy", "reward/lr": "learning rate"},
    figures=("reward/loss", "reward/accuracy"),
    takes="reward",
    option="--reward",
    options={
        "actor_model": "The SFT model, whose answers give the reward its unit.",
        "reward_model": "Base of the reward model. Default: the SFT model.",
        **_JUDGE,
    },
    unneeded=_ready,
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
    takes="rl",
    lacks=_unrewarded,
    code=_of_rl,
    options={
        "actor_model": "The SFT model: start and reference of PPO.",
        "rewards": r"Reward models or functions: DIR or FILE.py:function, each \[@WEIGHT].",
        **_JUDGE,
    },
    voices={
        "rl": Voice("actor", "PPO", "the assistant after PPO"),
        "ema": Voice("ema", "PPO, averaged", "the assistant after PPO, averaged over its updates"),
    },
    columns=(
        Column("reward", "reward_mean_last", "{:+.2f}", since="reward_mean_first"),
        Column("gold", "gold_gain", "{:+.3f}"),
    ),
)
TABLE = [SFT, LABEL, PAIRS, REWARD, RL]
BY_NAME = {stage.name: stage for stage in TABLE}
VOICES: Mapping[str, Voice] = {name: voice for stage in TABLE for name, voice in stage.voices.items()}


def add(stage: Stage, *, before: StageName) -> None:
    """Enter a stage of one's own; see examples/own_stage.py."""
    TABLE.insert(TABLE.index(BY_NAME[before]), stage)
    BY_NAME.clear()
    BY_NAME.update({each.name: each for each in TABLE})


def from_on(name: StageName | None) -> list[StageName]:
    """A stage and all that come after it in the table; without one none."""
    names = list(BY_NAME)
    return names[names.index(name) :] if name is not None else []
