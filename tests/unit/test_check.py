"""What is said of data before training: each sign, each finding, each with a case in which it must not be said."""

import json

import pytest
from tiny import SHARED, byte_tokenizer, require

from chatsmith.config import Config
from chatsmith.data.licences import non_commercial
from chatsmith.data.signs import SIGNS, ends, excerpt, script, signs
from chatsmith.errors import ConfigError, DataError, ModelError
from chatsmith.inspection.check import check, facts_of
from chatsmith.inspection.findings import SEVERITIES
from chatsmith.inspection.readers import Reader, readers
from chatsmith.types import Answer, Message, Record


def record(question="What is a fox?", *answers, text=""):
    prompt = (Message("user", question),) if question else ()
    return Record(prompt=prompt, answers=tuple(answers), text=text, origin="here:1")


def seen(question, answer="It is an animal."):
    return {name for name, _ in signs(record(question, Answer(answer)))}


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("her fiancÃ© and her mother", "garbled"),
        ("â€œhiâ€\x9d said the squirrel", "garbled"),
        ("20Â°C", "garbled"),
        ("ä½\xa0å¥½", "garbled"),  # 你好 as Latin-1
        ("锟斤拷", "garbled"),
        ("the wo\ufffdld", "lost"),
        ("a\u200bb", "invisible"),
        ("a\x1b[31mb", "invisible"),
        ("a\u202eb", "invisible"),
        ("it&#39;s", "entities"),
        ("R&amp;B", "entities"),
        ("I am {{name}}, hello", "placeholder"),
        ("I am {{ user.name }}", "placeholder"),
        ("<|im_start|>user", "template"),
        ("[INST] hello [/INST]", "template"),
        ("### Response:\nhello", "template"),
    ],
)
def test_signs_in_a_text_are_seen_in_prompts_answers_and_plain_texts(text, sign):
    assert sign in seen(text)
    assert sign in seen("What?", text)
    assert sign in {name for name, _ in signs(record("", text=text))}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "São Paulo, Â, Ã, NÃO, Français, naïve, åäö, “quoted” – it’s",
            "AT&T and R&B; a & b",
            "{not this} {{}} {{1}}",
        ),
        *(
            "a <b> c | d <|> e",
            "Instructions: none. ### A heading",
            "tabs\tand\nlines\r\n",
            "क्\u200dष 👩\u200d🚀 می\u200cخواهم",
        ),
        *("你好，世界。", "Ünïcödé"),
    ],
)
def test_ordinary_text_shows_no_sign(text):
    assert not seen(text) & {"garbled", "lost", "invisible", "entities", "placeholder", "template"}


def test_signs_of_answers():
    long = "Translate this sentence into French, please."
    assert "speaker" in seen("Hi", "Hello.\n\nHuman: And now?")
    assert "speaker" not in seen("Hi", "The Human: a history of the user.")
    assert "speaker" not in seen("Human: Hi", "Hello.")
    assert "echo" in seen(long, f"{long} Voilà.")
    assert "echo" not in seen("Hi", "Hi there.")
    assert "echo" not in seen(long, "Voilà.")
    assert "refusal" in seen("Hi", "As an AI language model, I have no opinion.")
    assert "refusal" in seen("你好", "抱歉，我无法回答。")
    assert "refusal" not in seen("Hi", "The sheriff said: I cannot.")
    assert seen("Hi") == set()


