"""Functions on a CPU that a compiled model calls as they are: the compiler does not look inside."""

from collections.abc import Callable
from typing import Any

import torch

# Not `custom_op`, whose wrapping takes as long as a small product.
_library = torch.library.Library("chatsmith", "DEF")  # type: ignore[no-untyped-call]


def operator(signature: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """`function` as an operator of torch.

    Args:
        signature: in torch's schema language, with the operator's name.
        fake: gives a tensor of the result's shape from the same arguments.
    """
    name = signature.partition("(")[0]
    _library.define(signature)  # type: ignore[no-untyped-call]
    _library.impl(name, function, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"chatsmith::{name}", fake, lib=_library)
    return getattr(torch.ops.chatsmith, name)
