"""Peak memory and time of one policy update, forward and backward, at a vocabulary of 50 272.

Usage: update_memory.py WAY. `chunked` is our way: the head on the answers' tokens only, in chunks above the default
byte budget. `packed` has no such budget: whole logits of the answers' tokens. `full` is the way of padded trainers:
fp32 log-softmax of all positions. Prints MiB over the loaded model, seconds, and the norm of the gradient, by which all
are seen to compute the same.
"""

import json
import resource
import sys
import time

import torch
from material import llama
from torch import Tensor
from transformers import LlamaForCausalLM

from chatsmith.algo.losses import policy_loss
from chatsmith.config import Config
from chatsmith.models.passes import Pass
from chatsmith.models.scoring import token_logprobs

ROWS, PROMPT_TOKENS, ANSWER_TOKENS, VOCABULARY = 32, 64, 64, 50_272


def full_logprobs(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Log-probs [B, T] of all tokens but the first, each at its own index."""
    logits = model(tokens, use_cache=False).logits.float()  # [B, T, V]
    return torch.log_softmax(logits, -1).gather(-1, tokens.roll(-1, 1)[..., None])[..., 0].roll(1, 1)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def main(way: str) -> None:
    torch.manual_seed(1)
    model, config = LlamaForCausalLM(llama(VOCABULARY)).eval(), Config()
    tokens = torch.randint(VOCABULARY, (ROWS, PROMPT_TOKENS + ANSWER_TOKENS))
    mask = (torch.arange(tokens.shape[1]) >= PROMPT_TOKENS).expand_as(tokens)
    advantages, settings = torch.randn(tokens.shape), Config().rl
    keys = ("ratio", "surrogate", "aggregate", "clip_low", "clip_high", "dual_clip", "cap")
    choices = {key: getattr(settings, key) for key in keys} | {"limit": ANSWER_TOKENS}
    counts = {"count": mask.sum(), "answers": mask.any(1).sum()}
    loaded, cpu_s, wall_s = peak_mib(), time.process_time(), time.perf_counter()
    if way == "full":
        logprobs = full_logprobs(model, tokens)
    else:
        budget = config.engine.max_logits_mib << 20 if way == "chunked" else 1 << 40
        logprobs, _ = token_logprobs(model, Pass.of(tokens.tolist()), mask, temperature=1.0, max_logits_bytes=budget)
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, mask, **counts, **choices)
    loss.backward()
    result = {
        "mib": peak_mib() - loaded,
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.perf_counter() - wall_s,
    }
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    print(json.dumps(result | {"gradient_norm": norm.item()}))


if __name__ == "__main__":
    main(sys.argv[1])
