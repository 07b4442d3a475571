"""Intervals, calibration and the verdicts they lead to."""

import math
import random

import pytest

from chatsmith.config import GatesConfig
from chatsmith.data.chat import Encoded
from chatsmith.evaluate import (
    Interval,
    correlation,
    expected_calibration_error,
    histogram,
    paired_difference,
    proportion,
    reliability,
    turning_point,
)
from chatsmith.stages.reward import RewardReport, _accuracy
from chatsmith.stages.rl import RlReport
from chatsmith.stages.rollout import PolicyScores
from chatsmith.stages.sft import SftReport, counting_loss
from chatsmith.verdicts import Judged, LeftOut, judge_reward, judge_rl, judge_sft


def test_the_interval_of_a_proportion_by_hand():
    # 8 of 10: (16 + 3.8415 - 1 -+ 1.96 sqrt(3.8415 - 2 -+ 0.1 + 3.2 * 3)) / 27.683, for the upper end with 2 of 10
    interval = proportion(8, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4422, 0.9646), abs=1e-3)
    assert proportion(0, 0).low == 0


def test_the_interval_of_a_proportion_covers_the_truth_at_least_as_often_as_it_says():
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        interval = proportion(sum(rng.random() < 0.7 for _ in range(60)), 60)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.945 < covered / 2000 < 0.985


def test_paired_difference_is_the_mean_and_its_interval_covers_zero_only_without_a_difference():
    rng = random.Random(1)
    before = [rng.gauss(0, 1) for _ in range(200)]
    better = [x + 0.2 + 0.1 * rng.gauss(0, 1) for x in before]
    noise = [x + 0.1 * rng.gauss(0, 1) for x in before]
    gain = paired_difference(before, better)
    assert gain.value == pytest.approx(sum(b - a for a, b in zip(before, better, strict=True)) / 200)
    assert gain.low > 0.15
    assert paired_difference(before, noise).low < 0 < paired_difference(before, noise).high
    assert paired_difference(before, better) == gain  # its own randomness is fixed


def test_prompts_without_a_score_on_either_side_are_left_out_of_the_difference():
    assert paired_difference([1.0, math.nan, 1.0], [2.0, 5.0, math.nan]).value == 1.0
    assert not paired_difference([math.nan], [1.0]).low > 0


def test_calibration_error_by_hand():
    sure = math.log(9)  # predicts 0.9
    assert expected_calibration_error(reliability([sure] * 9 + [-sure])) == pytest.approx(0.0, abs=1e-9)
    assert expected_calibration_error(reliability([sure] * 5 + [-sure] * 5)) == pytest.approx(0.4)
    (low, high) = reliability([0.1, -0.1, 5.0])
    assert (low.pairs, low.accuracy, high.pairs, high.accuracy) == (2, 0.5, 1, 1.0)
    assert expected_calibration_error([low, high]) == pytest.approx(
        (2 * (low.confidence - 0.5) + (1 - high.confidence)) / 3
    )


def test_the_turning_point_is_the_best_score_before_a_clear_fall_under_a_rising_reward():
    curve = [(0, 0.4, 0.0), (3, 0.7, 0.5), (6, 0.6, 0.8)]
    assert turning_point(curve, 0.6, 0.9) == (3, 0.7, 0.5)
    assert turning_point(curve, 0.66, 0.9) is None  # fell by 0.04
    assert turning_point(curve, 0.6, 0.4) is None  # the reward fell as well
    assert turning_point([(0, 0.7, 0.0), (3, 0.6, 0.5)], 0.5, 0.9) is None  # never rose
    assert turning_point([], 0.5, 0.9) is None  # never probed


def test_correlation_and_histogram():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1, 1], [1, 2, 3]) == 0
    assert sum(histogram([0.1, 0.2, 0.9], bins=4)["counts"]) == 3


def sft(**changes):
    values = {
        "held_out_loss_first": 3.0,
        "held_out_loss_last": 1.0,
        "held_out_loss_min": 1.0,
        "eos_rate": 0.9,
        "repetition": 0.1,
        "guessing_loss": 5.0,
        "dropped_too_long": 0,
        "steps": 100,
        "skipped_steps": 0,
    }
    return judge_sft(SftReport(**(values | changes)))


