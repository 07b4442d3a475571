"""Diagrams as SVG text. It knows numbers and colours, but no runs; every label in a diagram is a fixed text.

Colours are names of CSS variables, so that one drawing serves light and dark pages. The same numbers give the same
bytes. matplotlib is imported when something is drawn, and its global state is left as it was.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

Size = tuple[int, int]
SMALL: Size = (322, 196)
TALL: Size = (322, 256)
WIDE: Size = (1080, 372)
NARROW: Size = (322, 276)

COLOURS = ("ink", "muted", "rule", "one", "two", "bad")
MOST_POINTS = 600  # of a line; of longer ones neighbours are averaged
NOISY_FROM = 24  # points

# drawn in place of the colours, see _svg
_SENTINELS = {name: f"#01fe{index:02x}" for index, name in enumerate(COLOURS)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 11.5,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.08,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.7,
    **dict.fromkeys(("axes.unicode_minus", "axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("lines.solid_capstyle", "lines.solid_joinstyle"), "round"),
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **dict.fromkeys(("text.parse_math", "axes.formatter.useoffset"), False),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _SENTINELS["rule"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), _SENTINELS["muted"]),
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
}


@dataclass(frozen=True)
class Line:
    """A curve; a value that is NaN is a gap."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str  # one of COLOURS
    dashed: bool = False
    marked: bool = False  # with a dot per value, for curves of few measurements


def curves(name: str, lines: Sequence[Line], *, percent: bool, log: bool, floor: float | None) -> Markup:
    """One small diagram over steps; noisy curves are thin, with their running mean in bold.

    Args:
        name: makes the ids inside the SVG unique on the page.
        floor: the value axis begins no lower than this.
    """
    with _drawn(name, SMALL) as (axes, buffer):
        for line in lines:
            _paint_line(axes, line)
        if log and all(value > 0 for line in lines for value in line.y if math.isfinite(value)):
            axes.set_yscale("log")
            _plain_log_labels(axes)
        else:
            _value_axis(axes, percent)
        if floor is not None and axes.get_ylim()[0] < floor:
            axes.set_ylim(bottom=floor)
        _steps(axes, 5)
    return _svg(buffer, SMALL)


def second_act(name: str, size: Size, reward: Line, other: Line, labels: tuple[str, str], turn: float | None) -> Markup:
    """Two curves over steps in one field, each with its own scale.

    Args:
        labels: fixed names of the left and the right scale.
        turn: from this step on, `other` falls while the reward rises.
    """
    with _drawn(name, size, right=44, top=34) as (axes, buffer):
        twin = axes.twinx()
        twin.grid(False)
        twin.spines["bottom"].set_visible(False)
        for each, line, label, side in ((axes, reward, labels[0], "left"), (twin, other, labels[1], "right")):
            _paint_line(each, line, strong=True)
            _value_axis(each, percent=False)
            colour = _SENTINELS[line.colour]
            each.tick_params(axis="y", colors=colour)
            each.set_title(label, loc=side, color=colour, fontweight="bold", pad=12)
        if turn is not None:
            end, bad = max(other.x), _SENTINELS["bad"]
            axes.axvspan(turn, end, color=bad, alpha=0.08, linewidth=0)
            note = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "color": bad}
            axes.annotate("reward up, judge down", (end, 0), xytext=(-6, 8), **note)
        _steps(axes, 9 if size is WIDE else 5)
    return _svg(buffer, size)


def frontier(name: str, paths: Sequence[Line]) -> Markup:
    """Where policies went between KL (x) and reward (y): joined points, the early ones pale."""
    with _drawn(name, TALL, top=24) as (axes, buffer):
        for path in paths:
            points = [(x, y) for x, y in zip(*_thinned(path.x, path.y, 120), strict=True) if math.isfinite(x + y)]
            colour = _SENTINELS[path.colour]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, alpha=0.35)
            for index, point in enumerate(points):
                alpha = 1 - 0.8 * (len(points) - 1 - index) / len(points)
                axes.plot(*point, "o", markersize=6, markeredgewidth=0, color=colour, alpha=alpha)
            if len(points) > 1:
                note = {"textcoords": "offset points", "fontsize": 11, "color": _SENTINELS["ink"]}
                axes.annotate("last step", points[-1], xytext=(0, 9), ha="right", **note)
                if path is paths[0]:
                    axes.annotate("first step", points[0], xytext=(10, -2), va="center", **note)
        axes.margins(0.07, 0.16)
        _value_axis(axes, percent=False)
        axes.xaxis.set_major_locator(_locator(5))
        _label(axes, "KL to the SFT model, nats per answer", "reward")
    return _svg(buffer, TALL)


