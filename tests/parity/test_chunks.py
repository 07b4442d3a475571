"""A prompt that is computed in chunks gets the tokens of one that is computed whole, and holds up nobody."""

import weakref

import pytest
import torch
import transformers
from decoders import FAMILIES, HEADS_OF_16, build
from tiny import tiny_model

import chatsmith.engine.forward
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.engine.forward import ChunkedPrompt
from chatsmith.errors import ModelError
from chatsmith.models import lm
from chatsmith.models.passes import Pass
from chatsmith.models.scoring import token_logprobs
from chatsmith.models.way import Way, note, way_of

CHUNK, WHOLE = 16, 10_000
GREEDY = Sampling(temperature=0.0)


def prompt(length):
    return tuple(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist())


def requests(sampling, lengths=(5, 41, 16, 33, 3, 17), seeds=(0,), limit=12):
    return [Request(prompt(n), limit, (2,), sampling, tuple(n + 100 * seed for seed in seeds)) for n in lengths]


def engine(model, tokens, rows=3):
    return Engine(model, max_batch=rows, max_prefill_tokens=tokens)


def run(model, tokens, asked, rows=3):
    """Tokens and log-probs of all completions."""
    completions = [c for group in engine(model, tokens, rows).generate(asked) for c in group]
    return [c.tokens for c in completions], torch.tensor([value for c in completions for value in c.logprobs])


def widths(model, seen):
    """Note the tokens [rows, length] that each forward pass computes."""
    return model.base_model.register_forward_pre_hook(
        lambda _, arguments, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )


