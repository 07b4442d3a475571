"""Activation checkpointing: a layer keeps its inputs alone and is computed again in the backward pass.

Activations of a pass then need the memory of one layer instead of all, for a third more time.

Source: Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from chatsmith.errors import ConfigError


def checkpoint_activations(model: nn.Module) -> None:
    """In place, for the decoder layers of a model. Passes without gradients, and copies' weights, are as before.

    transformers' own switch acts in training mode alone, which would bring dropout back.

    Raises:
        ConfigError: if transformers does not tell the layers of this architecture.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"engine.activation_checkpointing: {type(model).__name__} has no layers that can be computed again. Leave "
            "it out, or take a smaller engine.max_batch_tokens."
        )
    for layer in layers:
        layer.__class__ = _computed_again(layer.__class__)


class _ComputedAgain:
    """What a layer's class has before its own methods. A class, since `deepcopy` leaves functions where they are."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


@cache
def _computed_again(layer: Hashable) -> Any:
    """The class of a layer that is computed again, by the layer's own."""
    assert isinstance(layer, type)
    return layer if issubclass(layer, _ComputedAgain) else type(layer.__name__, (_ComputedAgain, layer), {})
