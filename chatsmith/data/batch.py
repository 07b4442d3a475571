"""The order in which rows are visited.

Orders are functions of (seed, epoch) and nothing else, so that a resumed run continues at the very next batch.
"""

from collections.abc import Iterator

import numpy as np

from chatsmith.seeds import permutation


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
