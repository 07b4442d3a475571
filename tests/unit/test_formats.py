"""Row formats: what is read, what is refused, and with which words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.data.formats import _FORMATS, best_answer, format_names, imitable, stages_of, to_record
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
PROMPT = (Message("user", "Name a colour."),)
PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}


def refusal(row: object, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        to_record(row, "", **settings)
    return str(error.value)


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
        ({"answers": [{"words": "a"}]}, "none of content, text, answer and response"),
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
        ([USER, {"role": "tool", "content": "x"}], "is a tool turn (tool)"),
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
    words = refusal({"prompt": "p", "response_0": "a", "response_1": "b"})
    assert "no format fits" in words
    assert "response_0" in words


@pytest.mark.parametrize("thumb", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, RED]},
        {"conversations": [HUMAN, {"from": "gpt", "value": "Red."}]},
        {"prompt": "Name a colour.", "completion": "Red."},
        {"prompt": [USER], "completion": [RED]},
        {"prompt": [USER], "completion": RED},
        {"instruction": "Name a colour.", "output": "Red."},
    ],
)
def test_an_answer_with_a_thumb_down_is_no_answer_to_imitate(row: dict[str, Any], thumb: str) -> None:
    assert to_record(row, "") == Record(PROMPT, (Answer("Red."),))
    assert to_record(row | {thumb: True}, "") == Record(PROMPT, (Answer("Red.", 1.0, is_marked=True),))
    bad = to_record(row | {thumb: False}, "")
    assert bad == Record(PROMPT, (Answer("Red.", -1.0, is_marked=True),))
    assert imitable(bad) == ()
    assert stages_of(bad) == ("pairs", "rl")
    assert bad.fields == row | {thumb: False}


def test_answers_that_are_all_marked_wrong_serve_the_prompt_alone() -> None:
    row = {"prompt": "Name a colour.", "answers": ["One.", "Two."]}
    wrong = to_record(row | {"scores": [False, False]}, "")
    assert wrong.answers == (Answer("One.", -1.0, is_marked=True), Answer("Two.", -1.0, is_marked=True))
    assert stages_of(wrong) == ("pairs", "rl")
    marked = to_record(row | {"scores": [False, True]}, "")
    assert [answer.score for answer in marked.answers] == [-1.0, 1.0]
    assert best_answer(marked).content == "Two."
    assert stages_of(marked) == ("sft", "pairs", "reward", "rl")
    assert len(to_record(row | {"scores": [0, 0]}, "").answers) == 2  # a tie of numbers says nothing of good or bad
    assert "answer 2 is empty" in refusal({"prompt": "p", "answers": ["a", ""], "scores": [False, False]})


def test_a_label_beside_a_prompt_alone_is_left_to_reward_functions() -> None:
    assert to_record({"prompt": "Name a colour.", "label": "Red"}, "") == Record(PROMPT)
    assert "neither as good nor as bad" in refusal({"messages": [USER, RED], "label": "colours"})


def test_row_that_no_format_fits_lists_its_fields_and_the_nearest() -> None:
    words = refusal({"prompt": None, "height": 3})
    assert "prompt (null), height" in words
    assert "Did you mean" not in words
    assert "Missing" not in words
    assert 'Did you mean "promt" as "prompt", "choosen" as "chosen"?' in refusal({"promt": "p", "choosen": "a"})
    assert "Missing is rejected. " in refusal({"prompt": [USER], "chosen": [RED]})
    assert "Missing is better_response_id. " in refusal({"prompt": "p", "response_0": "a", "response_1": "b"})
    assert 'rows = "data[]"' in refusal({"data": [{"prompt": "p"}], "version": 1})


def test_a_format_can_be_named_where_two_fit() -> None:
    row = {"messages": [USER, RED], "conversations": [HUMAN]}
    assert 'format = "chat"' in refusal(row)
    assert to_record(row, "", format="chat").answers == (Answer("Red."),)
    assert to_record(row, "", format="ShareGPT").answers == ()
    assert '"alpaca" needs instruction + output or instruction + response' in refusal(row, format="alpaca")


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
        (PAIR | {"chosen": True}, "the truth value true"),
        (PAIR | {"prompt": ""}, "turn 1 (user) is empty"),
        (PAIR | {"rejected": ""}, "answer 2 is empty"),
        (PAIR | {"chosen": "\ud800"}, "surrogate"),
        ({"chosen": "Red.", "rejected": "Seven."}, "no prompt beside it"),
        ({"instruction": "Add.", "output": ["2"]}, '"output[0]" is a string, not a message'),
        ({"question": "1 + 1?", "answer": 2}, '"answer" is the number 2, not text'),
        ({"text": " \n"}, "the text is empty"),
        ([1], "a list, not an object"),
        (None, "null, not an object"),
    ],
)
def test_wrong_types_and_empty_texts_are_refused(row: object, words: str) -> None:
    assert words in refusal(row)


def test_stages_follow_from_the_fields() -> None:
    assert stages_of(to_record(PAIR, "")) == ("sft", "pairs", "reward", "rl")
    assert stages_of(to_record({"prompt": "p", "answers": ["a", "b"]}, "")) == ("sft", "rl")
    assert stages_of(to_record({"question": "q", "answer": "a"}, "")) == ("sft", "rl")
    assert stages_of(to_record({"prompt": "p"}, "")) == ("rl",)
    assert stages_of(to_record("Once.", "")) == ("ptx",)


# Data sets of the ancestors, on invented rows of their documented columns


def asked(prompt: str, *answers: tuple[str, float | None]) -> Record:
    return Record((Message("user", prompt),), tuple(Answer(content, score) for content, score in answers))


HH = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Why so?\n\nAssistant:"
HH_TURNS = (Message("user", "Why?"), Message("assistant", "So."), Message("user", "Why so?"))
PASSAGES = {"positive_passages": [{"docid": "1#0", "text": "是。", "title": "a"}, {"docid": "2#0", "text": "也是。"}]}
DATA_SETS = {
    "Dahoas/rm-static": (
        {"prompt": HH, "response": " Yes.", "chosen": " Yes.", "rejected": " No."},
        Record(HH_TURNS, (Answer("Yes.", 1.0), Answer("No.", 0.0))),
    ),
    "Dahoas/full-hh-rlhf": (
        {"prompt": HH, "response": " Yes.", "chosen": " Yes.", "rejected": " No."},
        Record(HH_TURNS, (Answer("Yes.", 1.0), Answer("No.", 0.0))),
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        asked("Why?", ("So.", 1.0), ("No.", 0.0)),
    ),
    "yitingxie/rlhf-reward-datasets": (
        {"prompt": "\n\nHuman: Why?\n\n", "chosen": "Assistant: So.", "rejected": "Assistant: No."},
        asked("Why?", ("So.", 1.0), ("No.", 0.0)),
    ),
    "openai/webgpt_comparisons": (
        {
            "question": {"dataset": "eli5", "id": "a1", "full_text": "Why?"},
            "quotes_0": {"title": [], "extract": []},
            "answer_0": "No.",
            "tokens_0": {},
            "score_0": -0.5,
            "quotes_1": {"title": [], "extract": []},
            "answer_1": "So [1].",
            "tokens_1": {},
            "score_1": 0.5,
        },
        asked("Why?", ("No.", -0.5), ("So [1].", 0.5)),
    ),
    "stanfordnlp/SHP": (
        {
            "post_id": "x",
            "domain": "askculinary_train",
            "history": "Why?",
            "c_root_id_A": "a",
            "score_A": 2,
            "human_ref_A": "No.",
            "human_ref_B": "So.",
            "labels": 0,
            "score_ratio": 2.0,
        },
        asked("Why?", ("So.", 1.0), ("No.", 0.0)),
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": (
        {"prompt": "USER: Why?\nASSISTANT: So.</s>USER: Why so? ASSISTANT:", "label": "Because.</s>"},
        Record(HH_TURNS, (Answer("Because."),)),
    ),
    "wangrui6/Zhihu-KOL": (
        {"INSTRUCTION": "为什么？", "RESPONSE": "因为。", "SOURCE": "Zhihu", "METADATA": "{}"},
        asked("为什么？", ("因为。", None)),
    ),
    "Cohere/miracl-zh-queries-22-12": (
        {"query_id": "1", "query": "是吗？", **PASSAGES, "negative_passages": [{"docid": "3#0", "text": "不是。"}]},
        asked("是吗？", ("是。", 1.0), ("不是。", 0.0)),
    ),
    "Cohere/miracl-ja-queries-22-12": (
        {"query_id": "1", "query": "是吗？", **PASSAGES, "negative_passages": []},
        asked("是吗？", ("是。", None)),
    ),
    "Hello-SimpleAI/HC3-Chinese": (
        {"id": "0", "question": "为什么？", "human_answers": ["因为。", "不。"], "chatgpt_answers": ["作为"]},
        asked("为什么？", ("因为。", None)),
    ),
    "lmqg/qg_jaquad": (
        {
            "question": "誰？",
            "sentence": "花子だ。",
            "answer": "花子",
            "paragraph": "昔。花子だ。",
            "sentence_answer": "<hl> 花子 <hl>だ。",
            "paragraph_answer": "",
            "paragraph_id": "tr-1",
        },
        asked("誰？", ("花子だ。", None)),
    ),
    "lmqg/qag_jaquad": (
        {"answers": ["花子"], "questions": ["誰？", "何？"], "paragraph": "昔。花子だ。", "questions_answers": ""},
        asked("誰？", ("昔。花子だ。", None)),
    ),
    "local/jsonfile": (
        {"prompt": "Human: Why? Assistant: So. Human: Why so? Assistant:", "chosen": "Yes.", "rejected": "No."},
        Record(HH_TURNS, (Answer("Yes.", 1.0), Answer("No.", 0.0))),
    ),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_row_of_each_data_set_of_deepspeed_chat_is_read(name: str) -> None:
    row, expected = DATA_SETS[name]
    assert to_record(row, "") == expected


def test_the_document_lists_the_data_sets_that_are_tested() -> None:
    section = DOCUMENT.read_text().partition("## Data sets of DeepSpeed-Chat")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` .*schema from source, not loaded here", section, re.MULTILINE)
    assert sorted(listed) == sorted([*DATA_SETS, "mkqa"])  # this one by a mapping: see test_mapping.py


def test_choices_of_a_data_set_follow_its_columns() -> None:
    shp = DATA_SETS["stanfordnlp/SHP"][0] | {"labels": 1}
    assert [answer.content for answer in to_record(shp, "").answers] == ["No.", "So."]
    assert "\"labels\" is '2', and the mapping has a choice for 1, 0 alone" in refusal(shp | {"labels": 2})
    webgpt = DATA_SETS["openai/webgpt_comparisons"][0] | {"score_0": 0, "score_1": 0}
    assert len({answer.score for answer in to_record(webgpt, "").answers}) == 1
    miracl = DATA_SETS["Cohere/miracl-zh-queries-22-12"][0] | {"positive_passages": []}
    assert '"positive_passages" has 0 items' in refusal(miracl)


def test_better_and_safer_answers_are_told_apart() -> None:
    row = {"prompt": "Why?", "response_0": "So.", "response_1": "No.", "better_response_id": 1, "safer_response_id": 0}
    assert to_record(row, "") == asked("Why?", ("No.", 1.0), ("So.", 0.0))
    assert "neither 0 nor 1" in refusal(row | {"better_response_id": -1})
    assert "neither 0 nor 1" in refusal(row | {"better_response_id": True})


def test_preference_of_alpaca_eval_runs_from_the_first_answer_to_the_second() -> None:
    row = {"instruction": "Why?", "output_1": "So.", "output_2": "No.", "preference": 1.25, "annotator": "x"}
    assert to_record(row, "") == asked("Why?", ("So.", 0.75), ("No.", 0.25))
    assert len({answer.score for answer in to_record(row | {"preference": 1.5}, "").answers}) == 1
    assert "not between 1 (the first answer) and 2" in refusal(row | {"preference": 0})


def test_ultrafeedback_is_scored_overall() -> None:
    row = {"instruction": "Why?", "completions": [{"response": "So.", "overall_score": 8.5, "fine-grained_score": 1}]}
    assert to_record(row, "") == asked("Why?", ("So.", 8.5))


def test_sampled_solutions_are_scored_by_their_marks() -> None:
    row = {"question": "1 + 1?", "query": "1 + 1?", "answer": "2", "gt": "2", "response": ["2", "3"], "history": []}
    record = to_record(row | {"score": [True, False], "system": "Think."}, "")
    assert record.prompt == (Message("system", "Think."), Message("user", "1 + 1?"))
    assert record.answers == (Answer("2", 1.0, is_marked=True), Answer("3", -1.0, is_marked=True))
    assert record.fields["gt"] == "2"
    assert stages_of(to_record(row | {"score": [False, False]}, "")) == ("pairs", "rl")


def test_messages_of_colossalchat_are_read() -> None:
    asks, says = {"from": "user", "content": "Name a colour."}, {"from": "assistant", "content": "Red."}
    assert to_record({"messages": [asks, says]}, "") == Record(PROMPT, (Answer("Red."),))
    assert to_record({"messages": asks, "gt_answer": "Red"}, "") == Record(PROMPT)
    pair = to_record({"context": [asks], "chosen": [says], "rejected": [says | {"content": "Seven."}]}, "")
    assert pair == pair_of("Red.", "Seven.")


def test_system_text_and_history_go_before_the_prompt() -> None:
    row = {"instruction": "And now?", "output": "Blue.", "history": [["Name a colour.", "Red."]], "system": "Be brief."}
    turns = [("system", "Be brief."), ("user", "Name a colour."), ("assistant", "Red."), ("user", "And now?")]
    assert [(turn.role, turn.content) for turn in to_record(row, "").prompt] == turns
    assert to_record(row | {"system": "", "history": []}, "").prompt == (Message("user", "And now?"),)
    assert "no list of [instruction, answer] pairs" in refusal(row | {"history": ["Name a colour."]})
    system = {"role": "system", "content": "Be kind."}
    assert 'a field "system" beside it' in refusal({"messages": [system, USER, RED], "system": "Be brief."})


def test_seed_tasks_have_one_instance() -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 + 1", "output": "2"}], "is_classification": False}
    assert to_record(row, "") == asked("Add.\n\n1 + 1", ("2", None))
    assert 'rows = "instances[]"' in refusal(row | {"instances": row["instances"] * 2})
    assert "has no output" in refusal(row | {"instances": [{"input": "1 + 1", "output": None}]})


def test_the_first_of_several_user_turns_is_the_prompt() -> None:
    record = to_record({"question_id": 81, "turns": ["Name a colour.", "Another."], "reference": ["Red.", "Blue."]}, "")
    assert record == Record(PROMPT)
    assert record.fields["reference"] == ["Red.", "Blue."]
    assert "an empty list" in refusal({"turns": []})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"from": "function_call", "value": "{}"}, "tool turn (function_call)"),
        ({"from": "observation", "value": "{}"}, "tool turn (observation)"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, "calls a tool"),
        ({"role": "assistant", "content": "x", "loss_weight": 0.0}, "learned in full"),
        (None, "is null, not a message"),
        ({"role": "assistant", "content": [None]}, "is of type null"),
    ],
)
def test_turns_that_cannot_be_learned_are_refused(message: object, words: str) -> None:
    assert words in refusal({"messages": [USER, message]})


TABLE = re.findall(r"^\| ([^|]+) \| `(\{.*?\})` \|", DOCUMENT.read_text(), re.MULTILINE)
SHOWN = [json.loads(row) for _, row in TABLE]


def test_every_format_has_a_row_in_the_document() -> None:
    for format in _FORMATS:
        rows = [row for (name, _), row in zip(TABLE, SHOWN, strict=True) if name == format.name]
        assert any(row.keys() >= set(format.required) for row in rows), format
    assert {name for name, _ in TABLE} == set(format_names())


# Anything that JSON can say

TEXTS = st.sampled_from(["", " ", "Red.", "Human: a\n\nAssistant: b", "USER: a ASSISTANT:", "Assistant: x", "\ud800"])
NAMES = sorted({name for format in _FORMATS for name in format.required})
KEYS = st.sampled_from(["role", "from", "content", "value", "text", "type", "score", "rank", "full_text", "output"])
ROLES = st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool"])
SCALARS = TEXTS | ROLES | st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8)
WORDS = st.sampled_from(["Red.", "Why?", "Human: a\n\nAssistant: b", "USER: a ASSISTANT:", " Seven.</s>"])
LIKELY = VALUES | WORDS | st.lists(WORDS, min_size=1, max_size=2)
SIDE = st.sampled_from(["scores", "ranks", "input", "history", "system", "label", "kto_tag", *NAMES])
MADE = st.sampled_from(_FORMATS).flatmap(lambda format: st.fixed_dictionaries(dict.fromkeys(format.required, LIKELY)))
SPOILT = st.sampled_from(SHOWN).flatmap(
    lambda row: st.dictionaries(st.sampled_from(list(row)) | SIDE, LIKELY, max_size=2).map(lambda more: row | more)
)


@settings(max_examples=400, deadline=None)
@given(VALUES | MADE | SPOILT)
def test_any_value_is_a_valid_record_or_refused(value: Any) -> None:
    try:
        record = to_record(value, "here")
    except DataError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert stages_of(record)
    assert bool(record.prompt) != bool(record.text)
    for text in (record.text, *(m.content for m in record.prompt), *(a.content for a in record.answers)):
        text.encode()
    if record.prompt:
        roles = [turn.role for turn in record.prompt if turn.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(part.content.strip() for part in (*record.prompt, *record.answers))
