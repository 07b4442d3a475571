"""A finding about data, with the records that show it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chatsmith.data.signs import excerpt
from chatsmith.data.sources import Source
from chatsmith.types import Record

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3
COPIED = 0.01  # share from which on copies, or bad records, are more than an oversight


@dataclass(frozen=True)
class Example:
    """A place in a source, and what stands there."""

    where: str
    text: str


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should know: how many `of` how many records, and what to do.

    `where` names the sources, with the share in each, if there are several.
    """

    severity: Severity
    what: str
    remedy: str
    count: int = 0
    of: int = 0
    examples: tuple[Example, ...] = ()
    where: str = ""


def question(record: Record) -> str:
    """All that is said before the answer, or the text: what must not stand on two sides of a split."""
    return "\n".join(turn.content for turn in record.prompt) or record.text


def example(record: Record) -> Example:
    return Example(record.origin, excerpt(question(record), 0))


def record_at(sources: Sequence[Source], number: int, step: int = 1) -> Record:
    """A record by its number among all that were looked at."""
    for source in sources:
        count = -(-len(source.records) // step)
        if number < count:
            return source.records[number * step]
        number -= count
    raise AssertionError(f"no record has the number {number}")


def shortened(findings: Sequence[Finding], sources: Sequence[Source]) -> tuple[Finding, ...]:
    """Places without the directory that all sources are in; `data show --at` takes them so."""
    folders = {os.path.dirname(source.spec.location) for source in sources}
    mixed = len({folder.startswith("/") for folder in folders}) != 1
    shared = "" if mixed else os.path.commonpath(folders)
    prefix = f"{shared}/" if shared.strip("/") else ""
    return tuple(
        replace(
            finding,
            examples=tuple(replace(each, where=each.where.replace(prefix, "")) for each in finding.examples),
        )
        for finding in findings
    )
