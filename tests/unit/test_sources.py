"""Specs, row formats and real files: what is read, what is refused, and with which words."""

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from chatsmith.data.formats import _FORMATS, stages_of, to_record
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec, parse_spec
from chatsmith.errors import ConfigError, DataError
from chatsmith.types import Answer, Message, Record

DATA = Path("../shared/data")
PROMPT = (Message("user", "Name a colour."),)
PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}


def read(path: Path | str, on_error: Literal["raise", "skip"] = "raise", split: str | None = None) -> Source:
    return read_source(Spec((), str(path), split), on_error=on_error)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(row: object) -> str:
    with pytest.raises(DataError) as error:
        to_record(row, "")
    return str(error.value)


# Specs


def test_spec_is_taken_apart_into_stages_location_split_and_weight() -> None:
    assert parse_spec("sft,reward:owner/name#train@0.5") == Spec(("sft", "reward"), "owner/name", "train", 0.5)
    assert parse_spec("owner/name") == Spec((), "owner/name", None, 1.0)
    assert parse_spec("owner/name@2") != parse_spec("owner/name@3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rwd:a.json", 'did you mean "reward"'),
        ("zzz:a.json", "the stages are sft, reward, rl, ptx"),
        ("sft,sft:a.json", "twice"),
        ("a.json@heavy", '"heavy" is not a number'),
        ("a.json@0", "not above 0"),
        ("a.json@-1", "not above 0"),
        ("a.json@nan", "not above 0"),
        ("a.json#", "nothing follows"),
        ("sft:", "names no file"),
        ("", "names no file"),
    ],
)
def test_bad_spec_is_refused_with_its_text_and_the_nearest_valid_thing(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_spec(text)
    assert words in str(error.value)
    assert f'"{text}"' in str(error.value)


@pytest.mark.parametrize("name", ["a:b.json", "a@2.json", "a#b.json", "sft:x@y#z.json", "a@2"])
def test_marks_in_the_name_of_an_existing_file_are_no_marks(tmp_path: Path, name: str) -> None:
    missing = str(tmp_path / "none" / name)
    (tmp_path / name).write_text("[]")
    path = str(tmp_path / name)
    assert parse_spec(path) == Spec((), path, None)
    assert parse_spec(f"rl:{path}#s@3") == Spec(("rl",), path, "s", 3.0)
    with contextlib.suppress(ConfigError):  # where no such file exists the name is cut at its marks, or refused
        assert parse_spec(missing).location != missing


def test_windows_drive_is_not_a_stage() -> None:
    assert parse_spec(r"C:\data\a.json") == Spec((), r"C:\data\a.json", None)
    assert parse_spec("sft:C:/data/a.json@2") == Spec(("sft",), "C:/data/a.json", None, 2.0)
    with pytest.raises(ConfigError):
        parse_spec("C:a.json")


# Formats


def pair_of(chosen: str, rejected: str, scores: tuple[float, float] = (1.0, 0.0)) -> Record:
    return Record(prompt=PROMPT, answers=(Answer(chosen, scores[0]), Answer(rejected, scores[1])))


USER, RED, SEVEN = (
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "assistant", "content": "Seven."},
)
HUMAN = {"from": "human", "value": "Name a colour."}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": [USER], "chosen": [RED], "rejected": [SEVEN]},
        {"prompt": "Name a colour.", "chosen": [USER, RED], "rejected": [USER, SEVEN], "messages": [USER, RED]},
        {"prompt": "\n\nHuman: Name a colour.\n\nAssistant:", "chosen": " Red.", "rejected": " Seven."},
        PAIR | {"response": "Red.", "id": 3},
        {"chosen": [USER, RED], "rejected": [USER, SEVEN]},
        {"chosen_messages": [USER, RED], "rejected_messages": [USER, SEVEN]},
        {
            "chosen": "\n\nHuman: Name a colour.\n\nAssistant: Red.",
            "rejected": "\n\nHuman: Name a colour.\n\nAssistant: Seven.",
        },
        {
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "Red."},
            "rejected": {"from": "gpt", "value": "Seven."},
        },
        {"prompt": "Name a colour.", "answers": ["Red.", "Seven."], "scores": [1, 0]},
    ],
)
def test_every_way_to_write_a_preference_gives_the_same_record(row: dict[str, Any]) -> None:
    record = to_record(row, "here")
    assert record == Record(pair_of("Red.", "Seven.").prompt, pair_of("Red.", "Seven.").answers, origin="here")
    assert record.fields == row
    assert record != to_record(PAIR | {"chosen": "Blue."}, "here")


