"""What a run writes down about its data: `data.json`, from a look whose cost does not grow with the data."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatsmith.checkpoint import finite, save_text
from chatsmith.config import Config
from chatsmith.data.sources import Source
from chatsmith.errors import DataError
from chatsmith.inputs import share, stages_to_train
from chatsmith.inspection.check import Facts, facts_of
from chatsmith.inspection.reading import Reader, readers
from chatsmith.inspection.show import View, sample, view
from chatsmith.types import Record, Stage

FILE = "data.json"
MOST = 50_000  # records that a run looks at
MOST_TOKENS = 400  # of one row of an example
TRIED = 20  # records of which the first that is short enough is the example


def write_facts(config: Config, sources: Sequence[Source], directory: Path) -> Facts:
    """Look at the data of a run, and write `data.json` with what was found and an example per stage.

    Raises:
        ModelError: if a tokenizer cannot be loaded or its chat template cannot be used.
    """
    reading = readers(config)
    facts = facts_of(config, sources, reading, most=MOST)
    data = share(config, sources)
    examples = []
    for stage in stages_to_train(config):
        if data[stage].train:
            records = sample(data, stage, TRIED, seed=config.seed)
            first = next(_views(records, stage, reading[stage], config), None)
            short = next(filter(_fits, _views(records, stage, reading[stage], config)), first)
            if short is not None:
                examples.append(_written(short))
    text = json.dumps(finite(asdict(facts) | {"examples": examples}), ensure_ascii=False)
    save_text(directory / FILE, text + "\n")
    return facts


def _views(records: Sequence[Record], stage: Stage, reader: Reader, config: Config) -> Iterator[View]:
    """Of those that can be seen so: what cannot is among the findings."""
    for record in records:
        with suppress(DataError):
            yield view(record, stage, reader, config)


def _fits(view: View) -> bool:
    return all(not row.fate and len(row.tokens) <= MOST_TOKENS for row in view.rows)


def _written(view: View) -> dict[str, Any]:
    """A view with its tokens as [text, is learned, is special], the first ones of each row."""
    rows = [
        {
            "title": row.title,
            "fate": row.fate,
            "count": len(row.tokens),
            "tokens": [[token.text, token.is_learned, token.is_special] for token in row.tokens[:MOST_TOKENS]],
        }
        for row in view.rows
    ]
    return {"stage": view.stage, "where": view.where, "note": view.note, "rows": rows}
