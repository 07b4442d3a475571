"""Rollouts by chatsmith's engine, beside transformers' `generate` and `generate_batch` with the same model and work.

32 prompts of 32 to 128 tokens, answers of 16 to 128 tokens at temperature 1, lengths drawn once and the same for all.
Models are random: a Llama of 5.3 M and one of 27 M parameters, and OPT-125M's shape.

Equal: weights, prompts, temperature, one thread (or --threads), torch's version, dropout off.
Unequal:
- `generate` has one limit for a batch: all rows run to the longest answer, and only the wanted tokens are counted.
- `generate_batch` takes one limit as well; it gets the longest one, too.
- `generate` and `generate_batch` return tokens, the engine tokens and both log-probs.
- Packing the weights at the start of a rollout is part of the engine's time; compiling is not (it is printed), nor is
  making the engine's own attention with a C++ compiler, which happens once on a machine; `generate` has torch's.

Systems take turns in one process, one rollout each per round, after one of warm-up; with one thread, process CPU
seconds count. `generate_batch` takes so long that it gets one rollout without warm-up, and none of OPT, which gets one
round. The floor of a decoding step is the bare matrix products of all weights with 32 rows, by torch's own
`linear`; the step beside it is timed with 32 rows at 128 tokens.

    python benchmarks/rollout.py [--rounds 3] [--threads 1] [--models llama-5m,...] [--dtypes float32,bfloat16]

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.utils import logging

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.attention import attend_here

ROWS, PROMPT_LENGTHS, ANSWER_LENGTHS = 32, (32, 128), (16, 128)
STEP_TOKENS = 128  # of each row where a single step is timed


def build(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    no_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if name == "opt-125m":
        return OPTForCausalLM(OPTConfig(**no_ids)).to(dtype).eval()
    width, layers, vocabulary = {"llama-5m": (256, 4, 4096), "llama-27m": (512, 6, 8192)}[name]
    config = LlamaConfig(
        **no_ids,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def work(vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and lengths of their answers."""
    draw = random.Random(1)
    prompts = [[draw.randrange(vocabulary) for _ in range(draw.randint(*PROMPT_LENGTHS))] for _ in range(ROWS)]
    return prompts, [draw.randint(*ANSWER_LENGTHS) for _ in range(ROWS)]