def test_transcript_is_parsed_into_turns_and_the_last_one_is_the_answer() -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: Why: this?\n\nAssistant:"
    record = to_record({"chosen": f"{shared} Because.", "rejected": f"{shared} No."}, "")
    assert record.prompt == (Message("user", "Hi"), Message("assistant", "Hello\nyou"), Message("user", "Why: this?"))
    assert [answer.content for answer in record.answers] == ["Because.", "No."]


def test_turns_of_one_speaker_in_a_row_become_one_turn() -> None:
    record = to_record(
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nb\n\nAssistant: d"}, ""
    )
    assert record.prompt == (Message("user", "a\n\nb"),)


def test_transcripts_that_part_before_the_last_turn_are_refused() -> None:
    chosen = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert "part at turn 2" in refusal({"chosen": chosen, "rejected": chosen.replace("b", "x")})
    assert "part at turn 3" in refusal({"chosen": chosen, "rejected": "\n\nHuman: a\n\nAssistant: b"})
    assert to_record({"chosen": chosen, "rejected": chosen.replace("d", "x")}, "").answers[1].content == "x"


def test_equal_answers_are_kept_as_a_tie() -> None:
    tie = to_record(PAIR | {"rejected": "Red."}, "").answers
    assert tie[0].score == tie[1].score is not None
    clear = to_record(PAIR, "").answers
    assert clear[0].score != clear[1].score


def test_scored_answers_are_read_from_strings_objects_scores_and_ranks() -> None:
    def scores(**row: Any) -> list[float | None]:
        return [answer.score for answer in to_record({"prompt": "p"} | row, "").answers]

    assert scores(answers=["a", "b", "c"], scores=[0.5, 2, 2]) == [0.5, 2.0, 2.0]
    assert scores(completions=["a", "b", "c"], ranks=[2, 1, 3]) == [-2.0, -1.0, -3.0]
    assert scores(responses=[{"content": "a", "score": 3}, {"text": "b", "score": 4}]) == [3.0, 4.0]
    assert scores(responses=[{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]) == [-1.0, -2.0]
    assert scores(answers=["a", "b"]) == [None, None]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answers": ["a", "b"], "scores": [1]}, "one number for each of the 2"),
        ({"answers": ["a", "b"], "scores": [1, "2"]}, "scores[1]"),
        ({"answers": ["a", "b"], "scores": [1, float("nan")]}, "finite"),
        ({"answers": ["a", "b"], "scores": [1, 10**400]}, "finite"),
        ({"answers": ["a", "b"], "scores": [1, None]}, "answer 1 has no score"),
        ({"answers": [{"content": "a", "score": 1}], "ranks": [1]}, "twice"),
        ({"answers": [{"content": "a", "score": 1, "rank": 1}]}, "both a score and a rank"),
        ({"answers": [{"words": "a"}]}, "none of content, text and answer"),
        ({"answers": "a"}, "a string, not a list"),
        ({"answers": []}, "empty list"),
    ],
)
def test_bad_scores_are_refused(row: dict[str, Any], words: str) -> None:
    assert words in refusal({"prompt": "p"} | row)


