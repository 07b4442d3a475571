"""What all systems share: model, reward model, tokenizer, prompts. `material.py DIR` writes them into a directory.

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
TEMPLATE = "{% for message in messages %}{{ message['content'] | trim + ' ' }}{% endfor %}"


def llama(vocabulary: int, **options: int) -> LlamaConfig:
    """4 layers of 256 with 4 heads x 64, MLP 1024, tied embeddings: 5.2 M parameters with 4096 tokens."""
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    no_ids = {"bos_token_id": None, "eos_token_id": None}  # LlamaConfig's own are 1 and 2
    return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape, **no_ids, **options)


def main(directory: Path) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    assert min(tokenizer.eos_token_id, tokenizer.pad_token_id) == VOCABULARY
    tokenizer.save_pretrained(directory)
    torch.manual_seed(1)
    LlamaForCausalLM(llama(VOCABULARY)).save_pretrained(directory / "policy")
    LlamaForSequenceClassification(llama(VOCABULARY, num_labels=1)).save_pretrained(directory / "reward")
    draw = random.Random(1)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    (directory / "prompts.json").write_text(json.dumps(prompts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
