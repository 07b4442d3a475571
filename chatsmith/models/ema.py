"""Exponential moving average of a model's parameters, in fp32.

In half precision most updates are smaller than the spacing of the numbers: two thirds of the weights would never
move. The average therefore lives in fp32 whatever the model computes in.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def default_decay(updates: int) -> float:
    """0.992, or for short runs the decay whose memory 1 / (1 - decay) is a fifth of all updates."""
    return min(0.992, max(0.0, 1.0 - 5.0 / updates))


class Ema:
    """shadow <- d * shadow + (1 - d) * parameter after optimizer step n, with d = min(decay, (1 + n) / (10 + n))."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the parameters after one optimizer step; `weights` are the fp32 masters by name."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.shadow.items():
            average.lerp_(weights[name].float(), 1 - keep)

    @torch.no_grad()
    def swap(self, weights: Mapping[str, Tensor]) -> None:
        """Exchange the average with the fp32 masters, in place; a second time undoes it exactly."""
        for name, average in self.shadow.items():
            kept = average.clone()
            average.copy_(weights[name])
            weights[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, average in self.shadow.items():
            average.copy_(state["shadow"][name])
