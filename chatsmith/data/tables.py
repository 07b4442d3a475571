"""Tables to rows: .parquet, .arrow, and what the `datasets` library opens, in pieces of bounded size.

A row holds what JSON can hold. Dates, times and decimal numbers become text; columns of bytes are refused.
Tables can say in a few bytes that a value stands there a billion times: what they unpack to is counted before it is.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from chatsmith.bounds import bounded
from chatsmith.data.lines import CAP, Row, mebibytes, too_long
from chatsmith.errors import DataError

_PIECE = 4 << 20  # bytes that become Python values at a time
_ROWS = 256
_MOST_ROWS = 4096  # that become Python values at a time
_RATIO = 1000  # what a file may unpack to, beyond `_ANY_FILE`; columns that repeat themselves shrink to a 300th
_ANY_FILE = 1 << 30  # bytes
_VALUE = 8  # bytes that a number or a null is counted as
_ROW = 64  # and a row, whatever is in it


def parquet_rows(file: Path) -> Iterator[Row]:
    return table_rows(_parquet_batches(file), str(file), lambda: file.stat().st_size)


def arrow_rows(file: Path) -> Iterator[Row]:
    return table_rows(_arrow_batches(file), str(file), lambda: file.stat().st_size)


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
            batch.validate(full=True)  # a damaged file would crash the process where its text is taken out
            plain = all(_is_json(field.type) for field in batch.schema)
            size = _unpacked(batch)
            done += size
            _check_ratio(name, done, stored)
            step = min(_MOST_ROWS, max(1, batch.num_rows * _PIECE // max(1, size)))
            for start in range(0, batch.num_rows, step):
                piece = batch.slice(start, step)
                if size > CAP and any(_unpacked(piece.slice(row, 1)) > CAP for row in range(piece.num_rows)):
                    raise too_long(f"{name}[{index}]", "this row, or one soon after it,")
                for value in piece.to_pylist():
                    yield Row(f"{name}[{index}]", value if plain else _plain(value))
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


def _unpacked(batch: Any) -> int:
    """Bytes of a batch as Python values, about."""
    return max(int(batch.nbytes), int(batch.num_rows) * _ROW, sum(map(_bytes_of, batch.columns)))


def _bytes_of(column: Any) -> int:
    """The same of a column; 0 where as much is stored."""
    from pyarrow import compute, types

    kind = column.type
    if hasattr(column, "chunks"):
        return sum(map(_bytes_of, column.chunks))
    if types.is_dictionary(kind):
        if not (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
            return len(column) * _VALUE + _bytes_of(column.dictionary)
        return int(compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
    if types.is_run_end_encoded(kind):
        return len(column) * max(_VALUE, int(column.values.nbytes))
    if types.is_map(kind):
        return _bytes_of(column.keys) + _bytes_of(column.items)
    if types.is_struct(kind):
        return sum(map(_bytes_of, column.flatten()))
    if hasattr(kind, "storage_type"):
        return _bytes_of(column.storage)
    if kind.num_fields and hasattr(column, "flatten"):
        inside = column.flatten()
        return len(inside) * _VALUE + _bytes_of(inside)
    return 0


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
        _check_ratio(str(file), table.metadata.num_rows * _ROW, file.stat().st_size)
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
            yield from pyarrow.ipc.open_stream(source)
        else:
            yield from map(batches.get_batch, range(batches.num_record_batches))


def _check_columns(schema: Any, name: str) -> None:
    for column in schema:
        if schema.names.count(column.name) > 1:
            raise DataError(f'{name}: two columns are called "{column.name}". Rename one of them.')
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


def _holds_bytes(type: Any) -> bool:
    return "binary" in str(type) if not _parts(type) else any(map(_holds_bytes, _parts(type)))


def _is_json(type: Any) -> bool:
    from pyarrow import types

    if types.is_map(type):  # comes as pairs
        return False
    if parts := _parts(type):
        return all(map(_is_json, parts))
    return bool(
        types.is_null(type)
        or types.is_boolean(type)
        or types.is_integer(type)
        or types.is_floating(type)
        or types.is_string(type)
        or types.is_large_string(type)
        or types.is_string_view(type)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
