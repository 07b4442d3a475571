"""Caches: what others could have written is not used, and nothing of theirs is deleted."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from chatsmith.cpu import attention
from chatsmith.data import store
from chatsmith.data.store import stored
from chatsmith.files.directories import is_own, own_cache

SOMEBODY = 12345


def give_away(path, uid=SOMEBODY):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, uid, uid, follow_symlinks=False)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    place = tmp_path / "cache"
    monkeypatch.setenv("CHATSMITH_CACHE", str(place))
    monkeypatch.setattr(attention, "_FLAGS", ("-O0", *attention._FLAGS[1:]))  # compiled in less time
    attention.compiled_attention.cache_clear()
    store._say_that_nothing_is_kept.cache_clear()
    yield place
    attention.compiled_attention.cache_clear()


def entry(made, value=1):
    def write(writer):
        made.append(value)
        writer.rows("rows", [np.array([value], np.int32).tobytes()])
        return {}

    return stored("test", ["k"], write, ragged={"rows": "i4"}, numbers={}).rows("rows")[0].tolist()


SPOILS = {
    "somebody's": give_away,
    "of a group": lambda path: path.chmod(0o770),
    "of all": lambda path: path.chmod(0o707),
    "in an open directory": lambda path: path.parent.chmod(0o777),
    "in somebody's": lambda path: give_away(path.parent),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_cache_that_others_could_write_is_not_used_and_it_is_said(cache, capfd, spoil):
    made = []
    assert entry(made) == [1]
    before = sorted(cache.rglob("*"))
    SPOILS[spoil](cache)
    assert entry(made, 2) == [2]
    assert sorted(cache.rglob("*")) == before
    kernel = attention.compiled_attention() if spoil == "of all" else None
    assert sorted(cache.rglob("*")) == before
    said = capfd.readouterr().err.splitlines()
    assert len(said) == (2 if kernel else 1)
    assert "is not kept" in said[0]
    assert str(cache) in said[0] or str(cache.parent) in said[0]
    with pytest.raises(OSError, match=r"yours alone|in the cache's place"):
        own_cache()


def test_a_directory_that_all_may_write_is_no_matter_where_names_are_kept(cache):
    cache.parent.chmod(0o1777)
    made = []
    assert entry(made) == entry(made) == [1]
    assert made == [1]


def test_a_cache_behind_a_link_is_used_and_one_of_somebody_behind_a_link_is_not(cache, tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    cache.symlink_to("disk")
    made = []
    assert entry(made) == entry(made) == [1]
    assert made == [1]
    give_away(tmp_path / "disk")
    assert entry(made) == [1]
    assert made == [1, 1]


def entry_with(made):
    assert entry(made) == [1]
    (place,) = Path(os.environ["CHATSMITH_CACHE"]).iterdir()
    return place


@pytest.mark.parametrize("which", ["", "rows.bin", "rows.lengths.bin", "entry.json"])
@pytest.mark.parametrize("spoil", ["somebody's", "of a group", "of all", "link"])
def test_an_entry_that_others_could_write_is_made_anew(cache, tmp_path, which, spoil):
    made = []
    path = entry_with(made) / which
    if spoil == "link":
        path.rename(tmp_path / "planted")
        path.symlink_to(tmp_path / "planted")
    else:
        SPOILS[spoil](path)
    assert entry(made, 2) == [2]
    assert made == [1, 2]


@pytest.mark.parametrize("spoil", ["of a group", "link"])
def test_a_compiled_library_that_others_could_write_is_not_run(cache, tmp_path, spoil):
    library = attention.compiled_attention()
    if library is None:
        pytest.skip("no compiler or no AVX2")
    name = Path(library._name).name
    (tmp_path / "other").mkdir(mode=0o700)
    os.environ["CHATSMITH_CACHE"] = str(tmp_path / "other")  # a path that this process has not loaded from
    path = tmp_path / "other" / name
    planted = tmp_path / "planted" if spoil == "link" else path
    planted.write_bytes(b"not a library")
    if spoil == "link":
        path.symlink_to(planted)
    else:
        SPOILS[spoil](path)
    attention.compiled_attention.cache_clear()
    assert attention.compiled_attention() is not None
    assert is_own(path)
    if spoil == "link":
        assert planted.read_bytes() == b"not a library"


def test_under_a_wide_umask_what_is_made_is_for_this_user_and_found_again(cache):
    os.environ["CHATSMITH_CACHE"] = str(cache / "a" / "b")
    made, libraries = [], []
    before = os.umask(0o002)
    try:
        assert entry(made) == entry(made) == [1]
        for _ in range(2):
            attention.compiled_attention.cache_clear()
            attention.compiled_attention()
            libraries.append([path.stat().st_ino for path in cache.rglob("*.so")])
    finally:
        os.umask(before)
    assert made == [1]
    assert libraries[0] == libraries[1]
    for path in (cache, *cache.rglob("*")):
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


def test_cleaning_deletes_what_is_ours_alone(cache, tmp_path):
    entry([])
    name = f"records-{'0' * 64}"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("kept")
    (cache / name).symlink_to(tmp_path / "theirs")
    (cache / f"tokens-{'1' * 64}").mkdir()
    give_away(cache / f"tokens-{'1' * 64}")
    (cache / f"tokens-{'2' * 64}").mkdir()
    for path in cache.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    os.utime(tmp_path / "theirs", (0, 0))
    store._forget_unused.cache_clear()  # it looks once per process
    store._forget_unused(cache)
    assert {path.name for path in cache.iterdir()} == {name, f"tokens-{'1' * 64}"}
    assert (tmp_path / "theirs" / "file").read_text() == "kept"


def test_an_entry_of_any_json_is_made_anew(cache):
    made = []
    for held in (
        [],
        {},
        {"facts": 1, "sizes": []},
        {"facts": {}, "sizes": {"../x": 1}},
        {"facts": {}, "sizes": {"rows": {}}},
    ):
        place = entry_with(made)
        (place / "entry.json").write_text(json.dumps(held))
        (place / "entry.json").chmod(0o600)
        assert entry(made) == [1]
