"""Runs that a stranger made: whatever stands at a path of a run, nothing outside it is written, deleted or shown."""

import copy
import io
import itertools
import json
import os
import random
import shutil
import signal
import stat
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.assistant import find
from chatsmith.cli import main
from chatsmith.config import Config
from chatsmith.errors import ChatsmithError, RunError
from chatsmith.files.checkpoint import load_checkpoint, save_checkpoint
from chatsmith.report.page import write_report
from chatsmith.runs.listing import find_runs
from chatsmith.runs.manifest import read_manifest
from chatsmith.runs.run import check_directory
from chatsmith.runs.runtime import CHECKPOINT_FORMAT

SECRET = "hunter2-is-the-secret"
TINY = ["--sft.epochs 1", "--sft.batch 16", "--reward.epochs 1", "--reward.batch 16", "--rl.rollouts 8"]
TINY += ["--rl.epochs 1", "--rl.steps 2", "--rl.max_new_tokens 4"]
OPTIONS = ["--force", *(part for option in SMALL + TINY for part in option.split())]


class Typed:
    """Commands in this process, with what they print and a limit on their time."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments):
        """The exit code, and all that was printed."""
        self.monkeypatch.setattr(sys, "argv", ["chatsmith", *map(str, arguments)])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with in_time(), pytest.raises(SystemExit) as stopped:
            main()
        said = self.capsys.readouterr()
        return stopped.value.code or 0, said.out + said.err


@contextmanager
def in_time(seconds=30):
    """A pipe that nobody writes to is waited for without end."""

    def late(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def typed(capsys, monkeypatch):
    return Typed(capsys, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_directory):
    """A real run that is finished, and the command that made it."""
    folder = tmp_path_factory.mktemp("foreign")
    rng = random.Random(0)
    rows = [
        {"prompt": f"say {rng.randrange(99)} or {i}", "chosen": f"{i % 5}!", "rejected": f"{i % 5}?"}
        for i in range(100)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs").mkdir()
    command = ["train", "--actor-model", model_directory(), "--data", folder / "pairs.jsonl", *OPTIONS]
    command += ["--track", "tensorboard", "--run-dir", folder / "runs" / "run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["chatsmith", *map(str, command)])
        main()
    assert not stopped.value.code
    (folder / "runs" / "run" / "rl" / "checkpoint.pt").write_bytes(b"of a stage that was interrupted")
    return folder, command


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made[0] / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "run"


@pytest.fixture
def outside(tmp_path):
    """What a stranger would like to be read, written or deleted."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret", "config.json", "metrics.jsonl"):
        (folder / name).write_text(json.dumps({"step": 1, "prompt": SECRET, "warning": SECRET, "sft/loss": 2.0}) + "\n")
    return folder