def test_sft_fails_only_if_its_loss_did_not_fall():
    assert sft().passed
    assert not sft().warnings
    assert not sft(held_out_loss_last=3.0).passed
    assert "0.30% of the tokens are <unk>" in sft(unknown_share=0.003).text
    assert not sft(unknown_share=0.003).warnings
    assert "take a base model" in sft(unknown_share=0.05).warnings[0]
    for change in ({"eos_rate": 0.4}, {"repetition": 0.6}, {"held_out_loss_last": 1.1}):
        assert sft(**change).passed
        assert len(sft(**change).warnings) == 1


def reward(score_std=1.0, aspects=None, **changes):
    values = {
        "accuracy": proportion(80, 100),
        "accuracy_by_source": {},
        "length_rule": "longer wins",
        "length_rule_accuracy": proportion(60, 100),
        "pairs": 100,
        "margins": {},
        "reliability": [],
        "calibration_error": 0.05,
        "length_correlation": 0.0,
        "dropped_too_long": 0,
        "steps": 100,
        "skipped_steps": 0,
    }
    return judge_reward(RewardReport(**(values | changes)), score_std=score_std, aspects=aspects or {})


def test_a_reward_model_fails_if_it_is_no_better_than_chance_or_says_always_the_same():
    assert reward().passed
    assert not reward().warnings
    assert not reward(accuracy=proportion(55, 100)).passed
    assert not reward(score_std=1e-4).passed
    assert "not better than the rule" in reward(length_rule_accuracy=proportion(85, 100)).warnings[0]
    assert "calibration" in reward(calibration_error=0.2).warnings[0]


def scores(mean=0.0, **changes):
    rng = random.Random(2)
    values = {"rewards": [mean + 0.1 * rng.random() for _ in range(64)], "kl": 0.1, "entropy": 1.0, "length": 20.0}
    return PolicyScores(**(values | {"eos_rate": 0.9, "rollouts": None, "kl_tokens": None} | changes))


def rl(after=None, ema=None, judged=None, **changes):
    values = {"tokens": [], "steps": 9, "skipped_steps": 0, "explained_variance": 0.5}
    report = RlReport(scores(), after or scores(1.0), ema or scores(0.5), **(values | changes))
    return judge_rl(report, GatesConfig(), judged)[0]


def test_ppo_fails_if_the_reward_did_not_rise_or_a_bound_was_left():
    assert rl().passed
    assert not rl().warnings
    for after, word in [
        (scores(0.0), "did not rise"),
        (scores(-1.0), "did not rise"),
        (scores(1.0, kl=2.0), "left the SFT model"),
        (scores(1.0, length=100.0), "changed their length"),
        (scores(1.0, length=2.0), "changed their length"),
        (scores(1.0, entropy=0.001), "always the same"),
    ]:
        verdict = rl(after)
        assert not verdict.passed
        assert word in verdict.text


def test_the_verdict_names_the_better_of_actor_and_average():
    assert "is the actor" in rl().text
    assert "is the EMA" in rl(ema=scores(2.0)).text


def test_ppo_warns_of_a_useless_critic_few_prompts_and_answers_that_do_not_end():
    assert "critic explains nothing" in rl(explained_variance=-0.1).warnings[0]
    assert "end by themselves" in rl(scores(1.0, eos_rate=0.2)).warnings[0]


def test_sft_names_a_foreign_tokenizer_and_an_end_that_was_never_learned():
    assert "does this tokenizer belong to this model" in sft(held_out_loss_first=6.1).warnings[0]
    assert not sft(held_out_loss_first=5.9).warnings
    assert "EOS was never learned" in sft(eos_rate=0.0).warnings[0]


