"""Rows and queue of the engine, without a model."""

import random

from chatsmith.engine.scheduler import Request, Sampling, Scheduler, prompts_of


def request(length=3, limit=5, seeds=(0,)):
    return Request(tuple(range(length)), limit, (99,), Sampling(), tuple(seeds))


def admitted(scheduler):
    return [(sequence.request, sequence.sample) for sequence in scheduler.admit()]


def test_sequences_are_admitted_in_order_up_to_the_rows_and_the_token_budget():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=20, chunked=True)
    for id, length in enumerate((6, 6, 9, 6, 6)):
        scheduler.add(id, request(length))
    assert admitted(scheduler) == [(0, 0), (1, 0)]  # a third would make 3 x 9 padded tokens
    assert admitted(scheduler) == [(2, 0), (3, 0)]
    assert admitted(scheduler) == []  # full
    whole = Scheduler(max_rows=4, max_prefill_tokens=20, chunked=False)
    whole.add(0, request(50))
    assert admitted(whole) == [(0, 0)]  # alone, a prompt of any length begins


def test_a_long_prompt_is_computed_in_chunks_alone_and_rows_have_every_other_turn():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=20, chunked=True)
    scheduler.add(0, request(20))  # no longer than a pass
    assert admitted(scheduler) == [(0, 0)]
    scheduler.add(1, request(45, seeds=(0, 1)))
    scheduler.add(2, request())
    assert scheduler.chunk() == (), "nothing has begun"
    assert admitted(scheduler) == [], "its rows come with its last token"
    turns = []
    while scheduler.begun:
        turns.append(scheduler.chunk())
        assert admitted(scheduler) == [], "there is a free row, and request 2 waits"
        assert [(row.request, row.sample) for row in scheduler.rows] == [(0, 0)]
        started = scheduler.start()
    assert turns == [(), tuple(range(20)), (), tuple(range(20, 40)), (), tuple(range(40, 45))]
    assert [(sequence.request, sequence.sample) for sequence in started] == [(1, 0), (1, 1)]
    assert scheduler.rows[1:] == started
    assert admitted(scheduler) == [(2, 0)]


def test_without_rows_a_chunk_follows_the_other():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=20, chunked=True)
    scheduler.add(0, request(40))
    scheduler.admit()
    assert [len(scheduler.chunk()), scheduler.start(), len(scheduler.chunk())] == [20, [], 20]
    assert len(scheduler.start()) == 1


def test_a_request_that_is_cancelled_between_two_chunks_lets_the_next_begin():
    scheduler = Scheduler(max_rows=2, max_prefill_tokens=20, chunked=True)
    for id in range(2):
        scheduler.add(id, request(30, seeds=(0, 1, 2)))  # one sample waits for a row
    scheduler.admit()
    scheduler.chunk()
    assert scheduler.cancel(1) == scheduler.cancel(0) == []
    assert scheduler.idle
    scheduler.add(2, request(30))
    assert admitted(scheduler) == []
    assert scheduler.chunk() == tuple(range(20)), "from the beginning"
    scheduler.clear()
    assert scheduler.idle


def test_room_is_asked_for_the_longest_sequence_and_beside_it_for_the_longest_prompt_in_chunks():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=20, chunked=True)
    for id, (length, limit) in enumerate(((10, 90), (30, 5), (25, 5))):
        scheduler.add(id, request(length, limit))
    assert (scheduler.longest, scheduler.longest_chunked) == (100, 30)
    assert len(scheduler.admit()) == 1
    scheduler.release(0)
    assert (scheduler.longest, scheduler.longest_chunked) == (35, 30), "of what is still there"
    scheduler.clear()
    scheduler.add(0, request(20))
    assert (scheduler.longest, scheduler.longest_chunked) == (25, 0)
    scheduler.add(1, request(10, 60, seeds=range(3)))
    scheduler.cancel(1)
    assert (scheduler.longest, scheduler.longest_chunked) == (25, 0)


def test_samples_of_a_prompt_share_its_prefill_even_where_rows_run_out():
    scheduler = Scheduler(max_rows=4, max_prefill_tokens=100, chunked=True)
    scheduler.add(0, request(seeds=range(3)))
    scheduler.add(1, request(length=4, seeds=range(3)))
    prompts, index = prompts_of(scheduler.admit())
    assert (prompts, index) == ([(0, 1, 2), (0, 1, 2, 3)], [0, 0, 0, 1])
    for row in (3, 2, 1, 0):
        scheduler.release(row)
    prompts, index = prompts_of(scheduler.admit())
    assert (prompts, index) == ([(0, 1, 2, 3)], [0, 0])


def test_new_sequences_wait_until_a_quarter_of_the_rows_is_free():
    scheduler = Scheduler(max_rows=8, max_prefill_tokens=1000, chunked=True)
    for id in range(12):
        scheduler.add(id, request())
    assert len(scheduler.admit()) == 8
    scheduler.release(7)
    assert scheduler.admit() == []
    scheduler.release(6)
    assert admitted(scheduler) == [(8, 0), (9, 0)]


def test_a_sequence_ends_at_a_stop_or_at_its_limit():
    scheduler = Scheduler(max_rows=2, max_prefill_tokens=100, chunked=True)
    scheduler.add(0, request(limit=2, seeds=(0, 1)))
    first, second = scheduler.admit()
    assert [first.take(5), first.take(6)] == [None, "length"]
    assert second.take(99) == "stop"
    assert (first.position, first.last) == (4, 6)


def test_ten_thousand_requests_through_sixteen_rows_leak_nothing_and_stay_dense():
    rng = random.Random(0)
    scheduler = Scheduler(max_rows=16, max_prefill_tokens=50, chunked=True)
    for id in range(10_000):
        scheduler.add(id, request(rng.randint(1, 60), rng.randint(1, 6), range(rng.randint(1, 3))))
    cancelled = set(rng.sample(range(10_000), 500))
    where: dict[int, object] = {}  # what a cache would hold in each row
    ended = 0
    while not scheduler.idle:
        before = len(scheduler.rows)
        began = scheduler.admit()
        if scheduler.chunk():
            began = scheduler.start()
        for offset, sequence in enumerate(began):
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