def test_signs_of_ranked_answers():
    def ranked(*answers):
        return {name for name, _ in signs(record("Hi", *(Answer(text, score) for text, score in answers)))}

    assert ranked(("a.", 1.0), ("b.", 1.0)) == {"tie"}
    assert ranked(("a.", 1.0), ("a.", 0.0), ("b.", 0.0)) == {"contradiction"}
    assert ranked(("a.", 1.0), ("b.", 0.0), ("b.", 0.0)) == set()
    assert ranked(("a.", None), ("b.", None)) == set()


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "It is done.",
            'She said: "It is done."',
            "Really?!",
            "它是一只狐狸。",
            "Paris",
            "42",
            "So be it… 🙂",
            "नमस्ते दुनिया, यह एक वाक्य है।",
        ),
        *(
            "Here:\n\n- one two three four five six seven\n- eight nine ten eleven twelve thirteen",
            "1. a\n2. b c d e f g h",
        ),
        *("```python\nprint(1)\n```", "| a | b c d e f g | h", "The total of all of these is 42", "so good! #one #two"),
        *("Kind regards,\nA friend", "**The end of a long sentence in bold.**"),
    ],
)
def test_answers_that_end(answer):
    assert ends(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "The quick brown fox jumps over the",
            "It is good, because it is new,",
            "These are the steps that you need to take:",
        ),
        *(
            "```python\nprint(1)",
            "这只狐狸每天都跳过那条懒惰的狗因为",
            "First a sentence. Then another one that does not get to its",
        ),
    ],
)
def test_answers_that_break_off(answer):
    assert not ends(answer)


def test_scripts_are_told_by_their_letters():
    assert script("Hello, wörld! 42") == script("plain") == "Latin"
    assert script("你好，世界。GPT") == "Han"
    assert script("これは日本語の文です") == "Han and Kana"
    assert script("안녕하세요 세계") == "Hangul"
    assert script("Привет, мир") == "Cyrillic"
    assert script("שלום") == "Hebrew"
    assert script("مرحبا") == "Arabic"
    assert script("สวัสดี") == "Thai"
    assert script("42 + 1 = ?") == script("…！？") == script("") == ""


def test_an_excerpt_is_one_line_around_the_place():
    text = "a" * 100 + "\n\nX\u200b" + "b" * 100
    assert excerpt(text, 102) == f"…{'a' * 38} X<U+200B>{'b' * 38}…"
    assert excerpt("short", 0) == "short"


@pytest.mark.parametrize(
    "licence",
    [
        *(
            "cc-by-nc-4.0",
            "CC BY-NC 4.0",
            "cc-by-nc-sa-3.0",
            "Attribution-NonCommercial 4.0 International",
            "other, cc-by-nc-nd-4.0",
        ),
        *(
            "for research use only",
            "Research only.",
            "non-commercial research",
            "Academic Research Purposes Only: academic use only",
        ),
    ],
)
def test_licences_that_forbid_commercial_use(licence):
    assert non_commercial(licence)


@pytest.mark.parametrize(
    "licence",
    [
        *(
            None,
            "",
            "mit",
            "apache-2.0",
            "cc-by-4.0",
            "cc-by-sa-4.0",
            "CDLA-Sharing-1.0",
            "MIT License",
            "openrail",
            "cc-by-ncsomething",
        ),
        "free for commercial and non-commercial use",
    ],
)
def test_licences_that_do_not_say_so(licence):
    assert not non_commercial(licence)


# Findings


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count, start=0):
    return [
        {"prompt": f"Question {i * i} about {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, not ever {i}."}
        for i in range(start, start + count)
    ]


def config(*sources, **data):
    return Config(data={"sources": tuple(map(str, sources)), "held_out": 0.2, **data})


def found(facts, words):
    """The one finding that says so, or None."""
    matching = [finding for finding in facts.findings if words in finding.what]
    assert len(matching) < 2
    return matching[0] if matching else None


def test_too_few_held_out_prompts_for_the_gate_of_stage_three_are_an_error_of_a_run(tmp_path):
    file = lines(tmp_path / "a.jsonl", pairs(30))
    for whole_run, spec, severity in ((True, file, "error"), (False, f"rl:{file}", "error"), (False, file, "warning")):
        few = found(check(config(spec), {}, whole_run=whole_run), "held-out prompts, and its gate judges from 16 on")
        assert few.severity == severity
    assert (
        found(check(config(f"rl:{lines(tmp_path / 'b.jsonl', pairs(200))}"), {}, whole_run=False), "its gate") is None
    )


def test_of_findings_of_one_severity_the_largest_losses_come_first(tmp_path):
    rows = [*pairs(200), *({"prompt": f"why {i}", "answer": "x" * 3000} for i in range(60)), *["{\n"] * 10]
    facts = check(config(lines(tmp_path / "a.jsonl", rows), on_error="skip"), {}, whole_run=True)
    shares = [(SEVERITIES.index(f.severity), -f.count / max(1, f.of)) for f in facts.findings]
    assert shares == sorted(shares)
    assert len({share for severity, share in shares if severity == 1}) > 1


