"""Specs and files: what is read, what is refused, and with which words."""

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec, parse_spec
from chatsmith.errors import ConfigError

PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}


def read(path: Path | str, on_error: Literal["raise", "skip"] = "raise", split: str | None = None) -> Source:
    return read_source(Spec((), str(path), split), on_error=on_error, split_seed=0)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Specs


def test_spec_is_taken_apart_into_stages_location_split_and_weight() -> None:
    assert parse_spec("sft,reward:owner/name#train@0.5") == Spec(("sft", "reward"), "owner/name", "train", 0.5)
    assert parse_spec("owner/name") == Spec((), "owner/name", None, 1.0)
    assert parse_spec("owner/name@2") != parse_spec("owner/name@3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rwd:a.json", 'did you mean "reward"'),
        ("zzz:a.json", "the stages are sft, pairs, reward, rl, ptx"),
        ("sft,sft:a.json", "twice"),
        ("a.json@heavy", '"heavy" is not a number'),
        ("a.json@0", "not above 0"),
        ("a.json@-1", "not above 0"),
        ("a.json@nan", "not above 0"),
        ("a.json#", "nothing follows"),
        ("sft:", "names no file"),
        ("", "names no file"),
    ],
)
def test_bad_spec_is_refused_with_its_text_and_the_nearest_valid_thing(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_spec(text)
    assert words in str(error.value)
    assert f'"{text}"' in str(error.value)


@pytest.mark.parametrize("name", ["a:b.json", "a@2.json", "a#b.json", "sft:x@y#z.json", "a@2"])
def test_marks_in_the_name_of_an_existing_file_are_no_marks(tmp_path: Path, name: str) -> None:
    missing = str(tmp_path / "none" / name)
    (tmp_path / name).write_text("[]")
    path = str(tmp_path / name)
    assert parse_spec(path) == Spec((), path, None)
    assert parse_spec(f"rl:{path}#s@3") == Spec(("rl",), path, "s", 3.0)
    with contextlib.suppress(ConfigError):  # where no such file exists the name is cut at its marks, or refused
        assert parse_spec(missing).location != missing


def test_windows_drive_is_not_a_stage() -> None:
    assert parse_spec(r"C:\data\a.json") == Spec((), r"C:\data\a.json", None)
    assert parse_spec("sft:C:/data/a.json@2") == Spec(("sft",), "C:/data/a.json", None, 2.0)
    with pytest.raises(ConfigError):
        parse_spec("C:a.json")
