"""Rewards: functions from samples to one number each. A trained reward model is one of them.

    def reward(samples: list[Sample]) -> list[float | None]

None (or NaN, or inf) excludes a sample from training and is counted.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from chatsmith.data.chat import Encoded, encode_said
from chatsmith.errors import ModelError, RewardError
from chatsmith.functions import load_function
from chatsmith.models.critic import Critic, critic_from_actor, critic_from_reward_model
from chatsmith.models.load import context_length, load_reward_model, load_stop_ids, load_tokenizer, same_tokenizer
from chatsmith.models.scoring import passes_of, sequence_scores
from chatsmith.rewards.ready import ready
from chatsmith.rewards.spec import factors, is_code
from chatsmith.types import Message, Sample

RewardFunction = Callable[[list[Sample]], list[float | None]]


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model with its own tokenizer: it reads messages, so the actor's may be another one.

    `mean` and `std` are those of its scores over the SFT model's answers.
    """

    model: Any
    tokenizer: Any
    stops: tuple[int, ...]
    mean: float
    std: float
    max_tokens_per_pass: int

    def __call__(self, samples: list[Sample]) -> list[float | None]:
        """Raw scores, read at the last token of the answer.

        None where the conversation exceeds the model's context, or its chat template or tokenizer cannot carry it.
        """
        rows = encode_samples(self.tokenizer, samples, stops=self.stops)
        limit = context_length(self.model) or math.inf
        fits = [row is not None and len(row) <= limit for row in rows]
        scores = iter(self._score(list(compress(rows, fits)), list(compress(samples, fits))))
        return [next(scores) if fit else None for fit in fits]

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """Raw scores of samples that are known to fit."""
        return self._score(encode_samples(self.tokenizer, samples, stops=self.stops), samples)

    def _score(self, rows: Sequence[Sequence[int] | None], samples: Sequence[Sample]) -> list[float]:
        prompts = [sample.messages for sample in samples]
        known = [row for row in rows if row is not None]
        return score_rows(self.model, known, self.max_tokens_per_pass, prompts=prompts)


def encode_samples(tokenizer: Any, samples: Sequence[Sample], *, stops: Sequence[int]) -> list[list[int] | None]:
    """Samples as whole conversations; an answer that was cut off gets no stop token.

    An answer is taken as it was said, whatever it is. None where template or tokenizer cannot carry the conversation.
    """
    encoded = encode_said(
        tokenizer,
        [(*sample.messages, Message("assistant", sample.answer)) for sample in samples],
        stops=stops,
        complete=[sample.finish_reason == "stop" for sample in samples],
    )
    return [row.tokens if isinstance(row, Encoded) else None for row in encoded]


@torch.no_grad()
def score_rows(
    model: Any, rows: Sequence[Sequence[int]], max_tokens: int, *, prompts: Sequence[Hashable]
) -> list[float]:
    """Raw scores of tokenised conversations, each read at its last token.

    Args:
        max_tokens: in one forward pass.
        prompts: which one each row answers; those of the same are scored together.
    """
    scores = [0.0] * len(rows)
    for part in passes_of(model.base_model, rows=rows, max_tokens=max_tokens, together=prompts):
        for index, value in zip(part.index, sequence_scores(model, part).tolist(), strict=True):
            scores[index] = value
    return scores


@dataclass(frozen=True)
class Reward:
    """A named reward and its weight. `mean`/`std` are set where its values are to be standardised."""

    name: str
    function: RewardFunction
    weight: float
    mean: float | None = None
    std: float | None = None

    def reasons(self) -> Counter[str]:
        """Why answers of the last call got no number, where that is known."""
        return Counter(getattr(self.function, "reasons", ()))


@dataclass
class Product:
    """Several rewards as one: the product of their raw values, none where one of them gave none."""

    factors: Sequence[Reward]
    reasons: Counter[str] = field(default_factory=Counter)

    def __call__(self, samples: list[Sample]) -> list[float | None]:
        """
        Raises:
            RewardError: also where a factor is below 0: two of them would make a good answer of a bad one.
        """
        values = [call(factor, samples) for factor in self.factors]
        self.reasons = sum((factor.reasons() for factor in self.factors), Counter())
        for factor, given in zip(self.factors, values, strict=True):
            least = min((value for value in given if math.isfinite(value)), default=0.0)
            if least < 0:
                raise RewardError(
                    f"reward {factor.name!r} gave {least:g} as a factor, which must be 0 or more. Add it to the "
                    "others instead, with a weight."
                )
        return [math.prod(row) for row in zip(*values, strict=True)]


