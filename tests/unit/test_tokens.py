"""Tokenised rows on disk: the same as without a disk, and found again only when nothing about them has changed."""

import copy
import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_tokenizer

from chatsmith.config import SourceConfig
from chatsmith.data import parallel, sources, tokens
from chatsmith.data.chat import encode, prepare_tokenizer, stop_ids
from chatsmith.data.files import read_rows
from chatsmith.data.mix import mix
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import as_spec, parse_spec
from chatsmith.data.tokens import tokenizer_hash
from chatsmith.errors import DataError
from chatsmith.stages.reward import encode_ranked
from chatsmith.stages.rollout import encode_questions
from chatsmith.stages.sft import encode_best_answers
from chatsmith.types import Message, Record

ROWS = "".join(
    f'{{"prompt": "Question {i}?", "chosen": "Yes, {i * "so "}it is.", "rejected": "No{i % 7 * "."}"}}\n'
    for i in range(300)
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return tmp_path / "rows.jsonl"


@pytest.fixture
def tokenizer() -> Any:
    made = byte_tokenizer()
    prepare_tokenizer(made, "test")
    return made


def source(file: Path) -> Source:
    return read_source(parse_spec(str(file)), on_error="raise", split_seed=0)


def training(file: Path, stage: Any = "sft") -> Any:
    return mix([source(file)], split=(1, 0, 0), held_out_fraction=0.1, stages=[stage])[stage].train


def conversation(record: Record) -> tuple[Message, ...]:
    return (*record.prompt, Message("assistant", record.answers[0].content))


def entries(cache: Path) -> set[str]:
    return {entry.name for entry in cache.iterdir()}


def test_rows_from_disk_are_those_that_were_encoded(cache: Path, file: Path, tokenizer: Any) -> None:
    records = training(file)
    stops = stop_ids(tokenizer)
    expected = [
        row for row in encode(tokenizer, [conversation(r) for r in records], stops=stops) if len(row.tokens) <= 200
    ]
    for given in (records, list(records)):  # in memory nothing tells what they are: no cache, but the same rows
        rows, dropped = encode_best_answers(tokenizer, given, stops=stops, max_tokens=200)
        assert list(rows) == expected
        assert dropped == len(records) - len(expected) > 0
        assert rows.lengths.tolist() == [len(row.tokens) for row in expected]


def test_ranked_answers_and_prompts_come_back_whole(cache: Path, file: Path, tokenizer: Any) -> None:
    stops = stop_ids(tokenizer)
    records = training(file, "reward")
    ranked, dropped = encode_ranked(tokenizer, records, stops=stops, max_tokens=200)
    kept = [
        record for record in records if len(encode(tokenizer, [conversation(record)], stops=stops)[0].tokens) <= 200
    ]
    assert len(ranked) == len(kept) == len(records) - dropped < len(records)
    for row, record in zip(ranked, kept, strict=True):
        both = encode(
            tokenizer, [(*record.prompt, Message("assistant", a.content)) for a in record.answers], stops=stops
        )
        assert row.rows == [one.tokens for one in both]
        assert row.lengths == [sum(one.targets) for one in both]
        assert row.scores == [1.0, 0.0]
    assert [records[int(number)] for number in ranked.kept] == kept
    questions = encode_questions(tokenizer, training(file, "rl"), stops=stops, max_tokens=26)
    assert [tokenizer.decode(row) for row in questions.tokens[:2]] == [
        f"Human: {record.prompt[0].content}\n\nAssistant:\n" for record in questions.records[:2]
    ]
    assert questions.dropped_too_long == len(training(file, "rl")) - len(questions.tokens) > 0


def test_what_was_prepared_is_found_again_until_anything_about_it_changes(
    cache: Path, file: Path, tokenizer: Any
) -> None:
    def prepare(tokenizer: Any = tokenizer, max_tokens: int = 200, extra: tuple[int, ...] = ()) -> int:
        before = entries(cache) if cache.exists() else set()
        encode_best_answers(tokenizer, training(file), stops=[*stop_ids(tokenizer), *extra], max_tokens=max_tokens)
        return len(entries(cache) - before)

    assert prepare() == 2  # the records and their tokens
    assert prepare() == 0
    assert prepare(max_tokens=100) == 1
    assert prepare(extra=(7,)) == 1
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("Human", "User")
    assert prepare(other) == 1
    file.write_text(ROWS.replace("Question 7", "Question 007"))
    assert prepare() == 2
    file.write_text(ROWS)
    assert prepare() == 0


def test_tokenizers_that_read_text_differently_are_told_apart(tokenizer: Any) -> None:
    assert tokenizer_hash(tokenizer) == tokenizer_hash(copy.deepcopy(tokenizer))
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["Question"])
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


def test_a_template_that_writes_the_date_is_another_one_tomorrow(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date.today() + timedelta(1)

    plain = tokenizer_hash(tokenizer)
    dated = copy.deepcopy(tokenizer)
    dated.chat_template += "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    today = tokenizer_hash(dated)
    monkeypatch.setattr(tokens, "date", Tomorrow)
    assert tokenizer_hash(tokenizer) == plain
    assert tokenizer_hash(dated) != today


def test_a_file_that_changes_while_it_is_read_is_refused(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path) -> Any:
        yield from read_rows(path)
        with file.open("a") as more:
            more.write("\n")

    monkeypatch.setattr(sources, "read_rows", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        source(file)
    assert not list(cache.iterdir())


def test_fields_that_nobody_learns_from_tell_sources_apart(cache: Path, file: Path) -> None:
    before = source(file).sha256
    file.write_text(ROWS.replace('"Yes, it is."', '"Yes, it is.", "gt": 1'))
    assert source(file).sha256 != before


def test_a_function_that_remembers_gives_the_same_on_any_number_of_cores(
    cache: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (tmp_path / "once.py").write_text(
        "seen = []\ndef once(row):\n    seen.append(row)\n    return row if len(seen) % 2 else None\n"
    )
    table = SourceConfig(source=str(file), function=f"{tmp_path / 'once.py'}:once")
    assert len(read_source(as_spec(table), on_error="raise", split_seed=0).records) == 150


def test_several_processes_give_what_one_gives(
    tmp_path: Path, file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 5)
    held = []
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        monkeypatch.setenv("CHATSMITH_CACHE", str(tmp_path / f"cache-{len(cores)}"))
        read = source(file)
        rows, _ = encode_best_answers(tokenizer, training(file), stops=stop_ids(tokenizer), max_tokens=200)
        held.append((list(read.records), read.points.tolist(), read.sha256, list(rows)))
    assert held[0] == held[1]
