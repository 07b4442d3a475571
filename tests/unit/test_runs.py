"""The table of runs, whatever lies in the directory."""

import fcntl
import json
import os
import re
import subprocess
import time

import pytest

import chatsmith.runs.run
from chatsmith.cli import app
from chatsmith.runs.listing import find_runs


@pytest.fixture
def listed(capsys, monkeypatch):
    """Type `chatsmith runs DIR`; returns what is printed."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(directory):
        app(args=["runs", str(directory)], standalone_mode=False)
        return capsys.readouterr().out

    return run


def make(directory, *, ago=0.0, **changes):
    directory.mkdir(parents=True)
    manifest = {"version": 1, "status": "finished", "recipe": "tiny-cpu", "stages": {}, "summary": {}} | changes
    path = directory / "manifest.json"
    path.write_text(json.dumps(manifest))
    os.utime(path, (time.time() - ago,) * 2)
    return directory


def git(directory, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", directory, *identity, *words], check=True, capture_output=True)


def test_a_commit_is_that_of_the_package_and_not_of_what_it_lies_in(tmp_path, monkeypatch):
    package = tmp_path / "site" / "chatsmith"
    (package / "runs").mkdir(parents=True)
    (package / "runs" / "run.py").touch()
    monkeypatch.setattr(chatsmith.runs.run, "__file__", str(package / "runs" / "run.py"))
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a stranger's, with settings that git would follow")
    assert chatsmith.runs.run.commit() is None
    git(tmp_path / "site", "init")
    git(tmp_path / "site", "add", ".")
    git(tmp_path / "site", "commit", "-m", "its own")
    assert re.fullmatch("[0-9a-f]{40}", chatsmith.runs.run.commit())


FIGURES = {
    "seconds": 288.4,
    "sft_loss_last": 0.3214,
    "reward_accuracy": 0.783,
    "reward_mean_first": -0.1,
    "reward_mean_last": 1.15,
    "gold_gain": 0.2471,
}


def test_a_run_has_its_status_age_duration_and_key_figures(listed, tmp_path):
    make(tmp_path / "first", ago=7300, summary=FIGURES)
    (row,) = [line for line in listed(tmp_path).splitlines() if "first" in line]
    assert row.split() == [
        *("first", "finished", "2", "h", "5", "min", "tiny-cpu"),
        *("0.321", "78%", "+1.25", "+0.247"),
    ]


def test_figures_that_no_run_has_get_no_column(listed, tmp_path):
    make(tmp_path / "a", summary={"seconds": 3.0, "sft_loss_last": 1.0})
    text = listed(tmp_path)
    assert "SFT loss" in text
    assert "gold" not in text


def test_the_run_that_changed_last_comes_first_also_from_a_group(listed, tmp_path):
    make(tmp_path / "old", ago=9000)
    make(tmp_path / "sweep" / "new")
    text = listed(tmp_path)
    assert text.index("sweep/new") < text.index("old")
    assert [entry.name for entry in find_runs(tmp_path / "old")] == ["old"]


def test_broken_and_foreign_directories_take_one_line_each(listed, tmp_path):
    make(tmp_path / "good")
    (tmp_path / "notes").mkdir()
    for name, text in {
        "half": '{"status": "fini',
        "list": "[1]",
        "other": '{"name": "an app", "version": 3}',
        "deep": "[" * 100_000,
        "binary": "\udcff",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    make(tmp_path / "odd", summary={"seconds": "long", "gold_gain": None}, recipe=["\x1b[31m"])
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    text = listed(tmp_path)
    assert "\x1b" not in text
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert "no run of chatsmith" in lines["notes"]
    for name in ("half", "deep", "binary"):
        assert "is broken" in lines[name], text
    for name in ("list", "other"):
        assert "not the manifest of a run" in lines[name]
    assert "not the manifest of a run (recipe: it should be a string)" in lines["odd"]
    assert "1 run in" in text


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_where_there_is_none_it_says_what_to_type(name, listed, tmp_path):
    (tmp_path / "empty").mkdir()
    text = listed(tmp_path / name)
    assert "No runs in" in text
    assert "  chatsmith train\n" in text


def test_a_run_that_says_running_but_is_held_by_nobody_was_killed(listed, tmp_path):
    make(tmp_path / "one", status="running")
    assert "killed" in listed(tmp_path)
    with (tmp_path / ".one.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "running" in listed(tmp_path)
    assert "killed" in listed(tmp_path)
