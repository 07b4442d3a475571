"""Copies inside and between sources, and what stands on two sides of a split, word by word or nearly."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from chatsmith.data.duplicates import BANDS, near_duplicates, similarity, sketch, words
from chatsmith.data.formats import best_answer, imitable
from chatsmith.data.mix import StageData
from chatsmith.data.signs import excerpt
from chatsmith.data.sources import Source
from chatsmith.data.spec import IMITATING, LEARNING, STAGES
from chatsmith.inspection.findings import COPIED, EXAMPLES, Example, Finding, Severity, example, question, record_at
from chatsmith.types import Record, Stage

BATCH = 256  # records that are sketched together
LONG_ANSWER = 80  # characters from which on the same answer to two questions is no chance
MANY_ALIKE = 0.1  # share of questions that are nearly another one's
OTHERS_COMPARED = 200  # leaks of which the worst are shown


class Seen:
    """Of every record looked at, in the order of the sources: numbers that tell whether it is like another."""

    def __init__(self, count: int) -> None:
        self.whole, self.question, self.answer = np.zeros((3, count), dtype=np.int64)
        self.sketches = np.zeros((count, BANDS), dtype=np.uint32)
        self.is_broken = False
        self._count = 0
        self._waiting: list[list[str]] = []

    def add(self, record: Record) -> int:
        """Note a record; returns how many there are."""
        asked = words(question(record))
        answer = best_answer(record).content if imitable(record) else ""
        self.whole[self._count] = hash((record.prompt, record.answers, record.text))
        self.question[self._count] = hash(tuple(asked))
        self.answer[self._count] = hash(answer) if len(answer) >= LONG_ANSWER else 0
        self._count += 1
        self._waiting.append(asked)
        if len(self._waiting) == BATCH or self._count == len(self.sketches):
            self.sketches[self._count - len(self._waiting) : self._count] = sketch(self._waiting)
            self._waiting = []
        return self._count


def places_of(data: Mapping[Stage, StageData], sources: Sequence[Source], step: int) -> NDArray[np.uint16]:
    """For every `step`-th record of each source, a bit for every stage and side that has it."""
    sizes = [len(source.records) for source in sources]
    places = np.zeros(sum(sizes), dtype=np.uint16)
    for stage, sides in data.items():
        for side, records in enumerate((sides.train, sides.held_out)):
            places[records.numbers] |= bit(stage, side)
    return np.concatenate([places[:0], *(part[::step] for part in np.split(places, np.cumsum(sizes, dtype=int)[:-1]))])


def bit(stage: Stage, side: int) -> np.uint16:
    """1 << 2 * stage for training, the next one for held out."""
    return np.uint16(1 << (2 * STAGES.index(stage) + side))


TRAINED = sum(int(bit(stage, 0)) for stage in STAGES)


def copies(sources: Sequence[Source], seen: Seen, places: NDArray[np.uint16]) -> Iterator[Finding]:
    """Copies inside and between sources, and what stands on both sides of a split, word by word or nearly."""
    if not len(places):
        return
    source_of = np.repeat(np.arange(len(sources)), [len(source.records) for source in sources])
    first = _first_like(seen.whole)
    yield from _copies(sources, source_of, first)

    groups = near_duplicates(seen.sketches, lambda i: words(question(record_at(sources, i))))
    root = groups.root
    again = np.flatnonzero((root != np.arange(len(root))) & (first == np.arange(len(first))))
    if len(again):
        what = "records that ask nearly what another one asks"
        severity: Severity = "warning" if len(again) > MANY_ALIKE * len(root) else "note"
        examples = [pair for i in again[:2] for pair in _both(sources, int(root[i]), int(i))]
        yield Finding(severity, what, "drop some, or lower their weight", len(again), len(root), tuple(examples))
    for stage in STAGES:
        yield from _leaks(stage, sources, root, seen.question, places)
    yield from _shared_questions(sources, seen.question, places)
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
                Example(f"{record_at(sources, int(i)).origin} = {record_at(sources, int(first[i])).origin}", text)
                for i in copies[:EXAMPLES]
                for text in [excerpt(question(record_at(sources, int(i))), 0)]
            ]
            what = f"exact copies of a record {where}"
            yield Finding(severity, what, "drop them: a copy counts twice", len(copies), len(first), tuple(examples))


def _leaks(
    stage: Stage,
    sources: Sequence[Source],
    root: NDArray[np.int64],
    asked: NDArray[np.int64],
    places: NDArray[np.uint16],
) -> Iterator[Finding]:
    """Held-out records of a stage that some stage trains on, in the same words or nearly."""
    kept = np.flatnonzero(places & bit(stage, 1))
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
        pairs = _pairs(leaking[:OTHERS_COMPARED], trained, key)
        asked_in = {i: words(question(record_at(sources, i))) for pair in pairs for i in pair}
        ranked = sorted(pairs, key=lambda pair: -similarity(asked_in[pair[0]], asked_in[pair[1]]))[: EXAMPLES - 1]
        examples = tuple(example for pair in ranked for example in _both(sources, *pair))
        yield Finding("error" if is_error else "warning", what, remedy, len(leaking), len(kept), examples)


def _shared_questions(
    sources: Sequence[Source], asked: NDArray[np.int64], places: NDArray[np.uint16]
) -> Iterator[Finding]:
    """Questions that several stages train on: copies that cannot serve the same stages part there."""
    group = _first_like(asked)
    trained = [np.flatnonzero(places & bit(stage, 0)) for stage in LEARNING]
    counts = np.bincount(np.concatenate([np.unique(group[rows]) for rows in trained]))  # of stages, per question
    if not (counts > 1).any():
        return
    shown = counts.argmax()
    alike = [int(rows[group[rows] == shown][0]) for rows in trained if shown in group[rows]]
    yield Finding(
        "note",
        "questions that more than one stage trains on",
        "copies stay together where the same stages are named before their sources",
        int((counts > 1).sum()),
        int((counts > 0).sum()),
        tuple(_both(sources, alike[0], alike[1])),
    )


def _shared_answers(
    sources: Sequence[Source], answers: NDArray[np.int64], root: NDArray[np.int64], places: NDArray[np.uint16]
) -> Iterator[Finding]:
    """Held-out answers of stage 1 that it learns as the answer to another question."""
    kept = np.flatnonzero((places & bit(IMITATING, 1) > 0) & (answers != 0))
    trained = np.flatnonzero((places & bit(IMITATING, 0) > 0) & (answers != 0))
    shared = kept[np.isin(answers[kept], answers[trained]) & ~np.isin(root[kept], root[trained])]
    if not len(shared):
        return
    examples = tuple(_both(sources, *_pairs(shared[:1], trained, answers)[0]))
    what = f"{IMITATING}: held-out answers that are trained on, word by word, as answers to other questions"
    severity: Severity = "warning" if len(shared) > COPIED * len(kept) else "note"
    yield Finding(
        severity, what, "a standard answer in many records is learned by heart", len(shared), len(kept), examples
    )


def _pairs(kept: NDArray[np.int64], trained: NDArray[np.int64], key: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Of each held-out record its number, and the first of those trained on that has the same key."""
    return [(int(i), int(trained[np.argmax(key[trained] == key[i])])) for i in kept]


def _both(sources: Sequence[Source], one: int, two: int) -> list[Example]:
    return [example(record_at(sources, i)) for i in (one, two)]
