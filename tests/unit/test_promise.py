"""What a dry run promises is what a run then does."""

import pytest
from tiny import byte_tokenizer

from chatsmith.config import Config
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.data.mix import StageData
from chatsmith.data.records import choose
from chatsmith.errors import DataError
from chatsmith.evaluate import MIN_PROMPTS
from chatsmith.promise import promise
from chatsmith.stages.reward import encode_ranked
from chatsmith.stages.rollout import check_held_out, encode_questions
from chatsmith.stages.sft import encode_best_answers
from chatsmith.stages.table import BY_NAME
from chatsmith.types import Answer, Message, Record

LIMIT = 64


def records(count: int, long: float) -> list[Record]:
    """Of which a share is longer than the limit."""
    made = []
    for i in range(count):
        answers = (Answer("yes " * (40 if i < long * count else 1), 1.0), Answer("no", 0.0))
        prompt = Message("user", f"{'why ' * (40 if i < long * count else 1)}{i}")
        made.append(Record(prompt=(prompt,), answers=answers, origin=f"x:{i}"))
    return made


def tokenizer():
    made = byte_tokenizer()
    prepare_tokenizer(made, "test")
    return made


def promised(stage, train, held_out, **rl):
    config = Config.model_validate({"sft": {"batch": 8}, "reward": {"batch": 8}, "rl": {"max_new_tokens": 8} | rl})
    data = StageData(choose(train, _all(train)), choose(held_out, _all(held_out)))
    return promise(stage, data, config, tokenizer(), (2,), LIMIT), config


def _all(rows):
    import numpy as np

    return np.arange(len(rows))


@pytest.mark.parametrize("long", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_records_steps_and_tokens_are_those_of_the_stage(stage, long):
    train, held_out = records(120, long), records(40, long)
    made, config = promised(stage, train, held_out)
    rows = {
        "sft": lambda some: encode_best_answers(tokenizer(), some, stops=(2,), max_tokens=LIMIT)[0],
        "reward": lambda some: encode_ranked(tokenizer(), some, stops=(2,), max_tokens=LIMIT)[0],
        "rl": lambda some: encode_questions(tokenizer(), some, stops=(2,), max_tokens=LIMIT - 8).tokens,
    }[stage]
    assert (made.train, made.held_out) == (len(rows(train)), len(rows(held_out)))
    assert made.too_long == 160 - made.train - made.held_out == round(160 * long)
    assert made.steps == BY_NAME[stage].work.total_steps(config, made.train)
    assert made.is_exact
    assert f"steps: {made.steps} of" in str(made)
    assert ("left out" in str(made)) == (long > 0)
    if stage == "sft":
        tokens = sum(len(row.tokens) for row in rows(train))
        assert made.tokens == pytest.approx(made.steps * 8 * tokens / made.train)


def test_of_many_records_a_sample_is_read_and_the_promise_says_about():
    train = records(5000, 0.3)
    made, _ = promised("sft", train, records(40, 0.0))
    assert not made.is_exact
    assert made.train == pytest.approx(3500, rel=0.1)
    assert str(made).startswith(f"sft: about {made.train} records to train on, 40 held out (about ")


def test_where_nothing_is_short_enough_there_is_no_promise():
    for train, held_out in ((records(9, 1.0), records(9, 0.0)), (records(9, 0.0), records(9, 1.0))):
        with pytest.raises(DataError, match="no usable record"):
            promised("sft", train, held_out)


def test_stage_three_asks_for_sixteen_different_held_out_prompts():
    def prompts(rows):
        return encode_questions(tokenizer(), rows, stops=(2,), max_tokens=LIMIT)

    check_held_out(prompts(records(MIN_PROMPTS, 0.0)), stage="rl")
    with pytest.raises(
        DataError, match=r"rl: 15 held-out prompts, and its gate judges from 16 on. Raise --data.held_out"
    ):
        check_held_out(prompts(records(15, 0.0)), stage="rl")
    with pytest.raises(DataError, match=r"15 held-out prompts; 15 more leave no room"):
        check_held_out(prompts(records(30, 0.5)), stage="rl")
    with pytest.raises(DataError, match=r"1 held-out prompts \(different ones among 64\)"):
        check_held_out(prompts([records(1, 0.0)[0]] * 64), stage="rl")
