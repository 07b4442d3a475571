"""Everything that can be known of data before training: what is there, who gets it, how long it is, what looks wrong.

Records are read once per source and once per stage, in order, and forgotten: what is kept of each are numbers, some 120
bytes. Texts are read again only to compare candidates for duplicates and to show examples.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chatsmith.config import Config
from chatsmith.data.check import SIGNS, best_answer, excerpt, script, signs
from chatsmith.data.duplicates import BANDS, near_duplicates, similarity, sketch, words
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData
from chatsmith.data.sources import Dropped, Source, read_source
from chatsmith.data.spec import STAGES, as_spec
from chatsmith.errors import DataError
from chatsmith.inputs import share, stages_to_train
from chatsmith.inspection.reading import Length, Reader, character_lengths, token_lengths
from chatsmith.types import Record, Stage

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3
REASONS = 5  # of bad records, listed per source
MEASURED = 5_000  # records of a stage whose lengths are measured, spread evenly over it
BATCH = 256  # records that are tokenised or sketched together
LONG_ANSWER = 80  # characters from which on the same answer to two questions is no chance
COPIED = 0.01  # share of copies from which on they are more than an oversight
ONE_SIDED = 0.8  # share of preferences of one length from which on a reward model learns length
FEW_PAIRS = 50
TOO_MANY_LONG = 0.05
OTHERS_COMPARED = 200  # leaks of which the worst are shown
SIDES = ("training", "held out")


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

    `too_long` of the `measured` records exceed `limit` and are dropped; all three are 0 without a tokenizer.
    """

    train: int
    held_out: int
    lengths: dict[str, Histogram]
    measured: int
    too_long: int
    limit: int


@dataclass(frozen=True)
class Facts:
    """The result. `unit` is that of the lengths; every `step`-th record was looked at."""

    sources: tuple[SourceFacts, ...]
    stages: dict[Stage, StageFacts]
    findings: tuple[Finding, ...]
    unit: str
    step: int

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(finding.severity == "error" for finding in self.findings)


