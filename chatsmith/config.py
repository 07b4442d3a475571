"""Configuration: strict, small, saved with the run. What each key means stands below it, and nowhere else.

Defaults are those of a decoder up to 1.3 B parameters; recipes override them and say why. `docs/configuration.md` is
made from this file (`make docs`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
StageName = str  # of an entry of stages/table.py
STAGES: tuple[StageName, ...] = ("sft", "label", "pairs", "reward", "rl")  # that come with chatsmith
TrackerName = Literal["tensorboard", "wandb", "trackio"]
Algorithm = Literal["ppo", "rloo", "reinforce++", "reinforce++-baseline", "grpo", "dr-grpo", "dapo", "gspo", "cispo"]

_PLAIN: dict[str, Any] = {
    "baseline": "critic",
    "scale": "whiten",
    "ratio": "token",
    "surrogate": "clip",
    "aggregate": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "cap": None,
    "kl_in": "reward",
    "kl_coef": 0.05,
    "kl_estimator": None,
    "samples_per_prompt": 1,
}
_GROUP: dict[str, Any] = _PLAIN | {"baseline": "group", "scale": "group", "samples_per_prompt": 8}
_NO_KL: dict[str, Any] = {"kl_in": "loss", "kl_coef": 0.0}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ppo": _PLAIN,
    "rloo": _PLAIN | {"baseline": "others", "scale": "none", "samples_per_prompt": 4},
    "reinforce++": _PLAIN | {"baseline": "none", "kl_coef": 0.01},
    "reinforce++-baseline": _PLAIN | {"baseline": "group", "kl_coef": 0.01, "samples_per_prompt": 4},
    "grpo": _GROUP | {"aggregate": "answer", "kl_in": "loss", "kl_estimator": "k3", "kl_coef": 0.04},
    "dr-grpo": _GROUP | _NO_KL | {"scale": "none", "aggregate": "constant"},
    "dapo": _GROUP | _NO_KL | {"clip_high": 0.28, "skip_equal_groups": True, "max_refills": 3, "overlong": 0.2},
    "gspo": _GROUP | _NO_KL | {"ratio": "answer", "aggregate": "answer", "clip_low": None, "clip_high": None},
    "cispo": _GROUP
    | _NO_KL
    | {"scale": "batch", "surrogate": "cispo", "clip_low": None, "clip_high": None, "cap": 5.0},
}
"""What each algorithm of stage 3 sets. A key that is given beside it keeps its value."""
assert tuple(PRESETS) == get_args(Algorithm)

CRITIC_KEYS = ("critic_lr", "critic_warmup", "gamma", "lam", "returns_lam", "value_clip")
TOKEN_SIZED = 0.2  # bounds that suit the ratio of a token


class Group(BaseModel):
    """Base of all groups: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Text = str | dict[str, str]
Scores = str | tuple[str | float, ...]
_MAPPINGS = (
    ("prompt",),
    ("prompt", "answer"),
    ("prompt", "chosen", "rejected"),
    ("prompt", "answers"),
    ("prompt", "answers", "scores"),
    ("chosen", "rejected"),
    ("messages",),
    ("text",),
)


