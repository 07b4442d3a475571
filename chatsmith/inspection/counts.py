"""What there is: counted per source and per stage, in one pass over each."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from chatsmith.data.formats import best_answer, imitable
from chatsmith.data.licences import non_commercial
from chatsmith.data.mapping import Dropped
from chatsmith.data.mix import StageData
from chatsmith.data.signs import script, signs
from chatsmith.data.sources import Source
from chatsmith.data.spec import READING, STAGES
from chatsmith.inspection.attempts import Attempts
from chatsmith.inspection.copies import Seen, bit
from chatsmith.inspection.findings import EXAMPLES, Example, question
from chatsmith.inspection.readers import Measured, Reader, character_lengths, measured
from chatsmith.screen.text import quoted
from chatsmith.types import Record, Stage

REASONS = 5  # of bad records, listed per source
BATCH = 256  # records that are tokenised together
LOOKED_AT = "records that cannot be looked at"
COPIES = "copies cannot be looked for"
MEASURED_RECORDS = "records whose tokens cannot be counted"
MEASURED = 2_000  # records of a stage whose lengths are measured, spread evenly over it


@dataclass(frozen=True)
class Reason:
    """Why records were left out, how many, and the first of them."""

    text: str
    count: int
    first: str


@dataclass(frozen=True)
class SourceFacts:
    """One source. `stages` counts its records per stage: for training, held out."""

    spec: str
    records: int
    dropped: int
    reasons: tuple[Reason, ...]
    licence: str | None
    non_commercial: bool
    scripts: dict[str, float]
    stages: dict[Stage, tuple[int, int]]


@dataclass(frozen=True)
class Histogram:
    """Lengths of something: `counts[i]` of them are of 2^(i/2) to 2^((i+1)/2), the last bin of the longest."""

    counts: list[int]
    median: int
    percentile_95: int
    longest: int


@dataclass(frozen=True)
class StageFacts:
    """One stage: examples for training (copies by weight included) and held out, and how long they are.

    `too_long` of the `measured` records exceed `limit` and are dropped; all three are 0 without a tokenizer. So are the
    `tokens` in them, of which the tokenizer does not know `unknown`, and what it or the chat template `refused`.
    """

    train: int
    held_out: int
    lengths: dict[str, Histogram]
    measured: int
    too_long: int
    limit: int
    tokens: int = 0
    unknown: int = 0
    refused: tuple[Example, ...] = ()


@dataclass
class Tally:
    """What is counted in one source."""

    source: Source
    records: int = 0
    answered: int = 0
    scripts: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)  # fields that were not read
    bad: int = 0  # answers marked bad
    lone: int = 0  # answers with a score, and no other one beside them
    pairs: int = 0  # records with a better and a worse answer
    longer: int = 0  # of them, those whose best answer is longer than the worst
    shorter: int = 0

    def base(self, sign: str) -> int:
        """How many records could have shown a sign."""
        if sign in ("tie", "contradiction"):
            return self.pairs + self.signs["tie"]
        return self.answered if sign in ("speaker", "unended", "echo", "refusal") else self.records


def tally_of(source: Source, seen: Seen, step: int, attempt: Attempts) -> Tally:
    tally = Tally(source)
    for index in range(0, len(source.records), step):
        record = source.records[index]
        tally.records += 1
        if not seen.is_broken:
            seen.is_broken = attempt(COPIES, record.origin, partial(seen.add, record)) is None
        attempt(LOOKED_AT, record.origin, partial(_count, tally, record))
    return tally


def _count(tally: Tally, record: Record) -> None:
    good = imitable(record)
    tally.answered += bool(good)
    tally.bad += len(record.answers) - len(good)
    tally.lone += len(record.answers) == 1 and record.answers[0].score is not None and not record.answers[0].is_marked
    tally.unused.update(record.unused)
    said = best_answer(record).content if good else ""
    tally.scripts[script(f"{question(record)}\n{said}")] += 1
    for name, text in signs(record):
        tally.signs[name] += 1
        examples = tally.examples.setdefault(name, [])
        if len(examples) < EXAMPLES:
            examples.append(Example(record.origin, text))
    scored = [answer for answer in record.answers if answer.score is not None]
    if good and len({answer.score for answer in scored}) > 1:
        best, worst = best_answer(record), min(scored, key=lambda answer: answer.score or 0.0)
        tally.pairs += 1
        tally.longer += len(best.content) > len(worst.content)
        tally.shorter += len(best.content) < len(worst.content)


def source_facts(source: Source, tally: Tally, places: NDArray[np.uint16], step: int) -> SourceFacts:
    scripts = {name or "no letters": count / tally.records for name, count in tally.scripts.most_common()}
    stages = {stage: tuple(step * int((places & bit(stage, side) > 0).sum()) for side in (0, 1)) for stage in STAGES}
    return SourceFacts(
        spec=name_of(source),
        records=len(source.records),
        dropped=len(source.dropped),
        reasons=tuple(reasons_of(source.dropped)),
        licence=source.licence,
        non_commercial=non_commercial(source.licence),
        scripts=scripts,
        stages={stage: (counts[0], counts[1]) for stage, counts in stages.items() if any(counts)},
    )


def name_of(source: Source) -> str:
    stages = f"{','.join(source.spec.stages)}:" if source.spec.stages else ""
    split = f"#{source.spec.split}" if source.spec.split else ""
    weight = f"@{source.spec.weight:g}" if source.spec.weight != 1 else ""
    return f"{stages}{quoted(source.spec.location)}{split}{weight}"


def reasons_of(dropped: Iterable[Dropped]) -> list[Reason]:
    """Reasons that differ in their numbers only are the same one."""
    counts: Counter[str] = Counter()
    first: dict[str, Dropped] = {}
    for each in dropped:
        kind = re.sub(r"\d+", "#", each.reason)
        counts[kind] += 1
        first.setdefault(kind, each)
    return [Reason(first[kind].reason, count, first[kind].origin) for kind, count in counts.most_common(REASONS)]


def stage_facts(stage: Stage, sides: StageData, reader: Reader | None, attempt: Attempts) -> StageFacts:
    def look(batch: list[Record]) -> Measured:
        if reader is None:
            return Measured(character_lengths(stage, batch))
        return measured(stage, batch, reader)

    records = sides.train or sides.held_out
    chosen = range(0, len(records), -(-len(records) // MEASURED))
    parts: list[Measured] = []
    for start in range(0, len(chosen), BATCH):
        batch = [records[index] for index in chosen[start : start + BATCH]]
        try:
            parts.append(look(batch))
        except Exception:  # by themselves, to find the one
            alone = [attempt(f"{stage}: {MEASURED_RECORDS}", r.origin, partial(look, [r])) for r in batch]
            parts += [part for part in alone if part is not None]
    lengths = [length for part in parts for length in part.lengths]
    named = {"prompt": [x.prompt for x in lengths], "answer": [x.answer for x in lengths if x.answer]}
    if stage == READING:
        named = {"text": [x.whole for x in lengths]}
    elif named["answer"]:
        named["whole"] = [x.whole for x in lengths]
    return StageFacts(
        train=len(sides.train),
        held_out=len(sides.held_out),
        lengths={name: _histogram(values) for name, values in named.items() if values},
        measured=len(chosen) if reader else 0,
        too_long=sum(part.too_long for part in parts),
        limit=reader.limit if reader else 0,
        tokens=sum(part.tokens for part in parts),
        unknown=sum(part.unknown for part in parts),
        refused=tuple(Example(*each) for part in parts for each in part.refused),
    )


def _histogram(values: Sequence[int]) -> Histogram:
    lengths = np.array(values)
    bins = np.floor(2 * np.log2(np.maximum(1, lengths)) + 1e-9).astype(int)
    median, percentile = np.percentile(lengths, (50, 95), method="inverted_cdf")
    return Histogram(np.bincount(bins).tolist(), int(median), int(percentile), int(lengths.max()))