def picture(folder):
    """All that can be seen of it."""
    return [
        (str(p), os.lstat(p).st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(folder.rglob("*"))
    ]


def paths_of(run):
    return [str(path.relative_to(run)) for path in sorted(run.rglob("*"))]


@contextmanager
def standing(run, name, plant):
    """Something else stands at a path of the run."""
    path, aside = run / name, run.parent.parent / "aside"
    path.rename(aside)
    try:
        plant(path)
        yield path
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        aside.rename(path)


def test_a_run_with_a_link_or_a_pipe_at_any_of_its_paths_is_refused_by_every_command(run, made, outside, typed):
    before = picture(outside)
    train = [*made[1][:-1], run]
    commands = [
        train,
        [*train, "--from", "rl"],
        [*train, "--dry-run"],
        ["report", run],
        ["report", run, run, "--output", run.parent.parent / "page.html"],
        ["chat", run],
        ["bench", run],
    ]
    plants = {
        "a link to a file": lambda path: path.symlink_to(outside / "secret"),
        "a link to a directory": lambda path: path.symlink_to(outside),
        "a link to nowhere": lambda path: path.symlink_to(outside / "absent"),
        "a pipe": os.mkfifo,
    }
    names = paths_of(run)
    assert {"manifest.json", "data.json", "report.html", "sft/model/model.safetensors", "rl/checkpoint.pt"} < set(names)
    turn = itertools.cycle(commands)  # all of them at the paths that matter most, else one after the other
    for name in names:
        for what, plant in plants.items():
            with standing(run, name, plant):
                for command in commands if name in ("manifest.json", "sft", "rl/metrics.jsonl") else [next(turn)]:
                    code, said = typed(*command)
                    assert code == 1, (name, what, command, said)
                    assert f"RunError: {run / name}" in said, (name, what, command, said)
                    assert len(said.split("RunError: ")[1].strip().splitlines()) == 1
                    assert SECRET not in said
                code, said = typed("runs", run.parent)
                assert (code, SECRET in said) == (0, False)
                assert "Remove it" in " ".join(said.split())
    assert picture(outside) == before
    assert not (run.parent.parent / "page.html").exists()
    assert paths_of(run) == names


@pytest.mark.parametrize("name", [".report.html.partial", ".manifest.json.partial", ".rl.partial", "sft/.model.old"])
def test_planted_temporaries_lead_nowhere(run, outside, typed, name):
    before = picture(outside)
    (run / name).symlink_to(outside / "secret")
    code, said = typed("report", run)
    assert code == 1 and f"RunError: {run / name}: a link" in said
    assert picture(outside) == before


def test_another_kind_of_file_or_one_without_end_is_one_message_or_harmless(run, made, typed):
    def sparse(path):
        with path.open("wb") as file:
            file.truncate(1 << 40)

    train = [*made[1][:-1], run]
    page = ["report", run, "--output", run.parent / "x.html"]
    for name in ("manifest.json", "data.json", "sft/metrics.jsonl", "rl/answers.jsonl", "rl/samples.jsonl"):
        for plant in (sparse, Path.mkdir):
            with standing(run, name, plant):
                for command in (page, ["runs", run.parent], train, ["chat", run]):
                    code, said = typed(*command)
                    assert code in (0, 1), (name, command, said)
                    assert code == 0 or (said.count("RunError: ") == 1 and str(run / name) in said)


def test_wandb_may_make_links_of_its_own_below_its_folder_and_nowhere_else(run, outside):
    (run / "trackers" / "wandb").mkdir()
    (run / "trackers" / "wandb" / "latest-run").symlink_to(outside)
    read_manifest(run)
    for place in ("trackers/latest", "trackers/tensorboard/latest"):
        (run / place).symlink_to(outside)
        with pytest.raises(RunError, match="a link"):
            read_manifest(run)
        (run / place).unlink()
    shutil.rmtree(run / "trackers" / "wandb")
    (run / "trackers" / "wandb").symlink_to(outside)
    with pytest.raises(RunError, match="wandb: a link"):
        read_manifest(run)


def test_a_run_that_is_reached_through_a_link_and_holds_files_of_its_user_is_as_good(run, tmp_path, typed):
    (tmp_path / "mine").symlink_to(run)
    (run / "notes").mkdir()
    (run / "notes" / "odd.txt").write_text("mine")
    code, said = typed("report", tmp_path / "mine")
    assert code == 0, said
    assert find(tmp_path / "mine").stage == "rl"
    assert [entry.problem for entry in find_runs(run.parent)] == [""]


def test_what_a_user_has_put_into_a_stage_stays_when_it_runs_anew(run, made, typed):
    train = [*made[1][:-1], run, "--from", "rl"]
    (run / "rl" / "mine.txt").write_text("mine")
    (run / "rl" / "actor" / "mine.gguf").write_text("mine")
    before = paths_of(run)
    code, said = typed(*train)
    assert code == 1 and f"RunError: {run / 'rl' / 'actor' / 'mine.gguf'}: not made by chatsmith" in said
    assert paths_of(run) == before
    (run / "rl" / "actor" / "mine.gguf").unlink()
    (run / "rl" / "checkpoint.pt").unlink()
    code, said = typed(*train)
    assert code == 0, said
    assert (run / "rl" / "mine.txt").read_text() == "mine"
    assert (run / "rl" / "actor" / "config.json").exists()


def test_a_checkpoint_is_never_unpacked_to_more_than_it_is(tmp_path):
    """Of plain members alone, as torch writes them; everything else is refused in little memory."""
    import torch

    save_checkpoint(tmp_path / "c.pt", {"x": torch.zeros(1 << 24, dtype=torch.uint8)})
    assert load_checkpoint(tmp_path / "c.pt")["x"].numel() == 1 << 24
    with zipfile.ZipFile(tmp_path / "c.pt") as plain:
        members = {info.filename: plain.read(info) for info in plain.infolist()}
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        for chosen in members:
            with zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
                for name, data in members.items():
                    packed.writestr(name, data, kind if name == chosen else zipfile.ZIP_STORED)
            with pytest.raises(RunError, match=r"packed\.pt: damaged"):
                load_checkpoint(tmp_path / "packed.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    for data in (b"x" + whole, whole[: len(whole) // 2], whole + whole, b""):
        (tmp_path / "other.pt").write_bytes(data)
        with pytest.raises(RunError, match="damaged"):
            load_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_that_does_not_fit_is_named_and_stays(run, made, typed):
    import torch

    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["stages"]["rl"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    path = run / "rl" / "checkpoint.pt"
    sound = {"format": CHECKPOINT_FORMAT, "step": 0, "seconds": 1.0}
    for state in (
        b"no checkpoint",
        [1],
        {},
        sound,
        sound | {"step": "0"},
        sound | {"variances": [0.1], "trainer": {"step": []}},
    ):
        if isinstance(state, bytes):
            path.write_bytes(state)
        else:
            torch.save(state, path)
        held = path.read_bytes()
        code, said = typed(*made[1][:-1], run, "--only", "rl")
        assert code == 1, said
        assert f"RunError: {path}: " in said and "--from" in said
        assert path.read_bytes() == held


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**4000)
    | st.just("../../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@pytest.fixture(scope="module")
def manifest_alone(made, tmp_path_factory):
    """A run without what takes long to draw."""
    folder = tmp_path_factory.mktemp("mutated") / "run"
    folder.mkdir()
    for name in ("manifest.json", "data.json"):
        shutil.copy(made[0] / "runs" / "run" / name, folder / name)
    (folder / "rl" / "actor").mkdir(parents=True)
    return folder, {name: json.loads((folder / name).read_text()) for name in ("manifest.json", "data.json")}


def mutated(folder, sound, name, data):
    """The run with any value at any place in one of its files."""
    value = copy.deepcopy(sound[name])
    place = data.draw(st.sampled_from(list(places(value))))
    inner = whole = {"": value}
    for key in ("", *place[:-1]) if place else ():
        inner = inner[key]
    inner[place[-1] if place else ""] = data.draw(JSON)
    for each, text in sound.items():
        (folder / each).write_text(json.dumps(whole[""] if each == name else text))


def one_error_or_none(*commands):
    for command in commands:
        try:
            command()
        except ChatsmithError as error:
            assert isinstance(error, RunError)
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_manifest_is_one_error_or_none(manifest_alone, data):
    folder, sound = manifest_alone
    mutated(folder, sound, "manifest.json", data)
    config = Config.model_validate(sound["manifest.json"]["config"])
    one_error_or_none(
        lambda: find_runs(folder.parent),
        lambda: check_directory(config, folder, None),
        lambda: check_directory(config, folder, "rl"),
        lambda: find(folder),
    )


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_what_a_report_reads_is_one_error_or_a_page(manifest_alone, data):
    folder, sound = manifest_alone
    mutated(folder, sound, data.draw(st.sampled_from(["manifest.json", "data.json"])), data)
    one_error_or_none(lambda: write_report(folder, folder.parent / "page.html"))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 5000, "NaN", "[]", '"x"', "{", "", '{"stages": "abc"}', "\0" * 9]
)
def test_a_manifest_that_is_none_is_one_error_everywhere(tmp_path, typed, text):
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(text)
    for command in (["report", run], ["chat", run], ["bench", run], ["train", "--run-dir", run]):
        code, said = typed(*command)
        assert code == 1 and said.count("RunError: ") == 1, (command, said)
        assert str(run) in said
    code, said = typed("runs", run.parent)
    assert code == 0 and "manifest.json" in said


def test_chat_and_trackers_refuse_what_would_lead_elsewhere(run, monkeypatch):
    from chatsmith.runs.trackers import first_step, run_id

    (run / "trackers" / "id").write_text("../../../x")
    with pytest.raises(RunError, match="not the id of a run"):
        run_id(run)
    assert first_step(run, "rl") > 0


def test_modes_are_those_of_the_umask(made):
    folder = made[0] / "runs" / "run"
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
