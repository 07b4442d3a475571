"""Files of every kind, whole and damaged: what is read, what is refused, where and with which words."""

import codecs
import contextlib
import datetime
import decimal
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import require_program

from chatsmith.data.files import SUFFIXES, read_rows
from chatsmith.data.lines import CAP, Row
from chatsmith.data.sources import Source, read_source, unread_files
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError

PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}
TEXT = {"text": "a"}


def read(path: Path | str, on_error: Literal["raise", "skip"] = "raise", split: str | None = None) -> Source:
    return read_source(Spec((), str(path), split), on_error=on_error, split_seed=0)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content).to_pybytes()


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def refusal(path: Path, on_error: Literal["raise", "skip"] = "skip") -> str:
    """What is said of a source that cannot be read even where bad records are skipped."""
    with pytest.raises(DataError) as error:
        read(path, on_error)
    assert str(path.parent) in str(error.value)
    return str(error.value)


# What is read


def test_every_kind_of_file_gives_the_same_records(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [PAIR, {"prompt": "NA", "chosen": "007", "rejected": "null"}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"Name a colour.",Red.,Seven.\nNA,007,null\n')
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\r\nName a colour.\tRed.\tSeven.\r\nNA\t007\tnull\r\n")
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / f"{name}.zst").write_bytes(zstd((tmp_path / name).read_bytes()))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    os.link(tmp_path / "saved" / "data-00000-of-00001.arrow", tmp_path / "stream.arrow")
    with pyarrow.ipc.new_file(str(tmp_path / "file.arrow"), data.data.table.schema) as file:
        file.write(data.data.table)
    expected = [(record.prompt, record.answers) for record in read(tmp_path / "a.jsonl").records]
    assert len(expected) == 2
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert len(names) == 16
    for name in names:
        source = read(tmp_path / name)
        assert [(record.prompt, record.answers) for record in source.records] == expected, name
        assert source.records[1].origin == f"{tmp_path / name}" + (
            ":2" if "jsonl" in name else ":3" if "csv" in name or "tsv" in name else "[1]"
        )
    write(tmp_path / "b.jsonl", *reversed(rows))
    assert [(record.prompt, record.answers) for record in read(tmp_path / "b.jsonl").records] != expected


def test_packed_files_may_be_made_of_several_parts(tmp_path: Path) -> None:
    one, two = b'{"text": "a"}\n{"te', b'xt": "b"}\n'
    save(tmp_path / "a.jsonl.gz", gzip.compress(one) + gzip.compress(two))
    save(tmp_path / "a.jsonl.zst", zstd(one) + zstd(two))
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert [record.text for record in read(tmp_path / name).records] == ["a", "b"]


@st.composite
def json_files(draw: st.DrawFn) -> bytes:
    """A list in JSON, set in some way, whole or broken in one place."""
    number = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | number | st.text()
    values = st.recursive(
        leaves, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4), max_leaves=20
    )
    layout = {"indent": draw(st.none() | st.integers(0, 2)), "ensure_ascii": draw(st.booleans())}
    content = json.dumps(draw(st.lists(values, max_size=8)), **layout).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at + draw(st.integers(0, 3)) :]
    return content


@settings(deadline=None, max_examples=150)
@given(content=json_files(), block=st.sampled_from([1, 2, 7, 1 << 20]))
def test_json_list_is_read_in_parts_as_it_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int
) -> None:
    """json.loads is the oracle, for values and for the places of errors."""
    path = save(tmp_path_factory.getbasetemp() / "a.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chatsmith.data.lines._BLOCK", block)
        try:
            rows, words = list(read_rows(path)), ""
        except DataError as error:
            rows, words = [], str(error)
    try:
        expected = json.loads(content.decode())
    except json.JSONDecodeError as error:
        # an empty file has no rows; a NUL byte is named as such; later versions of Python speak of the comma itself
        if content.strip(b" \t\r\n") and b"\0" not in content and "trailing comma" not in error.msg:
            assert f":{error.lineno}: broken JSON at column {error.colno}: {error.msg}." in words
    except ValueError:  # not UTF-8
        assert words
    else:
        if isinstance(expected, list) and not words:
            problems = [row for row in rows if row.problem]
            assert [row.value for row in rows if not row.problem] == expected or problems
            assert len(rows) == len(expected)
            assert all("twice" in row.problem or "no JSON" in row.problem or "large" in row.problem for row in problems)
        else:
            assert words or isinstance(expected, dict)
            assert not isinstance(expected, list) or "NUL" in words


