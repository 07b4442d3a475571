"""Ten shapes of chat templates, four kinds of tokenizers: what is typed stays text, what is sampled never raises."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates import KINDS, LOSSLESS, SHAPES, tokenizer_of
from tiny import byte_tokenizer, tiny_model, tiny_reward_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, GenerationConfig, PreTrainedTokenizerFast

from chatsmith.config import Config, DataConfig
from chatsmith.data.chat import (
    AnswerStream,
    Encoded,
    decode_answer,
    encode,
    encode_prompts,
    encode_said,
    oddities,
    prepare_tokenizer,
    stop_ids,
    try_encode,
    try_encode_prompts,
)
from chatsmith.data.control import control_of
from chatsmith.errors import ConversationError, DataError, ModelError
from chatsmith.inspection.check import check
from chatsmith.inspection.readers import Reader
from chatsmith.models.load import load_actor, load_tokenizer, save_model
from chatsmith.models.reward import RewardModel, encode_samples
from chatsmith.stages.reward import encode_ranked
from chatsmith.stages.rollout import encode_questions
from chatsmith.stages.sft import encode_best_answers
from chatsmith.types import Answer, Message, Record, Sample

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
SWEEP = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
SPELLINGS = sorted({t for s in SHAPES.values() for t in (s.bos, s.eos, *s.special, *s.added) if t and "▁" not in t})
FRAGMENTS = [
    "<",
    "<|",
    "|>",
    "im_end",
    "<|im_",
    "</",
    "</s",
    "think>",
    "[",
    "INST]",
    "Human:",
    "<|pad|>",
    "<unk>",
    "  ",
]
letters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁") | st.sampled_from("ab<|>/\n\t ")
private = st.integers(0x10A3C0, 0x10A3E0).map(chr)  # the names and marks of control.py
typed = st.lists(st.sampled_from(SPELLINGS) | st.sampled_from(FRAGMENTS) | letters | private, min_size=1, max_size=8)
texts = typed.map("".join).filter(str.strip)
talks = st.lists(texts, min_size=1, max_size=5).map(lambda t: t if len(t) % 2 else t[:-1])
both = pytest.mark.parametrize("kind", KINDS)
every = pytest.mark.parametrize("name", SHAPES)


def conversation(name, said, system=""):
    """User and assistant in turn, the last turn an assistant's."""
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate([*said, "Yes."])]
    return ((Message("system", system),) if system and SHAPES[name].takes_system else ()) + tuple(turns)


def control_ids(tokenizer):
    added = tokenizer.added_tokens_decoder.items()
    return {id for id, token in added if token.content.strip()} - {tokenizer.unk_token_id}


def controls(tokenizer, ids):
    meant = control_ids(tokenizer)
    return [id for id in ids if id in meant]


def spoken(row):
    """The tokens of the last answer."""
    last = len(row.targets) - row.targets[::-1].index(False) if False in row.targets else 0
    return row.tokens[last:]


def only_the_template_writes_control_tokens(name, kind, said, system):
    tokenizer = tokenizer_of(name, kind)
    stops = stop_ids(tokenizer)
    talk = conversation(name, said, system)
    (row,) = try_encode(tokenizer, [talk], stops=stops)
    (prompt,) = encode_prompts(tokenizer, [talk[:-1]], stops=stops)
    harmless = [Message(turn.role, "x") for turn in talk]
    assert controls(tokenizer, prompt) == controls(
        tokenizer, encode_prompts(tokenizer, [harmless[:-1]], stops=stops)[0]
    )
    if isinstance(row, ConversationError):
        assert any("</think>" in turn.content for turn in talk if turn.role == "assistant")
        assert name in ("qwen3", "deepseek-r1")
        return
    (expected,) = encode(tokenizer, [harmless], stops=stops)
    assert controls(tokenizer, row.tokens) == controls(tokenizer, expected.tokens)
    assert row.tokens[: len(prompt)] == prompt
    assert row.tokens[-1] in stops
    if kind not in LOSSLESS:
        return
    text = tokenizer.decode(row.tokens)
    begin = 0
    for turn in talk:
        if turn.role != "system" or name != "smollm3":  # which rewrites it
            begin = text.index(turn.content.strip(), begin) + len(turn.content.strip())


@every
@both
@QUICK
@given(talks, st.just("") | texts)
def test_only_the_template_writes_control_tokens(name, kind, said, system):
    only_the_template_writes_control_tokens(name, kind, said, system)


