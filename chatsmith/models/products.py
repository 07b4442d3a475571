"""Matrix products of forward and backward passes on processors where oneDNN multiplies faster than MKL.

Torch multiplies fp32 matrices on x86 with MKL, which on a processor of AMD's leaves AVX-512 alone. oneDNN, which comes
with torch too, uses it.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# below, oneDNN's preparations (its own layout of the weights) cost more than it saves
LEAST_ROWS, LEAST_MULTIPLICATIONS = 256, 1 << 27


def fast_products() -> AbstractContextManager[Any]:
    """Inside, `linear` in fp32 on a CPU takes the faster library; gradients of what it gives too, wherever they run."""
    return _OneDnn() if _pays() else nullcontext()


@cache
def _pays() -> bool:
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":  # type: ignore[no-untyped-call]
        return False
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "AuthenticAMD" in processor.read_text()


class _OneDnn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and not kwargs and _fits(*args[:2]):
            x, weight, bias = (*args, None)[:3]
            return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs or {})


def _fits(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    return x[..., 0].numel() >= LEAST_ROWS and x.numel() * weight.shape[0] >= LEAST_MULTIPLICATIONS


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """x [..., in] times weight [out, in] transposed, plus bias [out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _multiply(gradient, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,  # MKL is the faster one here
            rows.sum(0) if of_bias else None,
        )
