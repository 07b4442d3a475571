"""Packed = padded = one by one, forward and backward; no row sees another."""

import functools
import operator

import pytest
import torch
from tiny import FAMILIES, tiny_model

from chatsmith.data.batch import pad
from chatsmith.models.packing import Layout, packed_hidden_states, packs
from chatsmith.models.scoring import hidden_states

torch.manual_seed(0)
ROWS = [torch.randint(3, 300, (n,)).tolist() for n in (9, 26, 14, 3)]
PACKING = [family for family in FAMILIES if family != "bloom"]


def alone(backbone):
    return [backbone(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in ROWS]


def test_layout_by_hand():
    layout = Layout.of(torch.tensor([1, 3]), 3)
    assert layout.flat.tolist() == [0, 3, 4, 5]
    assert layout.positions.tolist() == [0, 0, 1, 2]
    padded = torch.tensor([[7, 0, 0], [4, 5, 6]])
    assert layout.pack(padded).tolist() == [7, 4, 5, 6]
    assert layout.unpack(layout.pack(padded)).tolist() == padded.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_pack(family):
    assert packs(tiny_model(family).base_model) == (family in PACKING)


@pytest.mark.parametrize("family", PACKING)
def test_packed_rows_give_the_hidden_states_of_rows_alone(family):
    backbone = tiny_model(family).base_model
    tokens, lengths = pad(ROWS, pad_id=0)
    with torch.no_grad():
        packed = packed_hidden_states(backbone, tokens, lengths)
        for row, expected in enumerate(alone(backbone)):
            torch.testing.assert_close(packed[row, : len(expected)], expected, atol=2e-5, rtol=1e-4)
        one_long_row = backbone(
            input_ids=torch.tensor([functools.reduce(operator.iadd, ROWS, [])]), use_cache=False
        ).last_hidden_state[0]
        assert not torch.allclose(one_long_row[9:35], packed[1, :26], atol=1e-2)  # what crossing records would give


@pytest.mark.parametrize("family", PACKING)
def test_packed_gradients_equal_those_of_rows_alone(family):
    gradients = []
    for packed in (True, False):
        backbone = tiny_model(family).base_model
        tokens, lengths = pad(ROWS, pad_id=0)
        if packed:
            states = hidden_states(backbone, tokens, lengths)
            loss = sum(states[i, :n].square().mean() for i, n in enumerate(lengths.tolist()))
        else:
            loss = sum(states.square().mean() for states in alone(backbone))
        loss.backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(g.abs().max().item() for g in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5 * scale, rtol=1e-3)


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    tokens, lengths = pad(ROWS, pad_id=0)
    packed_hidden_states(model.base_model, tokens, lengths)
    assert model.config._attn_implementation == before
    with pytest.raises(IndexError):
        packed_hidden_states(model.base_model, tokens + 10_000, lengths)
    assert model.config._attn_implementation == before
