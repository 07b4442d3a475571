"""Writes what all systems share into a directory: model, reward model, tokenizer and prompts. Usage: material.py DIR

The tokenizer's words are w0 ... w4095, one token each, so that text and tokens turn into each other without loss. The
ids of EOS and padding lie behind the model's vocabulary: nothing can sample them and no answer ends early.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

VOCABULARY, PROMPT_TOKENS, PROMPTS = 4096, 64, 128
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] | trim + ' ' }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def llama(vocabulary: int, **options: object) -> LlamaConfig:
    """256 wide, 4 layers of 4 heads x 64, MLP 1024, tied embeddings: 5.2 M parameters with 4096 tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        **options,
    )


def main(directory: Path) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    assert min(tokenizer.eos_token_id, tokenizer.pad_token_id) == VOCABULARY
    torch.manual_seed(1)
    policy = LlamaForCausalLM(llama(VOCABULARY, eos_token_id=tokenizer.eos_token_id))
    reward_model = LlamaForSequenceClassification(llama(VOCABULARY, eos_token_id=tokenizer.eos_token_id, num_labels=1))
    for name, model in (("policy", policy), ("reward", reward_model)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    draw = random.Random(1)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    (directory / "prompts.json").write_text(json.dumps(prompts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
