"""Rows and queue of the engine, without a model."""

import random

from chatsmith.engine.scheduler import Request, Sampling, Scheduler, prompts_of


def request(length=3, limit=5, seeds=(0,)):
    return Request(tuple(range(length)), limit, (99,), Sampling(), tuple(seeds))


def admitted(scheduler):
    return [(sequence.request, sequence.sample) for sequence in scheduler.admit()]


def test_sequences_are_admitted_in_order_up_to_the_rows_and_the_token_budget():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=20)
    for id, length in enumerate((6, 6, 9, 6, 6)):
        scheduler.add(id, request(length))
    assert admitted(scheduler) == [(0, 0), (1, 0)]  # a third would make 3 x 9 padded tokens
    assert admitted(scheduler) == [(2, 0), (3, 0)]
    assert admitted(scheduler) == []  # full
    huge = Scheduler(max_rows=4, max_prefill_tokens=20)
    huge.add(0, request(50))
    assert admitted(huge) == [(0, 0)]  # alone, a prompt of any length begins


def test_samples_of_a_prompt_share_its_prefill_even_where_rows_run_out():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=100)
    scheduler.add(0, request(seeds=range(3)))
    scheduler.add(1, request(length=4, seeds=range(3)))
    prompts, index = prompts_of(scheduler.admit())
    assert (prompts, index) == ([(0, 1, 2), (0, 1, 2, 3)], [0, 0, 0, 1])
    for row in (3, 2, 1, 0):
        scheduler.release(row)
    prompts, index = prompts_of(scheduler.admit())
    assert (prompts, index) == ([(0, 1, 2, 3)], [0, 0])


def test_new_sequences_wait_until_a_quarter_of_the_rows_is_free():
    scheduler = Scheduler(max_rows=8, max_prefill_tokens=1000)
    for id in range(12):
        scheduler.add(id, request())
    assert len(scheduler.admit()) == 8
    scheduler.release(7)
    assert scheduler.admit() == []
    scheduler.release(6)
    assert admitted(scheduler) == [(8, 0), (9, 0)]


def test_a_sequence_ends_at_a_stop_or_at_its_limit():
    scheduler = Scheduler(max_rows=2, max_prefill_tokens=100)
    scheduler.add(0, request(limit=2, seeds=(0, 1)))
    first, second = scheduler.admit()
    assert [first.take(5), first.take(6)] == [None, "length"]
    assert second.take(99) == "stop"
    assert (first.position, first.last) == (4, 6)


def test_ten_thousand_requests_through_sixteen_rows_leak_nothing_and_stay_dense():
    rng = random.Random(0)
    scheduler = Scheduler(max_rows=16, max_prefill_tokens=200)
    for id in range(10_000):
        scheduler.add(id, request(rng.randint(1, 40), rng.randint(1, 6), range(rng.randint(1, 3))))
    cancelled = set(rng.sample(range(10_000), 500))
    where: dict[int, object] = {}  # what a cache would hold in each row
    ended = 0
    while not scheduler.idle:
        before = len(scheduler.rows)
        for offset, sequence in enumerate(scheduler.admit()):
            where[before + offset] = sequence
        assert len(scheduler.rows) <= 16
        assert [where[row] for row in range(len(scheduler.rows))] == scheduler.rows
        ending = [row for row, sequence in enumerate(scheduler.rows) if sequence.take(rng.randrange(3)) is not None]
        if cancelled and rng.random() < 0.1:
            chosen = rng.choice([*cancelled])
            cancelled.discard(chosen)
            ending = sorted({*ending, *scheduler.cancel(chosen)})
        for row in reversed(ending):
            ended += 1
            source = scheduler.release(row)
            if source is not None:
                where[row] = where[source]
    assert scheduler.rows == []
    assert not scheduler.admit()
    assert ended > 9_000
