"""Asking a model: what is streamed is what is said, nothing is cut silently, and what is given up is freed."""

import copy
import gc
import inspect
import json
import random

import pytest
import torch
from bigram import bigram_model
from tiny import STORIES, byte_tokenizer, require, tiny_model, tiny_reward_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from chatsmith import cli
from chatsmith.assistant import Assistant, load, read_conversation
from chatsmith.chat import Exchange, Talk
from chatsmith.config import EngineConfig
from chatsmith.data.chat import encode_prompts, prepare_tokenizer, stop_ids
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.engine.text import AnswerStream, Speech, TextStream, decode_answer, stop_strings, token_texts
from chatsmith.errors import ConfigError, ModelError, RequestError, RunError
from chatsmith.models.load import save_model
from chatsmith.types import Message

HELLO = [{"role": "user", "content": "Hi"}]
TEXTS = (
    "Once upon a time, there was a dog.",
    "你好,世界!我们说中文。",
    "a 👋🏽 b 👩‍💻 c 🇨🇳",
    " two  spaces\n\n\ttab ",
    "日本語とعربية и ё ï",
)


def assistant(model, tokenizer=None):
    if tokenizer is None:
        tokenizer = byte_tokenizer()
        prepare_tokenizer(tokenizer, "test")
    return Assistant(model, tokenizer, stop_ids(tokenizer), model.config.max_position_embeddings)


def unigram_tokenizer():
    """SentencePiece's way: "▁" for a space, dropped at the beginning, and bytes for what has no piece."""
    pieces = ["<unk>", "▁", "▁a", "▁dog", "O", "n", "c", "e", "中", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


def wordpiece_tokenizer(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "once", "upon", "a", "dog", "##s", "time", ",", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    return BertTokenizer(str(tmp_path / "vocab.txt"))


# streaming text


def test_streamed_pieces_join_to_the_decoded_text_with_every_kind_of_tokenizer(tmp_path):
    kinds = [byte_tokenizer(), unigram_tokenizer(), ByT5Tokenizer(), wordpiece_tokenizer(tmp_path)]
    kinds += [PreTrainedTokenizerFast.from_pretrained(STORIES)] if STORIES.exists() else []
    for tokenizer in kinds:
        for text in (*TEXTS, "once upon a dogs time, a dog."):
            ids = tokenizer(text).input_ids
            whole = tokenizer.decode(ids, skip_special_tokens=True)
            stream = TextStream(tokenizer)
            pieces = [stream.add(id) for id in ids]
            assert "".join([*pieces, stream.finish()]) == whole
            assert "�" not in "".join(pieces)
            assert "".join(token_texts(tokenizer, ids)) == whole
    assert sum(map(bool, pieces)) > 5, "it streams"


def test_decoding_tokens_one_by_one_would_give_another_text():
    tokenizer, stories = byte_tokenizer(), unigram_tokenizer()
    assert "".join(tokenizer.decode([id]) for id in tokenizer("你").input_ids) != "你"
    assert "".join(stories.decode([id]) for id in stories("a dog").input_ids) != "a dog"


def test_any_bytes_a_model_may_sample_stream_as_they_decode():
    tokenizer, rng = byte_tokenizer(), random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(30))]
        assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_bytes_of_a_character_belong_to_the_token_that_completes_it():
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("a你").input_ids, tokenizer.eos_token_id]
    assert token_texts(tokenizer, ids) == ["a", "", "", "你", ""]
    assert token_texts(tokenizer, ids[:3]) == ["a", "", "�"]
    assert token_texts(tokenizer, []) == []


# stop strings


