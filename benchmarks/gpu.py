"""Generation and PPO on one GPU, beside transformers: OPT-1.3B actor, OPT-350M critic and reward model.

    python benchmarks/gpu.py [--budget-seconds 450]     one GPU with 80 GB or more, bf16
    python benchmarks/gpu.py --tiny                     the same on a CPU with toy sizes: does it run?

Weights are random and made on the spot; how fast a policy runs does not depend on what it has learned. Prompts have
256 tokens and, as in DeepSpeed-Chat's benchmark, every answer has 256: no token ends one.

Generating: our engine, transformers' `generate`, and its continuous batching take turns on the same model object and
the same prompts, at batches of 32, 128 and 256, and once with answers of 32 to 256 tokens, where `generate` runs on to
the longest. Each has a first turn that does not count, unless it is very slow. From then on continuous batching keeps
its cache and graphs, and the start and end of its thread are not timed; ours sets up and frees its cache every time,
and that is timed. Medians.

PPO: rollout and update alternate on one model (one epoch, one optimizer step per batch). What the engine still holds
after a rollout is measured. A Llama of 7 B only generates: chatsmith has no LoRA, and its full training does not fit.

Floor: what decoding must read (weights, and keys and values before each token) over the bandwidth measured here.
Operations are those of the mathematics (chatsmith/models/counts.py); TFLOP/s are these over seconds, and MFU is their
share of what a large matrix product reaches here. A system that fails is null with its reason in `failed`, and the
rest goes on; so is what would begin after the budget. The last line is one JSON object.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    OPTConfig,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.utils import WorkloadHints

from chatsmith.assistant import Assistant
from chatsmith.bench import random_prompts, time_generation, time_step, timed, token_reward
from chatsmith.config import Config, EngineConfig
from chatsmith.engine.cache import free_bytes
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import ChatsmithError
from chatsmith.models.attention import attend_here
from chatsmith.models.counts import count, measure_bandwidth, measure_peak_flops, step_cost
from chatsmith.models.critic import critic_from_reward_model
from chatsmith.models.way import way_of
from chatsmith.runs.run import commit
from chatsmith.runs.runtime import choose_device
from chatsmith.stages.policy import PolicyTrainer
from chatsmith.world.model import build_tokenizer

if not hasattr(PagedAttentionCache, "get_seq_length"):
    # OPT asks every cache for its length, in transformers 5.24 this one too; it is given positions and needs no answer
    PagedAttentionCache.get_seq_length = lambda self: 0

PAD = 1
NO_STOP = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
OPT_1_3B = OPTConfig(
    hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32, word_embed_proj_dim=2048, **NO_STOP
)
OPT_350M = OPTConfig(  # the one OPT with narrower embeddings and the norm behind each block
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
    num_labels=1,
    **NO_STOP,
)
LLAMA_7B = LlamaConfig(**NO_STOP)  # its defaults are that shape
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 384, **NO_STOP}
TINY_OPT = OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **TINY)
TINY_OPT_350M = OPTConfig(ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False, num_labels=1, **TINY)
TINY_LLAMA = LlamaConfig(intermediate_size=64, **TINY)
ROUNDS = 3
HANGS_S = 120.0  # continuous batching, without a result
STEPS = 3  # of PPO, after one of warm-up


class Sizes:
    """What is measured: the full sizes, or toys."""

    def __init__(self, tiny: bool) -> None:
        self.actor, self.critic, self.llama = (
            (TINY_OPT, TINY_OPT_350M, TINY_LLAMA) if tiny else (OPT_1_3B, OPT_350M, LLAMA_7B)
        )
        self.prompt, self.answer, self.shortest = (8, 6, 2) if tiny else (256, 256, 32)
        self.batches = (2, 4) if tiny else (32, 128, 256)
        self.device = choose_device(EngineConfig(device="cpu" if tiny else "cuda"))  # all systems get its settings
        self.dtype = torch.float32 if tiny else torch.bfloat16

    def build(self, auto: Any, config: Any) -> Any:
        torch.manual_seed(1)
        with self.device:
            return auto.from_config(config, dtype=self.dtype).eval()


class Report:
    """Results by name, and why some are missing; every result is printed as it comes."""

    def __init__(self, budget_s: float) -> None:
        self.results: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.turns_s = budget_s / 10  # no further round of turns begins after this
        self._end = time.monotonic() + budget_s

    def section(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The result of `work`, or None if it failed or there is no time left to begin it."""
        if time.monotonic() > self._end:
            self.failed[name] = "no time left (--budget-seconds)"
            result = None
        else:
            result = self.attempt(name, work)
            free_memory()
        self.results[name] = result
        print(f"{name}: {self.failed[name] if result is None else json.dumps(rounded(result))}", flush=True)
        return result

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None with the reason in `failed`."""
        result = None
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if name in self.failed:
            free_memory()  # out here the error no longer holds on to what was in use
        return result


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def peak_memory(result: dict[str, Any]) -> Iterator[None]:
    """Notes the most memory that torch allocated inside, in GiB; null without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


