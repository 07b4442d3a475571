"""A row says what its author meant, or is refused: nothing of a conversation is lost without a word."""

import codecs
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table

from chatsmith.data.fields import is_said, meant
from chatsmith.data.formats import _FORMATS, best_answer, imitable, stages_of, to_record
from chatsmith.data.signs import SIGNS, ends, excerpt, script, signs
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import Spec
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record

CASES = Path("../shared/cases")
PROMPT = (Message("user", "Name a colour."),)
USER, RED = {"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}
SEVEN = {"role": "assistant", "content": "Seven."}
ANSWERED: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "completion": "Red."},
    {"question": "Name a colour.", "answer": "Red."},
    {"query": "Name a colour.", "response": "Red."},
    {"instruction": "Name a colour.", "output": "Red."},
    {"input": "Name a colour.", "output": "Red."},
    {"messages": [USER, RED]},
    {"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}]},
]
COMPARED: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."},
    {"chosen": [USER, RED], "rejected": [USER, SEVEN]},
    {"prompt": "Name a colour.", "responses": ["Red.", "Seven."], "scores": [2, 1]},
]


def refusal(row: object) -> str:
    with pytest.raises(DataError) as error:
        to_record(row, "")
    return str(error.value)


def read(path: Path, on_error: Any = "raise", stages: Any = ()) -> Source:
    return read_source(Spec(stages, str(path), None), on_error=on_error, split_seed=0)


def turns(*said: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in said)  # type: ignore[arg-type]


# Marks

GOOD = (True, 1, 1.0, "1", "1.0", "+1", "true", "True", "TRUE", "t", "yes", "Y", "good", " Good ", "up", "thumbs_up")
GOOD += (
    "thumbs up",
    "Thumbs-Up",
    "👍",
    "👍🏽",
    "positive",
    "correct",
    "like",
    "accepted",
    "chosen",
    "desirable",
    "upvote",
)
BAD = (False, 0, 0.0, -1, "0", "0.0", "-1", "-1.0", "false", "False", "F", "no", "N", "bad", "down", "thumbs_down")
BAD += ("thumbs down", "👎", "negative", "wrong", "incorrect", "dislike", "rejected", "undesirable", "downvote")
NO_MARK = (
    2,
    -2,
    0.5,
    17,
    "maybe",
    "not good",
    "colours",
    "1/0",
    "nan",
    [True],
    {"value": True},
    "good 1",
    "yes and no",
)
MARKS = (
    "label",
    "Label",
    "kto_tag",
    "feedback",
    "user_feedback",
    "thumbs",
    "thumb",
    "is_correct",
    "is_good",
    "binary_label",
)


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("row", ANSWERED)
def test_every_usual_spelling_of_a_mark_is_one_and_any_other_is_refused(row: dict[str, Any], name: str) -> None:
    for value in GOOD:
        record = to_record(row | {name: value}, "")
        assert record == Record(PROMPT, (Answer("Red.", 1.0, is_marked=True),)), value
        assert stages_of(record) == ("sft", "pairs", "rl")
    for value in BAD:
        record = to_record(row | {name: value}, "")
        assert record == Record(PROMPT, (Answer("Red.", -1.0, is_marked=True),)), value
        assert imitable(record) == ()
        assert stages_of(record) == ("pairs", "rl")
    for value in NO_MARK:
        assert name.lower() in refusal(row | {name: value}).lower(), value
    for value in (None, "", " "):  # an empty cell
        assert to_record(row | {name: value}, "") == to_record(row, ""), value


@pytest.mark.parametrize("name", ["is_bad", "thumbs_down", "disliked", "is_wrong", "is_rejected"])
def test_marks_that_say_bad_are_read_so(name: str) -> None:
    assert to_record(ANSWERED[0] | {name: 1}, "").answers[0].score == -1
    assert to_record(ANSWERED[0] | {name: "no"}, "").answers[0].score == 1


def test_marks_that_contradict_each_other_are_refused() -> None:
    assert "contradict" in refusal(ANSWERED[0] | {"label": True, "is_correct": 0})
    assert to_record(ANSWERED[0] | {"label": True, "is_correct": 1}, "").answers[0].score == 1


