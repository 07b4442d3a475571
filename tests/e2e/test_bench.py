"""`chatsmith bench` as a user types it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chatsmith as package
from chatsmith.bench import measure

ROOT = Path(__file__).resolve().parents[2]

SMALL = ("--batch", "4", "--prompt-tokens", "8", "--answer-tokens", "6")


def shares(value, name=""):
    for key, part in value.items() if isinstance(value, dict) else ():
        yield from shares(part, key)
    if name.endswith("share"):
        yield name, value


def test_it_measures_a_model_and_says_what_to_type_next(chatsmith, model_directory):
    directory = model_directory("llama")
    result = chatsmith("bench", directory, *SMALL, small=False, NO_COLOR="1", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "4 answers of 6 tokens to prompts of 8" in result.stdout
    assert f"chatsmith train --actor-model {directory} " in result.stdout
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["model"] == str(directory)
    assert figures["decode"]["bytes_per_step"] == 123520 + 4 * (9 + 13) / 2 * 256  # weights, keys and values
    found = dict(shares(figures))
    assert len(found) == 6
    assert all(0 < share <= 1.5 for share in found.values()), found
    parts = [value for name, value in figures["step"].items() if name.endswith("_share") and name != "flops_share"]
    assert abs(sum(parts) - 1) < 1e-6


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_on_a_terminal_there_is_no_json_unless_it_is_asked_for(command, model_directory, options):
    end, terminal = os.openpty()
    arguments = command("bench", model_directory("llama"), *SMALL, *options, small=False)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    with subprocess.Popen(arguments, stdout=terminal, stderr=subprocess.STDOUT, env=environment) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while data := os.read(end, 4096):
                shown += data
        os.close(end)
    assert process.returncode == 0, shown
    lines = shown.decode().split("\r\n")
    assert lines[0] == "Loading torch and transformers ..."
    assert any("4 answers of 6 tokens" in line for line in lines)
    assert [line[:9] for line in lines if "{" in line] == ['{"model":'] * len(options)


def test_what_cannot_be_measured_is_refused_in_one_line(chatsmith, model_directory):
    for options, message in (
        (("absent/model",), "absent/model"),
        ((model_directory("llama"), "--prompt-tokens", "250"), "this model takes 256"),
        (("--answer-tokens", "1"), "--answer-tokens 1: it is 2 or more."),
    ):
        result = chatsmith("bench", *options, small=False)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.parametrize("family", ["opt-350m", "bloom"])
def test_families_with_a_shape_of_their_own_are_measured(family, model_directory):
    result = measure(package.load(model_directory(family), device="cpu"), package.Config(), 4, 3, 2)
    assert 0 < result["decode"]["bytes_share"] <= 1.5
    assert 0 < result["update"]["flops_share"] <= 1.5


def test_the_benchmark_of_a_gpu_runs_with_toy_sizes_and_outlives_a_system_that_fails():
    # continuous batching works in two sections of four turns each, and finds no memory for its cache in the third
    code = (
        "import runpy, sys, transformers; sys.argv = ['gpu.py', '--tiny'];"
        "real, blocks = transformers.ContinuousBatchingConfig, iter([16] * 8);"
        "transformers.ContinuousBatchingConfig = lambda **o: real(**o | {'num_blocks': next(blocks, 10**9)});"
        "runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {"hardware", "torch", "transformers", "commit"} <= set(json.loads(lines[0]))
    last = json.loads(lines[-1])
    assert set(last["failed"]) == {"rollout mixed continuous"}
    assert last["failed"]["rollout mixed continuous"].startswith("MemoryError: ")
    assert last["rollout mixed"]["over_continuous"] is None
    for section in ("rollout 2", "rollout 4"):
        assert last[section]["over_continuous"] > 0
        assert last[section]["over_generate"] > 0
    assert last["ppo 4"]["steps"] == 3
    assert all(row["measured"] > 0 for row in last["goals"])
