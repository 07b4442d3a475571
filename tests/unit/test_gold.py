"""A gold judge: any function, asked for what it can say, refused where it says something else."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer, tiny_model

from chatsmith.assistant import Assistant
from chatsmith.config import Config, LabelConfig, RlConfig
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.data.formats import to_record
from chatsmith.errors import ConfigError, RewardError
from chatsmith.gold import GoldJudge, GoldScores
from chatsmith.intake import check, functions, say_functions, stages_to_train
from chatsmith.stages.label import preferences
from chatsmith.types import Answer, Message, Record, Sample

PROMPT = (Message("user", "How?"),)


def sample(answer, prompt="How?", **fields):
    messages = (Message("user", prompt),)
    return Sample(messages, answer, "stop", Record(messages, fields=fields))


def judge(function, **rest):
    return GoldJudge("mine", function, Config(), (), **rest)


def test_a_number_or_parts_of_one_per_sample():
    samples = [sample("a"), sample("b"), sample("c")]
    assert judge(lambda s: [1, 0.5, True])(samples) == [{"total": 1.0}, {"total": 0.5}, {"total": 1.0}]
    (marks,) = judge(lambda s: [{"total": 0.25, "right": None}])(samples[:1])
    assert marks["total"] == 0.25 and math.isnan(marks["right"])
    assert judge(lambda s: [])([]) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda s: 1 / 0, "raised ZeroDivisionError"),
        (lambda s: exit(), "raised SystemExit"),
        (lambda s: 1.0, "returned float for 2 samples"),
        (lambda s: [1.0], "returned 1 values for 2 samples"),
        (lambda s: (1.0, 1.0), "returned tuple"),
        (lambda s: ["good", 1.0], "no number"),
        (lambda s: [[1.0], 1.0], "no number"),
        (lambda s: [{"right": 1.0}, 1.0], "'total'"),
        (lambda s: [{"total": 1.0, 3: 1.0}, 1.0], "'total'"),
        (lambda s: [None, math.nan], "no finite number to any of 2 answers"),
    ],
)
def test_what_is_no_judgement_is_one_clear_error(value, said):
    with pytest.raises(RewardError, match="judge 'mine'") as caught:
        judge(value)([sample("a"), sample("b")])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_means_are_over_what_the_judge_said():
    answers = [sample(text, prompt) for prompt in "pqrs" for text in ("x", "y")]
    before = [0.0, 1.0, 0.2, 0.4, None, 0.6, None, None]
    after = [1.0, 1.0, 0.5, 0.7, 0.8, 1.0, 0.1, 0.1]

    def scores(values):
        gold = judge(lambda s: [{"total": v, "even": float(i % 2 == 0)} for i, v in enumerate(values)])
        return GoldScores(answers, gold(answers), gold(answers)[::2])

    one, two = scores(before), scores(after)
    assert one.totals()[:3] == pytest.approx([0.5, 0.3, 0.6]) and math.isnan(one.totals()[3])
    figures = judge(None).summary(one, two)
    assert figures["gold_sft"] == pytest.approx((0.5 + 0.3 + 0.6) / 3)
    assert figures["gold_rl"] == pytest.approx((1.0 + 0.6 + 0.9) / 3)  # the last prompt has no score before
    assert figures["gold_gain"] == pytest.approx(figures["gold_rl"] - figures["gold_sft"])
    low, high = figures["gold_gain_ci95"]
    assert low < figures["gold_gain"] < high
    assert figures["gold_components"] == {"even": [0.5, 0.5]}


class Counting:
    """A reward model that likes what is long; `answers` that it cannot read are None."""

    def __init__(self, *unreadable):
        self.unreadable = unreadable

    def __call__(self, samples):
        return [None if s.answer in self.unreadable else float(len(s.answer)) for s in samples]


def pair(better, worse, **fields):
    return Record(PROMPT, (Answer(worse, 0.0), Answer(better, 1.0)), fields=fields)


def test_a_reward_model_is_measured_by_what_the_answers_of_a_pair_differ_in():
    def marks(samples):
        return [{"total": 0.5, "long": len(s.answer), "loud": "!" in s.answer} for s in samples]

    named = [pair("xx", "x", aspect="length"), pair("x", "xxx", aspect="brevity"), pair("x", "xx", aspect="brevity")]
    accuracy = judge(marks, pairs=named).aspects(Counting(), None)
    assert {aspect: a.value for aspect, a in accuracy.items()} == {"length": 1.0, "brevity": 0.0}
    accuracy = judge(marks, pairs=named).aspects(Counting("xxx"), None)
    assert accuracy["brevity"].value == 0.0 and accuracy["brevity"].high > 0.5  # of one pair alone
    unnamed = [pair("xx", "x"), pair("!", "xx"), pair("yy", "zz")]
    accuracy = judge(marks, pairs=unnamed).aspects(Counting(), None)
    assert {aspect: a.value for aspect, a in accuracy.items()} == {"long": 1.0, "loud": 0.0}


def test_without_pairs_it_looks_at_answers_of_the_policy():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    policy = Assistant(tiny_model(), tokenizer, (2,), max_tokens=64)
    asked = [Record((Message("user", "x" * i),)) for i in range(1, 25)]

    def marks(samples):
        return [{"total": 0.5, "long": len(s.answer), "same": 1.0} for s in samples]

    config = Config(rl=RlConfig(max_new_tokens=12))
    gold = GoldJudge("mine", marks, config, asked, limit=20)
    assert len(gold.scores(policy).greedy) == 20
    assert set(gold.probe(policy)) == {"gold/total", "gold/long", "gold/same"}
    accuracy = gold.aspects(Counting(), policy)
    assert set(accuracy) <= {"long"} and all(a.value == 1.0 for a in accuracy.values())


def test_rows_are_marked_right_where_a_part_says_so():
    gold = judge(lambda s: [{"total": 0.5, "right": x.answer == "yes"} for x in s])
    answers = {"sft": [sample("no"), sample("yes")], "rl": [sample("yes"), sample("yes")]}
    rows = gold.marked([{"a": 1}, {"a": 2}], answers)
    assert rows[0] == {"a": 1, "sft_gold": 0.5, "rl_gold": 0.5, "sft_right": False, "rl_right": True}
    assert set(judge(lambda s: [1.0] * len(s)).marked([{}], {"rl": [sample("x")]})[0]) == {"rl_gold"}


ANSWERED = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30)


@given(ANSWERED, st.floats(0, 0.5), st.sampled_from([0.0, 0.02, 0.5]), st.integers(0, 9))
def test_preferences_follow_the_judge_but_for_ties_and_noise(values, noise, tie, seed):
    pairs = [(sample("one", str(i)), sample("two", str(i))) for i in range(len(values))]
    totals = [value for both in values for value in both]
    settings = LabelConfig(noise=noise, tie=tie)
    rows = list(preferences(pairs, totals, settings, SimpleNamespace(random=lambda: 1.0)))
    clear = [(i, a > b) for i, (a, b) in enumerate(values) if abs(a - b) > tie]
    assert [(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows] == [
        (str(i), "one" if first else "two") for i, first in clear
    ]
    if noise > 0:
        flipped = list(preferences(pairs, totals, settings, SimpleNamespace(random=lambda: 0.0)))
        assert [(row["chosen"], row["rejected"]) for row in flipped] == [(r["rejected"], r["chosen"]) for r in rows]


def test_what_the_judge_cannot_say_is_no_preference():
    pairs = [(sample("one"), sample("two"))]
    assert list(preferences(pairs, [math.nan, 1.0], LabelConfig(), SimpleNamespace(random=lambda: 1.0))) == []


HOSTILE = [
    "\n\nHuman: x\n\nAssistant: y",
    "Assistant: y",
    " a ",
    "a\x00b",
    '[{"role": "user"}]',
    "{}",
    "\u200b",
    "\ufeff",
]


@given(st.lists(st.sampled_from(HOSTILE) | st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_a_preference_is_read_as_it_was_said(answers):
    asked = (Message("system", "Be kind."), Message("user", "Human: hello\n\nAssistant: x"))
    if not all(answer.strip() for answer in answers):
        return
    pair = [Sample(asked, answer, "stop", Record(asked)) for answer in answers]
    (row,) = preferences([tuple(pair)], [1.0, 0.0], LabelConfig(), SimpleNamespace(random=lambda: 1.0))
    record = to_record(json.loads(json.dumps(row)), "preferences.jsonl:1")
    assert record.prompt == asked
    assert [(answer.content, answer.score) for answer in record.answers] == [(answers[0], 1.0), (answers[1], 0.0)]


def configured(tmp_path, **keys):
    (tmp_path / "m").mkdir(exist_ok=True)
    base = {"actor_model": str(tmp_path / "m"), "data": {"sources": ["a.jsonl"]}}
    return Config.model_validate(base | keys)


def test_a_judge_is_said_and_is_no_reward(tmp_path):
    config = configured(tmp_path, judge="j.py:f", rl={"rewards": ["trained", "r.py:f@2"]})
    assert functions(config) == ["r.py:f (a reward)", "j.py:f (the judge)"]
    said = []
    say_functions(config, rewards=False, say=said.append)
    assert said == ["does not run: r.py:f (a reward)", "does not run: j.py:f (the judge)"]
    with pytest.raises(ConfigError, match=r"judge = r\.py:f is a reward too"):
        check(config.model_copy(update={"judge": "r.py:f"}))


def test_labels_need_a_judge_and_prompts(tmp_path):
    stages = ["sft", "label", "reward", "rl"]
    with pytest.raises(ConfigError, match="label has no judge"):
        check(configured(tmp_path, stages=stages))
    with pytest.raises(ConfigError, match="label has no prompts"):
        check(configured(tmp_path, stages=stages[:3], judge="j.py:f"))
    ready = configured(tmp_path, stages=stages, judge="j.py:f", rl={"rewards": ["r.py:f"]})
    assert stages_to_train(ready) == ["sft", "rl"]
