"""The road on real input: a pretrained Llama of 260,000 parameters, real preferences, real stories.

    python benchmarks/real.py [--keep DIR]

Needs `../shared` beside the checkout (stories260K, hh-rlhf harmless, tinystories), and says so where it is absent.

1. hh: SFT, reward model and PPO on hh-rlhf harmless pairs that fit 512 tokens, with tinystories mixed in.
2. stories: SFT on the next sentences of stories, then PPO with `examples/story_reward.py` as the only reward.

A failed gate is a result: the runs go on with --force. The last line of output is one JSON object.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"
HH = SHARED / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
STORIES = SHARED / "data" / "tinystories-1000" / "tinystories_1000.json"


def train(directory: Path, *options: object) -> dict[str, Any]:
    """Run `chatsmith train`; returns its manifest."""
    command = [sys.executable, "-m", "chatsmith", "train", "--run-dir", str(directory), *map(str, options)]
    print("$", " ".join(command[2:]), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)
    manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def hh(directory: Path) -> dict[str, Any]:
    return train(
        directory,
        *("--actor-model", MODEL, "--reward-model", MODEL, "--data", HH, f"ptx:{STORIES}", "--force"),
        *("--data.on_error", "skip", "--data.held_out", 0.1),
        *("--sft.lr", 2e-3, "--sft.epochs", 5, "--sft.batch", 16),
        *("--reward.lr", 5e-4, "--reward.epochs", 2, "--reward.batch", 16, "--reward.judge_fraction", 0),
        *("--rl.steps", 12, "--rl.rollouts", 64, "--rl.epochs", 2, "--rl.minibatches", 2, "--rl.max_new_tokens", 48),
        *("--rl.lr", 2e-4, "--rl.critic_lr", 5e-4, "--rl.truncated_score", "none", "--rl.ptx_coef", 0.2),
    )


def stories(directory: Path) -> dict[str, Any]:
    """Prompt: a story's first sentence. Demonstration: its next three."""
    rows = []
    for story in json.loads(STORIES.read_text(encoding="utf-8")):
        sentences = re.findall(r".+?[.!?]\"?(?=\s|$)", " ".join(story.split()))
        if len(sentences) >= 4:
            rows.append({"prompt": sentences[0], "answer": " ".join(sentences[1:4])})
    directory.parent.mkdir(parents=True, exist_ok=True)
    file = directory.parent / "stories.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return train(
        directory,
        *("--actor-model", MODEL, "--data", f"sft:{file}", f"rl:{file}", "--force"),
        *("--reward", f"{ROOT / 'examples' / 'story_reward.py'}:speech_and_end", "--data.held_out", 0.15),
        *("--sft.lr", 2e-3, "--sft.epochs", 6, "--sft.batch", 16),
        *("--rl.steps", 30, "--rl.rollouts", 128, "--rl.epochs", 2, "--rl.minibatches", 2, "--rl.max_new_tokens", 96),
        *("--rl.lr", 3e-4, "--rl.critic_lr", 1e-3, "--rl.eval_prompts", 128),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is absent: this benchmark needs its model and data sets.")
    result: dict[str, Any] = {"hardware": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as temporary:
        for name, job in (("hh", hh), ("stories", stories)):
            directory = (arguments.keep or Path(temporary)) / name
            manifest = job(directory)
            steps = [json.loads(line) for line in (directory / "rl" / "metrics.jsonl").open(encoding="utf-8")]
            result["commit"] = manifest["commit"]
            result[name] = manifest["summary"] | {
                "verdicts": {stage: [e["status"], e["verdict"]] for stage, e in manifest["stages"].items()},
                "final_judge": manifest["stages"]["rl"].get("final_judge"),
                "reward_curve": [round(step["rl/reward_mean"], 3) for step in steps],
                "kl_curve": [round(step["rl/kl"], 4) for step in steps],
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
