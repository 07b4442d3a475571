"""From tokens to numbers about tokens. The only file that shifts.

A hidden state at position t predicts token t + 1; everything that leaves this file is stored at the index of the token
it speaks about. Rows are right-padded and attention is causal, so a real token never attends to padding: padded, packed
and one-by-one forward passes compute the same function where the architecture allows it, which `lm.py` has tried.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers.utils import ModelOutput

from chatsmith.cpu.products import fast_products
from chatsmith.models.arguments import takes_mask
from chatsmith.models.attention import packed_states
from chatsmith.models.passes import Pass, Row, passes
from chatsmith.models.way import Rows, way_of


def passes_of(
    *models: Any, rows: Sequence[Row], max_tokens: int, together: Sequence[Hashable] | None = None, whole: bool = False
) -> list[Pass]:
    """Rows in passes for models that all compute them, see `passes`; they are packed where all of them can be."""
    longest = max(map(len, rows), default=0)
    packed = all(way_of(model).rows_of(longest) == "packed" for model in models)
    device = models[0].device
    return passes(rows, max_tokens=max_tokens, packed=packed, device=device, together=together, whole=whole)


def hidden_states(backbone: Any, of: Pass, where: Tensor) -> Tensor:
    """Last hidden states [N, d] at N places of a pass, in the order of its rows.

    Args:
        where: [B, T] bool, N times True, never in the padding.
    """
    rows = way_of(backbone).rows_of(of.width)
    if rows == "packed":
        return packed_states(backbone, of.layout).index_select(0, of.layout.index[where])

    def run(tokens: Tensor, **extra: Any) -> Tensor:
        with fast_products(backbone, tokens.numel()):
            states: Tensor = backbone(input_ids=tokens, **extra).last_hidden_state
        return states

    return _in_rows(backbone, run, rows, of, where)


def _in_rows(model: Any, run: Callable[..., Tensor], rows: Rows, of: Pass, where: Tensor) -> Tensor:
    """What `run` gives for tokens [B, T] at the N places `where`, [N, ...]; in one pass, or each row in its own."""
    if rows == "alone":
        alone = [
            run(tokens[None, : len(row)], **plain_arguments(model, tokens[None, : len(row)]))[0][places[: len(row)]]
            for row, tokens, places in zip(of.rows, of.tokens, where, strict=True)
        ]
        return torch.cat(alone)
    extra: dict[str, Any] = {"use_cache": False}
    if rows == "masked":
        extra["attention_mask"] = of.real.long()
    return run(of.tokens, **extra)[where]


def plain_arguments(model: Any, tokens: Tensor) -> dict[str, Any]:
    """What everybody gives a model of transformers along with whole rows [B, T]."""
    mask = {"attention_mask": torch.ones_like(tokens)} if takes_mask(model) else {}
    return {"use_cache": False, **mask}


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] in fp32 from the body's last states [..., d]: the model's own forward pass behind its body.

    So whatever an architecture does there (Cohere scales, Gemma 2 caps, ModernBERT has a layer more) is done.
    """
    states = hidden.flatten(0, -2)[None]
    placeholder = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    body = model.base_model
    with _gives(body, states), fast_products(model.get_output_embeddings(), states.shape[1]):
        logits: Tensor = model(input_ids=placeholder, use_cache=False).logits
    return logits[0].float().view(*hidden.shape[:-1], -1)