def test_good_data_has_nothing_to_complain_of(tmp_path):
    facts = check(config(lines(tmp_path / "a.jsonl", pairs(100))), {}, whole_run=True)
    assert [f.what for f in facts.findings if f.severity != "note"] == [
        f"{tmp_path / 'a.jsonl'}: the better answer is the shorter one"
    ]
    assert not facts.failed and facts.step == 1 and facts.unit == "characters"
    (source,) = facts.sources
    assert source.records == 100 and source.scripts == {"Latin": 1.0} and source.licence is None
    assert {stage: sum(counts) for stage, counts in source.stages.items()} == {
        stage: facts.stages[stage].train + facts.stages[stage].held_out for stage in facts.stages
    }
    assert sum(sum(counts) for counts in source.stages.values()) == 100
    assert set(facts.stages) == {"sft", "reward", "rl"}


def test_bad_records_are_counted_by_reason_and_are_an_error_where_a_run_would_stop(tmp_path):
    rows = [*pairs(50), '{"prompt": 3\n', "{\n", {"prompt": "a", "chosen": "", "rejected": "b"}]
    file = lines(tmp_path / "a.jsonl", rows)
    facts = check(config(file), {}, whole_run=True)
    bad = found(facts, "bad records")
    assert (bad.severity, bad.count, bad.of) == ("error", 3, 53) and facts.failed
    assert [example.where for example in bad.examples] == ["a.jsonl:51", "a.jsonl:52", "a.jsonl:53"]
    assert "answer 1 is empty" in bad.examples[-1].text
    assert facts.sources[0].dropped == 3
    two_stages = {"stages": ("sft", "reward")}  # too few for the gate of the third
    skipping = check(config(file, on_error="skip").model_copy(update=two_stages), {}, whole_run=True)
    assert found(skipping, "bad records").severity == "warning" and not skipping.failed


def test_reasons_that_differ_in_numbers_are_one(tmp_path):
    rows = [*pairs(50), *(" " * i + "{broken\n" for i in range(5))]
    facts = check(config(lines(tmp_path / "a.jsonl", rows)), {}, whole_run=True)
    (reason,) = facts.sources[0].reasons
    assert reason.count == 5 and reason.first.endswith("a.jsonl:51")


def test_a_source_that_cannot_be_read_does_not_hide_what_is_wrong_with_the_others(tmp_path):
    good = lines(tmp_path / "a.jsonl", [*pairs(50), "{\n"])
    facts = check(config(tmp_path / "none.jsonl", good), {}, whole_run=True)
    assert "none.jsonl" in found(facts, "a source cannot be read").remedy
    assert found(facts, "bad records").count == 1


def test_files_beside_the_data_that_nobody_reads_are_named(tmp_path):
    lines(tmp_path / "in/a.jsonl", pairs(50))
    assert found(check(config(tmp_path / "in"), {}, whole_run=True), "not read") is None
    for number in range(7):
        (tmp_path / f"in/{number}.xlsx").touch()
    finding = found(check(config(tmp_path / "in"), {}, whole_run=True), "not read")
    assert finding.severity == "warning"
    assert finding.what == f"{tmp_path / 'in'}: files of other kinds in it, not read (7): 0.xlsx, 1.xlsx, 2.xlsx, ..."
    assert ".jsonl" in finding.remedy


