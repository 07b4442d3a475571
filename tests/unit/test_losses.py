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


PPO = {"ratio": "token", "surrogate": "clip", "aggregate": "token", "limit": 1, "dual_clip": None, "cap": None}


def ppo(logprobs, old, advantages, mask, *, clip=0.2, n=None, answers=None, **changes):
    choices = PPO | {"clip_low": clip, "clip_high": clip} | changes
    counts = {"count": count(n or mask.sum()), "answers": count(answers or mask.any(1).sum())}
    return policy_loss(logprobs, old, advantages, mask, **counts, **choices)


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


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# ratios 1.25, 1 | 1.6; advantages 1, 1 | -2; the second answer has one token
NEW, OLD = torch.log(t([0.5, 0.25], [0.8, 0.1])), torch.log(t([0.4, 0.25], [0.5, 0.2]))
ADVANTAGES, MASK = t([1, 1], [-2, -2]), torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, -(1.2 + 1 - 3.2) / 3),
        ({"clip_high": 0.28}, -(1.25 + 1 - 3.2) / 3),  # clip-higher lets the token through
        ({"aggregate": "answer"}, -((1.2 + 1) / 2 - 3.2) / 2),
        ({"aggregate": "constant", "limit": 2}, -(1.2 + 1 - 3.2) / (2 * 2)),
        ({"aggregate": "constant", "limit": 5}, -(1.2 + 1 - 3.2) / (2 * 5)),  # of the run, not the width of the batch
        ({"ratio": "answer", "aggregate": "answer"}, -(math.sqrt(1.25) - 3.2) / 2),
        ({"ratio": "answer", "aggregate": "answer", "clip": 0.1}, -(1.1 - 3.2) / 2),
        # 0.16 over the root of two tokens: 1.113137 below sqrt(1.25) = 1.118034
        ({"ratio": "answer", "aggregate": "answer", "clip": None}, -(1 + 0.16 / math.sqrt(2) - 3.2) / 2),
        (
            {"surrogate": "cispo", "cap": 1.28},
            -(1.25 * math.log(0.5) + math.log(0.25) - 2 * 1.28 * math.log(0.8)) / 3,
        ),
    ],
)
def test_every_choice_of_the_policy_loss_by_hand(choices, expected):
    loss, _ = ppo(NEW, OLD, ADVANTAGES, MASK, **choices)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    other, _ = ppo(NEW, OLD, -ADVANTAGES, MASK, **choices)
    assert other.item() != pytest.approx(expected, abs=1e-3)


CHOICES = [
    {"ratio": ratio, "surrogate": surrogate, "aggregate": aggregate, "limit": 7, "cap": 2.0}
    for ratio in ("token", "answer")
    for surrogate in ("clip", "cispo")
    for aggregate in ("token", "answer", "constant")
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_any_cut_into_micro_batches_gives_loss_and_gradient_of_the_whole(choices):
    torch.manual_seed(5)
    old, advantages = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 0, 4])[:, None]  # one answer is excluded
    new = (old + 0.2 * torch.randn(6, 5, dtype=torch.float64)).requires_grad_()
    whole, metrics = ppo(new, old, advantages, mask, **choices)
    (gradient,) = torch.autograd.grad(whole, new)
    for cut in ([range(6)], [range(1), range(1, 6)], [[i] for i in range(6)], [[5, 0], [2, 1], [4, 3]]):
        rows = [list(part) for part in cut]
        parts = [ppo(new[r], old[r], advantages[r], mask[r], n=mask.sum(), answers=5, **choices) for r in rows]
        torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
        (cut_gradient,) = torch.autograd.grad(sum(loss for loss, _ in parts), new)
        torch.testing.assert_close(cut_gradient, gradient)
        torch.testing.assert_close(sum(m["clip_fraction"] for _, m in parts), metrics["clip_fraction"])
    means = [ppo(new[r], old[r], advantages[r], mask[r], **choices)[0] / 3 for r in ([0, 1], [2, 3], [5, 4])]
    assert abs(sum(means) - whole) > 1e-4  # each by its own count: the peers' mistake


