"""Files and directories are written here: whole or not at all, and never through a link.

What is new is made beside its target under a name that nobody foresees, flushed to the disk and then renamed over the
target, so that a kill or a full disk at any moment leaves either the old one or the new one, never half of one.
Whatever the machine refuses becomes a RunError with the path and a remedy.
"""

import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from chatsmith.errors import RunError
from chatsmith.machine import in_words, refusal

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.partial")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` write a file that then takes the name `path`."""
    with _refusals(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        raw = _Raw(temporary, "x")
        try:
            with io.BufferedWriter(raw) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            _delete(temporary)
            if raw.refusal is not None:  # a library may raise something else after it
                raise raw.refusal from error
            raise


def replace_directory(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write into a fresh directory that then takes the name `path`."""
    with _refusals(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, old = _beside(path), _beside(path)
        try:
            temporary.mkdir()
            fill(temporary)
            _settle(temporary)
            if os.path.lexists(path):
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                with suppress(OSError):
                    old.rename(path)
                raise
        except BaseException:
            _delete(temporary)
            raise
        _delete(old)


def append(path: Path, lines: str) -> None:
    """Add lines to the end of a file. Part of a line, as a power failure leaves it, is taken out."""
    with _refusals(path, "written"):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                end = os.pread(descriptor, end, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, end)
            left = encoded(lines)
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """A directory and those above it, where they are not there yet."""
    with _refusals(path, "made"):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file, or a directory with all that is in it, if it is there; a kill leaves all of it or nothing."""
    going = _beside(path)
    with _refusals(path, "deleted"), suppress(FileNotFoundError):
        path.rename(going)
    _delete(going)


def is_unfinished(path: Path) -> bool:
    """Whether this is what a process that was killed was writing here."""
    return _UNFINISHED.fullmatch(path.name) is not None


def forget_unfinished(directory: Path) -> None:
    """Delete what processes that were killed have left below a directory that no other one is writing to."""
    for folder, folders, files in os.walk(directory):
        for name in filter(_UNFINISHED.fullmatch, [*folders, *files]):
            _delete(Path(folder, name))
        folders[:] = [name for name in folders if not _UNFINISHED.fullmatch(name)]


def encoded(text: str) -> bytes:
    """UTF-8. Half a character, as the name of a file or a reply may hold it, is spelled out as JSON spells it."""
    return text.encode("utf-8", "backslashreplace")


class _Raw(io.FileIO):
    """Keeps the system's refusal."""

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


@contextmanager
def _refusals(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise RunError(
            f"{path}: cannot be {done}: {in_words(reason)}. What was saved before is untouched: "
            "type the same command again to resume."
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.partial")


def _settle(directory: Path) -> None:
    """Onto the disk, and readable for those who may read new files here: libraries make some for their owner alone."""
    mode = directory.stat().st_mode & 0o666
    for folder, _, names in os.walk(directory):
        for file in (Path(folder, name) for name in names):
            with suppress(OSError):  # not every file system has modes
                file.chmod(mode)
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _delete(path: Path) -> None:
    """As far as it can be; what is left is told from everything else by its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