@pytest.mark.parametrize("row", COMPARED)
def test_a_bad_mark_beside_several_answers_is_refused(row: dict[str, Any]) -> None:
    assert "is unknown" in refusal(row | {"label": 0})
    assert to_record(row | {"label": True}, "").answers == to_record(row, "").answers


def test_marks_inside_of_answers_and_turns_are_read_or_refused() -> None:
    marked = [{"content": "Seven.", "is_correct": False}, {"content": "Red.", "is_correct": True}]
    record = to_record({"prompt": "Name a colour.", "answers": marked}, "")
    assert [answer.score for answer in record.answers] == [-1.0, 1.0]
    assert best_answer(record).content == "Red."
    for name in ("labels", "is_correct", "is_bad"):
        listed = to_record({"prompt": "Name a colour.", "answers": ["Seven.", "Red."], name: [0, 1]}, "")
        assert best_answer(listed).content == ("Seven." if name == "is_bad" else "Red.")
    again = [{"role": "user", "content": "No."}, {"role": "assistant", "content": "Blue."}]
    assert '"messages[1].label"' in refusal({"messages": [USER, RED | {"label": "bad"}, *again]})
    assert to_record({"messages": [USER, RED | {"label": "colours"}, *again]}, "").unused == ("messages[].label",)


def test_a_conversation_that_is_repeated_beside_a_pair_must_not_say_more() -> None:
    row = {"prompt": "Name a colour.", "chosen": [USER, RED], "rejected": [USER, SEVEN]}
    assert to_record(row | {"messages": [USER, RED]}, "").answers[0].content == "Red."
    earlier = [{"role": "user", "content": "I am Ann."}, {"role": "assistant", "content": "Hello Ann."}]
    assert '"messages" seems to hold' in refusal(row | {"messages": [*earlier, USER, RED]})


def test_marks_of_tables_are_read_from_text_and_from_columns_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nHi,Hello.,True\nHi,Go.,False\nHi,So.,\n")
    write_table(
        pyarrow.table({"prompt": ["Hi"] * 3, "completion": ["Hello.", "Go.", "So."], "label": [1, 0, None]}),
        tmp_path / "a.parquet",
    )
    for name in ("a.csv", "a.parquet"):
        records = read(tmp_path / name).records
        assert [record.answers[0].score for record in records] == [1.0, -1.0, None], name
        assert [best_answer(record).content for record in records if imitable(record)] == ["Hello.", "So."]
        assert records[1].answers[0].is_marked  # also after it lay on the disk


# Fields that a format does not use

LOST = (
    *("context", "history", "chat_history", "chatHistory", "options", "choices", "passage", "documents", "tools"),
    *(
        "reasoning",
        "reasoning_content",
        "thinking",
        "thought",
        "function_call",
        "images",
        "image",
        "audio_path",
        "videos",
    ),
    *("system_message", "premise", "dialogue", "persona", "conversation_so_far", "loss_mask"),
)
SAID_NOTHING = ("", "  ", [], {}, None, "[]", "null", [None], [""])


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("row", [*ANSWERED, *COMPARED])
def test_what_belongs_to_a_conversation_is_used_or_refused(row: dict[str, Any], name: str) -> None:
    for value in (["It is blue."], "It is blue.", [["Why?", "So."]], [{"role": "user", "content": "It is blue."}]):
        try:
            record = to_record(row | {name: value}, "")
        except DataError as error:
            assert name.split("_")[0] in str(error) or "where assistant is due" in str(error)
        else:  # then it stands in the prompt
            said = "\n".join(turn.content for turn in record.prompt)
            assert "It is blue." in said or "Why?" in said, (name, value)
    for value in SAID_NOTHING:
        assert to_record(row | {name: value}, "").prompt == PROMPT, (name, value)


@pytest.mark.parametrize("name", ["id", "source", "question_id", "lang", "prompt_tokens", "instruction_type", "meta"])
@pytest.mark.parametrize("row", [*ANSWERED, *COMPARED])
def test_other_fields_are_named_and_nothing_else(row: dict[str, Any], name: str) -> None:
    record = to_record(row | {name: "x"}, "")
    assert record == to_record(row, "")
    assert name in record.unused
    assert to_record(row, "").unused == ()


