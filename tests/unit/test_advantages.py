"""GAE, whitening and reward placement against hand-computed numbers and a naive loop."""

import pytest
import torch

from chatsmith.algo.advantages import gae, whiten
from chatsmith.algo.rewards import adapt_kl_coef, standardise, token_rewards


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
