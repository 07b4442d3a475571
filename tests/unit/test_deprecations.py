"""What a library announces of its next versions is an error in these tests, and in the commands that they start."""

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "category"),
    [("old", FutureWarning), ("old", DeprecationWarning), ("`old` is deprecated\nsince 2", UserWarning)],
)
def test_a_warning_about_something_old_is_an_error_and_another_is_not(text, category):
    with pytest.raises(category):
        warnings.warn(text, category, stacklevel=1)
    with pytest.warns(UserWarning, match="slow"):
        warnings.warn("slow", UserWarning, stacklevel=1)


def test_so_is_a_line_in_the_log_of_transformers():
    logger = logging.getLogger("transformers.models.llama")
    with pytest.raises(AssertionError, match="`old` is deprecated"):
        logger.warning("`old` is deprecated")
    logger.warning("slow")


@pytest.mark.parametrize("category", ["FutureWarning", "DeprecationWarning"])
def test_so_it_is_in_another_process(category):
    code = f"import warnings; warnings.warn('old', {category})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1


def test_each_that_is_known_and_let_pass_has_the_day_on_which_it_was_seen():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    known = [number for number, line in enumerate(lines) if line.strip().startswith('"ignore:')]
    assert known
    for number in known:
        assert re.search(r"# .*\d{4}-\d\d-\d\d", lines[number - 1]), lines[number]