def test_fields_inside_of_messages_and_answers_are_named_too() -> None:
    assert to_record({"messages": [USER | {"name": "Ann"}, RED | {"id": 3}]}, "").unused == (
        "messages[].name",
        "messages[].id",
    )
    answers = [{"content": "Red.", "score": 2, "model": "a"}, {"content": "Seven.", "score": 1}]
    assert to_record({"prompt": "Name a colour.", "answers": answers}, "").unused == ("answers[].model",)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "function_call", "images", "thoughts"])
@pytest.mark.parametrize("turn", [0, 1])
def test_what_a_message_says_beside_its_content_is_refused(name: str, turn: int) -> None:
    spoilt = [USER, RED]
    spoilt[turn] = spoilt[turn] | {name: ["Think of a sunset."]}
    assert f"messages[].{name}" in refusal({"messages": spoilt})
    assert "[]." in refusal({"chosen": spoilt, "rejected": [USER, SEVEN]})


def test_a_field_whose_words_stand_in_the_record_anyway_is_not_lost() -> None:
    row = {"prompt": "The sky is blue. Name a colour.", "answer": "Blue."}
    assert to_record(row | {"passage": "The  sky is\nblue."}, "") == to_record(row, "")
    assert to_record(row | {"context": "The sky is blue."}, "") == to_record(row, "")  # not twice


def test_history_and_context_go_before_any_kind_of_prompt() -> None:
    earlier = turns(("user", "Hi"), ("assistant", "Hello."))
    for row in [*ANSWERED[:4], COMPARED[0], COMPARED[2]]:
        for history in (
            [["Hi", "Hello."]],
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        ):
            assert to_record(row | {"history": history}, "").prompt == (*earlier, *PROMPT)
    assert to_record(ANSWERED[1] | {"context": "It is dusk."}, "").prompt[0].content == "It is dusk.\n\nName a colour."
    assert to_record(ANSWERED[3] | {"context": "It is dusk."}, "").prompt[0].content == "Name a colour.\n\nIt is dusk."
    assert "is a list, not text" in refusal(ANSWERED[1] | {"context": ["It is dusk."]})
    assert "no list of" in refusal(ANSWERED[1] | {"history": "Hi"})


NAMES = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*ANSWERED, *COMPARED]), NAMES, st.sampled_from(["It is blue.", ["x", "y"], [["Why?", "So."]], 3])
)
def test_every_field_is_used_or_named_or_refused(row: dict[str, Any], name: str, value: Any) -> None:
    if name in row:
        return
    try:
        record = to_record(row | {name: value}, "")
    except DataError:
        return
    whole = "".join(turn.content for turn in record.prompt) + str([answer.score for answer in record.answers])
    plain = to_record(row, "")
    assert name in record.unused or whole != "".join(t.content for t in plain.prompt) + str(
        [answer.score for answer in plain.answers]
    )
    assert not is_said(name, value) or name not in record.unused


# Turns that shall not be learned

WEIGHTS = ("weight", "loss_weight", "train", "trainable", "training", "loss", "loss_mask")


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [0, 0.0, False, 0.5, "false"])
def test_a_turn_that_shall_not_be_learned_is_refused_with_its_place(name: str, value: Any) -> None:
    again = [{"role": "user", "content": "No."}, {"role": "assistant", "content": "Blue.", name: 1}]
    assert f'"messages[1].{name}" is' in refusal({"messages": [USER, RED | {name: value}, *again]})
    assert to_record({"messages": [USER | {name: value}, RED | {name: True}, *again]}, "").answers[0].content == "Blue."


def test_masks_and_weights_of_whole_rows_are_refused() -> None:
    assert "does not say" in refusal({"messages": [USER, RED | {"mask": 1}]})
    for row in ({"weight": 0}, {"train": False}, {"loss_weight": 0.5}, {"weights": [0, 1]}, {"loss_mask": [0, 1]}):
        assert next(iter(row)) in refusal({"messages": [USER, RED]} | row)
    assert to_record({"messages": [USER, RED], "weight": 1.0}, "").answers[0].content == "Red."


# Scores


