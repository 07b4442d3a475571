"""How far two right forward passes of a model may be apart: what rollout and training are allowed to differ by."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chatsmith.models.scoring import plain_arguments

USUAL = 0.017  # nats in bf16, measured on stories260K, a Llama of 260,000 parameters


@torch.no_grad()
def rounding_noise(model: Any, rows: Sequence[Tensor], places: Sequence[Tensor], *, temperature: float) -> float:
    """The mean difference in nats between a token's log-probs from plain forward passes that round differently.

    These are transformers' own over each row alone and over all rows right-padded, and in half precision also one in
    fp32, for which one weight at a time is widened.

    Args:
        rows: tokens, [T] each.
        places: of each row which tokens count, [T] bool; never the first.
    """
    alone = _logprobs(model, rows, places, temperature)
    noise = float((_logprobs(model, rows, places, temperature, side_by_side=True) - alone).abs().mean())
    if model.dtype == torch.float32:
        return noise
    try:
        with _SinglePrecision():
            exact = _logprobs(model, rows, places, temperature)
    except (RuntimeError, TypeError, NotImplementedError):  # of a kernel that takes half precision alone
        return max(noise, USUAL)
    return max(noise, float((exact - alone).abs().mean()))


def _logprobs(
    model: Any, rows: Sequence[Tensor], places: Sequence[Tensor], temperature: float, *, side_by_side: bool = False
) -> Tensor:
    """Log-probs [N] of all tokens that count."""
    found = []
    together = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=together.device)
    real = torch.arange(together.shape[1], device=together.device) < lengths[:, None]
    if side_by_side:
        arguments = plain_arguments(model, together)
        if "attention_mask" in arguments:
            arguments["attention_mask"] = real.long()
        batch = model(input_ids=together, **arguments).logits
    for number, (row, counts) in enumerate(zip(rows, places, strict=True)):
        own = batch[number, : len(row)] if side_by_side else _of_one(model, row)
        values = (own[:-1][counts[1:]].float() / temperature).log_softmax(-1)
        found.append(values.gather(1, row[1:][counts[1:]][:, None])[:, 0])
    return torch.cat(found)


def _of_one(model: Any, row: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=row[None], **plain_arguments(model, row[None])).logits[0]
    return logits


class _SinglePrecision(TorchFunctionMode):
    """Inside, weights of half precision are widened where they are used, so that all that follows is fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_widened(args), **_widened(kwargs or {}))


def _widened(value: Any) -> Any:
    if isinstance(value, nn.Parameter) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    if isinstance(value, Mapping):
        return {name: _widened(part) for name, part in value.items()}
    return type(value)(map(_widened, value)) if type(value) in (tuple, list) else value
