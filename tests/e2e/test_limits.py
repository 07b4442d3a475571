"""What the machine and the shell may do to a command: one message and exit 1; a bug stays a bug."""

import json
import os
import shutil
import subprocess
import sys

import pytest


def refused(result, *parts, lines=1):
    assert result.returncode == 1, result.stdout + result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == lines, result.stderr


@pytest.fixture
def arguments(command, model_directory, pairs, tmp_path):
    return command(
        *("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", tmp_path / "run"),
        *("--only", "sft", "--force"),
    )


def start(arguments, shell="", **options):
    line = ["bash", "-c", f'{shell}exec "$@"', "bash", *arguments] if shell else arguments
    options = {"capture_output": True, "timeout": 200, "env": os.environ} | options
    result = subprocess.run(line, **options)
    result.stdout, result.stderr = (result.stdout or b"").decode(), (result.stderr or b"").decode()
    return result


def test_a_planted_bug_is_a_bug_with_a_traceback_and_leaves_no_lock(arguments, tmp_path):
    planted = "import chatsmith.stages.sft as s, chatsmith.cli as c\ns.train_sft = lambda *_, **__: 1 / 0\nc.main()"
    result = start([sys.executable, "-c", planted, *arguments[3:]])
    assert result.returncode == 3
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "This is a bug in chatsmith" in result.stderr
    assert not (tmp_path / ".run.lock").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_a_name_that_is_no_text_is_refused_and_works_by_a_link_or_from_within(arguments, pairs, tmp_path):
    name = b"caf\xe9"
    place = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.join(place, b"data"))
    for option in (b"--run-dir", b"--data", b"--actor-model", b"--rl.rewards"):
        refused(start([*arguments, option, place]), "ConfigError: ", "caf\\xe9", "not UTF-8 text", "ln -s")
    shutil.copy(pairs, os.path.join(place, b"data", name + b".jsonl"))
    (tmp_path / "linked").symlink_to(os.path.join(place, b"data"))
    linked = start([*arguments, "--data", tmp_path / "linked", "--run-dir", "run"], cwd=place)
    assert linked.returncode == 0, linked.stderr
    assert start([*arguments[:3], "report", "run"], cwd=place).returncode == 0


def test_where_it_can_print_nothing_it_says_so(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        for line in (arguments, [*arguments[:3], "recipes", "tiny-cpu"]):
            result = start(line, stdout=full, stderr=subprocess.PIPE, capture_output=False)
            refused(result, "standard output", "No space left on device")
    assert not (tmp_path / ".run.lock").exists()


def test_a_terminal_that_knows_no_chinese_and_one_that_is_closed_are_no_bugs(arguments):
    recipes = [*arguments[:3], "recipes", "tiny-cpu"]
    ascii_only = start(recipes, env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (ascii_only.returncode, ascii_only.stderr) == (0, "")
    closed = start(["bash", "-c", 'exec "$@" >&-', "bash", *recipes])
    assert (closed.returncode, closed.stderr) == (0, "")


def test_too_many_open_files_name_the_limit(arguments):
    refused(start(arguments, "ulimit -n 8; "), "Too many open files", "ulimit -n")


def test_a_directory_that_is_gone_is_named(arguments, tmp_path):
    refused(
        start(arguments, f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; "), "current directory"
    )


def test_something_else_in_the_place_of_the_lock_is_named(arguments, tmp_path):
    (tmp_path / ".run.lock").mkdir()
    refused(start(arguments), f"{tmp_path}/.run.lock: Is a directory", "move it away")


def test_without_a_compiler_engine_compile_is_refused_before_any_work(arguments, tmp_path):
    without = os.environ | {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = start([*arguments, "--engine.compile", "true"], env=without)
    refused(result, "ConfigError: engine.compile: torch cannot compile here", "leave out --engine.compile")
    assert not (tmp_path / "run").exists()
