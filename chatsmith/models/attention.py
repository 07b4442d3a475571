"""Attention, one function for training and generation, and what it takes that the tokens of a pass are computed once.

Everything but attention works token by token, and with causal attention a token's states depend on nothing but the
tokens before it. So padding is left out, and what several rows begin with (the prompt of two answers, a system prompt)
is computed for all of them at once. Only attention needs to know the rows: it sees them again, those of similar length
side by side, and no token attends to another row's. So rows of any lengths may share a pass.

This goes through transformers' attention interface, which a model's configuration names once, when it is decided how
the model is computed (`lm.py`). Architectures that do not use it (BLOOM) compute padded rows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from chatsmith.cpu import attention as cpu
from chatsmith.cpu.products import fast_products
from chatsmith.models.passes import Layout

_NAME = "chatsmith"
_is_packing: ContextVar[bool] = ContextVar("is_packing", default=False)


def packed_states(backbone: Any, layout: Layout) -> Tensor:
    """Last hidden states [N, d] of the nodes of a layout, each computed once."""
    with fast_products(backbone, len(layout.tokens)), packing(layout) as extra:
        states: Tensor = backbone(
            input_ids=layout.tokens[None], position_ids=layout.positions[None], use_cache=False, **extra
        ).last_hidden_state
    return states[0]


@contextmanager
def packing(layout: Layout) -> Iterator[dict[str, Any]]:
    """Inside, a model that is given these arguments, and the layout's nodes as one row, attends within the rows.

    It makes no masks inside. Its layers, which get the arguments, may be computed again later and outside.
    """
    token = _is_packing.set(True)
    try:
        yield {"packed_layout": layout}
    finally:
        _is_packing.reset(token)


def attend_here(model: Any, *, here: bool) -> None:
    """Attention of a model that would take torch's is computed by `_attention` from now on, or no longer."""
    for config in (model.config, model.base_model.config):
        if config._attn_implementation in (_NAME, "sdpa"):
            config._attn_implementation = _NAME if here else "sdpa"


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,  # a Tensor, a _Local or None
    *,
    packed_layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within the rows of a layout, of one query per row, or whatever else as torch computes it.

    query [n, H, T, D], key [n, K, L, D], value [n, K, L, Dv] -> [n, T, H, Dv].

    Raises:
        ValueError: for attention within rows that is not computed here; the model is then computed in another way.
    """
    if packed_layout is not None:
        if unknown := unknown_option(options):
            raise ValueError(f"attention with {unknown} is not computed here")
        return _within_rows(query, key, value, attention_mask, packed_layout, scaling, sliding_window), None
    if _is_packing.get():
        raise ValueError("attention that is not told of the rows")
    mask = attention_mask
    is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape[1] == 1
    if is_mask and query.shape[2] == 1 and not unknown_option(options):  # a sliding window is the mask's affair
        return _single_query(query, key, value, mask, query.shape[3] ** -0.5 if scaling is None else scaling), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, mask, scaling=scaling, sliding_window=sliding_window, **options
    )
    return output


def _single_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """query [n, H, 1, D], key [n, K, L, D], value [n, K, L, Dv], mask [n, 1, 1, L] bool -> [n, 1, H, Dv]."""
    if cpu.computes(query, key, value, mask):
        output: Tensor = cpu.single_query(query, key, value, mask, scale)
        return output
    # the heads of a group as queries of one head: no copies of keys for each of them
    query = query.view(*key.shape[:2], -1, query.shape[3])
    states = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return states.flatten(1, 2)[:, None]


def _within_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: "Tensor | _Local | None",
    layout: Layout,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention within each row. query, key, value [1, H, N, D] -> [1, N, H, D]."""
    if isinstance(mask, Tensor):
        raise ValueError("a mask of its own")
    window = None if mask is None else mask.size
    if window is not None and sliding_window != window:
        raise ValueError("a local mask that may be another one than a sliding window")
    rows = zip(*(layout.regroup(x[0].transpose(0, 1)) for x in (query, key, value)), strict=True)
    return layout.ungroup([_causal(q, k, v, scaling, window) for q, k, v in rows])[None]


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


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None) -> Tensor:
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


def by_row(original: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """A mask function of transformers that also takes an offset [n] of the queries, one per row."""

    def mask(*, q_offset: int | Tensor = 0, **arguments: Any) -> Tensor | None:
        if not isinstance(q_offset, Tensor) or q_offset.dim() == 0:
            return original(q_offset=q_offset, **arguments)
        device = q_offset.device
        rows = torch.arange(len(q_offset), device=device)[:, None, None, None]
        queries = q_offset[:, None, None, None]
        keys = torch.arange(arguments["kv_length"], device=device)[None, None, None]
        allowed: Tensor = arguments["mask_function"](
            rows, torch.zeros((), dtype=torch.long, device=device), queries, keys
        )
        allowed = allowed.expand(len(q_offset), 1, 1, arguments["kv_length"])
        if original is sdpa_mask:
            return allowed
        dtype = arguments["dtype"]
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)

    return mask


_mask_by_row = by_row(sdpa_mask)


def _mask(*, q_offset: int | Tensor = 0, local_size: int | None = None, **arguments: Any) -> Any:
    """What `_attention` must know of the mask that a model would have made."""
    if _is_packing.get():
        return None if local_size is None else _Local(local_size)
    return _mask_by_row(q_offset=q_offset, local_size=local_size, **arguments)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
AttentionMaskInterface.register("sdpa", _mask_by_row)  # of models whose attention is not ours
AttentionMaskInterface.register("eager", by_row(eager_mask))
