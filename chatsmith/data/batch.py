"""The order in which rows are visited.

Orders are functions of (seed, epoch) and nothing else, so that a resumed run continues at the very next batch.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

from chatsmith.seeds import permutation


class Order:
    """Endless indices below `count`, epoch after epoch, each epoch a new permutation.

    Args:
        drawn: how many have been taken before.
    """

    def __init__(self, count: int, *, seed: int, drawn: int = 0) -> None:
        self._permuted = lru_cache(1)(partial(permutation, count, seed))  # of an epoch
        self._count, self.drawn = count, drawn

    def take(self, size: int) -> list[int]:
        """The next `size` of them; where an epoch ends, the next one's first follow."""
        taken: list[int] = []
        while len(taken) < size:
            epoch, offset = divmod(self.drawn, self._count)
            left = self._permuted(epoch)[offset : offset + size - len(taken)].tolist()
            taken += left
            self.drawn += len(left)
        return taken


def batches(count: int, *, size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices, epoch after epoch, from batch number `start` on.

    Every epoch is a new permutation; rows that do not fill the last batch of an epoch open the next epoch's first,
    so that every batch has `size` rows and every row is seen once per epoch.
    """
    order = Order(count, seed=seed, drawn=start * size)
    while True:
        yield order.take(size)
