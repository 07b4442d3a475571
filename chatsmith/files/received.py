"""What others made is opened here: directories whose links stay inside them, and regular files up to a size.

A run, a model or a data set that was unpacked from an archive can hold a link to any file of its reader, a pipe that
never ends, or a file without end. It is looked at before anything in it is read or written.
"""

import json
import os
import stat
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from chatsmith.errors import ChatsmithError
from chatsmith.machine import in_words
from chatsmith.screen.text import quoted

LONGEST_JSON = 64 << 20  # bytes of a file that is read as one value
LONGEST_LINES = 1 << 30  # bytes of a file of lines
MOST_FILES = 100_000  # of a run or a model
DEEPEST = 32  # directories inside each other
DEEPEST_JSON = 100  # lists and objects inside each other

Refusal = type[ChatsmithError]


def read_bytes(path: Path, *, limit: int, refuse: Refusal) -> bytes:
    """All of a regular file.

    Raises:
        FileNotFoundError: if there is none.
        ChatsmithError: of the kind `refuse`, if it is a link, a pipe or a device, is longer than `limit` bytes, or
            cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refuse(f"{quoted(path)}: no regular file. Move it away.")
            # what is longer is not read: a file may say that it has more bytes than there is memory
            data = file.read(limit + 1) if status.st_size <= limit else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refuse(f"{quoted(path)}: cannot be read: {in_words(error)}.") from error
    if max(len(data), status.st_size) > limit:
        raise refuse(f"{quoted(path)}: longer than {limit >> 20} MiB, which nothing here is. Move it away.")
    return data


def read_json(path: Path, *, refuse: Refusal, limit: int = LONGEST_JSON) -> Any:
    """The value in a regular file of JSON. Raises: as `read_bytes`, and where it is not JSON or nested too deeply."""
    try:
        return parse_json(read_bytes(path, limit=limit, refuse=refuse))
    except ValueError as error:
        raise refuse(f"{quoted(path)}: not valid JSON ({error}).") from error


def parse_json(text: bytes) -> Any:
    """The value that UTF-8 text holds. Raises: ValueError, where it is none, or deeper than Python can walk safely."""
    try:
        value = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count(b"[") + text.count(b"{") > DEEPEST_JSON and is_deep(value):
        raise ValueError(f"nested more than {DEEPEST_JSON} deep")
    return value


def is_deep(value: Any) -> bool:
    """Whether lists and objects are inside each other more than `DEEPEST_JSON` deep."""
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def check_directory(
    directory: Path,
    *,
    refuse: Refusal,
    links: bool,
    hidden: bool = True,
    most: int = MOST_FILES,
    foreign: Collection[str] = (),
) -> None:
    """Refuse a directory in which something is no regular file and no directory, or is beyond bounds.

    Args:
        links: whether links may lead to what lies inside, as in a data set that somebody arranged; those of a
            snapshot in the hub's cache lead to the blobs beside it.
        hidden: whether what stands at its top under a name with a dot is looked at too, such as .git, which nobody
            opens in a model.
        most: entries.
        foreign: directories in it, with slashes, whose insides are the affair of whoever fills them.
    Raises:
        ChatsmithError: of the kind `refuse`, naming the entry and what is wrong with it.
    """
    inside = places_inside(directory)
    root = inside[0]
    try:
        for count, (path, mode) in enumerate(_entries(root, {root / name for name in foreign}, hidden)):
            if count >= most:
                raise refuse(f"{quoted(directory)}: holds more than {most} files. Give a directory of less.")
            inner = path.relative_to(root)
            shown = quoted(directory / inner)
            if len(inner.parts) > DEEPEST:
                raise refuse(f"{shown}: more than {DEEPEST} directories deep. Move it away.")
            if stat.S_ISLNK(mode):
                if not links:
                    raise refuse(f"{shown}: a link, of which chatsmith makes none here. Remove it.")
                check_inside(path, inside, refuse=refuse, shown=shown)
                mode = os.stat(path).st_mode if os.path.exists(path) else 0
            if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise refuse(f"{shown}: a pipe or device, no file. Remove it.")
    except OSError as error:
        raise refuse(f"{quoted(error.filename or directory)}: cannot be read: {in_words(error)}.") from error


def is_stored_plainly(path: Path) -> bool:
    """Whether an archive of torch is no longer unpacked than it is: its members lie there one by one, uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # where something stands before or behind them, libraries differ in which members they find
            plain = not archive.comment and min((member.header_offset for member in members), default=0) == 0
            plain &= all(member.file_size == member.compress_size and not member.compress_type for member in members)
            return plain and sum(member.file_size for member in members) <= path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def check_inside(path: Path, places: Sequence[Path], *, refuse: Refusal, shown: str = "") -> None:
    """Refuse a path that leads out of these places, by links or by its name.

    Args:
        shown: the path in words, if not as it is.
    """
    shown = shown or quoted(path)
    try:
        target = Path(os.path.realpath(path))
    except ValueError:  # no name at all
        raise refuse(f"{shown}: names a file as no file can be called. Mend it.") from None
    if not is_inside(path, places):
        moved = next((place for place in places if target.is_relative_to(os.path.realpath(place))), None)
        if moved is not None:
            raise refuse(
                f"{shown}: leads through {quoted(moved)}, which is itself a link. Move the whole cache to where its "
                "blobs are, and set HF_HOME (or HF_HUB_CACHE) to that place."
            )
        raise refuse(
            f"{shown}: a link or a name that leads out of this directory, to {quoted(target)}. Put what is "
            "meant in its place, or remove it."
        )


def is_inside(path: Path, places: Sequence[Path]) -> bool:
    """Whether a path, with its links followed, lies in one of these places."""
    target = Path(os.path.realpath(path))
    return any(target.is_relative_to(place) for place in places)


def places_inside(directory: Path) -> list[Path]:
    """Where what belongs to a directory lies: in itself, and of a snapshot in the hub's cache among the blobs."""
    root = Path(os.path.realpath(directory))
    snapshot = next((place for place in (root, *root.parents) if place.parent.name == "snapshots"), None)
    return [root] if snapshot is None else [root, snapshot.parents[1] / "blobs"]


def _entries(root: Path, closed: Collection[Path], hidden: bool) -> Iterator[tuple[Path, int]]:
    """All below a directory with its mode, links not followed and closed directories not opened."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if folder == root and not hidden and entry.name.startswith("."):
                    continue
                mode = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path), mode
                if stat.S_ISDIR(mode) and Path(entry.path) not in closed:
                    waiting.append(Path(entry.path))
