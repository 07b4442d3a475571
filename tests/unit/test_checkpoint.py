"""Files are replaced whole or not at all."""

import json
import math
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from chatsmith.errors import RunError
from chatsmith.files.checkpoint import load_checkpoint, save_checkpoint, save_json
from chatsmith.files.writing import replace_directory


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"step": 3, "weights": {"a": torch.randn(3)}, "curve": [1.0, 2.0], "name": "x", "none": None}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    torch.testing.assert_close(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert load_checkpoint(tmp_path / "absent.pt") is None


def test_numbers_that_are_not_finite_become_null(tmp_path):
    save_json(tmp_path / "m.json", {"a": [1.0, math.nan], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": [1.0, None], "b": {"c": None}}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_what_is_written_has_the_mode_that_the_umask_leaves(tmp_path, umask, mode):
    def fill(path):
        save_file({"a": torch.zeros(2)}, path / "model.safetensors")  # for the owner alone, whatever the umask
        (path / "below").mkdir()
        save_file({"a": torch.zeros(2)}, path / "below" / "head.safetensors")
        (path / "config.json").write_text("{}")

    before = os.umask(umask)
    try:
        replace_directory(tmp_path / "model", fill)
        save_checkpoint(tmp_path / "c.pt", {"a": 1})
        save_json(tmp_path / "m.json", {})
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


def test_a_failure_half_way_leaves_the_old_file_and_no_rubbish(tmp_path):
    replace_directory(tmp_path / "model", lambda path: (path / "weights").write_text("old"))

    def fill(path):
        (path / "weights").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left on device.*type the same command again"):
        replace_directory(tmp_path / "model", fill)
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    replace_directory(tmp_path / "model", lambda path: (path / "weights").write_text("new"))
    assert (tmp_path / "model" / "weights").read_text() == "new"
