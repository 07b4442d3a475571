"""What is printed to be typed next: a shell takes it as it stands, and runs nothing else."""

import ast
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import chatsmith
from chatsmith.cli import split_arguments
from chatsmith.config import Config
from chatsmith.next_commands import next_commands
from chatsmith.report.reading import RecordedRun
from chatsmith.report.settings import code, command, repeated
from chatsmith.runs.manifest import Manifest
from chatsmith.runs.run import Run
from chatsmith.runs.runtime import StopSignals
from chatsmith.screen.console import Screen
from chatsmith.screen.text import shell

PACKAGE = Path(chatsmith.__file__).parent
NAMES = (
    st.lists(
        st.sampled_from(
            [
                "a",
                "-",
                "--x",
                " ",
                "'",
                '"',
                "\\",
                "$(touch ran)",
                "`touch ran`",
                "\n",
                "\ntouch ran\n",
                ";touch ran;",
                "\x1b[2J",
                "\r",
                "\u202e",
                "\udcff",
                "\x85",
                "~",
                "*",
                "!",
                "#",
                "&& touch ran",
                "| touch ran",
                "%",
                "é",
                "苹",
                "\t",
                "\x00",
                "\\x41",
            ]
        ),
        min_size=1,
        max_size=6,
    )
    .map(lambda parts: "".join(parts).replace("\x00", ""))
    .filter(lambda name: name not in ("", ".", ".."))
)


def run_by_bash(lines):
    """The arguments of each program that bash starts, where `chatsmith` and `cp` print them; the files it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        prints = r"""{ printf '%s\0' "$FUNCNAME" "$@"; printf '\1\0'; }"""
        script = f"chatsmith() {prints}\ncp() {prints}\n" + "\n".join(lines) + "\n"
        done = subprocess.run(
            ["bash", "-c", os.fsencode(script)],
            cwd=folder,
            capture_output=True,
            timeout=60,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert done.stderr == b""
        assert done.returncode == 0
        said = [command.split("\0")[:-1] for command in os.fsdecode(done.stdout).split("\1\0")[:-1]]
        return said, os.listdir(folder)


@settings(max_examples=8, deadline=None)
@given(st.lists(NAMES, min_size=40, max_size=40))
def test_every_word_arrives_as_it_is(names):
    lines = [shell(["chatsmith", name, Path(name), "--data", name]) for name in names]
    for line in lines:
        assert len(line.splitlines()) == 1
        assert line.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u202e\ud800-\udfff]", line)
    said, left = run_by_bash(lines)
    assert left == []
    for words, name in zip(said, names, strict=True):
        path = str(Path(name))
        assert words == ["chatsmith", name, f"./{path}" if path.startswith("-") else path, "--data", name]


def run_at(directory, *, stages, done):
    manifest = {
        "version": 1,
        "status": "finished",
        "recipe": "tiny-cpu",
        "config": Config().model_dump(mode="json"),
        "stages": {stage: {"report": {"steps": 22}} for stage in done},
    }
    return Run(
        Config(actor_model="m", stages=stages),
        directory,
        Screen(),
        StopSignals(),
        False,
        Manifest.model_validate(manifest),
    )


@settings(max_examples=8, deadline=None)
@given(st.lists(NAMES, min_size=10, max_size=10))
def test_what_a_run_of_any_name_prints_is_taken_as_meant(names):
    lines, expected = [], []
    for name in names:
        directory = Path(name.replace("/", ""))
        place = f"./{directory}" if str(directory).startswith("-") else str(directory)
        lines.append(
            next_commands(run_at(directory, stages=("sft", "reward", "rl"), done=("sft", "reward", "rl")))[0][1]
        )
        expected.append(["chatsmith", "chat", place])
        lines.append(next_commands(run_at(directory, stages=("sft", "reward"), done=("sft", "reward")))[0][1])
        options = ["--actor-model", f"{place}/sft/model", "--reward", f"{place}/reward/model"]
        expected.append(["chatsmith", "rl", *options, "--data", "FILE.jsonl", "--run-dir", "DIR"])
    said, left = run_by_bash(lines)
    assert left == []
    assert said == expected


def recorded_run(name, manifest):
    return RecordedRun(name, Path(f"/tmp/{name}"), "forced", Manifest.model_validate(manifest))


@settings(max_examples=8, deadline=None)
@given(st.lists(NAMES, min_size=10, max_size=10))
def test_what_a_report_prints_of_a_strangers_run_is_one_command(names):
    lines, recorded = [], []
    for name in names:
        config = Config().model_dump(mode="json") | {"actor_model": name, "stages": ["sft", name], name: name}
        config["data"] = config["data"] | {"sources": [name, {"source": name, "function": name}]}
        run = recorded_run(name.replace("/", ""), {"config": config, "recipe": name, "stages": {}})
        lines.append(command(run))
        assert code(run) == name  # what it would run is said beside it
        recorded.append(repeated(config, name))
    said, left = run_by_bash(lines)
    assert left == []
    assert [words[1 : 1 + len(expected)] for words, expected in zip(said, recorded, strict=True)] == recorded


@given(NAMES, NAMES)
def test_values_that_look_like_options_are_values(one, two):
    config = Config(actor_model=one, data={"sources": [one, two]}).model_dump(mode="json")
    overrides, rest = split_arguments(repeated(config, "defaults"))
    assert not overrides
    given_sources = [word.partition("=")[2] for word in rest if word.startswith("--data=")]
    given_sources += [value for option, value in itertools.pairwise(rest) if option == "--data"]
    assert given_sources == [one, two]


def test_no_command_is_put_together_by_hand():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                assert not re.search(
                    r"chatsmith (train|sft|reward|rl|chat|report|runs|bench|data|collect)\b[^`]*\0", text
                ), file
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("shlex.join", "shlex.quote"):
                assert file == PACKAGE / "screen" / "text.py", file
