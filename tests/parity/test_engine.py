"""The engine against `generate` of transformers and against the training forward."""

import pytest
import torch
from tiny import FAMILIES, tiny_model

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.passes import Pass, pad_mask
from chatsmith.models.scoring import token_logprobs

torch.manual_seed(1)
PROMPTS = [torch.randint(3, 300, (n,)).tolist() for n in (5, 11, 3, 8, 17, 6)]
STOPS = (2,)


def requests(sampling, *, limit=24, seeds=(5,), prompts=PROMPTS):
    return [
        Request(tuple(prompt), limit, STOPS, sampling, tuple(seed + 100 * i for seed in seeds))
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate(family):
    model = tiny_model(family)
    engine = Engine(model, max_batch=4)  # six prompts through four places
    ours = [group[0].tokens for group in engine.generate(requests(Sampling(temperature=0.0)))]
    for prompt, tokens in zip(PROMPTS, ours, strict=True):
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=list(STOPS),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        assert tokens == theirs


def test_greedy_tokens_with_a_repetition_penalty_equal_generate():
    model = tiny_model("llama")
    found = []
    for penalty in (1.0, 1.5):
        engine = Engine(model, max_batch=4)
        answers = engine.generate(requests(Sampling(temperature=0.0, repetition_penalty=penalty)))
        found.append([group[0].tokens for group in answers])
        for prompt, tokens in zip(PROMPTS, found[-1], strict=True):
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=list(STOPS),
                pad_token_id=0,
            )
            assert tokens == expected[0, len(prompt) :].tolist()
    assert found[0] != found[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_logprobs_equal_the_training_forward(family, temperature):
    model = tiny_model(family)
    engine = Engine(model, max_batch=4)
    groups = engine.generate(requests(Sampling(temperature=temperature), seeds=(1, 2)))
    rows = [(prompt, c) for prompt, group in zip(PROMPTS, groups, strict=True) for c in group]
    part = Pass.of([prompt + c.tokens for prompt, c in rows])
    mask = pad_mask([[False] * len(prompt) + [True] * len(c.tokens) for prompt, c in rows])
    with torch.no_grad():
        training, _ = token_logprobs(model, part, mask, temperature=temperature, max_logits_bytes=1 << 30)
    rollout = torch.tensor([value for _, c in rows for value in c.logprobs])
    torch.testing.assert_close(rollout, training[mask], atol=2e-5, rtol=1e-5)


def test_a_sequence_depends_on_its_seed_and_not_on_its_batch():
    model = tiny_model("llama")
    together = Engine(model, max_batch=6).generate(requests(Sampling(), seeds=(1, 2)))
    reverse = requests(Sampling(), seeds=(1, 2))[::-1]
    one_by_one = Engine(model, max_batch=1).generate(reverse)[::-1]
    assert [[c.tokens for c in g] for g in together] == [[c.tokens for c in g] for g in one_by_one]
    other_seed = Engine(model, max_batch=6).generate(requests(Sampling(), seeds=(3, 4)))
    assert [[c.tokens for c in g] for g in together] != [[c.tokens for c in g] for g in other_seed]


def test_answers_end_at_a_stop_id_or_at_the_limit_and_say_which():
    model = tiny_model("llama")
    groups = Engine(model, max_batch=6).generate(requests(Sampling(temperature=3.0), limit=60, seeds=range(8)))
    completions = [c for group in groups for c in group]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for c in completions:
        ended = c.tokens[-1] in STOPS
        assert (c.finish_reason == "stop") == ended
        assert not any(token in STOPS for token in c.tokens[:-1])
        assert ended or len(c.tokens) == 60


def test_a_weight_change_is_visible_to_the_very_next_rollout():
    model = tiny_model("llama")
    engine = Engine(model, max_batch=6)
    before = engine.generate(requests(Sampling(temperature=0.0)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = engine.generate(requests(Sampling(temperature=0.0)))
    fresh = Engine(model, max_batch=6).generate(requests(Sampling(temperature=0.0)))
    assert [g[0].tokens for g in after] == [g[0].tokens for g in fresh]
    assert [g[0].tokens for g in after] != [g[0].tokens for g in before]


def test_a_cancelled_request_sends_no_more_events_and_the_others_are_untouched():
    model = tiny_model("llama")
    expected = [g[0].tokens for g in Engine(model, max_batch=6).generate(requests(Sampling()))]
    engine = Engine(model, max_batch=6)
    ids = [engine.add(request) for request in requests(Sampling())]
    tokens: dict[int, list[int]] = {i: [] for i in ids}
    while not engine.idle:
        for event in engine.step():
            tokens[event.request].append(event.token)
        if len(tokens[ids[2]]) == 3:
            engine.cancel(ids[2])
    assert len(tokens[ids[2]]) == 3
    for i in (0, 1, 3, 4, 5):
        assert tokens[ids[i]] == expected[i]


def test_what_is_streamed_is_what_is_generated_whatever_else_runs():
    model, asked = tiny_model("llama"), requests(Sampling())
    expected = [group[0].tokens for group in Engine(model, max_batch=6).generate(asked)]
    engine = Engine(model, max_batch=4)
    streams = [engine.stream(request) for request in asked[:3]]
    heard = [[next(stream) for stream in streams] for _ in range(2)]
    assert [group[0].tokens for group in engine.generate(asked[3:])] == expected[3:]
    for number, stream in enumerate(streams):
        tokens = [*(row[number] for row in heard), *stream]
        assert [token for token, _ in tokens] == expected[number]
        assert [reason for _, reason in tokens[:-1]] == [None] * (len(tokens) - 1)
        assert tokens[-1][1] == ("stop" if tokens[-1][0] in STOPS else "length")
    assert engine.idle
    assert engine._forward._cache.bytes == 0


def test_a_stream_that_is_closed_is_given_up_alone():
    model, asked = tiny_model("llama"), requests(Sampling())
    expected = Engine(model, max_batch=6).generate(asked)[1][0].tokens
    engine = Engine(model, max_batch=4)
    one, other = engine.stream(asked[0]), engine.stream(asked[1])
    heard = [next(one)[0], next(other)[0]]
    one.close()
    assert [row.prompt for row in engine._scheduler.rows] == [asked[1].tokens]
    assert [heard[1], *(token for token, _ in other)] == expected


def test_when_the_weights_move_what_runs_is_given_up_and_nothing_of_the_old_ones_is_left():
    model, asked = tiny_model("llama"), requests(Sampling())
    engine = Engine(model, max_batch=6)
    complete, begun = engine.stream(asked[0]), engine.stream(asked[1])
    first = next(complete)
    before = engine.generate(asked)
    assert engine._forward._linears.installed, "a stream keeps the session open"
    heard = [next(begun)]
    next(engine.stream(asked[2]))  # a step for both
    engine.refresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = engine.generate(asked)  # although the streams are still open
    assert [first[0], *(token for token, _ in complete)] == before[0][0].tokens, "all of it had been sampled"
    heard += begun
    assert 0 < len(heard) < 24
    assert [token for token, _ in heard] == before[1][0].tokens[: len(heard)]
    assert {reason for _, reason in heard} == {None}
    fresh = Engine(model, max_batch=6).generate(asked)
    assert [g[0].tokens for g in after] == [g[0].tokens for g in fresh] != [g[0].tokens for g in before]
    assert engine._forward._cache.bytes == 0


def test_a_step_that_fails_gives_everybody_up_and_the_next_ones_are_whole(monkeypatch):
    model, asked = tiny_model("llama"), requests(Sampling())
    expected = Engine(model, max_batch=6).generate(asked)
    engine = Engine(model, max_batch=6)
    one = engine.stream(asked[0])
    next(one)
    with monkeypatch.context() as patched:
        patched.setattr(engine._forward, "prefill", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            engine.generate(asked[1:])
    assert engine.idle
    assert list(one) == []
    assert [g[0].tokens for g in engine.generate(asked)] == [g[0].tokens for g in expected]
