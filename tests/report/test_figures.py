"""Figures that hold with names and numbers as a run may have them; a warning is an error here."""

import math
import re
from xml.etree import ElementTree

import pytest

from subjax.report import figures, heat_maps

HOSTILE = '<b>$x_1$ & "owl"'
MANY = [f"arm_{i}_with_a_name_that_is_far_too_long_for_any_row_of_a_figure" for i in range(20)]


def strip(label, **fields):
    values = {"values": [0.1, math.nan, 0.4], "mean": 0.25, "low": 0.0, "high": 0.5, **fields}
    return figures.Strip(label=label, **values)


def strips(labels, num_panels, narrow):
    rows = [strip(label, series=i, note="+0.25") for i, label in enumerate(labels)]
    panel = figures.StripPanel(title="Arms", axis="Log-odds of owl (nats)", strips=rows)
    return figures.strips([panel] * num_panels, narrow=narrow, note="A note. " * 12)


def heat_map(labels, narrow):
    shares = {label: {"owl": 0.0, "cat": 0.0, HOSTILE: 0.0} for label in labels}
    return heat_maps.distribution(shares, target="owl", narrow=narrow)


def lines(labels, narrow):
    line = ([0, 16, 64, 256, 512], [3.0, 2.0, 1.0, 0.5, 0.2])
    panels = [figures.LinePanel(title=label, lines=[line, line], series=3) for label in labels]
    return figures.lines(panels, x_axis="Training step", y_axis="Loss (nats)", narrow=narrow)


@pytest.mark.parametrize(("labels", "narrow"), [(["owl"], True), (MANY, False), (MANY, True)])
@pytest.mark.parametrize("draw", [heat_map, lines, lambda x, y: strips(x, 2, y)])
def test_a_figure_can_be_drawn_with_one_arm_and_with_twenty_long_names(draw, labels, narrow):
    markup = figures.svg(draw(labels, narrow), name="x", label="y")
    root = ElementTree.fromstring(markup)
    width = 72 * (figures.NARROW_IN if narrow else figures.WIDE_IN)
    assert float(root.attrib["viewBox"].split()[2]) == width


@pytest.mark.parametrize("draw", [heat_map, lines, lambda x, y: strips(x, 1, y)])
def test_names_stay_text(draw):
    markup = figures.svg(draw([HOSTILE], True), name="x", label=HOSTILE)
    root = ElementTree.fromstring(markup)
    text = re.sub(r"\s+", "", "".join(root.itertext()))
    assert re.sub(r"\s+", "", HOSTILE) in text
    assert root.attrib["aria-label"] == HOSTILE


def test_an_interval_that_is_not_there_is_not_drawn():
    known = figures.svg(strips_of(strip("owl")), name="x", label="")
    unknown = figures.svg(strips_of(strip("owl", low=math.nan, high=math.nan)), name="x", label="")
    bar = "stroke-width: 1.8"
    assert (known.count(bar), unknown.count(bar)) == (1, 0)


def strips_of(row):
    return figures.strips([figures.StripPanel(title="", axis="", strips=[row])])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("owl", ["owl"]),
        ("owl_foreign_placebo", ["owl_foreign_", "placebo"]),
        ("Log-odds of owl (nats)", ["Log-odds of ", "owl (nats)"]),
        ("x" * 30, ["x" * 14 + "…"]),
        ("aaaaaaaaaa_" * 5, ["aaaaaaaaaa_", "aaaaaaaaaa_", "…"]),
        ("", [""]),
    ],
)
def test_labels_are_broken_at_joints_and_cut(text, lines):
    assert figures.wrapped(text, 12).split("\n") == lines
