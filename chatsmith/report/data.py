"""What a run has found in its data (`data.json`), for the page: lengths, findings, an example per stage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chatsmith.errors import RunError
from chatsmith.files.received import read_json
from chatsmith.report.reading import RecordedRun, Row, dig, number, numbers
from chatsmith.report.tokens import visible

SEVERITIES = ("error", "warning", "note")
MOST_BARS = 64


@dataclass(frozen=True)
class Lengths:
    """A histogram: bars in percent of the highest, each with the length that it begins at, and is it too long."""

    name: str
    bars: list[tuple[float, int, bool]]
    about: str


@dataclass(frozen=True)
class Noticed:
    """A finding, ready to be read."""

    severity: str
    what: str
    share: str
    where: str
    remedy: str
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class Read:
    """A row of tokens: kind of each (learned, context; special), and its visible pieces."""

    title: str
    fate: str
    tokens: list[tuple[str, list[tuple[str, str]]]]
    left_out: int


@dataclass(frozen=True)
class Seen:
    """A record as a stage sees it."""

    stage: str
    where: str
    note: str
    rows: list[Read]


def checked(run: RecordedRun) -> dict[str, Any]:
    """Everything of `data.json` that the page shows; empty if there is none, or if it makes no sense."""
    try:
        facts = read_json(run.directory / "data.json", refuse=RunError)
    except (FileNotFoundError, RunError):
        return {}
    found = {
        "unit": str(dig(facts, "unit") or ""),
        "letters": {str(source.get("spec")): _letters(source) for source in _rows(dig(facts, "sources"))},
        "lengths": [_lengths(stage, row) for stage, row in _named(dig(facts, "stages"))],
        "findings": [_noticed(row) for row in _rows(dig(facts, "findings"))],
        "examples": [_seen(row) for row in _rows(dig(facts, "examples"))],
    }
    return found if found["lengths"] or found["findings"] or found["examples"] else {}


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _named(value: Any) -> Iterator[tuple[str, Row]]:
    yield from (
        ((str(name), row) for name, row in value.items() if isinstance(row, dict)) if isinstance(value, dict) else ()
    )


def _letters(source: Row) -> str:
    scripts = source.get("scripts")
    shares = [(str(name), number(share)) for name, share in scripts.items()] if isinstance(scripts, dict) else []
    return ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)


def _lengths(stage: str, row: Row) -> tuple[str, str, list[Lengths]]:
    """The stage, what is too long in words, and its histograms."""
    limit, measured, too_long = (number(row.get(key)) for key in ("limit", "measured", "too_long"))
    dropped = f"{too_long / measured:.1%} longer than {limit:.0f}, and so dropped" if too_long > 0 < measured else ""
    listed = ((name, numbers(histogram.get("counts")), histogram) for name, histogram in _named(row.get("lengths")))
    counted = [
        (name, counts[:MOST_BARS], histogram) for name, counts, histogram in listed if max(counts, default=0) > 0
    ]
    first = min((next(i for i, count in enumerate(counts) if count > 0) for _, counts, _ in counted), default=0)
    last = max((len(counts) for _, counts, _ in counted), default=0)
    drawn = []
    for name, counts, histogram in counted:
        is_limited = limit > 0 and name == ("prompt" if stage == "rl" else "whole")
        bars = [
            (round(100 * count / max(counts), 1), math.ceil(2 ** (i / 2)), is_limited and 2 ** (i / 2) > limit)
            for i, count in enumerate([*counts, *[0] * (last - len(counts))])
            if i >= first
        ]
        figures = (number(histogram.get(key)) for key in ("median", "percentile_95", "longest"))
        median, most, longest = (f"{figure:,.0f}" if math.isfinite(figure) else "?" for figure in figures)
        drawn.append(Lengths(name, bars, f"median {median}, 95 % up to {most}, longest {longest}"))
    return stage, dropped, drawn


def _noticed(row: Row) -> Noticed:
    severity, count, of = str(row.get("severity")), number(row.get("count")), number(row.get("of"))
    return Noticed(
        severity if severity in SEVERITIES else "note",
        str(row.get("what", "")),
        f"{count:,.0f} of {of:,.0f} ({count / of:.2%})" if count >= 0 and of > 0 else "",
        str(row.get("where", "")),
        str(row.get("remedy", "")),
        [(str(each.get("where", "")), str(each.get("text", ""))) for each in _rows(row.get("examples"))],
    )


def _seen(example: Row) -> Seen:
    rows = []
    for row in _rows(example.get("rows")):
        listed = row.get("tokens")
        tokens = [
            (f"{'learned' if token[1] is True else 'context'}{' special' if token[2] is True else ''}", token[0])
            for token in (listed if isinstance(listed, list) else [])
            if isinstance(token, list) and len(token) == 3
        ]
        count = number(row.get("count"))
        rows.append(
            Read(
                str(row.get("title", "")),
                str(row.get("fate", "")),
                [(kind, visible(str(text), empty="▫")) for kind, text in tokens],
                int(count) - len(tokens) if count > len(tokens) else 0,
            )
        )
    return Seen(str(example.get("stage", "")), str(example.get("where", "")), str(example.get("note", "")), rows)
