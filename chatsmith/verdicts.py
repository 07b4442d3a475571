"""Which stage is at fault? After each stage a verdict in words.

A stage *fails* only where going on makes no sense; everything else that looks wrong is a warning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chatsmith.config import GatesConfig
from chatsmith.data.control import MANY_UNKNOWN
from chatsmith.evaluate import Interval, paired_difference, turning_point
from chatsmith.stages.reward import RewardReport
from chatsmith.stages.rl import RlReport
from chatsmith.stages.sft import SftReport

MIN_SCORE_STD = 1e-3
FEW_STEPS = 5
FEW_PAIRS = 30
GUESSING_MARGIN = 1.2  # untrained models are a little worse than guessing


@dataclass(frozen=True)
class Verdict:
    """Whether a stage's result can be built upon, why, and what to change where not."""

    passed: bool
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What a judge that training does not know says of PPO.

    `gain` over the SFT model; `last`, the final score; `curve`, (step, the judge's score, reward) on the way.
    """

    gain: Interval
    last: float
    curve: tuple[tuple[int, float, float], ...]


def judge_sft(report: SftReport) -> Verdict:
    first, last = report.held_out_loss_first, report.held_out_loss_last
    warnings = _few_steps("sft", report.steps, "more sft.epochs, or a smaller sft.batch")
    if first > GUESSING_MARGIN * report.guessing_loss:
        warnings.append(
            f"before training the model was worse than guessing (loss {first:.2f}, guessing has "
            f"{report.guessing_loss:.2f}): does this tokenizer belong to this model?"
        )
    if report.unknown_share >= MANY_UNKNOWN:
        warnings.append(
            f"{report.unknown_share:.1%} of the tokens are <unk>, and the assistant learned to say it: take a base "
            "model whose tokenizer knows these letters, or falls back to bytes"
        )
    if report.eos_rate == 0:
        warnings.append("EOS was never learned: no greedy answer ends by itself. Do the answers in the data end?")
    elif report.eos_rate < 0.5:
        warnings.append(
            f"only {report.eos_rate:.0%} of greedy answers end by themselves within the limit: raise rl.max_new_tokens "
            "if good answers are longer, or train longer"
        )
    if report.repetition > 0.5:
        warnings.append(
            f"greedy answers repeat themselves ({report.repetition:.0%} of their 4-grams): train longer, or look for "
            "repetition in the data"
        )
    if math.isnan(report.eos_rate):
        warnings.append(
            "how answers end was not measured: no held-out prompt leaves room for rl.max_new_tokens. Lower it, or "
            "raise data.max_tokens"
        )
    if last > 1.02 * report.held_out_loss_min:
        warnings.append(
            f"held-out loss rose again from {report.held_out_loss_min:.3f}: fewer sft.epochs or a lower sft.lr"
        )
    if not last < first:
        return Verdict(
            False,
            f"held-out loss did not fall ({first:.3f} -> {last:.3f}): nothing was learned. "
            "Try a lower sft.lr, more sft.epochs, or look at the data.",
            tuple(warnings),
        )
    return Verdict(
        True,
        f"held-out loss fell from {first:.3f} to {last:.3f} nats per token (perplexity {report.perplexity:.2f})"
        + (f"; {report.unknown_share:.2%} of the tokens are <unk>" if report.unknown_share else ""),
        tuple(warnings),
    )


def judge_reward(report: RewardReport, *, score_std: float, aspects: Mapping[str, Interval]) -> Verdict:
    """
    Args:
        score_std: deviation of its scores over answers of the SFT model.
        aspects: where a gold judge exists, accuracy on pairs that differ in one aspect alone.
    """
    accuracy, rule = report.accuracy, report.length_rule_accuracy
    few = report.pairs < FEW_PAIRS
    measured = (
        f"held-out accuracy {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] over {report.pairs} pairs"
    )
    warnings = _few_steps("reward", report.steps, "more reward.epochs, or a smaller reward.batch")
    if few:
        warnings.append(
            f"only {report.pairs} held-out pairs to measure on: more preferences, or a larger data.held_out"
        )
    if accuracy.value <= rule.value:
        warnings.append(
            f'not better than the rule "{report.length_rule}" ({rule.value:.1%}): it may only see length. Balance the '
            "lengths in the data"
        )
    if report.calibration_error > 0.1:
        warnings.append(
            f"calibration error {report.calibration_error:.2f}: its margins over- or understate how sure it is. More "
            "preferences, or fewer reward.epochs"
        )
    inverted = [aspect for aspect, interval in aspects.items() if interval.high < 0.5]
    blind = [aspect for aspect, interval in aspects.items() if interval.low <= 0.5 <= interval.high]
    if inverted:
        warnings.append(f"it prefers the worse answer in: {', '.join(inverted)}. Are chosen and rejected mixed up?")
    if blind:
        warnings.append(f"it does not see: {', '.join(blind)}. PPO will not improve what its reward does not see")
    if accuracy.low <= 0.5:
        return Verdict(
            False,
            f"{measured}: no better than chance, as far as {'so few' if few else 'these'} pairs tell. More or cleaner "
            "preferences, more reward.epochs, another reward.lr, or a larger reward_model.",
            tuple(warnings),
        )
    if score_std < MIN_SCORE_STD:
        return Verdict(
            False,
            f"{measured}, but its scores of sampled answers hardly differ (deviation {score_std:.1e}): PPO would have "
            "no signal. Train longer, or raise reward.lr.",
            tuple(warnings),
        )
    return Verdict(True, measured, tuple(warnings))


def judge_rl(report: RlReport, gates: GatesConfig, judged: Judged | None) -> tuple[Verdict, Interval]:
    """The verdict, and the gain in reward on the fixed held-out prompts."""
    before, after, ema = report.before, report.after, report.ema
    gain = paired_difference(before.rewards, after.rewards)
    ratio = after.length / before.length
    warnings = _few_steps("rl", report.steps, "a smaller rl.rollouts, or more rl.steps")
    best = "EMA" if ema.reward_mean > after.reward_mean else "actor"
    if len(after.rewards) < 64:
        warnings.append(f"only {len(after.rewards)} held-out prompts: give more data, or raise data.held_out")
    measured = (
        f"reward on {len(after.rewards)} held-out prompts {before.reward_mean:+.3f} -> {after.reward_mean:+.3f}, "
        f"gain {gain}, KL {after.kl:.3f} nats per token; the better of actor and EMA is the {best} "
        f"({after.reward_mean:+.3f}, {ema.reward_mean:+.3f})"
    )
    if report.explained_variance < 0:
        warnings.append(
            f"the critic explains nothing (explained variance {report.explained_variance:.2f}): "
            "raise rl.critic_lr or set rl.critic_warmup"
        )
    if after.eos_rate < 0.5:
        warnings.append(f"only {after.eos_rate:.0%} of answers end by themselves: raise rl.max_new_tokens")
    if judged is not None and (over_optimised := _over_optimised(judged, after.reward_mean)):
        warnings.append(over_optimised)
    problems = []
    if not gain.low > 0:
        went_far = after.kl > gates.max_kl or gain.high < 0
        advice = "a lower rl.lr, or a higher rl.kl_coef" if went_far else "more rl.steps, or a higher rl.lr"
        problems.append(f"the reward did not rise: {advice}")
    if after.kl > gates.max_kl:
        problems.append(
            f"the policy left the SFT model (gates.max_kl = {gates.max_kl}): what it maximises now may be a flaw "
            "of the reward. Raise rl.kl_coef or take fewer rl.steps"
        )
    if not 1 / gates.max_length_ratio <= ratio <= gates.max_length_ratio:
        problems.append(
            f"answers changed their length {ratio:.1f}-fold (gates.max_length_ratio = {gates.max_length_ratio}): "
            "the reward may only see length. Raise rl.kl_coef"
        )
    if after.entropy < gates.min_entropy:
        problems.append(
            f"the policy says always the same (entropy {after.entropy:.3f}, gates.min_entropy = {gates.min_entropy}): "
            "raise rl.kl_coef or lower rl.lr"
        )
    if judged is not None and judged.gain.high < 0:
        problems.append(
            f"the gold judge says that answers became worse ({judged.gain}): the reward prefers what is not better. "
            "Look at stage 2 and its data, or raise rl.kl_coef"
        )
    text = f"{measured}. Failed: {'; '.join(problems)}." if problems else measured
    return Verdict(not problems, text, tuple(warnings)), gain


def _few_steps(stage: str, steps: int, remedy: str) -> list[str]:
    plural = "s" if steps > 1 else ""
    return [f"only {steps} optimizer step{plural} of {stage}: {remedy}"] if steps < FEW_STEPS else []


def _over_optimised(judged: Judged, reward_last: float) -> str:
    """In words, whether the judge's score rose, then fell, while the reward rose on; empty if it did not."""
    turn = turning_point(judged.curve, judged.last, reward_last)
    if turn is None:
        return ""
    step, best, reward = turn
    return (
        f"over-optimised: after {step:.0f} steps the gold score was {best:.3f}, since then it fell to "
        f"{judged.last:.3f} while the reward rose from {reward:+.2f} to {reward_last:+.2f}. "
        "Raise rl.kl_coef, or take fewer rl.steps"
    )
