"""What every stage's loop shares: order, optimizer, schedule, precision, clipping, and which steps are refused."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from chatsmith.assistant import Assistant
from chatsmith.config import OptimizerConfig, PairsConfig, RewardConfig, SftConfig
from chatsmith.engine.text import text_of
from chatsmith.errors import TrainingStopped
from chatsmith.models.ema import Ema
from chatsmith.seeds import permutation

MAX_SKIPPED_IN_A_ROW = 3
EXPLODED = 1000.0  # times the median norm
FAR_ABOVE_CLIP = 100.0
MIN_NORMS, REMEMBERED_NORMS = 20, 100


def steps_of(settings: SftConfig | RewardConfig | PairsConfig, records: int) -> int:
    """Steps of a stage that goes through its records in epochs of batches."""
    return max(1, math.ceil(settings.epochs * records / settings.batch))


class Order:
    """Endless indices below `count`, epoch after epoch, each epoch a new permutation, which depends on nothing but seed
    and epoch: a resumed run continues at the very next one.

    Args:
        drawn: how many have been taken before.
    """

    def __init__(self, count: int, *, seed: int, drawn: int = 0) -> None:
        self._permuted = lru_cache(1)(partial(permutation, count, seed))  # of an epoch
        self._count, self.drawn = count, drawn

    def take(self, size: int) -> list[int]:
        """The next `size` of them; where an epoch ends, the next one's first follow."""
        taken: list[int] = []
        while len(taken) < size:
            epoch, offset = divmod(self.drawn, self._count)
            left = self._permuted(epoch)[offset : offset + size - len(taken)].tolist()
            taken += left
            self.drawn += len(left)
        return taken


def batches(count: int, *, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices, epoch after epoch, from batch number `start` on.

    Every epoch is a new permutation; rows that do not fill the last batch of an epoch open the next epoch's first,
    so that every batch has `size` rows and every row is seen once per epoch.
    """
    order = Order(count, seed=seed, drawn=start * size)
    while True:
        yield order.take(size)


def learning_rate_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at optimizer step `step` of `total`: linear warm-up, then the schedule."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))  # beyond the end it stays where it is
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress
    return config.final_lr + (1 - config.final_lr) * left


class Trainable:
    """A model with its AdamW. Where the model computes in half precision, the optimizer holds fp32 masters.

    The compute weights stay one storage at fixed addresses: they are refreshed in place after each step, so that
    training, scoring and the engine read the same tensors. `weights` are the masters by name (the parameters
    themselves in fp32).
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, *, lr: float) -> None:
        self.lr = lr
        self.grad_clip = config.grad_clip
        self.parameters = dict(model.named_parameters())
        self.weights = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to what has been collected for the next step, in fp32."""
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in self.parameters.items():
            master = self.weights[name]
            if master is not parameter and parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Norm over all collected gradients, before clipping."""
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    @torch.no_grad()
    def step(self, factor: float, norm: Tensor) -> None:
        """Clip, move the weights with learning rate `lr * factor`, and forget the gradients."""
        torch.nn.utils.clip_grads_with_norm_(self.weights.values(), self.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        self.clear()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """The compute weights become what the masters are."""
        for name, parameter in self.parameters.items():
            if self.weights[name] is not parameter:
                parameter.copy_(self.weights[name])

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
            self.parameters[name].copy_(weight)
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def averaged(policy: Assistant, learner: Trainable, ema: Ema) -> Iterator[None]:
    """Inside, the policy has its averaged weights."""

    def swap() -> None:
        ema.swap(learner.weights)
        learner.refresh()
        policy.engine.refresh()

    swap()
    try:
        yield
    finally:
        swap()


Skipped = Callable[[str, list[str]], None]
"""Told why an optimizer step was refused, and the texts of its batch."""


def as_text(tokenizer: Any, rows: Iterable[Sequence[int]]) -> list[str]:
    """What rows of tokens say, special tokens included; for a refused batch to be looked at."""
    return [text_of(tokenizer, row) for row in rows]


class Guard:
    """Lets optimizer steps through unless a gradient is not finite or exploded; stops after three refusals in a row.

    A gradient has exploded when its norm, before clipping, is `EXPLODED` times the median of the last steps and
    `FAR_ABOVE_CLIP` times the norm that it is clipped to: clipping would bound its length, but its direction comes from
    one broken batch. (Where rewards are rare, norms begin near zero: the second condition lets the first success in.)
    """

    def __init__(self, stage: str, on_skip: Skipped) -> None:
        self.stage = stage
        self.skipped = 0
        self.in_a_row = 0
        self._on_skip = on_skip
        self._norms: list[list[float]] = []  # of the last steps that were taken, per trainable

    def step(self, trainables: Sequence[tuple[Trainable, float]], batch: Callable[[], list[str]]) -> list[float] | None:
        """Step every (trainable, learning rate factor), or none of them if any gradient is refused.

        Args:
            trainables: in the same order at every step; later ones may be left out.
            batch: the texts that the gradients come from, asked for when the step is refused.
        Returns:
            the gradient norms before clipping, or None if the step was refused.
        Raises:
            TrainingStopped: after three refusals in a row.
        """
        tensors = [trainable.gradient_norm() for trainable, _ in trainables]
        norms = torch.stack(tensors).tolist()  # waits for the device once
        self._norms += [[] for _ in range(len(norms) - len(self._norms))]
        limits = [FAR_ABOVE_CLIP * trainable.grad_clip for trainable, _ in trainables]
        reasons = [_refusal(*judged) for judged in zip(norms, self._norms, limits, strict=False)]
        if not any(reasons):
            self.in_a_row = 0
            for (trainable, factor), tensor, norm, before in zip(trainables, tensors, norms, self._norms, strict=False):
                trainable.step(factor, tensor)
                before.append(norm)
                del before[:-REMEMBERED_NORMS]
            return list(norms)
        for trainable, _ in trainables:
            trainable.clear()
        self.skipped += 1
        self.in_a_row += 1
        reason = next(filter(None, reasons))
        self._on_skip(reason, batch())
        if self.in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise TrainingStopped(
                f"{self.stage}: {MAX_SKIPPED_IN_A_ROW} optimizer steps in a row were refused, the last because {reason}"
                f". Nothing was learned from them. Try a lower --{self.stage}.lr, or look for broken records in the "
                "data."
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "norms": self._norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self._norms = [[float(norm) for norm in norms] for norms in state["norms"]]


def _refusal(norm: float, before: Sequence[float], limit: float) -> str:
    """Why a gradient of this norm is refused; empty if it is not."""
    if not math.isfinite(norm):
        return f"the gradient is not finite (norm {norm})"
    if len(before) >= MIN_NORMS and norm > max(limit, EXPLODED * median(before)):
        return f"the gradient exploded (norm {norm:.3g}, median of the last steps {median(before):.3g})"
    return ""
