"""Operations and bytes that a model needs, counted by hand and by torch."""

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from chatsmith.models.counts import Counts, StepCost, count, step_cost


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


def test_a_step_counted_by_hand():
    actor = Counts(body=100, head=10, attention=4, weight_bytes=0, cache_bytes=0)
    critic = Counts(body=50, head=7, attention=2, weight_bytes=0, cache_bytes=0)
    scorer = Counts(body=5, head=7, attention=1, weight_bytes=0, cache_bytes=0)
    # a prompt of 2 with an answer of 3, one of 1 with one of 1: 5 + 2 tokens, 15 + 3 pairs; 4 are predicted
    forward = 2 * 100 * 7 + 2 * 10 * 4 + 4 * 18
    value, score = 2 * 50 * 7 + 2 * 18, 2 * 5 * 7 + 1 * 18
    rollout = 2 * 100 * 5 + 2 * 10 * 4 + 4 * (10 + 1)  # 4 + 1 tokens are fed
    rows = {"prompts": [2, 1], "answers": [3, 1]}
    whole = step_cost(**rows, actor=actor, critic=critic, scorers=[scorer], own_logprobs=True, epochs=4)
    assert whole == StepCost(rollout, 2 * forward + value + score, 4 * 3 * (forward + value))
    assert whole.total == whole.rollout + whole.score + whole.update
    least = step_cost(**rows, actor=actor, critic=None, own_logprobs=False, epochs=1)
    assert least == StepCost(rollout, forward, 3 * forward)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2", "opt", "opt-350m", "bloom"])
def test_a_step_is_what_torch_counts(family):
    """Of plain passes over rows of one length; plain attention computes what the mask then hides, on either side."""
    actor, body = tiny_model(family), tiny_model(family).base_model
    for model in (actor, body):
        model.set_attn_implementation("eager")
    prompt, answer, rows = 5, 4, 3
    cost = step_cost(
        *([prompt] * rows, [answer] * rows),
        actor=count(actor),
        critic=count(body),
        own_logprobs=False,
        epochs=2,
    )

    def counted(model, length, *, backward=False, **options):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            output = model(torch.randint(3, 300, (rows, length)), use_cache=False, **options)
            if backward:
                (output.logits if model is actor else output.last_hidden_state).sum().backward()
        by_module = counter.get_flop_counts().items()
        angles = sum(sum(ops.values()) for module, ops in by_module if module.endswith(".rotary_emb"))
        hidden = count(model).attention * rows * length * (length - 1) // 2
        return counter.get_total_flops() - angles - (3 if backward else 1) * hidden

    whole = prompt + answer
    answered = torch.arange(prompt - 1, whole - 1)  # what is said there is about the answer's tokens
    assert cost.rollout == counted(actor, whole - 1, logits_to_keep=answer)
    assert cost.score == counted(actor, whole, logits_to_keep=answered) + counted(body, whole)
    learning = counted(actor, whole, backward=True, logits_to_keep=answered) + counted(body, whole, backward=True)
    assert cost.update == 2 * learning
    assert cost.update != 2 * counted(actor, whole, backward=True, logits_to_keep=answered)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_alone_is_enough(family):
    model = tiny_model(family)
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(model.config)
    assert all(weight.is_meta for weight in planned.parameters())
    assert count(planned) == count(model)
    assert count(planned.base_model) == count(model.base_model)
