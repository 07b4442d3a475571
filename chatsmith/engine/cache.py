"""Keys and values of running sequences in dense rows, for any decoder of transformers.

Every row is left-aligned and has its own length: a decoding step writes each row's new key at that row's position and
attends to what stands before it. The model learns of the positions through `get_query_offset`, which transformers
hands to its mask functions; those of `models/attention.py` know that an offset may differ by row.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

LENGTH_STEP = 64  # lengths of rows are multiples of it
SHARE = 0.9  # of the memory that is free; the rest is for the activations of a step
Shapes = Sequence[tuple[tuple[int, int], tuple[int, int]]]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, length, width]; written in place."""

    is_sliding = False  # sliding windows are the mask's affair

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.is_initialized = True
        self.rows = self.positions = torch.empty(0)  # [n] of the tokens that this step computes
        self.length = 0  # that attention sees

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("a SlotLayer has its shape from the beginning")

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one new token per row, [n, heads, 1, width]; returns all keys and values that rows may attend to."""
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys[: len(self.rows), :, : self.length], self.values[: len(self.rows), :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int:
        return self.length - 1  # of the longest row

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SlotCache(Cache):  # type: ignore[misc]
    """Layers of rows; `begin` says what a decoding step computes."""

    def __init__(self, shapes: Shapes, *, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            shapes: heads and width of each layer's keys, and of its values.
        """
        self._empty = [
            [torch.empty(0, heads, 0, width, device=device, dtype=dtype) for heads, width in layer] for layer in shapes
        ]
        super().__init__(layers=[SlotLayer(*pair) for pair in self._empty])
        self._numbers = torch.arange(0, device=device)  # of the rows
        self.bytes_per_token = sum(x.shape[1] * x.shape[3] * x.itemsize for pair in self._empty for x in pair)

    @property
    def rows(self) -> int:
        return int(self.layers[0].keys.shape[0])

    @property
    def length(self) -> int:
        """Tokens that a row has room for."""
        return int(self.layers[0].keys.shape[2])

    @property
    def bytes(self) -> int:
        return self.rows * self.length * self.bytes_per_token

    def begin(self, positions: Tensor, length: int) -> None:
        """The next forward pass computes one token per row, at `positions` [n], and attends to `length` tokens."""
        for layer in self.layers:
            layer.rows, layer.positions, layer.length = self._numbers[: len(positions)], positions, length

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:
        """Per row [n]; see `by_row` in `models/attention.py`."""
        positions: Tensor = self.layers[layer_idx].positions
        return positions

    def store(self, prefilled: Cache, first_row: int, index: Tensor, padded: Callable[[Tensor], Tensor]) -> None:
        """Copy rows `index` [n] of a prefill's cache to the rows from `first_row` on; `padded` brings its tensors to
        [B, heads, T, width]."""
        rows = slice(first_row, first_row + len(index))
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            keys, values = padded(source.keys), padded(source.values)
            layer.keys[rows, :, : keys.shape[2]] = keys[index]
            layer.values[rows, :, : keys.shape[2]] = values[index]

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` becomes as row `source` of `length` tokens."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    @staticmethod
    def rounded(length: int) -> int:
        """The room that so many tokens get."""
        return rounded_up(length, LENGTH_STEP)

    def holds(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def resize(self, rows: int, length: int) -> None:
        """Room for so many rows of such a length; what does not fit is lost."""
        for layer in self.layers:
            layer.keys, layer.values = (_resized(x, rows, self.rounded(length)) for x in (layer.keys, layer.values))
        self._numbers = torch.arange(rows, device=self._numbers.device)

    def free(self) -> None:
        for layer, (keys, values) in zip(self.layers, self._empty, strict=True):
            layer.keys, layer.values = keys, values


def free_bytes(device: torch.device, held: int) -> int:
    """Memory that the engine may have in all, of which it holds so many bytes already: a share of these and of what is
    free on the GPU or reserved by torch without use; on a CPU of what Linux calls available, elsewhere half of what is
    built in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (free + unused + held))
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(SHARE * (1024 * int(lines["MemAvailable"].split()[0]) + held))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def rounded_up(length: int, step: int) -> int:
    return -(-length // step) * step


def prefill_cache() -> Cache:
    """Where a prefill leaves all its keys and values, sliding layers included."""
    return Cache(layer_class_to_replicate=DynamicLayer)


def _resized(old: Tensor, rows: int, length: int) -> Tensor:
    new = old.new_zeros(rows, old.shape[1], length, old.shape[3])
    kept = old[:rows, :, :length]
    new[: kept.shape[0], :, : kept.shape[2]] = kept
    return new