class SourceConfig(Group):
    """One data source about which there is more to say than fits after `--data`: a `[[data.sources]]` of a recipe.

    A TEXT holds columns in braces, as in `"{Body} {Question}"`, or is a choice by the value of a column, as in
    `{by = "label", "1" = "{first}", "0" = "{second}"}`; see [data.md](data.md).
    """

    source: str
    """As after `--data`: `[STAGE[,STAGE]:]PATH_OR_ID[#SPLIT][@WEIGHT]`."""
    count: Positive | None = None
    """Records to train on in a pass, in place of a weight; none: all."""
    format: str | None = None
    """Name of the format of its rows, where more than one fits."""
    rows: str | None = None
    """Nested lists that hold the rows, as in `data[].paragraphs[].qas[]`; none: each row as it is."""
    function: str | None = None
    """`FILE.py:function` or `package.module:function`: from a row to a record, a row of a known format, a list of
    these, or None, which leaves it out."""
    prompt: Text | None = None
    """TEXT of the prompt."""
    answer: Text | None = None
    """TEXT of the answer."""
    chosen: Text | None = None
    """TEXT of the better answer."""
    rejected: Text | None = None
    """TEXT of the worse answer."""
    answers: str | tuple[Text, ...] | None = None
    """A TEXT for each answer, or the path of a list, as in `"{completions[].text}"`."""
    scores: Scores | None = None
    """A number or a column for each answer, or the path of a list; higher is better."""
    messages: str | None = None
    """Column of the conversation."""
    text: Text | None = None
    """TEXT for language modelling."""
    system: Text | None = None
    """TEXT of the system turn of records that have none."""
    role: str | None = None
    """Field of a message that says who speaks; none: `role` or `from`."""
    content: str | None = None
    """Field of a message with what is said; none: `content` or `value`."""
    roles: dict[str, Literal["system", "user", "assistant"]] = {}
    """What the roles of the data mean, as in `{customer = "user"}`."""

    def mapping(self) -> dict[str, Any]:
        """The parts of a record that are made from columns, and from what."""
        names = {name for names in _MAPPINGS for name in names}
        return {name: value for name, value in self if name in names and value is not None}

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        given = tuple(self.mapping())
        if given and set(given) not in map(set, _MAPPINGS):
            known = "; ".join(" + ".join(names) for names in _MAPPINGS)
            raise ValueError(
                f'the mapping of "{self.source}" gives {" + ".join(given)}, which is no record. One is made of: {known}'
            )
        for name in ("format", "function"):
            if given and getattr(self, name) is not None:
                raise ValueError(
                    f'the mapping of "{self.source}" gives {" + ".join(given)}, and {name} beside it. Leave one out: '
                    "either says what a row is"
                )
        return self


class DataConfig(Group):
    """Where records come from and which stage sees which."""

    sources: tuple[str | SourceConfig, ...] = ()
    """`[STAGE[,STAGE]:]PATH_OR_ID[#SPLIT][@WEIGHT]` each, or a table with more; see [data.md](data.md); `--data`."""
    temperature: Rate = 1.0
    """Above 1 it evens out sources of different size: a stage's shares become share^(1 / temperature)."""
    split: tuple[float, float, float] = (2, 4, 4)
    """Shares of sft, reward, rl in sources that serve several of them."""
    split_seed: int = 0
    """Decides which record goes where."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the records kept for evaluation, below 0.5."""
    max_tokens: Positive = 512
    """Longest conversation, prompt and answer together; longer ones are dropped and counted."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise` or `skip`: what a bad record does."""


class OptimizerConfig(Group):
    """What every stage's optimizer has; the schedule is over optimizer steps."""

    lr: Rate = 1e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, on all parameters."""
    grad_clip: Rate = 1.0
    """Largest norm of the gradient."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After warm-up: `cosine`, `linear` or `constant`."""
    warmup: Fraction = 0.03
    """Share of the steps with rising learning rate."""
    final_lr: Fraction = 0.0
    """Share of `lr` left at the end; not with `constant`."""


class SftConfig(OptimizerConfig):
    """Stage 1, supervised fine-tuning."""

    epochs: Rate = 1.0
    """Passes over the data; fractions are allowed."""
    batch: Positive = 64
    """Records per optimizer step."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """`assistant`: its turns; `all`: every token."""


class LabelConfig(Group):
    """Preferences by `judge` between answers of the SFT model, for the reward model; only where `stages` has it."""

    sources: tuple[str, ...] = ()
    """Prompts that are answered twice, and pairs of answers that are labelled as they stand. Written as `data.sources`,
    without stage and weight; none: the prompts of rl."""
    tie: Annotated[float, Field(ge=0)] = 0.0
    """Difference of the judge's scores up to which there is no preference."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the preferences that are flipped, at most 0.5: people disagree too."""


