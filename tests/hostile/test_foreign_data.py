"""Data from strangers: read inside itself, up to what text needs, and named in one line."""

import gzip
import json
import os
import shutil
import time

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatsmith.data import tables, unpacked
from chatsmith.data.sources import read_source, unread_files
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError
from chatsmith.files import bounds

ROW = '{"text": "words"}\n'


def read(path, split=None):
    return read_source(Spec((), str(path), split), on_error="raise", split_seed=0)


def skipping(path):
    return read_source(Spec((), str(path), None), on_error="skip", split_seed=0)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "SECRET"}\n')
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    (path / "a.jsonl").write_text(ROW)
    return path


@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet", "b.txt.gz", "b", "deep/b.json"])
def test_links_that_lead_out_of_a_directory_are_refused(data, secret, name):
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).symlink_to(secret.parent if name == "b" else secret)
    with pytest.raises(DataError, match="leads out of this directory"):
        read(data)
    (data / name).unlink()
    assert len(read(data).records) == 1
    (tmp := data / "link.jsonl").symlink_to(secret)  # which the user names
    assert read(tmp).records[0].text == "SECRET"


def test_links_inside_and_those_of_the_hubs_cache_are_read(data, tmp_path):
    (data / ".hidden").mkdir()
    (data / ".hidden" / "b.jsonl").write_text(ROW)
    (data / "b.jsonl").symlink_to(".hidden/b.jsonl")
    (data / ".hidden" / "out").symlink_to("/etc")  # nobody looks there
    assert len(read(data).records) == 2
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "01" / "data"
    snapshot.mkdir(parents=True)
    shutil.copytree(data, tmp_path / "datasets--a--b" / "blobs", symlinks=True)
    (snapshot / "x.jsonl").symlink_to("../../../blobs/a.jsonl")
    for place in (snapshot, snapshot.parent):
        assert len(read(place).records) == 1


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_no_data(data, kind):
    path = data / "b.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for place in (data, path):
        with pytest.raises(DataError, match=r"pipe or (a )?device"):
            read(place)


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE.txt", "COPYING"])
def test_a_licence_is_one_short_line_of_a_file_inside(data, secret, name):
    (data / name).symlink_to(secret)
    assert [read(place).licence for place in (data, data / "a.jsonl")] == [None, None]
    (data / name).unlink()
    (data / name).symlink_to("/proc/self/environ")
    assert read(data).licence is None
    (data / name).unlink()
    os.mkfifo(data / name)
    assert read(data).licence is None
    (data / name).unlink()
    (data / name).write_text("\n MIT \x1b[2J\x07 Licence" + "x" * 10**6 + "\nmore")
    licence = read(data).licence
    assert licence.startswith("MIT �[2J� Licencexx")
    assert len(licence) <= 200