@dataclass
class _Given(ModelOutput):  # type: ignore[misc]
    """States of a body, and nothing of all that may be asked for beside them."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _gives(body: Any, states: Tensor) -> Iterator[None]:
    """Inside, the body gives these states, whatever it is asked."""
    given = _Given(last_hidden_state=states)
    vars(body)["forward"] = lambda *_, **__: given
    try:
        yield
    finally:
        del vars(body)["forward"]


def whole_logits(model: Any, of: Pass, where: Tensor) -> Tensor:
    """Logits [N, V] in fp32 at the N places `where` [B, T], from forward passes of the whole model."""

    def run(tokens: Tensor, **extra: Any) -> Tensor:
        logits: Tensor = model(input_ids=tokens, **extra).logits
        return logits

    return _in_rows(model, run, way_of(model).rows_of(of.width), of, where).float()


def token_logprobs(
    model: Any, of: Pass, mask: Tensor, *, temperature: float, max_logits_bytes: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of the masked tokens under softmax(logits / temperature), and the entropies they were drawn from.

    The head runs on the N masked positions only. Above `max_logits_bytes` it runs in chunks whose logits are computed
    again in the backward pass, so that [N, V] never exists at once.

    Args:
        model: a Hugging Face causal language model.
        mask: [B, T] bool, tokens to score; the first token of a row has no prediction and must be False.
        max_logits_bytes: budget for one fp32 [N, V] tensor.
    Returns:
        logprobs [B, T] and entropies [B, T] (nats, no gradient), both 0 outside the mask.
    """
    assert not mask[:, 0].any(), "the first token of a row is predicted by nothing"
    targets = of.tokens[mask]  # [N]
    if way_of(model).head == "whole":
        selected, head = whole_logits(model, of, _before(mask)), Tensor.clone  # [N, V]; changed in place below
    else:
        selected, head = hidden_states(model.base_model, of, _before(mask)), partial(head_logits, model)

    def logits(states: Tensor) -> Tensor:
        whole: Tensor = head(states)  # [n, V]
        return whole if temperature == 1 else whole / temperature

    rows = max(1, max_logits_bytes // (4 * model.config.get_text_config().vocab_size))
    if len(targets) <= rows:
        distribution = torch.log_softmax(logits(selected), -1)
        logprobs = distribution.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropies = -distribution.exp().mul_(distribution).sum(-1)
    else:
        learned = [] if way_of(model).head == "whole" else [w for w in _behind_body(model) if w.requires_grad]
        logprobs, entropies = _ChunkedLogprobs.apply(logits, rows, targets, selected, *learned)  # type: ignore[no-untyped-call]
    return _place(logprobs, mask), _place(entropies, mask)


def _behind_body(model: Any) -> list[Tensor]:
    """The weights that `head_logits` uses; the head's may be those of the embedding."""
    body, head = {*model.base_model.parameters()}, {*model.get_output_embeddings().parameters()}
    return [weight for weight in model.parameters() if weight in head or weight not in body]


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probs [N] of tokens under softmax(logits(states)) and its entropies [N], `rows` of the N at a time.

    The backward pass computes a chunk's logits again, from which their normaliser gives the gradient: a checkpoint
    would compute log-softmax and entropy again too. `learned` are the weights that `logits` uses.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Callable[[Tensor], Tensor], rows: int, tokens: Tensor, states: Tensor, *learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for ids, chunk in zip(torch.split(tokens, rows), torch.split(states, rows), strict=True):
            shifted = logits(chunk)  # [n, V]
            largest = shifted.amax(-1)
            shifted -= largest[:, None]  # in place: it is a tensor of vocabulary size
            exponentials = shifted.exp()
            total = exponentials.sum(-1)
            mean = torch.bmm(exponentials[:, None], shifted[:, :, None]).flatten() / total
            log_total = total.log()
            parts.append((shifted.gather(1, ids[:, None])[:, 0] - log_total, log_total - mean, largest + log_total))
        logprobs, entropies, normalisers = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.logits, ctx.rows = logits, rows
        ctx.save_for_backward(tokens, normalisers, states, *learned)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tokens, normalisers, states, *learned = ctx.saved_tensors
        of_states = torch.empty_like(states)
        of_learned = [torch.zeros_like(weight, dtype=torch.float32) for weight in learned]
        for first in range(0, len(tokens), ctx.rows):
            part = slice(first, first + ctx.rows)
            chunk = states[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = ctx.logits(chunk)  # [n, V]
            # d log softmax(logits)[token] / d logits = one at the token - softmax(logits)
            of_logits = logits.detach()  # and in its place: no step before it has saved it
            of_logits.sub_(normalisers[part, None]).exp_().mul_(-gradient[part, None])
            of_logits.scatter_add_(1, tokens[part, None], gradient[part, None])
            of_states[part], *added = torch.autograd.grad(logits, [chunk, *learned], of_logits)
            for total, addition in zip(of_learned, added, strict=True):
                total += addition
        return (
            None,
            None,
            None,
            of_states,
            *(total.to(weight.dtype) for total, weight in zip(of_learned, learned, strict=True)),
        )


def token_values(critic: Any, of: Pass, mask: Tensor) -> Tensor:
    """Values [B, T] of the states *before* each masked token is emitted, fp32, 0 outside the mask."""
    return _place(critic.value(hidden_states(critic.backbone, of, _before(mask))), mask)


def sequence_scores(reward_model: Any, of: Pass) -> Tensor:
    """Scores [B] in fp32, read at each row's last token.

    Args:
        reward_model: a Hugging Face `...ForSequenceClassification` with one label.
    """
    last = last_hidden_states(reward_model.base_model, of)  # [B, d]
    return linear(last.float(), reward_model.score.weight.float())[:, 0]


def last_hidden_states(backbone: Any, of: Pass) -> Tensor:
    """Last hidden states [B, d] at the last token of each row."""
    is_last = torch.arange(of.width, device=of.device) == of.lengths[:, None] - 1
    return hidden_states(backbone, of, is_last)


def _before(mask: Tensor) -> Tensor:
    """Where the masked tokens [B, T] are predicted: one place earlier."""
    return mask.roll(-1, 1)  # nothing wraps around: the first token of a row is never masked


def _place(values: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of the masked tokens, at their places in [B, T]; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