def ours(model: Any, prompts: list[list[int]], limits: list[int], *, compiled: bool) -> Callable[[], int]:
    engine = Engine(model, max_batch=ROWS, compiled=compiled)
    requests = [
        Request(tuple(prompt), limit, (), Sampling(), (seed,))
        for seed, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    return lambda: sum(len(completions[0].tokens) for completions in engine.generate(requests))


def generate(model: Any, prompts: list[list[int]], limits: list[int], *, cache: str) -> Callable[[], int]:
    width, longest = max(map(len, prompts)), max(limits)
    tokens, mask = (
        torch.zeros(len(prompts), width, dtype=torch.long),
        torch.zeros(len(prompts), width, dtype=torch.long),
    )
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
    options = {"max_new_tokens": longest, "do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": None}

    def run() -> int:
        rows = model.generate(
            tokens, attention_mask=mask, cache_implementation=cache, disable_compile=True, use_cache=True, **options
        )
        assert rows.shape == (len(prompts), width + longest)
        return sum(limits)

    return run


def generate_batch(model: Any, prompts: list[list[int]], limits: list[int]) -> Callable[[], int]:
    config = GenerationConfig(max_new_tokens=max(limits), do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)

    def run() -> int:
        attend_here(model, here=False)  # it takes no other attention than transformers' own
        try:
            replies = model.generate_batch(
                prompts,
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(use_cuda_graph=False),
                progress_bar=False,
            )
        finally:
            attend_here(model, here=True)
        assert len(replies) == len(prompts) and all(
            len(reply.generated_tokens) == max(limits) for reply in replies.values()
        )
        return sum(limits)

    return run


def gemm_floor(model: Any) -> Callable[[], Any]:
    """All matrix products of one decoding step with `ROWS` rows, one after the other, and nothing else."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {width: torch.randn(ROWS, width, dtype=model.dtype) for width in {w.shape[1] for w in weights}}
    return lambda: [linear(inputs[weight.shape[1]], weight) for weight in weights]


@contextmanager
def one_step(model: Any, *, compiled: bool) -> Iterator[Callable[[], Any]]:
    """A decoding step of `ROWS` rows in the middle of a session."""
    engine = Engine(model, max_batch=ROWS, compiled=compiled)
    prompt = tuple(range(STEP_TOKENS - 32))
    for seed in range(ROWS):
        engine.add(Request(prompt, STEP_TOKENS, (), Sampling(), (seed,)))
    with engine.session():
        engine.step()
        yield engine.step
        assert not engine.idle


def seconds(run: Callable[[], Any]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def interleaved(systems: dict[str, Callable[[], Any]], rounds: int, unit: str) -> dict[str, float]:
    """Median seconds by system, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, run in systems.items():
            taken[name].append(seconds(run)[unit])
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(name: str, dtype: torch.dtype, rounds: int, unit: str) -> dict[str, Any]:
    model = build(name, dtype)
    prompts, limits = work(model.config.vocab_size)
    systems = {
        "eager": ours(model, prompts, limits, compiled=False),
        "compiled": ours(model, prompts, limits, compiled=True),
        "generate": generate(model, prompts, limits, cache="dynamic"),
        "generate_static": generate(model, prompts, limits, cache="static"),
    }
    warm_up = {system: seconds(run)["wall_s"] for system, run in systems.items()}
    small = name != "opt-125m"
    medians = interleaved(systems, rounds if small else 1, unit)
    if small:
        medians["generate_batch"] = seconds(generate_batch(model, prompts, limits))[unit]
    with torch.no_grad(), one_step(model, compiled=False) as eager, one_step(model, compiled=True) as compiled:
        steps = {"gemm_floor": gemm_floor(model), "eager_step": eager, "compiled_step": compiled}
        for run in steps.values():
            run()
        step_medians = interleaved(steps, 15, unit)
    for system, median in medians.items():
        rate, ratio, first = sum(limits) / median, medians["generate"] / median, warm_up.get(system, 0)
        print(f"  {system:16}{median:8.2f} s{rate:9.0f} tokens/s{ratio:7.2f}x generate   warm-up {first:.0f} s")
    floor = step_medians["gemm_floor"]
    for step, median in step_medians.items():
        print(f"  {step:16}{1000 * median:8.1f} ms{median / floor:8.2f}x the floor", flush=True)
    return {"seconds": medians, "steps": step_medians, "warm_up_s": warm_up, "tokens": sum(limits)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollouts beside transformers'; see the top of this file.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", default="llama-5m,llama-27m,opt-125m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 64
    unit = "cpu_s" if options.threads == 1 else "wall_s"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results: dict[str, Any] = {}
    for name in options.models.split(","):
        for dtype in options.dtypes.split(","):
            print(f"{name} {dtype}", flush=True)
            results[f"{name} {dtype}"] = measure(name, getattr(torch, dtype), options.rounds, unit)

    def ratio(key: str, system: str, over: str, part: str = "seconds") -> float | None:
        found = results.get(key, {}).get(part, {})
        return found[over] / found[system] if {system, over} <= found.keys() else None

    print(
        json.dumps(
            {
                "eager_over_generate": {key: ratio(key, "eager", "generate") for key in results},
                "compiled_over_generate": {key: ratio(key, "compiled", "generate") for key in results},
                "eager_over_generate_batch": {key: ratio(key, "eager", "generate_batch") for key in results},
                "opt_bf16_step_over_gemm_floor": ratio("opt-125m bfloat16", "gemm_floor", "compiled_step", "steps"),
                "ratios_are_of": unit,
                "results": results,
                "rounds": options.rounds,
                "threads": options.threads,
                "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
                "commit": commit,
                "versions": {library: version(library) for library in ("torch", "transformers")},
            }
        )
    )


if __name__ == "__main__":
    main()
