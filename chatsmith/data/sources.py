"""Opens what a Spec names and reads it into Records; nothing is lost on the way without being listed.

Read are files of the kinds in `files.py`, directories of them, directories written by `datasets.save_to_disk`, and
datasets of the Hugging Face hub. What a row means is decided in `formats.py`; which stage it serves in `mix.py`.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from chatsmith.data.fields import meant
from chatsmith.data.files import KINDS, SUFFIXES, read_rows
from chatsmith.data.formats import NEEDS, unable
from chatsmith.data.lines import Row
from chatsmith.data.mapping import Dropped, Reader, reader
from chatsmith.data.parallel import chunks_of, in_parallel
from chatsmith.data.records import Decoded, from_bytes, to_bytes
from chatsmith.data.spec import Spec
from chatsmith.data.split import POINT, point
from chatsmith.data.store import Array, Writer, hash_of, stored
from chatsmith.data.tables import dataset_rows, root_of
from chatsmith.errors import DataError, ForeignError, foreign
from chatsmith.files.received import check_directory, check_inside, places_inside, read_json
from chatsmith.machine import in_words
from chatsmith.screen.text import one_line, quoted
from chatsmith.types import Record, Stage

_LONGEST_HEAD = 64_000  # bytes of a licence that are looked at
_LONGEST_LICENCE = 200  # characters of it that are told
_LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING")
# what lies beside data and describes them
_NO_DATA = (
    *("readme.txt", "license.txt", "licence.txt", "copying.txt"),
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
)


@dataclass(frozen=True)
class Source:
    """What one spec gave. Every record that was found is in `records` or in `dropped`.

    `licence` is what the source itself states, the hub's name for it or the first line of a LICENSE file, else None.
    """

    spec: Spec
    records: Sequence[Record]
    dropped: Sequence[Dropped]
    licence: str | None
    points: Array  # of split.POINT, one per record
    sha256: str  # of everything the records say


@dataclass(frozen=True)
class _Table:
    """The rows of one file or data set, read as they are asked for.

    `key` tells this content from any other; `stamp` that of a file is another one once the file has changed.
    """

    name: str
    rows: Iterable[Row]
    key: str
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Read:
    """What some rows gave: records as bytes, a `POINT` of each, all they say, and what was left out."""

    records: list[bytes]
    points: list[tuple[float, float, float, int]]
    said: bytes
    dropped: list[Dropped]


def read_source(
    spec: Spec,
    *,
    on_error: Literal["raise", "skip"],
    split_seed: int,
    on_unfit: Literal["raise", "skip"] | None = None,
) -> Source:
    """Reads all records that a spec names, in their order.

    What was read before and has not changed comes from the cache.

    Args:
        on_unfit: "skip" leaves out records that serve none of the stages that the spec names, "raise" leaves it to
            `mix` to refuse them; None: as on_error.
    Raises:
        DataError: if the source cannot be opened, if nothing in one of its files is readable, or, with
            on_error="raise", at the first bad record.
    """
    read = reader(spec.table)
    tables, licence = _open(spec)
    calls = spec.table is not None and spec.table.function is not None  # what the user's function does, nobody knows
    named = spec.stages if (on_unfit or on_error) == "skip" else ()
    settings = [str(on_error), str(split_seed), ",".join(named), spec.table.model_dump_json() if spec.table else ""]

    def read_chunk(rows: list[Row]) -> _Read:
        good, bad = _outcomes(rows, read, on_error, named)
        said = [repr((r.prompt, [(a.content, a.score) for a in r.answers], r.text, r.fields)) for r, _ in good]
        points = [point(record, split_seed) for record, _ in good]
        return _Read([raw for _, raw in good], points, "".join(said).encode(), bad)

    def write(writer: Writer) -> dict[str, str]:
        digest = hashlib.sha256()
        for table in tables:
            found = in_parallel(read_chunk, chunks_of(table.rows), f"Reading {table.name}", here=calls)
            _write(table.name, found, writer, digest)
            if table.stamp and table.stamp != _stamp(Path(table.name)):
                raise DataError(f"{table.name}: changed while it was read. Wait until nobody writes it, and try again.")
        return {"sha256": digest.hexdigest()}

    entry = stored(
        "records",
        None if calls else [*(table.key for table in tables), *settings],
        write,
        ragged={"records": "u1", "dropped": "u1"},
        numbers={"points": POINT},
    )
    return Source(
        spec,
        Decoded(entry.rows("records"), from_bytes),
        Decoded(entry.rows("dropped"), lambda raw: Dropped(*json.loads(raw))),
        licence,
        entry.numbers("points"),
        entry.facts["sha256"],
    )


def _write(name: str, found: Iterator[_Read], writer: Writer, digest: Any) -> None:
    count = dropped = 0
    first_bad: Dropped | None = None
    for chunk in found:
        writer.rows("records", chunk.records)
        writer.numbers("points", chunk.points)
        writer.rows("dropped", [json.dumps(astuple(drop)).encode() for drop in chunk.dropped])
        digest.update(chunk.said)
        count, dropped = count + len(chunk.records), dropped + len(chunk.dropped)
        first_bad = first_bad or next(iter(chunk.dropped), None)
    if first_bad and not count:
        raise DataError(
            f"{name}: none of its {dropped} records can be read, so skipping the bad ones leaves nothing. "
            f"The first: {first_bad.origin}: {first_bad.reason}."
        )
    if not count:
        raise DataError(f"{name} is empty. Give one with records, or take it out of --data.")


def _outcomes(
    rows: Iterable[Row], read: Reader, on_error: Literal["raise", "skip"], named: Sequence[Stage]
) -> tuple[list[tuple[Record, bytes]], list[Dropped]]:
    """Records with their bytes, and what was left out: bad records, and those that serve none of the `named` stages."""
    good: list[tuple[Record, bytes]] = []
    bad: list[Dropped] = []
    for row in rows:
        for outcome in read(row):
            if isinstance(outcome, Record) and named and len(unable(outcome, named)) == len(named):
                lacks = " and ".join(NEEDS[stage] for stage in named)
                what = f"cannot serve {', '.join(named)}, which its source is given to: the record lacks {lacks}"
                outcome = Dropped(outcome.origin, what)
            if isinstance(outcome, Record):
                try:
                    good.append((outcome, to_bytes(outcome)))
                    continue
                except DataError as error:
                    outcome = Dropped(outcome.origin, str(error))
            if on_error == "raise" and not outcome.wanted:
                raise DataError(
                    f"{outcome.origin}: {outcome.reason}. Mend the record, or leave bad records out with "
                    "--data.on_error skip."
                )
            bad.append(outcome)
    return good, bad


def _open(spec: Spec) -> tuple[list[_Table], str | None]:
    """The tables that a spec names, and the licence that the source states."""
    path = Path(spec.location).expanduser()
    try:
        if path.is_dir():
            if _is_saved_dataset(path):
                _check_name(path)
                _check_saved_dataset(path)
                return _saved_dataset(path, spec)
            return [_file(file) for file in _files_in(path, spec.split)], _licence_in(path)
        if path.exists():
            _check_file(path, spec)
            return [_file(path)], _licence_in(path.parent)
        if path.is_symlink():
            raise DataError(f"{quoted(path)}: a link to {_named(path.readlink())}, where nothing is. Mend the link.")
        if _looks_like_a_path(spec.location):
            raise DataError(f"--data: there is no file or directory {_named(spec.location)}.{_near(path)}")
    except OSError as error:
        raise DataError(f"{quoted(path)}: cannot be read: {in_words(error)}.") from None
    return _hub_dataset(spec)


def _file(path: Path) -> _Table:
    stamp = _stamp(path)
    return _Table(str(path), read_rows(path), hash_of(str(path), _content(path)), stamp)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_file(path: Path, spec: Spec) -> None:
    if spec.split is not None:
        raise DataError(f'{quoted(path)}: a single file has no splits. Leave "#{spec.split}" out.')
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{quoted(path)}: unknown kind of file. Read are {KINDS}.")
    if not path.is_file():
        raise DataError(
            f"{quoted(path)}: a pipe or device, no file: it cannot be read again. Write it to a file first."
        )
    _check_name(path)


def _check_name(path: Path) -> None:
    """Records are named after their file, in lines of a terminal and of a report."""
    if any(unicodedata.category(letter) == "Cc" for letter in str(path)):
        raise DataError(f"{quoted(path)}: a line break or another control character is in this name. Rename it.")


def _looks_like_a_path(location: str) -> bool:
    """A hub id is NAME or OWNER/NAME; everything else can only be meant as a path."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", location) is not None
    return not is_id or location.lower().endswith(SUFFIXES)