def before_stop(text, stop):
    """What stands before the first stop string that is complete, read character by character."""
    for end in range(1, len(text) + 1):
        begins = [end - len(each) for each in stop if text[:end].endswith(each)]
        if begins:
            return text[: min(begins)]
    return text


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_stop_string_never_shows_and_all_that_stands_before_it_does(kind):
    tokenizer, rng = byte_tokenizer() if kind == "bytes" else unigram_tokenizer(), random.Random(0)
    ended = 0
    for _ in range(400):
        text = "".join(rng.choice("ab中 ") for _ in range(rng.randrange(30)))
        stop = ["".join(rng.choice("ab中 ") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        ids = tokenizer(text).input_ids
        expected = before_stop(tokenizer.decode(ids), stop)
        stream = AnswerStream(tokenizer, stop)
        given = ""
        for id in ids:
            given += stream.add(id)
            assert expected.startswith(given)
            if given != expected and stream.ended:
                break
        ended += stream.ended
        assert given + stream.finish() == expected
    assert 100 < ended < 390


def test_only_what_may_begin_a_stop_string_is_held_back():
    tokenizer = byte_tokenizer()
    stream = AnswerStream(tokenizer, ["\n\nHuman:", "猫。"])
    pieces = [stream.add(id) for id in tokenizer("a\n\nHub 猫狗\n").input_ids]
    assert [piece for piece in pieces if piece] == ["a", "\n\nHub", " ", "猫狗"]
    assert stream.finish() == "\n"
    assert not stream.ended


@pytest.mark.parametrize(
    ("stop", "pieces", "last"),
    [
        ("x", ["你", "👋"], "x"),
        (["👋"], ["你"], "👋"),  # four tokens
        (["x yq", "x y"], ["你", "👋"], "y"),
        (["你"], [], "你"),
        (["xy"], ["你", "👋", "x", " y", "z"], "z"),
        ([], ["你", "👋", "x", " y", "z"], "z"),
    ],
)
def test_an_answer_ends_before_its_stop_string_and_at_the_token_that_completes_it(stop, pieces, last):
    asked = assistant(bigram_model("\t你👋x yz"))
    reply = asked.stream("Hi", stop=stop)
    assert list(reply) == pieces
    assert reply.finish_reason == "stop"
    assert asked.tokenizer.decode(reply.tokens).endswith(last)
    assert asked.chat("Hi", stop=stop) == "".join(pieces)


def test_what_was_held_back_is_said_where_the_limit_comes_before_the_stop_string():
    asked = assistant(bigram_model("abc", forever=True))
    reply = asked.stream("Hi", stop="bcx", max_new_tokens=6)
    assert list(reply) == ["a", "bca", "bc"]
    assert reply.finish_reason == "length"


def test_every_sample_of_a_request_ends_at_its_own_stop_string_and_others_go_on():
    model, tokenizer = tiny_model(), byte_tokenizer()
    plain = [Request((5, 6, 7), 40, (), Sampling(), range(6)), Request((8, 9), 40, (), Sampling(), (7, 8))]
    whole = Engine(model, max_batch=4).generate(plain)
    texts = [tokenizer.decode(c.tokens) for c in whole[0]]
    stop = [texts[0][4:6], texts[1][9:11]]
    watched = Request((5, 6, 7), 40, (), Sampling(), range(6), stop_strings(tokenizer, stop))
    stopped, others = Engine(model, max_batch=4).generate([watched, plain[1]])
    assert [c.tokens for c in others] == [c.tokens for c in whole[1]]
    for completion, full in zip(stopped, whole[0], strict=True):
        assert completion.tokens == full.tokens[: len(completion.tokens)]
        found = [any(s in tokenizer.decode(full.tokens[:end]) for s in stop) for end in range(1, 41)]
        assert len(completion.tokens) == (found.index(True) + 1 if True in found else 40)
        assert completion.finish_reason == ("stop" if True in found else "length")
    assert len({len(c.tokens) for c in stopped}) > 2


# answers


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 9, 40])
def test_the_pieces_of_a_stream_join_to_the_plain_answer_wherever_it_is_cut(limit):
    asked = assistant(bigram_model(" 你👋x\t", forever=True) if limit < 40 else bigram_model("\t你👋x yz"))
    pieces = list(asked.stream("Hi", max_new_tokens=limit, seed=1))
    answer = asked.chat("Hi", max_new_tokens=limit, seed=1)
    assert "".join(pieces) == answer == answer.strip()
    assert all(pieces)
    assert "�" not in "".join(pieces[:-1])
    if limit == 40:
        assert answer == "你👋x yz"
        assert pieces == ["你", "👋", "x", " y", "z"]


def test_special_tokens_are_never_shown():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    model = bigram_model("ab")
    (a, b), bos = tokenizer("ab").input_ids, tokenizer.bos_token_id
    with torch.no_grad():
        model.lm_head.weight[:, a] = 0
        model.lm_head.weight[bos, a] = model.lm_head.weight[b, bos] = 3.0
    reply = assistant(model, tokenizer).stream("Hi")
    assert list(reply) == ["a", "b"]
    assert reply.tokens == [a, bos, b]
    assert reply.finish_reason == "stop"


def generated(asked, messages, limit, **options):
    """What transformers says, greedily."""
    (prompt,) = encode_prompts(asked.tokenizer, [messages], stops=asked.stops)
    output = asked.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=limit,
        do_sample=False,
        **options,
        eos_token_id=list(asked.stops),
        pad_token_id=asked.tokenizer.pad_token_id,
    )
    return decode_answer(asked.tokenizer, output[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "qwen3", "stories"])
