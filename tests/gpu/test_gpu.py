"""The same invariants on a CUDA device, in bf16. Skipped where there is none."""

import random

import pytest
import torch
from tiny import FAMILIES, tiny_model

from chatsmith.config import EngineConfig
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.counts import count
from chatsmith.models.head import SinglePrecisionLinear
from chatsmith.models.passes import Pass, pad_mask
from chatsmith.models.scoring import hidden_states, token_logprobs
from chatsmith.pipeline import train
from chatsmith.resolve import nested, resolve
from chatsmith.runs.runtime import choose_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # nats per token, mean
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


@pytest.fixture(autouse=True, scope="module")
def settings_of_a_run():
    choose_device(EngineConfig())


def many(count, seed=0):
    """Requests of mixed lengths: prompts of up to 40 tokens, answers of up to 30 that nothing ends early."""
    draw = random.Random(seed)
    prompts = [tuple(draw.randrange(3, 300) for _ in range(draw.randint(1, 40))) for _ in range(count)]
    return [Request(p, draw.randint(1, 30), (), Sampling(), (seed,)) for seed, p in enumerate(prompts)]


def gap(model, requests, groups):
    """Mean difference of the rollout's log-probs from those of the training forward."""
    rows = [(list(r.tokens), c) for r, group in zip(requests, groups, strict=True) for c in group]
    part = Pass.of([prompt + c.tokens for prompt, c in rows], DEVICE)
    mask = pad_mask([[False] * len(prompt) + [True] * len(c.tokens) for prompt, c in rows]).to(DEVICE)
    with torch.no_grad():
        training, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=1 << 30)
    rollout = torch.tensor([value for _, c in rows for value in c.logprobs])
    return (rollout - training[mask].cpu()).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_rollout_and_training_logprobs_agree(family, dtype):
    model = tiny_model(family, scale=1.0).to(DEVICE, dtype)
    requests = [Request(tuple(p), 20, (2,), Sampling(), (1, 2)) for p in PROMPTS]
    groups = Engine(model, max_batch=4).generate(requests)
    assert gap(model, requests, groups) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_a_large_mixed_batch_agrees_with_training_and_with_a_small_one(dtype):
    model = tiny_model("llama", scale=1.0).to(DEVICE, dtype)
    requests = many(400)
    large, small = (Engine(model, max_batch=rows).generate(requests) for rows in (256, 48))
    for groups in (large, small):
        assert [len(group[0].tokens) for group in groups] == [r.max_new_tokens for r in requests]
        assert gap(model, requests, groups) < LIMITS[dtype]
    if dtype == torch.float32:  # in bf16 a draw near a boundary may fall otherwise
        same = sum(one[0].tokens == other[0].tokens for one, other in zip(large, small, strict=True))
        assert same > 0.9 * len(requests)


@pytest.mark.parametrize("dtype", LIMITS)
def test_prompts_that_are_computed_in_chunks_agree_with_training(dtype):
    model, requests = tiny_model("llama", scale=1.0).to(DEVICE, dtype), many(48)
    groups = Engine(model, max_batch=8, max_prefill_tokens=16).generate(requests)
    assert gap(model, requests, groups) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_next_rollout_sees_new_weights(dtype):
    model = tiny_model("llama", scale=1.0).to(DEVICE, dtype)
    engine, requests = Engine(model, max_batch=64), many(64)
    before = engine.generate(requests)
    assert gap(model, requests, before) < LIMITS[dtype]
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert gap(model, requests, before) > 10 * LIMITS[dtype]  # or the test would see nothing
    assert gap(model, requests, engine.generate(requests)) < LIMITS[dtype]


def test_a_session_gives_its_cache_back():
    model = tiny_model("llama").to(DEVICE, torch.bfloat16)
    requests = [Request((5,) * 100, 100, (), Sampling(), (seed,)) for seed in range(256)]
    cache = count(model).cache_bytes * 256 * 200
    engine = Engine(model, max_batch=256)
    engine.generate(requests)  # what is kept for good, such as graphs, is made here
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with engine.session():
        for request in requests:
            engine.add(request)
        while not engine.idle:
            engine.step()
            held = torch.cuda.memory_allocated() - before
            if held > 0.9 * cache:
                break
        assert held > 0.9 * cache
    assert torch.cuda.memory_allocated() - before < 0.1 * cache


def test_packed_rows_equal_rows_alone():
    backbone = tiny_model("llama").cuda().base_model
    part = Pass.of(PROMPTS, "cuda")
    with torch.no_grad():
        packed = hidden_states(backbone, part, part.real)
        alone = [backbone(input_ids=torch.tensor([prompt]).cuda()).last_hidden_state[0] for prompt in PROMPTS]
        torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-3)


def test_three_stages_run_in_bf16(model_directory, tmp_path):
    rows = "".join(f'{{"prompt": "p{i}", "chosen": "yes!", "rejected": "no?"}}\n' for i in range(120))
    (tmp_path / "pairs.jsonl").write_text(rows)
    keys = {
        "actor_model": str(model_directory("llama")),
        "data.sources": [str(tmp_path / "pairs.jsonl")],
        "data.held_out": 0.2,
        "data.max_tokens": 96,
        "rl.rollouts": 8,
        "rl.minibatches": 2,
        "rl.steps": 2,
        "rl.max_new_tokens": 8,
        "engine.device": "cuda",
    }
    train(resolve([("test", nested(keys))]), tmp_path / "run", recipe="test", force=True)
    assert (tmp_path / "run" / "rl" / "actor" / "model.safetensors").exists()


def test_a_wide_head_multiplies_exactly_and_has_the_gradients_of_fp32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 300, bias=False, device="cuda").bfloat16()
    layer.__class__ = SinglePrecisionLinear
    x = torch.randn(2, 5, 64, device="cuda").bfloat16().requires_grad_()
    output = layer(x)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), x.double() @ layer.weight.double().T, atol=1e-4, rtol=1e-5)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights.bfloat16() @ layer.weight, atol=0.1, rtol=0.02)
    torch.testing.assert_close(
        layer.weight.grad.float(), torch.einsum("bto,bti->oi", weights, x.float()), atol=0.1, rtol=0.02
    )