@pytest.mark.parametrize(("ratio", "surrogate"), [("token", "clip"), ("answer", "clip"), ("token", "cispo")])
def test_the_gradient_of_the_first_update_is_the_policy_gradient(ratio, surrogate):
    new = OLD.clone().requires_grad_()
    loss, _ = ppo(new, OLD, ADVANTAGES, MASK, ratio=ratio, surrogate=surrogate, cap=5.0)
    plain = OLD.clone().requires_grad_()
    expected = -(ADVANTAGES * plain * MASK).sum() / 3
    (found,), (true,) = torch.autograd.grad(loss, new), torch.autograd.grad(expected, plain)
    torch.testing.assert_close(found, true)
    if surrogate == "clip" and ratio == "token":  # whose value is the mean advantage, which is 0 over a group
        assert loss.item() == pytest.approx(-(1 + 1 - 2) / 3)
    assert found.norm() > 0.1


def test_the_gradient_of_the_answer_ratio_is_that_of_its_definition():
    new = NEW.clone().requires_grad_()
    loss, _ = ppo(new, OLD, ADVANTAGES, MASK, ratio="answer", aggregate="answer", clip_low=0.9, clip_high=9.0)
    plain = NEW.clone().requires_grad_()
    mean = ((plain - OLD) * MASK).sum(1) / MASK.sum(1)
    expected = -(mean.exp() * ADVANTAGES[:, 0]).sum() / 2
    (found,), (true,) = torch.autograd.grad(loss, new), torch.autograd.grad(expected, plain)
    torch.testing.assert_close(found, true)
    # A s / n per token, over two answers
    torch.testing.assert_close(found[0], -t(1, 1) * math.sqrt(1.25) / 2 / 2)


def test_cispo_keeps_a_gradient_where_clipping_has_none():
    for choices, expected in (({}, 0.0), ({"surrogate": "cispo", "cap": 1.2}, -1.2 / 3)):
        new = NEW.clone().requires_grad_()
        ppo(new, OLD, ADVANTAGES, MASK, **choices)[0].backward()
        assert new.grad[0, 0].item() == pytest.approx(expected)


def test_the_cap_of_cispo_is_the_ratio_itself_and_does_not_scale_what_is_below_it():
    loss, metrics = ppo(OLD, OLD, ADVANTAGES, MASK, surrogate="cispo", cap=5.0)
    assert loss.item() == pytest.approx(-(ADVANTAGES * OLD * MASK).sum().item() / 3)
    assert metrics["clip_fraction"] == 0
    scaled, _ = ppo(OLD, OLD, ADVANTAGES, MASK, surrogate="cispo", cap=0.2)  # an epsilon taken for the cap
    assert scaled.item() == pytest.approx(0.2 * loss.item())


def test_the_bounds_of_an_answers_ratio_follow_its_length():
    """Token-sized bounds never clip it (trl#3834): the noise of a mean over n tokens is 1/sqrt(n) of a token's."""
    torch.manual_seed(7)
    shares = {}
    for length in (16, 256, 1024):
        drift = 0.12 * torch.randn(400, length, dtype=torch.float64)
        mask = torch.ones_like(drift, dtype=torch.bool)
        for clip in (None, 0.2):
            _, metrics = ppo(drift, torch.zeros_like(drift), torch.ones_like(drift), mask, ratio="answer", clip=clip)
            shares[length, clip] = metrics["clip_fraction"].item()
    assert all(shares[length, 0.2] == 0 for length in (16, 256, 1024))
    assert all(0.15 < shares[length, None] < 0.35 for length in (16, 256, 1024))  # one deviation below, 4/3 above


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


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_an_all_masked_row_changes_nothing_even_if_it_holds_nan(choices):
    torch.manual_seed(3)
    logprobs, old = torch.randn(3, 4) * 0.1, torch.randn(3, 4) * 0.1
    advantages = torch.randn(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2] = False
    spoiled = logprobs.clone()
    spoiled[2] = float("nan")
    spoiled.requires_grad_(True)
    clean = logprobs.clone().requires_grad_(True)
    loss, _ = ppo(spoiled, old, advantages, mask, **choices)
    expected, _ = ppo(clean[:2], old[:2], advantages[:2], mask[:2], **choices)
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
