"""Ten thousand damaged files: does the reader crash, hang, or lose a record without saying so?

    python benchmarks/fuzz.py [--files N] [--seed N] [--keep DIR]

Files of every kind are made of rows with a mark each ("m00017"), and of the heads of files in ../shared/data if they
are there. They are damaged in their values, lines, bytes or packing, and read in one process, with a limit of time and
of memory for each. What is checked is worked out from the bytes of the damaged file, without the readers:

- whatever holds a mark must come back in a record or be listed as dropped, unless the file is refused;
- .jsonl: records and dropped ones are as many as lines, and each record is what json.loads makes of its line;
- .json: where json.loads refuses the file it must be refused, else there are as many as it has elements;
- .txt: every line is in the record that covers it; tables: records and dropped ones are as many as rows;
- a refusal is a DataError that names the file; on_error="raise" raises where "skip" refuses or drops, and only there.

The last line of output is one JSON object.
"""

import argparse
import bisect
import collections
import copy
import csv
import faulthandler
import gzip
import io
import json
import os
import platform
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from chatsmith.data.formats import to_record
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError
from chatsmith.runs.run import commit
from chatsmith.types import Record

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
MARK = re.compile(rb"m\d{5}")
TIME_S = 20
MEMORY_BYTES = 2 << 30
WORDS = (
    "apple",
    "naïve",
    "你好,世界",
    "日本語",
    "🙂",
    'he said "no"',
    "a,b;c",
    "two\nlines",
    "tab\there",
    "Человек",
    "x" * 300,
)
SCALARS = (
    "",
    " ",
    "null",
    0,
    -1,
    7.5,
    True,
    None,
    [],
    {},
    [None],
    {"content": None},
    [[None]],
    "\ud800",
    "x" * 100_000,
)


class Hang(BaseException):
    """A file took too long."""


class Fault(Exception):
    """A rule above is broken."""


# Rows and files of them


def rows_of_many_formats(rng: random.Random, count: int) -> list[Any]:
    return [row_of_some_format(rng, f"m{i:05d}") for i in range(count)]


def row_of_some_format(rng: random.Random, mark: str) -> Any:
    def say() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    return rng.choice(
        [
            {"text": f"{mark} {say()}"},
            f"{mark} {say()}",
            {"prompt": f"{mark} {say()}", "chosen": say(), "rejected": say()},
            {"question": f"{mark} {say()}", "answer": say()},
            {"messages": [{"role": "user", "content": f"{mark} {say()}"}, {"role": "assistant", "content": say()}]},
            {
                "prompt": f"{mark} {say()}",
                "answers": [{"content": say(), "score": 1}, {"content": say(), "score": 0.5}],
            },
            {"instruction": f"{mark} {say()}", "input": say(), "output": say(), "meta": {"tags": [say(), None]}},
        ]
    )


def rows_of_two_columns(rng: random.Random, count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"m{i:05d} {' '.join(rng.choices(WORDS, k=3))}", "response": " ".join(rng.choices(WORDS, k=2))}
        for i in range(count)
    ]


def real_rows() -> list[list[Any]]:
    """The heads of real files, with a mark as one more field."""
    heads = []
    for file in sorted(SHARED.glob("*/*.json*")):
        try:
            if file.suffix == ".gz":
                rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()[:20]]
            elif file.suffix == ".jsonl":
                rows = [json.loads(line) for line in file.read_bytes().splitlines()[:20]]
            else:
                rows = json.loads(file.read_bytes())[:20]
            for row in rows:
                to_record(row, "")
        except (ValueError, TypeError, KeyError, DataError):
            continue
        heads.append([row | {"note_of_row": f"m{i:05d}"} for i, row in enumerate(rows) if isinstance(row, dict)])
    return [head for head in heads if head]


def as_json_lines(rng: random.Random, rows: list[Any]) -> bytes:
    return b"".join(
        json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass") + b"\n" for row in rows
    )


