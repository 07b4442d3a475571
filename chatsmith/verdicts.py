"""Which stage is at fault? After each stage a verdict in words.

A stage *fails* only where going on makes no sense; everything else that looks wrong is a warning, which says what the
result is unfit for. A verdict begins with the fact that decides: what was left out, how many pairs counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatsmith.config import GatesConfig
from chatsmith.data.control import MANY_UNKNOWN
from chatsmith.evaluate import MIN_PROMPTS, Interval, turning_point

if TYPE_CHECKING:  # which import this
    from chatsmith.stages.label import LabelReport
    from chatsmith.stages.pairs import PairsReport
    from chatsmith.stages.reward import RewardReport
    from chatsmith.stages.rl import RlReport
    from chatsmith.stages.rollout import PolicyScores
    from chatsmith.stages.sft import SftReport

MIN_SCORE_STD = 1e-3
FEW_STEPS = 5
FEW_PAIRS = 30
FEW_PROMPTS = 64
MUCH_LEFT_OUT = 0.1
GUESSING_MARGIN = 1.2  # untrained models are a little worse than guessing
ROSE_AGAIN = 1.02  # times the lowest held-out loss
WORSE_THAN_COUNTING = 0.25  # nats per token
UNLIKELY = 0.1  # nats per token by which better answers may become less likely


@dataclass(frozen=True)
class Verdict:
    """Whether a stage's result can be built upon, why, and what to change where not."""

    passed: bool
    headline: str  # begins with the fact that decides
    details: str = ""
    warnings: tuple[str, ...] = ()
    unfit_for: tuple[str, ...] = ()  # what the warnings mean for a result that has passed

    @property
    def text(self) -> str:
        return "; ".join(filter(None, (self.headline, self.details))) + ("" if self.passed else ".")


@dataclass(frozen=True)
class LeftOut:
    """What a stage was given and did not use: records (stage 3: prompts) that are too long, and bad ones."""

    too_long: int = 0
    of: int = 0
    bad: int = 0  # in the sources that serve this stage
    what: str = "records"

    def __str__(self) -> str:
        """The beginning of a verdict; empty where nothing was left out."""
        bad = f"{self.bad} bad record{'s' if self.bad > 1 else ''} left out" if self.bad else ""
        of = f" of {self.of}" if self.of else ""
        long = f"{self.too_long}{of} {self.what} dropped as too long" if self.too_long else ""
        return "".join(f"{part}, " for part in (long, bad) if part)


@dataclass(frozen=True)
class Judged:
    """What a judge that training does not know says of stage 3.

    `gain` over the SFT model; `last`, the final score; `curve`, (step, the judge's score, reward) on the way.
    """

    gain: Interval
    last: float
    curve: tuple[tuple[int, float, float], ...]


