"""Rows on disk: what comes back, what the cache tells apart, and what processes do."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatsmith.data import store
from chatsmith.data.parallel import AHEAD, CHUNK, FEW, chunks_of, in_parallel, ranges_of
from chatsmith.data.records import Chosen, choose, from_bytes, to_bytes
from chatsmith.data.store import Entry, Writer, stored
from chatsmith.errors import DataError, RunError
from chatsmith.types import Answer, Message, Record

RECORD = Record(
    prompt=(
        Message("system", "Kurz."),
        Message("user", "你好 \ud83c\udf1f".encode("utf-16", "surrogatepass").decode("utf-16")),
    ),
    answers=(Answer("Ja.", 1.5), Answer("Nein.")),
    fields={"a": [1, {"b": None}]},
    origin="f:1",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(key: list[str] | None, rows: list[list[int]], made: list[str]) -> Entry:
    def write(writer: Writer) -> dict[str, Any]:
        made.append("made")
        for row in rows:
            writer.rows("rows", [np.array(row, np.int32).tobytes()])
            writer.numbers("sums", [sum(row)])
        return {"count": len(rows)}

    return stored("test", key, write, ragged={"rows": "i4"}, numbers={"sums": "f8"})


@pytest.mark.parametrize("key", [["k"], None])
def test_rows_and_numbers_come_back_as_they_were_written(root: Path, key: list[str] | None) -> None:
    rows = [[1, -2, 3], [], [2**31 - 1]]
    read = entry(key, rows, [])
    assert [row.tolist() for row in read.rows("rows")] == rows
    assert read.rows("rows").lengths.tolist() == [3, 0, 1]
    assert read.rows("rows")[-1].tolist() == rows[-1]
    assert [row.tolist() for row in read.rows("rows")[1:]] == rows[1:]
    with pytest.raises(IndexError):
        read.rows("rows")[3]
    assert read.numbers("sums").tolist() == [2.0, 0.0, 2.0**31 - 1]
    assert read.facts == {"count": 3}
    assert entry(key, [], []).facts == ({"count": 3} if key else {"count": 0})


def test_an_entry_is_made_once_for_each_key_and_code(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for key in (["a"], ["a"], ["b"], ["a", ""], None, None):
        entry(key, [[1]], made)
    assert len(made) == 5
    monkeypatch.setattr(store, "code_hash", lambda: "other code")
    entry(["a"], [[1]], made)
    assert len(made) == 6


def test_what_fails_or_has_no_key_leaves_nothing_behind(root: Path) -> None:
    def write(writer: Writer) -> dict[str, Any]:
        writer.rows("rows", [b"1234"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored("test", ["k"], write, ragged={"rows": "i4"}, numbers={})
    entry(None, [[1]], [])
    assert list(root.iterdir()) == []
    assert entry(["k"], [[5]], []).rows("rows")[0].tolist() == [5]


def test_what_nothing_has_used_for_a_month_goes(root: Path) -> None:
    entry(["old"], [[1]], [])
    (old,) = root.iterdir()
    os.utime(old, (0, 0))
    store._forget_unused.cache_clear()  # it looks once per process
    entry(["new"], [[1]], [])
    assert not old.exists()
    assert len(list(root.iterdir())) == 1


def test_an_entry_that_is_not_whole_is_made_again(root: Path) -> None:
    for harm in ("rows.bin", "entry.json", "rows.lengths.bin", "sums.bin"):
        made: list[str] = []
        entry(["k"], [[5, 6], [7]], made)
        (place,) = root.iterdir()
        if harm == "rows.bin":
            (place / harm).write_bytes(b"1234")
        else:
            (place / harm).unlink()
        assert [row.tolist() for row in entry(["k"], [[5, 6], [7]], made).rows("rows")] == [[5, 6], [7]], harm
        assert made == ["made", "made"]
        entry(["k"], [[5, 6], [7]], made)
        assert made == ["made", "made"]
        (place,) = root.iterdir()  # nothing of the broken one is left
        shutil.rmtree(place)


def test_what_others_keep_beside_the_cache_is_left_alone(root: Path) -> None:
    for name in ("thesis", "making", "a.txt"):
        (root / name).mkdir(parents=True)
        os.utime(root / name, (0, 0))
    (root / "records-old").write_text("a file")
    os.utime(root / "records-old", (0, 0))
    entry(["k"], [[1]], [])
    assert {"thesis", "making", "a.txt", "records-old"} < {path.name for path in root.iterdir()}


def test_a_cache_that_may_only_be_read_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(["k"], [[1]], [])
    monkeypatch.setattr(store.tempfile, "mkdtemp", lambda **_: pytest.fail("nothing is to be made"))
    assert entry(["k"], [[1]], []).rows("rows")[0].tolist() == [1]


def test_a_full_disk_is_one_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_files: None
) -> None:
    monkeypatch.setattr(store.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RunError, match=r"File too large.*CHATSMITH_CACHE"):
        entry(["k"], [[0] * 5000], [])
    assert list(root.iterdir()) == []
    assert list(tmp_path.iterdir()) == [root]


def test_where_no_cache_can_be_the_rows_lie_elsewhere_and_it_is_said_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store._say_that_nothing_is_kept.cache_clear()
    root.write_text("a file in its place")
    for _ in range(2):
        assert entry(["k"], [[1, 2]], []).rows("rows")[0].tolist() == [1, 2]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{root}: File exists: prepared data is not kept, and made anew by the next command"]


def test_a_refusal_while_the_source_is_read_is_not_blamed_on_the_cache(root: Path) -> None:
    def write(writer: Writer) -> dict[str, Any]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data.jsonl")

    with pytest.raises(PermissionError, match=r"data\.jsonl"):
        stored("test", ["k"], write, ragged={"rows": "i4"}, numbers={})
    assert list(root.iterdir()) == []


def test_a_record_comes_back_from_its_bytes() -> None:
    read = from_bytes(to_bytes(RECORD))
    assert read == RECORD
    assert (read.fields, read.origin) == (RECORD.fields, RECORD.origin)  # not compared above


def test_half_a_character_in_a_field_is_kept_and_what_json_cannot_say_is_refused() -> None:
    half = "\ud800"
    read = from_bytes(to_bytes(Record(text="a", fields={half: half}, origin=f"f{half}:1")))
    assert (read.fields, read.origin) == ({half: half}, f"f{half}:1")
    for value in ({(1, 2): "a"}, {"a": np.int64(3)}, {"a": {1, 2}}):
        with pytest.raises(DataError, match="cannot be kept"):
            to_bytes(Record(text="a", fields=value))


def test_rows_are_chosen_over_several_sequences_and_again_from_a_choice() -> None:
    rows = Chosen(["ab", "", "cde"], np.array([4, 0, 2, 2]), "sha")
    assert "".join(rows) == "eacc"
    assert "".join(rows[1:]) == "acc"
    assert "".join(choose(rows, np.array([3, 0]))) == "ce"
    assert rows.sha256 == Chosen(["ab", "", "cde"], np.array([4, 0, 2, 2]), "sha").sha256
    assert len({r.sha256 for r in (rows, rows[1:], Chosen(["x"], rows.numbers, "other"))}) == 3
    assert choose(["a"], np.array([0])).sha256 is None


def test_chunks_come_in_order_and_from_several_processes_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    held = list(range(2 * FEW * CHUNK + 7))  # forked processes see it without being sent it
    for count, processes in ((0, 0), (5, 1), (FEW * CHUNK, 1), (len(held), 2)):
        for chunks in (ranges_of(np.full(count, 9)), chunks_of(iter(held[:count]))):
            results = list(in_parallel(lambda rows: (os.getpid(), [held[i] for i in rows]), chunks, "testing"))
            assert [row for _, rows in results for row in rows] == held[:count]
            pids = {pid for pid, _ in results}
            assert len(pids) <= processes
            assert (os.getpid() in pids) == (processes == 1)


def test_chunks_of_long_rows_are_short() -> None:
    long = {"a": [{"b": "x" * 90_000}, 1, None]}  # 22 of them are 2 million letters, seen with the 21st
    assert [len(chunk) for chunk in chunks_of([long] * 50)] == [21, 21, 8]
    assert [len(chunk) for chunk in chunks_of(["x"] * (CHUNK + 1))] == [CHUNK, 1]
    assert [len(rows) for rows in ranges_of(np.full(50, 90_000))] == [23, 23, 4]  # of 22 the next one is due
    assert list(ranges_of(np.array([3_000_000, 0, 5, 3_000_000, 1]))) == [range(1), range(1, 4), range(4, 5)]
    assert list(ranges_of(np.zeros(0))) == []


def test_rows_are_asked_for_only_a_few_chunks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    asked = []

    def rows() -> Iterator[int]:
        for row in range(100 * CHUNK):
            asked.append(row)
            yield row

    for number, _ in enumerate(in_parallel(len, chunks_of(rows()), "testing"), 1):
        assert len(asked) <= (max(FEW + 1, number + 2 * AHEAD)) * CHUNK
    assert number == 100


def test_an_error_in_a_process_is_the_callers_and_a_killed_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})

    def fails(rows: range) -> None:
        raise ValueError(f"bad row {rows.start}")

    with pytest.raises(ValueError, match="bad row 0"):
        list(in_parallel(fails, ranges_of(np.ones(2 * FEW * CHUNK)), "testing"))
    with pytest.raises(DataError, match="ended by the system"):
        list(in_parallel(lambda rows: os.kill(os.getpid(), 9), ranges_of(np.ones(2 * FEW * CHUNK)), "testing"))
