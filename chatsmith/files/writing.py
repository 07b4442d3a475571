"""Files and directories are written here: whole or not at all, and never through a link.

What is new is made beside its target under a name that nobody foresees, flushed to the disk and then renamed over the
target, so that a kill or a full disk at any moment leaves either the old one or the new one, never half of one. What
stands there already is replaced or deleted only if it is what chatsmith itself puts there: a regular file, or a
directory that holds a model and nothing else.

Of a path only the last name is looked at here (O_NOFOLLOW, O_EXCL). That none of those above it inside a run is a link
is seen when the run is opened (`manifest.check_run`); those above the run are the user's own, and may be links.

Whatever the machine refuses becomes a RunError with the path and a remedy. No other module writes, see
tests/unit/test_one_writer.py. Libraries that save models do so in functions that take a `FreshDirectory`, which only
`replace_directory` hands out.
"""

import errno
import fcntl
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NewType

from chatsmith.errors import RunError
from chatsmith.machine import in_words, refusal
from chatsmith.screen.text import quoted

FreshDirectory = NewType("FreshDirectory", Path)
"""An empty directory under a name that nobody foresees, to be filled."""

LONGEST_LINE = 64 << 20  # bytes

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.partial")
# Files that transformers, for a model and a tokenizer of any kind, and chatsmith beside them, save.
_OF_A_MODEL = re.compile(
    r"config\.json|generation_config\.json|README\.md|value_head\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer[\w.-]*|special_tokens_map\.json|added_tokens\.json|vocab[\w.-]*|merges\.txt|[\w.-]+\.model"
    r"|chat_template\.(jinja|json)|additional_chat_templates(/[\w.-]+\.jinja)?",
    re.ASCII,
)


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` write a file that then takes the name `path`.

    Raises:
        RunError: if it cannot be written, or something other than a regular file stands there.
    """
    with _refusals(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_regular(path)
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


def new_file(path: Path, text: str) -> None:
    """Write a file under a name that is free; what was begun is deleted again where it cannot be finished.

    Raises:
        OSError: FileExistsError where anything stands there, be it a link that leads nowhere.
    """
    with io.FileIO(path, "x") as file:
        try:
            _write_all(file.fileno(), encoded(text))
        except BaseException:
            _delete(path)
            raise


def replace_directory(path: Path, fill: Callable[[FreshDirectory], Any]) -> None:
    """Let `fill` write into a fresh directory that then takes the name `path`.

    Raises:
        RunError: if it cannot be written, or if what stands there is not a directory that was made so: one that is
            empty, holds a model and nothing else, or the same names.
    """
    with _refusals(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, old = FreshDirectory(_beside(path)), _beside(path)
        try:
            temporary.mkdir()
            fill(temporary)
            _settle(temporary)
            check_replaceable(path, besides=_names(temporary))
            with suppress(FileNotFoundError):
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


def check_replaceable(path: Path, besides: frozenset[str] = frozenset()) -> None:
    """
    Args:
        besides: names that may be in it, too.
    Raises:
        RunError: if anything stands at `path` that `replace_directory` and `remove_model` would not delete.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise RunError(f"{quoted(path)}: a link, which is not followed. Give the directory that it leads to.")
    if not stat.S_ISDIR(mode):
        raise RunError(f"{quoted(path)}: a file stands there. Move it away, or choose another directory.")
    names = _names(path)
    if names and names != besides and "config.json" not in names:
        raise RunError(f"{quoted(path)}: a directory that is not empty and no model. Choose another one.")
    for name in sorted(names):
        if name not in besides and not _OF_A_MODEL.fullmatch(name):
            raise RunError(
                f"{quoted(path / name)}: not made by chatsmith, and would go with the model there. Move it away."
            )


def append(path: Path, lines: str) -> None:
    """Add lines to the end of a file. Part of a line, as a power failure leaves it, is taken out."""
    with _refusals(path, "written"):
        descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                start = max(0, end - LONGEST_LINE)
                kept = os.pread(descriptor, end - start, start).rfind(b"\n") + 1
                if start and not kept:
                    raise RunError(f"{quoted(path)}: damaged: its last line has no end. Move it away.")
                end = start + kept
                os.ftruncate(descriptor, end)
            try:
                _write_all(descriptor, encoded(lines))
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def open_locked(path: Path) -> io.FileIO:
    """A regular file, made if it is not there, that this process alone holds until it is closed: to read from its
    beginning, and to write at its end.

    The system lets go of it however the process ends. `is_held` asks whether somebody has it.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be opened, or is a link, a pipe, a device or a directory.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, error.strerror, str(path)) from error  # flock does not say where
    return io.FileIO(descriptor, "a+")


def is_held(path: Path) -> bool:
    """Whether a process has the file open by `open_locked`; what cannot be asked is taken for held."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is there as long as somebody does.

    It is deleted while it is held. Who opened it before and gets hold of it after that has no lock: what stands
    under the name is then another file, or none, and the lock is taken anew.

    Raises:
        OSError: see `open_locked`.
    """
    while True:
        file = open_locked(path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                break
        file.close()
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(path)


def make_directory(path: Path) -> None:
    """A directory and those above it, where they are not there yet."""
    with _refusals(path, "made"):
        path.mkdir(parents=True, exist_ok=True)


def make_own_directory(path: Path) -> None:
    """The same, each of them for this user alone whatever the umask allows. Raises: OSError, if it cannot be made."""
    if not path.exists():
        make_own_directory(path.parent)
        with suppress(FileExistsError):  # another process was first
            path.mkdir(mode=0o700)


def scratch(inside: Path | None = None) -> FreshDirectory:
    """A directory for this user alone, to `discard` or `keep`. Raises: OSError, if it cannot be made.

    Args:
        inside: None: where the system has temporary files.
    """
    return FreshDirectory(Path(tempfile.mkdtemp(prefix="making-", dir=inside)))


def keep(made: Path, path: Path) -> None:
    """Give what was made in a scratch directory, or this itself, its name on the same file system."""
    os.rename(made, path)


def discard(directory: Path) -> None:
    """Delete a scratch directory, or one that was one and was kept, so that nobody finds half of it."""
    going = directory.with_name(f"making-{secrets.token_hex(8)}")
    with suppress(OSError):
        directory.rename(going)
    _delete(going)


def mark_used(path: Path) -> None:
    """Now is when it was last used."""
    os.utime(path)


def remove(path: Path) -> None:
    """Delete a regular file, if it is there.

    Raises:
        RunError: if it cannot be deleted, or something else stands there.
    """
    with _refusals(path, "deleted"), suppress(FileNotFoundError):
        _check_regular(path)
        path.unlink()


def remove_model(path: Path) -> None:
    """Delete a directory that `replace_directory` made, if it is there; a kill leaves all of it or nothing.

    Raises:
        RunError: if it cannot be deleted, or holds anything else.
    """
    going = _beside(path)
    with _refusals(path, "deleted"), suppress(FileNotFoundError):
        check_replaceable(path)
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


def _open(path: Path, flags: int) -> int:
    """A descriptor of a regular file, without waiting for whoever is at the other end of something else.

    Raises:
        OSError: as the system says it, of what is none too.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), str(path))
    return descriptor


def _check_regular(path: Path) -> None:
    """Raises: OSError, if anything stands at `path` that is no regular file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP if stat.S_ISLNK(mode) else errno.ENXIO
        raise OSError(number, os.strerror(number), str(path))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _names(directory: Path) -> frozenset[str]:
    """Of all files and directories below, with slashes; what is neither ends in one."""
    names = []
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = os.lstat(path).st_mode
            is_plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            names.append(path.relative_to(directory).as_posix() + ("" if is_plain else "/"))
    return frozenset(names)


@contextmanager
def _refusals(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise RunError(
            f"{quoted(path)}: cannot be {done}: {in_words(reason)}. What was saved before is untouched: "
            "type the same command again to resume."
        ) from error


def _beside(path: Path) -> Path:
    # "." has no name; every other path stays as it is: that to where one is may not be UTF-8, which libraries need
    place = path if path.name else Path(os.path.abspath(path))
    return place.parent / f".{secrets.token_hex(8)}.partial"


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
