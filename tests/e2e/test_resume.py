"""A run that is killed at any moment and typed again ends with the very same weights."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatsmith.config import PRESETS

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
WEIGHTS = (
    "sft/model/model.safetensors",
    "reward/model/model.safetensors",
    "rl/actor/model.safetensors",
    "rl/critic/model.safetensors",
    "rl/critic/value_head.safetensors",
    "rl/ema/model.safetensors",
)


def hashes(run_dir: Path, names: Sequence[str] = WEIGHTS) -> dict[str, str]:
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in names}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_in(stage: str, arguments: list[str], run_dir: Path, number: int, rng: random.Random) -> int:
    """Start the command and send the signal after a few more steps of the stage; returns the exit code."""
    metrics = run_dir / stage / "metrics.jsonl"
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        started, wanted = lines(metrics), rng.randint(1, 3)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and lines(metrics) != started:
                wanted -= lines(metrics) > started
                started = lines(metrics)
            if wanted <= 0:
                time.sleep(rng.random() * 0.1)
                process.send_signal(number)
                break
            time.sleep(0.002)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert "Traceback" not in output, output
    return process.returncode


@pytest.fixture
def arguments(command, model_directory, pairs):
    def build(run_dir: Path, save_every_s: int = 0) -> list[str]:
        line = command(
            *("train", "--actor-model", model_directory("llama"), "--data", pairs, "--data", f"ptx:{pairs}"),
            *("--run-dir", run_dir, "--force", "--engine.save_every_s", save_every_s, "--sft.batch", "4"),
            *("--rl.ptx_coef", "0.5", "--rl.kl_target", "1.0"),
        )
        return [*line, "--rl.steps", "12"]

    return build


def test_sigkill_in_every_stage_leaves_the_final_weights_bit_identical(arguments, tmp_path):
    rng = random.Random(0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(arguments(whole), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    killed = [kill_in(stage, arguments(broken), broken, signal.SIGKILL, rng) for stage in ("sft", "reward", "rl", "rl")]
    assert killed == [-signal.SIGKILL] * 4
    subprocess.run(arguments(broken), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert hashes(broken) == hashes(whole)
    for stage in ("sft", "reward", "rl"):
        steps = [[json.loads(x)["step"] for x in (d / stage / "metrics.jsonl").open()] for d in (whole, broken)]
        assert steps[0] == steps[1] == list(range(len(steps[0])))
    assert len(set(hashes(whole).values())) == len(WEIGHTS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_a_checkpoint_and_says_how_to_continue(number, code, arguments, tmp_path):
    run_dir = tmp_path / "run"
    command = arguments(run_dir, save_every_s=3600)  # no checkpoint but the last one
    assert kill_in("sft", command, run_dir, number, random.Random(1)) == code
    stages = ("sft", "reward", "rl")  # on a fast machine the few steps of one may be over when the signal arrives
    assert sum((run_dir / stage / "checkpoint.pt").exists() for stage in stages) == 1
    assert json.loads((run_dir / "manifest.json").read_text())["status"] == "interrupted"


REWARD = "def vowels(samples):\n    return [min(1.0, sum(c in 'aeiou' for c in s.answer)) for s in samples]\n"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "dapo" else pytest.mark.sweep) for n in PRESETS if n != "ppo"]
)
def test_without_a_critic_too_a_killed_run_ends_with_the_very_same_weights(
    name, command, model_directory, pairs, tmp_path
):
    """Of DAPO also the order of prompts, which further ones in place of equal groups have moved on."""
    (tmp_path / "rewards.py").write_text(REWARD)

    def arguments(run_dir: Path) -> list[str]:
        line = command(
            *(
                "rl",
                "--actor-model",
                model_directory("llama"),
                "--data",
                f"rl:{pairs}",
                "--run-dir",
                run_dir,
                "--force",
            ),
            *("--reward", f"{tmp_path / 'rewards.py'}:vowels", "--engine.save_every_s", "0", "--rl.algorithm", name),
        )
        samples = [] if name == "reinforce++" else ["--rl.samples_per_prompt", "2"]
        return [*line, *samples, "--rl.steps", "8"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(arguments(whole), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert kill_in("rl", arguments(broken), broken, signal.SIGKILL, random.Random(0)) == -signal.SIGKILL
    subprocess.run(arguments(broken), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    names = ("rl/actor/model.safetensors", "rl/ema/model.safetensors")
    assert hashes(broken, names) == hashes(whole, names)
    steps = [[json.loads(line) for line in (run / "rl" / "metrics.jsonl").open()] for run in (whole, broken)]
    for one, two in zip(*steps, strict=True):
        for metric in ("step", "rl/reward_mean", "rl/kl_sequence", "rl/answer_length", "rl/refills", "rl/answers"):
            assert one.get(metric) == two.get(metric)
    if name == "dapo":
        assert sum(step["rl/refills"] for step in steps[0]) > 0
    other = [*arguments(whole), "--rl.algorithm", "ppo"]
    refused = subprocess.run(other, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert f"rl.algorithm ('{name}' there, 'ppo' here)" in said
    assert "--from rl" in said
