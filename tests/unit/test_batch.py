"""Batches: every row once per epoch, resumable at any batch."""

import itertools

from chatsmith.stages.loop import batches


def test_every_row_is_seen_once_per_epoch_even_if_the_batch_does_not_divide_it():
    stream = batches(10, size=4, seed=3)
    seen = list(itertools.chain.from_iterable(next(stream) for _ in range(5)))
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_stream_started_later_continues_at_the_very_next_batch():
    whole = [next_batch for _, next_batch in zip(range(9), batches(10, size=4, seed=3), strict=False)]
    for start in range(9):
        stream = batches(10, size=4, seed=3, start=start)
        assert [next(stream) for _ in range(9 - start)] == whole[start:]
    other = batches(10, size=4, seed=4)
    assert [next(other) for _ in range(9)] != whole


def test_a_batch_larger_than_the_data_takes_several_epochs():
    (batch,) = itertools.islice(batches(3, size=8, seed=0), 1)
    assert len(batch) == 8
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
