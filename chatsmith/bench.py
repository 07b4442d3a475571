"""`chatsmith bench`: what this machine can do, and how much of it generating and training get out of it.

Measured are generating, one step of PPO in its parts (random prompts, answers of a fixed length), and the machine's
limits: memory bandwidth and the rate of a large matrix product. What the work needs at least, in operations and bytes,
is counted from the shapes (`models/counts.py`); over time and limit that is the share of the limit. Nothing is saved.
"""

import math
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from chatsmith.assistant import Assistant, find, load
from chatsmith.config import Config, EngineConfig, RlConfig
from chatsmith.cpu.attention import compiled_attention
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import ConfigError
from chatsmith.models.counts import count, measure_bandwidth, measure_peak_flops, step_cost
from chatsmith.models.critic import Critic, critic_from_actor
from chatsmith.models.reward import Reward
from chatsmith.models.scoring import last_hidden_states, passes_of
from chatsmith.runs.runtime import choose_device, choose_dtype
from chatsmith.screen.console import Screen
from chatsmith.stages.policy import PolicyTrainer
from chatsmith.stages.rollout import Prompts
from chatsmith.types import Message, Record, Sample

ENOUGH_S = 10.0  # a measurement is repeated, at most twice, while all of it took less
ON_GPU, ON_CPU = (256, 256, 128), (64, 64, 32)  # prompt tokens, answer tokens, batch


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the device is done, and the result."""
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def time_generation(engine: Engine, requests: Sequence[Request]) -> dict[str, float]:
    """Seconds of the engine's steps in which sequences begin (`prefill`), and of all others (`decode`)."""
    seconds = {"prefill": 0.0, "decode": 0.0}
    begun: set[tuple[int, int]] = set()
    with engine.session():
        for request in requests:
            engine.add(request)
        while not engine.idle:
            took, events = timed(engine.step)
            before = len(begun)
            begun |= {(event.request, event.sample) for event in events}
            seconds["prefill" if len(begun) > before or not events else "decode"] += took
    return seconds


def time_step(trainer: PolicyTrainer, prompts: Prompts, rows: list[Sequence[int]]) -> dict[str, float]:
    """Seconds of one step of PPO by part. `rows` receives the rollouts' tokens, for a reward that reads tokens."""
    seconds = {}
    seconds["rollout"], rollouts = timed(lambda: trainer.roll_out(prompts, range(len(prompts.tokens))))
    rows[:] = rollouts.sequences
    seconds["score"], (scores, _) = timed(lambda: trainer.score(rollouts))
    seconds["estimate"], experience = timed(lambda: trainer.estimate(rollouts, scores))
    seconds["update"], _ = timed(lambda: trainer.update(experience))
    return seconds


def random_prompts(count: int, length: int, vocabulary: int) -> Prompts:
    """Prompts of random tokens; always the same ones."""
    draw = random.Random(1)
    tokens = tuple(tuple(draw.randrange(vocabulary) for _ in range(length)) for _ in range(count))
    return Prompts((Record(prompt=(Message("user", "random tokens"),)),) * count, tokens, 0)


@torch.no_grad()
def _score(scorer: Critic, rows: Sequence[Sequence[int]], max_tokens: int) -> list[float]:
    scores = [0.0] * len(rows)
    for part in passes_of(scorer.backbone, rows=rows, max_tokens=max_tokens, together=range(len(rows))):
        values = scorer.value(last_hidden_states(scorer.backbone, part))
        for index, value in zip(part.index, values.tolist(), strict=True):
            scores[index] = value
    return scores


def token_reward(scorer: Critic, rows: list[Sequence[int]], config: Config) -> Reward:
    """A reward model that scores the tokens in `rows` and not the answers' text: random tokens do not survive it.

    Args:
        scorer: what it values at the last token of a row is the row's score. There is one for every decoder.
    """

    def score(_: list[Sample]) -> list[float | None]:
        return [*_score(scorer, rows, config.engine.max_batch_tokens)]

    return Reward("random", score, 1.0)


