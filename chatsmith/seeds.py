"""Randomness that depends on names, not on order: every stream has a seed of its own, derived from what it is for."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed from (run seed, step, prompt number, ...): the same whatever rank, order or batch."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniforms(seed: int, count: int) -> "Tensor":
    """`count` numbers in (0, 1), fp32, that belong to one sequence."""
    import torch

    # numpy: torch's CPU generator takes only the low 32 bits of a seed
    drawn = np.random.default_rng(seed).random(count, dtype=np.float32)  # multiples of 2^-24
    # 0 would draw the first token of the vocabulary, however unlikely it is
    return torch.from_numpy(np.maximum(drawn, np.float32(2**-25)))


def permutation(count: int, *parts: int | str) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on the parts alone."""
    return np.random.default_rng(derive_seed(*parts)).permutation(count)
