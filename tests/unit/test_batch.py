"""Batches: every row once per epoch, resumable at any batch."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.data.batch import batches, best_fit, micro_batches, pad


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


def test_micro_batches_hold_every_row_once_and_keep_to_the_budget():
    lengths = [5, 90, 7, 30, 31, 8, 64, 5]
    groups = micro_batches(lengths, max_tokens=64)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(8))
    for group in groups:
        width = max(lengths[row] for row in group)
        assert len(group) == 1 or width * len(group) <= 64
    assert len(groups) < len(lengths)


def test_micro_batches_keep_the_rows_of_a_prompt_together():
    lengths = [9, 2, 5, 3, 9, 4, 2, 5]
    prompts = ["a", "b", "c", "b", "a", "c", "b", "a"]
    assert micro_batches(lengths, max_tokens=100, prompts=prompts) == [[1, 3, 6, 2, 5, 0, 4, 7]]
    assert micro_batches(lengths, max_tokens=27, prompts=prompts) == [[1, 3, 6, 2, 5], [0, 4, 7]]
    assert micro_batches(lengths, max_tokens=10, prompts=prompts) == [[1, 3, 6], [2, 5], [0], [4], [7]]
    assert micro_batches([9, 2, 5], max_tokens=100, prompts=[4, 2, 3]) == micro_batches([9, 2, 5], max_tokens=100)


def test_best_fit_by_hand():
    # 12 is alone; 6 opens A (4 left), 5 opens B (5 left); 4 fits A best, 3 and 2 fill B, the other 2 opens C
    assert best_fit([3, 6, 2, 12, 5, 2, 4], capacity=10) == [[3], [1, 6], [4, 0, 2], [5]]
    assert best_fit([], capacity=10) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 50))
def test_best_fit_is_what_a_search_through_all_packs_gives(lengths, capacity):
    packs = best_fit(lengths, capacity=capacity)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(lengths)))
    assert all(len(pack) == 1 or sum(lengths[row] for row in pack) <= capacity for pack in packs)
    rooms = []  # the same by search: the smallest room that is large enough
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(max(capacity, length) - length)
    assert sorted(
        max(capacity, *(lengths[row] for row in pack)) - sum(lengths[r] for r in pack) for pack in packs
    ) == sorted(rooms)


def test_padding_is_on_the_right():
    tokens, lengths = pad([[5, 6, 7], [8]], pad_id=0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == torch.int64
