"""Tiny models of the decoder families that are promised and of every other causal language model of transformers, and
what is measured on them: `docs/families.md`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import ModelError
from chatsmith.models.passes import Pass, pad_mask
from chatsmith.models.scoring import token_logprobs
from chatsmith.models.twin import VOCABULARY, layer_kinds, setting, smallest
from chatsmith.models.way import Way, way_of

SIZE = {"vocab_size": 384, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTH = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ALL_HEADS = SIZE | WIDTH | {"max_position_embeddings": 256}
GROUPED = ALL_HEADS | {"num_key_value_heads": 2}
HEADS_OF_16 = GROUPED | {"head_dim": 16}
OLD = SIZE | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
OPT = SIZE | {"hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON = SIZE | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 16}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 12}

FAMILIES = {
    "llama": ("LlamaConfig", HEADS_OF_16),
    "mistral, sliding window": ("MistralConfig", HEADS_OF_16 | {"sliding_window": 12}),
    "qwen2": ("Qwen2Config", HEADS_OF_16),
    "qwen3": ("Qwen3Config", HEADS_OF_16),
    "gemma": ("GemmaConfig", HEADS_OF_16),
    "gemma2": ("Gemma2Config", HEADS_OF_16 | {"sliding_window": 12, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", HEADS_OF_16 | {"sliding_window": 12, "query_pre_attn_scalar": 16}),
    "phi": ("PhiConfig", ALL_HEADS),
    "phi3": ("Phi3Config", GROUPED),
    "gpt2": ("GPT2Config", OLD),
    "gpt_neox": ("GPTNeoXConfig", ALL_HEADS),
    "gpt_bigcode": ("GPTBigCodeConfig", OLD),
    "opt": ("OPTConfig", OPT | {"max_position_embeddings": 256, "word_embed_proj_dim": 64}),
    "opt-350m's shape": (
        "OPTConfig",
        OPT | {"max_position_embeddings": 256, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": ("BloomConfig", SIZE | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", FALCON | {"max_position_embeddings": 256, "alibi": False}),
    "falcon, alibi": ("FalconConfig", FALCON | {"alibi": True}),
    "gptj": ("GPTJConfig", OLD | {"rotary_dim": 4}),
    "codegen": ("CodeGenConfig", OLD | {"rotary_dim": 4}),
    "gpt_neo": ("GPTNeoConfig", SIZE | NEO | {"hidden_size": 64, "max_position_embeddings": 256}),
    "stablelm": ("StableLmConfig", ALL_HEADS | {"num_key_value_heads": 4}),
    "olmo": ("OlmoConfig", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
    "cohere": ("CohereConfig", GROUPED),
    "granite": ("GraniteConfig", GROUPED),
    "starcoder2": ("Starcoder2Config", GROUPED | {"sliding_window": 12}),
    "mixtral": ("MixtralConfig", HEADS_OF_16 | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeConfig", HEADS_OF_16 | EXPERTS),
    "gpt_oss": ("GptOssConfig", HEADS_OF_16 | {"num_local_experts": 4, "sliding_window": 12}),
    "smollm3": ("SmolLM3Config", GROUPED),
    "glm": ("GlmConfig", HEADS_OF_16),
    "glm4": ("Glm4Config", HEADS_OF_16),
    "persimmon": ("PersimmonConfig", ALL_HEADS),
    "nemotron": ("NemotronConfig", HEADS_OF_16),
    "xglm": (
        "XGLMConfig",
        SIZE | {"d_model": 64, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        ALL_HEADS | MLA | DEEPSEEK | {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_shared_experts": 1},
    ),
}
PROMPTS = [torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 11, 3, 8, 17)]

# Of other classes a model is built from their own defaults, made smaller; where these are no model's, from others.
DEFAULTS = {
    "BambaConfig": {"attn_layer_indices": [1]},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"] * 16},
    "MinistralConfig": {"head_dim": 128},
    "NemotronConfig": {"head_dim": 128, "num_key_value_heads": 8},
    "HunYuanDenseV1Config": {"head_dim": 128},
    "HunYuanMoEV1Config": {"head_dim": 128},
    "DeepseekV2Config": {"topk_method": "greedy", "n_group": 1, "topk_group": 1},
}


def _classes():
    """Class name -> (class, its configuration's class), of all decoders; the first configuration that names it."""
    found = {}
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        found.setdefault(MODEL_FOR_CAUSAL_LM_MAPPING[config].__name__, (MODEL_FOR_CAUSAL_LM_MAPPING[config], config))
    return dict(sorted(found.items()))


CLASSES = _classes()


def build(family: str):
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
    with torch.no_grad():  # so that greedy choices are no ties
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def build_class(name: str):
    """A small model of a class with large weights.

    Raises:
        Exception: if its defaults are no model's.
    """
    of, config_class = CLASSES[name]
    config = config_class(**DEFAULTS.get(config_class.__name__, {}))
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError("an encoder-decoder")
    if getattr(config, "is_decoder", True) is False:
        config.is_decoder = True
    if getattr(config, "text_config", None) is not None and of.config_class is type(config.get_text_config()):
        config = config.get_text_config()
    with torch.device("meta"):
        kinds = layer_kinds(of._from_config(config))
    model = smallest(of, config, kinds, torch.device("cpu"), long=False)
    if model is None:
        raise NotImplementedError("its defaults cannot be made small")
    return model


def of_this_commit(among, count: int) -> list[str]:
    """So many of these classes, other ones for each commit."""
    root = Path(__file__).resolve().parents[1]
    head = root / ".git" / "HEAD"
    commit = head.read_text() if head.is_file() else ""
    if commit.startswith("ref: ") and (root / ".git" / commit[5:].strip()).is_file():
        commit = (root / ".git" / commit[5:].strip()).read_text()
    return sorted(among, key=lambda name: hashlib.sha256((commit + name).encode()).hexdigest())[:count]


def small_vocabulary(model):
    return model.get_input_embeddings().weight.shape[0] == VOCABULARY


def stops(model):
    """What ends an answer; a pad token too: some models count positions by the tokens that are none."""
    pad_id = setting(model.config.get_text_config(), "pad_token_id") if small_vocabulary(model) else None
    return tuple({2} | ({pad_id} if isinstance(pad_id, int) else set()))


def answers(model, temperature, *, together=None):
    engine = Engine(model, max_batch=3, together=together)  # five prompts through three rows
    requests = [
        Request(tuple(prompt), 16, stops(model), Sampling(temperature), (number,))
        for number, prompt in enumerate(PROMPTS)
    ]
    return [group[0] for group in engine.generate(requests)]


@torch.no_grad()
def generated(model):
    """The greedy answers of transformers' `generate`, one prompt at a time."""
    found = []
    for prompt in PROMPTS:
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=[2],
            pad_token_id=0,
        )
        found.append(output[0, len(prompt) :].tolist())
    return found


