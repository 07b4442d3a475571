"""Passes: every row once, within the budget, and the same ones wherever they are planned."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.models.passes import Layout, Pass, grouped, pad, passes

LENGTHS = [9, 2, 5, 3, 9, 4, 2, 5]
PROMPTS = ["a", "b", "c", "b", "a", "c", "b", "a"]


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_a_prompt_follow_each_other_the_short_ones_first(packed):
    packs = {100: [[1, 3, 6, 2, 5, 0, 4, 7]], 27: [[1, 3, 6, 2, 5, 0], [4, 7]], 10: [[1, 3, 6], [2, 5], [0], [4], [7]]}
    padded = packs | {27: [[1, 3, 6, 2, 5], [0, 4, 7]]}
    for budget, groups in (packs if packed else padded).items():
        assert grouped(LENGTHS, max_tokens=budget, packed=packed, together=PROMPTS) == groups
    alone = grouped([9, 2, 5], max_tokens=100, packed=packed)
    assert grouped([9, 2, 5], max_tokens=100, packed=packed, together=[4, 2, 3]) == alone == [[1, 2, 0]]
    assert grouped([], max_tokens=10, packed=packed) == []


def test_a_prompt_that_is_not_divided_may_be_longer_than_a_pass():
    groups = grouped(LENGTHS, max_tokens=10, packed=True, together=PROMPTS, whole=True)
    assert groups == [[1, 3, 6], [2, 5], [0, 4, 7]]
    assert grouped(LENGTHS, max_tokens=16, packed=True, together=PROMPTS, whole=True) == [[1, 3, 6, 2, 5], [0, 4, 7]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), max_size=80),
    st.integers(1, 200),
    st.booleans(),
    st.booleans(),
)
def test_every_row_is_in_one_pass_and_passes_keep_to_the_budget(rows, budget, packed, whole):
    lengths, prompts = [length for length, _ in rows], [prompt for _, prompt in rows]
    groups = grouped(lengths, max_tokens=budget, packed=packed, together=prompts, whole=whole)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(len(rows)))
    assert all(groups)
    for group in groups:
        inside = [lengths[row] for row in group]
        cost = sum(inside) if packed else max(inside) * len(inside)
        units = {prompts[row] for row in group} if whole else group
        assert cost <= budget or len(units) == 1
    order = [prompts[row] for row in itertools.chain.from_iterable(groups)]
    assert len(list(itertools.groupby(order))) == len(set(prompts))  # no prompt is met twice


def test_packed_rows_fill_their_passes():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 512, (4096,), generator=generator).tolist()
    found = {packed: len(grouped(lengths, max_tokens=8192, packed=packed)) for packed in (True, False)}
    fill = {packed: sum(lengths) / (8192 * count) for packed, count in found.items()}
    assert fill[True] > 0.97 > fill[False] > 0.9


def test_a_pass_is_its_rows():
    (one, two) = passes([[5, 6, 7], [8], [9, 9]], max_tokens=3, packed=True, device=torch.device("cpu"))
    assert (one.index, one.rows) == ([1, 2], [[8], [9, 9]])
    assert two.tokens.tolist() == [[5, 6, 7]]
    assert one.tokens.tolist() == [[8, 0], [9, 9]]
    assert one.real.tolist() == [[True, False], [True, True]]
    assert (one.lengths.tolist(), one.width) == ([1, 2], 2)
    assert pad([[5, 6, 7], [8]]).tolist() == [[5, 6, 7], [8, 0, 0]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12))
def test_a_layout_has_a_node_for_every_prefix(rows):
    layout = Layout.of(rows)
    part = Pass.of(rows)
    assert len(layout.tokens) == len({tuple(row[: n + 1]) for row in rows for n in range(len(row))})
    assert torch.equal(layout.unpack(layout.tokens)[part.real], part.tokens[part.real])
    positions = torch.arange(part.width).expand_as(part.tokens)
    assert torch.equal(layout.unpack(layout.positions)[part.real], positions[part.real])
    nodes: dict[tuple[int, ...], int] = {}
    for row, numbers in zip(rows, layout.index.tolist(), strict=True):
        for n in range(len(row)):
            assert nodes.setdefault(tuple(row[: n + 1]), numbers[n]) == numbers[n]
    assert torch.equal(layout.ungroup(layout.regroup(layout.tokens)), layout.tokens)
    assert layout.tokens.dtype == layout.index.dtype == torch.int64
