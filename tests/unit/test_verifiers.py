"""Ready rewards: what each gives to answers worked out by hand, and what it makes of rows that say too little."""

import json
import math
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instructions import CASES, SIX
from tiny import SHARED, require

from chatsmith.algo.rewards import overlong as overlong_formula
from chatsmith.config import Config, RlConfig
from chatsmith.data.formats import to_record
from chatsmith.errors import ConfigError, DataError, RewardError
from chatsmith.intake import functions, parse_reward, read_sources, reward_targets, share
from chatsmith.models.reward import Product, Reward
from chatsmith.rewards import constraints, numbers
from chatsmith.rewards.form import Form, thinks_and_answers
from chatsmith.rewards.gold import gold_of, last_boxed
from chatsmith.rewards.ready import ready
from chatsmith.rewards.shape import N, overlong, repetition
from chatsmith.rewards.spec import READY, check, factors
from chatsmith.stages.rl import judgeable, load_reward
from chatsmith.stages.rollout import judge
from chatsmith.types import Message, Record, Sample


def sample(said: str, tokens: int | None = None, /, **fields) -> Sample:
    return Sample((Message("user", "?"),), said, "stop", Record(fields=fields, origin="rows.jsonl:3"), tokens)


def asked(target: str, *samples: Sample) -> list[float | None]:
    reward = ready(target, limit=100)
    assert reward is not None
    return reward(list(samples))


# number


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("72", 72),
        ("She sold 48 and then 24, so 72 clips.", 72),
        ("#### 72", 72),
        ("#### 72\nThat was 1 of 9 tasks.", 72),
        ("It is \\boxed{72}. Check: 2 + 70.", 72),
        ("\\boxed{3}, no: \\boxed{4}", 4),
        ("\\boxed{72\\text{ clips}}", 72),
        ("$1,234.50", 1234.5),
        ("1,000,000", 1000000),
        ("10{,}000 and 4\\,000", 4000),
        ("50%", 50),
        ("-5", -5),
        ("−7", -7),
        ("$-5", -5),
        ("-$5", -5),
        ("10-5", 5),
        ("it lies in 3-4", 4),
        ("3.0", 3),
        ("1/2", 0.5),
        ("\\boxed{\\frac{1}{2}}", 0.5),
        ("答案是72。", 72),
        ("７２", 72),
        ("1,2,3", 3),
        ("...72", 72),
        ("72 x3", 72),
    ],
)
def test_the_number_of_an_answer_is_its_last_or_the_marked_one(answer, value):
    assert numbers.said_number(answer) == value


@pytest.mark.parametrize("answer", ["", "none", "1/0", "1e9", "#### 5 or 6", "\\boxed{}", "\\boxed{x} 5", "9" * 200])
def test_what_is_no_one_number_is_none(answer):
    assert numbers.said_number(answer) is None


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "#### {}", "\\boxed{{{}}}", "It is {}.", "({})", "是{}个"])
)
def test_a_number_is_read_back_however_it_is_written(value, form):
    for written in (str(value), f"{value:,}", f"{value}.0"):
        assert numbers.said_number(form.format(written)) == value
        assert numbers.gold_number(form.format(written)) == value
        assert numbers.said_number(form.format(written)) != value + 1


def test_number_compares_with_the_gold_answer_and_lists_of_candidates_lose():
    gold = "She sold 48/2 = <<48/2=24>>24.\n#### 72"
    answers = ["72", "72.0", "73", "", "72, 73 or 74", "\\boxed{72}"]
    assert asked("number", *(sample(each, answer=gold) for each in answers)) == [1, 1, 0, 0, 0, 1]
    assert asked("number", sample("72", answer=72), sample("0.5", gold=0.5), sample("5", answer=["5"])) == [1, 1, 1]


