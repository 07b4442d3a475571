"""What the values of a table take as Python values, counted before they are.

Every kind of array says in its own way that a value stands there many times: a dictionary, views into one text, lists
that overlap, runs, nothing at all. Each is counted by its own rule, entry by entry, and one without a rule is refused.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from chatsmith.errors import DataError

_VALUE = 8  # bytes that any value is counted as, whatever is in it
ROW = 64  # and a row

_MOST = 1e15  # what is more is counted as so much: lists of lists that overlap soon unpack to more than a number holds

# Of each entry; one number where all are alike, so that 10**8 entries of nothing take nothing to count.
_Sizes = float | npt.NDArray[np.float64]


def row_sizes(table: Any) -> npt.NDArray[np.float64]:
    """Bytes of each row of a pyarrow batch or table as Python values, about: [rows].

    Raises:
        DataError: a fragment without a place, if a column is of a type that is not known.
    """
    sizes = np.full(table.num_rows, float(ROW))
    for column in table.columns:
        start = 0
        for chunk in getattr(column, "chunks", [column]):
            sizes[start : start + len(chunk)] += _sizes(chunk)
            start += len(chunk)
    return sizes


def _sizes(array: Any) -> _Sizes:
    from pyarrow import types

    kind = array.type
    if hasattr(array, "storage"):
        return _sizes(array.storage)
    if types.is_null(kind):
        return _VALUE
    if types.is_struct(kind):
        return sum((_sizes(array.field(i)) for i in range(kind.num_fields)), _VALUE)
    if types.is_dictionary(kind):
        return _picked(_sizes(array.dictionary), array.indices.fill_null(0))
    if types.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy()
        run = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
        return _picked(_sizes(array.values), run)
    if types.is_union(kind):
        return _sizes_of_union(array)
    if not kind.num_fields:
        return _sizes_of_text(array)
    return _where_valid(array, _sizes_of_lists(array))


def _sizes_of_union(array: Any) -> _Sizes:
    mine = slice(array.offset, array.offset + len(array))  # `type_codes` and `offsets` forget it
    codes = np.frombuffer(array.buffers()[1], np.int8)[mine]
    is_dense = array.type.mode == "dense"
    offsets = np.frombuffer(array.buffers()[2], np.int32)[mine] if is_dense else np.arange(len(array))
    sizes = np.full(len(array), float(_VALUE))
    for i, code in enumerate(array.type.type_codes):
        here = codes == code
        sizes[here] += _picked(_sizes(array.field(i)), offsets[here])
    return sizes


def _sizes_of_lists(array: Any) -> _Sizes:
    from pyarrow import types

    kind = array.type
    if types.is_fixed_size_list(kind):
        inner = _sizes(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
        if isinstance(inner, float | int):
            return _bounded(_VALUE + inner * int(kind.list_size))
        return _bounded(_VALUE + inner.reshape(len(array), kind.list_size).sum(axis=1))
    if types.is_list_view(kind) or types.is_large_list_view(kind):  # which may overlap, in any order
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        counts = np.where(valid, array.sizes.to_numpy(), 0).astype(np.int64)
        starts = np.where(counts > 0, array.offsets.to_numpy(), 0).astype(np.int64)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        starts, counts = offsets[:-1], np.diff(offsets)
    else:
        raise _unknown(kind)
    if not counts.any():
        return _VALUE
    first = int(starts[counts > 0].min())
    inner = _sizes(array.values.slice(first, int((starts + counts).max()) - first))
    if isinstance(inner, float | int):
        return _bounded(_VALUE + counts.astype(np.float64) * inner)
    before = np.concatenate([[0.0], np.cumsum(inner)])
    starts = np.where(counts > 0, starts - first, 0)
    return _bounded(_VALUE + before[starts + counts] - before[starts])


def _sizes_of_text(array: Any) -> _Sizes:
    """Those of text and of bytes; and of numbers, dates and times, which may become text."""
    from pyarrow import compute, types

    kind = array.type
    if not len(array):
        return _VALUE
    if types.is_string_view(kind) or types.is_binary_view(kind):  # each says how long it is in the first of 4 integers
        views = np.frombuffer(array.buffers()[1], np.int32)
        lengths = views[4 * array.offset : 4 * (array.offset + len(array)) : 4]
        return _where_valid(array, _VALUE + lengths.astype(np.float64))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        lengths = compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return _VALUE + np.asarray(lengths, np.float64)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return _VALUE
    try:
        width = int(kind.bit_width) // 8
    except ValueError:
        raise _unknown(kind) from None
    return _VALUE + 3 * width


def _bounded(sizes: _Sizes) -> _Sizes:
    if isinstance(sizes, float | int):
        return min(_MOST, sizes)
    bounded: npt.NDArray[np.float64] = np.minimum(_MOST, sizes)
    return bounded


def _picked(sizes: _Sizes, at: Any) -> _Sizes:
    if isinstance(sizes, float | int):
        return sizes
    return sizes[np.asarray(at)] if len(sizes) else np.full(len(at), float(_VALUE))


def _where_valid(array: Any, sizes: _Sizes) -> _Sizes:
    """The same, but a null, behind which anything may stand, as what it is."""
    if not array.null_count or isinstance(sizes, float | int):
        return sizes
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), sizes, _VALUE)


def _unknown(kind: Any) -> DataError:
    return DataError(f"a column of the type {kind}, which is not known; store it as text, or leave the column out")