@pytest.mark.parametrize("answers", ["answers", "responses", "completions"])
@pytest.mark.parametrize("name", ["score", "scores", "rating", "ratings", "reward", "rewards", "Scores"])
def test_scores_of_a_list_of_answers_choose_the_best(answers: str, name: str) -> None:
    record = to_record({"prompt": "Hi", answers: ["What?", "Hello."], name: [1, 5]}, "")
    assert best_answer(record) == Answer("Hello.", 5.0)
    assert "one number for each of the 2" in refusal({"prompt": "Hi", answers: ["What?", "Hello."], name: [1]})


def test_ranks_are_read_and_stand_beside_scores_that_agree() -> None:
    row = {"prompt": "Hi", "responses": ["What?", "Hello.", "Go."]}
    for name in ("rank", "ranks"):
        assert best_answer(to_record(row | {name: [2, 1, 3]}, "")).content == "Hello."
    both = to_record(row | {"scores": [2, 5, 1], "ranks": [2, 1, 3]}, "")
    assert [answer.score for answer in both.answers] == [2, 5, 1]
    assert to_record(row | {"ranks": [2, 1, 3], "scores": [2, 5, 1]}, "") == both
    assert [a.score for a in to_record(row | {"scores": [2, 2, 1], "ranks": [2, 1, 3]}, "").answers] == [2, 2, 1]
    assert "orders the answers otherwise" in refusal(row | {"scores": [2, 5, 1], "ranks": [1, 2, 3]})


def test_answers_as_objects_are_scored_by_their_ratings() -> None:
    rated = [{"text": "What?", "rating": 1}, {"text": "Hello.", "rating": 4}]
    assert best_answer(to_record({"prompt": "Hi", "responses": rated}, "")).content == "Hello."


@pytest.mark.parametrize(
    "row", [{"better": 1}, {"best_index": 1}, {"preference": "b"}, {"margin": [0.1, 0.9]}, {"label": 1}]
)
def test_what_may_rank_several_answers_in_an_unknown_way_is_refused(row: dict[str, Any]) -> None:
    assert next(iter(row)) in refusal({"prompt": "Hi", "responses": ["What?", "Hello."]} | row)


def test_a_single_answer_keeps_its_score() -> None:
    for name, value, score in (("score", 2, 2.0), ("rating", "4.5", 4.5), ("reward", -0.5, -0.5), ("stars", 1, 1.0)):
        record = to_record(ANSWERED[0] | {name: value}, "")
        assert record.answers == (Answer("Red.", score),)
        assert stages_of(record) == ("sft", "rl")
    assert to_record(ANSWERED[0] | {"rating": "thumbs down"}, "").answers[0] == Answer("Red.", -1.0, is_marked=True)
    assert '"rating"' in refusal(ANSWERED[0] | {"rating": "superb"})


def test_scores_that_contradict_a_pair_are_refused() -> None:
    for better, worse in (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")):
        assert to_record(COMPARED[0] | {better: 5, worse: 1}, "").answers == to_record(COMPARED[0], "").answers
        assert "is higher than that" in refusal(COMPARED[0] | {better: 1, worse: 5})


# A prompt beside a conversation

SYSTEM, ANN = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "I am Ann."}
HELLO = {"role": "assistant", "content": "Hello Ann."}
WHOLE = [SYSTEM, ANN, HELLO, USER]


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("end", [4])
def test_a_conversation_is_joined_with_the_prompt_that_it_goes_on_from(start: int, end: int) -> None:
    expected = turns(*((turn["role"], turn["content"]) for turn in WHOLE))
    for row in (
        {"prompt": WHOLE, "chosen": [*WHOLE[start:end], RED], "rejected": [*WHOLE[start:end], SEVEN]},
        {"prompt": WHOLE, "completion": [*WHOLE[start:end], RED]},
        {"prompt": WHOLE, "messages": [*WHOLE[start:end], RED]},
    ):
        assert to_record(row, "").prompt == expected
        assert best_answer(to_record(row, "")).content == "Red."


def test_a_prompt_that_is_a_part_of_the_conversation_is_not_said_twice() -> None:
    for prompt in (
        "Name a colour.",
        " Name a colour.\n",
        "I am Ann.",
        "Be brief.",
        WHOLE,
        WHOLE[:2],
        [ANN, HELLO, USER],
    ):
        for row in ({"messages": [*WHOLE, RED]}, {"chosen": [*WHOLE, RED], "rejected": [*WHOLE, SEVEN]}):
            assert len(to_record(row | {"prompt": prompt}, "").prompt) == 4