def test_a_gold_answer_that_is_missing_or_unclear_is_the_datas_fault_and_never_0():
    reward = ready("number", limit=1)
    rows = [sample("72"), sample("72", answer="48 and 24 are 72"), sample("72", answer=""), sample("72", answer=True)]
    assert reward(rows) == [None] * 4
    assert reward.reasons == {numbers.MISSING: 3, numbers.UNREADABLE: 1}
    assert [bool(reward.unfit(row.record)) for row in rows] == [True] * 4
    assert reward.unfit(sample("", answer="#### 72").record) == ""


def test_the_bare_answer_of_a_row_goes_before_the_solution():
    both = {"solution": "So \\boxed{7}", "answer": "8"}
    assert gold_of(Record(fields=both)) == "8"
    assert gold_of(Record(fields=both | {"ground_truth": "9"})) == "9"
    assert gold_of(Record(fields={"reward_model": {"ground_truth": "9", "style": "rule"}, "answer": None})) == "9"
    assert gold_of(Record(fields={"reward_model": "a", "question": "b"})) is None
    assert last_boxed("\\boxed{a{b}c} and \\boxed{\\frac{1}{2}} ") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{a") is None


def test_every_gold_answer_of_gsm8k_is_read_and_stays_with_the_prompt():
    rows = [json.loads(line) for line in require(SHARED / "data" / "gsm8k" / "test.jsonl").open()]
    for row in rows:
        record = to_record(row, "test.jsonl:1")
        assert numbers.unfit(record) == ""
        right = Sample(record.prompt, record.answers[0].content, "stop", record)
        assert numbers.number(right) == 1.0
        assert numbers.number(Sample(record.prompt, right.answer + "1", "stop", record)) == 0.0


# format


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("\n<think>\na\nb\n</think>\n\n<answer>b</answer>\n", 1),
        ("<think>a</think><answer>b</answer> so", 0),
        ("So <think>a</think><answer>b</answer>", 0),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<think>b</think></think><answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<answer>b</think></answer>", 0),
        ("<think></think><answer>b</answer>", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<think>a</think>", 0),
        ("<Think>a</Think><Answer>b</Answer>", 0),
        ("", 0),
    ],
)
def test_the_form_is_each_tag_once_in_order_with_nothing_around(answer, value):
    assert thinks_and_answers(answer) == bool(value)


def test_a_regular_expression_of_the_row_must_match_the_whole_answer():
    rows = [sample(answer, regex="[A-D]") for answer in ("B", "B.", "E", "")]
    lines = [sample("a\nb", regex="a.b"), sample("<think>a</think><answer>b</answer>", regex=None)]
    assert asked("format", *rows, *lines) == [1, 0, 0, 0, 1, 1]


# repetition and overlong


def naive_repetition(units: list[str]) -> float:
    seen, repeated, total = [], 0, 0
    for i in range(len(units) - N + 1):
        run = units[i : i + N]
        repeated += run in seen
        seen.append(run)
        total += 1
    return -repeated / total if total else 0.0


def test_repetition_by_hand():
    assert repetition("one two three four five six seven") == 0
    # runs of four in "a b c d a b c d": abcd bcda cdab dabc abcd: one of five stood before
    assert repetition("a b c d a b c d") == pytest.approx(-1 / 5)
    assert repetition("A b, c d a B, c d") == pytest.approx(-2 / 7)  # the commas are units: 10 of them, 7 runs
    assert repetition("") == repetition("no no no") == 0
    assert repetition("我们喜欢我们喜欢") == pytest.approx(-1 / 5)
    assert repetition("我们喜欢苹果和梨子") == 0
    assert repetition("ha" * 100) < -0.9
    assert repetition("😂" * 50) < -0.9
    assert repetition("- " * 50) < -0.9


@given(st.lists(st.sampled_from(["the", "cat", "sat", "猫", "!"]), max_size=40))
def test_repetition_is_that_of_a_naive_loop(units):
    assert repetition(" ".join(units)) == pytest.approx(naive_repetition(units))
    assert -1 < repetition(" ".join(units)) <= 0