class _Warnings:
    """Warnings of a verdict, and what each makes the result unfit for; first those that every stage may begin with."""

    def __init__(self, steps: int, remedy: str, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._texts: list[str] = []
        self._unfit_for: list[str] = []
        if steps < FEW_STEPS:
            plural = "s" if steps > 1 else ""
            self.append("judging the data by it", f"only {steps} optimizer step{plural} of {remedy}")
        if left_out.of and left_out.too_long > MUCH_LEFT_OUT * left_out.of:
            self.append(
                f"{left_out.what} as long as those that were dropped",
                f"{left_out.too_long / left_out.of:.0%} of the {left_out.what} were dropped as too long: raise "
                "data.max_tokens, or take a model with a longer context",
            )

    def append(self, unfit_for: str, text: str) -> None:
        self._texts.append(text)
        self._unfit_for.append(unfit_for)

    def verdict(self, problems: list[str], fact: str, details: str = "") -> Verdict:
        """Failed, with all problems first, or passed."""
        rest = "; ".join(filter(None, (fact, details))) if problems else details
        headline = f"{self._left_out}{'; '.join(problems) or fact}"
        return Verdict(not problems, headline, rest, tuple(self._texts), tuple(dict.fromkeys(self._unfit_for)))


def judge_sft(report: "SftReport", left_out: LeftOut | None = None) -> Verdict:
    """
    Args:
        left_out: None: what the report says was too long.
    """
    left_out = left_out or LeftOut(too_long=report.dropped_too_long)
    first, last, guess = report.held_out_loss_first, report.held_out_loss_last, report.guessing_loss
    warnings = _Warnings(report.steps, "sft: more sft.epochs, or a smaller sft.batch", left_out)
    if first > GUESSING_MARGIN * guess:
        warnings.append(
            "building on what these weights knew",
            f"before training the model was worse than guessing (loss {first:.2f}, guessing has "
            f"{guess:.2f}): does this tokenizer belong to this model?",
        )
    if report.unknown_share >= MANY_UNKNOWN:
        warnings.append(
            "text in letters that its vocabulary does not have",
            f"{report.unknown_share:.1%} of the tokens are <unk>, and the assistant learned to say it: take a base "
            "model whose tokenizer knows these letters, or falls back to bytes",
        )
    if report.eos_rate == 0:
        warnings.append(
            "answers that end",
            "EOS was never learned: no greedy answer ends by itself. Do the answers in the data end?",
        )
    elif report.eos_rate < 0.5:
        warnings.append(
            "answers that end",
            f"only {report.eos_rate:.0%} of greedy answers end by themselves within the limit: raise rl.max_new_tokens "
            "if good answers are longer, or train longer",
        )
    if report.repetition > 0.5:
        warnings.append(
            "long answers",
            f"greedy answers repeat themselves ({report.repetition:.0%} of their 4-grams): train longer, or look for "
            "repetition in the data",
        )
    if math.isnan(report.eos_rate):
        warnings.append(
            "telling whether answers end",
            "how answers end was not measured: no held-out prompt leaves room for rl.max_new_tokens. Lower it, or "
            "raise data.max_tokens",
        )
    if last > ROSE_AGAIN * report.held_out_loss_min:
        warnings.append(
            "questions unlike those of the data",
            f"held-out loss rose again from {report.held_out_loss_min:.3f}: fewer sft.epochs or a lower sft.lr",
        )
    problems = []
    worse_than_counting = last > report.counting_loss + WORSE_THAN_COUNTING
    unstable = report.setback > (ROSE_AGAIN - 1) * report.held_out_loss_min
    counted = f"counting which token follows which has {report.counting_loss:.3f}"
    if not last < first:
        problems.append(
            f"held-out loss did not fall ({first:.3f} -> {last:.3f}): nothing was learned. "
            "Try a lower sft.lr, more sft.epochs, or look at the data"
        )
    elif last >= guess:
        problems.append(
            f"held-out loss {last:.3f} is that of guessing ({guess:.3f}) or worse: too little was learned. "
            "Try more sft.epochs, another sft.lr, or look at the data"
        )
    elif worse_than_counting and unstable:
        problems.append(
            f"held-out loss rose by {report.setback:.3f} on the way and ended at {last:.3f}, while {counted}: training "
            "was unstable. Try a much lower sft.lr"
        )
    elif worse_than_counting:
        warnings.append(
            "answers that depend on the prompt",
            f"the model makes hardly any use of its prompt (held-out loss {last:.3f}, while {counted}): more "
            "sft.epochs, or a higher sft.lr",
        )
    fact = f"held-out loss {first:.3f} -> {last:.3f} nats per token (perplexity {report.perplexity:.2f})"
    if last < first:
        fact = f"held-out loss fell from {first:.3f} to {last:.3f} nats per token (perplexity {report.perplexity:.2f})"
    unknown = f"{report.unknown_share:.2%} of the tokens are <unk>" if report.unknown_share else ""
    return warnings.verdict(problems, fact, unknown)


def judge_label(report: "LabelReport") -> Verdict:
    """Failed where the reward model would have next to nothing to learn from."""
    fact = f"{report.different} different preferences between {report.pairs} pairs of answers"
    left_out = [f"{report.ties} ties"] if report.ties else []
    left_out += [f"{report.unusable} pairs with an answer that is cut off or empty"] if report.unusable else []
    details = f"{' and '.join(left_out)} left out" if left_out else ""
    problems = []
    if report.different < FEW_PAIRS:
        problems.append(
            f"only {report.different} different preferences between {report.pairs} pairs of answers: more prompts, a "
            "judge that sees more differences, a smaller label.tie, or a larger rl.max_new_tokens"
        )
    return Verdict(not problems, problems[0] if problems else fact, details)


def judge_reward(
    report: "RewardReport", *, score_std: float, aspects: Mapping[str, Interval], left_out: LeftOut | None = None
) -> Verdict:
    """
    Args:
        score_std: deviation of its scores over answers of the SFT model.
        aspects: where a gold judge exists, accuracy on pairs that differ in one aspect alone.
        left_out: None: what the report says was too long.
    """
    left_out = left_out or LeftOut(too_long=report.dropped_too_long)
    accuracy, rule = report.accuracy, report.length_rule_accuracy
    few = report.pairs < FEW_PAIRS
    measured = (
        f"held-out accuracy {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] over {report.pairs} pairs"
    )
    warnings = _Warnings(report.steps, "reward: more reward.epochs, or a smaller reward.batch", left_out)
    if few:
        warnings.append(
            "telling how good it is",
            f"only {report.pairs} held-out pairs to measure on: more preferences, or a larger data.held_out",
        )
    if accuracy.value <= rule.value:
        warnings.append(
            "answers of different length",
            f'not better than the rule "{report.length_rule}" ({rule.value:.1%}): it may only see length. Balance the '
            "lengths in the data",
        )
    if report.calibration_error > 0.1:
        warnings.append(
            "telling how sure it is",
            f"calibration error {report.calibration_error:.2f}: its margins over- or understate how sure it is. More "
            "preferences, or fewer reward.epochs",
        )
    inverted = [f"{aspect} ({accuracy.value:.0%})" for aspect, accuracy in aspects.items() if accuracy.high < 0.5]
    blind = [aspect for aspect, accuracy in aspects.items() if accuracy.low <= 0.5 <= accuracy.high]
    if inverted:
        remedy = "pairs in which it decides" if len(inverted) < len(aspects) else "are chosen and rejected mixed up?"
        warnings.append(
            f"judging {', '.join(inverted)}",
            f"it prefers the worse answer in: {', '.join(inverted)}. What to look for: {remedy}",
        )
    if blind:
        warnings.append(
            f"judging {', '.join(blind)}",
            f"it does not see: {', '.join(blind)}. training will not improve what its reward does not see",
        )
    problems = []
    if not accuracy.low > 0.5:
        problems.append(
            f"{measured}: no better than chance, as far as {'so few' if few else 'these'} pairs tell. More or cleaner "
            "preferences, more reward.epochs, another reward.lr, or a larger reward_model"
        )
    elif not score_std >= MIN_SCORE_STD:
        problems.append(
            f"{measured}, but its scores of sampled answers hardly differ (deviation {score_std:.1e}): training would "
            "have no signal. Train longer, or raise reward.lr"
        )
    return warnings.verdict(problems, "" if problems else measured)


def judge_rl(
    report: "RlReport", gates: GatesConfig, judged: Judged | None, left_out: LeftOut | None = None
) -> tuple[Verdict, Interval]:
    """The verdict, and the gain in reward on the fixed held-out prompts that count."""
    before, after = report.before, report.after
    gain, means = report.gain(), report.reward_means()
    counted, asked = report.counted_prompts()
    left_out = left_out or LeftOut()
    warnings = _Warnings(report.steps, "rl: a smaller rl.rollouts, or more rl.steps", left_out)
    best = "EMA" if means["ema"] > means["after"] else "actor"
    if MIN_PROMPTS <= counted < FEW_PROMPTS:
        warnings.append(
            "telling small gains",
            f"only {counted} held-out prompts: give more data, or raise data.held_out",
        )
    if report.explained_variance is not None and report.explained_variance < 0:
        warnings.append(
            "longer training as it is",
            f"the critic explains nothing (explained variance {report.explained_variance:.2f}): "
            "raise rl.critic_lr or set rl.critic_warmup",
        )
    if report.clipped == 0:
        warnings.append(
            "several updates per batch of rollouts",
            "nothing was clipped in any step, so nothing held an update near the policy that gave the answers: lower "
            'rl.clip_low and rl.clip_high, or raise rl.lr. (With rl.ratio = "answer" leave them out: they follow the '
            "length of the answers)",
        )
    if after.eos_rate < 0.5:
        warnings.append(
            "answers that end", f"only {after.eos_rate:.0%} of answers end by themselves: raise rl.max_new_tokens"
        )
    if judged is not None and (over_optimised := _over_optimised(judged, means["after"])):
        warnings.append("what the gold judge judges: an earlier step was better", over_optimised)
    problems = []
    if counted < MIN_PROMPTS:
        problems.append(
            f"not judged: {counted} of {asked} held-out prompts have a finite reward both before and after, and it "
            f"takes {MIN_PROMPTS}. Give more data, raise data.held_out, or mend the reward"
        )
    elif not gain.low > 0:
        went_far = after.kl > gates.max_kl or gain.high < 0
        advice = "a lower rl.lr, or a higher rl.kl_coef" if went_far else "more rl.steps, or a higher rl.lr"
        if report.is_constant():
            advice = (
                f"every answer before and after got the same, {means['after']:+.3f}, and nothing can be learned from "
                "that. Write a reward that tells answers apart, or raise rl.max_new_tokens where all are cut off"
            )
        problems.append(f"the reward did not rise: {advice}")
    problems += _out_of_bounds(
        *(before, after, gates),
        far="what it maximises now may be a flaw of the reward. Raise rl.kl_coef or take fewer rl.steps",
        longer="the reward may only see length. Raise rl.kl_coef",
        same="raise rl.kl_coef or lower rl.lr",
    )
    if judged is not None and judged.gain.high < 0:
        problems.append(
            f"the gold judge says that answers became worse ({judged.gain}): the reward prefers what is not better. "
            "Look at stage 2 and its data, or raise rl.kl_coef"
        )
    unit = f" {report.reward_unit}" if report.reward_unit else ""
    fact = (
        f"reward on {counted} of {asked} held-out prompts {means['before']:+.3f} -> {means['after']:+.3f}, "
        f"gain {gain}{unit}"
    )
    details = (
        f"KL {after.kl:.3f} nats per token; the better of actor and EMA is the {best} "
        f"({means['after']:+.3f}, {means['ema']:+.3f})"
    )
    return warnings.verdict(problems, fact, details), gain


def judge_pairs(report: "PairsReport", gates: GatesConfig, judged: Judged | None, left_out: LeftOut) -> Verdict:
    """
    Args:
        judged: what a gold judge says of the answers, if there is one.
    """
    found, before, after = report.implicit, report.before, report.after
    few = found.pairs < FEW_PAIRS
    what = "marked answers" if report.loss == "kto" else "pairs"
    warnings = _Warnings(report.steps, "pairs: more pairs.epochs, or a smaller pairs.batch", left_out)
    if few:
        warnings.append(
            "telling how good it is",
            f"only {found.pairs} held-out {what} to measure on: more preferences, or a larger data.held_out",
        )
    if report.unpaired:
        warnings.append(
            "what the records without a pair say",
            f"{report.unpaired} records hold no two answers of different score, and pairs.loss = {report.loss} learns "
            "nothing from them: kto learns from marks",
        )
    if found.chosen < -UNLIKELY * found.chosen_tokens:
        both = " like the worse ones" if found.rejected < 0 else ""
        warnings.append(
            "saying what the data calls better",
            f"better answers became less likely{both} ({found.chosen:+.1f} nats per answer, worse ones "
            f"{found.rejected:+.1f}): the loss asks only for the difference. Add pairs.nll = 0.2, or lower pairs.lr",
        )
    if after.eos_rate < 0.5 <= before.eos_rate:
        warnings.append(
            "answers that end",
            f"only {after.eos_rate:.0%} of answers end by themselves, {before.eos_rate:.0%} did before: lower pairs.lr",
        )
    measured = (
        f"held-out accuracy {found.accuracy.value:.1%} [{found.accuracy.low:.1%}, {found.accuracy.high:.1%}] over "
        f"{found.pairs} {what}, margin {found.margin} nats"
    )
    problems = []
    if not found.accuracy.low > 0.5:
        problems.append(
            f"{measured}: no better than chance, as far as {'so few' if few else 'these'} {what} tell. More or cleaner "
            "preferences, more pairs.epochs, or another pairs.lr"
        )
    problems += _out_of_bounds(
        *(before, after, gates),
        far="it may have learned more than the preferences say. Raise pairs.beta, or lower pairs.lr",
        longer="better answers may be the longer or shorter ones. Balance the data, or set pairs.normalise",
        same="raise pairs.beta or lower pairs.lr",
    )
    if judged is not None and judged.gain.high < 0:
        problems.append(
            f"the gold judge says that answers became worse ({judged.gain}): look at the data, or raise pairs.beta"
        )
    details = (
        f"better answers {found.chosen:+.2f}, worse {found.rejected:+.2f} nats per answer; KL {after.kl:.3f} nats per "
        f"token; answers of {before.length:.0f} -> {after.length:.0f} tokens"
    )
    return warnings.verdict(problems, "" if problems and problems[0].startswith(measured) else measured, details)


def _out_of_bounds(
    before: "PolicyScores", after: "PolicyScores", gates: GatesConfig, *, far: str, longer: str, same: str
) -> list[str]:
    """What is outside of the gates, each with what it may mean and what to change."""
    ratio = after.length / before.length
    problems = []
    if after.kl > gates.max_kl:
        problems.append(f"the policy left the SFT model (gates.max_kl = {gates.max_kl}): {far}")
    if not 1 / gates.max_length_ratio <= ratio <= gates.max_length_ratio:
        problems.append(
            f"answers changed their length {ratio:.1f}-fold (gates.max_length_ratio = {gates.max_length_ratio}): "
            f"{longer}"
        )
    if after.entropy < gates.min_entropy:
        problems.append(
            f"the policy says always the same (entropy {after.entropy:.3f}, gates.min_entropy = {gates.min_entropy}): "
            f"{same}"
        )
    return problems


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
