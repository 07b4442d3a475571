"""Files are replaced whole or not at all."""

import json
import math

import pytest
import torch

from chatsmith.checkpoint import load_checkpoint, save_checkpoint, save_json
from chatsmith.errors import RunError
from chatsmith.writing import replace_directory


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