@torch.no_grad()
def spelled_out(model):
    """The greedy answers, each token from a forward pass over all before it."""
    found = []
    for prompt in PROMPTS:
        row = list(prompt)
        while len(row) < len(prompt) + 16 and (row[-1] not in stops(model) or len(row) == len(prompt)):
            row.append(int(plain_logits(model, row)[-1].argmax()))
        found.append(row[len(prompt) :])
    return found


@torch.no_grad()
def plain_logits(model, row):
    mask = torch.ones(1, len(row), dtype=torch.long)
    return model(input_ids=torch.tensor([row]), attention_mask=mask, use_cache=False).logits[0]


@torch.no_grad()
def logprobs(model, temperature):
    """Log-probs of sampled answers, [N] each: as the rollout has them, as the training forward computes them, of plain
    forward passes over each row alone, and from one over padded rows."""
    sampled = answers(model, temperature)
    rows = list(zip(PROMPTS, sampled, strict=True))
    part = Pass.of([prompt + answer.tokens for prompt, answer in rows])
    mask = pad_mask([[False] * len(prompt) + [True] * len(answer.tokens) for prompt, answer in rows])
    training, _ = token_logprobs(model, part, mask, temperature=temperature, max_logits_bytes=1 << 30)
    mask[:, 0] = False
    padded = model(input_ids=part.tokens, attention_mask=part.real.long(), use_cache=False).logits
    return (
        torch.tensor([value for answer in sampled for value in answer.logprobs]),
        training[mask],
        torch.cat([_of_answer(plain_logits(model, p + a.tokens), p, a, temperature) for p, a in rows]),
        torch.cat([_of_answer(logits, p, a, temperature) for logits, (p, a) in zip(padded, rows, strict=True)]),
    )


def _of_answer(logits, prompt, answer, temperature):
    behind = logits[len(prompt) - 1 : len(prompt) - 1 + len(answer.tokens)] / temperature
    return behind.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]


def gap(model, temperature=1.0):
    """The largest difference in nats of rollout, training and plain forward passes; and of plain ones, padded."""
    rollout, training, plain, padded = logprobs(model, temperature)
    ours = max(
        float((one - two).abs().max()) for one, two in ((rollout, training), (rollout, plain), (training, plain))
    )
    return ours, float((padded - plain).abs().max())


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    name: str
    architecture: str
    equal: bool  # greedy tokens to those of plain forward passes
    gap: float  # with ordinary logits, at temperatures 1 and 0.7
    large_gap: float | None  # with large ones
    plain_gap: float  # of transformers' padded rows to each row alone, the largest of these
    way: Way


def measure(family: str) -> Measured:
    model = build(family)
    equal = [answer.tokens for answer in answers(model, 0.0)] == spelled_out(model)
    ours, plain = map(max, zip(gap(model), gap(model, 0.7), strict=True))
    return Measured(family, type(model).__name__, equal, ours, None, plain, way_of(model))


def measure_class(name: str) -> Measured | str:
    """What is measured, or why it is not."""
    try:
        model = build_class(name)
    except Exception as error:  # whatever a class's defaults lead to
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    try:
        way = way_of(model)
    except ModelError as error:
        return f"refused: {reason(str(error))}"
    equal = [answer.tokens for answer in answers(model, 0.0)] == spelled_out(model)
    ordinary, plain = map(max, zip(gap(model, 10.0), gap(model, 7.0), strict=True))
    large, plain_large = gap(model, 2.0)
    return Measured(name, name, equal, ordinary, large, max(plain, plain_large), way)


def reason(refusal: str) -> str:
    for words in ("looks ahead", "takes no cache", "answers generated here would not be its own", "rows computed here"):
        if words in refusal:
            return words
    return refusal
