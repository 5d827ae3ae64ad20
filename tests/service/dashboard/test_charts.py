"""Charts are pure: numbers in, markup out."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.dashboard.charts import Box, Dot, Line, axis_to, boxes, dots, histogram, legend, plane, series
from service.dashboard.charts.frame import HEIGHT, WIDTH
from service.dashboard.findings import ClassEllipse, Judged

EVIL = "<img src=x onerror=alert(1)>\"'&"
ALONG = [(0, "then"), (1, "now")]


def axis(largest: float = 10):
    return axis_to(largest, format=lambda value: f"{value:g}")


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<root>{markup}</root>")


def paths(markup: str, kind: str) -> list[str]:
    return [path.get("d", "") for path in parsed(markup).iter("path") if kind in (path.get("class") or "").split()]


@given(st.floats(min_value=1e-9, max_value=1e12), st.integers(min_value=2, max_value=6))
@example(1.000000001, 2)  # half of it is rounded to 0.5, of which it is a little more than two
def test_an_axis_reaches_what_is_drawn_in_few_round_steps(largest, num_ticks):
    found = axis_to(largest, format=str, num_ticks=num_ticks)
    steps = [after - before for before, after in pairwise(found.ticks)]
    assert found.ticks[0] == 0
    assert found.high >= largest * (1 - 1e-9)
    assert found.high - steps[0] < largest
    assert len(steps) <= num_ticks
    assert f"{steps[0]:e}"[0] in "125"


def test_what_is_beyond_an_axis_is_drawn_at_its_edge():
    assert [axis().height(value) for value in (-5, 0, 5, 10, 1e9)] == [HEIGHT, HEIGHT, HEIGHT / 2, 0, 0]


def test_a_line_goes_from_edge_to_edge():
    (path,) = paths(series([Line(values=[0, 10, 5])], axis=axis(), along=ALONG, label=""), "line")
    assert path == "M0 100L500 0L1000 50"


def test_a_gap_is_not_bridged():
    drawn = series([Line(values=[1, None, 2, 3, None, 4], filled=True)], axis=axis(), along=ALONG, label="")
    assert len(paths(drawn, "line")) == len(paths(drawn, "area")) == 3


def test_a_band_has_both_ends():
    (path,) = paths(series([], axis=axis(), along=ALONG, label="", band=([2, 2], [4, 4])), "area")
    assert path == "M0 80L1000 80L1000 60L0 60Z"


def test_bars_are_as_high_as_their_counts_and_side_by_side():
    drawn = histogram([10, 0, 5], [4, 4, 4], axis=axis(), along=ALONG, label="", first_kind="bad")
    bars = [
        {name: float(bar.get(name)) for name in ("x", "y", "width", "height")} for bar in parsed(drawn).iter("rect")
    ]
    assert [bar["height"] for bar in bars] == [100, 0, 50]
    assert all(bar["y"] + bar["height"] == HEIGHT for bar in bars)
    assert all(before["x"] + before["width"] < after["x"] for before, after in pairwise(bars))
    assert bars[-1]["x"] + bars[-1]["width"] < WIDTH
    assert drawn.count("bar bad") == 1
    assert paths(drawn, "promise")[0].startswith("M0.0 60L")


def test_a_share_lies_within_its_interval():
    row = Dot(name="7", value=0.5, low=0.25, high=0.75, said="")
    drawn = dots([row], axis=axis_to(1, format=str), mark=0.1, label="")
    assert [float(place) for place in re.findall(r"left:([\d.]+)%", drawn)][:3] == [25, 50, 10]
    assert "width:50.00%" in drawn


def test_a_row_without_images_has_no_dot():
    drawn = dots([Dot(name="7", value=None, low=0, high=1, said="no images")], axis=axis(1), mark=0.1, label="")
    assert "dot" not in drawn
    assert "no images" in drawn


def test_boxes_stand_apart_and_one_may_be_missing():
    row = Box(name="7", live=[1, 2, 3, 4, 5], calibration=None, said="")
    drawn = boxes([row], axis=axis(5), label="")
    assert "whisker live" in drawn
    assert "whisker calibration" not in drawn


def judged(x: float, y: float) -> Judged:
    return Judged(
        label=EVIL,
        class_index=0,
        probability=1,
        probabilities=(1,),
        log_likelihood=0,
        p_value=1,
        flagged=False,
        evidence={},
        position=(x, y),
        distance_from_plane=0,
        nearest=((EVIL, 1.0),),
    )


def test_the_plane_keeps_shapes_and_shows_all_that_it_is_about():
    circle = ClassEllipse(label="7", centre=(0, 0), half_axes=(1, 1), angle=0)
    drawn = parsed(plane([circle], ["7"], judged(0, 0), judged(9, 3), label=""))
    outer, inner = drawn.iter("ellipse")
    assert inner.get("rx") == inner.get("ry")
    assert float(outer.get("rx")) == pytest.approx(2 * float(inner.get("rx")), abs=0.2)
    square = next(drawn.iter("rect"))
    view = next(drawn.iter("svg")).get("viewBox").split()
    assert 0 < float(square.get("x")) < float(view[2])
    assert 0 < float(square.get("y")) < float(view[3])


@pytest.mark.parametrize(
    "drawn",
    [
        series([Line(values=[1])], axis=axis(), along=[(0, EVIL)], label=EVIL),
        histogram([1], [1], axis=axis(), along=[(0, EVIL)], label=EVIL),
        dots([Dot(name=EVIL, value=1, low=0, high=1, said=EVIL)], axis=axis(), mark=0, label=EVIL),
        boxes([Box(name=EVIL, live=None, calibration=[1, 2, 3, 4, 5], said=EVIL)], axis=axis(), label=EVIL),
        legend(("", EVIL)),
        plane(
            [ClassEllipse(label=EVIL, centre=(0, 0), half_axes=(1, 1), angle=0)],
            [EVIL],
            judged(0, 0),
            judged(1, 1),
            label=EVIL,
        ),
    ],
    ids=["series", "histogram", "dots", "boxes", "legend", "plane"],
)
def test_text_from_elsewhere_stays_text(drawn):
    assert "<img" not in drawn
    assert not [found for found in parsed(drawn).iter("img")]