Prompts = Sequence[tuple[int, ...]]
Turn = Callable[[], tuple[float, int]]  # seconds, and how many tokens were sampled


def ours(engine: Engine, requests: Sequence[Request]) -> tuple[float, int]:
    seconds, groups = timed(lambda: engine.generate(requests))
    return seconds, sum(len(completion.tokens) for group in groups for completion in group)


def generate(model: Any, prompts: Prompts, longest: int) -> tuple[float, int]:
    """transformers' `generate`: every row runs on to the longest answer."""
    tokens = torch.tensor(prompts, device=model.device)
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=longest, **NO_STOP)
    mask = torch.ones_like(tokens)
    seconds, output = timed(lambda: model.generate(tokens, attention_mask=mask, generation_config=config))
    return seconds, output[:, tokens.shape[1] :].numel()


@contextmanager
def attention_kept(model: Any) -> Iterator[None]:
    """Inside, attention is transformers' own: continuous batching takes no other. 5.17 leaves its own behind where that
    fails while it is set up."""
    was_here = way_of(model).attention == "here"
    attend_here(model, here=False)
    before = model.config._attn_implementation
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        attend_here(model, here=was_here)


def continuous(model: Any, prompts: Prompts, answers: Sequence[int]) -> tuple[float, int]:
    """transformers' continuous batching; its manager is made at the first call and kept for the next ones."""
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=max(answers), pad_token_id=PAD, eos_token_id=-1)
    # by default it takes nearly all memory; 0.3 of an H200 hold 256 x 512 tokens and leave the others theirs
    on_gpu = model.device.type == "cuda"
    memory = {"max_memory_percent": 0.3} if on_gpu else {"num_blocks": 16, "max_batch_tokens": 64}
    hints = WorkloadHints(len(prompts[0]), max(answers), len(prompts))
    with (
        attention_kept(model),
        model.continuous_batching_context_manager(
            generation_config=config,
            # no reuse of a prompt's keys and values from the turn before: in PPO the weights have changed since
            continuous_batching_config=ContinuousBatchingConfig(allow_block_sharing=False, **memory),
            persistent_manager=True,
            timeout=5,
            workload_hints=hints,
        ) as manager,
    ):
        started = time.perf_counter()
        for prompt, answer in zip(prompts, answers, strict=True):
            manager.add_request(list(prompt), max_new_tokens=answer)
        lengths: list[int] = []
        while len(lengths) < len(prompts):
            result = manager.get_result(timeout=1)
            if result is None and (not manager.is_running() or time.perf_counter() - started > HANGS_S):
                raise RuntimeError(f"ended or hung with {len(lengths)} of {len(prompts)} answers")
            if result is not None and result.error is not None:
                raise RuntimeError(result.error)
            if result is not None and result.is_finished():
                lengths.append(len(result.generated_tokens))
        return time.perf_counter() - started, sum(lengths)


