"""The head of a model in half precision, computed in single precision.

Logits of some tens keep two digits in bf16, and their rounding is most of what two forward passes disagree about. The
states that enter the head stay as they are, and products of two bf16 numbers are exact in fp32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class SinglePrecisionLinear(nn.Linear):
    """A linear layer of half-precision weights whose output is fp32."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        if x.device.type == "cpu":
            return linear(x.float(), self.weight.float(), bias)
        product: Tensor = _Product.apply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """x [n, in] times weight [out, in] transposed, of half precision on a GPU, summed and returned in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.t(), out_dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        of_x, of_weight = ctx.needs_input_grad
        return gradient @ weight if of_x else None, gradient.t() @ x if of_weight else None


def compute_head_in_single_precision(model: Any) -> None:
    """In place, of a language model in half precision; of others nothing changes."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        head.__class__ = SinglePrecisionLinear