def test_greedy_chat_says_what_transformers_generates(name):
    if name == "stories":
        asked = load(require(STORIES), device="cpu")
    else:
        model = tiny_model(name)
        tokenizer = byte_tokenizer()
        prepare_tokenizer(tokenizer, "test")
        asked = Assistant(model, tokenizer, stop_ids(tokenizer), 256)
    talk = (Message("user", "Once upon"), Message("assistant", "a time"), Message("user", "there was 一只猫"))
    answer = asked.chat(talk, max_new_tokens=40, temperature=0)
    assert answer == generated(asked, talk, 40)
    assert answer
    assert answer != generated(asked, talk[:1], 40)
    varied = asked.chat(talk, max_new_tokens=40, temperature=0, repetition_penalty=1.3)
    assert varied == generated(asked, talk, 40, repetition_penalty=1.3) != answer


def test_one_seed_gives_one_answer_and_other_seeds_others():
    asked = assistant(bigram_model("a", "b", "c", "d"))
    assert len({asked.chat("Hi", seed=7) for _ in range(5)}) == 1
    assert len({asked.chat("Hi", seed=seed) for seed in range(20)}) > 1
    assert len({asked.chat("Hi") for _ in range(40)}) > 1
    assert len({asked.chat("Hi", temperature=0) for _ in range(20)}) == 1
    without_ties = assistant(tiny_model())
    assert without_ties.chat("Hi", top_k=1, temperature=1, max_new_tokens=20) == without_ties.chat(
        "Hi", temperature=0, max_new_tokens=20
    )


def test_a_string_is_one_user_turn_and_mappings_are_messages():
    turns = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Bye")]
    assert read_conversation("Hi") == (Message("user", "Hi"),)
    assert read_conversation([vars(turn) for turn in turns]) == read_conversation(turns) == tuple(turns)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "empty list"),
        ("  ", "turn 1 (user) is empty"),
        ([{"content": "Hi"}], "role"),
        ([{"role": "user"}], "content"),
        ([{"role": "robot", "content": "Hi"}], "'robot'"),
        ([{"role": "user", "content": 3}], "the number 3"),
        (["Hi"], "not a message"),
        ([*HELLO, *HELLO], "turn 2 is of role user where assistant is due"),
        ([*HELLO, {"role": "assistant", "content": "Yes?"}], "End with a user"),
        ([*HELLO, {"role": "system", "content": "Be kind."}], "role system"),
        ([{"role": "system", "content": "Be kind."}], "user turn"),
        ("\ud800", "surrogate"),
    ],
)
def test_a_malformed_conversation_is_one_clear_error(messages, part):
    with pytest.raises(RequestError, match=r"^messages") as caught:
        assistant(tiny_model()).stream(messages)
    assert part in str(caught.value)


def test_a_conversation_without_room_for_an_answer_is_refused_with_its_numbers():
    asked = assistant(bigram_model("abc", forever=True, context=64))
    (frame,) = encode_prompts(asked.tokenizer, [read_conversation("x")], stops=asked.stops)
    for length in (64 - len(frame) + 1, 64 - len(frame) + 50):
        with pytest.raises(RequestError, match=f"has {len(frame) - 1 + length} tokens .* takes 64"):
            asked.stream("x" * length)
    reply = asked.stream("x" * (64 - len(frame)))
    assert "".join(reply) == "a"
    assert (reply.limit, reply.finish_reason) == (1, "length")


def test_the_smaller_of_limit_and_room_holds():
    asked = assistant(bigram_model("abc", forever=True, context=64))
    (frame,) = encode_prompts(asked.tokenizer, [read_conversation("x")], stops=asked.stops)
    whole = asked.stream("x", max_new_tokens=1000)
    assert len("".join(whole)) == whole.limit == 64 - len(frame)
    part = asked.stream("x", max_new_tokens=5)
    assert "".join(part) == "abcab"
    assert part.limit == 5


