"""Pair losses against numbers computed by hand, naive loops, and what their authors prove of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatsmith.algo.losses import Pairs, language_model_loss, pairs_of
from chatsmith.algo.pairs import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_zero,
    log1mexp,
    log_ratio,
    mismatch,
    orpo_loss,
    per_token,
    robust_loss,
    simpo_loss,
)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    """-log sigmoid(-x)"""
    return math.log(1 + math.exp(x))


ONE = torch.tensor(1.0)
PAIR = pairs_of([[1.0, 0.0]])
# better: tokens of 1/2 and 1/4, reference 1/4 and 1/4; worse: 1/2, 1/2 and 1/4, reference 1/2, 1/2 and 1/2
SUMS, REFERENCE, TOKENS = torch.log(t(1 / 8, 1 / 16)), torch.log(t(1 / 16, 1 / 8)), t(2, 3)
D = 2 * math.log(2)  # log 2 - (-log 2)
MEANS = math.log(2) / 2 + math.log(2) / 3


def dpo(values, **keys):
    return dpo_loss(values, PAIR, **({"count": ONE, "beta": 0.1, "smoothing": 0.0} | keys)).item()


def test_dpo_by_hand_is_about_sums_and_its_normalised_form_about_means():
    ratios = log_ratio(SUMS, REFERENCE)
    assert dpo(ratios) == pytest.approx(softplus(-0.1 * D), abs=1e-12)
    assert dpo(per_token(ratios, TOKENS), beta=5.0) == pytest.approx(softplus(-5 * MEANS), abs=1e-12)
    assert dpo(per_token(ratios, TOKENS)) != pytest.approx(dpo(ratios), abs=1e-3)  # n_c is not n_r


def test_label_smoothing_changes_the_loss_and_a_half_of_it_is_flat_at_no_lead():
    ratios = log_ratio(SUMS, REFERENCE)
    expected = 0.8 * softplus(-0.1 * D) + 0.2 * softplus(0.1 * D)
    assert dpo(ratios, smoothing=0.2) == pytest.approx(expected, abs=1e-12)
    assert dpo(ratios, smoothing=0.2) != pytest.approx(dpo(ratios), abs=1e-3)  # not ignored, as by TRL's "sigmoid"
    for smoothing, slope in ((0.5, 0.0), (0.0, -0.05)):
        flat = t(1, 1).requires_grad_()
        dpo_loss(flat, PAIR, count=ONE, beta=0.1, smoothing=smoothing).backward()
        torch.testing.assert_close(flat.grad, t(slope, -slope))


def test_dpo_begins_at_log_2_with_half_of_beta_as_its_slope():
    sums = t(-3, -4).requires_grad_()
    loss = dpo_loss(log_ratio(sums, t(-3, -4)), PAIR, count=ONE, beta=0.1, smoothing=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(sums.grad, t(-0.05, 0.05))


@pytest.mark.parametrize("lead", [-3.0, 0.5, 4.0])
def test_a_small_beta_makes_dpo_a_linear_margin(lead):
    beta = 1e-4
    assert (dpo(t(lead, 0), beta=beta) - math.log(2)) / beta == pytest.approx(-lead / 2, abs=1e-3)


def test_robust_dpo_by_hand_and_in_expectation_over_flips():
    loss = robust_loss(t(D, 0), PAIR, count=ONE, beta=0.1, smoothing=0.2).item()
    assert loss == pytest.approx((0.8 * softplus(-0.1 * D) - 0.2 * softplus(0.1 * D)) / 0.6, abs=1e-12)
    flipped = robust_loss(t(0, D), PAIR, count=ONE, beta=0.1, smoothing=0.2).item()
    assert 0.8 * loss + 0.2 * flipped == pytest.approx(dpo(t(D, 0)), abs=1e-12)
    assert robust_loss(t(80, 0), PAIR, count=ONE, beta=0.1, smoothing=0.2) < 0


def test_ipo_by_hand_stops_at_its_target():
    means = per_token(log_ratio(SUMS, REFERENCE), TOKENS)
    assert ipo_loss(means, PAIR, count=ONE, beta=0.1).item() == pytest.approx((MEANS - 5) ** 2, abs=1e-12)
    leads = []
    for loss in (
        lambda x: ipo_loss(x, PAIR, count=ONE, beta=0.25),
        lambda x: dpo_loss(x, PAIR, count=ONE, beta=0.25, smoothing=0.0),
    ):
        ratios = t(0, 0).requires_grad_()
        optimizer = torch.optim.SGD([ratios], 0.2)
        for _ in range(400):
            optimizer.zero_grad()
            loss(ratios).backward()
            optimizer.step()
        leads.append((ratios[0] - ratios[1]).item())
    assert leads[0] == pytest.approx(2.0)  # 1 / (2 beta)
    assert leads[1] > 5  # DPO has no such end


def test_simpo_and_orpo_by_hand():
    x = 2 * (SUMS[0] / 2 - SUMS[1] / 3).item() - 1
    found = simpo_loss(per_token(SUMS, TOKENS), PAIR, count=ONE, beta=2.0, margin=1.0)
    assert found.item() == pytest.approx(softplus(-x), abs=1e-12)
    p = [math.exp(SUMS[0] / 2), math.exp(SUMS[1] / 3)]
    odds = math.log(p[0] / (1 - p[0])) - math.log(p[1] / (1 - p[1]))
    found = orpo_loss(per_token(SUMS, TOKENS), PAIR, count=ONE, weight=0.1)
    assert found.item() == pytest.approx(-math.log(p[0]) + 0.1 * softplus(-odds), abs=1e-12)
    assert orpo_loss(SUMS, PAIR, count=ONE, weight=0.1).item() != pytest.approx(found.item(), abs=1e-2)


def test_the_likelihood_of_the_better_answer_may_be_added():
    """RPO: alpha times the mean over the tokens of better answers, by the global count of these."""
    logprobs = torch.log(t(1 / 2, 1 / 4)).view(1, 2)
    nll = language_model_loss(logprobs, torch.ones(1, 2, dtype=torch.bool), count=torch.tensor(2.0))
    assert nll.item() == pytest.approx(-SUMS[0].item() / 2)


def test_dpo_recovers_the_preferences_of_bradley_and_terry():
    """One answer wins four times in five: at the optimum beta d is the log-odds of that, above the reference."""
    reference = torch.log_softmax(t(0.3, -0.2), 0)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    both = Pairs(torch.tensor([0, 1]), torch.tensor([1, 0]), t(1, 1), t(0.8, 0.2))

    def closure():
        optimizer.zero_grad()
        ratios = log_ratio(torch.log_softmax(theta, 0), reference)
        loss = dpo_loss(ratios, both, count=ONE, beta=0.5, smoothing=0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    ratios = log_ratio(torch.log_softmax(theta, 0), reference)
    assert 0.5 * (ratios[0] - ratios[1]).item() == pytest.approx(math.log(4), abs=1e-3)


def losses(values, pairs, count):
    """Every pair loss of the same values."""
    keys = {"count": torch.tensor(float(count))}
    return {
        "dpo": dpo_loss(values, pairs, beta=0.3, smoothing=0.1, **keys),
        "robust": robust_loss(values, pairs, beta=0.3, smoothing=0.1, **keys),
        "ipo": ipo_loss(values, pairs, beta=0.3, **keys),
        "simpo": simpo_loss(values, pairs, beta=2.0, margin=0.7, **keys),
        "orpo": orpo_loss(values, pairs, weight=0.5, **keys),
    }


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.floats(-8, -0.01)), min_size=2, max_size=4), min_size=1, max_size=4
    )
)
def test_prompts_add_up_however_they_are_cut(prompts):
    values = [t(*(x for _, x in answers)) for answers in prompts]
    scores = [[float(score) for score, _ in answers] for answers in prompts]
    whole = losses(torch.cat(values), pairs_of(scores), len(prompts))
    parts = [losses(x, pairs_of([s]), len(prompts)) for x, s in zip(values, scores, strict=True)]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss)


def test_a_count_of_each_part_is_another_loss():
    values, pairs = t(-1, -2, -3, -1, -2), pairs_of([[2, 1, 0], [1, 0]])
    whole = losses(values, pairs, 2)
    split = [losses(values[:3], pairs_of([[2, 1, 0]]), 1), losses(values[3:], pairs_of([[1, 0]]), 1)]
    for name, loss in whole.items():
        assert abs(sum(part[name] for part in split) - loss) > 1e-3


def test_a_tie_pulls_the_answers_together():
    for name in ("dpo", "robust", "ipo", "simpo"):
        values = t(-1, -3).requires_grad_()
        losses(values, pairs_of([[1.0, 1.0]]), 1)[name].backward()
        assert values.grad[0] > 0 > values.grad[1], name
    with torch.no_grad():
        level = losses(t(-2, -2), pairs_of([[1.0, 1.0]]), 1)
        assert level["simpo"].item() == pytest.approx(math.log(2))  # without a margin


@pytest.mark.parametrize("value", [-1e-9, 0.0, -1e-3, -0.6931, -0.6932, -5.0, -80.0])
def test_the_odds_have_finite_gradients_everywhere(value):
    x = torch.tensor([value, -2.0], requires_grad=True)
    orpo_loss(x, PAIR, count=ONE, weight=0.1).backward()
    assert x.grad.isfinite().all()
    exact = t(min(value, -1e-6))
    torch.testing.assert_close(log1mexp(exact), torch.log1p(-torch.exp(exact)), rtol=1e-7, atol=1e-30)


def test_the_obvious_way_to_write_the_odds_has_not():
    x = torch.tensor([0.0], requires_grad=True)
    near = torch.where(x > -0.69, torch.log(-torch.expm1(x.clamp(max=-1e-6))), torch.log1p(-torch.exp(x)))
    near.sum().backward()
    assert x.grad.isnan().all()


def kto(ratios, good, zero=0.5, **keys):
    settings = {"zero": t(zero)[0], "count": torch.tensor(2.0), "beta": 0.1, "weight_good": 1.0, "weight_bad": 1.0}
    return kto_loss(ratios, torch.tensor(good), **(settings | keys))


def test_kto_by_hand():
    found = kto(log_ratio(t(-2, -5), t(-3, -4)), [True, False])  # D = 1 and -1
    assert found.item() == pytest.approx(((1 - sigmoid(0.05)) + (1 - sigmoid(0.15))) / 2, abs=1e-12)
    assert kto(t(1, -1), [False, True]).item() != pytest.approx(found.item(), abs=1e-3)
    weighted = kto(t(1, -1), [True, False], weight_bad=1.5)
    assert weighted.item() == pytest.approx(((1 - sigmoid(0.05)) + 1.5 * (1 - sigmoid(0.15))) / 2, abs=1e-12)


def test_kto_begins_with_a_quarter_of_beta_as_its_slope_each_way():
    ratios = t(0, 0).requires_grad_()
    kto(ratios, [True, False], zero=0.0, weight_bad=1.33).backward()
    torch.testing.assert_close(ratios.grad, t(-0.1 / 4 / 2, 1.33 * 0.1 / 4 / 2))


def test_all_good_or_all_bad_is_learned_from_too():
    for good, sign in ((True, -1), (False, 1)):
        ratios = t(3, -3).requires_grad_()
        kto(ratios, [good, good]).backward()
        assert ratios.grad.isfinite().all()
        assert (ratios.grad * sign > 0).all()


def test_the_zero_of_kto_is_a_mean_without_gradient_that_is_never_negative():
    values = t(1, -0.5, 0.7).requires_grad_()
    zero = kto_zero(values, count=torch.tensor(3.0))
    assert zero.item() == pytest.approx(0.4)
    assert not zero.requires_grad
    assert kto_zero(-values, count=torch.tensor(3.0)) == 0


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_no_prompt_keeps_its_own_answer_and_no_answer_is_used_twice(size):
    given_to = mismatch(size)
    assert sorted(given_to) == list(range(size))
    assert all(answer != prompt for prompt, answer in enumerate(given_to))
    reversal = list(reversed(range(3)))
    assert reversal[1] == 1  # which is why the order is not turned round


def test_a_batch_of_one_has_no_mismatched_answer():
    with pytest.raises(ValueError, match="no answer to another prompt"):
        mismatch(1)