class RewardConfig(OptimizerConfig):
    """Stage 2, the reward model."""

    epochs: Rate = 1.0
    """Passes over the preferences; fractions are allowed."""
    batch: Positive = 64
    """Prompts per optimizer step."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """By which the better answer must lead, in the loss."""
    center: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the term that keeps scores around zero."""
    judge_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the preferences kept for the final judge, if there are 500 or more; 0: none."""


class PairsConfig(OptimizerConfig):
    """Stage `pairs`: preferences learned without a reward model and without sampling, by DPO and its kin."""

    lr: Rate = 1e-6
    """Peak learning rate."""
    warmup: Fraction = 0.1
    """Share of the steps with rising learning rate."""
    epochs: Rate = 1.0
    """Passes over the preferences; fractions are allowed."""
    batch: Positive = 64
    """Prompts per optimizer step; of `kto`: answers, at least 2."""
    loss: Literal["dpo", "robust", "ipo", "simpo", "orpo", "kto"] = "dpo"
    """`dpo`; `robust`, which reckons with flipped preferences; `ipo`, `simpo` and `orpo`, which compare log-probs per
    token; `kto`, which learns from answers marked good or bad. See [algorithms.md](algorithms.md)."""
    beta: Rate | None = None
    """β of the loss, of `orpo` its λ; none: 0.1, where log-probs per token are compared 2, of `ipo` and `orpo` 0.1."""
    normalise: bool = False
    """`dpo` and `robust` compare log-probs per token, so that length does not enter."""
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Of `dpo` and `robust`: share of the preferences that may be flipped, below 0.5."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """Of `simpo`: γ, by which β times the log-prob per token of the better answer is to lead; none: 1."""
    nll: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the better answers' negative log-likelihood per token beside the loss; it keeps them likely."""
    good_weight: Rate = 1.0
    """Of `kto`: weight of answers marked good."""
    bad_weight: Rate = 1.0
    """Of `kto`: weight of answers marked bad."""

    @property
    def strength(self) -> float:
        """β, or what it is where none is given."""
        compares_means = self.loss == "simpo" or (self.normalise and self.loss in ("dpo", "robust"))
        return self.beta if self.beta is not None else 2.0 if compares_means else 0.1

    @property
    def lead(self) -> float:
        """γ, or what it is where none is given."""
        return 1.0 if self.margin is None else self.margin

    @model_validator(mode="after")
    def _check(self) -> "PairsConfig":
        of = {
            "normalise": (self.normalise, ("dpo", "robust")),
            "smoothing": (self.smoothing > 0, ("dpo", "robust")),
            "margin": (self.margin is not None, ("simpo",)),
            "nll": (self.nll > 0, ("dpo", "robust", "ipo", "simpo")),
            "good_weight": (self.good_weight != 1, ("kto",)),
            "bad_weight": (self.bad_weight != 1, ("kto",)),
        }
        for name, (is_set, losses) in of.items():
            if is_set and self.loss not in losses:
                raise ValueError(
                    f'pairs.{name} has no part in pairs.loss = "{self.loss}", only in {" and ".join(losses)}. Leave it '
                    "out, or choose such a loss"
                )
        if self.loss == "robust" and not self.smoothing:
            raise ValueError(
                'pairs.loss = "robust" needs pairs.smoothing, the share of the preferences that may be flipped'
            )
        if self.loss == "kto" and self.batch < 2:
            raise ValueError(
                'pairs.loss = "kto" measures its zero on answers beside other prompts: pairs.batch must be 2 or more'
            )
        return self