def test_overlong_falls_in_a_straight_line_over_the_last_fifth_of_the_limit():
    # limit 100, of which the last 20: 0 up to 80, -1/2 at 90, -1 at 100
    lengths = [1, 80, 85, 90, 100]
    assert overlong([sample("", n) for n in lengths], limit=100) == pytest.approx([0, 0, -0.25, -0.5, -1])
    assert overlong_formula(torch.tensor(lengths), limit=100, share=0.2).tolist() == pytest.approx(
        [0, 0, -0.25, -0.5, -1]
    )
    assert asked("overlong", sample("", 100), sample("a")) == [-1.0, None]


# constraints


def ifeval(answer: str, *instructions: tuple[str, object]) -> Sample:
    ids, given = zip(*instructions, strict=True)
    return sample(answer, instruction_id_list=list(ids), kwargs=list(given))


@pytest.mark.parametrize("id", CASES)
def test_each_instruction_is_followed_and_not(id):
    arguments, good, bad = CASES[id]
    padded = arguments | {"language": None, "num_other": None}  # the hub's copy of IFEval names all of them everywhere
    assert asked("constraints", ifeval(good, (id, padded)), ifeval(bad, (id, padded)), ifeval(" \n", (id, padded))) == [
        1,
        0,
        0,
    ]


def test_there_is_a_case_for_every_instruction_and_one_of_the_paper_is_not_judged():
    assert set(CASES) == set(constraints.CHECKS)
    assert len(CASES) == 24


@pytest.mark.parametrize("id", [id for id in CASES if CASES[id][0]])
def test_an_instruction_whose_arguments_are_missing_or_of_another_kind_is_the_datas_fault(id):
    arguments, good, _ = CASES[id]
    for name in arguments:
        for wrong in (None, "", [], [1], {}, -1, 1.5, math.nan, math.inf, True, "more or less"):
            if isinstance(wrong, str) and wrong and isinstance(arguments[name], str) and "relation" not in name:
                continue
            (value,) = asked("constraints", ifeval(good, (id, arguments | {name: wrong})))
            assert value is None, (id, name, wrong)


def test_the_score_is_the_share_and_strict_is_all():
    three = ifeval("No comma. In here", *((id, CASES[id][0]) for id in ("punctuation:no_comma", "startend:quotation")))
    assert asked("constraints", three) == [0.5]
    assert asked("constraints-strict", three) == [0.0]
    assert asked("constraints-strict", ifeval("a", ("punctuation:no_comma", {}))) == [1.0]


def test_an_instruction_that_is_not_known_is_never_scored():
    known, unknown = ("punctuation:no_comma", {}), ("language:response_language", {"language": "de"})
    reward = ready("constraints", limit=1)
    assert reward([ifeval("a, b", known, unknown), ifeval("a", known, unknown), ifeval("a", unknown)]) == [0, 1, None]
    assert reward.reasons == {constraints.UNKNOWN: 1}
    assert reward.unjudged(ifeval("", known, unknown).record) == ["instruction language:response_language"]
    assert reward.unfit(ifeval("", unknown).record) == constraints.UNKNOWN
    for broken in ({}, {"instruction_id_list": ["a"], "kwargs": []}, {"instruction_id_list": "a", "kwargs": "b"}):
        assert reward.unfit(Record(fields=broken)) == constraints.MISSING


def test_sentences_are_counted_in_two_languages():
    assert constraints.count_sentences(SIX) == 6
    assert constraints.count_sentences("") == constraints.count_sentences("... !") == 0
    assert constraints.count_sentences("no end") == 1
    assert constraints.count_sentences('"So?" he said. (Yes.) Or "no."') == 4
    assert constraints.count_sentences("你好。很好！“对吗？”他说") == 4


def test_every_row_of_ifeval_is_read():
    rows = [json.loads(line) for line in require(SHARED / "data" / "ifeval" / "input_data.jsonl").open()]
    records = [to_record(row, f"input_data.jsonl:{i}") for i, row in enumerate(rows, 1)]
    unfit = [constraints.unfit(record) for record in records]
    assert len(rows) == 541
    assert set(unfit) == {"", constraints.UNKNOWN}
    assert sum(map(bool, unfit)) == sum(
        set(row["instruction_id_list"]) == {"language:response_language"} for row in rows
    )
    assert sum(len(constraints.unjudged(record)) for record in records) == 31
    answer = "I am an answer.\n\n* one, two\n* [three] <<four>>"
    for record in records:
        value = constraints.share(Sample(record.prompt, answer, "stop", record))
        assert value == constraints.UNKNOWN or 0 <= value <= 1


