"""What a run has found in its data (`data.json`), for the page: lengths, findings, an example per stage."""

import math
from typing import Any

from pydantic import ValidationError

from chatsmith.errors import RunError
from chatsmith.files.received import read_json
from chatsmith.report.reading import RecordedRun
from chatsmith.runs.facts import DataFacts, StageLengths

MOST_BARS = 64


def checked(run: RecordedRun) -> dict[str, Any]:
    """Everything of `data.json` that the page shows; empty if there is none, or if it makes no sense."""
    try:
        facts = DataFacts.model_validate(read_json(run.directory / "data.json", refuse=RunError))
    except (FileNotFoundError, RunError, ValidationError):
        return {}
    letters = {
        source.spec: ", ".join(f"{name} {share:.0%}" for name, share in source.scripts.items() if share >= 0.005)
        for source in facts.sources
    }
    lengths = [_lengths(stage, row) for stage, row in facts.stages.items()]
    found = {"lengths": lengths, "findings": facts.findings, "examples": facts.examples}
    return found | {"unit": facts.unit, "letters": letters} if any(found.values()) else {}


def _lengths(stage: str, row: StageLengths) -> tuple[str, str, list[tuple[str, list[tuple[float, int, bool]], str]]]:
    """The stage, what is too long in words, and its histograms.

    Each has a name, bars (in percent of the highest, the length that it begins at, is it too long), and words.
    """
    long = f"{row.too_long / row.measured:.1%} longer than {row.limit:.0f}, and so dropped" if row.too_long else ""
    counted = {name: each for name, each in row.lengths.items() if any(each.counts[:MOST_BARS])}
    first = min((next(i for i, count in enumerate(each.counts) if count) for each in counted.values()), default=0)
    last = min(MOST_BARS, max((len(each.counts) for each in counted.values()), default=0))
    drawn = []
    for name, each in counted.items():
        limit = row.limit if name == ("whole" if "whole" in row.lengths else "prompt") and row.limit > 0 else math.inf
        counts = [*each.counts, *[0] * last][:last]
        bars = [
            (round(100 * count / max(counts), 1), math.ceil(2 ** (i / 2)), 2 ** (i / 2) > limit)
            for i, count in enumerate(counts)
            if i >= first
        ]
        figures = (f"{x:,.0f}" if math.isfinite(x) else "?" for x in (each.median, each.percentile_95, each.longest))
        drawn.append((name, bars, "median {}, 95 % up to {}, longest {}".format(*figures)))
    return stage, long, drawn