class RlConfig(OptimizerConfig):
    """Stage 3. The schedule is over steps, and the same for actor and critic.

    `algorithm` sets twelve keys or more at once, see [algorithms.md](algorithms.md#the-algorithms-of-stage-3); the
    defaults below are those of `ppo`. Without a critic (`baseline` other than `critic`) its keys have no effect.
    """

    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """After warm-up: `cosine`, `linear` or `constant`."""
    algorithm: Algorithm = "ppo"
    """`ppo`, `rloo`, `reinforce++`, `reinforce++-baseline`, `grpo`, `dr-grpo`, `dapo`, `gspo` or `cispo`."""
    baseline: Literal["critic", "others", "group", "none"] = "critic"
    """What a reward is compared with: `critic`; the mean of the `others` that answer the prompt, or of their `group`;
    `none`."""
    scale: Literal["none", "group", "batch", "whiten"] = "whiten"
    """Advantages are divided by the deviation of the rewards of a `group` or the `batch`; `whiten`: brought to mean 0
    and deviation 1 over the tokens of the batch; `none`."""
    ratio: Literal["token", "answer"] = "token"
    """Of new to old policy: of each `token`, or of the whole `answer`, as the geometric mean of its tokens."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """`clip`: no gradient beyond the bounds; `cispo`: the ratio is capped and tokens keep their gradient."""
    aggregate: Literal["token", "answer", "constant"] = "token"
    """The loss is a mean over tokens; over answers; or a sum over answers times `max_new_tokens`."""
    critic_lr: Rate = 5e-5
    """Learning rate of the critic."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """First steps in which only the critic learns."""
    steps: Positive | None = None
    """Batches of rollouts; none: one pass over the prompts."""
    rollouts: Positive = 512
    """Answers per step."""
    samples_per_prompt: Positive = 1
    """Answers to the same prompt in a step, in one mini-batch where possible; divides `rl.rollouts`."""
    skip_equal_groups: bool = False
    """Leave answers out of the update whose prompt got equal rewards for all of its answers."""
    max_refills: Annotated[int, Field(ge=0)] = 0
    """How often, at most, a step asks further prompts in place of those that `skip_equal_groups` leaves out."""
    max_new_tokens: Positive = 256
    """Longest answer, in stage 1's greedy check too."""
    temperature: Annotated[float, Field(ge=1e-3)] = 1.0
    """Of rollouts and log-probs, at least 0.001: colder ones have no probabilities to learn from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps all tokens; other values make PPO off-policy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1 keeps all tokens; other values make PPO off-policy."""
    epochs: Positive = 4
    """Passes over a batch of rollouts."""
    minibatches: Positive = 4
    """Optimizer steps per epoch; divides `rl.rollouts`."""
    gamma: Fraction = 1.0
    """Discount per token."""
    lam: Fraction = 0.95
    """The λ of the advantages."""
    returns_lam: Fraction = 0.95
    """The λ of the critic's returns."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """The ratio is clipped at 1 − this; none, with `ratio = "answer"`: 0.12/√n for an answer of n tokens."""
    clip_high: Rate | None = 0.2
    """The ratio is clipped at 1 + this; none, with `ratio = "answer"`: 0.16/√n for an answer of n tokens."""
    cap: Rate | None = None
    """Largest ratio of `surrogate = "cispo"`, the ratio itself; none with `clip`."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of negative advantages, above 1; none: off."""
    value_clip: Rate | None = 0.2
    """How far a value may move from the old one before its loss is clipped."""
    max_kl_old: Rate = 0.03
    """KL to the old policy (nats per token) above which a step takes no further epoch."""
    old_logprobs: Literal["auto", "rollout", "training"] = "auto"
    """`rollout`, `training` (a forward pass of its own), or `auto`: rollout in fp32, else training."""
    max_logprob_gap: Rate | None = None
    """Mean gap of rollout and training that stops the run; none: 3 times the model's own rounding (at least 1e-4)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """β, weight of the KL to the SFT model."""
    kl_in: Literal["reward", "loss"] = "reward"
    """`reward` or `loss`."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """`k1` in the reward; `k2` or `k3` in the loss; none: k1, k2."""
    kl_target: Rate | None = None
    """Nats per answer that the adaptive controller aims at; none: off."""
    kl_horizon: Positive = 10_000
    """Answers over which the controller takes full effect."""
    rewards: tuple[str, ...] = ("trained",)
    """`trained`, `DIR`, `FILE.py:function`, `package.module:function`, `http://HOST/PATH`, or one that is ready, see
    [rewards.md](rewards.md): `number`, `math`, `format`, `constraints`, `constraints-strict`, `repetition`, `overlong`;
    each with an optional `@WEIGHT`, several multiplied as in `number*format`; `--reward`."""
    score_clip: Rate = 5.0
    """Standardised scores are clipped to ± this."""
    truncated_score: float | Literal["none", "mask"] = -1.0
    """A reward model's standardised score for an answer that hit the limit; `none`: its own score; `mask`: the answer
    is left out."""
    overlong: Fraction = 0.0
    """Last share of `max_new_tokens` in which answers lose reward, in a straight line down to −1 at the limit, in place
    of a `truncated_score` that is a number; 0: off."""
    max_excluded: Fraction = 0.05
    """Share of answers without a finite reward above which the run stops."""
    ptx_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss on mixed-in text; 0: off."""
    ptx_batch: Positive = 16
    """Records of such text per optimizer step."""
    eval_prompts: Annotated[int, Field(ge=64)] = 64
    """Held-out prompts scored before and after, at least 64, if there are as many."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """What is not given is as the algorithm has it."""
        name = given.get("algorithm", "ppo") if isinstance(given, Mapping) else None
        return {**PRESETS[name], **given} if isinstance(name, str) and name in PRESETS else given

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
        self._check_groups()
        self._check_bounds()
        return self

    def _check_groups(self) -> None:
        compares = (
            f"rl.baseline = {self.baseline!r}"
            if self.baseline in ("others", "group")
            else 'rl.scale = "group"'
            if self.scale == "group"
            else "rl.skip_equal_groups"
            if self.skip_equal_groups
            else ""
        )
        if compares and self.samples_per_prompt < 2:
            raise ValueError(
                f"rl.samples_per_prompt = {self.samples_per_prompt}: {compares} compares the answers to a prompt, so "
                "it takes 2 or more of them. Set it to 4 or 8, or choose an algorithm without groups, such as "
                'rl.algorithm = "reinforce++"'
            )
        if self.scale == "group" and self.kl_in == "reward" and self.kl_coef > 0:
            raise ValueError(
                'rl.scale = "group" divides the rewards of each prompt by their deviation, and with rl.kl_in = '
                f'"reward" the price of KL too: rl.kl_coef = {self.kl_coef} would differ from prompt to prompt. Use '
                'rl.kl_in = "loss", rl.scale = "none", or rl.kl_coef = 0'
            )
        if self.max_refills and not self.skip_equal_groups:
            raise ValueError(
                f"rl.max_refills = {self.max_refills} asks further prompts in place of those that rl.skip_equal_groups "
                "leaves out, and it leaves out none. Set rl.skip_equal_groups = true, or rl.max_refills = 0"
            )

    def _check_bounds(self) -> None:
        bounds = {name: getattr(self, name) for name in ("clip_low", "clip_high", "dual_clip")}
        given = {name: value for name, value in bounds.items() if value is not None}
        if self.surrogate == "cispo":
            if self.cap is None:
                raise ValueError(
                    'rl.surrogate = "cispo" needs rl.cap, the largest ratio itself: 5 for one update per batch of '
                    "rollouts, 1.28 to 2 for several"
                )
            if given:
                name, value = next(iter(given.items()))
                raise ValueError(
                    f'rl.{name} = {value} does nothing with rl.surrogate = "cispo", whose bound is rl.cap. Set '
                    f'rl.{name} = "none"'
                )
            return
        if self.cap is not None:
            raise ValueError(
                f'rl.cap = {self.cap} does nothing with rl.surrogate = "clip", whose bounds are rl.clip_low and '
                'rl.clip_high. Set rl.cap = "none", or rl.surrogate = "cispo"'
            )
        for name in ("clip_low", "clip_high"):
            if self.ratio == "token" and bounds[name] is None:
                raise ValueError(f'rl.{name} = "none" goes with rl.ratio = "answer" alone. Set it, as to 0.2')
            if self.ratio == "answer" and bounds[name] is not None and bounds[name] >= TOKEN_SIZED:
                raise ValueError(
                    f'rl.{name} = {bounds[name]} is the size of a token\'s ratio. With rl.ratio = "answer" it would '
                    "clip nothing: such a ratio is a mean over n tokens and moves less by 1/sqrt(n). Set it to "
                    '"none", which follows the length of each answer, or to a smaller number'
                )


class GatesConfig(Group):
    """Bounds outside which stage 3 has failed; see [algorithms.md](algorithms.md). May change when a run is resumed."""

    max_kl: Rate = 1.0
    """Nats per sampled token (k3) to the SFT model after rl."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 4.0
    """By which mean answer length may grow or shrink."""
    min_entropy: Annotated[float, Field(ge=0)] = 0.01
    """Nats per sampled token after rl."""