def _named(path: str | Path) -> str:
    """A path in double quotes, or in those that `quoted` gives it."""
    shown = quoted(path)
    return f'"{shown}"' if shown == str(path) else shown


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The directory {_named(path.parent)} does not exist either."
    near = meant(path.name, [entry.name for entry in path.parent.iterdir()])
    return f" Did you mean {_named(path.parent / near)}?" if near else f" Check the names in {_named(path.parent)}."


def _files_in(directory: Path, split: str | None) -> list[Path]:
    """The data files in and below a directory by name; with a split those called so, or below a directory called so.

    Of the split "train" are train.jsonl, data/train-00001-of-00004.parquet and train/0001.jsonl.
    """
    files = sorted(file for file in _below(directory) if file.name.lower().endswith(SUFFIXES))
    files = [file for file in files if file.name.lower() not in _NO_DATA]
    if not files:
        raise DataError(f"{quoted(directory)}: no data files in this directory. Read are {KINDS}.")
    chosen = [file for file in files if _is_of(split, file)]
    if not chosen:
        names = ", ".join(map(quoted, files[:10])) + (", ..." if len(files) > 10 else "")
        raise DataError(f'{quoted(directory)}: no file is named after the split "{split}". There are: {names}.')
    inside = places_inside(directory)
    for file in chosen:
        if not (directory / file).is_file():
            raise DataError(
                f"{quoted(directory / file)}: a link that leads nowhere, a pipe or a device, and no file. Mend it or "
                "remove it."
            )
        check_inside(directory / file, inside, refuse=DataError)
        _check_name(directory / file)
    return [directory / file for file in chosen]