@pytest.mark.sweep
@every
@both
@SWEEP
@given(talks, st.just("") | texts)
def test_only_the_template_writes_control_tokens_ever(name, kind, said, system):
    only_the_template_writes_control_tokens(name, kind, said, system)


@every
@pytest.mark.parametrize("kind", LOSSLESS)
@QUICK
@given(texts)
def test_an_answer_comes_back_as_it_was(name, kind, answer):
    tokenizer = tokenizer_of(name, kind)
    stops = stop_ids(tokenizer)
    talk = (Message("user", "Well?"), Message("assistant", answer))
    (row,) = encode_said(tokenizer, [talk], stops=stops, complete=[True])
    assert isinstance(row, Encoded)
    assert decode_answer(tokenizer, spoken(row), stops=stops) == answer.strip()
    (cut,) = encode_said(tokenizer, [talk], stops=stops, complete=[False])
    assert decode_answer(tokenizer, spoken(cut), stops=stops) == answer.strip()
    assert not set(stops) & set(spoken(cut))


@every
@both
@QUICK
@given(st.data(), st.booleans())
def test_whatever_tokens_are_sampled_can_be_scored_and_end_once(name, kind, data, ended):
    tokenizer = tokenizer_of(name, kind)
    stops = stop_ids(tokenizer)
    tokens = st.sampled_from(sorted(control_ids(tokenizer) - set(stops))) | st.integers(0, len(tokenizer) - 1).filter(
        lambda id: id not in stops
    )
    ids = [*data.draw(st.lists(tokens, max_size=12)), *([data.draw(st.sampled_from(stops))] if ended else [])]
    asked = (Message("user", "Well?"),)
    answer = decode_answer(tokenizer, ids, stops=stops)
    sample = Sample(asked, answer, "stop" if ended else "length", Record())
    (row,) = encode_samples(tokenizer, [sample], stops=stops)
    (prompt,) = encode_prompts(tokenizer, [asked], stops=stops)
    assert row[: len(prompt)] == prompt
    assert [id for id in row[len(prompt) :] if id in stops] == (row[-1:] if ended else [])
    for other in ("qwen3", "llama3"):  # a reward model with a tokenizer of its own
        assert encode_samples(tokenizer_of(other), [sample], stops=stop_ids(tokenizer_of(other)))[0]
    (again,) = try_encode_prompts(tokenizer, [(*asked, Message("assistant", answer or " "), *asked)], stops=stops)
    assert isinstance(again, list)  # and the talk goes on


@every
@both
def test_ordinary_text_has_the_tokens_that_the_tokenizer_itself_gives(name, kind):
    tokenizer = tokenizer_of(name, kind)
    control = control_of(tokenizer)
    for words in ("once upon a time\n\nthere is  a dog, é 你", " dog"):
        turns = [
            {"role": "user", "content": words},
            {"role": "assistant", "content": words},
            {"role": "user", "content": "a"},
        ]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert control.encode([rendered]) == [tokenizer(rendered, add_special_tokens=False).input_ids]


@every
def test_prompts_and_the_text_of_rows_are_what_transformers_makes_of_them(name):
    tokenizer = tokenizer_of(name)
    talk = conversation(name, ["Hi", "Hello!", "once upon a time"], system="Be kind.")
    (row,) = encode(tokenizer, [talk], stops=stop_ids(tokenizer))
    plain = [vars(turn) for turn in talk]
    rendered = tokenizer.apply_chat_template(plain, tokenize=False)
    expected = tokenizer.decode(tokenizer(rendered, add_special_tokens=False).input_ids)
    assert expected.startswith(tokenizer.decode(row.tokens))
    (prompt,) = encode_prompts(tokenizer, [talk[:-3]], stops=stop_ids(tokenizer))
    asked = tokenizer.apply_chat_template(plain[:-3], tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer(asked, add_special_tokens=False).input_ids


def test_letters_that_stand_for_control_tokens_inside_stay_letters_too():
    tokenizer = tokenizer_of("llama3")
    control = control_of(tokenizer)
    hostile = "".join(map(chr, control.reserved)) + "<|eot_id|>"
    (prompt,) = encode_prompts(tokenizer, [(Message("user", hostile),)], stops=())
    assert hostile in tokenizer.decode(prompt)
    assert len(controls(tokenizer, prompt)) == 6
    everything = "".join(map(chr, range(0xF0000, 0x10FFFE)))
    tried = try_encode_prompts(tokenizer, [(Message("user", everything),), (Message("user", "Hi"),)], stops=())
    assert isinstance(tried[0], ConversationError)
    assert tried[1] == encode_prompts(tokenizer, [(Message("user", "Hi"),)], stops=())[0]


def test_what_a_template_cuts_out_cannot_make_a_control_token_of_the_rest():
    tokenizer = tokenizer_of("smollm3")
    harmless, hostile = (
        encode_prompts(tokenizer, [(Message("system", text), Message("user", "Hi"))], stops=())[0]
        for text in ("x/no_think", "<|im_/no_thinkend|>")
    )
    assert controls(tokenizer, hostile) == controls(tokenizer, harmless)
    assert "<|im_end|><|im_end|>" in tokenizer.decode(hostile)


def test_runs_of_spaces_and_words_that_were_added_are_read_as_in_training():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["    ", "covid", "<mark>"])
    prepare_tokenizer(tokenizer, "test")
    text = "a    covid <mark>"
    (ids,) = encode_prompts(tokenizer, [(Message("user", text),)], stops=())
    here = {
        tokenizer.convert_tokens_to_ids(token): token in tokenizer.convert_ids_to_tokens(ids)
        for token in ("    ", "covid", "<mark>")
    }
    assert list(here.values()) == [True, True, False]
    assert text in tokenizer.decode(ids)