class EngineConfig(Group):
    """How to compute, not what to learn. May change when a run is resumed."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    max_batch: Positive = 128
    """Sequences that generate together."""
    compile: bool = False
    """Compile the decoding step of rollouts: about a minute at the start of stage 3, then faster steps."""
    max_batch_tokens: Positive = 8192
    """Tokens in one forward pass of training or scoring; of models that cannot be packed, padded ones."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass: longer rows and larger passes fit, for a third more time."""
    max_logits_mib: Positive = 48
    """Of logits at once; above it the head runs in chunks, and twice in training."""
    save_every_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between checkpoints inside a stage, or 20 times what the last one took if that is longer."""


class WorldConfig(Group):
    """The built-in task world: a model from scratch, demonstrations and preferences made on the spot.

    A recipe with this group takes neither `actor_model` nor `data.sources` nor `judge`: these are files that it writes
    into the run directory, and a function of chatsmith. It has no defaults: all keys or none.
    """

    demonstrations: Positive
    """Demonstrations written for stage 1."""
    pairs_prompts: Positive
    """Prompts that the SFT model answers twice for preferences."""
    pairs_offline: Annotated[int, Field(ge=0)]
    """Further preferences between written answers."""
    label_noise: Annotated[float, Field(ge=0, le=0.5)]
    """Share of the preferences that are flipped, at most 0.5."""
    prompts: Positive
    """Prompts for stage 3."""
    hidden: Positive
    """Width of the model made from scratch."""
    layers: Positive
    """Its layers."""
    heads: Positive
    """Its attention heads."""


class Config(Group):
    """A whole run."""

    seed: int = 1
    """Of models, orders and sampling."""
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = ("sft", "reward", "rl")
    """Stages that this run has, of `sft`, `label`, `pairs`, `reward` and `rl`."""
    actor_model: str = ""
    """Model to start from: directory or hub id; `--actor-model`."""
    reward_model: str = ""
    """Base of stage 2; empty: the SFT model; `--reward-model`."""
    judge: str = ""
    """`FILE.py:function` or `package.module:function` that knows how good an answer really is, and that training never
    sees; see [judge.md](judge.md)."""
    judge_sources: tuple[str, ...] = ()
    """Its questions, and pairs of answers by which it looks at the reward model. Written as `data.sources`, without
    stage and weight; none: the held-out prompts of rl."""
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics go besides the run directory: `tensorboard`, `wandb`, `trackio`; may change when a run is resumed;
    `--track`."""
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    pairs: PairsConfig = PairsConfig()
    rl: RlConfig = RlConfig()
    gates: GatesConfig = GatesConfig()
    engine: EngineConfig = EngineConfig()
    world: WorldConfig | None = None

    @field_validator("stages")
    @classmethod
    def _known(cls, stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
        from chatsmith.stages.table import BY_NAME  # which says what a stage must know of a configuration

        for place, stage in enumerate(stages):
            if stage not in BY_NAME:
                raise ValueError(f'no stage "{stage}"; stages are {", ".join(BY_NAME)}')
            if stage in stages[:place]:
                raise ValueError(f'the stage "{stage}" stands there twice. Write it once')
        in_order = tuple(stage for stage in BY_NAME if stage in stages)
        if stages != in_order:
            raise ValueError(f"stages run in this order: {', '.join(in_order)}. Write them so")
        return stages


GROUPS: dict[str, type[Group]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
} | {"world": WorldConfig}
"""The groups of keys by their names; the others are keys of the run itself."""
