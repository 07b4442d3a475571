"""The second opinion: right about what its preferences are about, silent where it knows nothing."""

import random

from tiny import byte_tokenizer, tiny_model

from chatsmith.assistant import Assistant
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.evaluate import proportion
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
        Assistant(tiny_model(), tokenizer, (2,), max_tokens=64),
        records(300, rng, meaningful=meaningful),
        records(100, rng, meaningful=meaningful),
        say(before),
        say(after),
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


def test_pairs_of_one_prompt_are_one_opinion():
    """Nine answers to a prompt, ranked by chance: 36 pairs, which hold or fall together."""
    rng = random.Random(1)
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")

    def ranked(count, start):
        made = []
        for i in range(start, start + count):
            order = rng.sample(range(9), 9)
            answers = tuple(Answer(f"{rank}{'!' * rank}", float(score)) for rank, score in enumerate(order))
            made.append(Record(prompt=(Message("user", f"q{i}"),), answers=answers, origin=f"x:{i}"))
        return made

    said = [Sample((Message("user", f"p{i % 4}"),), "a!", "stop", Record()) for i in range(64)]
    judged = second_opinion(
        Assistant(tiny_model(), tokenizer, (2,), max_tokens=64),
        ranked(20, 0),
        ranked(12, 100),
        said,
        [Sample(sample.messages, "a?", "stop", sample.record) for sample in said],
        max_batch_tokens=4096,
    )
    independent = proportion(judged.accuracy.value * 12 * 36, 12 * 36)
    assert judged.accuracy.high - judged.accuracy.low > 1.3 * (independent.high - independent.low)
    assert judged.win_rate.high - judged.win_rate.low > 0.4  # four prompts, however often they are asked
