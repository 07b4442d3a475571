"""Long sequences, many sequences, and sequences that are given up: nothing leaks, and none sees another."""

import random

import pytest
import torch
import transformers

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.seeds import uniforms

STEP = 1e-5  # of the cumulative distribution: how far the rounding of another batch may move one


def small_llama(context, layers=1, seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def events_of(engine):
    """All that happens until nothing runs or waits."""
    while not engine.idle:
        yield from engine.step()


@torch.no_grad()
def assert_same(model, prompt, seed, tokens, expected):
    """Two runs of one seed: the same tokens, up to one whose uniform number lies on a step of the distribution."""
    flip = next((i for i, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1]), None)
    if flip is None:
        return
    logits = model(torch.tensor([[*prompt, *expected[:flip]]])).logits[0, -1]
    cdf = torch.softmax(logits.double(), -1).cumsum(-1)
    steps = sorted((tokens[flip], expected[flip]))
    distance = (cdf[steps[0] : steps[1]] - uniforms(seed, flip + 1)[flip]).abs().max()
    assert distance < STEP, f"token {flip}: {steps} are {distance:.1e} away from the number that was drawn"


def test_a_seed_gives_the_same_2000_tokens_whatever_else_is_in_the_batch():
    model = small_llama(context=2304, layers=2)
    prompt, seed = (5, 6, 7), 11
    mine = Request(prompt, 2000, (), Sampling(), (seed,))
    rng = random.Random(0)
    others = [
        Request(
            tuple(rng.randrange(3, 384) for _ in range(rng.randint(1, 60))),
            rng.randint(10, 400),
            (2,),
            rng.choice([Sampling(), Sampling(0.0), Sampling(0.7, 20, 0.9, 1.2)]),
            (100 + number,),
        )
        for number in range(20)
    ]
    (alone,) = Engine(model, max_batch=1).generate([mine])[0]
    crowd = Engine(model, max_batch=4).generate([*others[:3], mine, *others[3:]])
    assert len(alone.tokens) == 2000
    assert len(set(alone.tokens)) > 200
    assert_same(model, prompt, seed, crowd[3][0].tokens, alone.tokens)
    wrong = [*alone.tokens[:-1], (alone.tokens[-1] + 1) % 384]
    with pytest.raises(AssertionError, match="token 1999"):
        assert_same(model, prompt, seed, wrong, alone.tokens)


def test_ten_thousand_requests_through_sixteen_rows_are_answered_once_each_and_leave_nothing():
    model = small_llama(context=64)
    rng = random.Random(0)
    requests = [
        Request(tuple(rng.choices(range(3, 384), k=rng.randint(1, 12))), rng.randint(1, 3), (2,), Sampling(), (number,))
        for number in range(10_000)
    ]
    engine = Engine(model, max_batch=16)
    with engine.session():
        ids = [engine.add(request) for request in requests]
        cancelled = set(rng.sample(ids, 200))
        for id in sorted(cancelled)[100:]:
            engine.cancel(id)
        late = set(sorted(cancelled)[:100])
        produced, ended, running = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0), 0
        for event in events_of(engine):
            produced[event.request] += 1
            ended[event.request] += event.finish_reason is not None
            running = max(running, len(engine._scheduler.rows))
            if late and produced[event.request] == 1 and event.request in late:
                late.discard(event.request)
                engine.cancel(event.request)
        rows = engine._forward._cache.layers[0].keys.shape[0]
        assert (running, rows) == (16, 16)
        assert engine._scheduler.rows == []
        assert not engine._scheduler._waiting
    assert all(ended[id] == 1 for id in ids if id not in cancelled)
    assert all(ended[id] <= 1 and produced[id] <= 3 for id in cancelled)
    assert all(produced[id] <= request.max_new_tokens for id, request in zip(ids, requests, strict=True))
    assert engine._forward._cache.bytes == 0


def test_a_cancelled_request_frees_its_rows_at_once_and_the_others_say_what_they_would_have_said():
    model = small_llama(context=128)
    requests = [Request((3 + n, 40, 50 + n), 30, (), Sampling(), (10 * n, 10 * n + 1)) for n in range(6)]
    expected = Engine(model, max_batch=12).generate(requests)
    engine = Engine(model, max_batch=3)
    ids = [engine.add(request) for request in requests]
    said = {(id, sample): [] for id in ids for sample in (0, 1)}
    rows_after = {}
    while not engine.idle:
        for event in engine.step():
            said[event.request, event.sample].append(event.token)
        if len(said[0, 0]) == 5:  # request 0 runs, one sample of request 1 runs and one waits, request 3 waits
            assert [(row.request, row.sample) for row in engine._scheduler.rows] == [(0, 0), (0, 1), (1, 0)]
            for id in (1, 3):
                engine.cancel(id)
                rows_after[id] = [(row.request, row.sample) for row in engine._scheduler.rows]
            (began,) = {event.request for event in engine.step()}
            assert began == 2, "the row that is free is taken by the next step"
            said[2, 0].append(engine._scheduler.rows[-1].last)
    assert rows_after == {1: [(0, 0), (0, 1)], 3: [(0, 0), (0, 1)]}
    for id in (0, 2, 4, 5):
        for sample in (0, 1):
            assert said[id, sample] == expected[id][sample].tokens
    assert said[1, 0] == expected[1][0].tokens[:5]
    assert [said[1, 1], said[3, 0], said[3, 1]] == [[], [], []]