def check(config: Config, readers: Mapping[Stage, Reader], *, whole_run: bool) -> Facts:
    """Read the sources of a configuration and look at all of their records.

    Bad records and unreadable sources are findings here, and so end nothing.

    Args:
        readers: how stages read; empty: lengths are in characters.
        whole_run: every stage of the configuration needs records; else those that get any or are named by a source.
    Raises:
        ConfigError: if the configuration is wrong.
        ModelError: if a chat template cannot be used.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    for each in config.data.sources:
        try:
            sources.append(read_source(as_spec(each), on_error="skip"))
        except DataError as error:
            findings.append(Finding("error", "a source cannot be read", str(error)))
    return facts_of(config, sources, readers, findings=findings, whole_run=whole_run)


def facts_of(
    config: Config,
    sources: Sequence[Source],
    readers: Mapping[Stage, Reader],
    *,
    findings: Sequence[Finding] = (),
    whole_run: bool = True,
    most: int | None = None,
) -> Facts:
    """What `check` says of sources that have been read.

    Args:
        findings: what was found while they were read.
        most: records to look at, spread evenly; copies are then not looked for. None: all.
    """
    found = list(findings)
    data: dict[Stage, StageData] = {}
    try:
        data = share(config, sources)
    except DataError as error:
        found.append(Finding("error", "a source is given to a stage that it cannot serve", str(error)))
    total = sum(len(source.records) for source in sources)
    step = 1 if most is None else max(1, -(-total // most))
    seen = _Seen(sum(len(range(0, len(source.records), step)) for source in sources))
    tallies = [_tally(source, seen, step) for source in sources]
    places = _places(data, seen)
    facts = []
    start = 0
    for source, tally in zip(sources, tallies, strict=True):
        end = start + tally.records
        facts.append(_source_facts(source, tally, places[start:end], step))
        start = end
    stages: dict[Stage, StageFacts] = {}
    for stage, sides in data.items():
        if sides.train or sides.held_out:
            stages[stage] = _stage_facts(stage, sides, readers.get(stage))
    found += _bad_records(sources, config)
    if not sources and not found:
        found.append(Finding("error", "nothing to train on", "give a source with records"))
    found += [finding for tally in tallies for finding in _of_licence(tally.source)]
    found += _of_signs(tallies)
    if data:
        found += _of_stages(config, stages, sources, whole_run=whole_run)
        found += _of_lengths(stages)
        found += _unused(sources, places, step)
    found += _of_preferences(tallies)
    if step == 1:
        found += _of_copies(sources, seen, places)
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Facts(tuple(facts), stages, _shortened(found, sources), "tokens" if readers else "characters", step)


def _shortened(findings: Sequence[Finding], sources: Sequence[Source]) -> tuple[Finding, ...]:
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


class _Seen:
    """Of every record looked at, in the order of the sources: numbers that tell whether it is like another."""

    def __init__(self, count: int) -> None:
        self.origins, self.whole, self.question, self.answer = np.zeros((4, count), dtype=np.int64)
        self.sketches = np.zeros((count, BANDS), dtype=np.uint32)
        self._count = 0
        self._waiting: list[list[str]] = []

    def add(self, record: Record) -> None:
        asked = words(question(record))
        answer = best_answer(record).content if record.answers else ""
        self.origins[self._count] = hash(record.origin)
        self.whole[self._count] = hash((record.prompt, record.answers, record.text))
        self.question[self._count] = hash(tuple(asked))
        self.answer[self._count] = hash(answer) if len(answer) >= LONG_ANSWER else 0
        self._count += 1
        self._waiting.append(asked)
        if len(self._waiting) == BATCH or self._count == len(self.sketches):
            self.sketches[self._count - len(self._waiting) : self._count] = sketch(self._waiting)
            self._waiting = []


def question(record: Record) -> str:
    """All that is said before the answer, or the text: what must not stand on two sides of a split."""
    return "\n".join(turn.content for turn in record.prompt) or record.text


@dataclass
class _Tally:
    """What is counted in one source."""

    source: Source
    records: int = 0
    answered: int = 0
    scripts: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    pairs: int = 0  # records with a better and a worse answer
    longer: int = 0  # of them, those whose best answer is longer than the worst
    shorter: int = 0

    def base(self, sign: str) -> int:
        """How many records could have shown a sign."""
        if sign in ("tie", "contradiction"):
            return self.pairs + self.signs["tie"]
        return self.answered if sign in ("speaker", "unended", "echo", "refusal") else self.records


def _tally(source: Source, seen: _Seen, step: int) -> _Tally:
    tally = _Tally(source)
    for index in range(0, len(source.records), step):
        record = source.records[index]
        seen.add(record)
        tally.records += 1
        tally.answered += bool(record.answers)
        said = best_answer(record).content if record.answers else ""
        tally.scripts[script(f"{question(record)}\n{said}")] += 1
        for name, text in signs(record):
            tally.signs[name] += 1
            examples = tally.examples.setdefault(name, [])
            if len(examples) < EXAMPLES:
                examples.append(Example(record.origin, text))
        scored = [answer for answer in record.answers if answer.score is not None]
        if len({answer.score for answer in scored}) > 1:
            best, worst = best_answer(record), min(scored, key=lambda answer: answer.score or 0.0)
            tally.pairs += 1
            tally.longer += len(best.content) > len(worst.content)
            tally.shorter += len(best.content) < len(worst.content)
    return tally


def _places(data: Mapping[Stage, StageData], seen: _Seen) -> NDArray[np.uint8]:
    """Per record a bit for every stage and side that has it: 1 << 2 * stage for training, the next for held out."""
    known, number = np.unique(seen.origins, return_inverse=True)
    places = np.zeros(len(known), dtype=np.uint8)
    for stage, sides in data.items():
        for side, records in enumerate((sides.train, sides.held_out)):
            here = np.fromiter((hash(record.origin) for record in records), dtype=np.int64, count=len(records))
            at = np.searchsorted(known, here).clip(max=max(0, len(known) - 1))
            places[at[known[at] == here] if len(known) else at] |= _bit(stage, side)
    return places[number]


def _bit(stage: Stage, side: int) -> np.uint8:
    return np.uint8(1 << (2 * STAGES.index(stage) + side))


TRAINED = sum(int(_bit(stage, 0)) for stage in STAGES)


def _source_facts(source: Source, tally: _Tally, places: NDArray[np.uint8], step: int) -> SourceFacts:
    scripts = {name or "no letters": count / tally.records for name, count in tally.scripts.most_common()}
    stages = {stage: tuple(step * int((places & _bit(stage, side) > 0).sum()) for side in (0, 1)) for stage in STAGES}
    return SourceFacts(
        spec=_name(source),
        records=len(source.records),
        dropped=len(source.dropped),
        reasons=tuple(_reasons(source.dropped)),
        licence=source.licence,
        non_commercial=non_commercial(source.licence),
        scripts=scripts,
        stages={stage: (counts[0], counts[1]) for stage, counts in stages.items() if any(counts)},
    )


def _name(source: Source) -> str:
    stages = f"{','.join(source.spec.stages)}:" if source.spec.stages else ""
    split = f"#{source.spec.split}" if source.spec.split else ""
    weight = f"@{source.spec.weight:g}" if source.spec.weight != 1 else ""
    return f"{stages}{source.spec.location}{split}{weight}"


def _reasons(dropped: Iterable[Dropped]) -> list[Reason]:
    """Reasons that differ in their numbers only are the same one."""
    counts: Counter[str] = Counter()
    first: dict[str, Dropped] = {}
    for each in dropped:
        kind = re.sub(r"\d+", "#", each.reason)
        counts[kind] += 1
        first.setdefault(kind, each)
    return [Reason(first[kind].reason, count, first[kind].origin) for kind, count in counts.most_common(REASONS)]


def _bad_records(sources: Sequence[Source], config: Config) -> Iterator[Finding]:
    dropped = sum(len(source.dropped) for source in sources)
    if not dropped:
        return
    total = dropped + sum(len(source.records) for source in sources)
    examples = [
        Example(reason.first, f"{reason.text}{f' ({reason.count} such)' if reason.count > 1 else ''}")
        for source in sources
        for reason in _reasons(source.dropped)
    ]
    what = "bad records, which cannot be read"
    if config.data.on_error == "raise":
        remedy = "mend them, or leave them out with --data.on_error skip: a run stops at the first"
        yield Finding("error", what, remedy, dropped, total, tuple(examples[: 2 * EXAMPLES]))
    else:
        severity: Severity = "warning" if dropped > COPIED * total else "note"
        remedy = "a run leaves them out and lists them in its manifest"
        yield Finding(severity, what, remedy, dropped, total, tuple(examples[: 2 * EXAMPLES]))


def _of_licence(source: Source) -> Iterator[Finding]:
    if non_commercial(source.licence):
        remedy = "a model that was trained on it is for research"
        yield Finding("warning", f"{_name(source)} is not for commercial use: {source.licence}", remedy)


def _stage_facts(stage: Stage, sides: StageData, reader: Reader | None) -> StageFacts:
    records = sides.train or sides.held_out
    chosen = range(0, len(records), -(-len(records) // MEASURED))
    lengths: list[Length] = []
    dropped = 0
    for start in range(0, len(chosen), BATCH):
        batch = [records[index] for index in chosen[start : start + BATCH]]
        if reader is None:
            lengths += character_lengths(stage, batch)
        else:
            measured, too_long = token_lengths(stage, batch, reader)
            lengths += measured
            dropped += too_long
    named = {"prompt": [x.prompt for x in lengths], "answer": [x.answer for x in lengths if x.answer]}
    if stage == "ptx":
        named = {"text": [x.whole for x in lengths]}
    elif named["answer"]:
        named["whole"] = [x.whole for x in lengths]
    return StageFacts(
        train=len(sides.train),
        held_out=len(sides.held_out),
        lengths={name: _histogram(values) for name, values in named.items() if values},
        measured=len(chosen) if reader else 0,
        too_long=dropped,
        limit=reader.limit if reader else 0,
    )


def _histogram(values: Sequence[int]) -> Histogram:
    lengths = np.array(values)
    bins = np.floor(2 * np.log2(np.maximum(1, lengths)) + 1e-9).astype(int)
    median, percentile = np.percentile(lengths, (50, 95), method="inverted_cdf")
    return Histogram(np.bincount(bins).tolist(), int(median), int(percentile), int(lengths.max()))


def _of_stages(
    config: Config, stages: Mapping[Stage, StageFacts], sources: Sequence[Source], *, whole_run: bool
) -> Iterator[Finding]:
    named = {stage for source in sources for stage in source.spec.stages}
    for stage in stages_to_train(config):
        train, held_out = (stages[stage].train, stages[stage].held_out) if stage in stages else (0, 0)
        if train and held_out:
            continue
        if train or held_out or whole_run or stage in named:
            what = f"{stage} gets {train} records to train on and {held_out} held out; it needs both"
            yield Finding("error", what, f"add a source for it (--data {stage}:FILE), or raise --data.held_out")
        else:
            what = f"no record can serve {stage}"
            yield Finding("note", what, f"a run with this stage needs another source (--data {stage}:FILE)")


def _of_lengths(stages: Mapping[Stage, StageFacts]) -> Iterator[Finding]:
    for stage, facts in stages.items():
        if not facts.too_long:
            continue
        what = f"{stage}: longer than {facts.limit} tokens, and so dropped"
        remedy = "raise --data.max_tokens if the model's context allows it"
        if stage == "rl":
            what = f"rl: prompts longer than {facts.limit} tokens, and so dropped: answers need room"
            remedy += ", or lower --rl.max_new_tokens"
        share_of = facts.too_long / facts.measured
        severity: Severity = "error" if share_of == 1 else "warning" if share_of > TOO_MANY_LONG else "note"
        yield Finding(severity, what, remedy, facts.too_long, facts.measured)


def _unused(sources: Sequence[Source], places: NDArray[np.uint8], step: int) -> Iterator[Finding]:
    unused = np.flatnonzero(places == 0)
    if len(unused):
        examples = [_example(_record(sources, int(i), step)) for i in unused[:EXAMPLES]]
        remedy = "they cannot serve a stage of this run, or the split or weight leaves them out"
        yield Finding("note", "records that no stage gets", remedy, len(unused), len(places), tuple(examples))


def _of_signs(tallies: Sequence[_Tally]) -> Iterator[Finding]:
    """Sources in which a sign is frequent are a warning together, the others a note."""
    for name, sign in SIGNS.items():
        groups: dict[Severity, list[tuple[_Tally, int, int]]] = {}
        for tally in tallies:
            count, of = tally.signs[name], tally.base(name)
            if count:
                groups.setdefault("warning" if count >= sign.warn_from * of else "note", []).append((tally, count, of))
        for severity, group in groups.items():
            shares = [f"{Path(tally.source.spec.location).name} {count / of:.2%}" for tally, count, of in group]
            in_turn = [x for place in zip_longest(*(tally.examples[name] for tally, _, _ in group)) for x in place if x]
            yield Finding(
                severity,
                sign.what,
                sign.remedy,
                sum(count for _, count, _ in group),
                sum(of for _, _, of in group),
                tuple(in_turn[:EXAMPLES]),
                ", ".join(shares) if len(shares) > 1 else "",
            )


def _of_preferences(tallies: Sequence[_Tally]) -> Iterator[Finding]:
    for tally in tallies:
        for word, count in (("longer", tally.longer), ("shorter", tally.shorter)):
            if tally.pairs >= FEW_PAIRS and count >= ONE_SIDED * tally.pairs:
                what = f"{_name(tally.source)}: the better answer is the {word} one"
                remedy = "add pairs where it is not: a reward model may learn length and nothing else"
                yield Finding("warning", what, remedy, count, tally.pairs)


def _of_copies(sources: Sequence[Source], seen: _Seen, places: NDArray[np.uint8]) -> Iterator[Finding]:
    """Copies inside and between sources, and what stands on both sides of a split, word by word or nearly."""
    if not len(places):
        return
    source_of = np.repeat(np.arange(len(sources)), [len(source.records) for source in sources])
    first = _first_like(seen.whole)
    yield from _copies(sources, source_of, first)

    groups = near_duplicates(seen.sketches, lambda i: words(question(_record(sources, i))))
    root = groups.root
    again = np.flatnonzero((root != np.arange(len(root))) & (first == np.arange(len(first))))
    if len(again):
        what = "records that ask nearly what another one asks"
        severity: Severity = "warning" if len(again) > 0.1 * len(root) else "note"
        examples = [pair for i in again[:2] for pair in _both(sources, int(root[i]), int(i))]
        yield Finding(severity, what, "drop some, or lower their weight", len(again), len(root), tuple(examples))
    for stage in STAGES:
        yield from _leaks(stage, sources, root, seen.question, places)
    yield from _shared_answers(sources, seen.answer, root, places)


def _first_like(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per key the index of the first equal one."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    result: NDArray[np.int64] = first[number]
    return result


def _copies(sources: Sequence[Source], source_of: NDArray[np.int64], first: NDArray[np.int64]) -> Iterator[Finding]:
    is_copy = first != np.arange(len(first))
    inside = np.flatnonzero(is_copy & (source_of[first] == source_of))
    between = np.flatnonzero(is_copy & (source_of[first] != source_of))
    for copies, where in ((inside, "in the same source"), (between, "in another source")):
        if len(copies):
            severity: Severity = "warning" if len(copies) > COPIED * len(first) else "note"
            examples = [
                Example(f"{_record(sources, int(i)).origin} = {_record(sources, int(first[i])).origin}", text)
                for i in copies[:EXAMPLES]
                for text in [excerpt(question(_record(sources, int(i))), 0)]
            ]
            what = f"exact copies of a record {where}"
            yield Finding(severity, what, "drop them: a copy counts twice", len(copies), len(first), tuple(examples))


def _leaks(
    stage: Stage,
    sources: Sequence[Source],
    root: NDArray[np.int64],
    asked: NDArray[np.int64],
    places: NDArray[np.uint8],
) -> Iterator[Finding]:
    """Held-out records of a stage that some stage trains on, in the same words or nearly."""
    kept = np.flatnonzero(places & _bit(stage, 1))
    trained = np.flatnonzero(places & TRAINED)
    if not len(kept) or not len(trained):
        return
    copied = kept[np.isin(asked[kept], asked[trained])]
    alike = kept[np.isin(root[kept], root[trained])]
    alike = alike[~np.isin(alike, copied)]
    for leaking, key, how in ((copied, asked, "in the same words"), (alike, root, "in nearly the same words")):
        if not len(leaking):
            continue
        is_error = key is asked and len(leaking) > COPIED * len(kept)
        what = f"{stage}: held-out records whose question is trained on {how}"
        remedy = "drop one of the two: what is measured on them is memory" + (
            "" if is_error else "; so few of them hardly change a figure" * (len(leaking) <= COPIED * len(kept))
        )
        pairs = [(int(i), int(trained[np.argmax(key[trained] == key[i])])) for i in leaking[:OTHERS_COMPARED]]
        ranked = sorted(pairs, key=lambda pair: -_similarity(sources, *pair))[: EXAMPLES - 1]
        examples = tuple(example for pair in ranked for example in _both(sources, *pair))
        yield Finding("error" if is_error else "warning", what, remedy, len(leaking), len(kept), examples)


def _shared_answers(
    sources: Sequence[Source], answers: NDArray[np.int64], root: NDArray[np.int64], places: NDArray[np.uint8]
) -> Iterator[Finding]:
    """Held-out answers of stage 1 that it learns as the answer to another question."""
    kept = np.flatnonzero((places & _bit("sft", 1) > 0) & (answers != 0))
    trained = np.flatnonzero((places & _bit("sft", 0) > 0) & (answers != 0))
    shared = kept[np.isin(answers[kept], answers[trained]) & ~np.isin(root[kept], root[trained])]
    if not len(shared):
        return
    pairs = [(int(i), int(trained[np.argmax(answers[trained] == answers[i])])) for i in shared[:1]]
    examples = tuple(example for pair in pairs for example in _both(sources, *pair))
    what = "sft: held-out answers that are trained on, word by word, as answers to other questions"
    severity: Severity = "warning" if len(shared) > COPIED * len(kept) else "note"
    yield Finding(
        severity, what, "a standard answer in many records is learned by heart", len(shared), len(kept), examples
    )


def _similarity(sources: Sequence[Source], one: int, two: int) -> float:
    return similarity(*(words(question(_record(sources, i))) for i in (one, two)))


def _both(sources: Sequence[Source], one: int, two: int) -> list[Example]:
    return [_example(_record(sources, i)) for i in (one, two)]


def _example(record: Record) -> Example:
    return Example(record.origin, excerpt(question(record), 0))


def _record(sources: Sequence[Source], number: int, step: int = 1) -> Record:
    """A record by its number among all that were looked at."""
    for source in sources:
        count = -(-len(source.records) // step)
        if number < count:
            return source.records[number * step]
        number -= count
    raise AssertionError(f"no record has the number {number}")