def margins(name: str, counts: Sequence[float], edges: Sequence[float], colour: str) -> Markup:
    """Histogram of margins; those below 0 are pairs that the reward model gets wrong."""
    with _drawn(name, TALL, top=24) as (axes, buffer):
        widths = np.diff(edges)
        centres = np.asarray(edges[:-1]) + widths / 2
        colours = [_SENTINELS["bad" if centre < 0 else colour] for centre in centres]
        axes.bar(centres, counts, width=widths * 0.86, color=colours, alpha=0.85, linewidth=0)
        axes.axvline(0, color=_SENTINELS["ink"], linewidth=1)
        axes.yaxis.set_major_locator(_locator(4, whole=True))
        axes.xaxis.set_major_locator(_locator(6))
        _label(axes, "score of the better answer − score of the worse", "pairs")
    return _svg(buffer, TALL)


def reliability(name: str, groups: Sequence[tuple[float, float, float]], colour: str) -> Markup:
    """How often pairs are right against how sure the model was.

    Args:
        groups: confidence, accuracy and number of pairs.
    """
    with _drawn(name, TALL, top=24) as (axes, buffer):
        confidence, accuracy, pairs = zip(*groups, strict=True)
        axes.plot((0.5, 1), (0.5, 1), color=_SENTINELS["muted"], linewidth=1, dashes=(4, 3))
        axes.plot(confidence, accuracy, color=_SENTINELS[colour], linewidth=1.2, alpha=0.5)
        for x, y, count in groups:
            size = 4 + 12 * math.sqrt(count / max(pairs))
            axes.plot(x, y, "o", markersize=size, markeredgewidth=0, color=_SENTINELS[colour], alpha=0.85)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(min(0.4, *accuracy) - 0.04, 1.05)
        _value_axis(axes, percent=True)
        axes.xaxis.set_major_formatter(_percent())
        _label(axes, "how sure it was", "how often it was right")
    return _svg(buffer, TALL)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window around each value, a twelfth of all wide; a gap stays a gap.

    The window begins small: curves fall steeply at first, and a mean over the fall would show what never was.
    """
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, array, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    index = np.arange(len(array))
    half = np.minimum(max(1, len(array) // 24), index // 3)
    first, last = index - half, np.minimum(index + half + 1, len(array))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return list(map(float, np.where(known, means, math.nan)))


def is_noisy(values: Sequence[float]) -> bool:
    """Whether a curve goes up and down by far more than it goes anywhere."""
    array = np.asarray([value for value in values if math.isfinite(value)])
    return len(array) >= NOISY_FROM and bool(np.abs(np.diff(array)).sum() > 3 * np.ptp(array) > 0)


def _paint_line(axes: Any, line: Line, *, strong: bool = False) -> None:
    x, y = _thinned(line.x, line.y, MOST_POINTS)
    style = {"color": _SENTINELS[line.colour]} | ({"dashes": (4, 2)} if line.dashed else {})
    width = 2.6 if strong else 2.0
    if line.marked or len(x) == 1:  # joined over gaps: it is measured rarely
        kept = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
        axes.plot(*zip(*kept, strict=True), "o-", linewidth=width, markersize=4.5, markeredgewidth=0, **style)
    elif is_noisy(y):
        axes.plot(x, y, linewidth=0.9, alpha=0.38, **style)
        axes.plot(x, running_mean(y), linewidth=width, **style)
    else:
        axes.plot(x, y, linewidth=width, **style)


def _thinned(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """At most `most` points, each the mean of its neighbours where there are more."""
    if len(x) <= most:
        return list(x), list(y)
    groups = [group for group in np.array_split(np.column_stack((x, y)), most) if np.isfinite(group).all(1).any()]
    means = np.array([np.nanmean(group, axis=0) for group in groups])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _value_axis(axes: Any, percent: bool) -> None:
    axes.yaxis.set_major_locator(_locator(4))
    if percent:
        axes.yaxis.set_major_formatter(_percent())


def _label(axes: Any, across: str, upwards: str) -> None:
    axes.set_xlabel(across, loc="right")
    axes.set_title(upwards, loc="left", color=_SENTINELS["muted"], fontsize=11.5, pad=6)


def _steps(axes: Any, ticks: int) -> None:
    axes.xaxis.set_major_locator(_locator(ticks, whole=True))
    axes.set_xlabel("step", loc="right")


def _plain_log_labels(axes: Any) -> None:
    """0.1, 1, 10 and as many marks between as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 5), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _locator(ticks: int, *, whole: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(ticks, integer=whole, min_n_ticks=2)


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "−"))


@contextmanager
def _drawn(name: str, size: Size, *, right: int = 10, top: int = 10) -> Iterator[tuple[Any, io.StringIO]]:
    """Fresh axes to draw into, and where the drawing lies afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    (width, height), left, bottom = size, 44, 40
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own settings must not change the page
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name} | ({"font.size": 13} if size is WIDE else {}))
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        yield figure.add_axes(place, facecolor="none"), buffer
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _svg(buffer: io.StringIO, size: Size) -> Markup:
    """The bare element: CSS variables for colours, the page's font, no ids but those that are referred to."""
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)  # a style would hold for the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r"(\d\.\d\d)\d+", r"\1", body)
    for name, sentinel in _SENTINELS.items():
        body = body.replace(sentinel, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    return Markup(f'<svg viewBox="0 0 {size[0]} {size[1]}" aria-hidden="true">{body.strip()}')