def bench(location: str, *, prompt_tokens: int | None, answer_tokens: int | None, batch: int | None) -> dict[str, Any]:
    """Measure, print a table and what to type next, and return all figures; see docs/metrics.md.

    Args:
        location: a run, a model directory or a hub id; empty: a small random Llama.
        prompt_tokens, answer_tokens, batch: None: 256, 256, 128 on a GPU, else 64, 64, 32.
    Raises:
        ConfigError: if a number is out of range, or the model's context too short.
        ChatsmithError: if there is no such model, see `assistant.load`.
    """
    screen, config = Screen(), Config()
    defaults = ON_GPU if choose_device(config.engine).type == "cuda" else ON_CPU
    given = (prompt_tokens, answer_tokens, batch)
    prompt, answer, rows = (d if n is None else n for n, d in zip(given, defaults, strict=True))
    for name, number, least in (("prompt-tokens", prompt, 1), ("answer-tokens", answer, 2), ("batch", rows, 1)):
        if number < least:  # an answer's first token comes from the prefill: decoding begins with the second
            raise ConfigError(f"--{name} {number}: it is {least} or more.")
    policy = load(location) if location else _small_llama(config.engine)
    if prompt + answer > policy.max_tokens:
        raise ConfigError(
            f"--prompt-tokens {prompt} and --answer-tokens {answer} make {prompt + answer} tokens; this model takes "
            f"{policy.max_tokens}. Lower one of them."
        )
    screen.line(f"Measuring {location or 'a small random Llama'}; a large model or a large --batch takes minutes ...")
    result = measure(policy, config, prompt, answer, rows)
    _show(screen, result)
    if location:
        screen.line("Train it:")
        yours: list[str | Path] = [
            "--actor-model",
            Path(find(location).location),
            "--data",
            "FILE.jsonl",
            "--run-dir",
            "DIR",
        ]
        screen.command("chatsmith", "train", *yours)
    else:
        screen.line("Measure your own model:")
        screen.command("chatsmith", "bench", "MODEL")
    return {"model": location or None, **result}


def measure(policy: Assistant, config: Config, prompt: int, answer: int, batch: int) -> dict[str, Any]:
    """All figures of `bench`: rates are per second, `_share` is of the measured limit or of the step.

    `score`, `update` and `step` are None where there is no memory for training.

    Raises:
        ConfigError: if there is none for generating either.
    """
    model = policy.model
    prompts = random_prompts(batch, prompt, model.get_input_embeddings().weight.shape[0])
    config = _one_step(config, batch, answer)
    policy = replace(policy, stops=()).fitted(config.engine)  # its answers are of full length
    sampling = Sampling(config.rl.temperature, config.rl.top_k, config.rl.top_p)
    requests = [Request(tokens, answer, (), sampling, (seed,)) for seed, tokens in enumerate(prompts.tokens)]
    try:
        generation = _best(partial(time_generation, policy.engine, requests))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigError(
            f"{batch} answers of {answer} tokens to prompts of {prompt} do not fit into memory. Lower --batch."
        ) from error
    step = _time_training(policy, prompts, config)
    peak_bytes = _peak_bytes(model.device)  # the limits take memory, too
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # so that there is some
    peak, bandwidth = measure_peak_flops(model.device, model.dtype), measure_bandwidth(model.device)

    counts = count(model)
    prefill = counts.flops([prompt] * batch, scored=batch)
    own_logprobs = model.dtype != torch.float32
    asked, answered = [prompt] * batch, [answer] * batch
    # critic and reward model have the actor's body
    cost = step_cost(
        asked, answered, actor=counts, critic=counts, scorers=[counts], own_logprobs=own_logprobs, epochs=1
    )
    decode = cost.rollout - prefill
    decode_bytes = counts.decode_bytes(asked, answered)

    def rates(seconds: float, tokens: int, flops: int) -> dict[str, float]:
        rate = flops / seconds
        return {"seconds": seconds, "tokens_per_s": tokens / seconds, "flops_per_s": rate, "flops_share": rate / peak}

    result: dict[str, Any] = {
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "batch": batch,
        "prompt_tokens": prompt,
        "answer_tokens": answer,
        "limits": {"flops_per_s": peak, "bytes_per_s": bandwidth},
        "peak_bytes": peak_bytes,
        "prefill": rates(generation["prefill"], batch * prompt, prefill),
        "decode": rates(generation["decode"], batch * (answer - 1), decode)
        | {
            "bytes_per_step": decode_bytes / (answer - 1),
            "bytes_per_s": decode_bytes / generation["decode"],
            "bytes_share": decode_bytes / generation["decode"] / bandwidth,
        },
        **dict.fromkeys(("score", "update", "step")),
    }
    if step is not None:
        epochs, tokens = RlConfig().epochs, (prompt + answer) * batch
        seconds = step | {"update": epochs * step["update"]}
        total = sum(seconds.values())
        result["score"] = rates(step["score"], tokens, cost.score)
        result["update"] = rates(step["update"], tokens, cost.update)
        result["step"] = rates(total, tokens, cost.rollout + cost.score + epochs * cost.update)
        result["step"] |= {"epochs": epochs, "sequences_per_s": batch / total}
        result["step"] |= {f"{part}_share": taken / total for part, taken in seconds.items()}
    return result


