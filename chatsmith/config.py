"""Configuration: strict, small, saved with the run.

Later sources win: the defaults below, a TOML recipe, named command-line options, dotted overrides such as
`--rl.kl_coef 0.02`. An unknown key is an error that names the nearest known one. Defaults are those of a decoder up to
1.3 B parameters; recipes override them and say why.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chatsmith.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
StageName = Literal["sft", "reward", "rl"]
STAGES: tuple[StageName, ...] = ("sft", "reward", "rl")


class Group(BaseModel):
    """Base of all groups: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Group):
    """Where records come from and which stage sees which."""

    sources: tuple[str, ...] = ("Dahoas/rm-static",)  # [STAGE[,STAGE]:]PATH_OR_ID[#SPLIT][@WEIGHT]
    split: tuple[float, float, float] = (2, 4, 4)  # sft, reward, rl; of sources that serve several stages
    split_seed: int = 0
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    max_tokens: Positive = 512  # prompt and answer together; longer records are dropped and counted
    on_error: Literal["raise", "skip"] = "raise"


class OptimizerConfig(Group):
    """What every stage's optimizer has; the schedule is over optimizer steps."""

    lr: Rate = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Rate = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.03  # share of all steps
    final_lr: Fraction = 0.0  # share of lr that is left at the end


class SftConfig(OptimizerConfig):
    """Stage 1, supervised fine-tuning."""

    epochs: Rate = 1.0
    batch: Positive = 64  # records per optimizer step
    loss_on: Literal["assistant", "all"] = "assistant"


class RewardConfig(OptimizerConfig):
    """Stage 2, the reward model."""

    epochs: Rate = 1.0
    batch: Positive = 64  # prompts per optimizer step
    margin: Annotated[float, Field(ge=0)] = 0.0
    center: Annotated[float, Field(ge=0)] = 0.01
    judge_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of the preferences, kept for the final judge's own head


class RlConfig(OptimizerConfig):
    """Stage 3, PPO with a critic."""

    schedule: Literal["cosine", "linear", "constant"] = "constant"
    critic_lr: Rate = 5e-5
    critic_warmup: Annotated[int, Field(ge=0)] = 0  # steps in which only the critic learns

    steps: Positive | None = None  # None: one pass over the prompts
    rollouts: Positive = 512  # answers per step
    samples_per_prompt: Positive = 1
    max_new_tokens: Positive = 256
    temperature: Rate = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    epochs: Positive = 4
    minibatches: Positive = 4
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    returns_lam: Fraction = 0.95
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Rate = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    value_clip: Rate | None = 0.2
    max_kl_old: Rate = 0.03  # epochs of a step end early above it
    old_logprobs: Literal["auto", "rollout", "training"] = "auto"  # auto: rollout in fp32, else training
    max_logprob_gap: Rate | None = None  # None: 1e-4 in fp32, 2e-2 in bf16

    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # None: k1 in the reward, k2 in the loss
    kl_target: Rate | None = None  # nats per answer; turns the adaptive controller on
    kl_horizon: Positive = 10_000  # answers

    rewards: tuple[str, ...] = (
        "trained",
    )  # trained | DIR | FILE.py:function | package.module:function, each [@WEIGHT]
    score_clip: Rate = 5.0
    standardise_functions: bool = False
    truncated_score: float | Literal["none", "mask"] = -1.0
    max_excluded: Fraction = 0.05

    ptx_coef: Annotated[float, Field(ge=0)] = 0.0
    ptx_batch: Positive = 16  # records per optimizer step
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # None: 0.992, less in short runs
    eval_prompts: Annotated[int, Field(ge=64)] = 64  # held-out prompts scored before and after, if there are as many

    @model_validator(mode="after")
    def _check(self) -> "RlConfig":
        if self.rollouts % self.samples_per_prompt:
            raise ValueError(
                f"rl.samples_per_prompt = {self.samples_per_prompt} does not divide rl.rollouts = {self.rollouts}"
            )
        if self.rollouts % self.minibatches:
            raise ValueError(f"rl.minibatches = {self.minibatches} does not divide rl.rollouts = {self.rollouts}")
        if self.kl_in == "reward" and self.kl_estimator in ("k2", "k3"):
            raise ValueError(
                f"rl.kl_estimator = {self.kl_estimator!r} in the reward trains the wrong way: its gradient is not that "
                'of the KL. Use "k1" in the reward, or rl.kl_in = "loss"'
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'rl.kl_estimator = "k1" in the loss has a gradient of zero in expectation: it would not hold the '
                'policy. Use "k2" (exact gradient) or "k3" in the loss, or rl.kl_in = "reward"'
            )
        return self


