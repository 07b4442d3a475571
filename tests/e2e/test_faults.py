"""A disk that is full, read-only, forbidden or broken from any moment on: exit 1, one message, nothing lost."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_runs import FAULTS, POINTS, counted_of
from tiny import require_program

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, model_directory):
    """Fault and number -> what came of the run with it, and of the next one without; "" -> of one without any."""
    folder = tmp_path_factory.mktemp("faults")
    library, pairs = folder / "faults.so", folder / "pairs.jsonl"
    subprocess.run([require_program("gcc"), "-shared", "-fPIC", "-o", library, TESTS / "faults.c", "-ldl"], check=True)
    rows = [{"prompt": f"say {i % 7} or {i}", "chosen": f"{i % 5}!", "rejected": f"{i % 5}?"} for i in range(60)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs").mkdir()
    (folder / "tmp").mkdir()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    result = subprocess.run(
        [sys.executable, TESTS / "faulty_runs.py", library, model_directory(), pairs, folder / "runs"],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": path, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0
    assert list((folder / "tmp").glob("making-*")) == []
    return {row["fault"]: row for row in map(json.loads, result.stdout.splitlines())}


@pytest.mark.sweep
@pytest.mark.parametrize("fault", [f"{name} {point}" for name in FAULTS for point in range(POINTS)])
def test_a_fault_of_the_disk_is_one_message_and_the_same_command_continues(outcomes, fault):
    whole, row = outcomes[""]["first"], outcomes[fault]
    assert whole["code"] == 0, whole["err"]
    first, again, name = row["first"], row["again"], fault.split()[0]
    *before, last = first["err"].splitlines() or [""]
    assert counted_of(first, FAULTS[name][0]) > row["nth"]  # the fault was met
    assert [line for line in before if "prepared data is not kept" not in line] == [], first["err"]
    if first["code"] == 0:  # only what a run can do without: its cache, its report, the deletion of what is old
        assert first["weights"] == whole["weights"]
        assert last == "" or "prepared data is not kept" in last
    else:
        assert first["code"] == 1, first["err"]
        assert last.startswith("RunError: /")
        assert os.strerror(getattr(errno, name)) in last
        assert first["status"] != "finished"
    assert not first["locked"] or name in ("EROFS", "EACCES")  # there it could not be deleted, but nobody holds it
    assert first["weights"].items() <= whole["weights"].items()  # what has a name is whole
    assert (again["code"], again["err"], again["left"]) == (0, "", [])
    assert again["weights"] == whole["weights"]
    assert again["status"] == whole["status"]
