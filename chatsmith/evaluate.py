"""Measuring, not training: intervals, calibration, and the scores of one policy on a fixed set of prompts."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Z = 1.959964  # the normal distribution's 97.5 % quantile

FEW_CLUSTERS = 6
MIN_PROMPTS = 16  # held out and different, from which on the gate of stage 3 judges
CLEAR_CHANGE = 0.05  # of a judge's mean score in [0, 1] over a few hundred answers


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def proportion(successes: float, trials: float) -> Interval:
    """Score interval with continuity correction of a proportion, or (wider than needed) of a mean of numbers in [0, 1].

    Args:
        trials: independent ones; a fraction where they are an effective number, as in `share`.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953, corrected as in Newcombe 1998, method 4.
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    p = successes / trials

    def low(p: float) -> float:
        root = max(0.0, Z * Z - 2 - 1 / trials + 4 * p * (trials * (1 - p) + 1))
        return max(0.0, (2 * trials * p + Z * Z - 1 - Z * math.sqrt(root)) / (2 * (trials + Z * Z))) if p > 0 else 0.0

    return Interval(p, low(p), 1 - low(1 - p))


def share(wins: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Mean over clusters of their shares of wins, with its interval.

    Many pairs of one prompt are not as many independent ones: the spread between clusters says how many they are
    worth, at least one for each cluster, at most one for each pair. Fewer than six clusters cannot say it: that all
    are alike happens by chance too often.

    Args:
        wins: in [0, 1] each, such as 1 where the better of two answers scored higher.
        clusters: what each belongs to; those of one cluster may depend on each other.
    Source: the effective number of trials of a survey, Korn and Graubard 1998, Survey Methodology 24(2).
    """
    means = _cluster_means(wins, clusters)
    count = len(means)
    mean = float(means.mean()) if count else math.nan
    trials = float(count)
    variance = float(means.var(ddof=1)) / count if count >= FEW_CLUSTERS else 0.0
    if variance > 0:
        worth = mean * (1 - mean) * (Z / _student(count - 1)) ** 2 / variance
        trials = min(max(worth, count), len(wins))
    return proportion(mean * trials if count else 0.0, trials)


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """Mean of values with its interval: on each side the wider one of Student's and of Hall's, which heeds skewness.

    Under no effect its lower end is above zero in at most 3 % of samples of 16 or more whose distribution is
    symmetric, however heavy its tails and however few its values; Student's alone in up to 4 %. Fewer than three values
    have no interval.

    Args:
        clusters: what each value belongs to; each cluster then counts once, with its mean.
    Source: Hall 1992, doi:10.1111/j.2517-6161.1992.tb01876.x, the monotone transformation.
    """
    means = np.asarray(values, dtype=np.float64) if clusters is None else _cluster_means(values, clusters)
    count = len(means)
    if count < 3:
        return Interval(float(means.mean()) if count else math.nan, -math.inf, math.inf)
    mean, std = float(means.mean()), float(means.std())
    step = _student(count - 1) / math.sqrt(count)
    skewness = float(((means - mean) ** 3).mean()) / std**3 if std > 0 else 0.0
    skewness *= math.sqrt(count * (count - 1)) / (count - 2)  # unbiased where the values are normal

    def reach(skewness: float) -> float:
        if abs(skewness) < 1e-6:
            return step
        hall = 3 / skewness * (math.cbrt(1 + skewness * (step - skewness / (6 * count))) - 1)
        return max(step, hall)

    scale = float(means.std(ddof=1))
    return Interval(mean, mean - scale * reach(skewness), mean + scale * reach(-skewness))


def paired_difference(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of after - before with its interval, over the pairs of which both sides are finite.

    It covers the choice of prompts, not the run-to-run variance of training.

    Args:
        clusters: which prompt each pair belongs to; None: each its own.
    """
    both = common(before, after)
    differences = np.asarray(after, dtype=np.float64)[both] - np.asarray(before, dtype=np.float64)[both]
    return mean_interval(differences.tolist(), None if clusters is None else [clusters[i] for i in both])


def difference_of_means(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `second` minus mean of `first`, two independent samples, with its interval.

    Source: Welch 1947, doi:10.1093/biomet/34.1-2.28. A side of fewer than two values has no interval.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (first, second)]
    means = [float(side.mean()) if len(side) else math.nan for side in sides]
    value = means[1] - means[0]
    if min(map(len, sides)) < 2:
        return Interval(value, -math.inf, math.inf)
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    if not sum(parts) > 0:
        return Interval(value, value, value)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    reach = _student(freedom) * math.sqrt(sum(parts))
    return Interval(value, value - reach, value + reach)


def separation(good: Sequence[float], bad: Sequence[float]) -> Interval:
    """Probability that a value of `good` is larger than one of `bad` (a tie is half), with its interval.

    The variance says how many independent trials the pairs of values are worth: at most as many as if there were no
    difference, where it is (m + n + 1) / 12 m n.

    Source: Mann and Whitney 1947, doi:10.1214/aoms/1177730491; the variance: DeLong et al. 1988, doi:10.2307/2531595.
    """
    high, low = (np.sort(np.asarray(side, dtype=np.float64)) for side in (good, bad))
    m, n = len(high), len(low)
    if not m or not n:
        return Interval(math.nan, 0.0, 1.0)

    def below(values: Array, others: Array) -> Array:
        """Share of the others that each value is above."""
        places: Array = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
        return places / (2 * len(others))

    of_high, of_low = below(high, low), 1 - below(low, high)
    value, trials = float(of_high.mean()), 3 * m * n / (m + n + 1)
    if min(m, n) > 1 and (variance := float(of_high.var(ddof=1)) / m + float(of_low.var(ddof=1)) / n) > 0:
        trials = min(trials, value * (1 - value) / variance)
    return proportion(value * trials, trials)


def common(before: Sequence[float], after: Sequence[float]) -> list[int]:
    """Where both have a finite number."""
    both: list[int] = np.flatnonzero(np.isfinite(before) & np.isfinite(after)).tolist()
    return both


def _cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> Array:
    """One mean per cluster, in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    own = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], np.int64)
    means: Array = np.bincount(own, weights=values) / np.bincount(own)
    return means


def _student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t distribution, to 1e-2 from three degrees of freedom on.

    Source: the expansion in 1/freedom, Abramowitz and Stegun 1964, 26.7.5.
    """
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


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
    if not curve:
        return None
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
