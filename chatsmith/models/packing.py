"""The tokens of a batch, each computed once: rows [B, T] become the N nodes of their prefix tree at the model's door.

Everything but attention works token by token, and with causal attention a token's states depend on nothing but the
tokens before it. So padding is left out, and what several rows begin with (the prompt of two answers, a system prompt)
is computed for all of them at once. Only attention needs to know the rows: it sees them again, those of similar length
side by side, and no token attends to another row's. So rows of any lengths may share a pass. This goes through
transformers' attention interface and leaves the model untouched.
Architectures that do not use that interface (BLOOM) compute padded rows; `lm.py` tells which.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from chatsmith.data.passes import Layout
from chatsmith.models.products import fast_products

_NAME = "chatsmith_packed"


def packed_states(backbone: Any, layout: Layout) -> Tensor:
    """Last hidden states [N, d] of the nodes of a layout, each computed once."""
    with packed_attention(backbone.config), fast_products(backbone, len(layout.tokens)):
        states: Tensor = backbone(
            input_ids=layout.tokens[None],
            position_ids=layout.positions[None],
            use_cache=False,
            packed_layout=layout,
        ).last_hidden_state
    return states[0]


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Inside, the model takes a `packed_layout` and attends within its rows."""
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: "_Local | None",
    *,
    packed_layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row. query, key, value [1, H, N, D] -> [1, N, H, D].

    Raises:
        ValueError: for attention that is not computed here; the model is then computed on padded rows.
    """
    if unknown := unknown_option(options):
        raise ValueError(f"attention with {unknown} is not computed here")
    window = None if attention_mask is None else attention_mask.size
    if window is not None and sliding_window != window:
        raise ValueError("a local mask that may be another one than a sliding window")
    layout = packed_layout
    rows = zip(*(layout.regroup(x[0].transpose(0, 1)) for x in (query, key, value)), strict=True)
    outputs = [_attention(q, k, v, scaling, window) for q, k, v in rows]
    return layout.ungroup(outputs)[None], None


# What models pass on to attention that changes nothing in it.
_BESIDE = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}
_BESIDE |= {"output_router_logits", "return_dict", "packed_layout"}


def unknown_option(options: Mapping[str, Any]) -> str | None:
    """The name of an option with which attention is more than a softmax over scaled products of what stands before:
    capped scores, sinks, biases, ..."""
    for name, value in options.items():
        if name in _BESIDE or value is None or (name == "dropout" and value == 0) or (name == "is_causal" and value):
            continue
        return name
    return None


def _attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None) -> Tensor:
    """Causal attention within rows. query, key, value [B, T, H, D] -> [B, T, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, T, D]
    mask = None
    if sliding_window is not None and sliding_window < q.shape[2]:
        steps = torch.arange(q.shape[2], device=q.device)
        distance = steps[:, None] - steps[None]
        mask = (distance >= 0) & (distance < sliding_window)
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # no kernel but the one that writes out all scores takes grouped heads then
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2)


@dataclass(frozen=True)
class _Local:
    """Stands for a mask: nobody attends to more than so many tokens."""

    size: int


def _mask(*_: Any, local_size: int | None = None, **__: Any) -> _Local | None:
    """What attention within rows must know of the mask that a model would have made."""
    return None if local_size is None else _Local(local_size)


AttentionInterface.register(_NAME, _packed_attention)
AttentionMaskInterface.register(_NAME, _mask)