def _time_training(policy: Assistant, prompts: Prompts, config: Config) -> dict[str, float] | None:
    """Seconds of a step of PPO by part; None if there is no memory for it."""
    rows: list[Sequence[int]] = []
    with suppress(MemoryError, torch.OutOfMemoryError):
        reward = token_reward(critic_from_actor(policy.model), rows, config)
        trainer = PolicyTrainer(policy, [reward], config, steps=1)
        return _best(lambda: time_step(trainer, prompts, rows))
    return None


def _one_step(config: Config, batch: int, answer: int) -> Config:
    """One epoch of the update: the others are alike and need not be waited for."""
    minibatches = math.gcd(batch, config.rl.minibatches)
    rl = {"rollouts": batch, "max_new_tokens": answer, "epochs": 1, "minibatches": minibatches}
    return config.model_copy(
        update={
            "rl": config.rl.model_copy(update=rl),
            "engine": config.engine.model_copy(update={"max_batch": batch}),
        }
    )


def _best(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The fastest of up to three measurements: the first may hold what happens only once."""
    started, taken = time.perf_counter(), [measure()]
    while len(taken) < 3 and time.perf_counter() - started < ENOUGH_S:
        taken.append(measure())
    return min(taken, key=lambda seconds: sum(seconds.values()))


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    kernel = "chatsmith's" if compiled_attention() else "torch's"
    return f"{platform.machine()} CPU ({capability}, {kernel} attention), {torch.get_num_threads()} threads"


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: that torch allocated on the GPU, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _small_llama(config: EngineConfig) -> Assistant:
    """4 million random weights in 4 layers of 256; its tokens are bytes."""
    from chatsmith.world.model import build_model, build_tokenizer

    device, positions = choose_device(config), 4096
    tokenizer = build_tokenizer([])
    model = build_model(tokenizer, 1, hidden=256, intermediate=1024, positions=positions, rope_theta=10000)
    return Assistant(model.to(device, choose_dtype(config, device)).eval(), tokenizer, (), positions)


def _show(screen: Screen, result: dict[str, Any]) -> None:
    limits, step = result["limits"], result["step"]
    screen.line(
        f"{result['parameters'] / 1e6:.4g} M parameters in {result['dtype']} on {result['device']}, which reaches "
        f"{_tera(limits['flops_per_s'])} TFLOP/s and {limits['bytes_per_s'] / 1e9:.4g} GB/s"
    )
    rows = []
    for name in filter(result.get, ("prefill", "decode", "score", "update", "step")):
        part = result[name]
        memory = [f"{part['bytes_per_s'] / 1e9:.4g}", f"{part['bytes_share']:.1%}"] if name == "decode" else ["", ""]
        speed = [f"{part['tokens_per_s']:.0f}", _tera(part["flops_per_s"]), f"{part['flops_share']:.1%}"]
        rows.append([name, f"{part['seconds']:.3g}", *speed, *memory])
    work = f"{result['batch']} answers of {result['answer_tokens']} tokens to prompts of {result['prompt_tokens']}"
    screen.table(work, ("", "seconds", "tokens/s", "TFLOP/s", "of limit", "GB/s", "of limit"), rows)
    memory_used = f"peak memory {result['peak_bytes'] / 2**30:.3g} GiB"
    if step is None:
        screen.line(f"  no memory for training this model with so many answers; {memory_used}", "yellow")
        return
    shares = ", ".join(f"{part} {step[f'{part}_share']:.0%}" for part in ("rollout", "score", "update"))
    screen.line(
        f"  a step of PPO with {step['epochs']} epochs: {step['sequences_per_s']:.3g} sequences/s; {shares}; "
        + memory_used
    )


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g}"