@pytest.mark.parametrize("name", ["a\nb.jsonl", "a\tb.jsonl", "\x1b[2J.jsonl", "a\r.jsonl"])
def test_a_name_stays_in_its_line(data, name):
    (data / name).write_text(ROW)
    for place in (data, data / name):
        with pytest.raises(DataError, match="Rename it") as error:
            read(place)
        assert str(error.value).isprintable()
    (data / name).rename(data / f"{name}.xyz")
    assert all(name.isprintable() for name in unread_files(Spec((), str(data), None)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    table = datasets.Dataset.from_dict({"text": ["one", "two"]})
    table.save_to_disk(path / "table")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(path / "tables")
    return path


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_saved_dataset_names_files_and_splits_inside(saved, tmp_path, absolute):
    shutil.copytree(saved, tmp_path / "s")
    table, whole, other = tmp_path / "s/table", tmp_path / "s/tables", tmp_path / "s/table/data-00000-of-00001.arrow"
    assert (len(read(table).records), len(read(whole).records)) == (2, 2)
    change(
        whole / "train/state.json", _data_files=[{"filename": str(other) if absolute else "../../table/" + other.name}]
    )
    with pytest.raises(DataError, match="leads out"):
        read(whole)
    shutil.copytree(saved / "tables", tmp_path / "t")
    change(tmp_path / "t/dataset_dict.json", splits=["train", str(table) if absolute else "../s/table"])
    with pytest.raises(DataError, match="leads out"):
        read(tmp_path / "t")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow", "x"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_in_a_saved_dataset_leads_out_of_it(saved, tmp_path, name, kind):
    path = shutil.copytree(saved / "table", tmp_path / "table")
    if (path / name).exists():
        (path / name).rename(tmp_path / name)
    else:
        (tmp_path / name).touch()
    if kind == "link":
        (path / name).symlink_to(tmp_path / name)
    else:
        os.mkfifo(path / name)
    with pytest.raises(DataError, match=name):
        read(path)


def test_what_is_hidden_beside_a_saved_dataset_is_no_matter_unless_it_is_named(saved, tmp_path):
    path = shutil.copytree(saved / "tables", tmp_path / "t")
    (path / ".venv").symlink_to("/usr")
    os.mkfifo(path / ".x")
    assert len(read(path).records) == len(read(saved / "tables").records)
    change(path / "train/state.json", _data_files=[{"filename": "../.x"}])
    with pytest.raises(DataError, match=r"no file|a link"):
        read(path)


JSON = st.recursive(
    st.none() | st.sampled_from([0, -1, 10**30, "", "a", "../x", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=JSON)
def test_any_value_in_a_saved_dataset_is_read_or_refused(saved, tmp_path_factory, data, value):
    path = shutil.copytree(saved / "tables", tmp_path_factory.mktemp("s") / "t")
    name = data.draw(st.sampled_from(["dataset_dict.json", "train/state.json", "train/dataset_info.json"]))
    held = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(held | {data.draw(st.sampled_from(sorted(held))): value}))
    try:
        read(path)
    except DataError as error:
        assert str(error)
    shutil.rmtree(path)


# Bombs


def repeated(count, length):
    values = pyarrow.array(["x" * length])
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), values)


def write(path, columns):
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema, options=options) as out:
            out.write_table(table)
    assert path.stat().st_size < 100_000
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_that_unpack_to_far_more_than_text_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(tables, "_ANY_FILE", 1 << 20)
    monkeypatch.setattr(tables, "CAP", 1 << 20)
    monkeypatch.setattr(bounds, "MEMORY", 1 << 29)
    words = pyarrow.array(["words"])
    millions = pyarrow.ListArray.from_arrays(pyarrow.array([0, 10**6], pyarrow.int32()), pyarrow.nulls(10**6))
    for number, columns in enumerate(
        [
            {"text": repeated(10_000, 50_000)},
            {"text": pyarrow.array(["x" * (1 << 22)])},
            {"text": words, "list": millions},
            {"text": words, "all": pyarrow.StructArray.from_arrays([millions], ["list"])},
            {"text": pyarrow.nulls(3 * 10**6, pyarrow.string())},
        ]
    ):
        with pytest.raises(DataError, match=r"no text that anybody wrote|longer than|of memory"):
            skipping(write(tmp_path / f"{number}{suffix}", columns))


def test_a_table_that_repeats_itself_a_little_is_read(tmp_path):
    assert len(read(write(tmp_path / "a.parquet", {"text": repeated(300, 5_000)})).records) == 300


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_packed_text_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch, kind, suffix):
    from chatsmith.data import files, json_rows, lines

    for module in (files, json_rows, lines):
        if hasattr(module, "CAP"):
            monkeypatch.setattr(module, "CAP", 1 << 20)
    raw = b"text\n" + b'"' * (kind != ".txt") + b"x" * (1 << 24)
    packed = gzip.compress(raw) if suffix == ".gz" else pyarrow.compress(raw, "zstd", asbytes=True)
    (tmp_path / f"a{kind}{suffix}").write_bytes(packed)
    with pytest.raises(DataError, match=r"no text that anybody wrote|longer than|JSON"):
        read(tmp_path / f"a{kind}{suffix}")


def view(count, text):
    """Rows of one text that is there once: [count]."""
    views = (len(text).to_bytes(4, "little") + text[:4].encode() + bytes(8)) * count
    buffers = [None, pyarrow.py_buffer(views), pyarrow.py_buffer(text.encode())]
    return pyarrow.Array.from_buffers(pyarrow.string_view(), count, buffers)