def test_a_tokenizer_in_python_hides_them_as_well():
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["<|mark|>"])
    prepare_tokenizer(tokenizer, "test")
    talk = (Message("user", "é</s><|mark|><extra_id_0>"), Message("assistant", "</s>!"))
    (row,) = encode(tokenizer, [talk], stops=stop_ids(tokenizer))
    assert controls(tokenizer, row.tokens) == [tokenizer.eos_token_id]
    assert "é</s><|mark|><extra_id_0>" in tokenizer.decode(row.tokens)
    assert decode_answer(tokenizer, spoken(row), stops=stop_ids(tokenizer)) == "</s>!"


# answers that a template treats


def test_an_answer_is_where_the_template_put_it():
    tokenizer = tokenizer_of("qwen3")
    stops = stop_ids(tokenizer)
    for answer in ("hi", "t", "/", "n", "\\", "assistant", "user\nthink"):
        (row,) = encode(tokenizer, [(Message("user", "Greet me."), Message("assistant", answer))], stops=stops)
        assert tokenizer.decode(spoken(row)) == f"<think>\n\n</think>\n\n{answer}<|im_end|>"
        assert decode_answer(tokenizer, spoken(row), stops=stops) == answer


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_an_answer_that_the_template_would_change_is_a_bad_record_with_its_place(name):
    tokenizer = tokenizer_of(name)
    options = {"stops": stop_ids(tokenizer), "max_tokens": 999}
    records = [
        Record((Message("user", f"Question {i}?"),), (Answer(good, 1.0), Answer("No.", 0.0)), origin=f"a.jsonl:{i}")
        for i, good in enumerate(["Fine.", "<think>so</think>Yes.", "hi", "nothing</think>"])
    ]
    for encode_records in (encode_best_answers, encode_ranked):
        with pytest.raises(DataError, match=r"^a\.jsonl:1: the chat template of .* changes an answer .*on_error skip"):
            encode_records(tokenizer, records, **options)
        rows, dropped = encode_records(tokenizer, records, **options, on_error="skip")
        assert (len(rows), dropped) == (2, 2)


def test_a_prompt_that_the_template_refuses_is_a_bad_record_with_its_place():
    tokenizer = tokenizer_of("gemma")
    records = [
        Record((Message("user", "Hi"),), origin="a.jsonl:1"),
        Record((Message("system", "Be kind."), Message("user", "Hi")), origin="a.jsonl:2"),
    ]
    with pytest.raises(DataError, match=r"^a\.jsonl:2: .*System role not supported"):
        encode_questions(tokenizer, records, stops=(), max_tokens=99)
    prompts = encode_questions(tokenizer, records, stops=(), max_tokens=99, on_error="skip")
    assert [record.origin for record in prompts.records] == ["a.jsonl:1"]


def test_what_templates_and_tokenizers_raise_is_the_error_of_one_conversation():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    plain = tokenizer.chat_template
    fine, odd = (Message("user", "fine"),), (Message("user", "odd"),)
    for fault in (
        "1 // 0",
        "none.x.y",
        "'a' + 1",
        "messages['x']['y']",
        "raise_exception('no')",
        "range(10 ** 9)|list",
    ):
        tokenizer.chat_template = "{% if messages[0]['content'] == 'odd' %}{{ " + fault + " }}{% endif %}" + plain
        one, two = try_encode_prompts(tokenizer, [fine, odd], stops=())
        assert isinstance(one, list)
        assert isinstance(two, ConversationError)
        assert 'begins "odd"' in str(two)
    tokenizer.chat_template = plain
    one, two = try_encode_prompts(tokenizer, [fine, (Message("user", "half \ud800"),)], stops=())
    assert isinstance(one, list)
    assert isinstance(two, ConversationError)


