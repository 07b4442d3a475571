"""Every loss against numbers computed by hand, a naive loop, or exact expectations."""

import math

import pytest
import torch

from chatsmith.algo.losses import (
    kl_estimate,
    language_model_loss,
    pairs_of,
    policy_loss,
    preference_loss,
    value_loss,
)


def count(n: float) -> torch.Tensor:
    return torch.tensor(float(n))


def ppo(logprobs, old, advantages, mask, *, clip=0.2, dual_clip=None, n=None):
    return policy_loss(
        logprobs,
        old,
        advantages,
        mask,
        count=count(n or mask.sum()),
        clip_low=clip,
        clip_high=clip,
        dual_clip=dual_clip,
    )


def test_language_model_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert language_model_loss(logprobs, mask, count=count(3)).item() == pytest.approx(2.0)  # (1 + 2 + 3) / 3
    assert language_model_loss(logprobs, ~mask, count=count(3)).item() != pytest.approx(2.0)


def test_micro_batches_add_up_to_one_big_batch():
    torch.manual_seed(0)
    logprobs, mask = torch.randn(6, 5), torch.rand(6, 5) > 0.3
    whole = language_model_loss(logprobs, mask, count=count(mask.sum()))
    cut = sum(language_model_loss(logprobs[i : i + 2], mask[i : i + 2], count=count(mask.sum())) for i in (0, 2, 4))
    per_piece = sum(
        language_model_loss(logprobs[i : i + 2], mask[i : i + 2], count=count(mask[i : i + 2].sum())) / 3
        for i in (0, 2, 4)
    )
    torch.testing.assert_close(whole, cut)
    assert abs(whole - per_piece) > 1e-4  # a mean of means is another number


def test_pair_loss_by_hand():
    # d = 1 - (-1) = 2; -log sigmoid(2) = 0.126928; centring 0.01 * 0^2
    loss = preference_loss(torch.tensor([1.0, -1.0]), pairs_of([[1.0, 0.0]]), count=count(1), margin=0.0, center=0.01)
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    # the same scores, the other one preferred: -log sigmoid(-2) = 2.126928
    flipped = preference_loss(
        torch.tensor([1.0, -1.0]), pairs_of([[0.0, 1.0]]), count=count(1), margin=0.0, center=0.01
    )
    assert flipped.item() == pytest.approx(2.126928, abs=1e-6)


def test_margin_and_centring_by_hand():
    # d = 3 - 1 - 0.5 = 1.5 -> 0.201413; centring 0.01 * (3 + 1)^2 = 0.16
    loss = preference_loss(torch.tensor([3.0, 1.0]), pairs_of([[1, 0]]), count=count(1), margin=0.5, center=0.01)
    assert loss.item() == pytest.approx(0.361413, abs=1e-6)


def test_a_tie_pulls_the_scores_together_and_takes_no_margin():
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = preference_loss(scores, pairs_of([[1.0, 1.0]]), count=count(1), margin=7.0, center=0.0)
    # d = 3: (log(1 + e^-3) + log(1 + e^3)) / 2 = (0.048587 + 3.048587) / 2
    assert loss.item() == pytest.approx(1.548587, abs=1e-6)
    loss.backward()
    assert scores.grad[0] > 0 > scores.grad[1]


def test_a_prompt_with_k_answers_counts_once():
    pairs = pairs_of([[3.0, 2.0, 1.0, 0.0], [1.0, 0.0]])
    assert len(pairs.better) == 6 + 1
    assert pairs.weight[:6].sum().item() == pytest.approx(1.0)
    assert pairs.weight[6:].sum().item() == pytest.approx(1.0)


def test_k_answers_equal_the_mean_of_a_naive_loop_over_pairs():
    torch.manual_seed(1)
    given = [[2.0, 0.0, 1.0], [0.0, 1.0], [1.0, 1.0, 0.0]]
    scores = torch.randn(8, dtype=torch.float64)
    total, first = 0.0, 0
    for prompt in given:
        losses = []
        for a in range(len(prompt)):
            for b in range(len(prompt)):
                if prompt[a] > prompt[b]:
                    r_a, r_b = scores[first + a].item(), scores[first + b].item()
                    losses.append(math.log(1 + math.exp(-(r_a - r_b))) + 0.01 * (r_a + r_b) ** 2)
        total += sum(losses) / len(losses)
        first += len(prompt)
    loss = preference_loss(scores, pairs_of(given), count=count(3), margin=0.0, center=0.01)
    assert loss.item() == pytest.approx(total / 3, abs=1e-6)
    every_pair_alike = preference_loss(
        scores, pairs_of([[p] for p in []] + given[:1] + given[1:]), count=count(6), margin=0.0, center=0.01
    )
    assert every_pair_alike.item() != pytest.approx(total / 3, abs=1e-6)