def unread_files(spec: Spec) -> list[str]:
    """The files of a directory that are of no kind that is read, and do not describe the data either, by name."""
    directory = Path(spec.location).expanduser()
    if not directory.is_dir() or _is_saved_dataset(directory):
        return []
    return sorted(
        quoted(file)
        for file in _below(directory)
        if _is_of(spec.split, file)
        and not file.name.lower().endswith((*SUFFIXES, ".md", ".py"))
        and not file.name.upper().startswith(("README", *_LICENCE_FILES))
    )


def _below(directory: Path) -> Iterator[Path]:
    """The files in and below a directory that are not hidden, by name; through links too, but no directory twice."""
    seen = set()
    inside = places_inside(directory)
    for folder, folders, names in os.walk(directory, onerror=_raise, followlinks=True):
        place = os.path.realpath(folder)
        check_inside(Path(folder), inside, refuse=DataError)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = sorted(visible, key=lambda name: Path(folder, name).is_symlink())  # in its place, not by a link
        yield from (Path(folder, name).relative_to(directory) for name in names if not name.startswith("."))


def _is_of(split: str | None, file: Path) -> bool:
    if split is None or split in file.parts[:-1]:
        return True
    return re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name) is not None


def _raise(error: OSError) -> None:
    raise error


def _licence_in(directory: Path) -> str | None:
    """The first line of a LICENSE file there; of one that is a link to elsewhere nothing is read."""
    inside = places_inside(directory)
    for file in sorted(file for file in directory.iterdir() if file.name.upper().startswith(_LICENCE_FILES)):
        real = Path(os.path.realpath(file))
        if file.is_file() and any(real.is_relative_to(place) for place in inside):
            with file.open("rb") as text:
                lines = text.read(_LONGEST_HEAD).decode("utf-8", errors="replace").splitlines()
            return next(filter(None, map(_in_short, lines)), None)
    return None


