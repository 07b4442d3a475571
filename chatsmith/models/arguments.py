"""What a model's forward calls its arguments: the names differ between architectures and versions of transformers."""

import inspect
from collections.abc import Mapping
from typing import Any

from chatsmith.errors import ModelError

CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # since transformers 5.24; before; before, of Mamba's kin


def takes_positions(model: Any) -> bool:
    """Whether it is told the positions of tokens. BLOOM is not: its ALiBi biases follow from the attention mask."""
    return "position_ids" in _parameters(model)


def takes_mask(model: Any) -> bool:
    """Whether it is told which tokens are real."""
    return "attention_mask" in _parameters(model)


def cache_argument(model: Any) -> str:
    """Under which name it takes the cache of keys and values.

    Read from the signature, because a forward swallows what it does not know: without a cache, and without a word, each
    token would be computed as if it were the first.

    Raises:
        ModelError: if it takes none.
    """
    taken = _parameters(model)
    for name in CACHE_NAMES:
        if name in taken:
            return name
    raise ModelError(
        f"{type(model).__name__} takes no cache of keys and values (none of {', '.join(CACHE_NAMES)}). Use a model of "
        "another architecture."
    )


def cache_of(output: Any) -> Any:
    """The cache in what a forward pass gives, whatever it is called there.

    Raises:
        ModelError: if there is none.
    """
    found = next((cache for name in CACHE_NAMES if (cache := getattr(output, name, None)) is not None), None)
    if found is None:
        raise ModelError(f"{type(output).__name__} holds no cache of keys and values.")
    return found


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters
