"""Small real models and tokenizers, built from config: nothing is downloaded."""

import functools
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / "shared"
STORIES = SHARED / "models" / "stories260K"
VOCABULARY = 384


def require(path: Path) -> Path:
    """`path`, or a skip with the reason where the real data and models do not stand beside the checkout."""
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def require_program(name: str) -> str:
    """Its path, or a skip with the reason where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on this machine")
    return path


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    """One token per byte; <s>, </s> and <pad> are special. `options` may leave some of them out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    chosen = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=core, **{k: v for k, v in chosen.items() if v is not None})


def _config(name: str) -> transformers.PretrainedConfig:
    size = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama_like = size | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    opt = size | {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.1,
    }
    return {
        "opt": lambda: transformers.OPTConfig(**opt, word_embed_proj_dim=32),
        "opt-350m": lambda: transformers.OPTConfig(**opt, word_embed_proj_dim=16, do_layer_norm_before=False),
        "bloom": lambda: transformers.BloomConfig(**size, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1),
        "gpt2": lambda: transformers.GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        "gpt-neox": lambda: transformers.GPTNeoXConfig(
            **size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
        "llama": lambda: transformers.LlamaConfig(**llama_like),
        "mistral": lambda: transformers.MistralConfig(**llama_like, sliding_window=12),
        "qwen3": lambda: transformers.Qwen3Config(**llama_like),
        "gemma": lambda: transformers.GemmaConfig(**llama_like),
    }[name]()


FAMILIES = ("opt", "opt-350m", "bloom", "gpt2", "gpt-neox", "llama", "mistral", "qwen3", "gemma")


def tiny_model(name: str = "llama", seed: int = 0, scale: float = 4.0):
    """A random two-layer model of the family; its weights are scaled so that greedy choices are no ties."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(_config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def tiny_reward_model(name: str = "llama", seed: int = 0):
    torch.manual_seed(seed)
    config = _config(name)
    config.num_labels = 1
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


@functools.cache
def saved_model(folder: Path, family: str) -> Path:
    path = folder / family
    tiny_model(family).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path
