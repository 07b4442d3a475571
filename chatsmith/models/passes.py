"""How rows of tokens are cut into forward passes, and what each pass computes.

Everything here comes from lists on the host: no device is asked, and every process would plan the same passes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = Sequence[int]


@dataclass(frozen=True)
class Pass:
    """Some rows of a batch that go through a model together.

    `tokens` [B, T] are right-padded with 0; the padding is never read. `index` [B] says which rows of the batch they
    are.
    """

    rows: Sequence[Row]
    index: Sequence[int]
    device: torch.device

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str = "cpu") -> "Pass":
        """All rows in one pass."""
        return cls(rows, range(len(rows)), torch.device(device))

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @cached_property
    def tokens(self) -> Tensor:
        return pad(self.rows).to(self.device)

    @cached_property
    def lengths(self) -> Tensor:
        """[B] int64."""
        return torch.tensor([len(row) for row in self.rows], device=self.device)

    @cached_property
    def real(self) -> Tensor:
        """[B, T] bool: no padding."""
        return torch.arange(self.width, device=self.device) < self.lengths[:, None]

    @cached_property
    def layout(self) -> "Layout":
        return Layout.of(self.rows, self.device)


@dataclass(frozen=True)
class Layout:
    """The prefix tree of right-padded rows: a node is a token with all tokens before it, whatever rows it stands in."""

    tokens: Tensor  # [N] int64: of each node
    positions: Tensor  # [N]: of each node in its rows
    index: Tensor  # [B, T] int64: the node of each token; in the padding any node
    groups: tuple[Tensor, ...]  # of rows of similar length, each [B', T']: the part of `index` that covers them
    places: Tensor  # [N]: a place of each node in the groups' tokens, counted through them all

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str = "cpu") -> "Layout":
        """Rows in lexicographic order share with any row above what they share with the one right above."""
        order = np.array(sorted(range(len(rows)), key=lambda row: tuple(rows[row])))
        lengths = np.array([len(row) for row in rows])
        count, width = len(rows), int(lengths.max())
        keys = np.full((count, width), -1)
        for place, number in enumerate(order):
            keys[place, : lengths[number]] = rows[number]
        real = np.arange(width) < lengths[order, None]
        new = real.copy()
        new[1:] &= ~np.logical_and.accumulate(keys[1:] == keys[:-1], axis=1)
        # numbers grow downwards: a token that is not new has the number of the last new one above it
        numbers = np.maximum.accumulate(np.where(new, new.cumsum().reshape(new.shape) - 1, 0), axis=0)
        index = np.empty_like(numbers)
        index[order] = numbers
        nodes, positions = np.nonzero(new)
        groups, starts, begin = [], np.empty_like(lengths), 0
        for together in _similar(lengths, width):
            group = index[together, : lengths[together[0]]] if len(together) < count else index
            starts[together] = begin + np.arange(len(together)) * group.shape[1]
            begin += group.size
            groups.append(group)
        places = starts[order[nodes]] + positions
        tokens = keys[nodes, positions]
        arrays = [torch.from_numpy(x).to(device) for x in (tokens, positions, index, places, *groups)]
        return cls(arrays[0], arrays[1], arrays[2], tuple(arrays[4:]), arrays[3])

    def unpack(self, packed: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...]; padding is undefined. Gradients of a node add up over its rows."""
        return _spread(packed, self.index)

    def regroup(self, packed: Tensor) -> list[Tensor]:
        """[N, ...] -> [B', T', ...] for each group, as `unpack`."""
        return [_spread(packed, group) for group in self.groups]

    def ungroup(self, grouped: Sequence[Tensor]) -> Tensor:
        """The inverse of `regroup`, for what is the same wherever a node stands."""
        flat = [rows.flatten(0, 1) for rows in grouped]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).index_select(0, self.places)  # cat copies even one


def _spread(packed: Tensor, index: Tensor) -> Tensor:
    return packed.index_select(0, index.flatten()).view(*index.shape, *packed.shape[1:])


def _similar(lengths: Any, width: int) -> list[list[int]]:
    """Rows in groups, longest first; in a group the padding is small. One group where there is little to save."""
    if 4 * lengths.sum() > 3 * width * len(lengths):
        return [list(range(len(lengths)))]
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and 3 * lengths[row] > 2 * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad(rows: Sequence[Row]) -> Tensor:
    """Tokens [B, T] right-padded with 0."""
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return torch.from_numpy(tokens)


def pad_mask(rows: Sequence[Sequence[bool]]) -> Tensor:
    """Right-padded [B, T] bool, False on padding."""
    return pad(rows).bool()


def passes(
    rows: Sequence[Row],
    *,
    max_tokens: int,
    packed: bool,
    device: torch.device,
    together: Sequence[Hashable] | None = None,
    whole: bool = False,
) -> list[Pass]:
    """Rows in passes of at most `max_tokens` each, or of a single row (or prompt, with `whole`) that is longer.

    Rows of similar length go together, the short ones first.

    Args:
        packed: whether rows share a pass without padding; else the padding counts as tokens.
        together: which prompt each row begins with; rows of one prompt follow each other, so that few passes compute
            it twice. None: every row has its own.
        whole: no prompt's rows are divided, because their loss compares them.
    """
    lengths = [len(row) for row in rows]
    groups = grouped(lengths, max_tokens=max_tokens, packed=packed, together=together, whole=whole)
    return [Pass([rows[i] for i in group], group, device) for group in groups]


def grouped(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    packed: bool,
    together: Sequence[Hashable] | None = None,
    whole: bool = False,
) -> list[list[int]]:
    """Which rows make up each of `passes`."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(range(len(lengths)) if together is None else together):
        rows_of.setdefault(prompt, []).append(row)
    prompts = sorted(rows_of.values(), key=lambda rows: max(lengths[row] for row in rows))
    groups: list[list[int]] = []
    total = longest = 0
    for unit in prompts if whole else ([row] for rows in prompts for row in rows):
        tokens, width = sum(lengths[row] for row in unit), max(lengths[row] for row in unit)
        cost = total + tokens if packed else max(longest, width) * (len(groups[-1] if groups else ()) + len(unit))
        if groups and cost <= max_tokens:
            groups[-1] += unit
            total, longest = total + tokens, max(longest, width)
        else:
            groups.append(list(unit))
            total, longest = tokens, width
    return groups
