"""Most mistakes, and what only looks, need neither torch nor transformers, and so no seconds of a blank screen."""

import json
import os
import signal
import subprocess
import sys

import pytest

# the command as the user types it; its last line on standard error says what it has loaded
COMMAND = """
import sys
from chatsmith.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "datasets") if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture
def typed(tmp_path):
    """Type a command; returns exit code, standard output, and the lines of standard error without the last."""

    def run(*arguments, **environment):
        result = subprocess.run(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
            timeout=60,
        )
        *said, loaded = result.stderr.splitlines()
        assert loaded == "[]", result.stderr
        return result.returncode, result.stdout, said

    return run


@pytest.fixture
def desk(tmp_path, model_directory, pairs):
    """A folder with a model, good data, bad data, a recipe, and directories that are no runs of this configuration."""
    (tmp_path / "model").symlink_to(model_directory("llama"))
    (tmp_path / "broken.jsonl").write_text(pairs.read_text() + '{"prompt": "a", "chosen": "b"}\n')
    (tmp_path / "garbled.json").write_text('[{"prompt": "a", ')
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
    (tmp_path / "bad.toml").write_text("actor_model = \n")
    (tmp_path / "recipe.toml").write_text('actor_model = "model"\n[rl]\nkl_coeff = 1\n')
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"version": 1, "config": {')
    (tmp_path / "empty").mkdir()


MISTAKES = {
    "train --no-such-option": "--no-such-option",
    "train no-such-recipe": "no-such-recipe",
    "train bad.toml": "bad.toml",
    "train recipe.toml": "rl.kl_coef",
    "train --rl.kl_coeff 1": "rl.kl_coef",
    "train --rl.kl_coef x": "rl.kl_coef",
    "train --rl.rollouts 10 --rl.minibatches 3": "does not divide",
    "train --only sfd": "no stage",
    "train --actor-model model": "give --data",
    "train --actor-model model --dry-run": "give --data",
    "train --actor-model ./absent --data pairs.jsonl": "no such directory",
    "train --actor-model empty --data pairs.jsonl": "config.json is missing",
    "train --actor-model model --data absent.jsonl": "absent.jsonl",
    "train --actor-model model --data broken.jsonl": "broken.jsonl:121",
    "train --actor-model model --data broken.jsonl --dry-run": "broken.jsonl:121",
    "train --actor-model model --data garbled.json": "garbled.json",
    "train --actor-model model --data prompts.jsonl": "records to train on",
    "train --actor-model model --data pairs.jsonl --run-dir thesis": "is no run of chatsmith",
    "train --actor-model model --data pairs.jsonl --run-dir other": "not valid JSON",
    "train --actor-model model --data pairs.jsonl --reward a@heavy": "must be a number",
    "train --actor-model model --data pairs.jsonl --track wandb": "wandb",
    "sft --data pairs.jsonl": "no model to train",
    "rl --actor-model model --data pairs.jsonl": "rl has no reward",
    "data check --no-such-option": "--no-such-option",
    "data show pairs.jsonl": "--actor-model",
    "chat runs/absent": "no such directory",
    "chat model --temperature -1": "temperature",
    "bench runs/absent": "no such directory",
    "report thesis": "manifest.json",
    "collect self-instruct --seeds absent.jsonl --endpoint http://localhost:9 --model m": "absent.jsonl",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_refused_before_torch_is_loaded(typed, desk, command):
    code, out, said = typed(*command.split())
    assert code == 1, out + "\n".join(said)
    assert MISTAKES[command] in "\n".join(said)
    assert "Traceback" not in "\n".join(said)


@pytest.mark.parametrize(
    "command",
    ["--version", "--help", "train --help", "train --help-all", "recipes", "runs", "data check pairs.jsonl"],
)
def test_what_only_looks_does_not_load_torch(typed, desk, command):
    code, out, said = typed(*command.split())
    assert (code, said) == (0, [])
    assert out


def test_a_bad_record_is_a_finding_of_data_check_without_torch(typed, desk):
    code, out, _ = typed("data", "check", "broken.jsonl")
    assert code == 1
    assert "broken.jsonl:121" in out


def test_something_is_said_before_torch_is_loaded(command, desk, tmp_path):
    """The first lines come while importing torch would still fail."""
    (tmp_path / "torch.py").write_text("raise SystemExit(7)\n")
    arguments = command("train", "--actor-model", "model", "--data", "pairs.jsonl", "--dry-run")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, timeout=60
    )
    assert result.stdout.splitlines() == ["Reading the data ...", "Loading torch and transformers ..."]
    assert result.returncode == 7


def test_ctrl_c_while_torch_is_loading_ends_the_command_at_once(command, desk, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('slow', flush=True)\ntime.sleep(50)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = command("train", "--actor-model", "model", "--data", "pairs.jsonl", "--run-dir", "run")
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        while process.stdout.readline() != "slow\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
