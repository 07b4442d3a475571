"""Data from strangers: read inside itself, up to what text needs, and named in one line."""

import gzip
import json
import os
import shutil

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatsmith import bounds
from chatsmith.data import tables
from chatsmith.data.sources import read_source, unread_files
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError

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