def test_a_prompt_that_says_something_else_than_the_conversation_is_refused() -> None:
    for prompt in ("Name a fruit.", "Say: Name a colour.", [SYSTEM | {"content": "Be long."}, USER], [ANN, HELLO, ANN]):
        for row in (
            {"messages": [SYSTEM, USER, RED]},
            {"chosen": [SYSTEM, USER, RED], "rejected": [SYSTEM, USER, SEVEN]},
            {"completion": [SYSTEM, USER, RED]},
        ):
            assert "says something else" in refusal(row | {"prompt": prompt})
    transcripts = {side: f"Human: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    assert "says something else" in refusal({"prompt": "Human: Bye\n\nAssistant:", **transcripts})
    assert to_record({"prompt": "Human: Hi\n\nAssistant:", **transcripts}, "").prompt == turns(("user", "Hi"))


# Text that is no plain text

JSON_TEXTS = {
    "lines": '{"prompt": "Hi", "answer": "Hello."}\n{"prompt": "Ho", "answer": "Hello."}\n',
    "lines apart": '\n{"prompt": "Hi", "answer": "Hello."}\n\n{"prompt": "Ho", "answer": "Hello."}\n',
    "list": '[{"prompt": "Hi"},\n {"prompt": "Ho"}]',
    "list of lists": '[\n [{"role": "user", "content": "Hi"}]\n]',
    "pretty": '{\n  "prompt": "Hi"\n}',
    "broken": '{"prompt": "Hi",}\n{"prompt": "Ho"}\n',
}


@pytest.mark.parametrize("kind", JSON_TEXTS)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_json_that_is_named_as_text_is_refused(tmp_path: Path, kind: str, on_error: str) -> None:
    for name, content in (("a.txt", JSON_TEXTS[kind].encode()), ("a.txt.gz", gzip.compress(JSON_TEXTS[kind].encode()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}:\d: this is JSON and no plain text\. Rename the file to \.jsonl"):
            read(tmp_path / name, on_error)


def test_text_with_braces_and_brackets_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('[1] A note.\n{sic} "so"\n[The fox] left.\n{"a"} is a set.\n')
    assert len(read(tmp_path / "a.txt").records) == 4


@pytest.mark.parametrize(
    "beside", [{"role": "prompter"}, {"role": "a", "replies": []}, {"replies": ["x"]}, {"speaker": "A"}]
)
def test_a_text_that_is_a_turn_of_a_tree_is_refused(beside: dict[str, Any]) -> None:
    assert "one turn of a conversation" in refusal({"text": "How?", "message_id": "m0", "parent_id": None} | beside)
    assert to_record({"text": "Once.", "label": 1, "id": 3}, "") == Record(text="Once.")


@pytest.mark.parametrize("user", ["Human", "User"])
@pytest.mark.parametrize("assistant", ["Assistant", "AI"])
@pytest.mark.parametrize("colon", [":", ": ", "：", ":\n"])
@pytest.mark.parametrize("between", ["\n", "\n\n", " ", "\n### "])
@pytest.mark.parametrize("name", ["instruction", "prompt", "question"])
def test_transcripts_in_prompts_are_parsed(user: str, assistant: str, colon: str, between: str, name: str) -> None:
    said = between.join(
        (f"{user}{colon}你好", f"{assistant}{colon}Hello there.", f"{user}{colon}Why?", f"{assistant}{colon}")
    )
    for text in (said, between.join(said.split(between)[:-1])):  # the last mark may be missing
        answer = {"instruction": "output", "prompt": "completion", "question": "answer"}[name]
        record = to_record({name: text, answer: "So."}, "")
        assert record.prompt == turns(("user", "你好"), ("assistant", "Hello there."), ("user", "Why?")), text


def test_a_question_about_a_dialogue_and_an_answer_that_is_one_stay_one_turn() -> None:
    question = "Mend this dialogue:\nUser: Hi\nAssistant: Helo."
    record = to_record({"prompt": question, "chosen": "User: Hi\nAssistant: Hello.", "rejected": "No."}, "")
    assert record.prompt == turns(("user", question))
    assert record.answers[0].content == "User: Hi\nAssistant: Hello."


# Names


OPPOSITES = ["selected", "accepted", "unchosen", "response_2", "answer_b", "non_chosen", "dispreferred", "worse_answer"]


@pytest.mark.parametrize("name", OPPOSITES)
def test_no_hint_names_something_of_another_meaning(name: str) -> None:
    known = sorted(
        {field for format in _FORMATS for field in format.required} | {"response_1", "response_0", "answer_a"}
    )
    assert meant(name, known) == ""
    for row in ({"prompt": "p", name: "a", "rejected": "b"}, {"prompt": "p", "response_1": "a", name: "b"}):
        assert "Did you mean" not in refusal(row)


def test_hints_are_misspellings() -> None:
    known = sorted({field for format in _FORMATS for field in format.required})
    for name, other in (
        ("promt", "prompt"),
        ("choosen", "chosen"),
        ("Mesages", "messages"),
        ("conversation", "conversations"),
    ):
        assert meant(name, known) == other
    assert meant("choosen", known, present=["chosen"]) == ""
    numbered = [f"{word}_{i}" for word, i in itertools.product(("response", "answer", "output", "score"), range(3))]
    assert all(not meant(name, [other for other in numbered if other != name]) for name in numbered)


@pytest.mark.parametrize("change", [str.upper, str.title, lambda name: f" {name} "])
@pytest.mark.parametrize("row", [*ANSWERED, *COMPARED, {"text": "Once."}])
def test_columns_in_any_case_are_read(row: dict[str, Any], change: Any) -> None:
    assert to_record({change(name): value for name, value in row.items()}, "") == to_record(row, "")
    name = next(iter(row))
    assert "differ in letter case" in refusal(row | {change(name): "x"})


# Formats


def pair(*before: tuple[str, str]) -> Record:
    return Record(turns(*before), (Answer("Red.", 1.0), Answer("Seven.", 0.0)))


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [USER], "tools": [], "parallel_tool_calls": True}, "preferred_output": [RED],
         "non_preferred_output": [SEVEN]},
        {"prompt": "Name a colour.", "chosen_response": "Red.", "rejected_response": "Seven."},
        {"query": "Name a colour.", "response": "Red.", "rejected_response": "Seven."},
        {"instruction": "Name a colour.", "response": "Red.", "rejected_response": "Seven."},
        {"messages": [USER, RED], "rejected_response": "Seven."},
    ],
)  # fmt: skip
def test_preferences_of_others_are_read(row: dict[str, Any]) -> None:
    assert to_record(row, "") == pair(("user", "Name a colour."))


