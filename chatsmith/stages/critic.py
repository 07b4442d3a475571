"""The critic of the online stage: values of rollouts, and its own updates. Algorithms that need none have none."""

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

    @torch.no_grad()
    def values(self, rollouts: Rollouts) -> Tensor:
        """Values [B, T] of the states before each sampled token, without gradient, 0 elsewhere."""
        values = torch.zeros_like(rollouts.logprobs)
        for part in passes_of(
            self.critic.backbone,
            rows=rollouts.sequences,
            max_tokens=self._config.engine.max_batch_tokens,
            together=rollouts.prompts,
        ):
            rows, width = list(part.index), part.width
            values[rows, :width] = token_values(self.critic, part, rollouts.mask[rows, :width])
        return values

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
