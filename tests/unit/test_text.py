"""Text for terminals: bars, numbers, nothing harmful."""

import math

import pytest

from chatsmith.screen.text import POINTS, Series, duration, figure, one_line, printable, sparkline

NAN = math.nan


def test_a_sparkline_stretches_from_the_least_to_the_greatest_value():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0, 7]) == "█▁█"


def test_a_sparkline_averages_what_falls_into_one_column():
    assert sparkline([0, 0, 2, 4, 7, 7], width=3) == "▁▄█"  # means 0, 3, 7
    assert len(sparkline(range(1000), width=24)) == 24


def test_a_constant_series_is_flat_and_what_is_not_finite_is_a_gap():
    assert sparkline([3.0, 3.0, 3.0]) == "▄▄▄"
    assert sparkline([0, NAN, 7, math.inf]) == "▁ █ "
    assert sparkline([0, NAN, NAN, 7], width=2) == "▁█"
    assert sparkline([NAN]) == " "
    assert sparkline([]) == ""


def test_a_series_keeps_its_shape_in_bounded_memory():
    series = Series()
    for value in range(100_000):
        series.add(float(value))
    assert len(series.points) < POINTS
    assert (series.first, series.last) == (0, 99_999)
    assert sparkline(series.points) == sparkline(range(100_000))


def test_a_series_without_a_finite_value_is_a_gap():
    series = Series()
    series.add(NAN)
    series.add(1.0)
    assert sparkline(series.points) == " ▄"
    assert series.first == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.6, "9 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3 * 3600 + 720, "3 h 12 min"), (180_000, "2 days 2 h")],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (-2.0, "-2.000"), (2e-5, "2.0e-05"), (12345.0, "1.2e+04"), (NAN, "–")]
)
def test_a_figure_is_short(value, text):
    assert figure(value) == text


def test_control_characters_and_direction_marks_do_not_get_through():
    assert printable("a\x1b[31mb\x07\u202ec") == "a�[31mb��c"
    assert one_line(" two\n\tlines\x1b ") == "two lines�"
