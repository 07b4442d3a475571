"""Products by oneDNN are those of torch, and so are their gradients."""

import pytest
import torch
from torch.nn.functional import linear

import chatsmith.cpu.products as products

ROWS = products.LEAST_ROWS

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch comes without oneDNN here")


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    monkeypatch.setattr(products, "_pays", lambda: True)
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 1)


@pytest.fixture
def calls(monkeypatch):
    """Counts the products that oneDNN computes."""
    made, product = [], products._product
    monkeypatch.setattr(products, "_product", lambda *a: made.append(1) or product(*a))
    return made


def inside(least=40 * 24, rows=ROWS):
    """A module with products of these sizes computes."""
    return products.fast_products(torch.nn.Linear(least, 1), rows)


def drawn(*, rows=(2, ROWS), bias=True):
    torch.manual_seed(0)
    return [torch.randn(*shape, requires_grad=True) for shape in ((*rows, 40), (24, 40), *([(24,)] if bias else []))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(2, ROWS), (ROWS,)])
def test_products_and_gradients_are_those_of_torch(calls, rows, bias):
    inputs = drawn(rows=rows, bias=bias)
    weights = torch.randn(*rows, 24)
    usual = linear(*inputs)
    expected = torch.autograd.grad((usual * weights).sum(), inputs)
    with inside():
        found = linear(*inputs)
    assert len(calls) == 1
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    assert len(calls) == 2, "the gradient of the input is a product of oneDNN's too"
    torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-5)  # 40 terms each in another order
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # up to 512 terms
    assert (found - linear(inputs[0], inputs[1] * 1.01, *inputs[2:])).abs().max() > 1e-2


def test_only_gradients_that_somebody_asks_for_are_computed(calls):
    x, weight = drawn(bias=False)
    with inside():
        (of_weight,) = torch.autograd.grad(linear(x.detach(), weight).sum(), [weight])
    torch.testing.assert_close(of_weight, x.detach().sum((0, 1)).expand(24, -1), rtol=1e-4, atol=1e-4)
    assert len(calls) == 1
    with inside():
        (of_x,) = torch.autograd.grad(linear(x, weight.detach()).sum(), [x])
    torch.testing.assert_close(of_x, weight.detach().sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


def test_few_rows_small_products_and_other_types_are_left_to_torch(calls, monkeypatch):
    x, weight = drawn(rows=(ROWS - 1,), bias=False)
    with inside():
        linear(x, weight)
        linear(torch.randn(ROWS, 40, dtype=torch.float64), weight.double())
    linear(*drawn())
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 1 << 27)
    with inside(256 * 128, 4096):  # 2^27
        linear(*drawn())
        assert not calls
        linear(torch.randn(4096, 128), torch.randn(256, 128))
    assert calls


def test_operations_are_looked_at_where_a_product_is_large_enough_alone(monkeypatch):
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 1 << 27)
    model = torch.nn.Sequential(torch.nn.Embedding(1 << 20, 128), torch.nn.Linear(128, 256), torch.nn.Linear(128, 8))
    for rows, expected in ((4095, 0), (4096, 1)):
        with products.fast_products(model, rows):
            assert torch.overrides._len_torch_function_stack() == expected
    with products.fast_products(torch.nn.Embedding(1 << 20, 128), 1 << 20):
        assert torch.overrides._len_torch_function_stack() == 0


def test_a_product_may_be_changed_in_place():  # OLMo with clip_qkv clamps its queries
    x, weight = drawn(bias=False)
    expected = torch.autograd.grad(linear(x, weight).clamp(max=0.5).sum(), [weight])
    with inside():
        product = linear(x, weight)
    torch.testing.assert_close(torch.autograd.grad(product.clamp_(max=0.5).sum(), [weight]), expected)


def test_inputs_of_frozen_weights_are_not_kept():
    x, weight = drawn(bias=False)
    kept = []
    with inside(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(x * 1, weight.detach())
    assert [tuple(t.shape) for t in kept] == [tuple(weight.shape)]