def test_broken_list_is_named_by_line_and_column_however_far_it_was_read(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "é" * 1000}, ensure_ascii=False)] * 3000  # 6 MB, several blocks
    one_line = "[" + ",".join([*rows, '{"text" "b"}']) + "]"
    many_lines = one_line.replace("},", "},\n")
    for content in (one_line, many_lines):
        path = save(tmp_path / "a.json", content.encode())
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(content)
        assert f"{path}:{expected.value.lineno}: broken JSON at column {expected.value.colno}: " in refusal(path)
    assert expected.value.lineno == 3001


def test_an_object_on_top_of_a_json_file_is_its_only_row(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"version": 1, "data": [{"question": "q"}]})
    assert list(read_rows(tmp_path / "a.json")) == [
        Row(f"{tmp_path / 'a.json'}[0]", {"version": 1, "data": [{"question": "q"}]})
    ]
    assert "data" in refusal(tmp_path / "a.json")
    write(tmp_path / "a.json", PAIR)
    assert len(read(tmp_path / "a.json").records) == 1


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
    "broken JSON at column 12: Invalid \\escape": b'{"text": "a\\x"}',
    "broken JSON at column 15: Expecting": b'  {"text": "a"',
    "more than one value on the line, the second at column 15": b' {"text": "a"}{"text": "b"}',
    "not UTF-8 text (byte 11 of the line, 0xff); convert": b'{"text": "\xff"}',
    "not UTF-8 text (byte 11 of the line, 0xc4); convert": '{"text": "你好"}'.encode("gbk"),
    "not UTF-8 text (byte 14 of the line, 0xe9); convert": '{"text": "café"}'.encode("latin-1"),
    "byte order mark": b'\xef\xbb\xbf{"text": "a"}',
    "NUL byte": b'{"text": "a\0"}',
    "no format fits": b'{"words": "a"}',
    '"text" is the number 3': b'{"text": 3}',
    '"text" is an object': b'{"text": {"text": null}}',
    "text (null)": b'{"text": null}',
    "null, not an object": b"null",
    "nested too deep": b'{"text": ' + b"[" * 100_000,
    "digits": b'{"text": "a", "n": ' + b"1" * 5000 + b"}",
    "the number 1e999 is too large": b'{"text": "a", "n": 1e999}',
    "NaN is no JSON; write null": b'{"text": "a", "n": NaN}',
    "-Infinity is no JSON": b'{"text": "a", "n": [-Infinity]}',
    'the field "text" stands twice': b'{"text": "a", "text": "b"}',
    'the field "k" stands twice': b'{"text": "a", "meta": [{"k": 1, "k": 1}]}',
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
    path = tmp_path / "a.json"
    for bad, words in (
        ('{"text": null}', r"text \(null\)"),
        ('{"text": "b", "text": "b"}', 'the field "text" stands twice'),
        ('{"text": "b", "score": NaN}', "NaN is no JSON"),
        ('{"text": "b", "score": %s}' % ("9" * 5000), "digits"),
    ):
        path.write_text(f'["a", {bad}, "c"]')
        with pytest.raises(DataError, match=rf"a\.json\[1\]: .*{words}.*on_error skip"):
            read(path)
        assert [record.text for record in read(path, "skip").records] == ["a", "c"]


def test_packed_file_that_breaks_off_keeps_what_came_before_and_lists_the_rest_as_lost(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%064x"}\n' % (i**40) for i in range(20_000))
    for path, whole in (
        (tmp_path / "a.jsonl.gz", gzip.compress(lines)),
        (tmp_path / "a.jsonl.zst", zstd(lines)),
    ):
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"\.\w+:\d+: the \w+ data break off.*on_error skip"):
            read(path)
        source = read(path, "skip")
        assert 9_000 < len(source.records) < 11_000
        assert [record.text for record in source.records] == [
            f"{i**40:064x}" for i in range(len(source.records))
        ]  # what is given is what was written
        assert [dropped.origin for dropped in source.dropped] == [f"{path}:{len(source.records) + 1}"]
        path.write_bytes(whole)
        assert len(read(path).records) == 20_000
    for name in ("a.json.gz", "a.csv.gz"):  # a part of them says nothing
        whole = gzip.compress(
            json.dumps([{"text": "a"}] * 1000).encode() if "json" in name else b"text\n" + b"a\n" * 1000
        )
        assert "break off" in refusal(save(tmp_path / name, whole[:-12]))


