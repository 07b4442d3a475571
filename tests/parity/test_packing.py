"""Packed = padded = one by one, forward and backward; no row sees another."""

import functools
import operator

import pytest
import torch
from tiny import FAMILIES, tiny_model

from chatsmith.models.attention import packed_states
from chatsmith.models.passes import Layout, Pass
from chatsmith.models.scoring import hidden_states
from chatsmith.models.way import way_of

torch.manual_seed(0)
ROWS = [torch.randint(3, 300, (n,)).tolist() for n in (9, 26, 14, 3)]
PACKING = [family for family in FAMILIES if family != "bloom"]


def random_row(count):
    return torch.randint(3, 300, (count,)).tolist()


COMMON = random_row(11)
TREES = {  # rows, and how many nodes their prefix tree has
    "a preferred and a refused answer": ([[*COMMON, 7, *random_row(4)], [*COMMON, 8, *random_row(9)]], 11 + 5 + 10),
    "identical rows": ([COMMON, ROWS[0], COMMON], 11 + 9),
    "a row that another begins with": ([[*COMMON, 5], COMMON, [*COMMON, 5, 6]], 13),
    "one row": ([COMMON], 11),
    "nothing shared": ([[n, *row] for n, row in enumerate(ROWS, 300)], 4 + sum(map(len, ROWS))),
    "three generations": ([[9, 1, 2], [9, 1, 2, 3, 4], [9, 1, 5], [9, 6, 2, 3], [8, 1, 2]], 3 + 2 + 1 + 3 + 3),
    "the same tokens behind different ones": ([[4, *COMMON], [5, *COMMON]], 24),
    "padding that is a real token elsewhere": ([[9, 5], [9, 5, 0, 0], [9, 5, 0]], 4),
}


def alone(backbone, rows=ROWS):
    return [backbone(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in rows]


def test_layout_by_hand():
    layout = Layout.of([[7, 6], [4], [7, 6, 0, 5]])
    tree = [(0, 4), (0, 7), (1, 6), (2, 0), (3, 5)]  # (position, token) of each node, row after sorted row
    assert layout.positions.tolist() == [position for position, _ in tree]
    assert layout.index[0, :2].tolist() == [1, 2]
    assert layout.index[1, :1].tolist() == [0]
    assert layout.index[2].tolist() == [1, 2, 3, 4]
    packed = layout.tokens
    assert packed.tolist() == [token for _, token in tree]
    # lengths 4, 2 and 1 are too different to stand side by side
    groups = layout.regroup(packed)
    assert [group.tolist() for group in groups] == [[[7, 6, 0, 5]], [[7, 6]], [[4]]]
    assert layout.ungroup(groups).tolist() == packed.tolist()


def test_rows_of_similar_length_attend_side_by_side():
    def widths(lengths):
        rows = [random_row(length) for length in lengths]
        layout = Layout.of(rows)
        packed = layout.tokens
        assert layout.ungroup(layout.regroup(packed)).tolist() == packed.tolist()
        return [tuple(group.shape) for group in layout.groups]

    assert widths([9, 10, 8, 10]) == [(4, 10)]
    assert widths([40, 3, 39, 4, 5, 20]) == [(2, 40), (1, 20), (2, 5), (1, 3)]
    assert widths([7]) == [(1, 7)]


@pytest.mark.parametrize("tree", TREES)
def test_every_node_of_the_prefix_tree_is_computed_once(tree):
    rows, nodes = TREES[tree]
    assert nodes == len({tuple(row[: n + 1]) for row in rows for n in range(len(row))})
    backbone = tiny_model().base_model
    assert way_of(backbone).rows == "packed"  # its trial is not to be counted
    seen = []
    backbone.get_input_embeddings().register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    hidden_states(backbone, *padded(rows))
    assert seen == [(1, nodes)]


def padded(rows):
    """The arguments of `hidden_states` for all tokens of the rows."""
    part = Pass.of(rows)
    return part, part.real


def states_and_gradients(rows, family="llama", packed=True):
    backbone = tiny_model(family).base_model
    weights = torch.Generator().manual_seed(5)
    states = hidden_states(backbone, *padded(rows)) if packed else torch.cat(alone(backbone, rows))
    (states * torch.randn(states.shape, generator=weights)).sum().backward()
    return states.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}


