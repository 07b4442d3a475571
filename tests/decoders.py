"""Tiny models of every decoder family that is promised, and what is measured on them: `docs/families.md`."""

from dataclasses import dataclass

import torch
import transformers

from chatsmith.data.batch import pad, pad_mask
from chatsmith.engine.engine import Engine, Request, Sampling, carries
from chatsmith.models.packing import packs
from chatsmith.models.scoring import token_logprobs

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
PROMPTS = [torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 11, 3, 8, 17)]


def build(family: str):
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
    with torch.no_grad():  # so that greedy choices are no ties
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def answers(model, temperature, *, together=None):
    engine = Engine(model, pad_id=0, max_batch=3, together=together)  # five prompts through three rows
    requests = [
        Request(tuple(prompt), 16, (2,), Sampling(temperature), (number,)) for number, prompt in enumerate(PROMPTS)
    ]
    return [group[0] for group in engine.generate(requests)]


@torch.no_grad()
def generated(model):
    """The greedy answers of transformers, one prompt at a time."""
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
def logprobs(model, temperature):
    """Log-probs of sampled answers: as the rollout has them, and as the training forward computes them, [N] each."""
    sampled = answers(model, temperature)
    rows = list(zip(PROMPTS, sampled, strict=True))
    tokens, lengths = pad([prompt + answer.tokens for prompt, answer in rows], pad_id=0)
    mask = pad_mask([[False] * len(prompt) + [True] * len(answer.tokens) for prompt, answer in rows])
    training, _ = token_logprobs(model, tokens, lengths, mask, temperature=temperature, max_logits_bytes=1 << 30)
    return torch.tensor([value for answer in sampled for value in answer.logprobs]), training[mask]


@dataclass(frozen=True)
class Measured:
    """One family's row of the table."""

    family: str
    architecture: str
    equal: bool  # greedy tokens to those of `generate`
    gap: float  # the largest between rollout and training log-probs, at temperatures 1 and 0.7, nats
    packed: bool
    together: bool


def measure(family: str) -> Measured:
    model = build(family)
    equal = [answer.tokens for answer in answers(model, 0.0)] == generated(model)
    gaps = [(rollout - training).abs().max() for rollout, training in (logprobs(model, t) for t in (1.0, 0.7))]
    return Measured(family, type(model).__name__, equal, max(gaps).item(), packs(model.base_model), carries(model))
