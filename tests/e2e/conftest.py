"""A run small enough for a test: a tiny random model, pairs in which the better answer shouts."""

import json
import os
import random
import subprocess
import sys

import pytest

SMALL = [
    "--engine.device cpu",
    "--data.held_out 0.4",
    "--data.max_tokens 96",
    "--sft.batch 8",
    "--sft.epochs 2",
    "--sft.lr 1e-3",
    "--reward.batch 8",
    "--reward.epochs 2",
    "--reward.lr 2e-3",
    "--reward.judge_fraction 0",
    "--rl.rollouts 16",
    "--rl.minibatches 2",
    "--rl.epochs 2",
    "--rl.max_new_tokens 12",
    "--rl.steps 3",
    "--rl.lr 1e-4",
]


@pytest.fixture
def pairs(tmp_path):
    """A preference file of 120 records."""
    rng = random.Random(0)
    words = ["red", "blue", "cat", "dog", "sun", "sea", "ice", "tea"]
    rows = []
    for i in range(120):
        prompt = f"{rng.choice(words)} {rng.choice(words)} {i}"
        rows.append({"prompt": prompt, "chosen": f"{rng.choice(words)}!", "rejected": f"{rng.choice(words)}?"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(tmp_path):
    """Build the command line of a small run: command("train", ...) -> argument list."""

    def build(*arguments, small=True):
        options = [part for option in SMALL for part in option.split()] if small else []
        return [sys.executable, "-m", "chatsmith", *map(str, arguments), *options]

    return build


@pytest.fixture
def chatsmith(command, tmp_path):
    """Run chatsmith as a user would; returns the finished process."""

    def run(*arguments, small=True, cwd=None, **environment):
        return subprocess.run(
            command(*arguments, small=small),
            capture_output=True,
            text=True,
            cwd=cwd or tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
            timeout=300,
        )

    return run