class GatesConfig(Group):
    """Bounds outside which a stage has failed."""

    max_kl: Rate = 1.0  # nats per sampled token (k3) to the SFT model at the end of rl
    max_length_ratio: Annotated[float, Field(gt=1)] = 4.0  # answer length after rl over before, and its inverse
    min_entropy: Annotated[float, Field(ge=0)] = 0.01  # nats per sampled token at the end of rl


class EngineConfig(Group):
    """How to compute, not what to learn."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_batch: Positive = 128  # sequences that generate together
    max_batch_tokens: Positive = 8192  # padded tokens in one forward pass with gradient
    max_logits_mib: Positive = 256  # above it the head runs in chunks
    save_every_s: Annotated[float, Field(ge=0)] = 60.0  # seconds between checkpoints inside a stage


class WorldConfig(Group):
    """The built-in task world: models from scratch, demonstrations and preferences made on the spot."""

    demonstrations: Positive
    pairs_prompts: Positive  # prompts answered by the SFT model for preferences
    pairs_offline: Annotated[int, Field(ge=0)]  # further preferences between written answers
    label_noise: Annotated[float, Field(ge=0, le=0.5)]  # 0.5: labels without meaning, for a control
    prompts: Positive  # for rl
    hidden: Positive
    layers: Positive
    heads: Positive


class Config(Group):
    """A whole run."""

    seed: int = 1
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = STAGES  # that this run has
    actor_model: str = ""
    reward_model: str = ""  # base of stage 2; empty: the SFT model's own body
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    reward: RewardConfig = RewardConfig()
    rl: RlConfig = RlConfig()
    gates: GatesConfig = GatesConfig()
    engine: EngineConfig = EngineConfig()
    world: WorldConfig | None = None


def builtin_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes that come with the package."""
    folder = resources.files("chatsmith") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def read_recipe(name: str) -> dict[str, Any]:
    """The keys of a built-in recipe or of a TOML file.

    Raises:
        ConfigError: if there is no such recipe or the file is not TOML.
    """
    recipes = builtin_recipes()
    if name in recipes:
        return tomllib.loads(recipes[name])
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, recipes, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(recipes)
        raise ConfigError(f'no recipe or TOML file "{name}"; {hint}')
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not valid TOML: {error}.") from error


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--rl.kl_coef 0.02` and `--rl.kl_coef=0.02` as nested keys. Values are TOML; anything else is a string.

    Raises:
        ConfigError: if an argument is not of that form or has no value.
    """
    given: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"unexpected argument {argument!r}; overrides look like --rl.kl_coef 0.02.")
        key = name[2:].replace("-", "_")
        _check_key(key, "the command line")
        if not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{name} has no value; write {name} VALUE.")
        given[key] = _toml_value(value)
    return nested(given)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"rl.lr": 1} as {"rl": {"lr": 1}}."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        place = result
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return result


def resolve(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Config:
    """One configuration from (origin, keys) layers, later ones winning key by key.

    Raises:
        ConfigError: naming the key, the value, the origin, and what would be accepted.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, keys in layers:
        for key, value in _flat(keys):
            _check_key(key, origin)
            # TOML has no null: "none" turns an optional key off (for the truncated score it is a choice of its own)
            off = value == "none" and key != "rl.truncated_score"
            merged[key], origins[key] = None if off else value, origin
    try:
        return Config.model_validate(nested(merged))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if not isinstance(part, int)]
        candidates = [".".join(path[:n]) for n in range(len(path), 0, -1)]
        key = next((name for name in candidates if name in origins), candidates[0])
        where = origins.get(key, layers[-1][0] if layers else "defaults")
        message = first["msg"].removeprefix("Value error, ")
        given = "" if key not in origins else f" = {first['input']!r}"
        text = message if first["type"] == "value_error" else f"{key}{given}: {message}"
        raise ConfigError(f"{where}: {text}.") from error


def _flat(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""
    keys = []
    for name, info in Config.model_fields.items():
        group = WorldConfig if name == "world" else info.annotation
        if isinstance(group, type) and issubclass(group, Group):
            keys += [f"{name}.{key}" for key in group.model_fields]
        else:
            keys.append(name)
    return keys


def _check_key(key: str, origin: str) -> None:
    known = known_keys()
    if key in known:
        return
    by_last_part = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, known, n=1) or by_last_part
    hint = (
        f'; did you mean "{near[0]}"?'
        if near
        else f"; groups are {', '.join(sorted({k.split('.')[0] for k in known}))}."
    )
    raise ConfigError(f'{origin}: unknown key "{key}"{hint}')


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
