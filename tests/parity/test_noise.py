"""By how much right forward passes differ is measured, and lowered at the head."""

import copy

import pytest
import torch
from tiny import tiny_model

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.models.head import SinglePrecisionLinear, compute_head_in_single_precision
from chatsmith.models.noise import USUAL, _logprobs, _SinglePrecision, rounding_noise

ROWS = [torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in (40, 12, 25)]
PLACES = [torch.arange(len(row)) >= 5 for row in ROWS]


def half(family="llama"):
    model = tiny_model(family).to(torch.bfloat16)
    compute_head_in_single_precision(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
def test_weights_that_are_widened_where_they_are_used_compute_as_a_model_in_fp32(family):
    model = half(family)
    with torch.no_grad(), _SinglePrecision():
        found = _logprobs(model, ROWS, PLACES, 1.0)
    with torch.no_grad():
        wide = copy.deepcopy(model).float()
        expected = _logprobs(wide, ROWS, PLACES, 1.0)
        narrow = _logprobs(model, ROWS, PLACES, 1.0)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (narrow - expected).abs().mean() > 1e-3


def test_noise_is_the_mean_difference_of_tokens_that_count():
    model = half()
    with torch.no_grad():
        wide = copy.deepcopy(model).float()
        one, two = (_logprobs(each, ROWS, PLACES, 0.7) for each in (model, wide))
    assert rounding_noise(model, ROWS, PLACES, temperature=0.7) == pytest.approx(
        (one - two).abs().mean().item(), rel=0.01
    )
    assert len(one) == sum(len(row) - 5 for row in ROWS)


def test_noise_in_fp32_is_small_and_in_bf16_is_not():
    assert rounding_noise(tiny_model(), ROWS, PLACES, temperature=1.0) < 1e-5
    assert 1e-3 < rounding_noise(half(), ROWS, PLACES, temperature=1.0) < 0.2


def test_a_kernel_that_takes_half_precision_alone_leaves_the_usual_noise(monkeypatch):
    def narrow(self, x):
        if x.dtype != torch.bfloat16:
            raise RuntimeError("expected bf16")
        return torch.nn.functional.silu(x)

    model = half()
    for layer in model.model.layers:
        layer.mlp.act_fn.forward = narrow.__get__(layer.mlp.act_fn)
    assert rounding_noise(model, ROWS, PLACES, temperature=1.0) == USUAL


def test_a_wide_head_multiplies_exactly_and_has_the_gradients_of_fp32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 300).bfloat16()
    layer.__class__ = SinglePrecisionLinear
    x = torch.randn(2, 5, 64).bfloat16().requires_grad_()
    output = layer(x)
    assert output.dtype == torch.float32
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-6)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    torch.testing.assert_close(x.grad, (weights @ layer.weight.float()).bfloat16())
    torch.testing.assert_close(layer.weight.grad, torch.einsum("bto,bti->oi", weights, x.float()).bfloat16())


def test_rollouts_use_the_wide_head_and_copies_have_their_own():
    model = half()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    ids = torch.tensor([[5, 6, 7]])
    assert twin(ids).logits.abs().max() == 0 != model(ids).logits.abs().max()
    requests = [Request(tuple(row[:9].tolist()), 8, (), Sampling(), (n,)) for n, row in enumerate(ROWS * 2)]
    packed, plain = (Engine(model, max_batch=n).generate(requests) for n in (6, 1))  # one row is not packed
    same = [(a[0], b[0]) for a, b in zip(packed, plain, strict=True) if a[0].tokens == b[0].tokens]
    gaps = [abs(x - y) for a, b in same for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    assert gaps
    assert sum(gaps) / len(gaps) < 0.05


def test_nothing_changes_in_fp32():
    model = tiny_model()
    compute_head_in_single_precision(model)
    assert type(model.lm_head) is torch.nn.Linear