def _in_short(licence: object) -> str | None:
    """A licence as a source states it, in one line for a model card and a report."""
    stated = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
    return one_line(stated[:_LONGEST_HEAD])[:_LONGEST_LICENCE] or None if isinstance(stated, str) else None


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _check_saved_dataset(path: Path) -> None:
    """Refuse one whose files, or the names of files in them, lead elsewhere: the library opens what they name."""
    check_directory(path, refuse=DataError, links=True, hidden=False)
    inside = places_inside(path)
    named = []
    splits = [str(name) for name in _several(_held(path / "dataset_dict.json").get("splits"))]
    for folder in (path, *(path / name for name in splits)):
        check_inside(folder, inside, refuse=DataError)
        for file in _several(_held(folder / "state.json").get("_data_files")):
            name = file.get("filename") if isinstance(file, dict) else file
            check_inside(folder / str(name), inside, refuse=DataError)
            named.append(str(name))
    if any("/." in f"/{name}" for name in (*splits, *named)):  # then what is hidden is opened
        check_directory(path, refuse=DataError, links=True)


def _several(value: Any) -> list[Any]:
    """A list, or what a table holds under its names."""
    return value if isinstance(value, list) else list(value) if isinstance(value, dict | str) else []


def _held(file: Path) -> dict[str, Any]:
    """What a file of JSON holds, where there is one and it is a table; the library says what is wrong with others."""
    real = Path(os.path.realpath(file))
    held = read_json(real, refuse=DataError) if real.is_file() else {}
    return held if isinstance(held, dict) else {}


def _saved_dataset(path: Path, spec: Spec) -> tuple[list[_Table], str | None]:
    from datasets import DatasetDict, load_from_disk

    try:
        with foreign():
            dataset = load_from_disk(str(path), keep_in_memory=False)
    except ForeignError as error:
        raise DataError(
            f"{quoted(path)}: cannot be read as a saved dataset: {root_of(error)}. Save it again."
        ) from error
    folder = path
    if isinstance(dataset, DatasetDict):
        split = spec.split or "train"
        if split not in dataset:
            raise DataError(f'{quoted(path)}: no split "{split}". Write one of them after "#": {", ".join(dataset)}.')
        dataset, folder = dataset[split], path / split
    elif spec.split not in (None, dataset.split):
        raise DataError(f'{quoted(path)}: holds one table without splits. Leave "#{spec.split}" out.')
    # its fingerprint is whatever stands in the file: another table may bear the same
    files = [folder / "state.json", folder / "dataset_info.json", *(file["filename"] for file in dataset.cache_files)]
    key = hash_of(str(path), *(_content(Path(file)) for file in files))
    return [_Table(str(path), dataset_rows(dataset, str(path)), key)], (
        _in_short(dataset.info.license) or _licence_in(path)
    )


def _hub_dataset(spec: Spec) -> tuple[list[_Table], str | None]:
    """A dataset of the hub, which the library loads to the disk and maps into memory; the split may be CONFIG/SPLIT."""
    from datasets import load_dataset

    config, _, split = (spec.split or "train").rpartition("/")
    try:
        with foreign():
            dataset = load_dataset(spec.location, config or None, split=split)
    except ForeignError as error:  # offline, unknown, private, without such a split: each its own type, all end here
        words = root_of(error)
        if "Config name is missing" in str(error):
            names = re.search(r"\[.*\]", str(error))
            listed = f": {names[0]}" if names else ""
            raise DataError(
                f'--data "{spec.location}": this dataset has several configurations{listed}. '
                f'Write one of them before the split, as in "{spec.location}#CONFIG/{split}".'
            ) from error
        raise DataError(
            f'--data "{spec.location}": no such file here, and the Hugging Face hub gave no dataset of this name: '
            f"{words}. Check the name, the #SPLIT and the network, or give a local file, as in "
            "--data sft:./answers.jsonl."
        ) from error
    return [
        _Table(spec.location, dataset_rows(dataset, spec.location), hash_of(spec.location, dataset._fingerprint))
    ], _in_short(dataset.info.license) or _card_licence(spec)


def _card_licence(spec: Spec) -> str | None:
    """The licence named in the card of a hub dataset."""
    from huggingface_hub import DatasetCard

    try:
        licence = DatasetCard.load(spec.location).data.to_dict().get("license")
    except Exception:  # a dataset without a card, or with one that cannot be parsed, states no licence
        return None
    return _in_short(licence)