def test_a_panic_of_the_tokenizer_is_no_interrupt():
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "H": 2}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(?:a|aa|aaa)+?b(?!a)(a+)+c"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    prepare_tokenizer(tokenizer, "test")
    asked = [(Message("user", text),) for text in ("a" * 60 + "b" + "a" * 60, "ab")]
    one, two = try_encode_prompts(tokenizer, asked, stops=())
    assert isinstance(one, ConversationError)
    assert "PanicException" in str(one)
    assert isinstance(two, list)


def test_a_reward_model_scores_every_answer_or_leaves_it_out():
    tokenizer = tokenizer_of("qwen3")
    model = tiny_reward_model()
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    scorer = RewardModel(model, tokenizer, stop_ids(tokenizer), 0.0, 1.0, 4096)
    asked = (Message("user", "Well?"),)
    answers = ["", "/", "t", "<think>so</think>Yes.", "<|im_end|>", " \n", "half \ud800", "hi"]
    samples = [Sample(asked, answer, "stop", Record()) for answer in answers]
    scores = scorer(samples)
    assert [score is None for score in scores] == [answer == "half \ud800" for answer in answers]
    (row,) = encode(tokenizer, [(*asked, Message("assistant", "hi"))], stops=scorer.stops)
    assert encode_samples(tokenizer, samples, stops=scorer.stops)[-1] == row.tokens  # as it was trained
    only_refused = scorer([Sample((*asked, Message("user", "x")), "half \ud800", "stop", Record())])
    assert only_refused == [None]


def test_templates_that_open_answers_otherwise_than_in_conversations_are_refused_for_data_only():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("deepseek-r1").backend_tokenizer, eos_token="<｜end▁of▁sentence｜>"
    )
    shape = SHAPES["deepseek-r1"].template.replace("{{ bos_token }}", "")
    tokenizer.chat_template = shape.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")
    prepare_tokenizer(tokenizer, "test")
    stops = stop_ids(tokenizer)
    talk = (Message("user", "Hi"), Message("assistant", "so</think>Yes."), Message("user", "Hi"))
    with pytest.raises(ModelError, match="training and generation would disagree"):
        encode(tokenizer, [(Message("user", "Hi"), Message("assistant", "Yes."))], stops=stops)
    (prompt,) = encode_prompts(tokenizer, [talk], stops=stops)
    assert tokenizer.decode(prompt).endswith("so</think>Yes.<｜end▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n")
    assert encode_samples(tokenizer, [Sample(talk[:1], "so</think>Yes.", "stop", Record())], stops=stops)[0]


def test_an_answer_that_begins_as_the_template_s_own_words_do_keeps_its_beginning():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m.role + ']: ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    prepare_tokenizer(tokenizer, "test")
    (row,) = encode(tokenizer, [(Message("user", "Well?"), Message("assistant", ":)"))], stops=(2,))
    assert tokenizer.decode(row.tokens) == "[user]: Well?</s>[assistant]: :)</s>"
    assert decode_answer(tokenizer, spoken(row), stops=(2,)) == ":)"


def test_what_the_template_puts_in_front_of_answers_is_not_spoken_in_chat():
    tokenizer = tokenizer_of("qwen3")
    for said, heard in {
        "<think>\n\n</think>\n\nhi <think>": "hi <think>",
        "<think>\n\n</think>": "",
        "<think>\nno": "<think>\nno",
        "<think>\n\n</thin": "<think>\n\n</thin",
        "\nhi": "hi",
        "": "",
    }.items():
        ids = tokenizer(said).input_ids
        stream = AnswerStream(tokenizer, [])
        assert "".join([*map(stream.add, ids), stream.finish()]).strip() == heard
        assert decode_answer(tokenizer, ids) == heard


# stop tokens


