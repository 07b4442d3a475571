"""Text for a terminal: harmless, short, and numbers as small pictures."""

import itertools
import math
import os
import unicodedata
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
KEPT = "\n\t\u200c\u200d"  # the last two join letters and emoji
POINTS = 512  # that a series keeps; a power of two


def printable(text: str) -> str:
    """Text without control characters, so that a model's answer cannot move the cursor or ring the bell."""
    return "".join(c if c in KEPT or unicodedata.category(c)[0] != "C" else "�" for c in text)


def one_line(text: str) -> str:
    """Printable text with every run of white space as one blank."""
    return " ".join(printable(text).split())


def quoted(name: str | os.PathLike[str]) -> str:
    """A path or another name as it is, or with escapes in quotes where it holds what a line of a terminal cannot."""
    text = os.fspath(name)
    return text if text and printable(text) == text and "\n" not in text and "\t" not in text else ascii(text)


def duration(seconds: float) -> str:
    """Seconds as "9 s", "2 min 05 s", "3 h 12 min"; the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def figure(value: float) -> str:
    """A number in few characters: three decimals where they say something, else two significant digits."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 1e-8 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3f}"
    return f"{value:.1e}"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as bars between their least and greatest, at most `width` of them.

    More values than columns are averaged, column by column. A column without a finite value is a gap; where all
    values are the same the line is flat.
    """
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)] if columns else [0]
    means = [_mean(values[left:right]) for left, right in itertools.pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    middle, top = BARS[len(BARS) // 2 - 1], len(BARS) - 1
    return "".join(
        " " if not math.isfinite(mean) else middle if high == low else BARS[round((mean - low) / (high - low) * top)]
        for mean in means
    )


class Series:
    """A metric over a whole stage in bounded memory: neighbours are averaged when there are too many points."""

    def __init__(self) -> None:
        self.first = self.last = math.nan
        self.points: list[float] = []
        self._waiting: list[float] = []
        self._per_point = 1

    def add(self, value: float) -> None:
        self.first, self.last = value if math.isnan(self.first) else self.first, value
        self._waiting.append(value)
        if len(self._waiting) < self._per_point:
            return
        self.points.append(_mean(self._waiting))
        self._waiting.clear()
        if len(self.points) == POINTS:
            self.points = [_mean(self.points[index : index + 2]) for index in range(0, POINTS, 2)]
            self._per_point *= 2


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
