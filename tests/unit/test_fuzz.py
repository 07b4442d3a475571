"""A short run of benchmarks/fuzz.py, and that it can fail."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from chatsmith.data import files
from chatsmith.data.lines import Row

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(fuzz: ModuleType, folder: Path, count: int, only: str = "") -> int:
    """In how many damaged files something is lost; any error but a DataError goes through."""
    found = 0
    for suffix, data, text in fuzz.files(count, seed=0):
        if not suffix.startswith(only):
            continue
        path = folder / f"a{suffix}"
        path.write_bytes(data)
        try:
            fuzz.try_file(path, suffix, data, text)
        except fuzz.Fault:
            found += 1
    return found


def test_nothing_is_lost_and_nothing_crashes_in_200_damaged_files(fuzz: ModuleType, tmp_path: Path) -> None:
    assert faults(fuzz, tmp_path, 200) == 0


@pytest.mark.parametrize(
    ("reader", "suffix"),
    [("line_rows", ".jsonl"), ("list_rows", ".json"), ("_paragraphs", ".txt"), ("_cells", ".csv"), ("_cells", ".tsv")],
)
def test_a_reader_that_leaves_out_a_row_is_caught(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, suffix: str
) -> None:
    read = getattr(files, reader)

    def forgetful(*arguments: object) -> Iterator[Row]:
        rows = list(read(*arguments))
        yield from rows[:1] + rows[2:]

    monkeypatch.setattr(files, reader, forgetful)
    assert faults(fuzz, tmp_path, 200, suffix) > 0


def test_a_reader_that_alters_a_row_is_caught(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = files.line_rows

    def careless(file: Path) -> Iterator[Row]:
        for row in read(file):
            yield row._replace(value={"text": "m00000"}) if isinstance(row.value, dict) else row

    monkeypatch.setattr(files, "line_rows", careless)
    assert faults(fuzz, tmp_path, 100, ".jsonl") > 0
