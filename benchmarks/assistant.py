"""PPO on a real small assistant in bf16 and in fp32: does the gate on log-probs keep quiet, and what are its figures?

    python benchmarks/assistant.py MODEL [--keep DIR] [--dtypes bfloat16 float32]

MODEL is a directory with SmolLM2-135M-Instruct (`../shared/models/smollm2 MODEL`). Prompts are the first 400 short
instructions of alpaca-52k in `../shared/data`; the reward is `brief` below. Sixteen steps of 32 answers of at most 40
tokens, one epoch. The last line of output is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ALPACA = ROOT.parent / "shared" / "data" / "alpaca-52k" / "alpaca_data_00000-03251_en.json"
SETTINGS = (
    *("--rl.steps", "16", "--rl.rollouts", "32", "--rl.max_new_tokens", "40"),
    *("--rl.epochs", "1", "--rl.minibatches", "2", "--rl.eval_prompts", "64", "--data.held_out", "0.2"),
)


def brief(samples: list[Any]) -> list[float]:
    """A sentence that ends, in few words."""
    return [1.5 * s.answer.rstrip().endswith(".") - min(1.0, len(s.answer.split()) / 30) for s in samples]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("--keep", type=Path)
    arguments.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    given = arguments.parse_args()
    if not ALPACA.exists():
        sys.exit(f"{ALPACA}: not here, nothing to ask")
    keep = given.keep or Path(tempfile.mkdtemp())
    keep.mkdir(parents=True, exist_ok=True)
    rows = [row for row in json.loads(ALPACA.read_text(encoding="utf-8")) if not row["input"]]
    asked = [{"prompt": row["instruction"]} for row in rows if len(row["instruction"]) < 80][:400]
    (keep / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    figures = {dtype: run(given.model, keep, dtype) for dtype in given.dtypes}
    for dtype, values in figures.items():
        print(f"{dtype}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    print(json.dumps({"processor": platform.processor(), "cores": os.cpu_count(), **figures}))


def run(model: str, keep: Path, dtype: str) -> dict[str, Any]:
    directory = keep / dtype
    command = [
        sys.executable,
        "-m",
        "chatsmith",
        "rl",
        "--actor-model",
        model,
        "--data",
        f"rl:{keep / 'prompts.jsonl'}",
    ]
    command += ["--reward", f"{Path(__file__).resolve()}:brief", "--run-dir", str(directory), "--engine.dtype", dtype]
    started = time.perf_counter()
    exit_code = subprocess.run([*command, *SETTINGS], stdout=sys.stderr, check=False).returncode
    seconds = time.perf_counter() - started
    steps = [json.loads(line) for line in (directory / "rl" / "metrics.jsonl").read_text().splitlines()]
    entry = json.loads((directory / "manifest.json").read_text())["stages"].get("rl", {})

    def over_steps(name: str, how: Any = statistics.fmean) -> float | None:
        values = [step[name] for step in steps if name in step]
        return float(f"{how(values):.3g}") if values else None

    return {
        "exit": exit_code,
        "status": entry.get("status"),
        "verdict": entry.get("headline"),
        "steps": len(steps),
        "seconds": round(seconds),
        "noise": over_steps("rollout/logprob_noise"),
        "gap_mean": over_steps("rollout/logprob_gap_mean"),
        "gap_largest_mean": over_steps("rollout/logprob_gap_mean", max),
        "clip_fraction": over_steps("rl/clip_fraction"),
        "kl": over_steps("rl/kl", lambda values: values[-1]),
        "reward_first_last": [float(f"{steps[i]['rl/reward_mean']:.3g}") for i in (0, -1)] if steps else None,
    }


if __name__ == "__main__":
    main()
