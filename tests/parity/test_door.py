"""A model is computed as itself or refused, whatever it is, and computed as was decided at the door."""

import copy

import pytest
import torch
import transformers
from decoders import EXPERTS, GROUPED, HEADS_OF_16, SIZE, plain_logits, spelled_out
from tiny import byte_tokenizer, tiny_model, tiny_reward_model

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import ModelError
from chatsmith.models import lm
from chatsmith.models.attention import _attention, unknown_option
from chatsmith.models.load import load_actor
from chatsmith.models.passes import Layout, Pass
from chatsmith.models.scoring import sequence_scores, token_logprobs
from chatsmith.models.twin import CONTEXT, VOCABULARY, WINDOW, layer_kinds, twin
from chatsmith.models.way import Way, note, way_of

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}
ROWS = [torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (90, 20, 41)]
NTK = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 32}
LONG |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
MAMBA = SIZE | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 4}

# Kinds of models that were computed as something else, and two that never were.
KINDS = {
    "a layer before the head": ("ModernBertDecoder", HEADS_OF_16 | {"local_attention": 8}),
    "capped logits": ("Gemma2", HEADS_OF_16 | {"sliding_window": 12, "final_logit_softcapping": 5.0}),
    "capped logits, set elsewhere": (
        "Gemma4Text",
        HEADS_OF_16 | {"sliding_window": 12, "final_logit_softcapping": 5.0},
    ),
    "a window in the mask alone": ("Phimoe", GROUPED | {"num_local_experts": 4, "sliding_window": 24}),
    "windows": ("Mistral", HEADS_OF_16 | {"sliding_window": 12}),
    "chunks": (
        "Llama4Text",
        HEADS_OF_16 | {"intermediate_size_mlp": 64, "attention_chunk_size": 16, "num_local_experts": 2},
    ),
    "rotations by length, dynamic": ("Llama", HEADS_OF_16 | {"rope_parameters": NTK, "max_position_embeddings": 48}),
    "rotations by length, two tables": (
        "Phi3",
        HEADS_OF_16 | {"rope_parameters": LONG, "original_max_position_embeddings": 32},
    ),
    "a state": ("Mamba", MAMBA),
    "a state, in chunks": ("Mamba2", MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}),
    "positions by query": (
        "GPTNeo",
        SIZE
        | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 12, "hidden_size": 64, "max_position_embeddings": 256},
    ),
    "a mask that must be given": ("Mpt", SIZE | {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "positions from the tokens": (
        "Roberta",
        SIZE
        | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 64, "max_position_embeddings": 256, "is_decoder": True},
    ),
    "sinks": ("GptOss", HEADS_OF_16 | {"num_local_experts": 4, "sliding_window": 12}),
    "biases": ("Bloom", SIZE | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "experts": ("Qwen3Moe", HEADS_OF_16 | EXPERTS),
    "nothing special": ("Llama", HEADS_OF_16),
}


def build(kind, scale=4.0):
    name, settings = KINDS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def logprobs(model, rows):
    part = Pass.of(rows)
    mask = part.real.clone()
    mask[:, 0] = False
    with torch.no_grad():
        found, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=4 * 384 * 30)
    return torch.cat([values[1 : len(row)] for values, row in zip(found, rows, strict=True)])


def plain_logprobs(model, rows):
    found = [plain_logits(model, row)[:-1].log_softmax(-1).gather(1, torch.tensor(row)[1:, None])[:, 0] for row in rows]
    return torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_answers_are_those_of_the_model_itself(kind):
    model = build(kind)
    torch.testing.assert_close(logprobs(model, ROWS), plain_logprobs(model, ROWS), atol=5e-5, rtol=1e-5)
    longest = way_of(model).limit or 100
    asked = [
        Request(tuple(range(3, 3 + n)), 8, (), Sampling(temperature=0.0), (n,)) for n in (5, min(40, longest - 8), 17)
    ]
    answers = [group[0].tokens for group in Engine(model, max_batch=2, max_prefill_tokens=16).generate(asked)]
    for request, answer in zip(asked, answers, strict=True):
        row = list(request.tokens)
        for token in answer:
            assert int(plain_logits(model, row)[-1].argmax()) == token
            row.append(token)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("windows", Way("packed")),
        ("rotations by length, dynamic", Way("packed")),
        ("rotations by length, two tables", Way("padded")),
        ("positions by query", Way("padded", sampling="together")),
    ],
)
def test_another_way_would_be_noticed(kind, wrong, monkeypatch):
    model = build(kind)
    right, answer = logprobs(model, ROWS), answers(model)
    note(model, wrong)
    if kind == "windows":
        monkeypatch.setattr("chatsmith.models.attention._causal", lambda q, k, v, scale, _: attention(q, k, v, scale))
    assert not torch.allclose(logprobs(model, ROWS), right, atol=1e-3) or answers(model) != answer


def attention(q, k, v, scale):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return found.transpose(1, 2)


