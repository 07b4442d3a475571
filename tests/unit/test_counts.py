"""Operations and bytes that a model needs, counted by hand and by torch."""

import pytest
import torch
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from chatsmith.models.counts import Counts, count


def test_a_tiny_llama_counted_by_hand():
    # per layer: q and o 32 x 32, k and v 32 x 16 (2 of 4 heads), 3 matrices 32 x 64; 5 norms of 32 in all
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    counts = count(tiny_model("llama"))
    assert counts.body == 2 * layer
    assert counts.head == 384 * 32
    assert counts.attention == 2 * 4 * (2 * 8 + 2 * 8)  # layers x heads x (scores, and the sum of values, 8 wide)
    assert counts.weight_bytes == 4 * (counts.body + counts.head + 5 * 32)
    assert counts.cache_bytes == 2 * (2 * 8 + 2 * 8) * 4  # layers x (keys, values of 2 heads) x 4 bytes


def test_bytes_and_operations_counted_by_hand():
    counts = Counts(body=100, head=10, attention=4, weight_bytes=1000, cache_bytes=3)
    # two rows of 3 and 1 tokens: 4 tokens, 6 + 1 pairs; the head sees 2
    assert counts.flops([3, 1], scored=2) == 2 * 100 * 4 + 2 * 10 * 2 + 4 * 7
    # answers of 4 and 2 tokens to prompts of 5 and 7: three steps; 6, 7, 8 tokens are read and 8
    assert counts.decode_bytes([5, 7], [4, 2]) == 3 * 1000 + (6 + 7 + 8 + 8) * 3


def test_a_body_without_a_head_has_none():
    model = tiny_model("llama")
    whole, body = count(model), count(model.base_model)
    assert (body.body, body.head) == (whole.body, 0)
    assert whole.weight_bytes - body.weight_bytes == 4 * whole.head


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2", "opt", "opt-350m", "bloom"])
def test_operations_are_those_that_torch_counts(family):
    model, tokens = tiny_model(family), 24
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    counts = count(model)
    masked = counts.attention * tokens * (tokens - 1) // 2  # plain attention computes what the mask then hides
    # the angles of rotary embeddings: transformers 5.17 makes them by a matrix product, 5.23 does not
    by_module = counter.get_flop_counts().items()
    angles = sum(sum(ops.values()) for module, ops in by_module if module.endswith(".rotary_emb"))
    assert counter.get_total_flops() - angles == counts.flops([tokens], scored=tokens) + masked
