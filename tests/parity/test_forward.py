"""Each way to compute the next logits gives the tokens of the plain way, and leaves the model as it was."""

from pathlib import Path

import pytest
import torch
from tiny import require_program, tiny_model

import chatsmith.engine.forward
from chatsmith.engine.cache import SHARE, free_bytes
from chatsmith.engine.engine import Engine, Request, Sampling

STOPS = (2,)
PROMPTS = [
    torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 11, 3, 8, 17, 6)
]


def requests(limit=12, count=6):
    return [
        Request(tuple(prompt), limit, STOPS, Sampling(), (number,)) for number, prompt in enumerate(PROMPTS[:count])
    ]


def tokens(engine, asked):
    return [group[0].tokens for group in engine.generate(asked)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 stores its matrices transposed
def test_packed_weights_are_used_by_many_rows_and_forgotten_after_the_session(family):
    model = tiny_model(family)
    engine = Engine(model, max_batch=6)
    with engine.session():
        for request in requests():
            engine.add(request)
        engine.step()
        packed = [m for m in model.modules() if "forward" in vars(m)]
        assert packed
        width = packed[0].weight.shape[0 if family == "gpt2" else 1]
        with torch.enable_grad():
            packed[0](torch.randn(3, width)).sum().backward()
        assert packed[0].weight.grad is not None, "where gradients are asked for, the weights themselves compute"
    assert not [m for m in model.modules() if "forward" in vars(m)]
    alone = Engine(model, max_batch=1)  # one row is not worth packing
    assert tokens(engine, requests()) == tokens(alone, requests())


def test_packed_weights_are_those_of_their_session():
    model = tiny_model("llama")
    engine = Engine(model, max_batch=6)
    before = tokens(engine, requests())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = tokens(engine, requests())
    assert after != before
    assert after == tokens(Engine(model, max_batch=1), requests())


@pytest.mark.parametrize("stride", [2, 5, 64])
def test_looking_at_the_tokens_every_few_steps_changes_none(stride):
    model = tiny_model("llama")
    asked = [Request(r.tokens, 3 + 4 * n, r.stops, r.sampling, r.seeds) for n, r in enumerate(requests())]
    engine = Engine(model, max_batch=4)
    expected = engine.generate(asked)
    engine._forward.stride = stride
    found = engine.generate(asked)
    assert [g[0].tokens for g in found] == [g[0].tokens for g in expected]
    assert [g[0].finish_reason for g in found] == [g[0].finish_reason for g in expected]
    ours, plain = (torch.tensor([x for g in groups for x in g[0].logprobs]) for groups in (found, expected))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_a_compiled_step_draws_the_same_tokens():
    require_program("g++")  # torch's compiler writes C++
    model = tiny_model("llama")
    compiled = Engine(model, max_batch=4, compiled=True)
    assert tokens(compiled, requests()) == tokens(Engine(model, max_batch=4), requests())


def test_as_many_rows_run_as_the_memory_holds(monkeypatch):
    model = tiny_model("llama")
    engine = Engine(model, max_batch=6)
    expected = tokens(engine, requests())
    cache = engine._forward._cache
    room = 3 * cache.rounded(max(map(len, PROMPTS)) + 12) * cache.bytes_per_token
    monkeypatch.setattr(chatsmith.engine.forward, "free_bytes", lambda _, held: room)
    running = 0
    with engine.session():
        for request in requests():
            engine.add(request)
        while not engine.idle:
            engine.step()
            running = max(running, len(engine._scheduler.rows))
    assert running == 3
    assert tokens(engine, requests()) == expected


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is available")
def test_a_cache_that_grows_keeps_to_its_share_of_the_memory():
    held, cpu = 1 << 44, torch.device("cpu")  # so much that it does not matter what else the machine does
    assert free_bytes(cpu, held) - free_bytes(cpu, 0) == pytest.approx(SHARE * held, rel=1e-2)


def test_a_sequence_that_does_not_fit_at_all_is_refused_with_the_number_that_does(monkeypatch):
    engine = Engine(tiny_model("llama"), max_batch=6)
    monkeypatch.setattr(
        chatsmith.engine.forward, "free_bytes", lambda _, held: 20 * engine._forward._cache.bytes_per_token
    )
    small = Request((5, 6), 4, STOPS, Sampling(), (0,))
    expected = tokens(engine, [small])
    with pytest.raises(MemoryError, match=r"a sequence of 2\d tokens does not fit: .* keys and values of 20 tokens"):
        tokens(engine, requests())
    assert tokens(engine, [small]) == expected
    id = engine.add(small)  # of several clients one alone is refused
    with pytest.raises(MemoryError, match="does not fit"):
        engine.add(Request((5, 6), 40, STOPS, Sampling(), (0,)))
    with engine.session():
        assert {event.request for event in engine.step()} == {id}