def test_alpaca_joins_instruction_and_input() -> None:
    record = to_record({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "")
    assert record == Record(prompt=(Message("user", "Add.\n\n1 + 1"),), answers=(Answer("2"),))
    assert to_record({"instruction": "Add.", "input": "", "output": "2"}, "").prompt == (Message("user", "Add."),)
    assert to_record({"instruction": "Add.", "input": None, "output": "2"}, "").prompt == (Message("user", "Add."),)


def test_text_beside_an_alpaca_row_is_the_same_thing_again() -> None:
    row = {"instruction": "Add.", "input": "", "output": "2"}
    assert to_record(row | {"text": "### Instruction: Add. ### Response: 2"}, "") == to_record(row, "")


def test_chat_is_read_with_typed_parts_and_a_last_user_turn_is_a_prompt() -> None:
    system = {"role": "system", "content": "Be brief."}
    parts = {"role": "user", "content": [{"type": "text", "value": "Name "}, {"type": "text", "text": "a colour."}]}
    record = to_record({"messages": [system, parts, RED]}, "")
    assert record == Record(prompt=(Message("system", "Be brief."), *PROMPT), answers=(Answer("Red."),))
    assert to_record({"messages": [USER]}, "") == Record(prompt=PROMPT)
    assert to_record({"messages": [USER, RED, USER]}, "").answers == ()
    assert to_record({"conversations": [HUMAN, {"from": "gpt", "value": "Red."}]}, "") == to_record(
        {"prompt": "Name a colour.", "messages": [USER, RED]}, ""
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([RED], "does not end with a user turn"),
        ([RED, USER, RED], "turn 1 is of role assistant where user is due"),
        ([USER, USER, RED], "turn 2 is of role user where assistant is due"),
        ([USER, {"role": "system", "content": "x"}, RED], "turn 2 is of role system"),
        ([{"role": "system", "content": "x"}, RED], "does not end with a user turn"),
        ([{"role": "user", "content": " "}, RED], "turn 1 (user) is empty"),
        ([USER, {"role": "assistant", "content": ""}], "answer is empty"),
        ([USER, {"role": "assistant", "content": None}], '"messages[1].content" is null'),
        ([USER, {"role": "tool", "content": "x"}], "is 'tool'; the roles are"),
        ([USER, {"role": ["user"], "content": "x"}], "the roles are"),
        ([USER, {"role": "assistant", "content": [{"type": "image", "url": "x"}]}], "only parts of type text"),
        ([USER, "Red."], "a string, not a message"),
        ([], "empty list"),
        ("hi", "a string, not a list of messages"),
    ],
)
def test_conversations_out_of_order_are_refused(messages: object, words: str) -> None:
    assert words in refusal({"messages": messages})


def test_prompts_questions_and_text_are_read() -> None:
    assert to_record({"prompt": "Name a colour.", "key": 7}, "") == Record(prompt=PROMPT)
    assert to_record({"instruction": "Name a colour."}, "") == Record(prompt=PROMPT)
    answered = Record(prompt=PROMPT, answers=(Answer("Red."),))
    for question, answer in (("question", "answer"), ("prompt", "response"), ("prompt", "completion")):
        assert to_record({question: "Name a colour.", answer: "Red."}, "") == answered
    assert to_record("Once.", "") == to_record({"text": "Once."}, "") == Record(text="Once.")
    assert to_record("Once.", "") != to_record("Twice.", "")


def test_prompt_beside_unknown_answers_is_not_read_as_a_prompt_alone() -> None:
    words = refusal({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0})
    assert "no format fits" in words
    assert "response_0" in words


def test_answers_with_a_thumb_up_or_down_are_not_read_as_answers_to_imitate() -> None:
    assert "marks single answers" in refusal({"messages": [USER, RED], "label": False})
    assert "marks single answers" in refusal({"prompt": "p", "completion": "c", "label": True})


def test_row_that_no_format_fits_lists_its_fields_and_the_formats() -> None:
    words = refusal({"prompt": None, "height": 3})
    assert "prompt (null), height" in words
    assert "prompt + chosen + rejected; " in words


def test_row_that_two_formats_fit_names_both() -> None:
    words = refusal({"messages": [USER, RED], "conversations": [HUMAN]})
    assert '"chat" (messages)' in words
    assert '"ShareGPT" (conversations)' in words