def take_turns(report: Report, name: str, systems: dict[str, Turn], expected: dict[str, int]) -> dict[str, list[float]]:
    """Seconds of the systems that work; in every round each has one turn. A very slow one has its first turn only."""
    seconds: dict[str, list[float]] = {system: [] for system in systems}
    ended: set[str] = set()
    started = time.monotonic()
    for number in range(ROUNDS + 1):
        if number > 1 and time.monotonic() - started > report.turns_s:
            break
        for system in [system for system in systems if system not in ended]:
            turn = report.attempt(f"{name} {system}", systems[system])
            if turn is not None and turn[1] != expected[system]:
                report.failed[f"{name} {system}"] = f"sampled {turn[1]} tokens instead of {expected[system]}"
                turn = None
            if turn is None:
                seconds[system].clear()
                ended.add(system)
                continue
            slow = turn[0] > report.turns_s / 2
            if number or slow:  # else it was to warm up
                seconds[system].append(turn[0])
            if slow:
                ended.add(system)
    return {system: taken for system, taken in seconds.items() if taken}


class Machine:
    """The limits that shares refer to."""

    def __init__(self, sizes: Sizes) -> None:
        self.flops_per_s = measure_peak_flops(sizes.device, sizes.dtype)
        self.bytes_per_s = measure_bandwidth(sizes.device)


def phases(model: Any, engine: Engine, requests: list[Request], machine: Machine) -> dict[str, Any]:
    """One generation by prefill and decode, against the limits."""
    counts, result = count(model), {}
    prompts, answers = [len(r.tokens) for r in requests], [r.max_new_tokens for r in requests]
    with peak_memory(result):
        seconds = time_generation(engine, requests)
    prefill = counts.flops(prompts, scored=len(prompts))
    whole = counts.flops([p + a - 1 for p, a in zip(prompts, answers, strict=True)], scored=sum(answers))
    floor_s = counts.decode_bytes(prompts, answers) / machine.bytes_per_s
    return result | {
        "prefill_s": seconds["prefill"],
        "prefill_tokens_per_s": sum(prompts) / seconds["prefill"],
        "prefill_tflops": prefill / seconds["prefill"] / 1e12,
        "decode_s": seconds["decode"],
        "decode_tokens_per_s": (sum(answers) - len(answers)) / seconds["decode"],
        "decode_tflops": (whole - prefill) / seconds["decode"] / 1e12,
        "floor_s": floor_s,
        "floor_share": floor_s / seconds["decode"],
        "flops": whole,
    }


def requests_for(prompts: Prompts, answers: Sequence[int]) -> list[Request]:
    work = zip(prompts, answers, strict=True)
    return [Request(p, answer, (), Sampling(), (seed,)) for seed, (p, answer) in enumerate(work)]


def rollouts(
    report: Report, name: str, model: Any, prompts: Prompts, answers: Sequence[int], machine: Machine, *, alone: bool
) -> dict[str, Any]:
    """Our engine by phase, and beside transformers unless `alone`; rates count the answers' own tokens."""
    requests = requests_for(prompts, answers)
    engine = Engine(model, max_batch=len(prompts))
    systems: dict[str, Turn] = {
        "ours": partial(ours, engine, requests),
        "generate": partial(generate, model, prompts, max(answers)),
        "continuous": partial(continuous, model, prompts, answers),
    }
    expected = {"ours": sum(answers), "generate": len(answers) * max(answers), "continuous": sum(answers)}
    if alone:
        systems = {"ours": systems["ours"]}
    try:
        turns = take_turns(report, name, systems, expected)
    finally:
        model.destroy_cached_continuous_batching_manager()
    if "ours" not in turns:
        raise RuntimeError(report.failed[f"{name} ours"])
    seconds = {system: statistics.median(taken) for system, taken in turns.items()}
    mine = seconds["ours"]
    by_phase = report.attempt(f"{name} phases", partial(phases, model, engine, requests, machine)) or {}
    return {
        "batch": len(prompts),
        "tokens": sum(answers),
        "rounds": len(turns["ours"]),
        "seconds": seconds,
        "sequences_per_s": len(prompts) / mine,
        "tokens_per_s": {system: sum(answers) / taken for system, taken in seconds.items()},
        "over_generate": seconds["generate"] / mine if "generate" in seconds else None,
        "over_continuous": seconds["continuous"] / mine if "continuous" in seconds else None,
        **by_phase,
    }


