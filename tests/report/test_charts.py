"""Scales, numbers and labels of the charts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from bitnas.report import numbers
from bitnas.report.svg import Canvas, Scale, shorten, span


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.951, 0.983), (-3.0, 7.0), (1e-9, 2e-9), (12.0, 98000.0)])
def test_linear_ticks_are_few_round_and_inside(low, high):
    ticks = Scale(low, high, 0, 100).ticks(5)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 * abs(high) for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps))


@pytest.mark.parametrize(("low", "high"), [(60, 300), (1, 1e6), (0.02, 0.5), (90, 480), (1e-3, 1e9)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = Scale(low, high, 0, 100, log=True).ticks(6)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_a_scale_maps_its_ends():
    for log in (False, True):
        scale = Scale(1.0, 100.0, 300.0, 20.0, log=log)
        assert scale(1.0) == pytest.approx(300)
        assert scale(100.0) == pytest.approx(20)
    assert Scale(1.0, 100.0, 0.0, 10.0, log=True)(10.0) == pytest.approx(5)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (2, 1, False), (0, 1, True), (math.nan, 1, False)])
def test_a_scale_without_extent_is_refused(low, high, log):
    with pytest.raises(ValueError, match="low"):
        Scale(low, high, 0, 1, log=log)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-2.0], [1.0, 1.0 + 1e-9]])
def test_a_span_of_equal_values_still_has_extent(values):
    scale = span(values, 0, 100)
    assert scale.low < min(values)
    assert max(values) < scale.high


def test_labels_do_not_cover_each_other_or_leave_the_plot():
    canvas = Canvas(300, 200)
    for index in range(6):
        canvas.keep_off(150 + index, 100 + index, 8, 8)
    for index in range(6):
        canvas.label(150 + index, 100 + index, f"network {index}", "name", (0, 0, 300, 200))
    labels = canvas.taken[6:]
    assert len(labels) >= 4
    for number, (left, top, right, bottom) in enumerate(labels):
        assert left >= 0
        assert top >= 0
        assert right <= 300
        assert bottom <= 200
        for other in labels[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_text_of_a_chart_is_escaped():
    canvas = Canvas(10, 10)
    canvas.text(0, 0, "<b>&")
    canvas.mark(0, 0, "dot", 1, "x", "<i>")
    assert "<b>" not in canvas.svg('"><b>', "wide")
    assert "&lt;b&gt;&amp;" in canvas.svg("", "wide")
    assert "<title>&lt;i&gt;</title>" in canvas.svg("", "wide")


def test_specks_of_one_place_are_drawn_once():
    canvas = Canvas(10, 10)
    for x in (2.0, 2.4, 9.0):
        canvas.speck(x, 5, 3, "candidate")
    canvas.speck(2.0, 5, 3, "front")
    assert len(canvas.parts) == 3


def test_long_layer_names_keep_their_end():
    assert shorten("layer1.0.conv1", 1000) == "layer1.0.conv1"
    assert shorten("features.layer1.0.conv1", 80).endswith("conv1")
    assert len(shorten("features.layer1.0.conv1", 80)) <= 11


@pytest.mark.parametrize(
    ("us", "text"),
    [(0.5, "0.500 µs"), (12.34, "12.3 µs"), (999.0, "999 µs"), (1234.5, "1.23 ms"), (3.2e6, "3.20 s"), (None, "–")],
)
def test_duration(us, text):
    assert numbers.duration(us) == text


@pytest.mark.parametrize(
    ("value", "text"), [(11313152, "11.3 M"), (950, "950"), (2.5e9, "2.50 G"), (0, "0"), (None, "–")]
)
def test_count(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.006, "+0.6"), (-0.0123, "−1.2"), (0.0001, "0.0"), (-0.0001, "0.0")])
def test_points(value, text):
    assert numbers.points(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "0.500 KiB"), (47.8 * 1024, "47.8 KiB"), (1.5 * 1024**2, "1.50 MiB")]
)
def test_size(value, text):
    assert numbers.size(value) == text


def test_spearman_against_known_values():
    assert numbers.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert numbers.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert numbers.spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)
    assert numbers.spearman([1, 2], [1, 2]) is None
    assert numbers.spearman([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="equal length"):
        numbers.spearman([1], [1, 2])
