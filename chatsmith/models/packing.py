"""Rows of different length without padding: `[B, T]` becomes one row of N real tokens at the model's door.

Everything but attention works token by token, so only attention needs to know the rows: it sees them again as
`[B, T]`, and no token attends to another row's. This goes through transformers' attention interface and leaves the
model untouched. Architectures that do not use that interface (BLOOM) compute padded rows; `packs` tells which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

_NAME = "chatsmith_packed"
_packs: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layout:
    """Where the tokens of packed rows stand: token n is token `positions[n]` of its row, and flat index in [B * T]."""

    rows: int
    width: int
    flat: Tensor  # [N] int64: index into [B * T]
    positions: Tensor  # [N]

    @classmethod
    def of(cls, lengths: Tensor, width: int) -> "Layout":
        """The layout of right-padded rows [B, T] with `lengths` [B] real tokens."""
        steps = torch.arange(width, device=lengths.device)
        flat = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
        return cls(len(lengths), width, flat, flat % width)

    def pack(self, padded: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...]."""
        return padded.flatten(0, 1)[self.flat]

    def unpack(self, packed: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...], zero in the padding."""
        padded = packed.new_zeros(self.rows * self.width, *packed.shape[1:])
        return padded.index_copy(0, self.flat, packed).view(self.rows, self.width, *packed.shape[1:])


def packed_hidden_states(backbone: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Last hidden states [B, T, d] of right-padded tokens [B, T], computed without the padding."""
    layout = Layout.of(lengths, tokens.shape[1])
    with _attention(backbone.config):
        states = backbone(
            input_ids=layout.pack(tokens)[None],
            position_ids=layout.positions[None],
            use_cache=False,
            packed_layout=layout,
        ).last_hidden_state
    return layout.unpack(states[0])


@torch.no_grad()
def packs(backbone: Any) -> bool:
    """Whether packed rows give this model's own hidden states: tried once, on three short rows."""
    if backbone not in _packs:
        tokens = (
            torch.arange(3, 18, device=backbone.device).reshape(3, 5) % backbone.config.get_text_config().vocab_size
        )
        lengths = torch.tensor([3, 5, 4], device=backbone.device)
        try:
            packed = packed_hidden_states(backbone, tokens, lengths)
        except (TypeError, ValueError, RuntimeError, KeyError):
            _packs[backbone] = False
        else:
            layout = Layout.of(lengths, 5)
            alone = [
                backbone(input_ids=t[None, :n], use_cache=False).last_hidden_state[0]
                for t, n in zip(tokens, lengths, strict=False)
            ]
            expected = torch.cat(alone)
            tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2  # another row's tokens would cost ~1
            difference = (layout.pack(packed) - expected).norm() / expected.norm()
            _packs[backbone] = bool(difference < tolerance)
    return _packs[backbone]


@contextmanager
def _attention(config: Any) -> Iterator[None]:
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
    attention_mask: None,
    *,
    packed_layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row. query, key, value [1, H, N, D] -> [1, N, H, D].

    Raises:
        ValueError: for attention that this kernel does not compute; `packs` then says no.
    """
    if softcap is not None:  # Gemma 2: too small a difference for the trial in `packs` to see
        raise ValueError("capped attention scores cannot be packed")
    layout = packed_layout
    q, k, v = (layout.unpack(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))  # [B, H, T, D]
    mask = None
    if sliding_window is not None and sliding_window < layout.width:
        steps = torch.arange(layout.width, device=query.device)
        distance = steps[:, None] - steps[None]
        mask = (distance >= 0) & (distance < sliding_window)
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return layout.pack(output.transpose(1, 2))[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Attention within rows needs no mask from outside."""


AttentionInterface.register(_NAME, _packed_attention)
AttentionMaskInterface.register(_NAME, _no_mask)