def test_a_stop_token_that_is_not_special_is_no_part_of_the_answer_and_stands_once_in_front_of_the_reward_model():
    tokenizer = tokenizer_of("llama3")
    stops = stop_ids(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end in stops
    assert end not in tokenizer.all_special_ids
    sampled = [*tokenizer("yes").input_ids, end]
    assert decode_answer(tokenizer, sampled, stops=stops) == "yes"
    sample = Sample((Message("user", "Well?"),), decode_answer(tokenizer, sampled, stops=stops), "stop", Record())
    (row,) = encode_samples(tokenizer, [sample], stops=stops)
    assert row[-len(sampled) :] == sampled
    assert row.count(end) == 2  # the user's turn ends with one


def test_of_tokens_that_begin_alike_the_one_behind_answers_is_the_longest():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|end", "<|end|>", "<|end|><|x|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert stop_ids(tokenizer) == (2, tokenizer.convert_tokens_to_ids("<|end|>"))


# what is said of a tokenizer


def test_what_a_template_puts_in_front_of_answers_and_what_cannot_be_spelled_is_said():
    assert any("in front of every answer" in each for each in oddities(tokenizer_of("qwen3")))
    assert oddities(tokenizer_of("mistral")) == []
    assert not any("no ordinary tokens" in each for each in oddities(tokenizer_of("deepseek-r1", "pieces and bytes")))
    assert any("no ordinary tokens" in each for each in oddities(tokenizer_of("deepseek-r1", "pieces")))


def test_unknown_letters_are_seen_in_answers():
    tokenizer = tokenizer_of("plain", "pieces")
    ids = tokenizer("a dog Ж", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id in ids
    assert decode_answer(tokenizer, [*ids, tokenizer.eos_token_id], stops=stop_ids(tokenizer)) == "a dog <unk>"


def test_data_check_says_how_much_is_unknown_and_what_the_template_refuses(tmp_path):
    rows = [{"prompt": f"is a dog {i}", "answer": "Ж a Ж dog Ж" if i % 2 else "a dog"} for i in range(20)]
    thought = {"prompt": "Think.", "answer": "<think>so</think>Yes."}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, thought]))
    expected = {
        ("plain", "pieces"): [("warning", "<unk> tokens")],
        ("plain", "pieces and bytes"): [],
        ("qwen3", "bytes"): [("warning", "cannot carry as they are")],
    }
    for (name, kind), said in expected.items():
        tokenizer = tokenizer_of(name, kind)
        config = Config(data=DataConfig(sources=[f"sft:{tmp_path / 'a.jsonl'}"], on_error="skip", held_out=0.01))
        facts = check(config, {"sft": Reader(tokenizer, stop_ids(tokenizer), 256)}, whole_run=False)
        found = {finding.what: finding for finding in facts.findings}
        for severity, words in said:
            (finding,) = (finding for what, finding in found.items() if words in what)
            assert finding.severity == severity
        assert len(said) == sum("<unk> tokens" in what or "cannot carry" in what for what in found)
        if name == "qwen3":
            assert [example.where for example in finding.examples] == ["a.jsonl:21"]
            refused = check(
                config.model_copy(update={"data": config.data.model_copy(update={"on_error": "raise"})}),
                {"sft": Reader(tokenizer, stop_ids(tokenizer), 256)},
                whole_run=False,
            )
            assert refused.failed
        elif said:
            (whole,) = (stage for stage in facts.stages.values())
            letters = sum(row["answer"].count("Ж") for row in rows)
            assert letters - 3 <= finding.count == whole.unknown <= letters
            assert finding.of == whole.tokens


def test_what_the_base_forbids_to_sample_is_saved_with_the_model(tmp_path):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    model = tiny_model()
    model.generation_config = GenerationConfig(
        suppress_tokens=[5, 6], bad_words_ids=[[7]], eos_token_id=9, do_sample=True
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_actor(
        str(tmp_path / "base"), load_tokenizer(str(tmp_path / "base")), dtype=torch.float32, device=torch.device("cpu")
    )
    save_model(loaded, tokenizer, tmp_path / "out", stops=(2, 7), card="")
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (kept.suppress_tokens, kept.bad_words_ids) == ([5, 6], [[7]])
    assert (kept.eos_token_id, kept.pad_token_id, kept.bos_token_id, kept.do_sample) == ([2, 7], 0, 1, True)


def test_a_base_whose_generation_config_transformers_would_not_save_can_be_saved(tmp_path):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    model = tiny_model()
    model.generation_config.temperature = 0.9  # without sampling: transformers refuses to save it
    save_model(model, tokenizer, tmp_path, stops=(2,), card="")
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2]
    model.generation_config.num_beams, model.generation_config.num_return_sequences = 2, 4
    save_model(model, tokenizer, tmp_path, stops=(2,), card="")
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2]