def of_one(count, value):
    """A dictionary of one value that is no text: [count]."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([value]))


def overlapping(count, values):
    offsets, sizes = ([n] * count for n in (0, len(values)))
    return pyarrow.ListViewArray.from_arrays(
        pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(sizes, pyarrow.int32()), values
    )


def pairs_of_nothing(count):
    keys = pyarrow.Array.from_buffers(pyarrow.struct([]), count, [None], children=[])
    return pyarrow.MapArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), keys, pyarrow.nulls(count))


def union(count, length, mode):
    codes = pyarrow.array([0] * count, pyarrow.int8())
    texts = of_one(count, {"a": "x" * length}) if mode == "sparse" else pyarrow.array(["x" * length])
    if mode == "sparse":
        return pyarrow.UnionArray.from_sparse(codes, [texts])
    return pyarrow.UnionArray.from_dense(codes, pyarrow.array([0] * count, pyarrow.int32()), [texts])


def runs(count, length):
    ends = pyarrow.array([count], pyarrow.int32())
    return pyarrow.RunEndEncodedArray.from_arrays(ends, pyarrow.array(["x" * length]))


TEXT = "x" * 20_000
BOMBS = {
    "string_view": lambda: view(2000, TEXT),
    "dictionary of lists": lambda: of_one(2000, [TEXT]),
    "dictionary of objects": lambda: of_one(2000, {"a": {"b": TEXT}}),
    "overlapping lists": lambda: overlapping(2000, pyarrow.array([1] * 20_000, pyarrow.int8())),
    "overlapping lists of such": lambda: overlapping(
        3000, overlapping(3000, overlapping(3000, overlapping(3000, overlapping(3000, pyarrow.nulls(3000)))))
    ),
    "pairs of nothing": lambda: pairs_of_nothing(10**8),
    "nothing": lambda: pyarrow.nulls(10**9),
    "a long list of nothing": lambda: pyarrow.FixedSizeListArray.from_arrays(pyarrow.nulls(10**9), 10**9),
    "dense union": lambda: union(2000, 20_000, "dense"),
    "sparse union": lambda: union(2000, 20_000, "sparse"),
    "runs": lambda: runs(2000, 20_000),
    "runs without end": lambda: runs(2 * 10**9, 1),
    "runs in a list": lambda: pyarrow.ListArray.from_arrays(pyarrow.array([0, 10**9], pyarrow.int32()), runs(10**9, 1)),
    "in an object": lambda: pyarrow.StructArray.from_arrays([view(2000, TEXT)], ["a"]),
    "an extension": lambda: pyarrow.ExtensionArray.from_storage(
        pyarrow.opaque(pyarrow.string_view(), "a", "b"), view(2000, TEXT)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_says_a_value_many_times_is_counted_before_it_is_unpacked(monkeypatch, name):
    monkeypatch.setattr(tables, "_ANY_FILE", 8 << 20)
    monkeypatch.setattr(tables, "CAP", 16 << 20)
    monkeypatch.setattr(bounds, "MEMORY", 1 << 29)
    opened = []
    monkeypatch.setattr(tables, "_values", lambda *piece: opened.append(piece) or [])
    batch = pyarrow.record_batch([BOMBS[name]()], ["text"])
    with pytest.raises(DataError, match=r"no text that anybody wrote|longer than|of memory|allocate|allocation"):
        list(tables.table_rows([batch], "a.arrow", lambda: 1000))
    assert not opened


def said(value):
    """The letters and numbers in a value."""
    if isinstance(value, dict):
        return sum(map(said, value.values())) + 1
    if isinstance(value, list | tuple):
        return sum(map(said, value)) + 1
    return len(value) if isinstance(value, str) else 1 if value is None or isinstance(value, int | float) else 8


TEXTS = st.none() | st.sampled_from(["", "a", "long enough to be no part of a view " * 3])
LEAVES = {
    pyarrow.string(): TEXTS,
    pyarrow.large_string(): TEXTS,
    pyarrow.string_view(): TEXTS,
    pyarrow.null(): st.none(),
    pyarrow.bool_(): st.none() | st.booleans(),
    pyarrow.int16(): st.none() | st.integers(0, 9),
    pyarrow.float16(): st.none() | st.sampled_from([0.5, 1.0]),
    pyarrow.decimal256(40, 2): st.none() | st.decimals(0, 9, places=2),
    pyarrow.timestamp("ns"): st.none() | st.datetimes(),
    pyarrow.date32(): st.none() | st.dates(),
    pyarrow.time64("us"): st.none() | st.times(),
    pyarrow.duration("s"): st.none() | st.timedeltas(),
    pyarrow.month_day_nano_interval(): st.none(),
}
LISTS = [pyarrow.list_, pyarrow.large_list, pyarrow.list_view, pyarrow.large_list_view]


@st.composite
def arrays(draw, depth=2):
    """An array of any type that pyarrow has, a part of a longer one."""
    count = draw(st.integers(1, 6))
    array = draw(nested(count, depth))
    start = draw(st.integers(0, count - 1))
    return array.slice(start, draw(st.integers(1, count - start)))


@st.composite
def nested(draw, count, depth):
    kinds = ["leaf", "list", "fixed", "struct", "map", "dictionary", "runs", "dense", "sparse", "extension"]
    kind = draw(st.sampled_from(kinds)) if depth else "leaf"
    if kind == "leaf":
        type = draw(st.sampled_from(list(LEAVES)))
        try:
            return pyarrow.array(draw(st.lists(LEAVES[type], min_size=count, max_size=count)), type)
        except (pyarrow.ArrowInvalid, OverflowError):  # a time that the type has no room for
            return pyarrow.nulls(count, type)
    if kind == "list":
        make = draw(st.sampled_from(LISTS))
        inner = draw(nested(draw(st.integers(0, 6)), depth - 1))
        at = draw(st.lists(st.tuples(st.integers(0, len(inner)), st.integers(0, len(inner))), max_size=count))
        at += [(0, 0)] * (count - len(at))
        width = pyarrow.int64() if "large" in make.__name__ else pyarrow.int32()
        if "view" in make.__name__:
            starts, sizes = [min(a, b) for a, b in at], [abs(a - b) for a, b in at]
            of = pyarrow.LargeListViewArray if "large" in make.__name__ else pyarrow.ListViewArray
            return of.from_arrays(pyarrow.array(starts, width), pyarrow.array(sizes, width), inner)
        of = pyarrow.LargeListArray if "large" in make.__name__ else pyarrow.ListArray
        return of.from_arrays(pyarrow.array(sorted([0, *(a for a, _ in at)]), width), inner)
    if kind == "fixed":
        size = draw(st.integers(1, 3))
        return pyarrow.FixedSizeListArray.from_arrays(draw(nested(count * size, depth - 1)), size)
    if kind == "map":
        size = draw(st.integers(0, 4))
        keys = pyarrow.array(draw(st.lists(st.text("ab", max_size=20), min_size=size, max_size=size)), pyarrow.string())
        at = sorted(draw(st.lists(st.integers(0, size), min_size=count + 1, max_size=count + 1)))
        return pyarrow.MapArray.from_arrays(pyarrow.array(at, pyarrow.int32()), keys, draw(nested(size, depth - 1)))
    if kind == "dictionary":
        values = pyarrow.array(draw(st.lists(st.text("ab", max_size=20), max_size=3)), pyarrow.string())
        index = st.none() | st.integers(0, len(values) - 1) if len(values) else st.none()
        at = draw(st.lists(index, min_size=count, max_size=count))
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array(at, pyarrow.int8()), values)
    if kind == "runs" and count:
        ends = sorted({*draw(st.lists(st.integers(1, count), max_size=3)), count})
        inner = draw(nested(len(ends), 0))
        return pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), inner)
    if kind == "extension":
        inner = draw(nested(count, 0))
        return pyarrow.ExtensionArray.from_storage(pyarrow.opaque(inner.type, "a", "b"), inner)
    if kind in ("dense", "sparse"):
        codes = pyarrow.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), pyarrow.int8())
        inner = [draw(nested(max(count, 1), depth - 1)) for _ in range(2)]
        if kind == "sparse":
            return pyarrow.UnionArray.from_sparse(codes, [each.slice(0, count) for each in inner])
        at = draw(st.lists(st.integers(0, max(count, 1) - 1), min_size=count, max_size=count))
        return pyarrow.UnionArray.from_dense(codes, pyarrow.array(at, pyarrow.int32()), inner)
    inner = [draw(nested(count, depth - 1)) for _ in range(2)]
    mask = pyarrow.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), pyarrow.bool_())
    return pyarrow.StructArray.from_arrays(inner, ["a", "b"], mask=mask)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_part_of_a_union_is_counted_as_that_part(mode):
    texts, numbers = pyarrow.array(["short", "x" * 108, "middle" * 4, "y"]), pyarrow.array([1, 2, 3, 4])
    codes = pyarrow.array([1, 0, 0, 1], pyarrow.int8())
    union = (
        pyarrow.UnionArray.from_sparse(codes, [texts, numbers])
        if mode == "sparse"
        else pyarrow.UnionArray.from_dense(codes, pyarrow.array([3, 1, 2, 0], pyarrow.int32()), [texts, numbers])
    )
    whole = unpacked.row_sizes(pyarrow.record_batch([union], ["text"]))
    assert whole[1] - whole[2] == 108 - 24
    for begin in range(4):
        for end in range(begin + 1, 5):
            part = unpacked.row_sizes(pyarrow.record_batch([union[begin:end]], ["text"]))
            assert part.tolist() == whole[begin:end].tolist()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(array=arrays())
def test_the_size_of_a_row_is_at_least_what_is_in_it(array):
    sizes = unpacked.row_sizes(pyarrow.record_batch([array], ["text"]))
    values = [tables._plain(value) for value in array.to_pylist()]
    for size, value in zip(sizes, values, strict=True):
        assert said(value) <= size - unpacked.ROW <= 40 * (said(value) + 8)


# Records of any form


def brackets(count, opening="[", closing="]"):
    return opening * count + closing * count


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("depth", [101, 150, 300, 900])
@pytest.mark.parametrize("row", ['{"text": "a", "x": %s}', '{"prompt": "a", "chosen": "b", "rejected": "c", "x": %s}'])
def test_a_record_that_is_nested_deep_is_a_bad_record(tmp_path, suffix, depth, row):
    rows = [row % brackets(depth), row % brackets(depth, '{"a":', "}").replace(":}", ":1}"), row % 1]
    whole = "\n".join(rows) if suffix == ".jsonl" else f"[{','.join(rows)}]"
    path = tmp_path / f"a{suffix}"
    path.write_text(whole)
    place = ":1" if suffix == ".jsonl" else r"\[0\]"
    with pytest.raises(DataError, match=rf"a{suffix}{place}: it is nested more than 100 deep"):
        read(path)
    source = skipping(path)
    assert (len(source.records), len(source.dropped)) == (1, 2)
    path.write_text(whole.replace(brackets(depth), brackets(99)))  # and the record around them
    assert len(skipping(path).records) == 2


@pytest.mark.parametrize("depth", [60, 150])
def test_a_table_that_is_nested_deep_is_refused(tmp_path, depth):
    kind = pyarrow.string()
    for _ in range(depth):
        kind = pyarrow.list_(kind)
    batch = pyarrow.record_batch([pyarrow.array(["a"]), pyarrow.nulls(1, kind)], ["text", "x"])
    if depth > 100:
        with pytest.raises(DataError, match=r'"x" is nested more than 100 deep'):
            list(tables.table_rows([batch], "a.arrow", lambda: 1000))
    else:
        assert len(list(tables.table_rows([batch], "a.arrow", lambda: 1000))) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("fields", [{}, {"prompt": "a"}, {"text": "a"}])
def test_a_record_of_very_many_fields_takes_no_time(tmp_path, suffix, fields):
    path = tmp_path / f"a{suffix}"
    for count in (4_000, 200_000):
        row = {**fields, **{f"k{i}": "1" for i in range(count)}}
        if suffix == ".csv":
            path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
        else:
            path.write_text(json.dumps([row] if suffix == ".json" else row))
        started = time.process_time()
        try:
            read(path)
        except DataError as error:
            assert len(str(error)) < 3000
        assert time.process_time() - started < 2
    with pytest.raises(DataError, match="more than 10000"):
        read(path)


def test_the_last_of_very_many_fields_stands_twice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{" + "".join(f'"k{i}": 1, ' for i in range(50_000)) + '"z": 1, "z": 2}')
    started = time.process_time()
    with pytest.raises(DataError, match='"z" stands twice'):
        read(path)
    assert time.process_time() - started < 2


def test_a_saved_dataset_of_other_rows_is_read_anew_whatever_it_calls_itself(saved, tmp_path):
    path = shutil.copytree(saved / "table", tmp_path / "table")
    assert [record.text for record in read(path).records] == ["one", "two"]
    name = json.loads((path / "state.json").read_text())["_fingerprint"]
    shutil.rmtree(path)
    datasets.Dataset.from_dict({"text": ["three"]}).save_to_disk(path)
    change(path / "state.json", _fingerprint=name)
    assert [record.text for record in read(path).records] == ["three"]


def test_a_name_in_an_error_stays_in_its_line(tmp_path, saved):
    for name in ("a\nb.xyz", "a\nb.jsonl", "a\nb", "a\nb#train"):
        path = tmp_path / name
        for kind in ("missing", "link", "empty directory", "saved"):
            if kind == "link":
                path.symlink_to("no\nwhere")
            elif kind == "empty directory":
                path.mkdir()
            elif kind == "saved":
                shutil.copytree(saved / "table", path, dirs_exist_ok=True)
            with pytest.raises(DataError) as error:
                read(path)
            assert str(error.value).isprintable()
            if kind == "link":
                path.unlink()