def test_a_reward_model_is_told_which_aspects_it_does_not_see_and_which_it_sees_upside_down():
    aspects = {"polite": proportion(90, 100), "right": proportion(52, 100), "concise": proportion(20, 100)}
    inverted, blind = reward(aspects=aspects).warnings
    assert "prefers the worse answer in: concise (20%)" in inverted
    assert "does not see: right" in blind
    assert reward(aspects=aspects).unfit_for == ("judging concise (20%)", "judging right")
    assert not reward(aspects={"polite": proportion(90, 100)}).warnings
    everything = reward(aspects={"polite": proportion(10, 100), "right": proportion(6, 100)}).warnings[0]
    assert "are chosen and rejected mixed up?" in everything
    assert "mixed up" not in inverted  # one aspect may be outweighed by another


def test_over_optimisation_is_named_where_the_gold_score_fell_while_the_reward_rose_on():
    gain = Interval(0.1, 0.05, 0.15)
    fell = Judged(gain, 0.60, ((0, 0.40, 0.0), (9, 0.70, 0.5), (18, 0.65, 0.8)))
    assert (
        "over-optimised: after 9 steps the gold score was 0.700, since then it fell to 0.600"
        in rl(judged=fell).warnings[0]
    )
    assert rl(judged=fell).passed
    assert not rl(judged=Judged(gain, 0.68, fell.curve)).warnings  # within the noise of one probe
    assert not rl(judged=Judged(gain, 0.60, ((0, 0.40, 0.0), (9, 0.70, 1.1)))).warnings  # the reward fell too
    worse = Interval(-0.1, -0.2, -0.01)
    assert "over-optimised" in rl(judged=Judged(worse, 0.30, fell.curve)).warnings[0]
    from_the_start = ((0, 0.40, 0.0), (9, 0.35, 0.5))
    assert not rl(judged=Judged(worse, 0.30, from_the_start)).warnings
    assert "the reward prefers what is not better" in rl(judged=Judged(worse, 0.30, from_the_start)).text


def test_few_steps_and_few_pairs_are_named():
    assert "only 1 optimizer step of sft: more sft.epochs" in sft(steps=1).warnings[0]
    assert "only 3 optimizer steps of reward" in reward(steps=3).warnings[0]
    assert "only 2 optimizer steps of rl" in rl(steps=2).warnings[0]
    few = reward(pairs=6, accuracy=proportion(4, 6))
    assert "only 6 held-out pairs" in few.warnings[0]
    assert "as far as so few pairs tell" in few.text


def test_the_advice_fits_what_happened_and_every_bound_that_was_left_is_named():
    assert "more rl.steps, or a higher rl.lr" in rl(scores(0.0)).text
    fell = rl(scores(-1.0, kl=3.0)).text
    assert "the reward did not rise: a lower rl.lr, or a higher rl.kl_coef" in fell
    assert "the policy left the SFT model" in fell
    assert "a lower rl.lr" in rl(scores(-1.0)).text


def test_a_model_that_is_worse_than_guessing_has_failed_however_far_its_loss_fell():
    for last in (13.31, 5.0, math.inf, math.nan):
        verdict = sft(held_out_loss_first=14.6, held_out_loss_last=last, held_out_loss_min=last)
        assert not verdict.passed, last
    assert "is that of guessing (5.000) or worse" in sft(held_out_loss_first=14.6, held_out_loss_last=13.31).headline
    assert sft(held_out_loss_first=14.6, held_out_loss_last=4.0, held_out_loss_min=4.0).passed


def test_a_learning_rate_that_ruined_the_model_is_named_also_where_the_loss_fell_in_the_end():
    # measured with the demo and sft.lr x 100
    ruined = {
        "guessing_loss": 6.736,
        "held_out_loss_first": 6.789,
        "held_out_loss_last": 2.101,
        "held_out_loss_min": 2.101,
    }
    verdict = sft(**ruined, setback=0.254, counting_loss=1.308)
    assert not verdict.passed
    assert "held-out loss rose by 0.254 on the way and ended at 2.101, while counting" in verdict.headline
    steady = sft(**ruined, setback=0.01, counting_loss=1.308)  # trained for too short
    assert steady.passed
    assert steady.unfit_for == ("answers that depend on the prompt",)
    spiked = sft(**ruined | {"held_out_loss_last": 0.43, "held_out_loss_min": 0.43}, setback=1.0, counting_loss=1.308)
    assert spiked.passed and not spiked.warnings