@pytest.mark.parametrize(
    "setting",
    [
        *({"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 2}),
        *({"top_k": -1}, {"repetition_penalty": 0}, {"repetition_penalty": float("nan")}, {"stop": ["a", ""]}),
        {"stop": ""},
    ],
)
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(RequestError, match=f"^{next(iter(setting))} = "):
        assistant(tiny_model()).chat("Hi", **setting)


def test_what_a_chat_template_refuses_is_a_clear_error():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    asked = assistant(bigram_model("a"), tokenizer)
    assert asked.chat(HELLO) == "a"
    with pytest.raises(RequestError, match="no system turns"):
        asked.chat([{"role": "system", "content": "Be kind."}, *HELLO])


# giving up


@pytest.mark.parametrize("how", ["close", "let go", "interrupt"])
def test_an_answer_given_up_halfway_frees_its_engine_and_the_next_one_is_whole(how, monkeypatch):
    engines = []

    class Seen(Engine):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            engines.append(self)

    monkeypatch.setattr("chatsmith.engine.engine.Engine", Seen)
    asked = assistant(bigram_model("abc", forever=True).train())
    reply = asked.stream("Hi", max_new_tokens=50)
    assert next(reply) == "a"
    *_, engine = engines  # after that of the trial whether the model carries its state
    cache = engine._forward._cache
    assert cache.bytes > 0
    assert not engine.idle
    if how == "close":
        reply.close()
        assert list(reply) == []
        assert reply.finish_reason is None
    elif how == "let go":
        del reply
    else:
        monkeypatch.setattr(Seen, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(reply)
        monkeypatch.undo()
    gc.collect()
    assert engine.idle
    assert cache.bytes == 0
    assert asked.model.training, "as it was before"
    assert asked.chat("Hi", max_new_tokens=5) == "abcab"


def test_two_answers_may_be_spoken_at_the_same_time():
    asked = assistant(bigram_model("abc", forever=True))
    one, other = asked.stream("Hi", max_new_tokens=4), asked.stream("Hello there", max_new_tokens=6)
    assert [next(one), next(other), next(other), next(one)] == ["a", "a", "b", "b"]
    assert "".join(one) == "ca"
    assert "".join(other) == "cabc"


def test_all_answers_come_from_one_engine_and_a_copy_has_its_own():
    asked = assistant(bigram_model("abc", forever=True))
    engine = asked.engine
    assert asked.chat("Hi", max_new_tokens=4) == "abca"
    assert asked.engine is engine
    copied = copy.deepcopy(asked)
    assert copied.model is not asked.model
    assert copied.engine.model is copied.model
    with torch.no_grad():  # another model now, which the first one does not notice
        copied.model.lm_head.weight.copy_(bigram_model("xyz", forever=True).lm_head.weight)
    assert copied.chat("Hi", max_new_tokens=4) == "xyzx"
    assert asked.chat("Hi", max_new_tokens=4) == "abca"


def test_another_engine_is_made_only_where_the_settings_differ():
    asked = assistant(tiny_model())
    assert asked.fitted(EngineConfig()) is asked
    for settings in (EngineConfig(max_batch=3), EngineConfig(compile=True)):
        other = asked.fitted(settings)
        assert (other.max_batch, other.compiled) == (settings.max_batch, settings.compile)
        assert other.model is asked.model
        assert other.fitted(settings) is other


@pytest.mark.parametrize("seed", range(20))
def test_white_space_around_an_answer_is_not_shown_and_all_within_it_is(seed):
    tokenizer, rng = byte_tokenizer(), random.Random(seed)
    text = "".join(rng.choice("ab \n\t中") for _ in range(rng.randrange(20)))
    ids = [*tokenizer(text).input_ids, *rng.choice(([], [2]))]
    speech = Speech(tokenizer, stops=(2,))
    pieces = [speech.add(id, last=number == len(ids) - 1) for number, id in enumerate(ids)]
    assert "".join(pieces) == text.strip()
    for number in range(len(pieces)):
        said = "".join(pieces[: number + 1])
        assert said == said.strip()


# a talk in the terminal


def talked(model, questions, seed, *, alone=False):
    talk = Talk(assistant(model), {"max_new_tokens": 20, "temperature": 1.0, "top_p": 1.0}, seed=seed, alone=alone)
    for question in questions:
        talk.said = [*talk.said, Exchange(question, "".join(talk.ask(question, talk.said)), cut=False)]
    return talk


def test_a_seed_makes_a_talk_repeatable_and_its_answers_differ():
    model = bigram_model(*"abcdefgh")
    one, again, other = (talked(model, ["Hi"] * 12, seed).said for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert len({exchange.answer for exchange in one}) > 1


def test_a_question_that_is_asked_alone_has_no_past_and_is_a_record_of_its_own():
    model, questions = tiny_model(), ["Hi", "你好", "Bye"]
    apart = talked(model, questions, 1, alone=True)
    together = talked(model, questions, 1)
    for index, question in enumerate(questions):
        fresh = talked(model, [], 1)
        for _ in range(index):
            fresh.ask("x", [])  # each answer has a seed of its own
        assert "".join(fresh.ask(question, [])) == apart.said[index].answer
    assert together.said[0] == apart.said[0]
    assert together.said[1:] != apart.said[1:]
    assert [len(record["messages"]) for record in apart.records()] == [2, 2, 2]
    assert [len(record["messages"]) for record in together.records()] == [6]


# loading


def save(model, directory):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    directory.mkdir(parents=True)
    save_model(model, tokenizer, directory, stops=[tokenizer.eos_token_id], card="")


def make_run(directory, *stages):
    """A run whose models say the name of their stage."""
    for stage, path, answer in (("sft", "sft/model", "sft"), ("rl", "rl/actor", "rl"), ("rl", "rl/ema", "ema")):
        if stage in stages:
            save(bigram_model(answer), directory / path)
    directory.mkdir(exist_ok=True)
    manifest = {"stages": {stage: {"status": "passed", "verdict": "good"} for stage in stages}, "config": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_a_run_gives_its_best_model_or_the_one_asked_for(tmp_path):
    run = make_run(tmp_path / "run", "sft", "rl")
    assert load(run, device="cpu").chat("Hi") == "rl"
    assert [load(run, stage=stage, device="cpu").chat("Hi") for stage in ("sft", "rl", "ema")] == ["sft", "rl", "ema"]
    early = make_run(tmp_path / "early", "sft")
    save(bigram_model("rl"), early / "rl" / "actor")  # of an attempt that is being run again
    assert load(str(early), device="cpu").chat("Hi") == "sft"
    assert load(run / "rl" / "ema", device="cpu").chat("Hi") == "ema"


def test_saving_into_the_directory_one_is_in(tmp_path, monkeypatch):
    assistant = load(make_run(tmp_path / "run", "sft"), device="cpu")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assistant.save(".")
    assert load(tmp_path / "here", device="cpu").chat("Hi") == "sft"


def test_saving_deletes_nothing_but_what_was_saved_before(tmp_path):
    assistant = load(make_run(tmp_path / "run", "sft"), device="cpu")
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "thesis.txt").write_text("mine")
    bigram_model("sft").save_pretrained(tmp_path / "theirs")
    for directory in (mine, tmp_path / "theirs", tmp_path / "run"):
        before = {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}
        with pytest.raises(RunError, match="not empty, and what is in it was not saved by chatsmith"):
            assistant.save(directory)
        assert {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")} == before
    for name in (".model.old", ".model.partial", "model.old"):
        (tmp_path / name).mkdir()
    assistant.save(tmp_path / "model")
    assistant.save(tmp_path / "model")  # what a save made is replaced
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"model/notes\.txt: not made by chatsmith"):
        assistant.save(tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").chat("Hi") == "sft"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", "mine", "theirs", "model", ".model.old", ".model.partial", "model.old"}


def test_what_cannot_be_loaded_is_refused_with_the_reason(tmp_path):
    early = make_run(tmp_path / "early", "sft")
    save(tiny_reward_model(), tmp_path / "early" / "reward" / "model")
    (tmp_path / "early" / "rl" / "critic").mkdir(parents=True)
    (tmp_path / "early" / "rl" / "critic" / "value_head.safetensors").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for path, options, kind, part in [
        (early, {"stage": "rl"}, RunError, "no rl model .yet.. It has: sft"),
        (early, {"stage": "reward"}, ConfigError, 'no stage "reward"'),
        (early / "sft" / "model", {"stage": "sft"}, ConfigError, "no run"),
        (early / "reward" / "model", {}, ModelError, "reward model, which scores"),
        (early / "rl" / "critic", {}, ModelError, "critic"),
        (early / "manifest.json", {}, RunError, "a file"),
        (make_run(tmp_path / "begun"), {}, RunError, "finished yet"),
        (tmp_path / "broken", {}, RunError, "not the manifest of a run"),
        (tmp_path / "empty", {}, ModelError, "config.json is missing"),
        (tmp_path / "erly", {}, RunError, "no such directory. In .* there are: begun, broken, early, empty"),
        ("runs/no-such-run", {}, RunError, "no such directory"),
        (early, {"device": "tpu"}, ConfigError, "device = 'tpu'"),
        (early, {"dtype": "int4"}, ConfigError, "dtype = 'int4'"),
    ]:
        with pytest.raises(kind, match=part):
            load(path, **options)


# the command


def test_the_command_line_has_the_defaults_of_the_python_interface():
    command, method = (inspect.signature(function).parameters for function in (cli.chat, Assistant.stream))
    for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"):
        assert command[name].default == method[name].default
    settings = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")
    assert set(settings) <= command.keys()
    assert {*settings, "self", "messages"} == method.keys() == inspect.signature(Assistant.chat).parameters.keys()