def test_tools_of_a_preference_are_not_lost() -> None:
    row = {
        "input": {"messages": [USER], "tools": [{"name": "f"}]},
        "preferred_output": [RED],
        "non_preferred_output": [SEVEN],
    }
    assert '"input.tools"' in refusal(row)


def test_developers_speak_as_the_system() -> None:
    assert to_record({"messages": [SYSTEM | {"role": "developer"}, USER, RED]}, "").prompt == (
        Message("system", "Be brief."),
        *PROMPT,
    )


@pytest.mark.parametrize("name", ["data", "conversations"])
def test_texts_alone_are_turns_in_turn(name: str) -> None:
    texts = ["Hi", "Hello.", "Name a colour.", "Red."]
    record = to_record({name: texts, "id": "3"}, "")
    assert record.prompt == turns(("user", "Hi"), ("assistant", "Hello."), ("user", "Name a colour."))
    assert record.answers == (Answer("Red."),)
    assert to_record({name: texts[:3]}, "").answers == ()


def test_a_line_that_is_a_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps([USER, RED]) + "\n" for _ in range(3)))
    (tmp_path / "a.json").write_text(json.dumps([[USER, RED]] * 3))
    for name in ("a.jsonl", "a.json"):
        assert [(r.prompt, r.answers) for r in read(tmp_path / name).records] == [(PROMPT, (Answer("Red."),))] * 3
    (tmp_path / "b.jsonl").write_text(json.dumps([{"prompt": "Hi"}, {"prompt": "Ho"}]))
    with pytest.raises(DataError, match=r"Rename it to \.json"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer\r\nQ?,A.\r\n"),
        ("a.tsv", "question\tanswer\nQ?\tA.\n"),
        ("a.jsonl", '{"question": "Q?", "answer": "A."}\n'),
        ("a.json", '[{"question": "Q?", "answer": "A."}]'),
        ("a.txt", "Once.\n"),
    ],
)
def test_a_byte_order_mark_before_a_text_is_no_part_of_it(tmp_path: Path, name: str, content: str) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(content.encode())
    expected = [(r.prompt, r.answers, r.text) for r in read(plain).records]
    plain.write_bytes(codecs.BOM_UTF8 + content.encode())
    packed.write_bytes(gzip.compress(codecs.BOM_UTF8 + content.encode()))
    for path in (plain, packed):
        assert [(r.prompt, r.answers, r.text) for r in read(path).records] == expected


