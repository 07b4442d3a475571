"""What `make` installs is what was tested, and is made anew where that changes."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny import require_program

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
MAKEFILE = (ROOT / "Makefile").read_text()
TESTED_TORCH = re.search(r"^TESTED_TORCH := (.*)$", MAKEFILE, re.MULTILINE).group(1)


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_every_requirement_but_torch_has_one_exact_version_that_its_range_admits():
    versions = {}
    for requirement in locked():
        (pinned,) = requirement.specifier
        assert pinned.operator == "=="
        assert requirement.name not in versions
        versions[requirement.name] = pinned.version
    for requirement in WANTED:
        if requirement.name != "torch":
            assert requirement.specifier.contains(versions[requirement.name]), requirement
    assert not [name for name in versions if re.match("torch|triton|cuda|nvidia", name)]


def test_the_versions_that_make_names_are_those_of_the_package():
    ranges = {requirement.name: requirement.specifier for requirement in WANTED}
    assert ranges["torch"].contains(str(Requirement(TESTED_TORCH).specifier).removeprefix("=="))
    (oldest,) = re.findall(r"transformers==(\S+)", MAKEFILE)
    assert f">={'.'.join(oldest.split('.')[:2])}" in str(ranges["transformers"]).split(",")


@pytest.fixture
def make(tmp_path):
    """make(*options): whether `make check` would install something, in a copy of what decides that."""
    require_program("make")
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def planned(*options: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key not in ("TORCH", "PYTHON", "MAKEFLAGS")}
        command = ["make", "--dry-run", "check", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    return planned


def made(tmp_path: Path, planned: str) -> None:
    """Do what `make` planned but for the installing."""
    (tmp_path / ".venv").mkdir(exist_ok=True)
    (tmp_path / re.search(r"^touch (\S+)$", planned, re.MULTILINE).group(1)).touch()


def test_an_environment_is_made_once_and_anew_when_what_decides_about_it_changes(make, tmp_path):
    first = make()
    assert "--requirement requirements.txt" in first and TESTED_TORCH in first
    made(tmp_path, first)
    assert "pip install" not in make()
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):  # a new time is no change, as in a new checkout
        os.utime(tmp_path / name)
    assert "pip install" not in make()
    assert "pip install --quiet --disable-pip-version-check torch==2.11.0" in make("TORCH=torch==2.11.0")
    for name in ("pyproject.toml", "requirements.txt"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(before + "# another line\n")
        assert "pip install" in make(), name
        (tmp_path / name).write_text(before)
    assert "pip install" not in make()


def test_another_torch_is_remembered_until_a_new_one_is_given(make, tmp_path):
    other = "torch==2.13.0 --index-url https://example.org/cpu"
    planned = make(f"TORCH={other}")
    assert f"echo '{other}' > .venv/torch" in planned
    made(tmp_path, planned)
    (tmp_path / ".venv" / "torch").write_text(other + "\n")
    assert "pip install" not in make()
    assert "pip install" in make(f"TORCH={TESTED_TORCH}")
