"""Real files of many origins: each is read whole, by itself or by a mapping that stands in docs/data.md.

They lie beside the repository and never in it; without them these tests are skipped.
"""

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from chatsmith.config import SourceConfig
from chatsmith.data.formats import stages_of
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec, as_spec
from chatsmith.errors import DataError
from chatsmith.types import Message, Stage

DATA = Path("../shared/data")
DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data samples are not beside the repository")

ANSWERED, COMPARED, ASKED, TEXT = ("sft", "rl"), ("sft", "pairs", "reward", "rl"), ("rl",), ("ptx",)
GOOD, BAD = ("sft", "pairs", "rl"), ("pairs", "rl")  # answers that are marked
# what each file serves; where it serves several, how many records each
SERVES: dict[str, tuple[Stage, ...] | dict[tuple[Stage, ...], int]] = {
    "hh-rlhf/harmless-base-test.jsonl.gz": COMPARED,
    "llama-factory/alpaca_en_demo.json": ANSWERED,
    "llama-factory/alpaca_zh_demo.json": ANSWERED,
    "llama-factory/dpo_en_demo.json": COMPARED,
    "llama-factory/dpo_zh_demo.json": COMPARED,
    "llama-factory/kto_en_demo.json": {GOOD: 150, BAD: 150},
    "llama-factory/identity.json": ANSWERED,
    "llama-factory/v1_sft_demo.jsonl": ANSWERED,
    "llama-factory/v1_dpo_demo.jsonl": COMPARED,
    "llama-factory/glaive_toolcall_en_demo.json": ANSWERED,
    "llama-factory/c4_demo.jsonl": TEXT,
    "llama-factory/wiki_demo.txt": TEXT,
    "firefly/dummy_dpo.jsonl": COMPARED,
    "alpaca-eval/fusechat-llama-3.2-1b_annotations.json": COMPARED,
    "align-anything/preference_train.json": COMPARED,
    "align-anything/supervised_train.json": ANSWERED,
    "stanford-alpaca/seed_tasks.jsonl": ANSWERED,
    "alpaca-52k/alpaca_data_00000-03251_en.json": ANSWERED,
    "alpaca-52k/alpaca_data_03252-06381_en.json": ANSWERED,
    "alpaca-52k/alpaca_data_06382-09406_en.json": ANSWERED,
    "alpaca-52k/alpaca_data_09407-12344_en.json": ANSWERED,
    "alpaca-52k/alpaca_data_00000-03251_zh.json": ANSWERED,
    "alpaca-52k/alpaca_data_03252-06381_zh.json": ANSWERED,
    "instruction-wild/seed_prompts_en.jsonl": ASKED,
    "instruction-wild/seed_prompts_ch.jsonl": ASKED,
    "instruction-wild/user_1.jsonl": ASKED,
    "instruction-wild/user_2.jsonl": ASKED,
    "instruction-wild/user_3.jsonl": ASKED,
    "fastchat/dummy_conversation.json": ANSWERED,
    "fastchat/mt_bench_question.jsonl": ASKED,
    "fastchat/mt_bench_reference_gpt-4.jsonl": ANSWERED,
    "fastchat/vicuna_question.jsonl": ASKED,
    "gsm8k/train.jsonl": ANSWERED,
    "gsm8k/test.jsonl": ANSWERED,
    "math-cot-100/math_cot_100.jsonl": {COMPARED: 96, BAD: 4},  # of four problems all samples are wrong
    "ifeval/input_data.jsonl": ASKED,
    "tinyshakespeare/input.txt": TEXT,
    "wikitext-2/valid.txt": TEXT,
    "wikitext-2/test.txt": TEXT,
    "tinystories-1000/tinystories_1000.json": TEXT,
    "xquad/xquad.en.json": ANSWERED,
    "xquad/xquad.zh.json": ANSWERED,
}
DROPPED = {
    "hh-rlhf/harmless-base-test.jsonl.gz": (4, "is empty"),
    "alpaca-52k/alpaca_data_00000-03251_en.json": (4, "the answer is empty"),
    "alpaca-52k/alpaca_data_06382-09406_en.json": (2, "the answer is empty"),
    "alpaca-52k/alpaca_data_09407-12344_en.json": (3, "the answer is empty"),
    "alpaca-52k/alpaca_data_00000-03251_zh.json": (4, "the answer is empty"),
    "instruction-wild/user_2.jsonl": (2, "broken JSON"),
    "instruction-wild/user_3.jsonl": (3, "broken JSON"),
}
MAPPED = {
    "llama-factory/glaive_toolcall_en_demo.json": "glaive_toolcall_en_demo.json",
    "fastchat/mt_bench_reference_gpt-4.jsonl": "mt_bench_reference_gpt-4.jsonl",
    "xquad/xquad.en.json": "xquad.en.json",
    "xquad/xquad.zh.json": "xquad.en.json",
}


def listed() -> dict[str, int]:
    """The files that the README beside them lists, with its number of records."""
    rows = re.findall(r"^\| (\S+/\S+) \| \d+ \| (\d+)", (DATA / "README.md").read_text(), re.MULTILINE)
    return {name: int(count) for name, count in rows}


def read(name: str, on_error: Literal["raise", "skip"] = "skip") -> Source:
    return read_source(Spec((), str(DATA / name), None), on_error=on_error, split_seed=0)