# Skipping, and looking


def test_with_skip_a_record_that_serves_no_named_stage_is_left_out_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in ([USER, RED, USER], [USER, RED])))
    source = read(path, "skip", ("sft",))
    assert (len(source.records), [dropped.origin for dropped in source.dropped]) == (1, [f"{path}:1"])
    assert "cannot serve sft" in source.dropped[0].reason
    assert len(read(path, "skip", ("sft", "rl")).records) == 2
    assert len(read(path, "skip").records) == 2


BLANKS = st.text(st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\u2028\u3000\u200b}])\"'*_~`.#@a你"), max_size=12)


@settings(max_examples=500, deadline=None)
@given(BLANKS, BLANKS)
def test_no_text_breaks_the_look_at_it(question: str, answer: str) -> None:
    ends(answer)
    script(answer)
    for at in range(len(answer) + 2):
        excerpt(answer, at)
    record = Record((Message("user", question),), (Answer(answer, 1.0), Answer("b", 0.0)))
    assert {name for name, _ in signs(record)} <= set(SIGNS)


def test_an_answer_that_ends_in_a_closing_mark_behind_blanks_has_ended() -> None:
    assert ends("Like this:\n\t}")
    assert ends("\u3000)")
    assert not ends("It was a long day and the fox went \t)")


@pytest.mark.skipif(not CASES.is_dir(), reason="the inputs that once failed are not beside the repository")
@pytest.mark.parametrize(
    ("name", "records"),
    [
        *(("answer-ends-tab-brace.jsonl", 30), ("context-question-answer.jsonl", 30), ("excel.csv", 30)),
        *(("function-call.jsonl", 0), ("json-lines-named.txt", 0), ("kto-label-01.jsonl", 30), ("kto-label.csv", 30)),
        *(("last-turn-is-users.jsonl", 30), ("line-is-list.jsonl", 30), ("message-weight-0.jsonl", 0)),
        *(("one-prompt.jsonl", 200), ("prompt-differs.jsonl", 0), ("prompt-history-lost.jsonl", 30)),
        *(("prompt-system-lost.jsonl", 30), ("query-response-history.jsonl", 30), ("reasoning-content.jsonl", 0)),
        *(("response-1-2-strength.jsonl", 0), ("responses-score.jsonl", 30), ("selected-rejected.jsonl", 0)),
        *(("transcript-in-instruction.jsonl", 30), ("tree-rows.jsonl", 0)),
    ],
)
def test_inputs_that_once_failed(name: str, records: int) -> None:
    if not records:
        with pytest.raises(DataError, match=name) as error:
            read(CASES / name)
        assert "Did you mean" not in str(error.value)
        return
    source = read(CASES / name)
    assert len(source.records) == records
    assert all(record.prompt for record in source.records)
    if name.startswith("kto"):
        assert sum("sft" in stages_of(record) for record in source.records) == 15
    if name.startswith("prompt-history"):
        assert all(record.prompt[0].content == "My name is Ann." for record in source.records)
    if name.startswith("prompt-system"):
        assert all(record.prompt[0].role == "system" for record in source.records)
    if name.startswith("responses-score"):
        assert all(best_answer(record).content == "Good morning!" for record in source.records)
