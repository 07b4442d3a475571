"""What a run writes down about its data: `data.json`, from a look whose cost does not grow with the data."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from chatsmith.config import Config
from chatsmith.data.sources import Source
from chatsmith.errors import DataError
from chatsmith.files.checkpoint import finite, save_text
from chatsmith.inspection.attempts import Attempts
from chatsmith.inspection.check import Facts, facts_of
from chatsmith.inspection.readers import Reader, readers
from chatsmith.inspection.show import View, sample, view
from chatsmith.intake import share, taken
from chatsmith.types import Record, Stage

FILE = "data.json"
MOST = 50_000  # records that a run looks at
SHOWN = 3  # findings, on the screen
MOST_TOKENS = 400  # of one row of an example
LOOK = "the data could not be looked at"
TRIED = 20  # records of which the first that is short enough is the example


def look(config: Config, sources: Sequence[Source], directory: Path, say: Callable[[str], None]) -> None:
    """Once per run, what the data looks like; a person reads it in the report."""
    if (directory / FILE).exists():
        return
    wrong = [finding for finding in write_facts(config, sources, directory).findings if finding.severity != "note"]
    for finding in wrong[:SHOWN]:
        say(f"data: {finding.what} ({finding.count} of {finding.of})" if finding.of else finding.what)
    if len(wrong) > SHOWN:
        say(f"data: {len(wrong) - SHOWN} more in {FILE} and the report")


def write_facts(config: Config, sources: Sequence[Source], directory: Path) -> Facts:
    """Look at the data of a run, and write `data.json` with what was found and an example per stage.

    Whatever goes wrong while it looks is a finding: a run does not end for it.
    """
    attempt = Attempts()
    facts = attempt(LOOK, "", partial(_facts, config, sources)) or Facts((), {}, (), "characters", 1)
    examples = attempt(LOOK, "", partial(_examples, config, sources, attempt)) or []
    facts = replace(facts, findings=(*facts.findings, *attempt.findings()))
    text = json.dumps(finite(asdict(facts) | {"examples": examples}), ensure_ascii=False)
    # a path may hold bytes that are no text
    save_text(directory / FILE, text.encode(errors="backslashreplace").decode() + "\n")
    return facts


def _facts(config: Config, sources: Sequence[Source]) -> Facts:
    return facts_of(config, sources, readers(config), most=MOST)


def _examples(config: Config, sources: Sequence[Source], attempt: Attempts) -> list[dict[str, Any]]:
    """Of each stage the first of some records that is short enough to be shown whole, or else the first."""
    reading, data = readers(config), share(config, sources)
    examples = []
    for stage in taken(config):
        if data[stage].train:
            records = sample(data, stage, TRIED, seed=config.seed)
            what = f"{stage}: examples that cannot be shown"
            views = (attempt(what, r.origin, partial(_view, r, stage, reading[stage], config)) for r in records)
            shown = [each for each in views if each is not None]
            if shown:
                examples.append(_written(next(filter(_fits, shown), shown[0])))
    return examples


def _view(record: Record, stage: Stage, reader: Reader, config: Config) -> View | None:
    """None of what no template or tokenizer can carry: that is among the findings."""
    with suppress(DataError):
        return view(record, stage, reader, config)
    return None


def _fits(view: View) -> bool:
    return all(not row.fate and len(row.tokens) <= MOST_TOKENS for row in view.rows)


def _written(view: View) -> dict[str, Any]:
    """A view with its tokens as [text, is learned, is special], the first ones of each row."""
    rows = [
        asdict(row) | {"count": len(row.tokens), "tokens": list(map(astuple, row.tokens[:MOST_TOKENS]))}
        for row in view.rows
    ]
    return asdict(view) | {"rows": rows}