def test_packed_file_with_a_flipped_bit_is_refused_as_a_whole(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%064x"}\n' % (i**40) for i in range(2_000))
    whole = gzip.compress(lines)
    for at in range(20, len(whole), len(whole) // 50):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        words = refusal(save(tmp_path / "a.jsonl.gz", damaged))
        assert "cannot be trusted" in words or "break off" in words


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt\n", "is empty"),
        ("a.csv", b'text\na\nb\n"c\nd\ne\n', "a.csv:4: no valid CSV in the record that begins here: a quote is opened"),
        ("a.csv", b'text\n"a"b\n', "a.csv:2: no valid CSV"),
        ("a.csv", b"text\na\0b\n", "a.csv:2: holds a NUL byte"),
        (
            "a.csv",
            b"prompt;answer\n2 + 2;4\n",
            "Are its cells parted by a semicolon, and not by a comma? Export it again",
        ),
        (
            "a.csv",
            b"prompt\tanswer\n2 + 2\t4\n",
            "Are its cells parted by a tab, and not by a comma? Rename the file to .tsv",
        ),
        ("a.tsv", b"prompt,answer\n2 + 2,4\n", "Rename the file to .csv"),
        ("a.csv", b'id,"text\n1,a\n2,b\n3,"c"\n', "a.csv:1: "),
        ("a.csv", b'prompt,"id\n1,a"\n2,b\n', 'the name of a column, "id 1,a", goes over several lines'),
        ("a.csv", b"text,id,text\na,1,b\n", 'two columns are called "text"'),
        (
            "a.csv",
            b"What is 2 + 2?,4\nWhat is 3 + 3?,6\n",
            "no format fits a record with the fields: What is 2 + 2?, 4",
        ),
        ("a.csv", b"prompt\n\xff", "a.csv:2: not UTF-8"),
        ("a.jsonl", b'[{"text": "a"}]', "Rename it to .json"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "rename the file to .jsonl"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "a.json:2: broken JSON"),
        ("a.json", b'["a",\n"\xff"]', "a.json:2: not UTF-8 text (the first such byte is 0xff)"),
        ("a.json", b'"a"', "holds a single value"),
        ("a.json", b'["a", "b",]', "broken JSON at column 11: "),
        ("a.json", b'["a" "b"]', "broken JSON at column 6: Expecting ',' delimiter"),
        ("a.json", b'["a"] []', "broken JSON at column 7: Extra data"),
        ("a.json", b'["a", ' + b"[" * 100_000, "nested too deep"),
        ("a.json", b'["a",\n"\0"]', "a.json:2: holds a NUL byte"),
        ("a.jsonl", b'{\n  "text": "a"\n}\n', "JSON over several lines"),
        (
            "a.jsonl.gz",
            b"no gzip",
            'is no gzip data, which its name does not say. If it is whole, rename it to "a.jsonl"',
        ),
        (
            "a.txt.zst",
            gzip.compress(b"text", mtime=0),  # else the test is called otherwise in another second, in another worker
            'holds gzip data, which its name does not say. If it is whole, rename it to "a.txt.gz"',
        ),
        ("a.csv", zstd(b"text"), 'rename it to "a.csv.zst"'),
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

    def load_dataset(location: str, config: str | None, *, split: str) -> Any:
        asked.append((location, config, split))
        return datasets.Dataset.from_list([PAIR], info=datasets.DatasetInfo(license="mit"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = read("owner/name", split="test")
    read("owner/name")
    read("owner/name", split="main/test")
    assert asked == [("owner/name", None, "test"), ("owner/name", None, "train"), ("owner/name", "main", "test")]
    assert source.records[0].origin == "owner/name[0]"
    assert source.licence == "mit"


def test_licence_is_the_one_stated_beside_the_file_or_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIR)
    assert read(path).licence is None
    (tmp_path / "LICENSE.txt").write_text("\n  MIT License\n\nwords")
    assert read(path).licence == read(tmp_path).licence == "MIT License"


# Encodings and line ends


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize(
    ("encoding", "mark", "named"),
    [
        ("utf-16-le", codecs.BOM_UTF16_LE, "UTF-16"),
        ("utf-16-be", codecs.BOM_UTF16_BE, "UTF-16"),
        ("utf-16-le", b"", "UTF-16LE"),
        ("utf-16-be", b"", "UTF-16BE"),
        ("utf-32-le", codecs.BOM_UTF32_LE, "UTF-32"),
        ("utf-32-be", b"", "UTF-32BE"),
    ],
)
def test_wide_characters_are_named_with_the_command_that_mends_them(
    tmp_path: Path, name: str, encoding: str, mark: bytes, named: str
) -> None:
    content = '{"text": "你好"}\n{"text": "a"}\n'
    path = save(tmp_path / name, mark + content.encode(encoding))
    words = refusal(path)
    assert f"is {named} text. Convert it: iconv -f {named} -t UTF-8" in words
    iconv = require_program("iconv")
    path.write_bytes(
        subprocess.run([iconv, "-f", named, "-t", "UTF-8"], input=path.read_bytes(), capture_output=True).stdout
    )
    assert path.read_bytes() == content.encode()


def test_lines_may_end_in_crlf_but_not_in_a_carriage_return_alone(tmp_path: Path) -> None:
    jsonl, text = save(tmp_path / "a.jsonl", b'{"text": "a"}\r\n{"text": "b"}\r\n'), tmp_path / "a.txt"
    assert [record.text for record in read(jsonl).records] == ["a", "b"]
    assert [record.text for record in read(save(text, b"a\r\nb\r\n\r\nc\r\n")).records] == ["a\nb", "c"]
    for path in (jsonl, text, tmp_path / "a.csv", tmp_path / "a.tsv"):
        assert "end in a carriage return alone" in refusal(save(path, b"text\ra\rb\r"))
    assert len(read(save(tmp_path / "a.json", b'["a",\r"b"]\r')).records) == 2


# Size


def test_record_of_10_mb_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    text = "1234567 é\n" * 1_000_000
    line = json.dumps({"text": text}, ensure_ascii=False).encode()
    save(tmp_path / "a.jsonl", line)
    save(tmp_path / "a.json", b"[" + line + b"]")
    save(tmp_path / "a.jsonl.gz", gzip.compress(line))
    save(tmp_path / "a.csv", b'text\n"' + text.encode() + b'"\n')
    save(tmp_path / "a.txt", text.encode() + b"\n\nb")
    table(tmp_path / "a.parquet", {"text": [text]})
    for path in tmp_path.iterdir():
        assert read(path).records[0].text == (text.rstrip() if path.suffix == ".txt" else text), path


@pytest.mark.parametrize("again", [b'{"text": "a"}\n', b"\n", b" ", b"\0"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.txt.gz", "a.csv.gz", "a.jsonl.zst"])
def test_file_that_unpacks_without_end_is_stopped_with_the_sizes_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: bytes
) -> None:
    monkeypatch.setattr("chatsmith.data.lines.CAP", 1 << 20)
    content = again * ((3 << 20) // len(again))
    path = save(tmp_path / name, gzip.compress(content) if name.endswith("gz") else zstd(content))
    words = refusal(path)
    by_ratio = re.search(r"0\.\d MiB unpack to more than \d+\.\d MiB, 200 times as much.*unpack it yourself", words)
    assert by_ratio or "is longer than 64.0 MiB" in words or "NUL" in words or ".json" in words


@pytest.mark.parametrize(
    ("name", "start", "again"),
    [
        ("a.jsonl", b'{"text": "', b"a"),
        ("a.jsonl", b'{"text": "a"}', b" "),
        ("a.json", b'["', b"a"),
        ("a.csv", b'text\n"', b"a,"),
        ("a.csv", b'text\n"', b"a" * 1023 + b"\n"),
        ("a.txt", b"a\n\n", b"a" * 1023 + b"\n"),
    ],
)
def test_record_without_end_is_stopped_in_bounded_memory(tmp_path: Path, name: str, start: bytes, again: bytes) -> None:
    path = save(tmp_path / name, start + again * ((80 << 20) // len(again)))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from chatsmith.data.files import SUFFIXES, read_rows\n"
        "from chatsmith.errors import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(sum(1 for row in read_rows(Path(sys.argv[1]))), end=' ')\n"
        "except DataError as error: print(error, end=' ')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    words, _, kib = result.stdout.strip().rpartition(" ")
    assert re.search(r"a\.\w+:\d: .*is longer than 64\.0 MiB, the most that is read as one record", words)
    assert int(kib) < 4 * CAP // 1024  # the parts of a line, the line, its text


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    rows = [{"text": f"{i:05d}" * 200} for i in range(20_000)]  # 20 MB
    text = "".join(json.dumps(row) + "\n" for row in rows)
    save(tmp_path / "a.jsonl", text.encode())
    save(tmp_path / "a.json", json.dumps(rows).encode())
    save(tmp_path / "a.csv", b"text\n" + b"".join(row["text"].encode() + b"\n" for row in rows))
    save(tmp_path / "a.txt", b"".join(row["text"].encode() + b"\n" for row in rows))
    save(tmp_path / "a.jsonl.gz", gzip.compress(text.encode(), 1))
    table(tmp_path / "a.parquet", {"text": [row["text"] for row in rows]}, use_dictionary=False)
    paths = sorted(tmp_path.iterdir())
    tracemalloc.start()
    try:
        for path in paths:
            list(zip(range(10), read_rows(path), strict=False))  # what is imported and cached on the way
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            assert sum(1 for _ in read_rows(path)) == 20_000, path
            assert tracemalloc.get_traced_memory()[1] - before < 10e6, path
    finally:
        tracemalloc.stop()


# Rows that do not agree


def test_rows_of_several_formats_in_one_file_are_each_read_by_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIR, {"question": "q", "answer": "a"}, "text", {"prompt": "p", "reponse": "r"})
    source = read(path, "skip")
    assert [(bool(r.prompt), len(r.answers), r.text) for r in source.records] == [
        (True, 2, ""),
        (True, 1, ""),
        (False, 0, "text"),
    ]
    assert 'Did you mean "reponse" as "response"' in source.dropped[0].reason


def test_renamed_column_and_disagreeing_types_are_named_by_row(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "p", "choosen": "a", "rejected": "b"}, PAIR | {"chosen": {"content": None}}, PAIR]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name, place in (("a.jsonl", ":{}"), ("a.json", "[{}]")):
        first = 1 if name == "a.jsonl" else 0
        source = read(tmp_path / name, "skip")
        assert [dropped.origin for dropped in source.dropped] == [
            f"{tmp_path / name}" + place.format(first + i) for i in (1, 2)
        ]
        assert "no format fits a record with the fields: prompt, choosen, rejected" in source.dropped[0].reason
        assert len(source.records) == 2


def test_null_in_a_table_is_a_field_that_is_absent(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"prompt": ["p", None, "q"], "response": ["a", "b", None]})
    source = read(path, "skip")
    assert [len(record.answers) for record in source.records] == [1, 0]
    assert [dropped.origin for dropped in source.dropped] == [f"{path}[1]"]


# Tables


def test_rows_of_a_table_hold_what_json_can_hold(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    row = {
        "text": "a",
        "when": when,
        "price": decimal.Decimal("1.50"),
        "turns": [{"role": "user", "content": None}],
        "pairs": [("k", 1)],
        "score": 0.5,
    }
    schema = pyarrow.schema(
        [
            ("text", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
            ("when", pyarrow.timestamp("ms", tz="UTC")),
            ("price", pyarrow.decimal128(5, 2)),
            ("turns", pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()}))),
            ("pairs", pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            ("score", pyarrow.float32()),
        ]
    )
    data = pyarrow.Table.from_pylist([row, dict.fromkeys(row)], schema)
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet")
    first, second = (row.value for row in read_rows(tmp_path / "a.parquet"))
    assert json.loads(json.dumps(first)) == first
    assert first == row | {"when": "2024-05-06 07:08:09+00:00", "price": "1.50", "pairs": [["k", 1]]}
    assert second == dict.fromkeys(row)


@pytest.mark.parametrize(
    "type", [pyarrow.binary(), pyarrow.struct({"bytes": pyarrow.large_binary()}), pyarrow.binary(3)]
)
def test_bytes_in_a_table_are_refused_by_column(tmp_path: Path, type: pyarrow.DataType) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "image": pyarrow.array([None], type)}), path)
    assert f'the column "image" holds bytes ({type}) and no text' in refusal(path)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    data = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(data, tmp_path / "a.parquet")
    assert 'two columns are called "text"' in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
def test_damaged_table_is_refused_or_read_as_it_was(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind.split()[0]}"
    texts = [f"{i:064x}" for i in range(3000)]
    data = pyarrow.table({"text": texts})
    if kind == "parquet":
        pyarrow.parquet.write_table(data, path, row_group_size=500, write_page_checksum=True)
    else:
        new = pyarrow.ipc.new_stream if "stream" in kind else pyarrow.ipc.new_file
        with new(str(path), data.schema) as file:
            file.write_table(data, max_chunksize=500)
    whole = path.read_bytes()
    assert [record.text for record in read(path).records] == texts
    cut = refusal(save(path, whole[: len(whole) // 2]))
    assert f"{path}: cannot be read as a table: " in cut
    if kind == "parquet":  # the two others have no checksums
        for at in (len(whole) // 3, len(whole) - 6, len(whole) - 100):
            save(path, whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
            with contextlib.suppress(DataError):
                assert [record.text for record in read(path).records] == texts


# Places


def test_directories_are_read_with_those_below_and_without_what_describes_the_data(tmp_path: Path) -> None:
    for name in ("data/train-00001-of-00002.jsonl", "data/train-00000-of-00002.jsonl", "test/0001.jsonl", "a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, {"text": name})
    for name in (".cache/b.jsonl", "data/.hidden.jsonl", "dataset_infos.json", "data/config.json", "README.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, {"text": name})
    (tmp_path / "data/again").symlink_to(tmp_path)  # a circle
    train = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert [record.text for record in read(tmp_path).records] == ["a.jsonl", *train, "test/0001.jsonl"]
    assert [record.text for record in read(tmp_path, split="train").records] == train
    assert [record.text for record in read(tmp_path, split="test").records] == ["test/0001.jsonl"]


def test_linked_directories_are_read_where_they_lead_and_every_directory_once(tmp_path: Path) -> None:
    for place, hidden in {"data/a": "data/a", "elsewhere": "data/.elsewhere"}.items():
        (tmp_path / hidden).mkdir(parents=True)
        write(tmp_path / hidden / "x.jsonl", {"text": place})
    (tmp_path / "data/b").symlink_to(tmp_path / "data/.elsewhere")
    assert [record.text for record in read(tmp_path / "data").records] == ["data/a", "elsewhere"]
    assert [record.text for record in read(tmp_path / "data", split="b").records] == ["elsewhere"]
    (tmp_path / "data/0").symlink_to("a")  # first by name, and yet the link
    (tmp_path / "data/.elsewhere/up").symlink_to(tmp_path / "data")  # a circle
    records = read(tmp_path / "data").records
    assert [(record.text, record.origin) for record in records] == [
        ("data/a", f"{tmp_path}/data/a/x.jsonl:1"),
        ("elsewhere", f"{tmp_path}/data/b/x.jsonl:1"),
    ]


def test_files_of_a_directory_that_nobody_reads_are_known(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", TEXT)
    for name in ("README", "readme.rst", "LICENSE-2.0", "card.md", "load.py", ".gitattributes", "config.json"):
        save(tmp_path / name, b"x")
    assert unread_files(Spec((), str(tmp_path), None)) == []
    (tmp_path / "test").mkdir()
    for name in ("train.xlsx", "test/part-00000", "train.jsonl.bz2", "test/picture.png"):
        save(tmp_path / name, b"x")
    (tmp_path / "test/gone").symlink_to("nowhere")
    assert len(read(tmp_path).records) == 1
    unread = ["test/gone", "test/part-00000", "test/picture.png", "train.jsonl.bz2", "train.xlsx"]
    assert unread_files(Spec((), str(tmp_path), None)) == unread
    assert unread_files(Spec((), str(tmp_path), "train")) == unread[3:]
    assert unread_files(Spec((), str(tmp_path / "train.jsonl"), None)) == []
    assert unread_files(Spec((), "owner/name", None)) == []


def test_data_file_of_a_directory_that_is_no_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", TEXT)
    (tmp_path / "b.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"b\.jsonl: a link that leads nowhere, a pipe or a device"):
        read(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl: a link that leads nowhere, a pipe or a device"):
        read(tmp_path)
    assert len(read(tmp_path, split="a").records) == 1


def test_directory_that_is_called_like_a_file_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    assert "x.jsonl: no data files in this directory" in refusal(tmp_path / "x.jsonl")
    write(tmp_path / "x.jsonl" / "a.jsonl", TEXT)
    assert len(read(tmp_path / "x.jsonl").records) == 1


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    assert 'a link to "b.jsonl", where nothing is' in refusal(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").unlink()
    assert 'a link to "b.jsonl", where nothing is' in refusal(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", TEXT)
    assert len(read(tmp_path / "a.jsonl").records) == 1


def test_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "a pipe or device" in refusal(tmp_path / "a.txt")


def test_missing_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        Path(place).chmod(0o755)
        closed = Path(place, "closed")
        closed.mkdir()
        write(closed / "a.jsonl", TEXT)
        closed.chmod(0o000)
        stack.callback(closed.chmod, 0o700)
        Path(place, "a.jsonl").touch(0o000)
        if os.geteuid() == 0:  # who may read everything
            stack.callback(os.seteuid, 0)
            os.seteuid(65534)
        for path in (Path(place, "a.jsonl"), closed, closed / "a.jsonl"):
            assert f"{path}: cannot be read: Permission denied. Mend the permissions" in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow"])
def test_file_that_vanishes_before_it_is_read_is_an_error(tmp_path: Path, name: str) -> None:
    assert f"{name}: cannot be read" in str(failure(read_rows(tmp_path / name)))


def failure(rows: Iterator[Row]) -> DataError:
    with pytest.raises(DataError) as error:
        list(rows)
    return error.value


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a" * 1000}] * 3000
    path = write(tmp_path / name, *rows)
    if name == "a.json":
        path.write_text(json.dumps(rows))
    if name == "a.txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    reading = read_rows(path)
    next(reading)
    path.write_bytes(path.read_bytes()[: 2 << 20])
    assert f"{name}: became shorter while it was read" in str(failure(reading))


# Datasets of the hub, by the library itself on a directory


CARD = """---
configs:
- config_name: main
  data_files: main.jsonl
- config_name: socratic
  data_files: other.jsonl
---
"""


def test_dataset_with_several_configurations_lists_them_and_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/README.md").write_text(CARD)
    write(tmp_path / "set/main.jsonl", {"text": "main"})
    write(tmp_path / "set/other.jsonl", {"text": "socratic"})
    load = datasets.load_dataset

    def load_dataset(location: str, config: str | None, *, split: str) -> Any:
        return load(str(tmp_path / "set"), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"several configurations: \['main', 'socratic'\].*owner/name#CONFIG/train"):
        read("owner/name")
    assert [record.text for record in read("owner/name", split="socratic/train").records] == ["socratic"]
    with pytest.raises(DataError, match=r"'socratic'"):
        read("owner/name", split="other/train")
    with pytest.raises(DataError, match=r'split "dev"'):
        read("owner/name", split="main/dev")


# Whatever a file holds


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=300), name=st.sampled_from(["a" + suffix for suffix in SUFFIXES]))
def test_whatever_bytes_a_file_holds_there_are_rows_problems_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    pack = gzip.compress if name.endswith(".gz") else zstd if name.endswith(".zst") else bytes
    for data in {content, pack(content)}:
        path = save(tmp_path_factory.getbasetemp() / name, data)
        with contextlib.suppress(DataError):
            for row in read_rows(path):
                assert row.origin.startswith(str(path))
                assert row.problem == "" or row.value is None


ROWS = st.lists(
    st.dictionaries(st.sampled_from(["text", "prompt", "score"]), st.none() | st.text() | st.integers(), min_size=1)
    | st.text()
    | st.integers(),
    max_size=20,
)


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, broken=st.sets(st.integers(0, 19)), packed=st.sampled_from(["", ".gz", ".zst"]))
def test_records_in_are_records_out_and_records_dropped(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], broken: set[int], packed: str
) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    lines = [line[:-1] + b"\xff" if i in broken else line for i, line in enumerate(lines)]
    content = b"".join(line + b"\n" for line in lines)
    pack = gzip.compress if packed == ".gz" else zstd if packed == ".zst" else bytes
    path = save(tmp_path_factory.getbasetemp() / f"a.jsonl{packed}", pack(content))
    read_back = list(read_rows(path))
    assert [row.origin for row in read_back] == [f"{path}:{i + 1}" for i in range(len(rows))]
    assert [row.value for row in read_back if not row.problem] == [row for i, row in enumerate(rows) if i not in broken]
    try:
        source = read(path, "skip")
    except DataError as error:
        assert "none of its" in str(error) or "is empty" in str(error)
    else:
        assert len(source.records) + len(source.dropped) == len(rows)
        assert not source.dropped or len(source.records) < len(rows)