def difference(one, two):
    """Largest relative error of states and of any parameter's gradient."""
    pairs = [(one[0], two[0]), *((one[1][name], gradient) for name, gradient in two[1].items())]
    return max((float((a - b).norm() / b.norm()) for a, b in pairs if b.norm() > 1e-4), default=0.0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt-350m", "qwen3", "gpt-neox", "gemma"])
@pytest.mark.parametrize("tree", TREES)
def test_shared_prefixes_change_neither_states_nor_gradients(tree, family):
    rows, _ = TREES[tree]
    packed, plain = states_and_gradients(rows, family), states_and_gradients(rows, family, packed=False)
    assert packed[1].keys() == plain[1].keys()
    assert difference(packed, plain) < 1e-5


def test_one_token_shared_too_many_would_be_noticed(monkeypatch):
    rows, _ = TREES["a preferred and a refused answer"]
    plain = states_and_gradients(rows, packed=False)
    assert difference(states_and_gradients(rows), plain) < 1e-5
    layout_of = Layout.of

    def first_difference_ignored(rows, device):
        return layout_of([[*row[:11], rows[1][11], *row[12:]] for row in rows], device)

    monkeypatch.setattr(Layout, "of", first_difference_ignored)
    assert difference(states_and_gradients(rows), plain) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_pack(family):
    assert (way_of(tiny_model(family).base_model).rows == "packed") == (family in PACKING)


@pytest.mark.parametrize("family", PACKING)
def test_packed_rows_give_the_hidden_states_of_rows_alone(family):
    backbone = tiny_model(family).base_model
    with torch.no_grad():
        packed = hidden_states(backbone, *padded(ROWS))
        torch.testing.assert_close(packed, torch.cat(alone(backbone)), atol=2e-5, rtol=1e-4)
        one_long_row = backbone(
            input_ids=torch.tensor([functools.reduce(operator.iadd, ROWS, [])]), use_cache=False
        ).last_hidden_state[0]
        assert not torch.allclose(one_long_row[9:35], packed[9:35], atol=1e-2)  # what crossing records would give


@pytest.mark.parametrize("family", PACKING)
def test_packed_gradients_equal_those_of_rows_alone(family):
    gradients = []
    for packed in (True, False):
        backbone = tiny_model(family).base_model
        if packed:
            states = hidden_states(backbone, *padded(ROWS)).split([len(row) for row in ROWS])
            loss = sum(states.square().mean() for states in states)
        else:
            loss = sum(states.square().mean() for states in alone(backbone))
        loss.backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(g.abs().max().item() for g in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5 * scale, rtol=1e-3)


def test_a_model_that_was_packed_computes_plain_rows_as_before(tmp_path):
    plain, model = tiny_model("mistral"), tiny_model("mistral")
    part = Pass.of(ROWS)
    hidden_states(model.base_model, part, part.real)
    with pytest.raises(IndexError):
        packed_states(model.base_model, Layout.of([[10_000]]))
    assert plain.config._attn_implementation != model.config._attn_implementation
    mask = part.real.long()
    expected, found = (m(input_ids=part.tokens, attention_mask=mask).logits for m in (plain, model))
    assert torch.equal(found[part.real], expected[part.real])
    greedy = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask, "pad_token_id": 0}
    assert torch.equal(model.generate(part.tokens, **greedy), plain.generate(part.tokens, **greedy))
    model.save_pretrained(tmp_path)
    assert "chatsmith" not in (tmp_path / "config.json").read_text()
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == plain.config._attn_implementation
