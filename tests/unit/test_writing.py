"""Files are written whole or not at all, whoever writes them and whatever refuses."""

import errno
import json
import multiprocessing
import os
import random
import stat
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import byte_tokenizer, tiny_model

from chatsmith.cli import explain
from chatsmith.errors import RunError
from chatsmith.files.checkpoint import append_jsonl, load_checkpoint, read_jsonl, save_checkpoint, save_json, save_text
from chatsmith.files.writing import (
    append,
    forget_unfinished,
    is_held,
    is_unfinished,
    new_file,
    remove,
    remove_model,
    replace_directory,
    replace_file,
)
from chatsmith.machine import REMEDIES, refusal
from chatsmith.runs.run import lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", REMEDIES)
def test_whatever_the_system_refuses_is_one_message_and_the_old_one_stays(tmp_path, number):
    def write(_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for replace, path in ((replace_file, tmp_path / "file"), (replace_directory, tmp_path / "folder")):
        with pytest.raises(RunError) as caught:
            replace(path, write)
        said = str(caught.value)
        assert said.startswith(f"{path}: cannot be written: {os.strerror(number)}. {REMEDIES[number]}.")
        assert len(said.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor"), OSError("no number")]
)
def test_a_bug_stays_what_it_is_and_leaves_nothing(tmp_path, error):
    def write(_):
        raise error

    for replace in (replace_file, replace_directory):
        with pytest.raises(type(error)) as caught:
            replace(tmp_path / "new", write)
        assert caught.value is error
    assert names(tmp_path) == []


def test_libraries_that_write_say_why_they_cannot(tmp_path, small_files):
    tensors = {"a": torch.zeros(5000)}
    writers = {
        "torch": lambda path: save_checkpoint(path, tensors),
        "safetensors": lambda path: replace_directory(path, lambda folder: save_file(tensors, folder / "a")),
        "tokenizers": lambda path: replace_directory(path, byte_tokenizer().save_pretrained),
        "transformers": lambda path: replace_directory(path, tiny_model().save_pretrained),
        "us": lambda path: save_text(path, "a" * 5000),
        "lines": lambda path: append(path, "a" * 5000 + "\n"),
    }
    for name, write in writers.items():
        with pytest.raises(RunError, match=rf"/{name}: cannot be written: File too large\. Raise the limit"):
            write(tmp_path / name)
    assert names(tmp_path) == ["lines"]
    assert (tmp_path / "lines").read_text() == ""


def test_a_line_that_finds_no_room_is_taken_out_again(tmp_path, small_files):
    append_jsonl(tmp_path / "rows", [{"a": 1}])
    with pytest.raises(RunError):
        append_jsonl(tmp_path / "rows", [{"b": "x" * 3000}, {"c": "x" * 3000}])
    append_jsonl(tmp_path / "rows", [{"d": float("nan")}])
    assert read_jsonl(tmp_path / "rows") == [{"a": 1}, {"d": None}]


def test_half_a_line_is_taken_out_before_the_next_one(tmp_path):
    (tmp_path / "rows").write_text('{"a": 1}\n{"b": ')
    append_jsonl(tmp_path / "rows", [{"c": "\ud800 一"}])
    assert read_jsonl(tmp_path / "rows") == [{"a": 1}, {"c": "\ud800 一"}]
    (tmp_path / "first").write_text('{"b": ')
    append_jsonl(tmp_path / "first", [{"c": 2}])
    assert read_jsonl(tmp_path / "first") == [{"c": 2}]


def test_half_a_character_is_written_as_json_spells_it(tmp_path):
    path = os.fsdecode(b"caf\xe9")
    save_json(tmp_path / "a.json", {"path": path})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": path}


def test_no_link_is_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs\n")
    for name in ("replaced", "appended"):
        (tmp_path / name).symlink_to("theirs")
    for write in (
        lambda: save_text(tmp_path / "replaced", "ours"),
        lambda: append(tmp_path / "appended", "ours\n"),
        lambda: remove(tmp_path / "appended"),
    ):
        with pytest.raises(RunError, match="Links lead in a circle, or stand where a file belongs"):
            write()
    assert (tmp_path / "theirs").read_text() == "theirs\n"
    assert (tmp_path / "replaced").is_symlink() and (tmp_path / "appended").is_symlink()
    (tmp_path / ".run.lock").symlink_to("theirs")
    with pytest.raises(OSError) as caught, lock(tmp_path / "run"):
        pass
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "theirs").read_text() == "theirs\n"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_who_may_read_is_what_the_user_has_set(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_text(tmp_path / "file", "a")
        append(tmp_path / "lines", "a\n")
        replace_directory(tmp_path / "model", lambda path: save_file({"a": torch.zeros(2)}, path / "a.safetensors"))
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "lines", tmp_path / "model" / "a.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~mask


def test_what_a_kill_left_goes_and_nothing_else(tmp_path):
    left = []

    def killed(path):
        (path / "half").write_text("half")
        left.append(path)
        os.rename(path, tmp_path / "kept")  # as if the process were gone: nobody cleans up
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_directory(tmp_path / "sft" / "model", killed)
    os.rename(tmp_path / "kept", left[0])
    assert is_unfinished(left[0])
    others = [".partial", ".0123456789abcdef.part", "model.partial", ".git"]
    for name in others:
        (tmp_path / "sft" / name).mkdir()
    forget_unfinished(tmp_path)
    assert names(tmp_path / "sft") == sorted(others)


def test_a_lock_goes_with_whatever_ends_the_work_and_is_held_by_one(tmp_path):
    for error in (ZeroDivisionError, KeyboardInterrupt, RunError):
        with pytest.raises(error), lock(tmp_path / "run"):
            assert names(tmp_path) == [".run.lock"]
            with pytest.raises(RunError, match="another chatsmith is working on this run"), lock(tmp_path / "run"):
                pass
            raise error
        assert names(tmp_path) == []
    (tmp_path / ".run.lock").write_text("left by a kill")
    with lock(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_text() == "left by a kill"  # and not truncated
    assert names(tmp_path) == []


def test_a_lock_that_was_deleted_meanwhile_is_no_lock(tmp_path, monkeypatch):
    real = os.open
    opened = []

    def another_ends(path, *rest):  # between our opening the file and locking it
        descriptor = real(path, *rest)
        if not opened:
            os.unlink(path)
        opened.append(path)
        return descriptor

    monkeypatch.setattr(os, "open", another_ends)
    with lock(tmp_path / "run"), pytest.raises(RunError, match="another chatsmith"), lock(tmp_path / "run"):
        pass
    assert len(opened) == 3


def count_up(folder: str, times: int) -> None:
    """In a process of its own: read a number and write the next one, each time under the lock."""
    done = 0
    while done < times:
        try:
            with lock(Path(folder) / "run"):
                counter = Path(folder) / "counter"
                number = int(counter.read_text())
                time.sleep(0)  # so that another process gets in, if it can
                counter.write_text(str(number + 1))
                done += 1
        except RunError:
            time.sleep(random.random() / 1000)


def test_of_many_processes_one_holds_a_lock(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(str(tmp_path), 50)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "400"
    assert names(tmp_path) == ["counter"]


def test_a_run_is_one_by_whatever_path_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for other in (tmp_path / "elsewhere" / "link", Path("."), Path("../run")):
        with lock(tmp_path / "run"), pytest.raises(RunError, match="another chatsmith"), lock(other):
            pass
        with lock(other), pytest.raises(RunError, match="another chatsmith"), lock(tmp_path / "run"):
            pass
    assert names(tmp_path) == ["elsewhere", "run"]


def test_where_no_lock_can_be_there_is_one_error_and_no_waiting(tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    path = tmp_path / ".run.lock"
    for plant in (
        lambda: path.symlink_to(outside),
        lambda: path.symlink_to(tmp_path / "absent"),
        lambda: os.mkfifo(path),
        path.mkdir,
    ):
        plant()
        with pytest.raises(OSError) as caught, lock(tmp_path / "run"):
            pass
        assert not is_held(path)
        assert explain(caught.value) == 1
        said = capsys.readouterr().err
        assert str(path) in said and len(said.splitlines()) == 1
        assert os.path.lexists(path)
        path.rmdir() if path.is_dir() else path.unlink()
    assert names(tmp_path) == ["outside"]
    assert outside.read_text() == "theirs"


def test_lines_are_added_to_a_regular_file_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", 1 << 40)
    for name, said in (("pipe", "A pipe or device stands there"), ("endless", "its last line has no end")):
        with pytest.raises(RunError, match=said):
            append(tmp_path / name, "a\n")
    assert (tmp_path / "endless").stat().st_size == 1 << 40


def test_a_new_file_takes_no_name_that_is_taken(tmp_path, small_files):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "file").write_text("old")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError):
            new_file(tmp_path / name, "new")
    with pytest.raises(OSError):
        new_file(tmp_path / "large", "a" * 5000)
    new_file(tmp_path / "new", "\ud800 一")
    assert (tmp_path / "new").read_text() == "\\ud800 一"
    assert names(tmp_path) == ["file", "link", "new"]
    assert (tmp_path / "file").read_text() == "old"


def model_into(path):
    save_file({"a": torch.zeros(2)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")


def test_a_directory_that_holds_anything_else_is_neither_replaced_nor_deleted(tmp_path):
    model = tmp_path / "model"
    for name in ("notes.txt", ".git/config", "model/weights", "old.json", "README.md.bak"):
        replace_directory(model, model_into)
        foreign = model / name
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text("mine")
        before = sorted(model.rglob("*"))
        for change in (lambda: replace_directory(model, model_into), lambda: remove_model(model)):
            with pytest.raises(
                RunError, match=r"not made by chatsmith, and would go with the model there\. Move it away"
            ):
                change()
        assert sorted(model.rglob("*")) == before
        foreign.unlink()
        if foreign.parent != model:
            foreign.parent.rmdir()
    (tmp_path / "kept").write_text("theirs")
    (model / "tokenizer.json").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(model)
    for path in (model, tmp_path / "link", tmp_path / "kept"):
        with pytest.raises(RunError, match=r"not made by|a link, which|a file stands there"):
            replace_directory(path, model_into)
    (tmp_path / "README.md").write_text("a project, and no model")
    with pytest.raises(RunError, match="not empty and no model"):
        replace_directory(tmp_path, model_into)
    (model / "tokenizer.json").unlink()
    remove_model(model)
    assert names(tmp_path) == ["README.md", "kept", "link"]


def test_names_that_cannot_be_are_refused_with_a_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / ".run.lock").mkdir()
    for directory, said in (
        (tmp_path / ("a" * 256), "File name too long. Choose a shorter name"),
        (tmp_path / "file" / "run", "file: cannot be made: File exists. Something else stands there: move it away"),
        (tmp_path / "run", ".run.lock: Is a directory. A directory stands where a file belongs: move it away"),
    ):
        with pytest.raises((OSError, RunError)) as caught, lock(directory):
            pass
        if isinstance(caught.value, OSError):
            assert explain(caught.value) == 1
            error = capsys.readouterr().err
            assert said in error
            assert len(error.splitlines()) == 1
        else:
            assert said in str(caught.value)


@given(cut=st.floats(0, 1), flip=st.booleans(), byte=st.integers(0, 255))
def test_a_damaged_checkpoint_is_named(tmp_path_factory, cut, flip, byte):
    path = tmp_path_factory.mktemp("damaged") / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "weights": torch.arange(4.0)})
    whole = path.read_bytes()
    at = int(cut * (len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :] if flip else whole[:at])
    try:
        load_checkpoint(path)
    except RunError as error:
        assert f"{path}: damaged" in str(error)
    else:
        assert flip  # of a byte that nothing reads, or that is part of a value


def test_a_damaged_line_is_named(tmp_path):
    for broken in (b"\0\0\0", b"[1]", b"\xff", b'{"a": ', b""):
        (tmp_path / "rows").write_bytes(b'{"a": 1}\n' + broken + b'\n{"c": 2}\n')
        with pytest.raises(RunError, match="rows:2: damaged"):
            read_jsonl(tmp_path / "rows")


def test_the_refusal_is_found_in_what_libraries_raise(tmp_path):
    import pyarrow
    import safetensors.torch
    from tokenizers import Tokenizer, models

    absent = str(tmp_path / "absent" / "file")
    for write in (
        lambda: Tokenizer(models.BPE()).save(absent),
        lambda: safetensors.torch.save_file({"a": torch.zeros(1)}, absent),
        lambda: pyarrow.OSFile(absent, "wb"),
        lambda: os.mkdir(absent),
    ):
        with pytest.raises(Exception) as caught:
            write()
        refused = refusal(caught.value)
        assert refused is not None
        assert refused.errno == errno.ENOENT
    wrapped = ValueError("of a library")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert refusal(wrapped) is wrapped.__cause__
    after = KeyError("a bug that a refusal came before")
    after.__context__ = wrapped.__cause__
    assert refusal(after) is None


def test_a_bug_is_told_from_what_the_machine_refuses(capsys):
    for error in (ZeroDivisionError("planted"), OSError(errno.EBADF, "Bad file descriptor"), OSError("no number")):
        assert explain(error) == 3
        said = capsys.readouterr().err
        assert "Traceback" in said or type(error).__name__ in said
        assert "This is a bug" in said
    for number, remedy in REMEDIES.items():
        assert explain(OSError(number, os.strerror(number), "a\nb")) == 1
        assert capsys.readouterr().err.splitlines() == [
            f"RunError: a b: {os.strerror(number)}. {remedy}. Then type the same command again."
        ]


def test_running_out_of_memory_is_one_message_wherever_it_is_met(capsys):
    wrapped = ValueError("of a library")
    wrapped.__cause__ = MemoryError()
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(1 << 60)
    for error in (
        cpu.value,
        wrapped,
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 4096 bytes from file <a>: Cannot allocate memory (12)"),
    ):
        assert explain(error) == 1
        assert capsys.readouterr().err.startswith("Out of memory: ")
    assert explain(RuntimeError("can't start new thread")) == 1
    assert "ulimit -u" in capsys.readouterr().err
