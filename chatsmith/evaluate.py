"""Measuring, not training: intervals, calibration, and the scores of one policy on a fixed set of prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CLEAR_CHANGE = 0.05  # of a judge's mean score in [0, 1] over a few hundred answers


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def proportion(successes: float, trials: int) -> Interval:
    """Wilson score interval of a proportion, or (wider than needed) of a mean of numbers in [0, 1].

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z, p = 1.959964, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return Interval(p, centre - half, centre + half)


def paired_difference(before: Sequence[float], after: Sequence[float], *, resamples: int = 2000) -> Interval:
    """Mean of after - before over prompts, with a bootstrap interval over prompts (percentile method).

    It covers the choice of prompts, not the run-to-run variance of training. Prompts where either side is NaN are
    left out.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return Interval(math.nan, -math.inf, math.inf)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(differences), size=(resamples, len(differences)))
    means = differences[draws].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high))


def turning_point(
    curve: Sequence[tuple[float, float, float]], last: float, reward_last: float
) -> tuple[float, float, float] | None:
    """Over-optimisation: the point where a judge's score was best before it fell while the reward rose on.

    Args:
        curve: (step, judge's score in [0, 1], reward) on the way.
        last, reward_last: both at the end.
    Returns:
        that point of the curve, or None where the score did not rise and then fall by `CLEAR_CHANGE`.
    Source: the curves of Gao et al. 2023, arXiv:2210.10760.
    """
    best = max(curve, key=lambda point: point[1])
    rose, fell = best[1] - curve[0][1], best[1] - last
    return best if min(rose, fell) > CLEAR_CHANGE and reward_last > best[2] else None


def histogram(values: Sequence[float], *, bins: int = 20) -> dict[str, Sequence[float]]:
    """Counts between edges, as plain lists."""
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), bins=bins)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


@dataclass(frozen=True)
class Reliability:
    """Pairs of like confidence: how sure the model was on average, and how often it was right."""

    confidence: float
    accuracy: float
    pairs: int


def reliability(margins: Sequence[float], *, bins: int = 10) -> list[Reliability]:
    """Held-out pairs grouped by confidence, from 0.5 to 1; empty groups are left out.

    Args:
        margins: score of the preferred answer minus that of the other, one per held-out pair.
    Source: Guo et al. 2017, arXiv:1706.04599; confidence is max(p, 1 - p) with p = sigmoid(margin).
    """
    margin = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    correct = margin > 0
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    groups = [index == b for b in range(bins)]
    return [
        Reliability(float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum()))
        for inside in groups
        if inside.any()
    ]


def expected_calibration_error(groups: Sequence[Reliability]) -> float:
    """Mean gap, over all pairs, between confidence and accuracy of their group."""
    pairs = sum(group.pairs for group in groups)
    return sum(group.pairs * abs(group.confidence - group.accuracy) for group in groups) / pairs


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson correlation; 0 where either side is constant."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
