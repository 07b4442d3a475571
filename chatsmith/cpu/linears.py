"""Matrix products of a few rows on a CPU, with weights in the layout that its kernels read.

A decoding step multiplies every weight matrix by a handful of rows. The usual product rearranges the matrix for the
kernel first, each time, which then costs as much as the product itself. Here oneDNN rearranges it once per session.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chatsmith.cpu.operators import operator
from chatsmith.models.head import SinglePrecisionLinear


class PackedLinears:
    """Copies of the weights of a model's linear layers, which the layers compute with where nobody asks for gradients.

    The copies are of the weights as they are when `install` is called; `remove` before they change.
    """

    def __init__(self, model: nn.Module) -> None:
        kinds = (nn.Linear, SinglePrecisionLinear, Conv1D)
        layers: list[Any] = [m for m in model.modules() if type(m) in kinds and _packs(m)]
        # One function per layer for good: a compiled model would be compiled anew for another one.
        self._layers = [(layer, next(_numbers)) for layer in layers]
        self._forwards = [_packed_forward(layer, number) for layer, number in self._layers]
        self.installed = False

    def install(self) -> None:
        for (layer, number), forward in zip(self._layers, self._forwards, strict=True):
            weight = layer.weight.detach()
            if isinstance(layer, Conv1D):  # stored as [in, out]
                weight = weight.t().contiguous()
            if isinstance(layer, SinglePrecisionLinear):
                weight = weight.float()
            _copies[number] = torch.ops.mkldnn._reorder_linear_weight(weight)
            layer.forward = forward
        self.installed = True

    def remove(self) -> None:
        for layer, number in self._layers:
            vars(layer).pop("forward", None)
            _copies.pop(number, None)
        self.installed = False


_numbers = itertools.count()
_copies: dict[int, Tensor] = {}  # by a layer's number: the compiler takes a number, not a tensor of this layout


def _packs(layer: Any) -> bool:
    weight: Tensor = layer.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _packed_forward(layer: Any, number: int) -> Callable[[Tensor], Tensor]:
    usual = type(layer).forward
    width = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]

    def forward(x: Tensor) -> Tensor:
        output: Tensor
        bias = layer.bias
        if torch.is_grad_enabled():
            output = usual(layer, x)
            return output
        if isinstance(layer, SinglePrecisionLinear):
            x, bias = x.float(), None if bias is None else bias.float()
        if torch.compiler.is_compiling():
            output = _packed_linear(x, bias, number, width)
        else:
            output = _multiply(x, bias, number, width)
        return output

    return forward


def _multiply(x: Tensor, bias: Tensor | None, number: int, width: int) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, _copies[number], bias, "none", [], "")
    return output


_packed_linear = operator(
    "packed_linear(Tensor x, Tensor? bias, int number, int width) -> Tensor",
    _multiply,
    lambda x, bias, number, width: x.new_empty(*x.shape[:-1], width),
)
