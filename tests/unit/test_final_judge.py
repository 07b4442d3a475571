"""The second opinion: right about what its preferences are about, silent where it knows nothing."""

import random

from tiny import byte_tokenizer, tiny_model

from chatsmith.data.chat import prepare_tokenizer
from chatsmith.stages.final_judge import second_opinion
from chatsmith.types import Answer, Message, Record, Sample


def records(count, rng, *, meaningful):
    rows = []
    for i in range(count):
        good, bad = f"{rng.choice('abc')}!", f"{rng.choice('abc')}?"
        if not meaningful and rng.random() < 0.5:
            good, bad = bad, good
        prompt = (Message("user", f"q{i}"),)
        rows.append(Record(prompt=prompt, answers=(Answer(good, 1.0), Answer(bad, 0.0)), origin=f"x:{i}"))
    return rows


def opinion(meaningful, before, after):
    rng = random.Random(0)
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    prompts = [(Message("user", f"p{i}"),) for i in range(80)]

    def say(text):
        return [Sample(prompt, text, "stop", Record(prompt=prompt)) for prompt in prompts]

    return second_opinion(
        tiny_model(),
        tokenizer,
        records(300, rng, meaningful=meaningful),
        records(100, rng, meaningful=meaningful),
        say(before),
        say(after),
        stops=(2,),
        max_tokens=64,
        max_batch_tokens=4096,
    )


def test_it_prefers_what_its_preferences_prefer():
    better = opinion(True, "a?", "a!")
    assert better.accuracy.low > 0.8
    assert better.win_rate.low > 0.5
    assert str(better).startswith("better")
    assert str(opinion(True, "a!", "a?")).startswith("worse")


def test_equal_answers_are_neither_better_nor_worse():
    same = opinion(True, "a!", "a!")
    assert same.win_rate.value == 0.5
    assert str(same).startswith("neither")


def test_a_head_that_learned_nothing_does_not_judge():
    assert str(opinion(False, "a?", "a!")).startswith("not judged")