def load_ready_reward(
    target: str,
    weight: float,
    *,
    name: str | None,
    dtype: torch.dtype,
    device: torch.device,
    max_tokens_per_pass: int,
    max_new_tokens: int,
) -> Reward:
    """A reward that the user named: one of `rewards.spec.READY`, an address, `FILE.py:function` or
    `package.module:function`, several of these with a * between them, or the directory of a reward model.

    Raises:
        ConfigError: if it is none of these.
        ModelError: if the directory holds no reward model, or one without `score_mean` and `score_std`.
        RewardError: if nothing answers at the address.
    """
    parts = factors(target)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "max_tokens_per_pass": max_tokens_per_pass}
    options["max_new_tokens"] = max_new_tokens
    if len(parts) > 1:
        product = Product([load_ready_reward(part, 1.0, name=part, **options) for part in parts])
        return Reward(name or target, product, weight)
    found = ready(target, limit=max_new_tokens)
    if found is not None:
        return Reward(name or target.rpartition("//")[2], found, weight)
    if is_code(target):
        return Reward(name or target.rpartition(":")[2], load_function(target, kind="reward"), weight)
    tokenizer = load_tokenizer(target)
    model = load_reward_model(target, tokenizer, dtype=dtype, device=device)
    mean, std = getattr(model.config, "score_mean", None), getattr(model.config, "score_std", None)
    for value in (mean, std):
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ModelError(f"{target}: score_mean and score_std in its config.json are no numbers. Mend them.")
    if std == 0:
        raise ModelError(
            f"{target}: gives every answer of the SFT model the same score (score_std in its config.json is 0), so its "
            "scores have no unit. Train it anew, or name another --reward."
        )
    if mean is None or std is None:
        raise ModelError(
            f'{target}: its config.json has no "score_mean" and "score_std", so its scores have no unit. Add the mean '
            "and standard deviation of its scores over answers of your SFT model."
        )
    reward_model = RewardModel(model, tokenizer, load_stop_ids(target, tokenizer), mean, std, max_tokens_per_pass)
    return Reward(name or Path(target).name, reward_model, weight, mean, std)


def values_of(function: Callable[[list[Sample]], Any], samples: list[Sample], *, who: str) -> list[Any]:
    """What a function makes of samples, one value for each.

    Args:
        who: names it in errors.
    Raises:
        RewardError: if the function raised, or returned something else than a list of as many.
    """
    try:
        values = function(samples)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"{who} raised {type(error).__name__}: {error}. Return None for a sample it cannot judge."
        ) from error
    if not isinstance(values, list) or len(values) != len(samples):
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise RewardError(f"{who} returned {got} for {len(samples)} samples; return a list of as many.")
    return values


def call(reward: Reward, samples: list[Sample]) -> list[float]:
    """Raw values of one reward; NaN where it gave none or a number that is not finite.

    Raises:
        RewardError: if the function raised, or returned something that is not one number or None per sample.
    """
    values = values_of(reward.function, samples, who=f"reward {reward.name!r}")
    try:
        numbers = [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward {reward.name!r} returned something that is no number: {error}.") from error
    return [number if math.isfinite(number) else math.nan for number in numbers]


def critic_for(actor: Any, tokenizer: Any, rewards: Sequence[Reward], *, max_tokens: int) -> Critic:
    """A critic from the reward model of most weight that reads the actor's tokens and is long enough, or the actor."""
    for reward in sorted(rewards, key=lambda reward: -abs(reward.weight)):
        scorer = reward.function
        if not isinstance(scorer, RewardModel) or not same_tokenizer(scorer.tokenizer, tokenizer):
            continue
        if (context_length(scorer.model) or max_tokens) >= max_tokens:
            return critic_from_reward_model(scorer.model, mean=scorer.mean, std=scorer.std, weight=reward.weight)
    return critic_from_actor(actor)