def test_a_verdict_begins_with_what_was_left_out():
    few = LeftOut(too_long=117, of=120, bad=2)
    verdict = judge_sft(SftReport(3.0, 1.0, 1.0, 0.9, 0.1, 5.0, 117, 100, 0), few)
    assert verdict.text.startswith("117 of 120 records dropped as too long, 2 bad records left out, held-out loss fell")
    assert "98% of the records were dropped as too long" in verdict.warnings[0]
    assert verdict.unfit_for == ("records as long as those that were dropped",)
    assert judge_sft(SftReport(3.0, 1.0, 1.0, 0.9, 0.1, 5.0, 3, 100, 0)).text.startswith(
        "3 records dropped as too long"
    )
    prompts = LeftOut(too_long=1, of=100, what="prompts")
    report = RlReport(scores(), scores(1.0), scores(0.5), [], 9, 0, 0.5)
    assert judge_rl(report, GatesConfig(), None, prompts)[0].headline.startswith("1 of 100 prompts dropped as too long")
    assert not sft().text.startswith("0")


def test_every_warning_says_what_the_result_is_unfit_for_and_a_clean_pass_is_fit():
    assert sft().unfit_for == reward().unfit_for == rl().unfit_for == ()
    for verdict in (sft(eos_rate=0.0), sft(steps=1), reward(pairs=6), rl(scores(1.0, eos_rate=0.2)), rl(steps=2)):
        assert verdict.passed
        assert verdict.warnings and verdict.unfit_for


def test_a_constant_reward_gets_advice_that_can_help():
    constant = scores(rewards=[-1.0] * 64)
    report = RlReport(constant, constant, constant, [], 9, 0, 0.0)
    verdict, gain = judge_rl(report, GatesConfig(), None)
    assert gain == Interval(0.0, 0.0, 0.0)
    assert "Write a reward that tells answers apart" in verdict.headline
    assert "rl.steps" not in verdict.text
    assert "more rl.steps" in rl(scores(0.0)).headline


def test_the_unit_of_a_standardised_reward_is_said():
    report = RlReport(scores(), scores(1.0), scores(0.5), [], 9, 0, 0.5, "in standard deviations")
    assert "] in standard deviations; KL" in judge_rl(report, GatesConfig(), None)[0].text


def test_counting_which_token_follows_which_by_hand():
    train = [Encoded([1, 2, 3, 2, 3], [False, False, True, True, True])]  # after 2 came 3, twice; after 3 came 2
    held_out = [Encoded([3, 2, 3, 1], [False, True, True, True])]
    single = [(count + 1) / (3 + 4) for count in (0, 0, 1, 2)]
    after = {(3, 2): (1 + 5 * single[2]) / 6, (2, 3): (2 + 5 * single[3]) / 7, (3, 1): 5 * single[1] / 6}
    expected = -sum(map(math.log, after.values())) / 3
    assert counting_loss(train, held_out, vocabulary=4) == pytest.approx(expected)
    alike = [Encoded([1, 2, 3], [False, True, True])] * 300
    assert counting_loss(alike, alike, vocabulary=4) < 0.02
    never = counting_loss(alike, [Encoded([3, 1], [False, True])], vocabulary=4)
    assert math.log(4) < never < math.inf


def test_records_that_ask_the_same_are_one_question():
    margins = [[1.0]] * 30 + [[-1.0], [1.0], [-1.0]]
    once = _accuracy(margins, ["a"] * 30 + ["b", "c", "d"])
    assert once.value == 0.5
    assert once.low < 0.1
    assert _accuracy(margins, range(33)).low > 0.5
    assert _accuracy([[], [1.0, -1.0]], ["none", "tie"]).value == 0.5


def test_a_run_in_which_nothing_was_clipped_is_warned_of():
    def warned(clipped):
        report = RlReport(scores(), scores(1.0), scores(0.5), [], 9, 0, None, clipped=clipped)
        return [text for text in judge_rl(report, GatesConfig(), None)[0].warnings if "nothing was clipped" in text]

    assert len(warned(0.0)) == 1
    assert warned(0.01) == warned(None) == []  # None: one update per batch of rollouts, or nothing that clips