def largest(model: Any, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    """The largest batch that our engine generates: from what its cache alone would leave room for, downwards."""
    row = count(model).cache_bytes * (sizes.prompt + sizes.answer)
    # what the engine will find free, less a little that kernels take at their first call
    free = int(0.98 * free_bytes(sizes.device, held=0)) if sizes.device.type == "cuda" else row * 2 * max(sizes.batches)
    batch, result = free // row, None
    while result is None:
        prompts = random_prompts(batch, sizes.prompt, model.config.vocab_size).tokens
        requests = requests_for(prompts, [sizes.answer] * batch)
        try:
            result = phases(model, Engine(model, max_batch=batch), requests, machine)
        except (MemoryError, torch.OutOfMemoryError, ChatsmithError):
            if batch <= max(sizes.batches):
                raise
        free_memory()
        if result is None:
            batch = max(max(sizes.batches), batch * 7 // 8)
    return {"batch": batch, "sequences_per_s": batch / (result["prefill_s"] + result["decode_s"]), **result}


def ppo_steps(actor: Any, sizes: Sizes, machine: Machine, batch: int) -> dict[str, Any]:
    """Rollout and update in turn, with all models of PPO in memory; medians over the steps after the first."""
    config = Config(
        rl={"rollouts": batch, "max_new_tokens": sizes.answer, "epochs": 1, "minibatches": 1},
        engine={"max_batch": batch},
    )
    reward_model = sizes.build(AutoModelForSequenceClassification, sizes.critic)
    tokenizer, tokens = build_tokenizer([]), []
    policy = Assistant(actor, tokenizer, (), sizes.prompt + sizes.answer)
    scorer, critic = (critic_from_reward_model(reward_model, mean=0.0, std=1.0) for _ in range(2))
    del reward_model
    trainer = PolicyTrainer(policy, [token_reward(scorer, tokens, config)], config, steps=STEPS + 1, critic=critic)
    prompts = random_prompts(batch, sizes.prompt, actor.config.vocab_size)
    result: dict[str, Any] = {"batch": batch}
    steps = []
    with peak_memory(result):
        for _ in range(STEPS + 1):
            steps.append(time_step(trainer, prompts, tokens))
    held = None
    if sizes.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        trainer.roll_out(prompts, range(batch))
        held = (torch.cuda.memory_allocated() - before) / 2**30
    seconds = {part: statistics.median(step[part] for step in steps[1:]) for part in steps[0]}
    total = sum(seconds.values())
    whole = [sizes.prompt + sizes.answer] * batch
    small = count(critic.backbone)
    cost = step_cost(
        [sizes.prompt] * batch,
        [sizes.answer] * batch,
        actor=count(actor),
        critic=small,
        scorers=[small],
        own_logprobs=sizes.dtype != torch.float32,
        epochs=1,
    )
    return result | {
        "steps": len(steps) - 1,
        "seconds": seconds,
        "first_step_s": sum(steps[0].values()),
        "sequences_per_s": batch / total,
        "tokens_per_s": sum(whole) / total,
        "rollout_tokens_per_s": sizes.answer * batch / seconds["rollout"],
        "update_tokens_per_s": sum(whole) / seconds["update"],
        "rollout_tflops": cost.rollout / seconds["rollout"] / 1e12,
        "score_tflops": cost.score / seconds["score"] / 1e12,
        "update_tflops": cost.update / seconds["update"] / 1e12,
        "update_mfu": cost.update / seconds["update"] / machine.flops_per_s,
        "effective_tflops": cost.total / total / 1e12,
        "held_after_rollout_gib": held,
    }


def opt(report: Report, sizes: Sizes, machine: Machine) -> None:
    """Everything about the OPT actor."""
    actor = sizes.build(AutoModelForCausalLM, sizes.actor)
    most = max(sizes.batches)

    def all_systems(name: str, answers: Sequence[int]) -> None:
        prompts = random_prompts(len(answers), sizes.prompt, actor.config.vocab_size).tokens
        report.section(name, partial(rollouts, report, name, actor, prompts, answers, machine, alone=False))

    for batch in sizes.batches:
        all_systems(f"rollout {batch}", [sizes.answer] * batch)
    report.section(f"ppo {most}", partial(ppo_steps, actor, sizes, machine, most))
    draw = random.Random(1)
    all_systems("rollout mixed", [draw.randint(sizes.shortest, sizes.answer) for _ in range(most)])
    report.section("rollout largest", partial(largest, actor, sizes, machine))


def llama(report: Report, sizes: Sizes, machine: Machine) -> dict[str, Any]:
    model = sizes.build(AutoModelForCausalLM, sizes.llama)
    answers = [sizes.answer] * sizes.batches[1]
    prompts = random_prompts(len(answers), sizes.prompt, model.config.vocab_size).tokens
    note = "generates only: chatsmith has no LoRA, and full training of 7 B does not fit"
    return {"note": note, **rollouts(report, "llama-7b", model, prompts, answers, machine, alone=True)}


def goals(results: dict[str, Any], batches: Sequence[int]) -> list[dict[str, Any]]:
    """What was measured beside what it should be; at batches where nothing was measured there is nothing to compare."""

    def least(name: str, *sections: str) -> float | None:
        found = [results[section].get(name) for section in sections if results[section]]
        return min((value for value in found if value is not None), default=None)

    few, most = f"rollout {min(batches)}", f"rollout {max(batches)}"
    every, ppo = [f"rollout {batch}" for batch in batches], f"ppo {max(batches)}"
    table = [
        (f"times generate, batch {min(batches)}", least("over_generate", few), 12),
        (f"times generate, batch {max(batches)}", least("over_generate", most), 4),
        ("times continuous batching, least of the batches", least("over_continuous", *every), 5),
        ("share of the decode floor, least of the batches", least("floor_share", *every), 0.6),
        ("MFU of the update", least("update_mfu", ppo), 0.45),
        ("sequences/s of whole steps of PPO", least("sequences_per_s", ppo), 37),
    ]
    return [dict(zip(("name", "measured", "goal"), row, strict=True)) for row in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=400, help="no section begins after this")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    options = parser.parse_args()
    sizes, report = Sizes(options.tiny), Report(options.budget_seconds)
    on_gpu = sizes.device.type == "cuda"
    facts = {
        "hardware": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }
    print(json.dumps(facts), flush=True)
    machine = Machine(sizes)
    limits = {"tflops": machine.flops_per_s / 1e12, "gb_per_s": machine.bytes_per_s / 1e9}
    print(f"limits: {json.dumps(rounded(limits))}", flush=True)
    opt(report, sizes, machine)
    free_memory()
    report.section("llama-7b", partial(llama, report, sizes, machine))
    reached = goals(report.results, sizes.batches)
    print(f"\n{'':50}{'measured':>10}{'goal':>6}")
    for row in reached:
        value, goal = row["measured"], row["goal"]
        shown, met = ("-", "") if value is None else (f"{value:.3g}", "met" if value >= goal else "missed")
        print(f"{row['name']:50}{shown:>10}{goal:>6}  {met}")
    sections = {**report.results, "failed": report.failed, "goals": reached}
    print(json.dumps(rounded(facts | {"limits": limits, **sections})))


if __name__ == "__main__":
    main()