def read_as_documented(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    """Reads a file by the block of the document that maps it; functions lie in the directory of the run."""
    path = (DATA / name).resolve()
    blocks = re.findall(r"^```(toml|python)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    (table,) = (
        source
        for language, block in blocks
        if language == "toml"
        for source in tomllib.loads(block)["data"]["sources"]
        if source["source"].endswith(f":{MAPPED[name]}")
    )
    (code,) = (block for language, block in blocks if language == "python")
    (tmp_path / "join.py").write_text(code)
    (tmp_path / "mt_bench_question.jsonl").symlink_to((DATA / "fastchat/mt_bench_question.jsonl").resolve())
    monkeypatch.chdir(tmp_path)
    return read_source(as_spec(SourceConfig(**{**table, "source": str(path)})), on_error="raise", split_seed=0)


def test_every_file_is_expected_here() -> None:
    assert sorted(listed()) == sorted(SERVES)
    present = {str(file.relative_to(DATA)) for file in DATA.rglob("*") if file.is_file() and file.name != "README.md"}
    assert present == set(listed())


@pytest.mark.parametrize("name", SERVES)
def test_file_is_read_whole(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = listed()[name]
    path = (DATA / name).resolve()
    source = read_as_documented(name, monkeypatch, tmp_path) if name in MAPPED else read(name)
    dropped, reason = DROPPED.get(name, (0, ""))
    assert len(source.dropped) == dropped
    assert all(reason in drop.reason for drop in source.dropped)
    if name.endswith(".txt"):  # the README counts lines
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        assert len(lines) == count
        assert [line for r in source.records for line in r.text.split("\n")] == [line for line in lines if line.strip()]
    else:
        assert len(source.records) + dropped == count
    serves = SERVES[name]
    served = Counter(stages_of(record) for record in source.records)
    assert served == (serves if isinstance(serves, dict) else {serves: len(source.records)})


@pytest.mark.parametrize("name", MAPPED)
def test_file_with_a_mapping_is_not_read_whole_without_it(name: str) -> None:
    with pytest.raises(DataError):
        read(name, "raise")


def test_hh_rlhf_parses_but_for_four_empty_answers() -> None:
    name = "hh-rlhf/harmless-base-test.jsonl.gz"
    with pytest.raises(DataError, match=r"jsonl\.gz:87: answer 1 is empty"):
        read(name, "raise")
    source = read(name)
    assert [dropped.origin.rpartition(":")[2] for dropped in source.dropped] == ["87", "517", "926", "1104"]
    assert not any("\n\nAssistant:" in turn.content for record in source.records for turn in record.prompt)


@pytest.mark.parametrize("name", ["instruction-wild/user_2.jsonl", "instruction-wild/user_3.jsonl"])
def test_first_broken_line_of_instruction_wild_is_named(name: str) -> None:
    first = read(name).dropped[0]
    with pytest.raises(DataError) as error:
        read(name, "raise")
    assert str(error.value).startswith(f"{first.origin}: {first.reason}")


def test_tool_turns_of_glaive_are_what_keeps_its_records_out() -> None:
    source = read("llama-factory/glaive_toolcall_en_demo.json")
    assert (len(source.records), len(source.dropped)) == (109, 191)
    reasons = Counter(dropped.reason.partition(" (")[0] for dropped in source.dropped)
    turns, tools = 153, 38  # the tools that nobody calls are lost too
    assert sum(count for reason, count in reasons.items() if reason.endswith("is a tool turn")) == turns
    assert reasons['"tools" seems to hold part of the conversation'] == tools


def test_better_and_safer_answers_of_safe_rlhf_disagree_in_nineteen_records() -> None:
    fields = [record.fields for record in read("align-anything/preference_train.json").records]
    assert sum(row["better_response_id"] != row["safer_response_id"] for row in fields) == 19
    for record in read("align-anything/preference_train.json").records:
        better = record.fields[f"response_{record.fields['better_response_id']}"]
        assert max(record.answers, key=lambda answer: answer.score or 0.0).content == better


def test_final_answers_reach_reward_functions() -> None:
    assert read("gsm8k/test.jsonl").records[0].fields["answer"].endswith("#### 18")
    problem = read("math-cot-100/math_cot_100.jsonl").records[0]
    assert problem.prompt[0] == Message("system", problem.fields["system"])
    assert problem.fields["gt"] == "420"
    assert [answer.score for answer in problem.answers] == [float(mark) for mark in problem.fields["score"]]


def test_judged_pair_of_alpaca_eval_keeps_its_preference() -> None:
    record = read("alpaca-eval/fusechat-llama-3.2-1b_annotations.json").records[0]
    first, second = (answer.score for answer in record.answers)
    assert first == pytest.approx(2 - 1.000039552)
    assert second == pytest.approx(1.000039552 - 1)


def test_question_of_xquad_stands_under_its_paragraph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = read_as_documented("xquad/xquad.en.json", monkeypatch, tmp_path).records[0]
    assert record.prompt[0].content.startswith("The Panthers defense gave up just 308 points")
    assert record.prompt[0].content.endswith("\n\nHow many points did the Panthers defense surrender?")
    assert record.answers[0].content == "308"
    assert record.origin.endswith("xquad.en.json[0].data[0].paragraphs[0].qas[0]")


def test_answers_of_mt_bench_are_joined_with_their_questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = read_as_documented("fastchat/mt_bench_reference_gpt-4.jsonl", monkeypatch, tmp_path).records[0]
    assert [turn.role for turn in record.prompt] == ["user", "assistant", "user"]
    assert record.prompt[0].content.startswith("Imagine you are participating in a race")