def test_a_keyword_is_a_word_and_no_regular_expression():
    word = {"keywords": ["c++ (x"], "forbidden_words": ["a.c"], "keyword": "$.", "frequency": 1, "relation": "at least"}
    assert asked("constraints", ifeval("C++ (X", ("keywords:existence", word))) == [1]
    assert asked("constraints", ifeval("abc", ("keywords:forbidden_words", word))) == [1]
    assert asked(
        "constraints", ifeval("5 $.", ("keywords:frequency", word)), ifeval("a", ("keywords:frequency", word))
    ) == [
        1,
        0,
    ]
    assert asked("constraints", ifeval("我不喜欢它", ("keywords:forbidden_words", {"forbidden_words": ["喜欢"]}))) == [
        0
    ]


# how they are named and combined


def test_ready_rewards_are_named_and_files_of_their_names_are_reached_by_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "number").mkdir()
    assert load_reward("number@0.5").name == "number"
    assert load_reward("number@0.5").weight == 0.5
    with pytest.raises(Exception, match=r"number"):
        load_reward("./number")
    for name in set(READY) - {"math"}:
        assert ready(name, limit=10) is not None
    assert ready("numbers", limit=10) is None


def test_a_product_asks_each_of_its_rewards():
    reward = load_reward("number*format@2")
    right, wrong, bare = "<think>a</think><answer>5</answer>", "<think>a</think><answer>6</answer>", "5"
    values, valid, metrics = judge(
        [sample(each, answer="5") for each in (right, wrong, bare)] + [sample(right)],
        [reward],
        RlConfig(max_excluded=0.5),
    )
    assert values.tolist() == [2, 0, 0, 0]
    assert valid.tolist() == [True, True, True, False]
    assert metrics["reward/number*format"] == pytest.approx(1 / 3)
    assert metrics["reward/number*format_excluded"] == pytest.approx(1 / 4)


def test_a_factor_below_0_is_refused_where_it_shows():
    product = Product([Reward("mine", lambda batch: [-1.0 for _ in batch], 1.0)])
    with pytest.raises(RewardError, match="'mine' gave -1 as a factor"):
        judge([sample("a")], [Reward("mine*mine", product, 1.0)], RlConfig())


def test_the_rewards_of_a_configuration_are_known_one_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    specs = ("number*r.py:f@2", "trained", "http://localhost:1/score@0.5", "os:system*format")
    config = Config.model_validate({"rl": {"rewards": specs}})
    assert reward_targets(config) == ["number", "r.py:f", "trained", "http://localhost:1/score", "os:system", "format"]
    assert functions(config) == ["r.py:f (a reward)", "os:system (a reward)"]
    assert parse_reward("http://localhost:1/score@0.5") == ("http://localhost:1/score", 0.5)
    (tmp_path / "a*b").mkdir()
    assert factors("a*b") == ["a*b"]


@pytest.mark.parametrize(
    "rewards",
    [
        ["format"],
        ["format@0.1"],
        ["number", "format@0.2"],
        ["number@-0.5", "format@-0.06"],
        ["format*format", "number"],
    ],
)
def test_a_reward_for_form_alone_may_not_weigh_much(rewards):
    with pytest.raises(ConfigError, match=r"at most 0\.1 of theirs"):
        check([parse_reward(spec) for spec in rewards])


@pytest.mark.parametrize(
    "rewards", [["number", "format@0.1"], ["number*format"], ["trained", "number", "format@-0.2"], ["repetition"]]
)
def test_rewards_that_go_together_are_taken(rewards):
    check([parse_reward(spec) for spec in rewards])