def test_a_stage_without_records_is_an_error_where_it_is_asked_for(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?", "answer": "Yes."} for i in range(50)])
    facts = check(config(f"sft:{file}"), {}, whole_run=False)
    assert found(facts, "no record can serve reward").severity == "note" and not facts.failed
    facts = check(config(f"sft:{file}"), {}, whole_run=True)
    assert found(facts, "reward gets 0 records").severity == "error" and facts.failed
    few = lines(tmp_path / "few.jsonl", [{"prompt": "One?", "answer": "Yes."}])
    assert check(config(f"sft:{few}"), {}, whole_run=False).failed  # no record is held out


def test_a_source_given_to_a_stage_that_it_cannot_serve_is_an_error_and_nothing_follows_from_it(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?"} for i in range(50)])
    facts = check(config(f"sft:{file}"), {}, whole_run=True)
    (error,) = (finding for finding in facts.findings if finding.severity == "error")
    assert "cannot serve the stage sft" in error.remedy


def test_a_wrong_configuration_is_raised(tmp_path):
    with pytest.raises(ConfigError):
        check(config(f"sfd:{lines(tmp_path / 'a.jsonl', pairs(5))}"), {}, whole_run=True)


def test_exact_copies_are_told_inside_a_source_and_between_sources(tmp_path):
    one = lines(tmp_path / "one.jsonl", [*pairs(50), *pairs(5)])
    two = lines(tmp_path / "two.jsonl", [*pairs(10, start=20), *pairs(50, start=100)])
    facts = check(config(one, two), {}, whole_run=True)
    inside, between = found(facts, "in the same source"), found(facts, "in another source")
    assert (inside.count, between.count, inside.of) == (5, 10, 115)
    assert inside.examples[0].where == "one.jsonl:51 = one.jsonl:1"
    assert between.examples[0].where == "two.jsonl:1 = one.jsonl:21"
    assert not found(check(config(lines(tmp_path / "c.jsonl", pairs(50))), {}, whole_run=True), "exact copies")


WORDS = [f"word{letter}" for letter in "abcdefghijklmnopqrs"]


def questions(count):
    """Questions that share no two neighbouring words with each other."""
    return [" ".join(f"{word}{i}" for word in WORDS) for i in range(count)]


def test_a_held_out_question_that_is_trained_on_is_a_leak(tmp_path):
    rows = [{"prompt": text, "answer": f"It is {i}."} for i, text in enumerate(questions(200))]
    clean = check(config(f"sft:{lines(tmp_path / 'a.jsonl', rows)}"), {}, whole_run=False)
    assert not found(clean, "held-out records")

    # a full stop more is another first message to the split, and the same words to a reader
    copies = [{"prompt": text + ".", "answer": f"Now {i}."} for i, text in enumerate(questions(200))]
    facts = check(config(f"sft:{lines(tmp_path / 'b.jsonl', rows + copies)}"), {}, whole_run=False)
    leak = found(facts, "in the same words")
    kept = facts.stages["sft"].held_out
    assert leak.severity == "error" and facts.failed
    assert leak.of == kept and 0.6 * kept < leak.count < kept  # of 2 copies one is held out, the other trained on: 80 %
    held_out, trained = leak.examples[:2]
    assert held_out.text.rstrip(".…") == trained.text.rstrip(".…") and held_out.where != trained.where

    # one word of twenty differs: 16 or 17 of 20 pairs are shared, 0.8 or more of the union at the end only
    nearly = [
        {"prompt": f"{text.rsplit(' ', 1)[0]} other", "answer": f"So {i}."} for i, text in enumerate(questions(200))
    ]
    facts = check(config(f"sft:{lines(tmp_path / 'c.jsonl', rows + nearly)}"), {}, whole_run=False)
    assert not found(facts, "in the same words")
    leak = found(facts, "in nearly the same words")
    assert leak.severity == "warning" and not facts.failed
    assert 0.6 * leak.of < leak.count < leak.of
    assert found(facts, "nearly what another one asks").count == 200


def test_a_leak_from_the_training_of_another_stage_counts_too(tmp_path):
    asked = questions(200)
    sft = lines(tmp_path / "a.jsonl", [{"prompt": text, "answer": "It is."} for text in asked])
    rl = lines(tmp_path / "b.jsonl", [{"prompt": text + "!"} for text in asked])
    facts = check(config(f"sft:{sft}", f"rl:{rl}"), {}, whole_run=False)
    assert {f.what.partition(":")[0] for f in facts.findings if "in the same words" in f.what} == {"sft", "rl"}


def test_questions_that_several_stages_train_on_are_counted(tmp_path):
    def several(*sources):
        return found(check(config(*sources, held_out=1e-9), {}, whole_run=False), "more than one stage")

    asked = questions(200)
    a = lines(tmp_path / "a.jsonl", [{"prompt": text, "answer": "It is."} for text in asked[:150]])
    b = lines(tmp_path / "b.jsonl", [{"prompt": text.upper()} for text in asked[100:]])
    finding = several(f"sft:{a}", f"rl:{b}")
    assert (finding.severity, finding.count, finding.of) == ("note", 50, 200)
    assert [example.where for example in finding.examples] == ["a.jsonl:101", "b.jsonl:1"]
    assert several(f"rl:{a}", f"rl:{b}", f"ptx:{a}") is None  # one learns, and mixed text is given in addition


def test_a_standard_answer_on_both_sides_is_named(tmp_path):
    standard = "I am only a small assistant and know nothing about this; please ask someone who does, or read a book."
    rows = [{"prompt": text, "answer": standard} for text in questions(100)]
    facts = check(config(f"sft:{lines(tmp_path / 'a.jsonl', rows)}"), {}, whole_run=False)
    shared = found(facts, "as answers to other questions")
    assert shared.count == shared.of == facts.stages["sft"].held_out
    short = [row | {"answer": "Yes."} for row in rows]
    assert not found(check(config(f"sft:{lines(tmp_path / 'b.jsonl', short)}"), {}, whole_run=False), "other questions")


def test_preferences_for_length_alone_are_a_warning(tmp_path):
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes" + "!" * (i % 10), "rejected": "Well!!!!"} for i in range(100)]
    # 8 letters against 3 + i % 10: shorter in 5 of 10, longer in 4
    facts = check(config(lines(tmp_path / "a.jsonl", rows)), {}, whole_run=True)
    assert not found(facts, "the better answer is the")
    rows = [row | {"chosen": row["chosen"] + "!" * 6} for row in rows]
    facts = check(config(lines(tmp_path / "b.jsonl", rows)), {}, whole_run=True)
    one_sided = found(facts, "is the longer one")  # now 9 letters or more
    assert (one_sided.severity, one_sided.count, one_sided.of) == ("warning", 100, 100)


def test_signs_are_a_warning_where_frequent_and_a_note_elsewhere(tmp_path):
    many = lines(tmp_path / "many.jsonl", [row | {"chosen": "It is &lt;b&gt;."} for row in pairs(50)])
    few = lines(tmp_path / "few.jsonl", [{"prompt": "What is &lt;?", "answer": "Less."}, *pairs(500, start=100)])
    facts = check(config(many, few), {}, whole_run=True)
    warning, note = (finding for finding in facts.findings if finding.what == SIGNS["entities"].what)
    assert (warning.severity, warning.count, warning.of) == ("warning", 50, 50)
    assert (note.severity, note.count, note.of) == ("note", 1, 501)
    assert note.examples[0].where == "few.jsonl:1" and "&lt;" in note.examples[0].text


def test_licences_are_named(tmp_path):
    lines(tmp_path / "data/a.jsonl", pairs(50))
    (tmp_path / "data/LICENSE").write_text("CC BY-NC 4.0\n")
    facts = check(config(tmp_path / "data"), {}, whole_run=True)
    assert "CC BY-NC 4.0" in found(facts, "not for commercial use").what
    assert facts.sources[0].non_commercial


def test_lengths_are_those_of_the_stages_and_what_is_too_long_is_counted(tmp_path, model_directory):
    model = model_directory("llama")  # one token per byte, 256 positions
    answered = [{"prompt": "x" * 10, "answer": "y" * length} for length in [20] * 60 + [400] * 40]
    rows = [row | {"prompt": f"{i:010}"} for i, row in enumerate(answered)]
    file = lines(tmp_path / "a.jsonl", rows)
    given = config(f"sft:{file}", max_tokens=100).model_copy(update={"actor_model": str(model)})
    facts = check(given, readers(given), whole_run=False)
    stage = facts.stages["sft"]
    # the default template: "Human: " prompt "\n\n" "Assistant:\n" answer </s>
    assert stage.lengths["prompt"].median == 7 + 10 + 2 + 11
    assert stage.lengths["answer"].longest == 400 + 1 and stage.lengths["answer"].median == 20 + 1
    assert sum(stage.lengths["whole"].counts) == stage.measured == stage.train
    # bin 11 is of 45.3 to 64, bin 17 of 362 to 512
    assert [i for i, count in enumerate(stage.lengths["whole"].counts) if count] == [11, 17]
    assert stage.too_long == stage.lengths["whole"].counts[17] and stage.limit == 100
    long = found(facts, "longer than 100 tokens")
    assert (long.severity, long.count) == ("warning", stage.too_long)
    given = given.model_copy(update={"data": given.data.model_copy(update={"max_tokens": 40})})
    assert found(check(given, readers(given), whole_run=False), "longer than 40 tokens").severity == "error"
    assert check(config(f"sft:{file}"), {}, whole_run=False).stages["sft"].lengths["answer"].longest == 400


def test_only_some_records_are_looked_at_where_there_are_too_many(tmp_path):
    from chatsmith.intake import read_sources

    given = config(lines(tmp_path / "a.jsonl", pairs(100) + pairs(100)))
    facts = facts_of(given, read_sources(given), {}, most=60)
    assert facts.step == 4 and facts.sources[0].records == 200
    assert not found(facts, "exact copies")
    assert found(facts_of(given, read_sources(given), {}, most=200), "exact copies").count == 100


def test_real_data_is_what_its_readme_says():
    data = require(SHARED / "data")
    sources = [data / "llama-factory/identity.json", data / "instruction-wild", data / "tinystories-1000"]
    facts = check(config(*sources), {}, whole_run=False)
    assert [(source.records, source.dropped) for source in facts.sources] == [(91, 0), (1731, 5), (1000, 0)]
    placeholders = found(facts, "placeholders")
    assert placeholders.severity == "warning" and placeholders.of == 91 and placeholders.count > 80
    broken = found(facts, "bad records")
    assert broken.severity == "error" and broken.count == 5
    assert {example.where.partition(":")[0] for example in broken.examples} == {
        "instruction-wild/user_2.jsonl",
        "instruction-wild/user_3.jsonl",
    }
    assert found(facts, "garbled").of == 1000  # a thousand stories, some with â€œ


# What goes wrong while one looks


def test_whatever_is_raised_by_a_look_is_a_warning_with_its_place(tmp_path, monkeypatch):
    from chatsmith.inspection import counts, record

    def strange(found):
        if "Question 7?" in found.prompt[0].content:
            raise ZeroDivisionError("strange\nindeed")
        return signs(found)

    file = lines(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?", "answer": f"Fine {i}."} for i in range(50)])
    monkeypatch.setattr(counts, "signs", strange)
    given = config(str(file))
    facts = check(given, {}, whole_run=False)
    failure = found(facts, "cannot be looked at")
    assert (failure.severity, failure.count, failure.of) == ("warning", 1, 50)
    assert failure.examples[0].where.endswith("a.jsonl:8")
    assert failure.examples[0].text.startswith("ZeroDivisionError: strange indeed")
    assert facts.sources[0].records == 50

    from chatsmith.intake import read_sources

    written = record.write_facts(given, read_sources(given), tmp_path)
    assert found(written, "cannot be looked at").count == 1
    assert "Question 1" not in json.dumps([f.what for f in written.findings])


LOOKS = ("facts_of", "readers", "sample", "view", "share")


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize(
    "error", [RuntimeError("strange"), KeyError("x"), ModelError("a template"), DataError("a row")]
)
def test_no_part_of_the_look_ends_a_run(tmp_path, monkeypatch, model_directory, name, error):
    from chatsmith.inspection import record
    from chatsmith.intake import read_sources

    def fails(*args, **settings):
        raise error

    file = lines(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?", "answer": f"Fine {i}."} for i in range(50)])
    given = config(str(file)).model_copy(update={"actor_model": str(model_directory("llama"))})
    monkeypatch.setattr(record, name, fails)
    facts = record.write_facts(given, read_sources(given), tmp_path)
    written = json.loads((tmp_path / "data.json").read_text())
    assert [finding["what"] for finding in written["findings"]] == [finding.what for finding in facts.findings]
    if (name, type(error)) != ("view", DataError):  # what no template can carry is found where it is measured
        assert any(str(error).strip("'") in example.text for f in facts.findings for example in f.examples)


def test_a_sketch_that_fails_leaves_out_the_copies_alone(tmp_path, monkeypatch):
    from chatsmith.inspection import copies

    def fails(words):
        raise OverflowError("too many words")

    monkeypatch.setattr(copies, "sketch", fails)
    file = lines(tmp_path / "a.jsonl", [{"prompt": f"Question {i}?", "answer": f"Fine {i}."} for i in range(300)])
    facts = check(config(str(file)), {}, whole_run=False)
    assert found(facts, "copies cannot be looked for").severity == "warning"
    assert facts.sources[0].records == 300


def test_the_cause_of_an_empty_side_is_named(tmp_path):
    alike = [{"prompt": "Write a review.", "chosen": f"good {i}", "rejected": "bad"} for i in range(200)]
    facts = check(config(f"reward:{lines(tmp_path / 'a.jsonl', alike)}"), {}, whole_run=False)
    finding = found(facts, "it needs both")
    assert "all its 200 records have the same first message" in finding.remedy
    assert "held_out" not in finding.remedy
    few = [{"prompt": f"Question {i}?", "answer": "So."} for i in range(2)]
    facts = check(config(f"sft:{lines(tmp_path / 'b.jsonl', few)}"), {}, whole_run=False)
    assert "raise --data.held_out" in found(facts, "it needs both").remedy


def test_fields_that_nobody_reads_are_named_with_their_counts(tmp_path):
    rows = [
        {"prompt": f"Question {i}?", "answer": "So.", "id": i} | ({"topic": "x"} if i < 3 else {}) for i in range(9)
    ]
    file = lines(tmp_path / "a.jsonl", rows)
    finding = found(check(config(str(file)), {}, whole_run=False), "no part of a record")
    assert finding.severity == "note"
    assert finding.what.endswith(": id (9), topic (3)")
    mapped = {"source": str(file), "prompt": "{prompt} {id}", "answer": "{answer}"}
    finding = found(check(Config(data={"sources": (mapped,)}), {}, whole_run=False), "no part of a record")
    assert finding.what.endswith(": topic (3)")


def test_marked_and_lonely_scored_answers_are_counted(tmp_path):
    marked = [{"prompt": f"Question {i}?", "answer": "So.", "label": i % 2} for i in range(8)]
    scored = [{"prompt": f"Query {i}?", "answer": "So.", "score": i} for i in range(8)]
    facts = check(
        config(str(lines(tmp_path / "a.jsonl", marked)), str(lines(tmp_path / "b.jsonl", scored))), {}, whole_run=False
    )
    assert (found(facts, "marked bad").count, found(facts, "marked bad").of) == (4, 8)
    assert (found(facts, "no other answer beside").severity, found(facts, "no other answer beside").count) == (
        "warning",
        8,
    )


def test_a_template_that_cannot_render_one_record_is_a_warning_and_one_that_renders_none_an_error(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    reader = Reader(tokenizer, (tokenizer.eos_token_id,), 100)
    asked = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "So."}] for i in range(40)
    ]
    for number in range(5, 10):
        asked[number] = [{"role": "system", "content": "Be brief."}, *asked[number]]
    file = lines(tmp_path / "a.jsonl", [{"messages": turns} for turns in asked])
    facts = check(config(f"sft:{file}"), {"sft": reader}, whole_run=False)
    failure = found(facts, "sft: records that the chat template")
    assert failure.severity == "error"  # a run stops there, unless it is to skip
    assert 0 < failure.count <= 5  # some are held out
    assert {int(example.where.rpartition(":")[2]) for example in failure.examples} <= set(range(6, 11))
    assert "no system turn" in failure.examples[0].text

    tokenizer.chat_template = "{{ raise_exception('no turn at all') }}"
    facts = check(config(f"sft:{file}"), {"sft": reader}, whole_run=False)
    assert found(facts, "sft: records that the chat template").severity == "error"