def as_json_list(rng: random.Random, rows: list[Any]) -> bytes:
    text = json.dumps(rows, indent=rng.choice([None, 0, 1, 4]), ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def as_cells(delimiter: str) -> Callable[[random.Random, list[dict[str, str]]], bytes]:
    def write(rng: random.Random, rows: list[dict[str, str]]) -> bytes:
        text = io.StringIO(newline="")
        end, quoting = rng.choice(["\n", "\r\n"]), rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def as_text(rng: random.Random, rows: list[dict[str, str]]) -> bytes:
    between = rng.choice(["\n", "\n\n", "\n \n"])
    return between.join(row["prompt"] for row in rows).encode()


def as_table(rng: random.Random, rows: list[dict[str, str]]) -> pyarrow.Table:
    """Two columns of text, sometimes with one more, or one of another type."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    count = len(rows)
    match rng.randrange(8):
        case 0:
            columns["prompt"] = pyarrow.array(columns["prompt"]).dictionary_encode()
        case 1:
            columns["when"] = pyarrow.array(range(count), pyarrow.timestamp(rng.choice(["s", "ms", "us", "ns"])))
        case 2:
            columns["image"] = pyarrow.array([b"\xff\0"] * count)
        case 3:
            columns["response"] = [None if rng.random() < 0.3 else cell for cell in columns["response"]]
        case 4:
            columns["response"] = [[{"content": cell, "score": None}] for cell in columns["response"]]
        case 5:
            columns["meta"] = [{"n": rng.random(), "tags": [None, "a"]} for _ in rows]
    return pyarrow.table(columns)


def as_parquet(rng: random.Random, rows: list[dict[str, str]]) -> bytes:
    stream = io.BytesIO()
    codec = rng.choice(["snappy", "zstd", "none"])
    pyarrow.parquet.write_table(
        as_table(rng, rows), stream, row_group_size=rng.choice([7, 1000]), compression=codec, write_page_checksum=True
    )
    return stream.getvalue()


def as_arrow(rng: random.Random, rows: list[dict[str, str]]) -> bytes:
    stream = io.BytesIO()
    table = as_table(rng, rows)
    with rng.choice([pyarrow.ipc.new_file, pyarrow.ipc.new_stream])(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=rng.choice([7, 1000]))
    return stream.getvalue()


def pack(data: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(data, mtime=0)
    return pyarrow.Codec("zstd").compress(data).to_pybytes() if packing == ".zst" else data


def unpack(data: bytes, packing: str | None) -> bytes | None:
    """What a packed file holds, or None if it is damaged."""
    try:
        if packing == ".gz":
            return gzip.decompress(data)
        return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read() if packing else data
    except Exception:  # of whatever type, it is damaged
        return None


# Damage


def change_values(rng: random.Random, rows: list[Any]) -> None:
    """Other types, nulls and constants in a few places, also deep inside."""
    for _ in range(rng.randint(1, 4)):
        where: Any = rows
        key: Any = rng.randrange(len(rows))
        while isinstance(where[key], dict | list) and where[key] and rng.random() < 0.8:
            where = where[key]
            key = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        match rng.randrange(5):
            case 0 if isinstance(where, dict):
                where[rng.choice(["prompt", "text", "label", "Prompt", "x"])] = where.pop(key)
            case 1:
                where[key] = rng.choice([float("nan"), float("inf"), 10**400])
            case 2:
                deep: Any = None
                for _ in range(rng.choice([3, 300])):
                    deep = [deep]
                where[key] = deep
            case _:
                where[key] = copy.deepcopy(rng.choice(SCALARS))


def damage_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(12):
        case 0:
            lines.insert(at, lines[other])
        case 1:
            del lines[at]
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        case 4:
            lines.insert(at, rng.choice([b"", b" ", b"\r", b"junk", b'"', b"[", b"{}", b"\0" * 9, b"<html>"]))
        case 5:
            encoding = rng.choice(["utf-16", "utf-16-le", "gb18030", "latin-1"])
            lines[at] = lines[at].decode(errors="replace").encode(encoding, "replace")
        case 6:
            lines[at] = b"\xef\xbb\xbf" + lines[at]
        case 7:
            lines[at] = lines[at].replace(b"{", b'{"text": 1, "text": 2, ', 1)
        case 8:
            lines[at] = lines[at] + lines[other]
        case 9:
            lines[at] = lines[at].replace(b"\\", b"", 1) + b"\\"
        case 10:
            lines[at] = lines[at].replace(b'"', rng.choice([b"'", b'""', b'\\"', b""]), rng.randint(1, 3))
        case 11:
            lines[at] = lines[at].replace(b",", rng.choice([b";", b"\t", b",,", b""]), rng.randint(1, 3))
    return b"\n".join(lines)


def damage_whole(rng: random.Random, data: bytes) -> bytes:
    text = data.decode(errors="replace")
    match rng.randrange(7):
        case 0:
            return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"]))
        case 1:
            return text.encode(rng.choice(["gb18030", "latin-1", "shift_jis"]), "replace")
        case 2:
            return data.replace(b"\n", b"\r\n")
        case 3:
            return data.replace(b"\n", b"\r")
        case 4:
            return rng.choice([b"", b"\n \n", b"[]", b"null", b'"'])
        case 5:
            return b"[" + b",".join(data.split(b"\n")) + b"]"
        case _:
            return data + data


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    length = rng.choice([1, 2, 8, 100])
    match rng.randrange(5):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 3:
            return data[:at] + data[at + length :]
        case _:
            return data[:at] + bytes(length) + data[at + length :]


TEXT_KINDS = {
    ".jsonl": as_json_lines,
    ".json": as_json_list,
    ".csv": as_cells(","),
    ".tsv": as_cells("\t"),
    ".txt": as_text,
}
TABLE_KINDS = {".parquet": as_parquet, ".arrow": as_arrow}


def damaged_file(rng: random.Random, heads: list[list[Any]]) -> tuple[str, bytes, bytes]:
    """A suffix, the bytes of the file, and the text that was packed into them."""
    kind = rng.choice([".jsonl"] * 4 + [".json"] * 3 + [".csv", ".csv", ".tsv", ".txt", ".txt", ".parquet", ".arrow"])
    count = rng.randint(1, 40)
    if kind in TABLE_KINDS:
        whole = TABLE_KINDS[kind](rng, rows_of_two_columns(rng, count))
        data = whole if rng.random() < 0.2 else damage_bytes(rng, whole)
        return kind, data, whole
    rows: list[Any] = rows_of_two_columns(rng, count)
    if kind.startswith(".json"):
        real = heads and rng.random() < 0.3
        rows = json.loads(json.dumps(rng.choice(heads))) if real else rows_of_many_formats(rng, count)
        if rng.random() < 0.3:
            change_values(rng, rows)
    text = TEXT_KINDS[kind](rng, rows)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        damage = rng.choices([damage_lines, damage_bytes, damage_whole], [5, 4, 1])[0]
        text = damage(rng, text)
    packing = rng.choice(["", "", ".gz", ".zst"])
    data = pack(text, packing)
    if packing and rng.random() < 0.5:
        data = damage_bytes(rng, data)
    return kind + packing, data, text


# What must come out


def check(source: Source, path: Path, suffix: str, data: bytes, text: bytes) -> None:
    """Raises Fault where something is lost or altered that a file held."""
    items = {place(record.origin, path): record for record in source.records}
    dropped = {place(drop.origin, path): drop.reason for drop in source.dropped}
    if len({*items, *dropped}) != len(source.records) + len(source.dropped):
        raise Fault("two rows have one name")
    if suffix in TABLE_KINDS:
        check_table(suffix, items, dropped, data)
        return
    kind, packing = re.fullmatch(r"(\.\w+?)(\.gz|\.zst)?", suffix).groups()
    plain = unpack(data, packing)
    if plain is None:  # what was packed once is what may come out, up to where it breaks off
        plain = text
        if "break off" not in dropped.get(max([*items, *dropped]), ""):
            raise Fault("a damaged file is read as if it were whole")
    elif kind == ".jsonl" and {*items, *dropped} != {i for i, line in numbered(plain) if line.strip(b" \t\r\n")}:
        raise Fault("lines are neither records nor dropped")
    if kind == ".json":
        check_list(plain, items, dropped)
    else:
        check_lines(kind, plain, items, dropped)


def place(origin: str, path: Path) -> int:
    """The number of a line, or of a row."""
    if not origin.startswith(str(path)):
        raise Fault(f"a row is named {origin}")
    return int(origin[len(str(path)) :].strip(":[]"))


def numbered(plain: bytes) -> Iterator[tuple[int, bytes]]:
    return enumerate(plain.split(b"\n"), 1)


def holds(record: Record, mark: bytes) -> bool:
    return mark.decode() in f"{record!r} {record.fields!r}"


def check_lines(kind: str, plain: bytes, items: dict[int, Record], dropped: dict[int, str]) -> None:
    starts = sorted([*items, *dropped])
    for number, line in numbered(plain):
        begin = starts[max(0, bisect.bisect(starts, number) - 1)]  # of the row that the line is part of
        if begin in dropped:
            continue
        for mark in MARK.findall(line):
            if not holds(items[begin], mark):
                raise Fault(f"{mark.decode()} of line {number} is lost")
        if kind == ".txt" and line.strip() and line.rstrip(b"\r").decode() not in items[begin].text:
            raise Fault(f"line {number} is lost")
        if kind == ".jsonl" and begin == number and items[begin] != to_record(json.loads(line), items[begin].origin):
            raise Fault(f"line {number} is altered")


def check_list(plain: bytes, items: dict[int, Record], dropped: dict[int, str]) -> None:
    try:
        rows = json.loads(plain.decode())
    except (ValueError, RecursionError):
        if any("digits" in reason for reason in dropped.values()):
            return  # json.loads gives up the file for one number
        raise Fault("broken JSON is read") from None
    rows = rows if isinstance(rows, list) else [rows]
    if {*items, *dropped} != set(range(len(rows))):
        raise Fault("elements are neither records nor dropped")
    for number, record in items.items():
        if record != to_record(rows[number], record.origin):
            raise Fault(f"element {number} is altered")


def check_table(kind: str, items: dict[int, Record], dropped: dict[int, str], data: bytes) -> None:
    buffer = pyarrow.BufferReader(data)
    if kind == ".parquet":
        rows = pyarrow.parquet.ParquetFile(buffer).metadata.num_rows
        for number, record in items.items():  # its checksums cover the marks
            if not holds(record, b"m%05d" % number):
                raise Fault(f"row {number} is altered")
    else:
        try:
            rows = pyarrow.ipc.open_file(buffer).read_all().num_rows
        except pyarrow.ArrowInvalid:
            rows = pyarrow.ipc.open_stream(pyarrow.BufferReader(data)).read_all().num_rows
    if {*items, *dropped} != set(range(rows)):
        raise Fault(f"{len(items) + len(dropped)} rows of {rows}")


# The run


def read(path: Path, on_error: str) -> Source | None:
    """The source, or None if it is refused as it should be."""
    try:
        return read_source(Spec((), str(path), None), on_error=on_error, split_seed=0)
    except DataError as error:
        if str(path) not in str(error):
            raise Fault(f"a refusal that does not name the file: {error}") from None
        return None


def too_long(*_: Any) -> None:
    raise Hang(f"more than {TIME_S} s")


def try_file(path: Path, suffix: str, data: bytes, text: bytes) -> tuple[int, int]:
    """Records and dropped rows of a file; (0, 0) if it is refused."""
    skipping, raising = read(path, "skip"), read(path, "raise")
    if skipping is None or skipping.dropped:
        if raising is not None:
            raise Fault('on_error="raise" does not raise')
    elif raising is None or list(raising.records) != list(skipping.records):
        raise Fault('on_error="raise" reads otherwise than "skip"')
    if skipping is None:
        return 0, 0
    check(skipping, path, suffix, data, text)
    return len(skipping.records), len(skipping.dropped)


def files(count: int, seed: int) -> Iterator[tuple[str, bytes, bytes]]:
    heads = real_rows()
    for number in range(count):
        yield damaged_file(random.Random(f"{seed}/{number}"), heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where files go that were not dealt with as they should")
    arguments = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGALRM, too_long)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY_BYTES, resource.RLIM_INFINITY))
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    total: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["CHATSMITH_CACHE"] = cache
        for number, (suffix, data, text) in enumerate(files(arguments.files, arguments.seed)):
            path = Path(folder, f"a{suffix}")
            path.write_bytes(data)
            begun = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, TIME_S)
            try:
                records, dropped = try_file(path, suffix, data, text)
                outcome = "read in part" if dropped else "read whole" if records else "refused"
                total.update(records=records, dropped=dropped)
            except (Exception, Hang) as error:
                outcome = "lost" if isinstance(error, Fault) else "crashes"
                print(f"{outcome}: file {number} of seed {arguments.seed} ({suffix}): {error!r}", file=sys.stderr)
                if not isinstance(error, Fault):
                    traceback.print_exc(limit=-3)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / f"{number}{suffix}").write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - begun)
            outcomes[suffix][outcome] += 1
            total[outcome] += 1
            path.unlink()
    seconds = time.perf_counter() - start
    names = ("read whole", "read in part", "refused", "crashes", "lost")
    print(f"{'':12}" + "".join(f"{name:>14}" for name in names))
    for suffix, counts in sorted(outcomes.items()):
        print(f"{suffix:12}" + "".join(f"{counts[name]:>14}" for name in names))

    print(
        json.dumps(
            {
                "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "commit": commit(),
                "files": arguments.files,
                **{name.replace(" ", "_"): total[name] for name in ("records", "dropped", *names)},
                "seconds": round(seconds, 1),
                "slowest_s": round(slowest, 2),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "by_kind": {suffix: dict(counts) for suffix, counts in sorted(outcomes.items())},
            }
        )
    )


if __name__ == "__main__":
    main()