def answers(model):
    asked = [Request(tuple(range(3, 3 + n)), 8, (), Sampling(temperature=0.0), (n,)) for n in (5, 20, 17)]
    return [group[0].tokens for group in Engine(model, max_batch=2).generate(asked)]


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra"])
def test_a_model_that_looks_ahead_is_refused(name):
    settings = SIZE | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**settings, max_position_embeddings=256, is_decoder=False)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match="looks ahead"):
        way_of(model)


def test_a_model_that_is_another_one_with_its_cache_is_computed_without():
    class Forgetful(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, cache=None, position_ids=None, **arguments):
            output = super().forward(input_ids=input_ids, cache=cache, position_ids=position_ids, **arguments)
            if cache is not None:
                output.logits = output.logits.roll(1, -1)
            return output

    torch.manual_seed(0)
    model = Forgetful(transformers.LlamaConfig(**HEADS_OF_16)).eval()
    assert (way_of(model).rows, way_of(model).sampling) == ("packed", "anew")


def test_a_model_whose_every_way_differs_is_refused_by_name():
    class Fickle(transformers.LlamaForCausalLM):
        """Another one whenever it is asked."""

        def forward(self, input_ids=None, cache=None, position_ids=None, **arguments):
            output = super().forward(input_ids=input_ids, cache=cache, position_ids=position_ids, **arguments)
            output.logits = output.logits + torch.randn_like(output.logits)
            return output

    model = Fickle(transformers.LlamaConfig(**HEADS_OF_16)).eval()
    with pytest.raises(ModelError, match=r"Fickle looks ahead|Fickle: rows computed here"):
        way_of(model)


def test_weights_that_are_no_numbers_are_refused_when_loaded(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no numbers"):
        load_actor(str(tmp_path), byte_tokenizer(), **CPU)


def test_scores_are_those_of_the_whole_reward_model():
    for family in ("llama", "opt-350m", "bloom", "gpt2"):
        model = tiny_reward_model(family)
        model.config.pad_token_id = 0
        with torch.no_grad():
            expected = [model(input_ids=torch.tensor([row])).logits[0, 0] for row in ROWS]
            torch.testing.assert_close(
                sequence_scores(model, Pass.of(ROWS)), torch.stack(expected), atol=1e-5, rtol=1e-5
            )


def test_copies_know_how_they_are_computed_and_the_same_configuration_is_tried_once(monkeypatch):
    model = build("positions by query")
    way = way_of(model)
    monkeypatch.setattr(lm, "_tried", lambda _: pytest.fail("it was tried before"))
    assert way_of(copy.deepcopy(model)) == way_of(build("positions by query")) == way
    assert way_of(model.base_model).rows == way.rows


@pytest.mark.parametrize(
    "kind", ["windows", "chunks", "capped logits, set elsewhere", "rotations by length, two tables"]
)
def test_a_twin_is_small_and_of_the_same_kinds_and_leaves_the_model_alone(kind):
    model = build(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = twin(model, long=True)
    assert found is not model
    assert set(layer_kinds(found)) == set(layer_kinds(model))
    text = found.config.get_text_config()
    assert text.vocab_size == VOCABULARY
    assert (getattr(text, "sliding_window", None) or WINDOW) <= WINDOW
    assert sum(p.numel() for p in found.parameters()) < 1_000_000
    assert plain_logits(found, ROWS[1]).std() > 3
    assert text.max_position_embeddings <= CONTEXT
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["nothing special", "positions by query", "biases"])
def test_where_no_twin_can_be_built_the_model_itself_is_tried(kind, monkeypatch):
    expected = way_of(build(kind))
    monkeypatch.setattr("chatsmith.models.twin.smallest", lambda *_, **__: None)
    monkeypatch.setattr(lm, "_decided", {})
    found = way_of(build(kind))
    assert (found.rows, found.head, found.sampling) == (expected.rows, expected.head, expected.sampling)


def test_where_no_twin_can_be_built_rows_are_no_longer_than_the_model_takes(monkeypatch):
    monkeypatch.setattr("chatsmith.models.twin.smallest", lambda *_, **__: None)
    torch.manual_seed(0)
    short = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=40)).eval()
    assert (way_of(short).rows, way_of(short).sampling) == ("packed", "together")


def test_what_attention_does_not_compute_it_refuses():
    usual = {"position_ids": torch.zeros(1), "use_cache": False, "dropout": 0.0, "is_causal": True, "softcap": None}
    assert unknown_option(usual) is None
    x = torch.zeros(1, 1, 1, 8)
    for options in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(4)}, {"dropout": 0.1},
        {"is_causal": False}, {"anything": 1}):  # fmt: skip
        assert unknown_option(options) == next(iter(options))
        with pytest.raises(ValueError, match=next(iter(options))):
            _attention(None, x, x, x, None, packed_layout=Layout.of([[1]]), **options)


def test_greedy_answers_spelled_out_depend_on_every_token_before():
    model = build("nothing special")
    assert spelled_out(model) != spelled_out(build("windows"))
