"""What lies in a model directory is all of the model, and nothing else; what is wrong with it is said once, by name."""

import json
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, tiny_model, tiny_reward_model

from chatsmith.errors import ModelError
from chatsmith.models.load import (
    check_reward_base,
    load_actor,
    load_reward_model,
    load_stop_ids,
    load_tokenizer,
    new_reward_model,
)

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture
def directory(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def actor(path):
    return load_actor(str(path), byte_tokenizer(), **CPU)


def reward(path):
    return new_reward_model(str(path), byte_tokenizer(), seed=0, **CPU)


def with_weights(path, change, name="model.safetensors"):
    save_file(change(load_file(path / name)), path / name, metadata={"format": "pt"})


def with_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("load", [actor, reward])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "x."])
def test_names_behind_a_prefix_are_not_the_models_weights(directory, load, prefix):
    with_weights(directory, lambda weights: {prefix + name: value for name, value in weights.items()})
    with pytest.raises(ModelError, match=r"Missing: .* and \d+ more. Left over: .*saved from inside a wrapper"):
        load(directory)


@pytest.mark.parametrize("outer", ["module", "model_state_dict"])
def test_a_checkpoint_inside_another_mapping_is_refused(directory, outer):
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({outer: weights}, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"Missing: |cannot be loaded"):
        actor(directory)


@pytest.mark.parametrize("load", [actor, reward])
def test_a_layer_that_is_missing_or_too_many_is_named(directory, load):
    with_weights(directory, lambda weights: {name: x for name, x in weights.items() if "layers.1.mlp" not in name})
    with pytest.raises(ModelError, match=r"Missing: model\.layers\.1\.mlp\.down_proj\.weight"):
        load(directory)
    tiny_model("llama").save_pretrained(directory)
    with_config(directory, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"Left over: model\.layers\.1\."):
        load(directory)


def test_a_head_that_is_missing_is_named_and_one_that_is_tied_or_not_needed_is_not(directory, tmp_path):
    reward(directory)  # the head of a language model is not needed
    with_weights(directory, lambda weights: {name: x for name, x in weights.items() if name != "lm_head.weight"})
    with pytest.raises(ModelError, match=r"Missing: lm_head\.weight"):
        actor(directory)
    reward(directory)
    for family in ("opt", "gpt2", "gemma"):  # their heads are their embeddings
        tiny_model(family).save_pretrained(directory)
        actor(directory)


def test_a_reward_model_without_its_head_is_refused(directory):
    model = tiny_reward_model("llama")
    model.config.architectures = ["LlamaForSequenceClassification"]
    model.save_pretrained(directory)
    load_reward_model(str(directory), byte_tokenizer(), **CPU)
    with_weights(directory, lambda weights: {name: x for name, x in weights.items() if name != "score.weight"})
    with pytest.raises(ModelError, match=r"Missing: score\.weight"):
        load_reward_model(str(directory), byte_tokenizer(), **CPU)


def test_a_base_whose_score_head_is_another_one_is_refused_before_any_work(tmp_path):
    settings = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    transformers.ModernBertDecoderConfig(**settings, num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another --reward-model"):
        check_reward_base(str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "fp8"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "something new"},
    ],
)
def test_quantised_weights_are_refused_by_name(directory, settings):
    with_config(directory, quantization_config=settings)
    with pytest.raises(ModelError, match=f"quantised|cannot be loaded.*{settings['quant_method']}"):
        actor(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "64"},
        {"hidden_size": 0},
        {"num_hidden_layers": 1.5},
        {"rope_parameters": "default"},
        {"vocab_size": -3},
        {"hidden_act": "no such function"},
        {"architectures": "LlamaForCausalLM"},
        {"num_attention_heads": 0},
        {"model_type": ["llama"]},
        {"max_position_embeddings": "many"},
        {"layer_types": ["no such layer"] * 2},
    ],
    ids=str,
)
def test_a_configuration_of_the_wrong_type_is_a_model_error_or_none_at_all(directory, changes):
    with_config(directory, **changes)
    for load in (actor, reward, lambda path: check_reward_base(str(path))):
        try:
            load(directory)
        except ModelError as error:
            assert str(directory) in str(error)
            assert "\n" not in str(error)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")


def nested(path):
    header = b"[" * 5000 + b"]" * 5000
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", cut, "model.safetensors is cut off or damaged"),
        ("model.safetensors", pointer, "model.safetensors is a pointer of git-lfs"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "cannot be loaded"),
        ("model.safetensors", nested, "cannot be loaded"),
        ("config.json", pointer, "config.json is a pointer of git-lfs"),
        ("config.json", cut, "cannot be loaded"),
        ("config.json", lambda path: path.write_text("[" * 100_000), "cannot be loaded"),
        ("generation_config.json", cut, "cannot be loaded"),
        ("generation_config.json", pointer, "generation_config.json is a pointer of git-lfs"),
        ("tokenizer.json", cut, "cannot be loaded"),
        ("tokenizer.json", pointer, "tokenizer.json is a pointer of git-lfs"),
    ],
)
def test_damaged_files_are_named(directory, name, damage, words):
    damage(directory / name)
    with pytest.raises(ModelError, match=words) as error:
        load_stop_ids(str(directory), load_tokenizer(str(directory)))
        actor(directory)
    assert "\n" not in str(error.value)


def test_an_adapter_beside_the_weights_is_not_ignored(directory):
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json.*merge_and_unload"):
        actor(directory)
