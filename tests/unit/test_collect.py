"""Collecting data: filters, ROUGE-L, and the real client against a real server on loopback."""

import importlib.util
import io
import itertools
import json
import random
import resource
import socket
from fractions import Fraction
from pathlib import Path

import pytest
from rich.console import Console
from scripted_endpoint import Failure, Said, ScriptedEndpoint, asks_for_instructions, writer

pytest.importorskip("openai")
pytest.importorskip("rapidfuzz")

from chatsmith.collect.endpoint import Endpoint, Reply
from chatsmith.collect.filters import Known, language, tokens, unfit_answer, unfit_instruction
from chatsmith.collect.self_instruct import read_seeds, self_instruct
from chatsmith.collect.tally import Progress, Tally
from chatsmith.collect.wording import read_list, request
from chatsmith.data.formats import stages_of
from chatsmith.data.sources import read_source
from chatsmith.data.spec import parse_spec
from chatsmith.errors import ConfigError, DataError, EndpointError, RunError
from chatsmith.screen.console import Screen

WILD = Path(__file__).parents[3] / "shared" / "data" / "instruction-wild"
SEEDS = ["Name three fruits.", "Why is the sky blue?", "Write a poem about the sea.", "Sort these numbers: 3, 1, 2."]


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps({"instruction": seed}) + "\n" for seed in SEEDS))
    return path


@pytest.fixture
def collect(seeds, tmp_path):
    """Collect from an endpoint; returns the exit code, the records and the tally."""

    def run(
        endpoint,
        number=12,
        *,
        output="out.jsonl",
        prices=None,
        budget=None,
        parallel=8,
        seed=0,
        model="m",
        max_tokens=100,
        seeds=seeds,
    ):
        asked = Endpoint(endpoint.url, model, temperature=0.5, max_tokens=max_tokens)
        tally = Tally(number, prices, budget)
        code = self_instruct(seeds, tmp_path / output, asked, tally, parallel=parallel, seed=seed, screen=Screen())
        return code, rows(tmp_path / output), tally

    return run


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def undated(records):
    return [{**row, "provenance": {k: v for k, v in row["provenance"].items() if k != "date"}} for row in records]


def answering(text="Fine.", *, instructions=None, **said):
    """An endpoint's words: instructions of one's own, or always new ones, and one answer to everything."""

    def say(content, number):
        if not asks_for_instructions(content):
            return Said(text, **said)
        return writer(content, number) if instructions is None else Said(json.dumps(instructions))

    return say


# ROUGE-L


