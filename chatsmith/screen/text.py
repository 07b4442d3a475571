"""Text for a terminal: harmless, short, and numbers as small pictures."""

import difflib
import itertools
import math
import os
import shlex
import unicodedata
from collections.abc import Iterable, Sequence

BARS = "▁▂▃▄▅▆▇█"
KEPT = "\n\t\u200c\u200d"  # the last two join letters and emoji
POINTS = 512  # that a series keeps; a power of two


def printable(text: str) -> str:
    """Text without control characters, so that a model's answer cannot move the cursor or ring the bell."""
    if text.isprintable():
        return text
    return "".join(c if c in KEPT or unicodedata.category(c)[0] != "C" else "�" for c in text)


def unbroken(text: str) -> str:
    """Printable text as one line, in which a name or a message of several lines makes no line of its own."""
    if text.isprintable():
        return text
    first, *others = printable(text).splitlines() or [""]
    return " ".join([first, *(line.strip() for line in others)]).replace("\t", " ")


def one_line(text: str) -> str:
    """Printable text with every run of white space as one blank."""
    return " ".join(printable(text).split())


def quoted(name: str | os.PathLike[str]) -> str:
    """A path or another name as it is, or with escapes in quotes where it holds what a line of a terminal cannot."""
    text = os.fspath(name)
    return text if text and unbroken(text) == text else ascii(text)


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A question for the nearest known name; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f'did you mean "{near[0]}"?' if near else ""


def shell(words: Sequence[str | os.PathLike[str]]) -> str:
    """A command to type: each word reaches the program as it is, and a shell makes nothing else of any.

    Paths, unlike other words, are never taken for options. What a line of a terminal cannot hold is written as bash,
    zsh and ksh read it: $'...'.
    """
    return " ".join(_word(word if isinstance(word, str) else _no_option(os.fspath(word))) for word in words)


def _no_option(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path


def _word(text: str) -> str:
    if text == unbroken(text):
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character == unbroken(character):
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


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
