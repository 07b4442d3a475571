"""Specs and files: what is read, what is refused, and with which words."""

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec, parse_spec
from chatsmith.errors import ConfigError, DataError

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
        ("zzz:a.json", "the stages are sft, reward, rl, ptx"),
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


# Files


def test_every_kind_of_file_gives_the_same_records(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [PAIR, {"prompt": "NA", "chosen": "007", "rejected": "null"}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"Name a colour.",Red.,Seven.\nNA,007,null\n')
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    expected = [(record.prompt, record.answers) for record in read(tmp_path / "a.jsonl").records]
    assert len(expected) == 2
    for name in ("a.json", "a.jsonl.gz", "a.json.gz", "a.csv", "a.parquet", "saved"):
        source = read(tmp_path / name)
        assert [(record.prompt, record.answers) for record in source.records] == expected, name
        assert source.records[1].origin == f"{tmp_path / name}" + (
            ":2" if "jsonl" in name else ":3" if "csv" in name else "[1]"
        )
    write(tmp_path / "b.jsonl", *reversed(rows))
    assert [(record.prompt, record.answers) for record in read(tmp_path / "b.jsonl").records] != expected


def test_splits_of_a_saved_dataset_are_chosen_by_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved").records[0].prompt[0].content == "train"
    assert read(tmp_path / "saved", split="test").records[0].prompt[0].content == "test"
    with pytest.raises(DataError, match=r'no split "dev".*train, test'):
        read(tmp_path / "saved", split="dev")


def test_directory_gives_the_records_of_all_its_data_files_or_of_those_named_after_the_split(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", {"prompt": "t"})
    write(tmp_path / "train-2.jsonl", {"prompt": "b"}, {"prompt": "c"})
    write(tmp_path / "trainer.jsonl", {"prompt": "x"})
    (tmp_path / "README.md").write_text("words")
    assert [record.prompt[0].content for record in read(tmp_path).records] == ["t", "b", "c", "x"]
    assert [record.prompt[0].content for record in read(tmp_path, split="train").records] == ["b", "c"]
    with pytest.raises(DataError, match='named after the split "dev"'):
        read(tmp_path, split="dev")
    with pytest.raises(DataError, match="has no splits"):
        read(tmp_path / "test.jsonl", split="train")


def test_text_files_are_read_by_paragraphs_or_without_blank_lines_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\none\ntwo\n\nthree\n\n")
    assert [(record.text, record.origin) for record in read(path).records] == [
        ("one\ntwo", f"{path}:2"),
        ("three", f"{path}:5"),
    ]
    path.write_text("one\ntwo\nthree\n")
    assert [record.text for record in read(path).records] == ["one", "two", "three"]


def test_cells_of_a_csv_are_text_and_may_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"one\ntwo, ""three""",4\n5,six,7\n\n8,\n9,10\n')
    with pytest.raises(DataError, match=r"a\.csv:4: 3 cells where the first line names 2"):
        read(path)
    source = read(path, "skip")
    assert [(record.prompt[0].content, record.answers[0].content) for record in source.records] == [
        ('one\ntwo, "three"', "4"),
        ("9", "10"),
    ]
    assert [(dropped.origin, dropped.reason) for dropped in source.dropped] == [
        (f"{path}:4", "3 cells where the first line names 2"),
        (f"{path}:6", "the answer is empty"),
    ]


def test_line_separators_inside_json_do_not_break_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\r\n\r\n{"text": "c"}', encoding="utf-8")
    source = read(tmp_path / "a.jsonl")
    assert [record.text for record in source.records] == ["a\u2028b", "c"]
    assert source.records[1].origin.endswith(":3")


BAD_LINES = {
    "broken JSON": b'{"text": "a\\x"}',
    "not UTF-8": b'{"text": "\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"text": "a"}',
    "no format fits": b'{"words": "a"}',
    '"text" is the number 3': b'{"text": 3}',
    "cannot be read": b'{"text": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("words", BAD_LINES)
def test_bad_line_is_named_and_can_be_skipped(tmp_path: Path, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + BAD_LINES[words] + b'\n{"text": "last"}\n')
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "--data.on_error skip" in str(error.value)
    assert words in str(error.value)
    source = read(path, "skip")
    assert [record.text for record in source.records] == ["first", "last"]
    assert [dropped.origin for dropped in source.dropped] == [f"{path}:2"]
    assert source.dropped[0].reason in str(error.value)


def test_bad_row_of_a_list_is_named_by_its_index(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["a", {"text": None}, "c"]))
    with pytest.raises(DataError, match=r"a\.json\[1\]: .*text \(null\).*on_error skip"):
        read(tmp_path / "a.json")
    assert len(read(tmp_path / "a.json", "skip").records) == 2


def test_truncated_gzip_keeps_what_came_before_and_lists_the_rest_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(b'{"text": "%064x"}\n' % (i**40) for i in range(20_000))
    whole = gzip.compress(lines)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"gz:\d+: the gzip stream is damaged.*on_error skip"):
        read(path)
    source = read(path, "skip")
    assert 0 < len(source.records) < 20_000
    assert len(source.dropped) == 1
    path.write_bytes(whole)
    assert len(read(path).records) == 20_000


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt\n", "is empty"),
        ("a.csv", b'prompt\n"p', "a.csv:2: no valid CSV"),
        ("a.csv", b"prompt\n\xff", "a.csv:2: not UTF-8"),
        ("a.jsonl", b'[{"text": "a"}]', "Rename it to .json"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "rename the file to .jsonl"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "a.json:2: broken JSON"),
        ("a.json", b'["\xff"]', "not UTF-8"),
        ("a.json", b'{"data": []}', "no format fits a record with the fields: data"),
        ("a.jsonl.gz", b"no gzip", "damaged"),
        ("a.parquet", b"no parquet", "cannot be read as a table"),
        ("a.zip", b"x", "unknown kind of file"),
    ],
)
def test_file_with_nothing_readable_is_an_error_also_when_skipping(
    tmp_path: Path, name: str, content: bytes, words: str, on_error: Literal["raise", "skip"]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path / name, on_error)
    assert words in str(error.value)
    assert name in str(error.value)


def test_file_of_bad_records_only_is_an_error_also_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 2 records.*a\.jsonl:1: "):
        read(write(tmp_path / "a.jsonl", {"a": 1}, {"b": 1}), "skip")


def test_missing_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", PAIR)
    with pytest.raises(DataError, match=r'--data: there is no .*Did you mean ".*pairs\.jsonl"'):
        read(tmp_path / "piars.jsonl")
    with pytest.raises(DataError, match="--data: there is no file"):
        read("pairs-that-do-not-exist.jsonl")


def test_unreachable_hub_is_one_error_that_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r'--data "owner/name".*no route.*local file') as error:
        read("owner/name")
    assert "\n" not in str(error.value)


def test_hub_dataset_is_read_with_its_split_and_stated_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(location: str, *, split: str) -> Any:
        asked.append((location, split))
        return datasets.Dataset.from_list([PAIR], info=datasets.DatasetInfo(license="mit"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = read("owner/name", split="test")
    read("owner/name")
    assert asked == [("owner/name", "test"), ("owner/name", "train")]
    assert source.records[0].origin == "owner/name[0]"
    assert source.licence == "mit"


def test_licence_is_the_one_stated_beside_the_file_or_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIR)
    assert read(path).licence is None
    (tmp_path / "LICENSE.txt").write_text("\n  MIT License\n\nwords")
    assert read(path).licence == read(tmp_path).licence == "MIT License"