def test_policy_loss_by_hand():
    # ratios e^0.5 = 1.648721 -> clipped at 1.2 for A = 1; e^-0.5 = 0.606531 for A = -1 -> min(-0.6065, -0.8) = -0.8
    logprobs = torch.tensor([[0.5, -0.5, 5.0]])
    old = torch.zeros(1, 3)
    advantages = torch.tensor([[1.0, -1.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    loss, metrics = ppo(logprobs, old, advantages, mask)
    assert loss.item() == pytest.approx(-(1.2 - 0.8) / 2, abs=1e-6)
    assert metrics["clip_fraction"].item() == 1.0
    assert metrics["ratio_max"].item() == pytest.approx(1.648721, abs=1e-5)
    # k3 of old against new: (r - 1 - log r) = 0.148721 and 0.106531
    assert metrics["kl_old"].item() == pytest.approx((0.148721 + 0.106531) / 2, abs=1e-5)


def test_policy_loss_equals_a_naive_loop():
    torch.manual_seed(2)
    logprobs, old = torch.randn(4, 6) * 0.3, torch.randn(4, 6) * 0.3
    advantages, mask = torch.randn(4, 6), torch.rand(4, 6) > 0.4
    terms = []
    for b in range(4):
        for t in range(6):
            if mask[b, t]:
                ratio = math.exp(logprobs[b, t] - old[b, t])
                clipped = min(max(ratio, 0.8), 1.2)
                terms.append(-min(advantages[b, t] * ratio, advantages[b, t] * clipped))
    loss, _ = ppo(logprobs, old, advantages, mask)
    assert loss.item() == pytest.approx(float(sum(terms) / len(terms)), abs=1e-6)
    wrong_sign, _ = ppo(logprobs, old, -advantages, mask)
    assert wrong_sign.item() != pytest.approx(float(sum(terms) / len(terms)), abs=1e-6)


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    logprobs, old = torch.tensor([[3.0]]), torch.zeros(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    free, _ = ppo(logprobs, old, -torch.ones(1, 1), mask)
    bounded, _ = ppo(logprobs, old, -torch.ones(1, 1), mask, dual_clip=3.0)
    assert free.item() == pytest.approx(math.exp(3.0), rel=1e-6)
    assert bounded.item() == pytest.approx(3.0)
    positive, _ = ppo(logprobs, old, torch.ones(1, 1), mask, dual_clip=3.0)
    assert positive.item() == pytest.approx(-1.2)


def test_value_loss_by_hand():
    values, old = torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    returns, mask = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
    # token 0: (1-2)^2 = 1, clipped value 0.2: (0.2-2)^2 = 3.24; token 1: (0-1)^2 = 1
    clipped = value_loss(values, old, returns, mask, count=count(2), clip=0.2)
    assert clipped.item() == pytest.approx(0.5 * (3.24 + 1.0) / 2, abs=1e-6)
    plain = value_loss(values, old, returns, mask, count=count(2), clip=None)
    assert plain.item() == pytest.approx(0.5 * (1.0 + 1.0) / 2, abs=1e-6)


def test_an_all_masked_row_changes_nothing_even_if_it_holds_nan():
    torch.manual_seed(3)
    logprobs, old = torch.randn(3, 4) * 0.1, torch.randn(3, 4) * 0.1
    advantages = torch.randn(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2] = False
    spoiled = logprobs.clone()
    spoiled[2] = float("nan")
    spoiled.requires_grad_(True)
    clean = logprobs.clone().requires_grad_(True)
    loss, _ = ppo(spoiled, old, advantages, mask)
    expected, _ = ppo(clean[:2], old[:2], advantages[:2], mask[:2])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(spoiled.grad, clean.grad)


# The three KL estimators on a softmax small enough to take every expectation exactly.


def exact_gradients(estimator: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expected gradient of the estimator as a loss; gradient of KL(p||q); gradient of KL(q||p)."""
    torch.manual_seed(4)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    weights = logp.exp().detach()  # tokens are sampled from p; the sampling itself carries no gradient
    (expected,) = torch.autograd.grad((weights * kl_estimate(logp, reference, estimator)).sum(), logits)
    logp = torch.log_softmax(logits, -1)
    (forward,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    logp = torch.log_softmax(logits, -1)
    (reverse,) = torch.autograd.grad((reference.exp() * (reference - logp)).sum(), logits)
    return expected, forward, reverse


def test_k2_in_the_loss_has_exactly_the_gradient_of_the_kl():
    expected, forward, reverse = exact_gradients("k2")
    torch.testing.assert_close(expected, forward)
    assert not torch.allclose(expected, reverse)


def test_k3_in_the_loss_has_the_gradient_of_the_reverse_kl():
    expected, forward, reverse = exact_gradients("k3")
    torch.testing.assert_close(expected, reverse)
    assert not torch.allclose(expected, forward)


def test_k1_in_the_loss_has_no_gradient():
    expected, forward, _ = exact_gradients("k1")
    torch.testing.assert_close(expected, torch.zeros_like(expected), atol=1e-12, rtol=0)
    assert forward.norm() > 1e-2


def test_k1_in_the_reward_gives_the_gradient_of_the_kl_and_k2_k3_do_not():
    torch.manual_seed(5)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)

    def reinforce(estimator: str) -> torch.Tensor:
        logp = torch.log_softmax(logits, -1)
        penalty = kl_estimate(logp, reference, estimator).detach()
        (gradient,) = torch.autograd.grad((logp.exp().detach() * penalty * logp).sum(), logits)
        return gradient

    logp = torch.log_softmax(logits, -1)
    (true,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits)
    torch.testing.assert_close(reinforce("k1"), true)
    assert not torch.allclose(reinforce("k2"), true, atol=1e-3)
    assert not torch.allclose(reinforce("k3"), true, atol=1e-3)


def test_every_estimator_but_k2_has_the_kl_as_its_expectation():
    torch.manual_seed(6)
    logp = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    true = (logp.exp() * (logp - reference)).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((logp.exp() * kl_estimate(logp, reference, estimator)).sum(), true)
    assert (logp.exp() * kl_estimate(logp, reference, "k2")).sum() != pytest.approx(true.item(), abs=1e-3)
