"""What a model must at least compute and read, and what this machine can do at most: the two sides of every share.

The former comes from shapes alone: a model on the meta device, built from a configuration, counts as the real one does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from chatsmith.cpu.products import fast_products
from chatsmith.models.arguments import cache_argument


@dataclass(frozen=True)
class Counts:
    """What a model must at least compute and read, from its shapes. Every expert of a mixture counts as used."""

    body: int  # weights of matrices that every token is multiplied with: all but embeddings and head
    head: int  # weights of the head, which sees only tokens whose prediction is wanted
    attention: int  # operations per query and key that it attends to, forward, all layers
    weight_bytes: int  # of all but embeddings: what a decoding step reads
    cache_bytes: int  # keys and values of one token, all layers; a sliding window counts as unbounded

    def flops(self, lengths: Sequence[int], *, scored: int) -> int:
        """Operations of a forward pass over whole rows whose head sees `scored` tokens; with backward it is thrice."""
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        return 2 * self.body * sum(lengths) + 2 * self.head * scored + self.attention * pairs

    def decode_bytes(self, prompts: Sequence[int], answers: Sequence[int]) -> int:
        """Bytes that sequences read that decode together, from the answers' second token on."""
        steps = max(answers) - 1
        # the step after i answer tokens attends to the prompt and to these
        cached = sum(p * (a - 1) + a * (a - 1) // 2 for p, a in zip(prompts, answers, strict=True))
        return steps * self.weight_bytes + cached * self.cache_bytes


@dataclass(frozen=True)
class StepCost:
    """Operations of one step of an online algorithm."""

    rollout: int
    score: int
    update: int  # all epochs

    @property
    def total(self) -> int:
        return self.rollout + self.score + self.update


def step_cost(
    prompts: Sequence[int],
    answers: Sequence[int],
    *,
    actor: Counts,
    critic: Counts | None,
    scorers: Sequence[Counts] = (),
    own_logprobs: bool,
    epochs: int,
) -> StepCost:
    """What a step needs whose answers of so many tokens, to prompts of so many, are each learned from `epochs` times.

    Generating feeds all tokens but each answer's last; the reference scores them, and the critic; `update` is forward
    and backward of actor and critic. Left out is what is small: norms, activations, rotary angles, the softmax, the
    heads of critic and scorers, the optimizer. So is what depends on how it is done: what is computed again to save
    memory counts once, and what rows share in full.

    Args:
        critic, scorers: bodies that read whole rows once: the critic, if there is one, and reward models.
        own_logprobs: whether the old log-probs come from a forward pass of the actor's own, not from the rollout.
    """
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    scored = sum(answers)
    forward = actor.flops(rows, scored=scored)
    value = critic.flops(rows, scored=0) if critic is not None else 0
    return StepCost(
        rollout=actor.flops([row - 1 for row in rows], scored=scored),
        score=(2 if own_logprobs else 1) * forward + value + sum(scorer.flops(rows, scored=0) for scorer in scorers),
        update=3 * epochs * (forward + value),
    )


@torch.no_grad()
def count(model: Any) -> Counts:
    """Of a causal language model, or of a decoder without a head."""
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    head_weights = [] if head is None else [head.weight]  # may be an embedding, too
    body = [p for p in model.parameters() if p not in embeddings and all(p is not w for w in head_weights)]
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Counts(
        body=sum(p.numel() for p in body if p.dim() > 1),
        head=sum(p.numel() for p in head_weights),
        attention=4 * config.num_hidden_layers * config.num_attention_heads * width,  # scores, and the sum of values
        weight_bytes=sum(p.nbytes for p in [*body, *head_weights]),
        cache_bytes=sum(model.dtype.itemsize * heads * size for layer in cache_shapes(model) for heads, size in layer),
    )


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here: the ceiling that `step/mfu` refers to."""
    size = 8192 if device.type == "cuda" else 1024
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype).requires_grad_(False)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        with fast_products(layer, size):
            product = layer(matrix)
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second of memory here: a large copy or a large read, whichever moves more."""
    size = min(4 << 30, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else 256 << 20
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        float(target.copy_(source)[0])  # waits for the device
        copied = time.perf_counter()
        float(source.sum())
        read = time.perf_counter()
        best = max(best, 2 * source.nbytes / (copied - started), source.nbytes / (read - copied))
    return best


def cache_shapes(model: Any) -> Sequence[tuple[tuple[int, int], tuple[int, int]]]:
    """(heads, width) of keys and of values that one token leaves in each layer's cache."""
    if model not in _cache_shapes:
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        token: dict[str, Any] = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=model.device)}
        if model.device.type == "meta":  # of no number there can be asked whether it is that of padding
            width = model.get_input_embeddings().weight.shape[1]
            token = {"inputs_embeds": torch.zeros(1, 1, width, dtype=model.dtype, device="meta")}
        with torch.no_grad():
            model(**token, use_cache=True, **{cache_argument(model): cache})
        _cache_shapes[model] = [
            ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3]))
            for layer in cache.layers
        ]
    return _cache_shapes[model]


_cache_shapes: WeakKeyDictionary[Any, Sequence[tuple[tuple[int, int], tuple[int, int]]]] = WeakKeyDictionary()
