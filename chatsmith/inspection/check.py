"""Everything that can be known of data before training: what is there, who gets it, how long it is, what looks wrong.

Records are read once per source and once per stage, in order, and forgotten: what is kept of each are numbers, some 120
bytes. Texts are read again only to compare candidates for duplicates and to show examples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatsmith.config import Config
from chatsmith.data.control import MANY_UNKNOWN
from chatsmith.data.files import KINDS
from chatsmith.data.licences import non_commercial
from chatsmith.data.mix import StageData, why_one_sided
from chatsmith.data.signs import SIGNS
from chatsmith.data.sources import Source, unread_files
from chatsmith.data.spec import ASKING
from chatsmith.errors import ChatsmithError, DataError
from chatsmith.evaluate import MIN_PROMPTS
from chatsmith.inspection.attempts import Attempts, described
from chatsmith.inspection.copies import Seen, copies, places_of
from chatsmith.inspection.counts import (
    COPIES,
    SourceFacts,
    StageFacts,
    Tally,
    name_of,
    reasons_of,
    source_facts,
    stage_facts,
    tally_of,
)
from chatsmith.inspection.findings import (
    COPIED,
    EXAMPLES,
    SEVERITIES,
    Example,
    Finding,
    Severity,
    example,
    record_at,
    shortened,
)
from chatsmith.inspection.readers import Reader
from chatsmith.intake import read, share, taken
from chatsmith.screen.text import quoted
from chatsmith.types import Stage

ONE_SIDED = 0.8  # share of preferences of one length from which on a reward model learns length
FEW_PAIRS = 50
TOO_MANY_LONG = 0.05
LISTED_FIELDS = 50


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

    Bad records, unreadable sources and templates that cannot render a record are findings here, and so end nothing.

    Args:
        readers: how stages read; empty: lengths are in characters.
        whole_run: every stage of the configuration needs records; else those that get any or are named by a source.
    Raises:
        ConfigError: if the configuration is wrong.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    for each in config.data.sources:
        try:
            sources.append(read(config, each, on_error="skip"))
        except DataError as error:
            findings.append(Finding("error", "a source cannot be read", str(error)))
        except ChatsmithError:
            raise
        except Exception as error:
            where = each if isinstance(each, str) else each.source
            what = "a source cannot be read: this is a bug in chatsmith, please report it"
            findings.append(Finding("error", what, f"{quoted(where)}: {described(error)}"))
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
    attempt = Attempts()
    seen = Seen(sum(len(range(0, len(source.records), step)) for source in sources))
    tallies = [tally_of(source, seen, step, attempt) for source in sources]
    places = places_of(data, sources, step)
    ends = np.cumsum([tally.records for tally in tallies], dtype=int)
    each = zip(sources, tallies, np.split(places, ends), strict=False)  # nothing is left behind the last end
    facts = tuple(source_facts(source, tally, part, step) for source, tally, part in each)
    stages = {
        stage: stage_facts(stage, sides, readers.get(stage), attempt)
        for stage, sides in data.items()
        if sides.train or sides.held_out
    }
    looks: list[Callable[[], Iterable[Finding]]] = [partial(_bad_records, sources, config)]
    looks += [partial(look, source) for source in sources for look in (_of_licence, _unread)]
    looks.append(partial(_of_signs, tallies))
    if not sources and not found:
        found.append(Finding("error", "nothing to train on", "give a source with records"))
    if data:
        looks.append(partial(_of_stages, config, data, sources, whole_run=whole_run))
        looks += [partial(look, *each, config) for look in (_of_lengths, _of_tokens) for each in stages.items()]
        looks.append(partial(_unused, sources, places, step))
    looks += [partial(look, tally) for look in (_of_preferences, _of_marks, _of_fields) for tally in tallies]
    if step == 1 and not seen.is_broken:
        found += attempt(COPIES, "", lambda: list(copies(sources, seen, places))) or []
    for look in looks:
        found += attempt("a look at the data that failed", "", partial(_all_of, look)) or []
    found += attempt.findings()
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count / max(1, finding.of)))
    return Facts(facts, stages, shortened(found, sources), "tokens" if readers else "characters", step)


def _all_of(look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return list(look())


def _bad_records(sources: Sequence[Source], config: Config) -> Iterator[Finding]:
    dropped = sum(len(source.dropped) for source in sources)
    if not dropped:
        return
    total = dropped + sum(len(source.records) for source in sources)
    examples = [
        Example(reason.first, f"{reason.text}{f' ({reason.count} such)' if reason.count > 1 else ''}")
        for source in sources
        for reason in reasons_of(source.dropped)
    ]
    severity: Severity = "warning" if dropped > COPIED * total else "note"
    remedy = "a run leaves them out and lists them in its manifest"
    if config.data.on_error == "raise":
        severity, remedy = "error", "mend them, or leave them out with --data.on_error skip: a run stops at the first"
    what = "bad records, which cannot be read"
    yield Finding(severity, what, remedy, dropped, total, tuple(examples[: 2 * EXAMPLES]))


def _of_licence(source: Source) -> Iterator[Finding]:
    if non_commercial(source.licence):
        remedy = "a model that was trained on it is for research"
        yield Finding("warning", f"{name_of(source)} is not for commercial use: {source.licence}", remedy)


def _unread(source: Source) -> Iterator[Finding]:
    files = unread_files(source.spec)
    if files:
        names = ", ".join(files[:EXAMPLES]) + ", ..." * (len(files) > EXAMPLES)
        what = f"{quoted(source.spec.location)}: files of other kinds in it, not read ({len(files)}): {names}"
        yield Finding("warning", what, f"if they hold data, write them as one of {KINDS}")


def _of_stages(
    config: Config, data: Mapping[Stage, StageData], sources: Sequence[Source], *, whole_run: bool
) -> Iterator[Finding]:
    named = {stage for source in sources for stage in source.spec.stages}
    for stage in taken(config, made=False):
        train, held_out = len(data[stage].train), len(data[stage].held_out)
        if train and held_out:
            if stage == ASKING and held_out < MIN_PROMPTS:
                severity: Severity = "error" if whole_run or stage in named else "warning"
                what = f"{stage} gets {held_out} held-out prompts, and its gate judges from {MIN_PROMPTS} on"
                yield Finding(severity, what, f"raise --data.held_out, or add prompts (--data {stage}:FILE)")
            continue
        if train or held_out or whole_run or stage in named:
            what = f"{stage} gets {train} records to train on and {held_out} held out; it needs both"
            remedy = f"add a source for it (--data {stage}:FILE), or raise --data.held_out"
            yield Finding("error", what, why_one_sided(data[stage], sources) or remedy)
        else:
            what = f"no record can serve {stage}"
            yield Finding("note", what, f"a run with this stage needs another source (--data {stage}:FILE)")


def _of_lengths(stage: Stage, facts: StageFacts, config: Config) -> Iterator[Finding]:
    if facts.too_long:
        what = f"{stage}: longer than {facts.limit} tokens, and so dropped"
        remedy = "raise --data.max_tokens if the model's context allows it"
        if stage == ASKING:
            what = f"{stage}: prompts longer than {facts.limit} tokens, and so dropped: answers need room"
            remedy += ", or lower --rl.max_new_tokens"
        share_of = facts.too_long / facts.measured
        severity: Severity = "error" if share_of == 1 else "warning" if share_of > TOO_MANY_LONG else "note"
        yield Finding(severity, what, remedy, facts.too_long, facts.measured)


def _of_tokens(stage: Stage, facts: StageFacts, config: Config) -> Iterator[Finding]:
    severity: Severity
    if facts.unknown:
        what = f"{stage}: <unk> tokens, for letters that the vocabulary does not have: all are read as the same one"
        remedy = "take a base model whose tokenizer knows these letters, or falls back to bytes"
        severity = "warning" if facts.unknown >= MANY_UNKNOWN * facts.tokens else "note"
        yield Finding(severity, what, remedy, facts.unknown, facts.tokens)
    if facts.refused:
        what = f"{stage}: records that the chat template or the tokenizer of the model cannot carry as they are"
        severity, remedy = "warning", "mend them: a run leaves them out"
        if config.data.on_error == "raise":
            remedy = "mend them, or leave them out with --data.on_error skip: a run stops at the first"
            severity = "error"
        yield Finding(severity, what, remedy, len(facts.refused), facts.measured, facts.refused[:EXAMPLES])


def _unused(sources: Sequence[Source], places: NDArray[np.uint16], step: int) -> Iterator[Finding]:
    unused = np.flatnonzero(places == 0)
    if len(unused):
        examples = [example(record_at(sources, int(i), step)) for i in unused[:EXAMPLES]]
        remedy = "they cannot serve a stage of this run, or the split or weight leaves them out"
        yield Finding("note", "records that no stage gets", remedy, len(unused), len(places), tuple(examples))


def _of_signs(tallies: Sequence[Tally]) -> Iterator[Finding]:
    """Sources in which a sign is frequent are a warning together, the others a note."""
    for name, sign in SIGNS.items():
        groups: dict[Severity, list[tuple[Tally, int, int]]] = {}
        for tally in tallies:
            count, of = tally.signs[name], tally.base(name)
            if count:
                groups.setdefault("warning" if count >= sign.warn_from * of else "note", []).append((tally, count, of))
        for severity, group in groups.items():
            shares = [f"{quoted(Path(tally.source.spec.location).name)} {count / of:.2%}" for tally, count, of in group]
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


def _of_preferences(tally: Tally) -> Iterator[Finding]:
    for word, count in (("longer", tally.longer), ("shorter", tally.shorter)):
        if tally.pairs >= FEW_PAIRS and count >= ONE_SIDED * tally.pairs:
            what = f"{name_of(tally.source)}: the better answer is the {word} one"
            remedy = "add pairs where it is not: a reward model may learn length and nothing else"
            yield Finding("warning", what, remedy, count, tally.pairs)


def _of_marks(tally: Tally) -> Iterator[Finding]:
    if tally.bad:
        what = f"{name_of(tally.source)}: answers marked bad, which are never imitated"
        remedy = "their prompts serve rl; the answers keep their marks"
        yield Finding("note", what, remedy, tally.bad, tally.bad + tally.answered)
    if tally.lone:
        what = f"{name_of(tally.source)}: answers with a score and no other answer beside them"
        remedy = "stage 1 learns all of them, the worst too: leave those out, or put the answers of a prompt together"
        yield Finding("warning", what, remedy, tally.lone, tally.records)


def _of_fields(tally: Tally) -> Iterator[Finding]:
    if tally.unused:
        named = [f"{name} ({count:,})" for name, count in tally.unused.most_common(LISTED_FIELDS)]
        more = f" and {len(tally.unused) - LISTED_FIELDS} more" if len(tally.unused) > LISTED_FIELDS else ""
        what = f"{name_of(tally.source)}: fields that no part of a record is made of: {', '.join(named)}{more}"
        yield Finding("note", what, "reward functions find them in record.fields; a mapping can use them")
