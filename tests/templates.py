"""Ten shapes of chat templates that real models have, and tokenizers of four kinds, built here.

A template behaves as the model's own does, in the ways that matter here: the same control tokens, the same treatment of
system texts, think blocks, white space and the order of turns. Some control tokens are special, some are only added.
"""

import functools
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatsmith.data.chat import prepare_tokenizer

ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set content = m['content'] %}{% set reason = '' %}"
    "{% if '</think>' in content %}{% set reason = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + reason + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM3 = (  # a system text switches the think block, and is rewritten for it
    "{% set ns = namespace(thinks=true, system='You are a helpful assistant.') %}"
    "{% if messages[0]['role'] == 'system' %}{% set ns.system = messages[0]['content'] %}"
    "{% if '/no_think' in ns.system %}{% set ns.thinks = false %}{% endif %}"
    "{% set ns.system = ns.system.replace('/no_think', '').rstrip() %}{% endif %}"
    "{% set opening = '<|im_start|>assistant\\n' + ('' if ns.thinks else '<think>\\n\\n</think>\\n') %}"
    "{{ '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ opening + m['content'].lstrip('\\n') + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ opening }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}" + NO_SYSTEM + ALTERNATE + "{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (  # no generation prompt, and a space before the answer
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (  # forgets what was thought
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """`special` control tokens and others that are `added` without being called special; names for some of them."""

    template: str | None
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    takes_system: bool = True
    strips_right: bool = False


SHAPES = {
    "llama3": Shape(
        LLAMA3,
        "<|end_of_text|>",
        "<|begin_of_text|>",
        added=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>"),
    ),
    "qwen3": Shape(QWEN3, "<|im_end|>", special=("<|im_start|>",), added=("<think>", "</think>", "<tool_call>")),
    "smollm3": Shape(SMOLLM3, "<|im_end|>", special=("<|im_start|>",), added=("<think>", "</think>")),
    "gemma": Shape(
        GEMMA, "<eos>", "<bos>", added=("<start_of_turn>", "<end_of_turn>", "\n\n", "<h1>"), takes_system=False
    ),
    "phi3": Shape(
        PHI3,
        "<|endoftext|>",
        special=("<|end|>",),
        added=("<|system|>", "<|user|>", "<|assistant|>"),
        strips_right=True,
    ),
    "mistral": Shape(MISTRAL, "</s>", "<s>", added=("[INST]", "[/INST]", "[TOOL_CALLS]")),
    "deepseek-r1": Shape(
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        special=("<｜User｜>",),
        added=("<｜Assistant｜>", "<think>", "</think>"),
    ),
    "chatml": Shape(CHATML, "<|endoftext|>", added=("<|im_start|>", "<|im_end|>")),
    "zephyr": Shape(ZEPHYR, "</s>", "<s>", special=("<|pad|>",)),
    "plain": Shape(None, "</s>", "<s>"),
}

LINES = [
    "once upon a time there was a dog",
    "you are a helpful assistant",
    "what is 2 + 3? it is 5.",
    "user: system\n\n",
]
LETTERS = [chr(code) for code in range(33, 127)] + ["\n", "é", "你"]


def _bytes(tokens):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))
    return core


def _unigram(tokens, *, byte_fallback):
    """SentencePiece's way; control tokens are pieces, and the likeliest of all, as HF's conversions write them."""
    scored = {"<unk>": 0.0} | dict.fromkeys(tokens, 0.0)
    scored |= dict.fromkeys(("▁", "▁a", "▁is", "▁dog", "on", "ce"), -3.0) | dict.fromkeys(LETTERS, -6.0)
    if byte_fallback:
        scored |= {f"<0x{byte:02X}>": -30.0 for byte in range(256)}
    core = Tokenizer(models.Unigram(list(scored.items()), unk_id=0, byte_fallback=byte_fallback))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _words(tokens):
    pieces = ["<unk>", *tokens, "once", "is", "dog", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    core = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()  # deletes characters without a meaning, too
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


KINDS = {
    "bytes": _bytes,
    "pieces and bytes": functools.partial(_unigram, byte_fallback=True),
    "pieces": functools.partial(_unigram, byte_fallback=False),
    "words": _words,
}
LOSSLESS = ("bytes", "pieces and bytes")


@functools.cache
def tokenizer_of(shape_name, kind="bytes"):
    """A tokenizer of the kind with the control tokens and the template of the shape, prepared as every one is."""
    shape = SHAPES[shape_name]
    named = [token for token in (shape.bos, shape.eos) if token]
    core = KINDS[kind]([*named, *shape.special, *shape.added])
    if kind != "bytes":
        core.add_special_tokens(["<unk>"])
    options = {"rstrip": shape.strips_right, "normalized": False}
    core.add_special_tokens([AddedToken(token, special=True, **options) for token in (*named, *shape.special)])
    # as `tokenizer.add_tokens([...])` does
    core.add_tokens([AddedToken(token, special=False, rstrip=shape.strips_right) for token in shape.added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=shape.bos,
        eos_token=shape.eos,
        unk_token=None if kind == "bytes" else "<unk>",
    )
    tokenizer.chat_template = shape.template
    prepare_tokenizer(tokenizer, shape_name)
    return tokenizer
