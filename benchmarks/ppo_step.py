"""Cost of one step of stage 3, beside steps of TRL's RLOO, GRPO and PPO (of TRL 1.12.0); memory of one update.

A step is what each trainer does per optimizer step, logging included: 32 answers of 64 tokens to prompts of 64 tokens,
scores by a reward model and a frozen reference, one update on all 32 rows. The policy is a random Llama of 5.2 M
parameters in fp32 (peers/material.py), and so are reward model and critic. Settings: peers/worker.py.

RLOO asks 16 prompts twice and TRL's PPO 32 prompts once; ours runs in either shape and is compared in theirs:
`chatsmith`, `chatsmith_forward`, `chatsmith_rloo`, `chatsmith_grpo` ask 16 prompts twice, `chatsmith_32` asks 32 once;
`_rloo` and `_grpo` have no critic, and stand beside TRL's RLOO and GRPO.

Equal: weights, reward model, tokenizer, prompts, temperature 1, all answers of 64 tokens (no token ends one), one
epoch, one mini-batch, KL 0.05 in the reward, AdamW, no gradient checkpointing, metrics at every step, torch's version.
Unequal:
- RLOO has no critic: no values, no second update.
- RLOO takes the old log-probs from a forward pass of their own, and so does `chatsmith_forward`; TRL's PPO and our
  defaults in fp32 (`chatsmith`, `chatsmith_32`) keep those of the rollout.
- Ours computes a prompt that is asked twice once per forward pass; RLOO computes it twice.
- TRL's PPO computes no gradient norm and clips no gradient; RLOO and ours do.
- Ours averages the actor's weights and measures the gap between rollout and training; the others do not.
- RLOO and ours turn answers into text and score the text; TRL's PPO scores tokens.
- RLOO and TRL's PPO use transformers' `generate`, ours its own engine.
- Ours multiplies with oneDNN where the processor is AMD's, the others with torch's default, MKL.

Each system is a long-lived process in its own environment; they take turns, one step per round, after one of warm-up.
With one thread ratios are of process CPU seconds, which a busy machine disturbs least; with more, of wall seconds.
Even CPU seconds double where other machines share the cores: compare inside a round, never between runs.

The last part is one policy update at a vocabulary of 50 272 (peers/update_memory.py), a process each: our log-probs, on
the answers' tokens and in chunks; peak memory against fp32 log-softmax of all positions, time against the answers'
tokens all at once. Medians of as many rounds.

    python benchmarks/ppo_step.py [--rounds 5] [--threads 1] [--skip-peers] [--environments DIR]

The last line is one JSON object; ratios are ours over theirs, smaller is better.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = ("chatsmith", "chatsmith_forward", "chatsmith_32", "chatsmith_rloo", "chatsmith_grpo")
# by system: the folder of its environment, and what pip installs there
PEERS = {"trl_rloo": ("trl_rloo", "trl"), "trl_grpo": ("trl_rloo", "trl"), "trl_ppo": ("trl_ppo", "trl==1.12.0")}
UPDATES = ("chunked", "packed", "full")
TOKENS_PER_STEP = 32 * (64 + 64)


def environment_python(directory: Path, requirement: str) -> str:
    """The interpreter of a virtual environment with `requirement` and our version of torch, made at first use."""
    python, done = directory / "bin" / "python", directory / "requirements.txt"
    wanted = [f"torch=={version('torch').split('+')[0]}", requirement]
    if not done.exists() or done.read_text().split() != wanted:
        print(f"Making {directory} with {' '.join(wanted)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text("\n".join(wanted) + "\n")
    return str(python)


def installed(python: str) -> dict[str, str]:
    """Versions of the libraries that matter, in the environment of an interpreter."""
    folders = [str(folder) for folder in Path(python).parent.parent.glob("lib/python*/site-packages")]
    names = ("chatsmith", "torch", "transformers", "trl")
    return {found.name: found.version for found in distributions(path=folders) if found.name in names}


class Worker:
    """A trainer in its own process that does one step per request."""

    def __init__(self, system: str, python: str, material: Path, variables: Mapping[str, str]) -> None:
        self._system, self._log = system, material / f"{system}.log"
        command = [python, str(HERE / "peers" / "worker.py"), system, str(material)]
        pipe = subprocess.PIPE
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=variables)

    def step(self) -> dict[str, float]:
        """`cpu_s` and `wall_s` of one optimisation step."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests and replies, "both are pipes"
        with suppress(BrokenPipeError):  # then there is no reply either
            print("step", file=requests, flush=True)
        reply = replies.readline()
        if not reply:
            raise SystemExit(f"{self._system} ended early:\n{self._log.read_text()[-3000:]}")
        seconds: dict[str, float] = json.loads(reply)
        return seconds

    def close(self) -> None:
        self._process.communicate()


