"""Tables to rows: .parquet, .arrow, and what the `datasets` library opens, in pieces of bounded size.

A row holds what JSON can hold. Dates, times and decimal numbers become text; columns of bytes are refused.
Tables can say in a few bytes that a value stands there a billion times: what they unpack to is counted before it is.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from chatsmith.data.fields import repeated
from chatsmith.data.lines import CAP, Row, mebibytes, too_long
from chatsmith.data.unpacked import ROW, row_sizes
from chatsmith.errors import DataError
from chatsmith.files.bounds import bounded
from chatsmith.files.received import DEEPEST_JSON

_PIECE = 4 << 20  # bytes that become Python values at a time
_ROWS = 256
_MOST_ROWS = 4096  # that become Python values at a time
_RATIO = 1000  # what a file may unpack to, beyond `_ANY_FILE`; columns that repeat themselves shrink to a 300th
_ANY_FILE = 1 << 30  # bytes
_MOST_COUNTED = 1 << 20  # rows that are counted at a time
_JSON = re.compile(
    r"null|bool|u?int\d+|halffloat|float|double|(large_)?string(_view)?"
)  # types of values as JSON has them


def file_rows(file: Path) -> Iterator[Row]:
    """The rows of a .parquet or .arrow file."""
    batches = _parquet_batches if file.name.lower().endswith(".parquet") else _arrow_batches
    return table_rows(batches(file), str(file), lambda: file.stat().st_size)


def dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`, which lies on disk and is mapped into memory."""
    files = [Path(file["filename"]) for file in dataset.cache_files]
    return table_rows(
        dataset.with_format("arrow").iter(_ROWS), name, lambda: sum(file.stat().st_size for file in files)
    )


def table_rows(batches: Iterable[Any], name: str, size_of: Callable[[], int]) -> Iterator[Row]:
    """The rows of pyarrow's batches or tables of one schema.

    Args:
        size_of: gives the bytes that they take on the disk.
    Raises:
        DataError: if they are damaged, hold columns that are no text or cannot be told apart, or unpack to far more
            than text does.
    """
    index = done = 0
    waiting = iter(batches)
    try:
        stored = size_of()
        while (batch := _next(waiting)) is not None:
            if index == 0:
                _check_columns(batch.schema, name)
            _check_ratio(name, done + batch.num_rows * ROW, stored)
            sizes = _counted(batch, name)
            done += int(sizes.sum())
            _check_ratio(name, done, stored)
            if len(sizes) and sizes.max() > CAP:
                raise too_long(f"{name}[{index + int((sizes > CAP).argmax())}]", "this row")
            plain = all(_is_json(field.type) for field in batch.schema)
            for piece in _pieces(batch, sizes):
                for value in _values(piece, plain):
                    yield Row(f"{name}[{index}]", value)
                    index += 1
    except DataError:
        raise
    except Exception as error:  # whatever pyarrow raises, it means that this is no such table
        raise DataError(f"{name}: cannot be read as a table: {root_of(error)}. Mend or export it again.") from error


def _check_ratio(name: str, size: int, stored: int) -> None:
    if size > max(_ANY_FILE, _RATIO * stored):
        raise DataError(
            f"{name}: {mebibytes(stored)} unpack to {mebibytes(size)} or more, {_RATIO} times as much and no text that "
            "anybody wrote. Look into it."
        )


def _next(batches: Iterator[Any]) -> Any:
    """The next batch or None; one that takes gibibytes is an error."""
    with bounded(time=False):
        return next(batches, None)


def _counted(batch: Any, name: str) -> Any:
    """The sizes of its rows; a damaged file would crash the process where its text is taken out."""
    try:
        with bounded(time=False):
            batch.validate(full=True)
            return row_sizes(batch)
    except DataError as error:
        raise DataError(f"{name}: {error}.") from None


def _pieces(batch: Any, sizes: Any) -> Iterator[Any]:
    """A batch in parts of `_PIECE` bytes and `_MOST_ROWS` rows at most, or of one row."""
    ends = sizes.cumsum()
    start = 0
    while start < batch.num_rows:
        fits = int(ends.searchsorted(ends[start] - sizes[start] + _PIECE, side="right"))
        end = max(start + 1, min(start + _MOST_ROWS, fits))
        yield batch.slice(start, end - start)
        start = end


def _values(piece: Any, plain: bool) -> list[Any]:
    with bounded(time=False):
        values: list[Any] = piece.to_pylist()
        return values if plain else list(map(_plain, values))


def root_of(error: BaseException) -> str:
    """The first line of the innermost cause: libraries wrap what the user needs to read."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _parquet_batches(file: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    if file.stat().st_size == 0:
        return
    # not pre_buffer: it would hold a whole row group, which may be the file
    with ParquetFile(file, pre_buffer=False, buffer_size=1 << 16, page_checksum_verification=True) as table:
        _check_ratio(str(file), table.metadata.num_rows * ROW, file.stat().st_size)
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        yield from table.iter_batches(batch_size=min(_ROWS, max(1, _PIECE // max(1, widest))))


def _arrow_batches(file: Path) -> Iterator[Any]:
    import pyarrow

    if file.stat().st_size == 0:
        return
    with pyarrow.memory_map(str(file)) as source:
        try:
            batches = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:  # the other of the two forms, which `datasets` writes
            batches = pyarrow.ipc.open_stream(source)
        else:
            batches = map(batches.get_batch, range(batches.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, _MOST_COUNTED):
                yield batch.slice(start, _MOST_COUNTED)


def _check_columns(schema: Any, name: str) -> None:
    twice = repeated(schema.names)
    if twice is not None:
        raise DataError(f'{name}: two columns are called "{twice}". Rename one of them.')
    for column in schema:
        if _is_deep(column.type):
            raise DataError(
                f'{name}: the column "{column.name}" is nested more than {DEEPEST_JSON} deep. Leave it out.'
            )
        if _holds_bytes(column.type):
            raise DataError(
                f'{name}: the column "{column.name}" holds bytes ({column.type}) and no text. '
                "Store it as text, or leave the column out."
            )


def _parts(type: Any) -> list[Any]:
    """The types that a nested type is made of."""
    if hasattr(type, "storage_type"):
        return [type.storage_type]
    if hasattr(type, "index_type"):  # dictionary-encoded
        return [type.value_type]
    return [type.field(i).type for i in range(type.num_fields)]


def _is_deep(type: Any) -> bool:
    level = [type]
    for _ in range(DEEPEST_JSON):
        level = [part for each in level for part in _parts(each)]
    return bool(level)


def _holds_bytes(type: Any) -> bool:
    return "binary" in str(type) if not _parts(type) else any(map(_holds_bytes, _parts(type)))


def _is_json(type: Any) -> bool:
    from pyarrow import types

    if types.is_map(type):  # comes as pairs
        return False
    parts = _parts(type)
    return all(map(_is_json, parts)) if parts else _JSON.fullmatch(str(type)) is not None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