def test_no_two_formats_explain_each_other_away() -> None:
    for format in _FORMATS:
        row = dict.fromkeys(format.required, 0)
        assert "more than one format" not in refusal(row), format.name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (PAIR | {"chosen": 7}, '"chosen" is the number 7'),
        (PAIR | {"chosen": True}, "truth value"),
        (PAIR | {"prompt": ""}, "turn 1 (user) is empty"),
        (PAIR | {"rejected": ""}, "answer 2 is empty"),
        (PAIR | {"chosen": "\ud800"}, "surrogate"),
        ({"chosen": "Red.", "rejected": "Seven."}, "no prompt beside it"),
        ({"instruction": "Add.", "output": ["2"]}, '"output" is a list'),
        ({"text": " \n"}, "the text is empty"),
        ([1], "a list, not an object"),
        (None, "null, not an object"),
    ],
)
def test_wrong_types_and_empty_texts_are_refused(row: object, words: str) -> None:
    assert words in refusal(row)


def test_stages_follow_from_the_fields() -> None:
    assert stages_of(to_record(PAIR, "")) == ("sft", "reward", "rl")
    assert stages_of(to_record({"prompt": "p", "answers": ["a", "b"]}, "")) == ("sft", "rl")
    assert stages_of(to_record({"question": "q", "answer": "a"}, "")) == ("sft", "rl")
    assert stages_of(to_record({"prompt": "p"}, "")) == ("rl",)
    assert stages_of(to_record("Once.", "")) == ("ptx",)


# Real files

real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data samples are not beside the repository")

COUNTS = {
    "llama-factory/dpo_en_demo.json": (300, ("sft", "reward", "rl")),
    "llama-factory/v1_dpo_demo.jsonl": (10, ("sft", "reward", "rl")),
    "firefly/dummy_dpo.jsonl": (16, ("sft", "reward", "rl")),
    "llama-factory/alpaca_en_demo.json": (999, ("sft", "rl")),
    "llama-factory/alpaca_zh_demo.json": (1000, ("sft", "rl")),
    "llama-factory/v1_sft_demo.jsonl": (500, ("sft", "rl")),
    "fastchat/dummy_conversation.json": (500, ("sft", "rl")),
    "gsm8k/train.jsonl": (7473, ("sft", "rl")),
    "gsm8k/test.jsonl": (1319, ("sft", "rl")),
    "ifeval/input_data.jsonl": (541, ("rl",)),
    "tinystories-1000/tinystories_1000.json": (1000, ("ptx",)),
    "llama-factory/c4_demo.jsonl": (300, ("ptx",)),
    "llama-factory/wiki_demo.txt": (30, ("ptx",)),
}


@real_data
@pytest.mark.parametrize("name", COUNTS)
def test_real_file_is_read_whole(name: str) -> None:
    source = read(DATA / name)
    count, stages = COUNTS[name]
    assert len(source.records) == count
    assert {stages_of(record) for record in source.records} == {stages}


@real_data
def test_hh_rlhf_parses_but_for_four_empty_answers() -> None:
    path = DATA / "hh-rlhf/harmless-base-test.jsonl.gz"
    with pytest.raises(DataError, match=r"jsonl\.gz:87: answer 1 is empty"):
        read(path)
    source = read(path, "skip")
    assert len(source.records) + len(source.dropped) == 2312
    assert [dropped.origin.rpartition(":")[2] for dropped in source.dropped] == ["87", "517", "926", "1104"]
    assert all(stages_of(record) == ("sft", "reward", "rl") for record in source.records)
    assert not any("\n\nAssistant:" in turn.content for record in source.records for turn in record.prompt)


@real_data
@pytest.mark.parametrize(("name", "good", "bad"), [("user_1", 429, 0), ("user_2", 246, 2), ("user_3", 198, 3)])
def test_broken_lines_of_instruction_wild_are_named_and_counted(name: str, good: int, bad: int) -> None:
    path = DATA / f"instruction-wild/{name}.jsonl"
    source = read(path, "skip")
    assert (len(source.records), len(source.dropped)) == (good, bad)
    if bad:
        with pytest.raises(DataError) as error:
            read(path)
        assert str(error.value).startswith(f"{source.dropped[0].origin}: {source.dropped[0].reason}")


@real_data
@pytest.mark.parametrize("name", ["align-anything/preference_train.json", "llama-factory/kto_en_demo.json"])
def test_real_formats_that_are_not_known_are_refused(name: str) -> None:
    with pytest.raises(DataError):
        read(DATA / name, "skip")