def at_wrong_positions(monkeypatch):
    extend = ChunkedPrompt.extend

    def wrong(self, tokens):
        self.length = 0
        return extend(self, tokens)

    monkeypatch.setattr(chatsmith.engine.forward.ChunkedPrompt, "extend", wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logprobs_are_those_of_the_whole_prompt(family):
    model = build(family)
    (chunked, logprobs), (whole, expected) = (run(model, tokens, requests(GREEDY)) for tokens in (CHUNK, WHOLE))
    assert chunked == whole
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral, sliding window", "gpt2"])
def test_chunks_at_wrong_positions_would_give_other_tokens_and_are_found_when_the_model_is_tried(family, monkeypatch):
    model, tried = build(family), build(family)
    assert way_of(model).chunks
    right, _ = run(model, CHUNK, requests(GREEDY))
    at_wrong_positions(monkeypatch)
    assert run(model, CHUNK, requests(GREEDY))[0] != right
    monkeypatch.setattr(lm, "_decided", {})
    assert (way_of(tried).sampling, way_of(tried).chunks) == ("together", False)
    assert run(tried, CHUNK, requests(GREEDY))[0] == right, "prompts are computed whole"


def test_samples_share_the_chunks_and_depend_on_nothing_but_their_seed():
    model, asked = tiny_model("llama"), requests(Sampling(), lengths=(5, 60, 16), seeds=range(4))
    whole, _ = run(model, WHOLE, asked, rows=12)
    seen = []
    with widths(model, seen):
        chunked, _ = run(model, CHUNK, asked, rows=12)
    alone = [tokens for request in asked for tokens in run(model, CHUNK, [request], rows=4)[0]]
    assert chunked == whole == alone
    assert sum(length for _, length in seen if length > 1) == 5 + 60 + 16
    assert run(model, CHUNK, requests(Sampling(), (5, 60, 16), seeds=range(4, 8)), rows=12)[0] != whole


def test_no_pass_computes_more_than_a_chunk_and_the_rows_decode_between_two():
    model, seen = tiny_model("llama"), []
    asked = requests(GREEDY, lengths=(3, 40, 5), limit=6)
    chunked = engine(model, CHUNK, rows=2)
    short, long, late = "short", "long", "late"
    names = {chunked.add(request): name for request, name in zip(asked, (short, long, late), strict=True)}
    events = []
    with widths(model, seen), chunked.session():
        while not chunked.idle:
            events.append([names[event.request] for event in chunked.step()])
    # between the chunks of 16, 16 and 8 tokens the short one goes on; its sixth token frees a row for the late one
    first = [[short], [short], [], [short], [], [short], [long], [short, long], [short, long], [late]]
    assert events[:10] == first
    assert seen[:9] == [(1, 3), (1, 1), (1, 16), (1, 1), (1, 16), (1, 1), (1, 8), (2, 1), (2, 1)]
    assert max(rows * length for rows, length in seen) == CHUNK
    seen.clear()
    with widths(model, seen):
        run(model, WHOLE, asked, rows=2)
    assert max(rows * length for rows, length in seen) == 3 + 40


def begun(model, asked):
    """An engine with one row that runs and a prompt half of which is computed; what its first steps have said."""
    half = engine(model, CHUNK, rows=2)
    ids = [half.add(request) for request in asked]
    said = [event.token for _ in range(3) for event in half.step()]
    assert len(half._scheduler.rows) == len(half._scheduler.begun) == 1
    assert half._chunked.length == CHUNK
    return half, ids, said


def test_a_request_that_is_cancelled_between_two_chunks_is_freed_at_once_and_the_next_begins():
    model, asked = tiny_model("llama"), requests(GREEDY, lengths=(5, 41, 7))
    expected, _ = run(model, WHOLE, asked)
    half, ids, said = begun(model, asked)
    keys = [weakref.ref(layer.keys) for layer in half._chunked.cache.layers]
    half.cancel(ids[2])
    assert all(key() is not None for key in keys), "the cancelled one only waited"
    ids[2] = half.add(asked[2])
    half.cancel(ids[1])
    assert all(key() is None for key in keys)
    answers = {ids[0]: said, ids[1]: [], ids[2]: []}
    first = half.step()
    assert {event.request for event in first} == {ids[2]}
    while not half.idle:
        for event in first + half.step():
            answers[event.request].append(event.token)
        first = []
    assert list(answers.values()) == [expected[0], [], expected[2]]


def test_the_end_of_a_session_frees_a_prompt_that_has_begun():
    model, asked = tiny_model("llama"), requests(GREEDY, lengths=(5, 41))
    half, _, _ = begun(model, asked)
    keys = weakref.ref(half._chunked.cache.layers[0].keys)
    with half.session():
        assert keys() is not None
    assert keys() is None
    assert half.idle
    assert [group[0].tokens for group in half.generate(asked)] == run(model, WHOLE, asked)[0]


def test_a_long_prompt_joins_short_ones_within_the_memory(monkeypatch):
    model = tiny_model("llama")
    asked = [*requests(Sampling(), lengths=range(3, 9), limit=40), *requests(Sampling(), lengths=(150, 140, 130))]
    expected, _ = run(model, WHOLE, asked, rows=6)
    joined = engine(model, CHUNK, rows=6)
    cache = joined._forward._cache
    room = 3 * cache.rounded(162) * cache.bytes_per_token  # two long rows, and the longest prompt beside them
    monkeypatch.setattr(chatsmith.engine.forward, "free_bytes", lambda _, held: room)
    answers = {joined.add(request): [] for request in asked[:6]}
    while joined._scheduler.waiting:
        for event in joined.step():
            answers[event.request].append(event.token)
    assert (len(joined._scheduler.rows), cache.length) == (6, 64)
    answers |= {joined.add(request): [] for request in asked[6:]}
    with joined.session():
        while not joined.idle:
            for event in joined.step():
                answers[event.request].append(event.token)
            beside = joined._chunked.length if joined._chunked else 0
            assert cache.bytes + beside * cache.bytes_per_token <= room
            assert not joined._scheduler.begun or len(joined._scheduler.rows) < 2
    assert list(answers.values()) == expected


def long_rope():
    """A model whose rotations are others where a prompt is longer than 32 tokens."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32} | factors
    torch.manual_seed(0)
    settings = HEADS_OF_16 | {"rope_parameters": rope, "original_max_position_embeddings": 32}
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def test_a_row_whose_length_decides_on_its_rotations_is_not_computed_beside_others():
    model = long_rope()
    assert (way_of(model).limit, way_of(model).rows, way_of(model).sampling) == (32, "packed", "together")
    engine = Engine(model, max_batch=2)
    with pytest.raises(ModelError, match=r"41 tokens.*32"):
        engine.add(requests(GREEDY, lengths=(35,), limit=6)[0])
    rows = [list(range(3, 3 + n)) for n in (20, 90)]
    part = Pass.of(rows)
    mask = part.real.clone()
    mask[:, 0] = False

    def logprobs():
        return token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=1 << 30)[0]

    for row, found in zip(rows, logprobs(), strict=True):
        plain = model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        expected = plain.gather(1, torch.tensor(row)[1:, None])[:, 0]
        torch.testing.assert_close(found[1 : len(row)], expected, atol=1e-5, rtol=1e-5)
    right = logprobs()
    note(model, Way("packed"))
    assert (logprobs() - right)[0].abs().max() > 0.01, "beside a long row a short one is another one"