Steps = dict[str, list[dict[str, float]]]  # `cpu_s` and `wall_s` of every step (or update), by system (or way)


def measure_steps(pythons: Mapping[str, str], rounds: int, variables: Mapping[str, str]) -> Steps:
    """Let the systems take turns, one step each per round, after a step of warm-up."""
    steps: Steps = {system: [] for system in pythons}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(HERE / "peers" / "material.py"), folder], env=variables, check=True)
        workers = {system: Worker(system, python, Path(folder), variables) for system, python in pythons.items()}
        for worker in workers.values():
            worker.step()
        for number in range(1, rounds + 1):
            for system, worker in workers.items():
                steps[system].append(worker.step())
            latest = (f"{system} {taken[-1]['cpu_s']:.2f}" for system, taken in steps.items())
            print(f"round {number} of {rounds}, cpu s:", *latest, flush=True)
        for worker in workers.values():
            worker.close()
    return steps


def measure_update(rounds: int, variables: Mapping[str, str]) -> Steps:
    """`mib` (peak resident memory over the loaded model), `cpu_s` and `wall_s` of single updates, by way."""
    updates: Steps = {way: [] for way in UPDATES}
    for _ in range(rounds):
        for way, measured in updates.items():
            # A child's ru_maxrss starts at its parent's: this file must stay small, so it does not import torch.
            command = [sys.executable, str(HERE / "peers" / "update_memory.py"), way]
            measured.append(json.loads(subprocess.check_output(command, env=variables)))
    return updates


def medians_of(measured: Steps, units: tuple[str, ...]) -> dict[str, dict[str, float]]:
    return {
        name: {unit: statistics.median(one[unit] for one in every) for unit in units}
        for name, every in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One PPO step beside TRL's; see the top of this file.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-peers", action="store_true", help="ours alone; ratios to TRL are null")
    parser.add_argument("--environments", type=Path, default=HERE / ".environments", metavar="DIR")
    options = parser.parse_args()

    pythons = dict.fromkeys(OURS, sys.executable)
    if not options.skip_peers:
        environments = options.environments.resolve()
        pythons |= {system: environment_python(environments / folder, peer) for system, (folder, peer) in PEERS.items()}
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    variables = {**os.environ, **threads, **quiet}
    load = os.getloadavg()[0]
    steps = measure_steps(pythons, options.rounds, variables)
    medians = medians_of(steps, ("cpu_s", "wall_s"))
    updates = medians_of(measure_update(options.rounds, variables), ("mib", "cpu_s", "wall_s"))

    unit = "cpu_s" if options.threads == 1 else "wall_s"

    def ratio(ours: str, theirs: str) -> float | None:
        return medians[ours][unit] / medians[theirs][unit] if theirs in medians else None

    print(f"\n{'system':18}{'cpu s':>8}{'wall s':>8}{'tokens/s':>10}  ({unit} counts)")
    for system, median in medians.items():
        rate = TOKENS_PER_STEP / median[unit]
        print(f"{system:18}{median['cpu_s']:8.2f}{median['wall_s']:8.2f}{rate:10.0f}")
    print("\nupdate at V = 50272:", *(f"{way} {u['mib']:.0f} MiB {u[unit]:.2f} s" for way, u in updates.items()), "\n")
    result: dict[str, Any] = {
        "ppo_over_trl_rloo": ratio("chatsmith", "trl_rloo"),
        "ppo_over_trl_rloo_training_forward": ratio("chatsmith_forward", "trl_rloo"),
        "rloo_over_trl_rloo": ratio("chatsmith_rloo", "trl_rloo"),
        "grpo_over_trl_grpo": ratio("chatsmith_grpo", "trl_grpo"),
        "ppo_over_trl_ppo": ratio("chatsmith_32", "trl_ppo"),
        "update_peak_memory_ratio_50k": updates["chunked"]["mib"] / updates["full"]["mib"],
        "update_time_ratio_50k": updates["chunked"][unit] / updates["packed"][unit],
        "ratios_are_of": unit,
        "medians": medians,
        "steps": steps,
        "updates_50k": updates,
        "rounds": options.rounds,
        "threads": options.threads,
        "load_before": load,
        "versions": {system: installed(python) for system, python in pythons.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
