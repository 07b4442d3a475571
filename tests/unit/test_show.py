"""What `data show` shows is what the stages train on, token by token."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from tiny import byte_tokenizer

from chatsmith.config import Config
from chatsmith.data.chat import prepare_tokenizer, stop_ids
from chatsmith.data.mapping import Dropped
from chatsmith.data.mix import StageData
from chatsmith.data.records import Chosen
from chatsmith.data.sources import Source
from chatsmith.data.spec import parse_spec
from chatsmith.data.split import POINT
from chatsmith.errors import DataError
from chatsmith.inspection.readers import Reader
from chatsmith.inspection.show import at, sample, view, whereabouts
from chatsmith.inspection.terminal import draw_legend, draw_view
from chatsmith.stages.reward import encode_ranked
from chatsmith.stages.rollout import encode_questions
from chatsmith.stages.sft import encode_best_answers
from chatsmith.types import Answer, Message, Record


@pytest.fixture
def reader():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "here")
    return Reader(tokenizer, stop_ids(tokenizer), 80)


def turns(*contents):
    return tuple(Message("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))


RANKED = Record(turns("Hi"), (Answer("No.", 0.0), Answer("Yes.", 2.0), Answer("Hm.", 0.0)), origin="a.jsonl:3")
TALK = Record(turns("Hi", "Hello.", "And?"), (Answer("Bye."),), origin="a.jsonl:4")


def text(row, is_learned=None):
    return "".join(token.text for token in row.tokens if is_learned in (None, token.is_learned))


def test_sft_learns_the_assistants_turns_with_their_ends_and_nothing_else(reader):
    (row,) = view(TALK, "sft", reader, Config()).rows
    assert text(row) == "Human: Hi\n\nAssistant:\nHello.</s>\n\nHuman: And?\n\nAssistant:\nBye.</s>"
    assert text(row, True) == "Hello.</s>Bye.</s>"
    (encoded,), _ = encode_best_answers(reader.tokenizer, [TALK], stops=reader.stops, max_tokens=999)
    assert [token.is_learned for token in row.tokens] == encoded.targets
    assert [token.text for token in row.tokens if token.is_special] == ["</s>", "</s>"]
    assert row.fate == ""


def test_with_loss_on_all_every_token_but_the_first_is_learned(reader):
    (row,) = view(TALK, "sft", reader, Config(sft={"loss_on": "all"})).rows
    assert text(row, False) == "H"


def test_sft_shows_the_best_of_ranked_answers(reader):
    (row,) = view(RANKED, "sft", reader, Config()).rows
    assert text(row, True) == "Yes.</s>" and row.title == "the best of 3 answers"


def test_reward_shows_every_answer_with_its_score_and_the_pairs(reader):
    shown = view(RANKED, "reward", reader, Config())
    assert [row.title for row in shown.rows] == ["answer 1, score 0", "answer 2, score 2", "answer 3, score 0"]
    assert [text(row, True) for row in shown.rows] == ["No.</s>", "Yes.</s>", "Hm.</s>"]
    assert "pairs: 2 > 1, 2 > 3, each with weight 1/2" in shown.note
    (ranked,), _ = encode_ranked(reader.tokenizer, [RANKED], stops=reader.stops, max_tokens=999)
    assert [len(row.tokens) for row in shown.rows] == [len(row) for row in ranked.rows]
    tie = Record(turns("Hi"), (Answer("a", 1.0), Answer("b", 1.0)))
    assert "pairs: 1 = 2" in view(tie, "reward", reader, Config()).note


def test_answers_that_are_too_long_leave_the_pairs(reader):
    answers = (Answer("y" * 99, 3.0), Answer("Yes.", 2.0), Answer("Hm.", 0.0))
    shown = view(Record(turns("Hi"), answers), "reward", reader, Config())
    assert shown.rows[0].fate == f"dropped: {len('Human: Hi..Assistant:.') + 100} tokens, and the limit is 80"
    assert shown.rows[1].fate == shown.rows[2].fate == ""
    assert "pairs: 2 > 3" in shown.note and "1" not in shown.note
    shown = view(Record(turns("Hi"), answers[:2]), "reward", reader, Config())
    assert shown.note == "dropped: fewer than two answers are short enough"


def test_rl_shows_the_prompt_up_to_where_the_policy_speaks(reader):
    shown = view(RANKED, "rl", reader, Config())
    assert text(shown.rows[0]) == text(shown.rows[0], False) == "Human: Hi\n\nAssistant:\n"
    prompts = encode_questions(reader.tokenizer, [RANKED], stops=reader.stops, max_tokens=999)
    assert len(shown.rows[0].tokens) == len(prompts.tokens[0])
    assert "256" in shown.note
    long = view(Record(turns("x" * 90)), "rl", reader, Config())
    assert long.rows[0].fate.startswith("dropped: 110 tokens")


def test_plain_text_is_shown_in_the_rows_that_it_is_divided_into(reader):
    shown = view(Record(text="z" * 100), "ptx", reader, Config())
    assert [len(row.tokens) for row in shown.rows] == [80, 21]  # 100 and the end
    assert [row.title for row in shown.rows] == ["row 1 of 2", "row 2 of 2"]
    assert text(view(TALK, "ptx", reader, Config()).rows[0], True) == "Hello.</s>Bye.</s>"


def test_a_conversation_that_is_too_long_is_shown_and_said_to_be_dropped(reader):
    (row,) = view(Record(turns("Hi"), (Answer("y" * 99),)), "sft", reader, Config()).rows
    assert len(row.tokens) == 122 and row.fate == "dropped: 122 tokens, and the limit is 80"


def test_bytes_belong_to_the_token_that_completes_the_character(reader):
    (row,) = view(Record(turns("Hi"), (Answer("你"),)), "sft", reader, Config()).rows
    assert [token.text for token in row.tokens[-4:]] == ["", "", "你", "</s>"]


def test_a_special_token_spelled_in_the_text_is_not_one(reader):
    (row,) = view(Record(turns("Hi"), (Answer("a</s>b"),)), "sft", reader, Config()).rows
    assert text(row, True) == "a</s>b</s>"
    assert [token.text for token in row.tokens if token.is_special] == ["</s>"]


def source(*records, dropped=()):
    return Source(parse_spec("dir/a.jsonl"), records, dropped, None, np.zeros(len(records), POINT), "")


def sides(train, held_out):
    return StageData(*(Chosen([records], np.arange(len(records))) for records in (train, held_out)))


def test_the_sample_depends_on_the_seed_alone():
    records = tuple(Record(turns(str(i)), origin=f"a.jsonl:{i}") for i in range(100))
    data = {"sft": sides(records, ()), "rl": sides((), records)}
    first = sample(data, "sft", 5, seed=1)
    assert len(first) == 5 and first == sample(data, "sft", 5, seed=1) != sample(data, "sft", 5, seed=2)
    assert sample(data, "sft", 500, seed=1) == list(records)
    with pytest.raises(DataError, match="rl:FILE"):
        sample(data, "rl", 1, seed=1)


def test_a_record_is_found_by_its_place_or_the_end_of_it():
    here = Record(turns("Hi"), (Answer("Yes."),), origin="dir/a.jsonl:3")
    other = Record(turns("Ho"), origin="dir/aa.jsonl:3")
    sources = [source(here, other, dropped=(Dropped("dir/a.jsonl:4", "broken"),))]
    assert at(sources, "dir/a.jsonl:3", "sft") is at(sources, "a.jsonl:3", "ptx") is here
    assert at(sources, "aa.jsonl:3", "rl") is other
    for place, stage, message in (
        ("a.jsonl:4", "sft", "left out: broken"),
        ("a.jsonl:5", "sft", "no such record"),
        ("jsonl:3", "sft", "no such record"),
        ("aa.jsonl:3", "sft", "cannot serve sft. Give --stage rl"),
    ):
        with pytest.raises(DataError, match=message):
            at(sources, place, stage)
    data = {"sft": sides((here,), ()), "rl": sides((), (other,))}
    assert whereabouts(data, here) == "sft, to train on"
    assert whereabouts(data, other) == "rl, held out"
    assert whereabouts({}, other) == "no stage"


def drawn(shown, colour):
    console = Console(
        file=io.StringIO(), width=100, force_terminal=colour, color_system="truecolor" if colour else None
    )
    draw_legend(console)
    draw_view(console, shown)
    return console.file.getvalue()


def test_nothing_in_the_data_reaches_the_terminal_as_control(reader):
    evil = Record(turns("\x1b[2J\x07[bold]\u202e"), (Answer("\x1b]0;x\x07\r\x9b"),), origin="\x1b[31m.jsonl:1")
    plain = drawn(view(evil, "sft", reader, Config()), False)
    assert not set(plain) & set("\x1b\x07\r\x9b\u202e")
    assert "[|b|o|l|d|]" in plain
    coloured = drawn(view(evil, "sft", reader, Config()), True)
    assert "\x1b[2J" not in coloured and "\x1b]" not in coloured and "\x07" not in coloured and "\x9b" not in coloured


def test_without_colour_marks_show_what_is_learned_and_where_tokens_end(reader):
    shown = drawn(view(Record(turns("Hi"), (Answer("你!"),)), "sft", reader, Config()), False)
    assert "|t|:|↵\n⟦▫|▫|你|!|</s>⟧" in shown
    assert "H|u|m|a|n" in shown


def test_with_colour_learned_tokens_are_green_and_neighbours_differ(reader):
    shown = drawn(view(Record(turns("Hi"), (Answer("ab"),)), "sft", reader, Config()), True)
    shades = {letter: shade for shade, letter in re.findall(r"48;2;([\d;]+)m([ab])\x1b", shown)}
    assert {shades["a"], shades["b"]} == {"20;83;45", "31;122;69"}
