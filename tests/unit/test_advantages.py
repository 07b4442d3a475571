"""Advantages and reward placement against hand-computed numbers, naive loops and exact expectations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatsmith.algo.advantages import SMALL, Groups, gae, over_baseline, returns_to_go, scaled, whiten
from chatsmith.algo.rewards import adapt_kl_coef, overlong, standardise, token_rewards


def naive_gae(rewards, values, mask, gamma, lam):
    """A_t = sum over k of (gamma * lam)^k * delta_{t+k}, one row at a time."""
    out = torch.zeros_like(values)
    for b in range(len(values)):
        steps = [t for t in range(values.shape[1]) if mask[b, t]]
        for i, t in enumerate(steps):
            for k, s in enumerate(steps[i:]):
                following = values[b, s + 1].item() if s + 1 in steps else 0.0
                delta = rewards[b, s].item() + gamma * following - values[b, s].item()
                out[b, t] += (gamma * lam) ** k * delta
    return out


def answers(rows: int, width: int, spans: list[tuple[int, int]]) -> torch.Tensor:
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = True
    return mask


MASK = answers(3, 7, [(2, 6), (1, 3), (3, 7)])


def test_gae_by_hand():
    # prompt of one token, answer of three; gamma 1, lambda 0.5, reward 2 at the end
    rewards = torch.tensor([[0.0, 0.0, 0.0, 2.0]])
    values = torch.tensor([[9.0, 1.0, 0.5, 1.5]])
    mask = torch.tensor([[False, True, True, True]])
    # deltas: 0.5 - 1 = -0.5; 1.5 - 0.5 = 1; 2 - 1.5 = 0.5 -> 0.5; 1 + 0.25 = 1.25; -0.5 + 0.625 = 0.125
    expected = torch.tensor([[0.0, 0.125, 1.25, 0.5]])
    torch.testing.assert_close(gae(rewards, values, mask, gamma=1.0, lam=0.5), expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0)])
def test_gae_equals_a_naive_loop(gamma, lam):
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 7), torch.randn(3, 7)
    expected = naive_gae(rewards, values, MASK, gamma, lam)
    torch.testing.assert_close(gae(rewards, values, MASK, gamma=gamma, lam=lam), expected)
    assert not torch.allclose(gae(rewards, values, MASK, gamma=gamma, lam=lam - 0.05), expected)


def test_gae_with_lam_1_is_return_minus_value():
    torch.manual_seed(1)
    rewards, values = torch.randn(3, 7), torch.randn(3, 7)
    to_go = torch.where(MASK, rewards, 0.0).flip(1).cumsum(1).flip(1)
    expected = torch.where(MASK, to_go - values, 0.0)
    torch.testing.assert_close(gae(rewards, values, MASK, gamma=1.0, lam=1.0), expected)
    assert not torch.allclose(gae(rewards, values, MASK, gamma=1.0, lam=0.95), expected)


def test_gae_ignores_everything_outside_the_mask():
    torch.manual_seed(2)
    rewards, values = torch.randn(3, 7), torch.randn(3, 7)
    noisy_rewards = torch.where(MASK, rewards, torch.randn(3, 7))
    noisy_values = torch.where(MASK, values, torch.randn(3, 7))
    noisy = gae(noisy_rewards, noisy_values, MASK, gamma=1.0, lam=0.95)
    torch.testing.assert_close(gae(rewards, values, MASK, gamma=1.0, lam=0.95), noisy)
    assert (noisy[~MASK] == 0).all()


def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_mask():
    torch.manual_seed(3)
    advantages = torch.randn(3, 7) * 3 + 5
    white = whiten(advantages, MASK, total=lambda x: x)
    assert white[MASK].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[MASK].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (white[~MASK] == 0).all()


def test_whitening_two_halves_with_a_shared_total_equals_whitening_the_whole():
    torch.manual_seed(4)
    advantages, mask = torch.randn(4, 5) + 2, torch.rand(4, 5) > 0.3
    whole = whiten(advantages, mask, total=lambda x: x)

    # What an all-reduce does: three sums are exchanged, in order (count, sum, squared deviations).
    count, mean = mask.sum(), advantages[mask].mean()
    sums = [count, advantages[mask].sum(), ((advantages[mask] - mean) ** 2).sum()]
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        queue = iter(sums)
        halves.append(whiten(advantages[rows], mask[rows], total=lambda _, q=queue: next(q)))
    torch.testing.assert_close(whole, torch.cat(halves))
    alone = torch.cat([whiten(advantages[r], mask[r], total=lambda x: x) for r in (slice(0, 2), slice(2, 4))])
    assert not torch.allclose(whole, alone)


def test_the_score_enters_at_the_last_sampled_token_only_and_kl_at_every_one():
    rewards = torch.tensor([3.0, -1.0, 2.0])
    logprobs = torch.full((3, 7), -1.0)
    reference = torch.full((3, 7), -1.5)
    out = token_rewards(rewards, logprobs, reference, MASK, kl_coef=0.1)
    expected = torch.where(MASK, torch.tensor(-0.05), torch.tensor(0.0))  # -0.1 * (-1 + 1.5)
    expected[0, 5] += 3.0
    expected[1, 2] += -1.0
    expected[2, 6] += 2.0
    torch.testing.assert_close(out, expected)


def test_a_reward_spread_over_every_token_is_not_what_we_compute():
    # one ancestor added the score to every answer token, so that returns grew with length
    rewards = torch.tensor([3.0, -1.0, 2.0])
    zeros = torch.zeros(3, 7)
    out = token_rewards(rewards, zeros, zeros, MASK, kl_coef=0.1)
    torch.testing.assert_close(out.sum(1), rewards)
    spread = MASK * rewards[:, None]
    assert not torch.allclose(spread.sum(1), out.sum(1))


def test_an_all_masked_row_gets_no_reward():
    mask = MASK.clone()
    mask[1] = False
    out = token_rewards(torch.ones(3), torch.zeros(3, 7), torch.zeros(3, 7), mask, kl_coef=0.1)
    assert out[1].abs().sum() == 0
    assert out[0].sum() == 1


def test_standardised_scores_are_in_units_of_one_deviation_and_clipped():
    scores = torch.tensor([7.0, 17.0, 1007.0, -1000.0])
    torch.testing.assert_close(standardise(scores, mean=7.0, std=10.0), torch.tensor([0.0, 1.0, 5.0, -5.0]))


def test_kl_controller_by_hand():
    # error (8 / 4 - 1) clips to 0.2; 0.1 * (1 + 0.2 * 50 / 1000)
    assert adapt_kl_coef(0.1, 8.0, target=4.0, horizon=1000, answers=50) == pytest.approx(0.101)
    assert adapt_kl_coef(0.1, 4.0, target=4.0, horizon=1000, answers=50) == pytest.approx(0.1)
    assert adapt_kl_coef(0.1, 0.0, target=4.0, horizon=1000, answers=50) == pytest.approx(0.099)
    assert adapt_kl_coef(0.1, 0.0, target=4.0, horizon=8, answers=512) == pytest.approx(0.08)  # never below zero
    assert adapt_kl_coef(0.1, 9.0, target=4.0, horizon=8, answers=512) == pytest.approx(0.12)


def one(total):
    return total


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def advantages(rewards, prompts, *, baseline, scale="none", valid=None):
    """[B], of answers of one token."""
    prompts = torch.tensor(prompts)
    valid = torch.ones(len(rewards), dtype=torch.bool) if valid is None else torch.tensor(valid)
    above = over_baseline(rewards, Groups.of(prompts, valid), baseline)
    mask = valid[:, None]
    return scaled(above[:, None] * mask, rewards, mask, prompts, scale=scale, total=one)[:, 0]


REWARDS, PROMPTS = t(1, 0, 0, 1, 0.3, 0.9, 0.1, 0.5), [0, 0, 0, 0, 1, 1, 1, 1]


def test_group_baselines_by_hand():
    expected = t(0.5, -0.5, -0.5, 0.5, -0.15, 0.45, -0.35, 0.05)  # means 0.5 and 0.45
    torch.testing.assert_close(advantages(REWARDS, PROMPTS, baseline="group"), expected)
    # RLOO: 1 - (0 + 0 + 1)/3 = 2/3; 0.3 - (0.9 + 0.1 + 0.5)/3 = -0.2
    others = advantages(REWARDS, PROMPTS, baseline="others")
    torch.testing.assert_close(others[[0, 4]], t(2 / 3, -0.2))
    torch.testing.assert_close(others, expected * 4 / 3)  # the mean of all is RLOO times (G - 1)/G
    assert not torch.allclose(others, expected)


def test_a_group_is_divided_by_its_deviation_with_one_degree_of_freedom_less():
    found = advantages(REWARDS, PROMPTS, baseline="group", scale="group")
    # squares of 1/2, four times, over 3
    torch.testing.assert_close(found[:4], t(1, -1, -1, 1) * 0.5 / (math.sqrt(1 / 3) + SMALL))
    assert not torch.allclose(found[:4], t(1, -1, -1, 1) * 0.5 / (0.5 + SMALL))  # the population's deviation


def test_a_batch_is_divided_by_the_deviation_of_its_rewards():
    found = advantages(REWARDS, PROMPTS, baseline="group", scale="batch")
    plain = advantages(REWARDS, PROMPTS, baseline="group")
    torch.testing.assert_close(found, plain / (REWARDS.std() + SMALL))


def test_of_two_answers_rloo_is_the_difference_and_a_deviation_leaves_its_sign():
    for high in (0.8, 1.0, 50.0):
        rewards = t(high, 0.0)
        torch.testing.assert_close(advantages(rewards, [0, 0], baseline="others"), t(high, -high))
        signs = advantages(rewards, [0, 0], baseline="group", scale="group")
        torch.testing.assert_close(signs, t(1, -1) / math.sqrt(2), atol=2 * SMALL, rtol=0)


def test_an_excluded_answer_moves_no_baseline():
    rewards = REWARDS.clone()
    rewards[3] = math.nan
    valid = [True, True, True, False, True, True, True, True]
    found = advantages(rewards, PROMPTS, baseline="others", valid=valid)
    torch.testing.assert_close(found[:4], t(1, -0.5, -0.5, 0))  # of three: 1 - 0, 0 - 1/2, 0 - 1/2
    with_a_zero = advantages(rewards.nan_to_num(0), PROMPTS, baseline="others")
    assert not torch.allclose(found[:3], with_a_zero[:3])  # None as a reward of 0
    for baseline in ("others", "group"):
        for scale in ("none", "group", "batch", "whiten"):
            assert advantages(rewards, PROMPTS, baseline=baseline, scale=scale, valid=valid).isfinite().all()


@given(st.data())
def test_groups_equal_a_naive_loop_whatever_the_order_and_who_is_excluded(data):
    size = data.draw(st.integers(1, 12))
    prompts = data.draw(st.lists(st.sampled_from([0, 3, 7]), min_size=size, max_size=size))
    valid = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    rewards = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, -3.0]), min_size=size, max_size=size))
    for baseline in ("others", "group"):
        for scale in ("none", "group"):
            found = advantages(t(*rewards), prompts, baseline=baseline, scale=scale, valid=valid)
            for i in range(size):
                group = [j for j in range(size) if prompts[j] == prompts[i] and valid[j]]
                values = [rewards[j] for j in group]
                if not valid[i] or len(set(values)) < 2:
                    assert found[i] == 0  # exactly
                    continue
                mean = sum(values) / len(values)
                others = (sum(values) - rewards[i]) / (len(values) - 1)
                expected = rewards[i] - (others if baseline == "others" else mean)
                if scale == "group":
                    expected /= math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) + SMALL
                assert found[i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("baseline", ["others", "group"])
@pytest.mark.parametrize("scale", ["none", "group", "batch", "whiten"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -7.3])
def test_equal_rewards_give_exactly_nothing(baseline, scale, value):
    rewards = torch.full((9,), value)  # fp32: a third of 0.3 is not 0.1
    assert (advantages(rewards, [0] * 5 + [1] * 3 + [2], baseline=baseline, scale=scale) == 0).all()
    nearly = rewards * (1 + 1e-7 * torch.arange(9) % 2)
    assert (advantages(nearly, [0] * 9, baseline=baseline, scale=scale) == 0).all()
    apart = rewards + 1e-3 * max(1.0, abs(value)) * (torch.arange(9) % 2)
    assert (advantages(apart, [0] * 9, baseline=baseline, scale=scale) != 0).all()


def test_whitening_does_not_enlarge_rounding():
    constant = torch.full((4, 5), 0.1)
    mask = torch.ones(4, 5, dtype=torch.bool)
    assert (whiten(constant, mask, total=one) == 0).all()
    assert whiten(constant + torch.arange(4)[:, None] * 1e-3, mask, total=one).std() > 0.9


def test_nobody_valid_gives_nothing_and_no_nan():
    for scale in ("none", "group", "batch", "whiten"):
        found = advantages(torch.full((4,), math.nan), [0, 0, 1, 1], baseline="others", scale=scale, valid=[False] * 4)
        assert (found == 0).all()


def test_returns_to_go_are_what_is_still_to_come():
    rewards = t(9, 0.5, -1, 2).view(1, 4)
    mask = torch.tensor([[False, True, True, True]])
    torch.testing.assert_close(returns_to_go(rewards, mask), t(0, 1.5, 1, 2).view(1, 4))
    torch.manual_seed(0)
    rewards, zeros = torch.randn(3, 7), torch.zeros(3, 7)
    expected = gae(rewards, zeros, MASK, gamma=1.0, lam=1.0)  # without values they are the same
    torch.testing.assert_close(returns_to_go(rewards, MASK), expected)


THETA, WORTH = t(0.2, -0.1, 0.4), t(1.0, 0.0, 0.3)


def expected_gradient(baseline: str, scale: str) -> torch.Tensor:
    """Mean gradient over all pairs of draws from a softmax over three answers, weighted by their probability."""
    p = torch.softmax(THETA, 0)
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            found = advantages(WORTH[[i, j]], [0, 0], baseline=baseline, scale=scale)
            for k, advantage in zip((i, j), found, strict=True):
                total += p[i] * p[j] * advantage * (torch.eye(3, dtype=torch.float64)[k] - p) / 2
    return total


def test_the_mean_gradient_of_rloo_is_that_of_the_expected_reward():
    p = torch.softmax(THETA, 0)
    true = p * (WORTH - (p * WORTH).sum())
    torch.testing.assert_close(expected_gradient("others", "none"), true)
    torch.testing.assert_close(expected_gradient("group", "none"), true / 2)  # (G - 1)/G
    by_deviation = expected_gradient("group", "group")
    cosine = torch.dot(by_deviation, true) / by_deviation.norm() / true.norm()
    assert 0.9 < cosine < 0.999  # another direction


def test_overlong_answers_by_hand():
    lengths = t(50, 75, 76, 90, 100)
    torch.testing.assert_close(overlong(lengths, limit=100, share=0.25), t(0, 0, -0.04, -0.6, -1))
    assert not torch.allclose(overlong(lengths, limit=100, share=0.5), t(0, 0, -0.04, -0.6, -1))
