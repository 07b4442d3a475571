"""From a file, packed or not, to its text: in lines with their numbers, or in blocks; never more than `CAP` at once.

Text is UTF-8; a byte order mark before it, as Excel writes one, is no part of it. Only a line feed ends a line: JSON
may hold other separators unescaped. What the lines mean is decided in `files.py` and `json_rows.py`.
"""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from chatsmith.errors import DataError
from chatsmith.machine import in_words

CAP = 64 << 20  # bytes of a record; records of 10 MB occur
_RATIO = 200  # what a file may grow to when unpacked, beyond the cap; text shrinks to a third, repeated text to a 50th
_BLOCK = 1 << 20
_PIECE = 4 << 10  # what is asked of the unpacker at a time: a damaged file loses at most so much that was still good
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_WIDE = {  # which of the first four bytes are NUL where the text starts with two ASCII characters
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
PACKED = tuple(_CODECS)


class Line(NamedTuple):
    """A line without its end and its number from 1; or the reason why it is no text."""

    number: int
    text: str
    problem: str = ""


class Row(NamedTuple):
    """A row as read, or the reason why it could not be."""

    origin: str
    value: Any = None
    problem: str = ""


class _Truncated(Exception):
    """A packed file that breaks off. What comes before is as it was written."""


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def lines(file: Path) -> Iterator[Line]:
    """The lines of a file. What is missing of a packed file is one last line with a problem.

    Raises:
        DataError: if the file cannot be opened, is damaged, is no UTF-8 text at all, or has a line longer than `CAP`.
    """
    number = 0
    begun: list[bytes] = []  # of a line whose end is not read yet
    try:
        for block in _blocks(file):
            if number == 0 and not begun:
                _refuse_carriage_returns(file, block)
            end = block.rfind(b"\n")
            if end < 0:
                begun.append(block)
            else:
                for text, problem in _decoded(b"".join((*begun, block[:end]))):
                    number += 1
                    yield Line(number, text, problem)
                begun = [block[end + 1 :]]
            if sum(map(len, begun)) > CAP:
                raise too_long(f"{file}:{number + 1}", "this line")
        for text, problem in _decoded(b"".join(begun)) if any(begun) else ():
            number += 1
            yield Line(number, text, problem)
    except _Truncated as error:
        yield Line(number + 1, "", str(error))


def text_blocks(file: Path) -> Iterator[str]:
    """The text of a file that makes sense only as a whole, in blocks that do not end where lines do.

    Raises:
        DataError: as `lines`, and wherever a line would have a problem.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 0
    try:
        for block in _blocks(file):
            text = decoder.decode(block)
            line = max(1, line)
            if "\0" in text:
                raise DataError(f"{file}:{line + text[: text.index(chr(0))].count(chr(10))}: {_NUL}.")
            line += text.count("\n")
            yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = max(1, line) + error.object[: error.start].count(b"\n")
        raise DataError(f"{file}:{line}: {_not_utf8(error, 'the first such byte is')}.") from None
    except _Truncated as error:
        raise DataError(f"{file}:{max(1, line)}: {error}.") from None


def too_long(place: str, what: str) -> DataError:
    return DataError(
        f"{place}: {what} is longer than {mebibytes(CAP)}, the most that is read as one record. "
        "Divide it, or take it out of the file."
    )


_BOM = "starts with a byte order mark, which belongs at the beginning of a file; were two files joined? Delete it"
_NUL = "holds a NUL byte: part of the file is no text, or was never written; make the file again"


def _decoded(block: bytes) -> Iterator[tuple[str, str]]:
    """Text and problem of each line in a block of whole lines."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or "\ufeff" in text:  # decide line by line
        yield from map(_line, block.split(b"\n"))
    else:
        for line in text.split("\n"):
            yield line.rstrip("\r"), ""


def _line(raw: bytes) -> tuple[str, str]:
    try:
        text = raw.decode().rstrip("\r")
    except UnicodeDecodeError as error:
        return "", _not_utf8(error, f"byte {error.start + 1} of the line,")
    problem = _BOM if text.startswith("\ufeff") else _NUL if "\0" in text else ""
    return ("", problem) if problem else (text, "")


def _not_utf8(error: UnicodeDecodeError, where: str) -> str:
    byte = f"{where} 0x{error.object[error.start]:02x}"
    return f"not UTF-8 text ({byte}); convert the file to UTF-8, as in: iconv -f GBK -t UTF-8"


def _blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if its name says that it is packed.

    Raises:
        _Truncated: where a packed file breaks off.
        DataError: if the file cannot be read, is packed otherwise than its name says, is damaged, is UTF-16 or UTF-32,
            or unpacks to far more than text does.
    """
    packing = next((suffix for suffix in PACKED if file.name.lower().endswith(suffix)), "")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(4)
            stream.seek(0)
            _check_packing(file, start, packing)
            blocks = _unpacked(file, stream, packing, size) if packing else _plain(file, stream, size)
            first = next(blocks, b"")
            _refuse_wide_characters(file, first)
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from blocks
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {in_words(error)}.") from None


def _plain(file: Path, stream: BinaryIO, size: int) -> Iterator[bytes]:
    done = 0
    while block := stream.read(_BLOCK):
        done += len(block)
        yield block
    if done < size:
        raise DataError(
            f"{file}: became shorter while it was read ({size} bytes at first, {done} at the end). "
            "Wait until it is written, and start again."
        )


def _unpacked(file: Path, stream: BinaryIO, packing: str, size: int) -> Iterator[bytes]:
    import pyarrow

    unpacker = pyarrow.CompressedInputStream(stream, _CODECS[packing])
    done = 0
    pieces: list[bytes] = []
    while True:
        try:
            piece = unpacker.read(_PIECE)
        except OSError as error:
            if "Truncated" not in str(error):  # then what came before may be wrong without looking so
                raise DataError(
                    f"{file}: the {_CODECS[packing]} data are damaged ({error}), and what they say cannot be trusted. "
                    "Fetch the file again."
                ) from None
            yield b"".join(pieces)
            raise _Truncated(
                f"the {_CODECS[packing]} data break off, and everything from here on is lost; fetch the file again"
            ) from None
        pieces.append(piece)
        done += len(piece)
        if done > max(CAP, _RATIO * size):
            raise DataError(
                f"{file}: {mebibytes(size)} unpack to more than {mebibytes(done)}, {_RATIO} times as much and no text "
                "that anybody wrote. Look into it; if it is what you want, unpack it yourself and give that file."
            )
        if not piece or len(pieces) * _PIECE >= _BLOCK:
            yield b"".join(pieces)
            pieces = []
        if not piece:
            return


def _check_packing(file: Path, start: bytes, packing: str) -> None:
    found = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
    if start and found != packing:
        have = f"holds {_CODECS[found]} data" if found else f"is no {_CODECS[packing]} data"
        should = file.name[: len(file.name) - len(packing)] + found
        raise DataError(f'{file}: {have}, which its name does not say. If it is whole, rename it to "{should}".')


def _refuse_wide_characters(file: Path, start: bytes) -> None:
    encoding = None
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif len(start) >= 4:
        encoding = _WIDE.get((not start[0], not start[1], not start[2], not start[3]))
    if encoding:
        raise DataError(f"{file}: is {encoding} text. Convert it: iconv -f {encoding} -t UTF-8 < OLD > NEW")


def _refuse_carriage_returns(file: Path, start: bytes) -> None:
    if b"\r" in start.rstrip(b"\r") and b"\n" not in start:
        raise DataError(
            f"{file}: its lines end in a carriage return alone, so all of it is one line. "
            r"Convert it: tr '\r' '\n' < OLD > NEW"
        )
