"""From tokens to numbers about tokens. The only file that shifts.

A hidden state at position t predicts token t + 1; everything that leaves this file is stored at the index of the token
it speaks about. Rows are right-padded and attention is causal, so a real token never attends to padding and no
attention mask is needed: padded, packed and one-by-one forward passes compute the same function. Rows run packed where
the architecture allows it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from chatsmith.models.arguments import takes_positions
from chatsmith.models.packing import packed_hidden_states, packs
from chatsmith.models.products import fast_products


def hidden_states(backbone: Any, tokens: Tensor, lengths: Tensor, where: Tensor) -> Tensor:
    """Last hidden states [N, d] at N places of rows, in the order of the rows.

    Args:
        tokens: [B, T] right-padded.
        lengths: [B] real tokens per row.
        where: [B, T] bool, N times True, never in the padding.
    """
    if packs(backbone):
        return packed_hidden_states(backbone, tokens, lengths, where)
    extra: dict[str, Any] = {"use_cache": False}
    if takes_positions(backbone):
        extra["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device)[None].expand_as(tokens)
    with fast_products(backbone, tokens.numel()):
        states: Tensor = backbone(input_ids=tokens, **extra).last_hidden_state
    return states[where]


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] in fp32 from hidden states [..., d], with what the architecture does behind its head."""
    head = model.get_output_embeddings()
    with fast_products(head, hidden.shape[:-1].numel()):
        logits: Tensor = head(hidden).float()
    if scale := getattr(model.config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(model.config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(model.config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits


def token_logprobs(
    model: Any, tokens: Tensor, lengths: Tensor, mask: Tensor, *, temperature: float, max_logits_bytes: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of the masked tokens under softmax(logits / temperature), and the entropies they were drawn from.

    The head runs on the N masked positions only. Above `max_logits_bytes` it runs in chunks whose logits are computed
    again in the backward pass, so that [N, V] never exists at once.

    Args:
        model: a Hugging Face causal language model.
        tokens: [B, T] right-padded.
        lengths: [B] real tokens per row.
        mask: [B, T] bool, tokens to score; the first token of a row has no prediction and must be False.
        max_logits_bytes: budget for one fp32 [N, V] tensor.
    Returns:
        logprobs [B, T] and entropies [B, T] (nats, no gradient), both 0 outside the mask.
    """
    assert not mask[:, 0].any(), "the first token of a row is predicted by nothing"
    selected, targets = hidden_states(model.base_model, tokens, lengths, _before(mask)), tokens[mask]  # [N, d], [N]

    def logits(states: Tensor) -> Tensor:
        whole = head_logits(model, states)  # [n, V]
        return whole if temperature == 1 else whole / temperature

    rows = max(1, max_logits_bytes // (4 * model.config.get_text_config().vocab_size))
    if len(targets) <= rows:
        distribution = torch.log_softmax(logits(selected), -1)
        logprobs = distribution.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropies = -distribution.exp().mul_(distribution).sum(-1)
    else:
        learned = [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]
        logprobs, entropies = _ChunkedLogprobs.apply(logits, rows, targets, selected, *learned)  # type: ignore[no-untyped-call]
    return _place(logprobs, mask), _place(entropies, mask)


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


def token_values(critic: Any, tokens: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Values [B, T] of the states *before* each masked token is emitted, fp32, 0 outside the mask."""
    return _place(critic.value(hidden_states(critic.backbone, tokens, lengths, _before(mask))), mask)


def sequence_scores(reward_model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Scores [B] in fp32, read at each row's last real token.

    Args:
        reward_model: a Hugging Face `...ForSequenceClassification` with one label.
        tokens: [B, T] right-padded.
        lengths: [B] real tokens per row.
    """
    last = last_hidden_states(reward_model.base_model, tokens, lengths)  # [B, d]
    return linear(last.float(), reward_model.score.weight.float())[:, 0]


def last_hidden_states(backbone: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Last hidden states [B, d] at the last real token of each row of right-padded tokens [B, T]."""
    is_last = torch.arange(tokens.shape[1], device=tokens.device) == lengths[:, None] - 1
    return hidden_states(backbone, tokens, lengths, is_last)


def _before(mask: Tensor) -> Tensor:
    """Where the masked tokens [B, T] are predicted: one place earlier."""
    return mask.roll(-1, 1)  # nothing wraps around: the first token of a row is never masked


def _place(values: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of the masked tokens, at their places in [B, T]; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
