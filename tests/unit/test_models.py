"""Loading, heads and averaging."""

import math

import pytest
import torch
from tiny import byte_tokenizer, tiny_model, tiny_reward_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatsmith.config import RlConfig
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.errors import ModelError
from chatsmith.models.ema import Ema, default_decay
from chatsmith.models.load import (
    load_actor,
    load_reward_model,
    load_tokenizer,
    new_reward_model,
    same_tokenizer,
    save_model,
)
from chatsmith.stages.loop import Trainable

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


def test_ema_follows_its_closed_form():
    model = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = Ema(model, decay=0.9)
    expected = 1.0
    for n in range(1, 40):
        value = math.sin(n)
        ema.update({"weight": torch.tensor([[value]], dtype=torch.float64)})
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
    assert ema.shadow["weight"].item() == pytest.approx(expected, abs=1e-5)
    assert ema.shadow["weight"].dtype == torch.float32


def test_ema_of_a_bf16_model_moves_where_bf16_would_not():
    model = torch.nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = Ema(model, decay=0.99)
    for _ in range(100):
        ema.update({"weight": torch.tensor([[1.001]])})  # the fp32 master: bf16 would round it to 1
    assert ema.shadow["weight"].item() > 1.0001
    assert torch.tensor(1.0, dtype=torch.bfloat16).lerp(torch.tensor(1.001, dtype=torch.bfloat16), 0.01).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_can_have_its_average_for_a_while(dtype):
    model = torch.nn.Linear(3, 3).to(dtype)
    trainable = Trainable(model, RlConfig(), lr=0.1)
    ema = Ema(model, decay=0.5)
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    trainable.backward(model(torch.ones(1, 3, dtype=dtype)).square().sum())
    trainable.step(1.0, trainable.gradient_norm())
    ema.update(trainable.weights)
    now, average = {n: p.clone() for n, p in model.named_parameters()}, {n: w.clone() for n, w in ema.shadow.items()}
    ema.swap(trainable.weights)
    trainable.refresh()
    assert all(torch.equal(p, average[n].to(dtype)) for n, p in model.named_parameters())
    assert not all(torch.equal(p, now[n]) for n, p in model.named_parameters())
    ema.swap(trainable.weights)
    trainable.refresh()
    assert all(torch.equal(p, now[n]) for n, p in model.named_parameters())
    assert all(torch.equal(w, average[n]) for n, w in ema.shadow.items())


def test_memory_of_the_average_is_at_most_a_fifth_of_a_short_run():
    assert default_decay(10_000) == 0.992
    for updates in (50, 200, 500):
        assert 1 / (1 - default_decay(updates)) <= updates / 5 + 1e-9


def test_a_new_reward_head_has_deviation_one_over_root_width(model_directory):
    path = str(model_directory("llama"))
    tokenizer = load_tokenizer(path)
    draws = torch.cat([new_reward_model(path, tokenizer, seed=s, **CPU).score.weight.flatten() for s in range(30)])
    assert draws.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.1)  # 960 draws: 2.3 % standard error
    one, two = (new_reward_model(path, tokenizer, seed=5, **CPU).score.weight for _ in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_dropout_is_off_in_what_is_loaded(model_directory):
    path = str(model_directory("opt"))
    tokenizer = load_tokenizer(path)
    for model in (load_actor(path, tokenizer, **CPU), new_reward_model(path, tokenizer, seed=0, **CPU)):
        assert not any(module.training for module in model.modules())
        ids = torch.tensor([[1, 5, 6]])
        torch.testing.assert_close(model(ids).logits, model(ids).logits, atol=0, rtol=0)
    noisy = load_actor(path, tokenizer, **CPU).train()
    assert not torch.allclose(noisy(ids).logits, noisy(ids).logits)


def test_a_saved_model_is_complete_for_plain_transformers(tmp_path):
    tokenizer = byte_tokenizer(pad_token=None)
    prepare_tokenizer(tokenizer, "test")
    model = tiny_model("llama")
    model.config.pad_token_id = tokenizer.pad_token_id
    save_model(model, tokenizer, tmp_path, stops=(2, 7), card="# A card")
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "README.md").read_text() == "# A card"
    loaded, reloaded = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == [2, 7]
    assert reloaded.chat_template == tokenizer.chat_template
    assert reloaded.pad_token_id == tokenizer.pad_token_id != reloaded.eos_token_id
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_embeddings_grow_for_an_added_pad_token_and_are_saved_so(tmp_path):
    model = tiny_model("llama")
    tokenizer = byte_tokenizer(pad_token=None)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(384 - len(tokenizer))])  # no row left for a pad token
    model.save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    tokenizer = load_tokenizer(str(tmp_path / "in"))
    loaded = load_actor(str(tmp_path / "in"), tokenizer, **CPU)
    assert loaded.get_input_embeddings().weight.shape[0] == len(tokenizer) == 385
    save_model(loaded, tokenizer, tmp_path / "out", stops=(2,), card="")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 385


def test_a_reward_model_loads_in_plain_transformers_with_the_same_scores(tmp_path):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    model = tiny_reward_model("opt-350m")
    model.config.pad_token_id, model.config.score_mean, model.config.score_std = 0, 1.5, 0.5
    save_model(model, tokenizer, tmp_path, stops=(2,), card="")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)
    ours = load_reward_model(str(tmp_path), tokenizer, **CPU)
    assert (ours.config.score_mean, ours.config.score_std) == (1.5, 0.5)
    assert ours.score.bias is None


def test_tokenizers_are_the_same_only_if_vocabulary_and_template_are():
    one, two = byte_tokenizer(), byte_tokenizer()
    assert same_tokenizer(one, two)
    two.add_tokens(["<new>"])
    assert not same_tokenizer(one, two)


@pytest.mark.parametrize(
    ("make", "load", "message"),
    [
        (lambda path: None, load_tokenizer, "no model here, config.json is missing"),
        (lambda path: tiny_model().save_pretrained(path), load_tokenizer, "no tokenizer here"),
        (
            lambda path: tiny_model().save_pretrained(path),
            lambda path: load_reward_model(path, byte_tokenizer(), **CPU),
            "not a reward model",
        ),
        (
            lambda path: (tiny_model().save_pretrained(path), (path / "model.safetensors").write_bytes(b"broken")),
            lambda path: load_actor(path, byte_tokenizer(), **CPU),
            "cannot be loaded",
        ),
    ],
)
def test_broken_model_directories_say_what_is_wrong(tmp_path, make, load, message):
    make(tmp_path)
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path))


class Payload:
    """Pickled code: runs when unpickled without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_a_bin_file_is_read_for_its_tensors_and_refused_if_it_holds_more(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), tmp_path / "pytorch_model.bin")
    loaded = load_actor(str(tmp_path), byte_tokenizer(), **CPU)
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight)
    torch.save({"x": Payload(tmp_path / "pwned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="holds more than tensors"):
        load_actor(str(tmp_path), byte_tokenizer(), **CPU)
    assert not (tmp_path / "pwned").exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)  # what a careless reader would have done
    assert (tmp_path / "pwned").exists()


def test_a_missing_model_directory_is_named():
    with pytest.raises(ModelError, match="no such directory"):
        load_tokenizer("./no/such/model")
