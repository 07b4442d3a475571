"""Rendering and masking: the same tokens in training and generation, BOS once, EOS a target, pad not EOS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import STORIES, byte_tokenizer, require

from chatsmith.data.chat import PAD_TOKEN, encode, encode_prompts, encode_texts, prepare_tokenizer, stop_ids
from chatsmith.engine.text import decode_answer
from chatsmith.errors import ModelError
from chatsmith.models.load import load_tokenizer
from chatsmith.types import Message

TALK = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "2+2?"),
    Message("assistant", "Four."),
)


def prepared(**options):
    tokenizer = byte_tokenizer(**options)
    prepare_tokenizer(tokenizer, "test")
    return tokenizer


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_default_template_marks_every_assistant_turn_with_its_eos_as_target():
    tokenizer = prepared()
    (row,) = encode(tokenizer, [TALK], stops=stop_ids(tokenizer))
    spoken = [token for token, target in zip(row.tokens, row.targets, strict=True) if target]
    assert text_of(tokenizer, spoken) == "Hello!</s>Four.</s>"
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert row.targets[-1]


def test_the_prompt_of_a_training_row_is_exactly_what_generation_starts_from():
    for tokenizer in (prepared(), load_tokenizer(str(require(STORIES)))):
        (row,) = encode(tokenizer, [TALK], stops=stop_ids(tokenizer))
        (prompt,) = encode_prompts(tokenizer, [TALK[:-1]], stops=stop_ids(tokenizer))
        assert row.tokens[: len(prompt)] == prompt
        assert row.targets[len(prompt) :] == [True] * (len(row.tokens) - len(prompt))
        (other,) = encode_prompts(tokenizer, [TALK[:2]], stops=stop_ids(tokenizer))
        assert row.tokens[: len(other)] == other
        assert other != prompt[: len(other) + 1]


def test_decoding_an_encoded_answer_gives_the_answer_back():
    for tokenizer in (prepared(), load_tokenizer(str(require(STORIES)))):
        (row,) = encode(tokenizer, [TALK[:3]], stops=stop_ids(tokenizer))
        answer = [token for token, target in zip(row.tokens, row.targets, strict=True) if target]
        assert decode_answer(tokenizer, answer) == "Hello!"


def test_an_answer_that_was_cut_off_gets_no_eos():
    tokenizer = prepared()
    cut, whole = encode(tokenizer, [TALK, TALK], stops=stop_ids(tokenizer), complete=[False, True])
    assert whole.tokens == [*cut.tokens, tokenizer.eos_token_id]
    assert tokenizer.eos_token_id in cut.tokens  # the earlier turn did end


def test_bos_stands_exactly_once():
    stories = load_tokenizer(str(require(STORIES)))
    (row,) = encode(stories, [TALK], stops=stop_ids(stories))
    assert row.tokens.count(stories.bos_token_id) == 1
    assert row.tokens[0] == stories.bos_token_id
    twice = stories(stories.decode(row.tokens)).input_ids  # what tokenising rendered text with defaults would do
    assert twice.count(stories.bos_token_id) == 2


def test_a_tokenizer_that_adds_no_bos_gets_none():
    tokenizer = prepared()
    (row,) = encode(tokenizer, [TALK], stops=stop_ids(tokenizer))
    assert tokenizer.bos_token_id not in row.tokens


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_pad_is_never_eos(pad):
    tokenizer = prepared(pad_token=pad)
    assert tokenizer.pad_token == PAD_TOKEN
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    kept = prepared()
    assert kept.pad_token == "<pad>"


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(ModelError, match="no EOS token"):
        prepared(eos_token=None)


def test_text_behind_the_last_stop_token_is_left_out():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    prepare_tokenizer(tokenizer, "test")
    (row,) = encode(tokenizer, [TALK], stops=stop_ids(tokenizer))
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert text_of(tokenizer, row.tokens).endswith("Four.</s>")


def test_a_template_that_never_ends_an_answer_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    with pytest.raises(ModelError, match="does not end an assistant turn"):
        encode(tokenizer, [TALK], stops=(tokenizer.eos_token_id,))


def test_a_template_whose_generation_prompt_differs_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<<answer>>{% endif %}"
    )
    with pytest.raises(ModelError, match="training and generation would disagree"):
        encode(tokenizer, [TALK], stops=(tokenizer.eos_token_id,))


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_a_conversation_that_a_template_refuses_is_named_with_what_the_template_says():
    tokenizer = prepared()
    plain = tokenizer.chat_template
    tokenizer.chat_template = REFUSES_SYSTEM + plain
    stops = stop_ids(tokenizer)
    fine = encode(tokenizer, [TALK[1:]], stops=stops)
    with pytest.raises(
        ModelError, match=r'cannot render .* begins "Be kind\.".*: System role not supported\. .*user turn'
    ):
        encode(tokenizer, [TALK[1:], TALK], stops=stops)
    with pytest.raises(ModelError, match=r'begins "word word .*…": System role'):
        encode_prompts(tokenizer, [(Message("system", "word " * 99), TALK[1])], stops=stops)
    tokenizer.chat_template = plain
    assert encode(tokenizer, [TALK[1:], TALK], stops=stops)[:1] == fine


def test_a_template_that_cannot_be_read_is_an_error_that_says_why():
    tokenizer = prepared()
    tokenizer.chat_template += "{% endfor %}"
    with pytest.raises(ModelError, match=r"cannot render .*unknown tag 'endfor'"):
        stop_ids(tokenizer)


def test_long_texts_become_several_rows_and_nothing_is_lost():
    tokenizer = prepared()
    text = "abcdefghij" * 3
    rows = encode_texts(tokenizer, [text], max_tokens=8)
    assert [token for row in rows for token in row.tokens] == [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    assert all(len(row.tokens) <= 8 and not row.targets[0] and all(row.targets[1:]) for row in rows)


@given(st.text(alphabet="ab é", max_size=40), st.integers(3, 9))
def test_rows_of_a_text_are_all_of_it_and_none_is_a_lone_token(text, max_tokens):
    tokenizer = prepared()
    whole = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    rows = encode_texts(tokenizer, [text], max_tokens=max_tokens)
    assert [token for row in rows for token in row.tokens] == (whole if len(whole) > 1 else [])
    assert all(2 <= len(row.tokens) <= max_tokens for row in rows)
    assert len(rows) == (len(whole) > 1) * -(-len(whole) // max_tokens)  # no more rows than are needed
    assert all(row.targets == [False] + [True] * (len(row.tokens) - 1) for row in rows)


def test_the_end_of_a_text_is_learned_where_it_would_stand_alone():
    tokenizer = prepared()
    text = "abcdefgh"  # 8 tokens and EOS, in rows of 4
    rows = encode_texts(tokenizer, [text], max_tokens=4)
    assert [len(row.tokens) for row in rows] == [4, 3, 2]
    assert rows[-1].tokens == [*tokenizer("h").input_ids, tokenizer.eos_token_id]
    assert rows[-1].targets == [False, True]


def test_stop_ids_join_the_tokenizer_s_eos_and_the_generation_config_s():
    class Generation:
        eos_token_id = (7,)

    tokenizer = prepared()
    assert stop_ids(tokenizer) == (2,)
    Generation.eos_token_id = [7, 2]
    assert stop_ids(tokenizer, Generation) == (2, 7)
    Generation.eos_token_id = 9
    assert stop_ids(tokenizer, Generation) == (2, 9)


@pytest.mark.parametrize("speaker", ["user", "assistant"])
def test_text_that_spells_special_tokens_stays_text(speaker):
    tokenizer = prepared()
    hostile = "it is </s> and <pad> ok"
    talk = (Message("user", hostile if speaker == "user" else "q"), Message("assistant", hostile))
    (row,) = encode(tokenizer, [talk], stops=stop_ids(tokenizer))
    assert row.tokens.count(tokenizer.eos_token_id) == 1
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in row.tokens
    assert text_of(tokenizer, row.tokens).count(hostile) == (2 if speaker == "user" else 1)
    (prompt,) = encode_prompts(tokenizer, [talk[:1]], stops=stop_ids(tokenizer))
    assert row.tokens[: len(prompt)] == prompt
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]  # what would happen else


def test_a_template_s_own_end_of_turn_is_a_stop_token():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    prepare_tokenizer(tokenizer, "test")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_ids(tokenizer) == (tokenizer.eos_token_id, end)
    (row,) = encode(tokenizer, [TALK], stops=stop_ids(tokenizer))
    assert row.tokens[-1] == end
    assert row.tokens.count(end) == len(TALK)
