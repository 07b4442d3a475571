"""Batches: every row once per epoch, resumable at any batch."""

import itertools

import torch

from chatsmith.data.batch import batches, micro_batches, pad


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


def test_padding_is_on_the_right():
    tokens, lengths = pad([[5, 6, 7], [8]], pad_id=0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == torch.int64
