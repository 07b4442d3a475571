"""From rows of tokens to tensors, and the order in which rows are visited.

Orders are functions of (seed, epoch) and nothing else, so that a resumed run continues at the very next batch.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from chatsmith.seeds import permutation


def pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded tokens [B, T] and lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad_id)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    return tokens, lengths


def pad_mask(rows: Sequence[Sequence[bool]]) -> Tensor:
    """Right-padded [B, T] bool, False on padding."""
    return pad(rows, pad_id=0)[0].bool()


def batches(count: int, *, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices, epoch after epoch, from batch number `start` on.

    Every epoch is a new permutation; rows that do not fill the last batch of an epoch open the next epoch's first,
    so that every batch has `size` rows and every row is seen once per epoch.
    """
    epoch, offset = divmod(start * size, count)
    order = permutation(count, seed, epoch)[offset:]
    while True:
        while len(order) < size:
            epoch += 1
            order = np.concatenate([order, permutation(count, seed, epoch)])
        yield order[:size].tolist()
        order = order[size:]


def micro_batches(
    lengths: Sequence[int], *, max_tokens: int, prompts: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Groups of row indices of similar length, each at most `max_tokens` when padded (or a single longer row).

    Args:
        prompts: which one each row begins with; rows of one prompt follow each other, so that few groups compute it
            twice. None: every row has its own.
    """
    prompts = range(len(lengths)) if prompts is None else prompts
    longest: dict[Hashable, int] = {}
    first: dict[Hashable, int] = {}
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        longest[prompt] = max(length, longest.get(prompt, 0))
        first.setdefault(prompt, row)
    by_length = sorted(range(len(lengths)), key=lambda row: (longest[prompts[row]], first[prompts[row]], row))
    groups: list[list[int]] = []
    for row in by_length:
        if groups and longest[prompts[row]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def best_fit(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Packs of row indices of at most `capacity` tokens, few of them; a longer row is alone.

    Best-fit decreasing: the longest rows first, each into the pack where the least room is left over.
    """
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # packs by the room that is left in them
    rooms = 0  # bit r is set where a pack has room r: the tightest fit is the lowest bit from the row's length on
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = max(capacity, length), len(packs)
            packs.append([])
        packs[pack].append(row)
        if left := room - length:
            with_room[left].append(pack)
            rooms |= 1 << left
    return packs