def lcs(first, second):
    """Length of the longest common subsequence, by the table of the textbook."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, j in itertools.product(range(len(first)), range(len(second))):
        longer = max(table[i][j + 1], table[i + 1][j])
        table[i + 1][j + 1] = table[i][j] + 1 if first[i] == second[j] else longer
    return table[-1][-1]


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("The cat sat on the mat.", "the cat on a mat", Fraction(2 * 4, 6 + 5)),  # the cat on mat
        ("one two three four", "four three two one", Fraction(2 * 1, 4 + 4)),  # the same words in another order
        ("我喜欢吃苹果。", "我不喜欢苹果", Fraction(2 * 5, 6 + 6)),  # 我喜欢苹果
        ("用vim删除一行", "用 VIM 删除 3 行", Fraction(2 * 5, 6 + 6)),  # 用 vim 删 除 行
        ("a b c", "x y z", 0),
    ],
)
def test_rouge_l_of_worked_examples(text, other, expected):
    assert Known([other]).nearest(text, above=0) == pytest.approx(float(expected), abs=1e-12)
    assert Known([text]).nearest(other, above=0) == pytest.approx(float(expected), abs=1e-12)


def test_rouge_l_is_that_of_a_naive_table_and_the_threshold_is_exact():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["sun", "sea", "苹"], k=draw.randint(1, 20))) for _ in range(60)]
    at_the_threshold = 0
    for text, other in itertools.product(texts, texts):
        m, n = tokens(text), tokens(other)
        exact = Fraction(2 * lcs(m, n), len(m) + len(n))
        assert Known([other]).nearest(text, above=0) == pytest.approx(float(exact), abs=1e-12)
        assert (Known([other]).nearest(text) > 0) == (exact > Fraction(7, 10))
        at_the_threshold += exact == Fraction(7, 10)
    assert at_the_threshold > 3
    nearest = max(
        Fraction(2 * lcs(tokens(texts[0]), tokens(t)), len(tokens(texts[0])) + len(tokens(t))) for t in texts[1:]
    )
    assert Known(texts[1:]).nearest(texts[0], above=0) == pytest.approx(float(nearest), abs=1e-12)


def test_what_is_added_is_known():
    known = Known(["Name a fruit of the north"])
    assert known.nearest("How far away is the moon?") == 0
    known.add("How far away is the moon?")
    assert known.nearest("how far away is the moon") == 1


# Filters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name three fruits.", "English"),
        ("Translate 苹果 into English, and then into French.", "English"),
        ("谁是Harrison Kinsley？", "Chinese"),
        ("用 Python 写一个 hello world 程序", "Chinese"),
        ("Назови три фрукта", None),
        ("果物を三つ挙げてください", None),
        ("2 + 3 = ?", None),
    ],
)
def test_the_language_is_told_by_the_letters(text, expected):
    assert language(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three fruits.", ""),
        ('"To be or not to be": who says so?', ""),
        ("Play the role of a pirate and greet me.", ""),
        ("Write a song about frogs.", ""),
        ("Explain file systems to a child.", ""),
        ("Tell jokes", "too short"),
        ("why " * 301, "too long"),
        ("- Name three fruits.", "starts with punctuation"),
        ("说出三种水果。", "not English"),
        ("Describe this image.", "needs more than text"),
        ("Draw a smiling cat.", "needs more than text"),
        ("Create a short video about bees.", "needs more than text"),
        ("Summarize the attached report.", "needs more than text"),
        ("Summarize this: [insert text here]", "placeholder"),
        ("Name three\x1b[2J fruits.", "control characters"),
        ("Name three\ud800 fruits.", "control characters"),
    ],
)
def test_english_instructions_are_left_out_for_a_named_reason(text, reason):
    assert unfit_instruction(text, "English") == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("讲个笑话", ""),
        ("《红楼梦》的作者是谁？", ""),
        ("翻译", "too short"),
        ("Name three fruits of the north.", "not Chinese"),
        ("画蛇添足是什么意思？", ""),
        ("画一个笑脸", "needs more than text"),
        ("描述这张照片的内容", "needs more than text"),
        ("总结附件里的报告", "needs more than text"),
        ("总结：【在此插入文章】", "placeholder"),
        ("。讲个笑话吧", "starts with punctuation"),
    ],
)
def test_chinese_instructions_are_left_out_for_a_named_reason(text, reason):
    assert unfit_instruction(text, "Chinese") == reason


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("It is 5.", "stop", ""),
        ("I can't wait to see you on Sunday!", "stop", ""),
        ("Sorry seems to be the hardest word.", "stop", ""),
        ("It is", "length", "answer cut off"),
        (" \n", "stop", "answer empty"),
        ("", "content_filter", "answer refused"),
        ("I'm sorry, but I can't help with that.", "stop", "answer refused"),
        ("As an AI language model, I have no taste.", "stop", "answer refused"),
        ("很抱歉，我无法提供这些信息。", "stop", "answer refused"),
        ("作为一个人工智能，我没有感情。", "stop", "answer refused"),
        ("<think>The user wants", "stop", "answer thinks aloud"),
        ("bell\x07", "stop", "control characters"),
        ("", "malformed", "malformed reply"),
    ],
)
def test_answers_are_left_out_for_a_named_reason(text, finish_reason, reason):
    assert unfit_answer(Reply(text, finish_reason, "m", "h", 1.0, "", 1, 1)) == reason


@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_the_seeds_of_instruction_wild_pass_nearly_all(language):
    path = WILD / f"seed_prompts_{'en' if language == 'English' else 'ch'}.jsonl"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    _, texts, spoken = read_seeds(path)
    assert (len(texts), spoken) == (429, language)
    assert sum(not unfit_instruction(text, language) for text in texts) >= 415
    other = "Chinese" if language == "English" else "English"
    assert sum(not unfit_instruction(text, other) for text in texts) < 10


def test_the_seed_tasks_of_alpaca_are_read():
    path = WILD.parent / "stanford-alpaca" / "seed_tasks.jsonl"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    _, texts, spoken = read_seeds(path)
    assert (len(texts), spoken) == (175, "English")


def test_a_list_is_read_whole_or_not_at_all():
    items = ["One\n2. two", '说"三"']
    text = json.dumps(items)
    assert read_list(text) == read_list(f" ```json\n{text}\n``` ") == items
    for broken in (f"Here: {text}", text[:-2], '{"a": "b"}', '["a", 1]', "1. One", "", "[" * 100_000):
        assert read_list(broken) is None


def test_the_request_shows_examples_as_the_list_that_it_asks_for():
    english, chinese = request(["A\nB", "C"], "English"), request(["一", "二"], "Chinese")
    assert '"A\\nB"' in english
    assert '"一"' in chinese
    assert language(english) == "English"
    assert language(chinese) == "Chinese"


# Collecting


def test_records_say_where_they_come_from_and_can_be_trained_on(collect, tmp_path):
    with ScriptedEndpoint() as endpoint:
        code, records, tally = collect(endpoint, 12, prices=(1.0, 4.0))
    assert code == 0
    assert len(records) == tally.kept == 12
    first = records[0]
    assert set(first) == {"instruction", "output", "provenance"}
    assert first["output"] == f"This is the answer to: {first['instruction']}"
    provenance = first["provenance"]
    assert provenance.pop("date").endswith("+00:00")
    assert sorted(provenance.pop("seeds")) == [0, 1, 2, 3]
    assert provenance == {
        "method": "self-instruct",
        "endpoint": endpoint.host,
        "model": "scripted-2",
        "temperature": 0.5,
        "kept": [],
        "usage": {"input_tokens": 100, "output_tokens": 50},
    }
    assert len(records[-1]["provenance"]["kept"]) == 2
    source = read_source(parse_spec(str(tmp_path / "out.jsonl")), on_error="raise", split_seed=0)
    assert {stages_of(record) for record in source.records} == {("sft", "rl")}
    # 1 + 2 requests for ten instructions each, 12 for answers
    assert len(endpoint.requests) == tally.replies == 15
    assert tally.spent == pytest.approx(15 * (100 * 1.0 + 50 * 4.0) / 1e6)


def test_examples_are_seeds_and_what_was_kept_before(collect):
    with ScriptedEndpoint() as endpoint:
        _, records, _ = collect(endpoint, 40)
    first, *later = endpoint.asked(for_instructions=True)
    kept = [row["instruction"] for row in records]
    assert all(seed in first for seed in SEEDS)
    assert not any(instruction in first for instruction in kept)
    assert all(sum(instruction in content for instruction in kept) == 2 for content in later)


def test_neither_time_nor_parallel_requests_change_a_record(collect):
    with ScriptedEndpoint() as endpoint:
        _, one_by_one, _ = collect(endpoint, 30, output="one.jsonl", parallel=1)
        assert endpoint.most_together == 1
    delays = random.Random(0)
    with ScriptedEndpoint(delay_s=lambda number: delays.uniform(0, 0.1)) as endpoint:
        _, together, _ = collect(endpoint, 30, output="eight.jsonl", parallel=8)
        assert 1 < endpoint.most_together <= 8
    same_host = [{**row["provenance"], "endpoint": ""} for row in undated(together)]
    assert [{**row["provenance"], "endpoint": ""} for row in undated(one_by_one)] == same_host
    assert [row["instruction"] for row in one_by_one] == [row["instruction"] for row in together]
    with ScriptedEndpoint() as endpoint:
        _, other, _ = collect(endpoint, 30, output="other.jsonl", seed=1)
    assert [row["instruction"] for row in other] != [row["instruction"] for row in together]


def test_more_can_be_asked_for_later_and_nothing_is_paid_twice(collect):
    with ScriptedEndpoint() as endpoint:
        _, at_once, _ = collect(endpoint, 30, output="at-once.jsonl")
        needed = len(endpoint.requests)
        _, some, _ = collect(endpoint, 7)
        _, more, tally = collect(endpoint, 30)
    assert more[:7] == some
    assert undated(more) == undated(at_once)
    assert len(endpoint.requests) == 2 * needed
    assert tally.replies == needed


def test_everything_that_is_left_out_is_counted_by_its_reason(collect, capsys):
    instructions = [
        "Name three fruits.",  # a seed
        "Explain how tides come about.",
        "Explain how the tides come about.",  # ROUGE-L 2 * 5 / 11
        "Stop",
        "Describe this picture.",
        "Explain how rain comes about in spring.",
        "List the planets of our system.",
    ]

    def say(content, number):
        if asks_for_instructions(content):
            return Said(json.dumps(instructions)) if number == 0 else writer(content, number)
        return Said("It", "length") if "rain" in content else Said("" if "planets" in content else "Well.")

    with ScriptedEndpoint(say) as endpoint:
        _, records, tally = collect(endpoint, 2)
    assert tally.dropped == {
        "near-duplicate": 2,
        "too short": 1,
        "needs more than text": 1,
        "answer cut off": 1,
        "answer empty": 1,
    }
    assert records[0]["instruction"] == "Explain how tides come about."
    assert tally.tried == 7 + 20
    assert "2 near-duplicate, " in capsys.readouterr().out


def test_an_endpoint_that_gives_nothing_of_use_is_asked_for_three_rounds(collect, tmp_path):
    for say, reason in (
        (answering(instructions="No list."), "malformed list"),
        (answering(instructions=["Name three fruits."]), "near-duplicate"),
        (answering("<think>Hm", instructions=None), "answer thinks aloud"),
    ):
        with ScriptedEndpoint(say) as endpoint, pytest.raises(EndpointError, match=r"3 rounds .* gave no record"):
            collect(endpoint, output=f"{reason}.jsonl")
        assert len(endpoint.asked(for_instructions=True)) == 1 + 2 + 3
        assert (tmp_path / f"{reason}.jsonl").read_text() == ""


# Going on


def test_a_line_that_was_cut_off_is_said_and_made_again(collect, tmp_path, capsys):
    with ScriptedEndpoint() as endpoint:
        # one after the other: the journal's last line is the reply that the last record was made of
        _, whole, _ = collect(endpoint, 20, parallel=1)
        asked = len(endpoint.requests)
        for name in ("out.jsonl", "out.jsonl.journal"):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:-7])
        _, again, _ = collect(endpoint, 20, parallel=1)
    said = capsys.readouterr().out
    assert said.count("its last line was cut off by a kill") == 2
    assert [row["instruction"] for row in again] == [row["instruction"] for row in whole]
    assert again[:-1] == whole[:-1]
    assert len(endpoint.requests) == asked + 1


def test_files_that_do_not_belong_to_this_collection_are_refused(collect, tmp_path, seeds):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    with ScriptedEndpoint() as endpoint:
        collect(endpoint, 5)
        asked, lines = len(endpoint.requests), output.read_text()
        with pytest.raises(RunError, match="begun with another --model"):
            collect(endpoint, 10, model="other")
        with pytest.raises(RunError, match="begun with another --seed\\."):
            collect(endpoint, 10, seed=1)
        other = tmp_path / "other-seeds.jsonl"
        other.write_text('{"instruction": "Name a bird of the north."}\n')
        with pytest.raises(RunError, match="begun with another --seeds"):
            collect(endpoint, 10, seeds=other)
        output.write_text(lines.replace("answer", "ANSWER", 1))
        with pytest.raises(RunError, match=r"out\.jsonl:1: not what .*journal says"):
            collect(endpoint, 10)
        output.write_text("no JSON\n")
        with pytest.raises(RunError, match=r"out\.jsonl:1: not JSON"):
            collect(endpoint, 10)
        output.write_text(lines)
        replies = journal.read_text()
        for depth in (101, 900, 100_000):
            journal.write_text(replies + "[" * depth + "]" * depth + "\n")
            with pytest.raises(RunError, match=r"out\.jsonl\.journal:\d+: not JSON: nested"):
                collect(endpoint, 10)
        journal.unlink()
        with pytest.raises(RunError, match="journal is missing"):
            collect(endpoint, 10)
        assert len(endpoint.requests) == asked


def test_a_file_that_another_process_writes_is_left_alone(collect, tmp_path):
    import fcntl

    with ScriptedEndpoint() as endpoint, (tmp_path / "out.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another chatsmith is writing it"):
            collect(endpoint)
        assert endpoint.requests == []


def test_a_disk_that_is_full_in_the_middle_of_a_line_is_said_and_mended_later(collect, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ScriptedEndpoint() as endpoint:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
            with pytest.raises(RunError, match=r"out.jsonl.journal: cannot be written: .* goes on"):
                collect(endpoint, 20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "out.jsonl.journal").stat().st_size == 3000
        _, records, _ = collect(endpoint, 20)
    assert len(records) == 20
    assert "its last line was cut off" in capsys.readouterr().out


# The budget


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(collect):
    prices = (0.0, 10_000.0)  # a reply costs 0.50 dollars, and 1.00 at most
    with ScriptedEndpoint() as endpoint:
        code, records, tally = collect(endpoint, 30, prices=prices, budget=4.2)
        assert code == 0
        assert tally.spent == pytest.approx(3.5)  # one more could cost 1.00
        assert len(records) == 7 - 1
        code, records, tally = collect(endpoint, 30, prices=prices, budget=100)
    assert (code, len(records)) == (0, 30)
    assert len(endpoint.requests) == tally.replies


def test_a_budget_that_allows_no_request_asks_nothing(collect, capsys):
    with ScriptedEndpoint() as endpoint:
        code, records, _ = collect(endpoint, prices=(1.0, 10_000.0), budget=0.9)
    assert (code, records, endpoint.requests) == (0, [], [])
    assert "could pass the budget of $0.90" in capsys.readouterr().out


def test_an_endpoint_that_counts_no_tokens_cannot_keep_a_budget(collect):
    with ScriptedEndpoint(answering(usage=None)) as endpoint:
        with pytest.raises(EndpointError, match="does not count tokens"):
            collect(endpoint, prices=(1.0, 1.0), budget=1.0)
        _, records, tally = collect(endpoint, output="free.jsonl")
    assert len(records) == tally.uncounted == 12
    assert records[0]["provenance"]["usage"] == {"input_tokens": None, "output_tokens": None}


# What can go wrong at the endpoint


def failing(status, body="", **headers):
    return lambda content, number: Failure(status, body, headers)


@pytest.mark.parametrize(
    ("say", "message", "requests"),
    [
        (failing(401, '{"error": {"message": "bad {authorization}"}}'), "refuses the key in OPENAI_API_KEY (401)", 1),
        (
            failing(404, '{"error": {"message": "no such model"}}'),
            'knows no model "m", or not this path (404): no such',
            1,
        ),
        (failing(400, '{"error": {"message": "bad {authorization}"}}'), "(400): bad Bearer [the key]. Change", 1),
        (failing(422, json.dumps({"error": "\x1b[2Jno"})), "(422): �[2Jno", 1),
        (failing(500, "<html>", **{"Retry-After": "0.01"}), "(500): <html>", 3),
        (
            failing(429, '{"error": {"message": "slow"}}', **{"Retry-After": "0.01"}),
            "(429): slow; it asks to wait 0.01 s",
            3,
        ),
        (failing(429, "{}", **{"Retry-After": "3600"}), "it asks to wait 3600 s", None),
    ],
)
def test_a_refusal_is_one_clear_message_without_the_key(collect, monkeypatch, say, message, requests):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-recognisable")
    with ScriptedEndpoint(say) as endpoint, pytest.raises(EndpointError) as caught:
        collect(endpoint)
    assert message in str(caught.value)
    assert "recognisable" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert endpoint.authorization == {"Bearer sk-recognisable"}
    assert requests in (None, len(endpoint.requests)), "clients differ in how long they wait"


def test_an_endpoint_that_is_not_there_is_known_soon(collect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = ScriptedEndpoint()
        nowhere._server.server_close()
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1:\d+ cannot be reached: .*Check --endpoint"):
            collect(nowhere)


def test_failures_that_pass_are_waited_for(collect):
    def say(content, number):
        if number in (0, 3, 4):
            return Failure((429, 503, 500)[number % 3], "{}", {"Retry-After": "0.05"})
        return writer(content, number)

    with ScriptedEndpoint(say) as endpoint:
        code, records, tally = collect(endpoint)
    assert (code, len(records)) == (0, 12)
    assert len(endpoint.requests) == tally.replies + 3


def test_what_was_under_way_when_one_request_failed_is_kept(collect, tmp_path):
    def say(content, number):
        return Failure(400, '{"error": {"message": "no"}}') if number == 2 else writer(content, number)

    with ScriptedEndpoint(say, delay_s=lambda number: 0 if number < 3 else 0.3) as endpoint:
        with pytest.raises(EndpointError, match=r"\(400\): no"):
            collect(endpoint, 8, parallel=4)
        journal = rows(tmp_path / "out.jsonl.journal")[1:]
        assert len(endpoint.requests) == len(journal) + 1 == 1 + 4
        code, records, _ = collect(endpoint, 8, parallel=4)
        assert (code, len(records)) == (0, 8)
        assert len(endpoint.requests) == 1 + 8 + 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"message": {"content": 5}}]}',
        '{"choices": 1}',
        "{",
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_replies_that_are_no_completions_are_counted_and_bounded(collect, body, kind):
    with ScriptedEndpoint(failing(200, body, **{"Content-Type": kind})) as endpoint:
        with pytest.raises(EndpointError, match="gave no record"):
            collect(endpoint, prices=(1.0, 1.0), budget=100.0)
        assert len(endpoint.requests) == 6


def test_the_limit_goes_under_the_name_that_the_endpoint_asks_for(collect):
    def say(content, number):
        if "max_tokens" in endpoint.requests[number]:
            return Failure(400, '{"error": {"message": "Use \'max_completion_tokens\' instead."}}')
        return writer(content, number)

    with ScriptedEndpoint(say) as endpoint:
        code, records, _ = collect(endpoint)
    assert (code, len(records)) == (0, 12)
    assert [body.get("max_completion_tokens") for body in endpoint.requests[:3]] == [None, 100, 100]
    assert endpoint.requests[1]["temperature"] == 0.5


def test_a_request_that_the_endpoint_filters_is_a_refused_answer(collect):
    def say(content, number):
        if number == 1:
            return Failure(400, '{"error": {"message": "filtered", "code": "content_filter"}}')
        return Said("", "content_filter", None) if number == 2 else writer(content, number)

    with ScriptedEndpoint(say) as endpoint:
        _, records, tally = collect(endpoint, 3, prices=(1.0, 1.0), budget=1.0, parallel=1)
    assert len(records) == 3
    assert tally.dropped == {"answer refused": 2}


def test_half_a_character_and_a_control_character_are_dropped_and_do_not_stop_the_journal(collect):
    def say(content, number):
        return Said(("\ud800", "\x1b[2J")[number - 1]) if number in (1, 2) else writer(content, number)

    with ScriptedEndpoint(say) as endpoint:
        collect(endpoint, 2, parallel=1)
        _, records, tally = collect(endpoint, 4, parallel=1)
    assert len(records) == 4
    assert tally.dropped == {"control characters": 2}


# The screen


def test_progress_fits_the_terminal_and_says_everything():
    tally = Tally(1000, (0.4, 1.6), 5.0, kept=250, tried=400)
    tally.dropped.update({"near-duplicate": 100, "too short": 3})
    for _ in range(2):
        tally.add(Reply("", "stop", "m", "h", 1.0, "", 600_000, 100_000))
    tally.add(Reply("", "stop", "m", "h", 1.0, "", None, None))
    screen = Screen()
    screen.console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    progress = Progress(screen, tally, lambda: True)
    progress.begin()
    tally.kept = 500
    screen.console.print(progress)
    drawn = screen.console.file.getvalue()
    assert all(len(line) <= 60 for line in drawn.splitlines())
    words = " ".join(drawn.split())
    assert "━━━━━━━━━━──────────  500/1000   0 s left" in drawn
    assert "instructions: 400; dropped: 100 near-duplicate, 3 too short" in words
    # 1.2 million at 0.40 and 0.2 million at 1.60
    assert "replies: 3; tokens: 1,200,000 in, 200,000 out (1 replies without a count); $0.8000 of $5.00" in words
    assert "stopping after the requests under way" in words


# What the user gives


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "ftp://localhost/v1", "http://", "http://host:port/v1", "http://host:99999/v1"],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="no address"):
        Endpoint(url, "m", temperature=1, max_tokens=1)


@pytest.mark.parametrize(
    "url", ["http://ann:hidden@localhost/v1", "http://localhost/v1?key=hidden", "http://localhost/v1#hidden"]
)
def test_an_address_with_more_in_it_is_refused_without_being_repeated(url):
    with pytest.raises(ConfigError, match="holds more than an address") as caught:
        Endpoint(url, "m", temperature=1, max_tokens=1)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-a\n", "sk a", "ключ"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds") as caught:
        Endpoint("http://localhost/v1", "m", temperature=1, max_tokens=1)
    assert key not in str(caught.value)


def test_without_a_key_none_is_sent_and_the_refusal_says_so(collect, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        ScriptedEndpoint(failing(401)) as endpoint,
        pytest.raises(EndpointError, match="refuses a request without a key"),
    ):
        collect(endpoint)


def test_a_missing_package_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rapidfuzz" else object())
    with pytest.raises(ConfigError, match=r"package rapidfuzz .* pip install 'chatsmith\[collect\]'"):
        Endpoint("http://localhost/v1", "m", temperature=1, max_tokens=1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "there is no file"),
        (
            ['{"instruction": "Name a fruit."}', '{"nonsense": 1}'],
            r"seeds\.jsonl:2: no format fits .* 1 cannot be read",
        ),
        (['{"text": "Once there was a fox."}'], "1 records are plain text"),
        (['{"instruction": "Назови три фрукта"}'], "neither English nor Chinese"),
    ],
)
def test_seeds_that_cannot_serve_are_refused(tmp_path, lines, message):
    path = tmp_path / "seeds.jsonl"
    if lines is not None:
        path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_seeds(path)


def test_a_seed_is_the_first_turn_of_its_user(tmp_path):
    path = tmp_path / "seeds.jsonl"
    turns = [("system", "Be kind."), ("user", "Name a fruit."), ("assistant", "Fig."), ("user", "And another?")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    assert read_seeds(path)[1:] == (["Name a fruit."], "English")


def test_chinese_seeds_are_asked_for_in_chinese(collect, tmp_path):
    path = tmp_path / "seeds-zh.jsonl"
    path.write_text('{"instruction": "讲个笑话"}\n{"instruction": "《红楼梦》的作者是谁？"}\n', encoding="utf-8")
    with ScriptedEndpoint() as endpoint:
        _, records, tally = collect(endpoint, 12, seeds=path)
    assert all(language(row["instruction"]) == "Chinese" for row in records)
    assert "《红楼梦》" in endpoint.asked(for_instructions=True)[0]
    assert not tally.dropped
