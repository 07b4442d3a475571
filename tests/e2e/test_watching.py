"""A run that is watched: in a terminal, in a pipe, by a tracker."""

import os
import re
import subprocess
import sys
import threading

import pytest

PLAIN = {"CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


def in_a_terminal(command, cwd):
    """Run a command with a pseudo-terminal as its output; returns exit code and what it wrote."""
    environment = {key: value for key, value in os.environ.items() if key not in PLAIN}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    environment |= {"COLUMNS": "100", "LINES": "30"}
    master, slave = os.openpty()
    parts = []

    def read():
        try:
            while data := os.read(master, 65536):
                parts.append(data)
        except OSError:  # the other end was closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    done = subprocess.run(command, stdout=slave, stderr=slave, env=environment, cwd=cwd, timeout=300)
    os.close(slave)
    reader.join(timeout=10)
    return done.returncode, b"".join(parts).decode("utf-8")


def steps_of(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(directory / "trackers" / "tensorboard"))
    reader.Reload()
    return {name: [event.step for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_a_watched_run_shows_its_stages_and_a_tracker_follows_all_of_it(command, model_directory, pairs, tmp_path):
    pytest.importorskip("tensorboard")
    line = command("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", "run", "--force")
    first = subprocess.run(
        [*line, "--only", "sft"],
        cwd=tmp_path,
        env=os.environ | {"CI": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert first.returncode == 0, first.stderr
    assert "\x1b" not in first.stdout
    assert re.search(r"sft (\d+)/\1  loss \d", first.stdout)
    assert not (tmp_path / "run" / "trackers").exists()

    code, shown = in_a_terminal([*line, "--track", "tensorboard"], tmp_path)  # how to watch may change
    assert code == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"✓ SFT \w+   ● reward model   ○ PPO", text)
    assert re.search(r"accuracy +\d\.\d{3} → \d\.\d{3} +[▁-█]", text)
    assert re.search(r"✓ 3 steps in \d+ s", text)

    earlier = sum(1 for _ in (tmp_path / "run" / "sft" / "metrics.jsonl").open())
    rewards = sum(1 for _ in (tmp_path / "run" / "reward" / "metrics.jsonl").open())
    steps = steps_of(tmp_path / "run")
    assert steps["reward/loss"] == list(range(earlier, earlier + rewards))
    assert steps["rl/kl"] == list(range(earlier + rewards, earlier + rewards + 3))
    assert not any(name.startswith("sft/") for name in steps)


def test_a_missing_package_is_refused_before_anything_is_done(command, model_directory, pairs, tmp_path):
    hidden = "import sys; sys.modules['wandb'] = None; from chatsmith.cli import main; main()"
    arguments = command("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", "run")[3:]
    line = [sys.executable, "-c", hidden, *arguments, "--track", "wandb"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.startswith("ConfigError: trackers: the package wandb is not installed.")
    assert "pip install 'chatsmith[wandb]'" in result.stderr
    assert not (tmp_path / "run").exists()
