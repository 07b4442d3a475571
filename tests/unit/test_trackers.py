"""Trackers, with their real packages: what was logged is read back."""

import importlib.util
import os
import re
import struct
import subprocess
import sys

import pytest

from chatsmith.config import Config
from chatsmith.errors import ConfigError
from chatsmith.resolve import resolve
from chatsmith.runs import trackers
from chatsmith.runs.trackers import check_installed, feed, first_step, forget, open_trackers, run_id


def config(*names):
    return resolve([("test", {"trackers": list(names), "actor_model": "MODEL"})])


def log(directory, name, steps, offset=0):
    with open_trackers(config(name), directory, pytest.fail) as opened:
        for step in steps:
            feed(opened, offset, step, {"rl/kl": step / 8, "rl/entropy": float("nan")})


def scalars(directory):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(directory / "trackers" / "tensorboard"))
    reader.Reload()
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_tensorboard_holds_every_finite_number_under_its_name(tmp_path):
    pytest.importorskip("tensorboard")
    log(tmp_path, "tensorboard", range(3), offset=10)
    assert scalars(tmp_path) == {"rl/kl": [(10, 0.0), (11, 0.125), (12, 0.25)]}


def test_a_resumed_run_continues_in_tensorboard_without_duplicates(tmp_path):
    pytest.importorskip("tensorboard")
    log(tmp_path, "tensorboard", range(6))
    log(tmp_path, "tensorboard", range(4, 9))
    assert [step for step, _ in scalars(tmp_path)["rl/kl"]] == list(range(9))
    log(tmp_path, "tensorboard", range(2, 3))  # --from: the history is another one from here on
    assert [step for step, _ in scalars(tmp_path)["rl/kl"]] == [0, 1, 2]


def leveldb_records(data):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; CRC, length and type before each part)."""
    place, record = 7, b""  # after the file's own header
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_keeps_one_id_over_all_commands_and_writes_every_number(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    log(tmp_path, "wandb", range(3))
    log(tmp_path, "wandb", range(3, 5))
    files = sorted((tmp_path / "trackers").rglob("*.wandb"))
    assert {file.name for file in files} == {f"run-{run_id(tmp_path)}.wandb"}
    values, settings = {}, set()
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = Record.FromString(data)
            settings |= {item.key for item in record.run.config.update}
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if row:
                values[int(row["_step"])] = float(row["rl/kl"])
    assert values == {step: step / 8 for step in range(5)}
    assert {"seed", "rl", "trackers"} <= settings


WITHOUT_ACCOUNT = """
import sys
from pathlib import Path
from chatsmith.resolve import resolve
from chatsmith.errors import ConfigError
from chatsmith.runs.trackers import open_trackers

try:
    with open_trackers(resolve([("test", {"trackers": ["wandb"]})]), Path(sys.argv[1]), print):
        print("opened")
except ConfigError as error:
    print("refused:", error)
"""


def test_wandb_without_an_account_is_one_clear_error_and_asks_nothing_on_a_terminal(tmp_path):
    pytest.importorskip("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "TERM": "xterm", "COLUMNS": "1000"}
    master, slave = os.openpty()
    command = [sys.executable, "-c", WITHOUT_ACCOUNT, str(tmp_path / "run")]
    done = subprocess.run(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=slave, env=environment, text=True, timeout=120
    )
    os.close(slave)
    os.close(master)
    assert re.match(r"refused: wandb: .*wandb login.*WANDB_MODE=offline", done.stdout), done.stdout


def test_trackio_keeps_everything_on_this_machine_and_never_twice(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    def refuse(*arguments):
        raise AssertionError(f"a connection: {arguments}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    run_dir = tmp_path / "run"
    log(run_dir, "trackio", range(6))
    log(run_dir, "trackio", range(4, 9))
    assert tmp_path / "trackio" == utils.TRACKIO_DIR
    rows = SQLiteStorage.get_logs("chatsmith", run_id(run_dir))
    assert [(row["step"], row["rl/kl"]) for row in rows] == [(step, step / 8) for step in range(9)]
    assert capfd.readouterr().out == ""
    assert sys.stdin is not None


def test_a_run_that_goes_another_way_gets_another_id(tmp_path):
    first = run_id(tmp_path)
    assert first == run_id(tmp_path)
    assert first.startswith(tmp_path.name)
    forget(tmp_path)
    assert run_id(tmp_path) != first


def test_the_steps_of_earlier_stages_are_added(tmp_path):
    for stage, steps in {"sft": 3, "rl": 5}.items():
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 0}\n' * steps)
    assert [first_step(tmp_path, stage) for stage in ("sft", "reward", "rl")] == [0, 3, 3]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_an_error_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'chatsmith\[{name}\]'"):
        check_installed([name])


def test_only_known_trackers_are_taken():
    with pytest.raises(ConfigError, match=r"trackers.*tensorboard"):
        config("mlflow")


def test_nothing_is_imported_or_written_where_nothing_is_tracked(tmp_path):
    with open_trackers(Config(), tmp_path, pytest.fail) as opened:
        assert opened == []
    assert list(tmp_path.iterdir()) == []
    assert set(trackers.OPEN) == {"tensorboard", "wandb", "trackio"}


def test_a_tracker_that_fails_is_left_out_and_it_is_said_once(tmp_path):
    class Broken:
        logged = 0

        def log(self, step, metrics):
            self.logged += 1
            if step == 2:
                raise OSError(28, "No space left on device")

        def close(self):
            raise AssertionError("it has failed before")

    broken, said = Broken(), []
    tracker = trackers.Tracker("tensorboard", broken, said.append)
    for step in range(5):
        tracker.log(step, {"rl/kl": 1.0})
    tracker.close()
    assert broken.logged == 3
    assert said == [
        "tensorboard: failed, and gets no more metrics ([Errno 28] No space left on device); "
        "metrics.jsonl holds all of them"
    ]