@pytest.mark.parametrize(
    "target", ["trained*format", "runs/a/reward/model*format", "number*repetition", "number*", "*", "overlong*format"]
)
def test_what_may_be_below_0_or_is_nothing_is_no_factor(target):
    with pytest.raises(ConfigError, match="cannot be a factor"):
        check([(target, 1.0)])


# at the door


def data_of(tmp_path, rows, **data):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"sources": [f"rl:{tmp_path}/rows.jsonl"], "held_out": 0.3} | data
    config = Config.model_validate({"data": settings, "stages": ["rl"], "rl": {"rewards": ["number"]}})
    return config, share(config, read_sources(config))


def test_a_prompt_without_a_gold_answer_is_named_at_the_door_or_left_out_and_counted(tmp_path):
    rows = [{"prompt": f"What is {i} + 1?", "expected": str(i + 1)} for i in range(40)]
    config, data = data_of(tmp_path, rows)
    kept, said = judgeable(config, data)
    assert said == []
    assert [len(kept["rl"].train), len(kept["rl"].held_out)] == [len(data["rl"].train), len(data["rl"].held_out)]
    rows[7] = {"prompt": "What is 8?"}
    config, data = data_of(tmp_path, rows)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:8: reward number cannot judge answers to it: its row has no gold"
    ):
        judgeable(config, data)
    config, data = data_of(tmp_path, rows, on_error="skip")
    kept, said = judgeable(config, data)
    assert said == ["reward number cannot judge answers to 1 of 40 prompts, which were left out"]
    records = [*kept["rl"].train, *kept["rl"].held_out]
    assert sorted(record.fields["expected"] for record in records) == sorted(str(i + 1) for i in range(40) if i != 7)


def test_what_of_a_prompt_is_not_judged_is_said(tmp_path):
    both = {
        "instruction_id_list": ["punctuation:no_comma", "language:response_language"],
        "kwargs": [{}, {"language": "de"}],
    }
    config, data = data_of(tmp_path, [{"prompt": f"Name {i} fruits."} | both for i in range(40)])
    config = config.model_copy(update={"rl": RlConfig(rewards=("constraints",))})
    _, said = judgeable(config, data)
    assert said == [
        "reward constraints does not judge instruction language:response_language, which 40 prompts ask for"
    ]


# what reaches training


def test_a_reward_without_any_number_stops_the_run_whatever_share_may_be_left_out():
    with pytest.raises(RewardError, match=re.escape(f"2 times: {numbers.MISSING}")):
        judge([sample("1"), sample("2")], [load_reward("number")], RlConfig(max_excluded=1.0))
    one = Reward("one", lambda batch: [1.0, None], 1.0)
    other = Reward("other", lambda batch: [None, 1.0], 1.0)
    with pytest.raises(RewardError, match="each of 2 answers lacks a finite number"):
        judge([sample("1"), sample("2")], [one, other], RlConfig(max_excluded=0.9))


def test_what_is_left_out_is_counted_by_reward():
    rows = [sample("5", answer="5")] * 24 + [sample("5")]
    values, valid, metrics = judge(rows, [load_reward("number")], RlConfig())
    assert metrics["reward/number_excluded"] == pytest.approx(0.04)
    assert metrics["rl/excluded"] == pytest.approx(0.04)
    assert (values.tolist()[-1], valid.tolist()[-1]) == (0.0, False)
    assert metrics["reward/number"] == 1.0


@given(st.text(max_size=300), st.integers(0, 2**32))
def test_any_answer_gets_a_number_from_every_ready_reward(answer, seed):
    draw = random.Random(seed)
    rows = [(id, CASES[id][0]) for id in draw.sample(sorted(CASES), 5)]
    ids, given = zip(*rows, strict=True)
    one = sample(answer, 3, answer="72", instruction_id_list=list(ids), kwargs=list(given))
    for name in ("number", "constraints", "constraints-strict", "repetition", "overlong"):
        (value,) = asked(name, one)
        assert value is not None
        assert -1 <= value <= 1
    assert Form()([one])[0] in (0.0, 1.0)
