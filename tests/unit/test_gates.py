"""Gates that judge by chance: how often they pass where nothing has changed, and where something has."""

import math
from itertools import product

import numpy as np
import pytest

from chatsmith.config import GatesConfig
from chatsmith.data.store import Array
from chatsmith.evaluate import MIN_PROMPTS, paired_difference, share
from chatsmith.stages.final_judge import Opinion
from chatsmith.stages.reward import RewardReport
from chatsmith.stages.rl import RlReport
from chatsmith.stages.rollout import PolicyScores
from chatsmith.verdicts import judge_reward, judge_rl

RUNS = 2000
MOST = 0.036  # 2.5 % and three standard errors of a share among so many runs
SIZES = (1, 2, 4, 8, 16, 32, 64, 200)

REWARDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape),
    "very skewed": lambda rng, shape: rng.lognormal(0, 1.5, size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, size=shape),
    "no mean": lambda rng, shape: rng.standard_cauchy(size=shape),
    "right or wrong": lambda rng, shape: (rng.random(shape) < 0.5).astype(float),
    "rarely right": lambda rng, shape: (rng.random(shape) < 0.05).astype(float),
    "clipped": lambda rng, shape: np.clip(2 * rng.normal(size=shape), -5, 5).round(),
}


def scores(rewards, prompts=()) -> PolicyScores:
    return PolicyScores(list(rewards), 0.1, 1.0, 20.0, 0.9, None, None, prompts)


def rl_gate(before, after, prompts=()):
    report = RlReport(scores(before, prompts), scores(after, prompts), scores(after, prompts), [], 9, 0, 0.5)
    return judge_rl(report, GatesConfig(), None)[0]


def share_passed(pairs, prompts=()) -> float:
    """Of runs, each of which is rewards before and after."""
    return float(np.mean([rl_gate(before, after, prompts).passed for before, after in pairs]))


def drawn(name: str, pairs: int) -> Array:
    """[runs, 2, pairs] rewards without any effect."""
    return REWARDS[name](np.random.default_rng([pairs, len(name)]), (RUNS, 2, pairs))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [*product(REWARDS, (16,)), *product(("normal", "skewed", "right or wrong"), (32, 64)), ("rarely right", 200)],
)
def test_the_gate_of_ppo_passes_no_luck(name, pairs):
    assert share_passed(drawn(name, pairs).tolist()) <= MOST


@pytest.mark.parametrize("pairs", [n for n in SIZES if n < MIN_PROMPTS] + [15])
def test_the_gate_of_ppo_does_not_judge_fewer_than_sixteen_pairs_and_says_so(pairs):
    verdict = rl_gate([0.0] * pairs, [1.0] * pairs)
    assert not verdict.passed
    assert verdict.headline.startswith(f"not judged: {pairs} of {pairs} held-out prompts have a finite reward")
    assert rl_gate([0.0] * 16, [1.0] * 16).passed


@pytest.mark.parametrize("pairs", SIZES)
def test_answers_that_one_side_excludes_buy_no_luck(pairs):
    """A reward that judges no bad answer after PPO, and none at all of some prompts before."""
    rng = np.random.default_rng(pairs)
    rewards = rng.normal(size=(RUNS, 2, pairs)) + rng.normal(size=(RUNS, 1, pairs))
    hidden = rewards.copy()
    hidden[:, 0][rng.random((RUNS, pairs)) < 0.3] = math.nan
    hidden[:, 1][rng.random((RUNS, pairs)) < 0.3] = math.inf
    assert share_passed(hidden.tolist()) <= MOST


@pytest.mark.parametrize(("prompts", "samples"), [(16, 8), (64, 2)])
def test_several_answers_to_one_prompt_are_not_several_pairs(prompts, samples):
    """The difference of a prompt is shared by its answers, as where PPO learned one answer by heart."""
    rng = np.random.default_rng([prompts, samples])
    shared = rng.normal(size=(RUNS, 2, prompts, 1)) + 0.3 * rng.normal(size=(RUNS, 2, prompts, samples))
    rewards = shared.reshape(RUNS, 2, prompts * samples)
    numbers = np.repeat(np.arange(prompts), samples).tolist()
    assert share_passed(rewards.tolist(), numbers) <= MOST
    assert share_passed(rewards[:500].tolist()) > 2 * MOST or samples == 2  # where each counts as a pair of its own


