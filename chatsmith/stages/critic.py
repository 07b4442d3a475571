"""The critic of the online stage: values of rollouts, and its own updates. Algorithms that need none have none."""

from typing import Any

import torch
from torch import Tensor

from chatsmith.algo.losses import value_loss
from chatsmith.config import Config
from chatsmith.models.critic import Critic
from chatsmith.models.passes import Pass
from chatsmith.models.scoring import passes_of, token_values
from chatsmith.stages.loop import Trainable
from chatsmith.types import Experience, Rollouts


class CriticTrainer(Trainable):
    """A critic with its optimizer."""

    def __init__(self, critic: Critic, config: Config) -> None:
        super().__init__(critic, config.rl, lr=config.rl.critic_lr)
        self.critic, self._config = critic, config

    def values(self, rollouts: Rollouts) -> Tensor:
        """Values [B, T] of the states before each sampled token, without gradient, 0 elsewhere."""
        return rollout_values(self.critic, rollouts, self._config)

    def collect(self, of: Pass, part: Experience, *, count: Tensor, clip: float | None) -> Tensor:
        """Collect the gradient of a pass over the rows of `part`; returns its share of the loss.

        Args:
            count: valid sampled tokens of the global mini-batch.
            clip: how far a value may move from the old one before its loss is clipped.
        """
        assert part.values is not None
        assert part.returns is not None
        values = token_values(self.critic, of, part.mask)
        loss = value_loss(values, part.values, part.returns, part.mask, count=count, clip=clip)
        self.backward(loss)
        return loss.detach()


@torch.no_grad()
def rollout_values(critic: Any, rollouts: Rollouts, config: Config) -> Tensor:
    """The critic's values [B, T] of the states before each sampled token."""
    values = torch.zeros_like(rollouts.logprobs)
    for part in passes_of(
        critic.backbone,
        rows=rollouts.sequences,
        max_tokens=config.engine.max_batch_tokens,
        together=rollouts.prompts,
    ):
        rows, width = list(part.index), part.width
        values[rows, :width] = token_values(critic, part, rollouts.mask[rows, :width])
    return values
