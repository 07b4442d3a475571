"""Matrix products of forward and backward passes on processors where oneDNN multiplies faster than MKL.

Torch multiplies fp32 matrices on x86 with MKL, which on a processor of AMD's leaves AVX-512 alone. oneDNN, which comes
with torch too, uses it.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# below, oneDNN's preparations (its own layout of the weights) cost more than it saves
LEAST_ROWS, LEAST_MULTIPLICATIONS = 256, 1 << 27

_sizes: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def fast_products(module: nn.Module, rows: int) -> AbstractContextManager[Any]:
    """Inside, `linear` in fp32 on a CPU takes the faster library; gradients of what it gives too, wherever they run.

    Args:
        module: what computes inside, on so many rows. Its operations are looked at only if a product is large.
    """
    return _OneDnn() if _pays() and rows * _largest(module) >= LEAST_MULTIPLICATIONS else nullcontext()


def _largest(module: nn.Module) -> int:
    """Numbers in the largest weight of a module's linear layers."""
    if module not in _sizes:
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        _sizes[module] = max((part.weight.numel() for part in linears), default=0)
    return _sizes[module]


@cache
def _pays() -> bool:
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":  # type: ignore[no-untyped-call]
        return False
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "AuthenticAMD" in processor.read_text()


class _OneDnn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and not kwargs and _is_worth_it(*args[:2]):
            x, weight, bias = (*args, None)[:3]
            # flat: of more dimensions oneDNN returns a view, which nobody may change in place
            return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs or {})


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or x.dim() < 2:
        return False
    multiplications = x.numel() * weight.shape[0]
    return multiplications >= LEAST_MULTIPLICATIONS and x.numel() >= LEAST_ROWS * x.shape[-1]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """x [n, in] times weight [out, in] transposed, plus bias [out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if of_x else None,
            gradient.t() @ x if of_weight else None,  # MKL is the faster one here
            gradient.sum(0) if of_bias else None,
        )
