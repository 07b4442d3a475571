"""Optimizer steps: schedule, fp32 masters, clipping, refusal of non-finite gradients."""

from functools import partial

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from chatsmith.config import OptimizerConfig
from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import TrainingStopped
from chatsmith.stages.loop import Guard, Trainable, learning_rate_factor


def settings(**options):
    return OptimizerConfig(**({"warmup": 0.0} | options))


def test_schedules_by_hand():
    cosine = settings(schedule="cosine", warmup=0.2, final_lr=0.1)
    # 2 of 10 steps warm up: 1/3, 2/3, then 1, and half way down (step 6): 0.1 + 0.9 * 0.5
    assert [learning_rate_factor(cosine, s, 10) for s in (0, 1, 2, 6)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.55])
    linear = settings(schedule="linear", final_lr=0.0)
    assert [learning_rate_factor(linear, s, 4) for s in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert learning_rate_factor(settings(schedule="constant"), 9, 10) == 1.0


def test_tiny_updates_move_the_fp32_masters_of_a_bf16_model():
    model = tiny_model("llama").bfloat16()
    learner = Trainable(model, settings(), lr=1e-6)
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    storage = {name: p.data_ptr() for name, p in model.named_parameters()}
    for _ in range(3):
        learner.backward(model(torch.tensor([[1, 5, 9, 7]])).logits.float().square().mean())
        learner.step(1.0, learner.gradient_norm())
    moved = [not torch.equal(before[n], w) for n, w in learner.weights.items() if w.dim() > 1]
    assert all(moved)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == storage  # refreshed in place
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, learner.weights[name].bfloat16(), atol=0, rtol=0)


def test_after_an_update_the_next_rollout_is_that_of_a_freshly_loaded_model(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    load = partial(AutoModelForCausalLM.from_pretrained, tmp_path, dtype=torch.bfloat16)
    model = load().eval()
    learner = Trainable(model, settings(), lr=0.05)
    request = Request((1, 5, 9), 12, (2,), Sampling(temperature=0.0), (0,))
    engine = Engine(model, max_batch=1)
    before = engine.generate([request])[0][0].tokens
    learner.backward(model(torch.tensor([[1, 5, 9, 7]])).logits.float().square().mean())
    learner.step(1.0, learner.gradient_norm())
    model.save_pretrained(tmp_path)
    expected = Engine(load().eval(), max_batch=1).generate([request])[0][0]
    ours = engine.generate([request])[0][0]
    assert ours.tokens == expected.tokens
    assert ours.logprobs == expected.logprobs
    assert ours.tokens != before


def test_accumulated_gradients_equal_one_big_batch():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    results = []
    for pieces in (1, 4):
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 1)
        learner = Trainable(model, settings(), lr=0.1)
        for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            learner.backward(((model(a) - b) ** 2).sum() / 8)
        norm = learner.gradient_norm()
        learner.step(1.0, norm)
        results.append((norm, model.weight.detach().clone()))
    torch.testing.assert_close(results[0], results[1])


def test_gradients_are_clipped_to_the_norm():
    model = torch.nn.Linear(2, 1, bias=False)
    learner = Trainable(model, settings(grad_clip=1.0), lr=0.1)
    learner.backward((model.weight * torch.tensor([[30.0, 40.0]])).sum())
    norm = learner.gradient_norm()
    assert norm.item() == pytest.approx(50.0)
    torch.nn.utils.clip_grads_with_norm_(learner.weights.values(), learner.grad_clip, norm)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_a_non_finite_gradient_moves_nothing_anywhere_and_the_third_in_a_row_stops():
    models = [torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]
    learners = [Trainable(m, settings(), lr=0.1) for m in models]
    refused = []
    guard = Guard("rl", lambda reason, batch: refused.append((reason, batch)))
    before = [m.weight.detach().clone() for m in models]

    def attempt(spoil: bool):
        for model, learner in zip(models, learners, strict=True):
            factor = float("nan") if spoil and model is models[1] else 1.0
            learner.backward(factor * model(torch.ones(1, 2)).sum())
        return guard.step([(learner, 1.0) for learner in learners], lambda: ["the batch"])

    assert attempt(True) is None
    for model, weight in zip(models, before, strict=True):
        torch.testing.assert_close(model.weight.detach(), weight, atol=0, rtol=0)
    assert attempt(False) is not None
    assert not torch.equal(models[1].weight, before[1])
    assert (guard.skipped, guard.in_a_row) == (1, 0)
    assert refused == [("the gradient is not finite (norm nan)", ["the batch"])]
    attempt(True)
    attempt(True)
    with pytest.raises(
        TrainingStopped, match="3 optimizer steps in a row were refused, the last because the gradient is not finite"
    ):
        attempt(True)


def test_an_exploded_gradient_is_refused_and_an_ordinary_one_after_it_is_not():
    model = torch.nn.Linear(2, 1, bias=False)
    learner = Trainable(model, settings(), lr=0.0)
    refused = []
    guard = Guard("sft", lambda reason, batch: refused.append(reason))

    def attempt(size: float):
        learner.backward(size * model.weight.sum())  # its norm is size * sqrt(2)
        return guard.step([(learner, 1.0)], list)

    assert attempt(1e5) is not None  # nothing to compare with yet
    for _ in range(20):
        assert attempt(1.0) is not None
    assert attempt(900.0) is not None
    assert attempt(1100.0) is None
    assert "exploded (norm 1.56e+03, median of the last steps 1.41)" in refused[0]
    resumed = Guard("sft", lambda reason, batch: refused.append(reason))
    resumed.load_state_dict(guard.state_dict())
    guard = resumed
    assert attempt(1.0) is not None
    assert attempt(1100.0) is None


def test_the_first_success_after_many_empty_steps_is_not_refused():
    model = torch.nn.Linear(2, 1, bias=False)
    learner = Trainable(model, settings(), lr=0.0)
    guard = Guard("rl", lambda reason, batch: None)
    for size in [1e-5] * 30 + [1.0, 50.0]:  # rewards are rare: norms begin near zero
        learner.backward(size * model.weight.sum())
        assert guard.step([(learner, 1.0)], list) is not None
    learner.backward(1e3 * model.weight.sum())
    assert guard.step([(learner, 1.0)], list) is None


def test_beyond_its_end_a_schedule_stays_where_it_ended():
    for schedule in ("linear", "cosine"):
        config = settings(schedule=schedule, warmup=0.0, final_lr=0.1)
        assert learning_rate_factor(config, 12, 10) == pytest.approx(0.1)
        assert learning_rate_factor(config, 5, 10) > 0.1