def test_one_prompt_that_is_asked_often_is_one():
    verdict = rl_gate([0.0] * 64, [1.0] * 64, ["the same"] * 64)
    assert verdict.headline.startswith("not judged: 1 of 1 held-out prompts")


def test_a_gain_of_half_a_standard_deviation_passes_at_64_pairs():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(RUNS, 64))
    after = before + 0.5 + rng.normal(size=(RUNS, 64))
    assert share_passed(zip(before.tolist(), after.tolist(), strict=True)) >= 0.9
    skewed = before + rng.exponential(size=(RUNS, 64)) - 0.5
    assert share_passed(zip(before.tolist(), skewed.tolist(), strict=True)) >= 0.9


def test_an_interval_misses_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    for differences in (rng.normal(size=(RUNS, 24)) + 0.7, rng.exponential(size=(RUNS, 24)) - 0.3):
        intervals = [paired_difference([0.0] * 24, row) for row in differences.tolist()]
        missed = np.mean([not interval.low <= 0.7 <= interval.high for interval in intervals])
        assert 0.02 < missed < 0.07


def pairs_of_ranked(rng, prompts: int, answers: int) -> tuple[list[float], list[int]]:
    """Which pairs a head wins that scores `answers` answers to each prompt at random, and whose they are."""
    drawn = rng.normal(size=(prompts, answers))
    better, worse = np.triu_indices(answers, 1)
    wins = (drawn[:, better] > drawn[:, worse]).astype(float)
    return wins.ravel().tolist(), np.repeat(np.arange(prompts), len(better)).tolist()


def reward_gate(accuracy) -> bool:
    report = RewardReport(accuracy, {}, "longer wins", share([], []), 99, {}, [], 0.0, 0.0, 0, 99, 0)
    return judge_reward(report, score_std=1.0, aspects={}).passed


@pytest.mark.parametrize("prompts", SIZES)
@pytest.mark.parametrize("answers", [2, 9])
def test_a_reward_model_that_knows_nothing_passes_no_gate_and_is_no_judge(prompts, answers):
    rng = np.random.default_rng([prompts, answers])
    runs = 400 if prompts * answers > 250 else RUNS
    accuracies = [share(*pairs_of_ranked(rng, prompts, answers)) for _ in range(runs)]
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)
    assert np.mean([reward_gate(accuracy) for accuracy in accuracies]) <= most
    assert np.mean([not str(Opinion(accuracy, accuracy)).startswith("not judged") for accuracy in accuracies]) <= most


@pytest.mark.parametrize("prompts", SIZES)
@pytest.mark.parametrize("slips", [0.0, 0.05])
def test_copies_of_a_pair_that_hold_or_fall_together_buy_no_luck(prompts, slips):
    rng = np.random.default_rng([prompts, int(100 * slips)])
    runs = RUNS if prompts < 32 else 400
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)
    wins = np.broadcast_to(rng.random((runs, prompts, 1)) < 0.5, (runs, prompts, 9))
    wins = (wins ^ (rng.random(wins.shape) < slips)).reshape(runs, -1).astype(float)
    numbers = np.repeat(np.arange(prompts), 9).tolist()
    assert np.mean([reward_gate(share(row, numbers)) for row in wins.tolist()]) <= most


def test_a_reward_model_that_is_right_three_times_in_four_passes_at_64_prompts():
    rng = np.random.default_rng(2)
    wins = (rng.random((RUNS, 64)) < 0.75).astype(float)
    assert np.mean([reward_gate(share(row, range(64))) for row in wins.tolist()]) >= 0.9
    ranked = [share(*pairs_of_ranked(rng, 64, 9)) for _ in range(100)]
    widths = [interval.high - interval.low for interval in ranked]
    assert np.mean(widths) < 0.1  # many pairs say more than 64 would: 0.24


def test_means_before_and_after_are_over_the_prompts_that_count():
    before, after = [0.0, 10.0, math.nan] + [0.0] * 16, [1.0, math.nan, 10.0] + [1.0] * 16
    verdict = rl_gate(before, after)
    assert verdict.passed
    assert verdict.headline.startswith("reward on 17 of 19 held-out prompts +0.000 -> +1.000, gain +1.000")
