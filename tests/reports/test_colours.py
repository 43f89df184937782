"""Colours and marks of charts: told apart by every kind of vision, on light and dark pages, and without colour."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from rl_lab.reports.pages.charts import COLOURS, Axis, Series, chart

VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""Of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)."""
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
LEAST_DELTA_E = 15.0
"""CIE 1976; lines 6 to 8 apart are mistaken for one another."""
LINES = (*COLOURS, "cg", "cb")


def styles(theme):
    """Name -> linear RGB of the colours of a light or dark page."""
    light, dark = re.findall(
        r":root \{(.*?)\}", resources.files("rl_lab.reports").joinpath("page.css").read_text(), re.S
    )
    found = dict(re.findall(r"--(\w+): #(\w{6});", light if theme == "light" else light + dark))
    values = {name: np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]) for name, text in found.items()}
    return {name: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) for name, v in values.items()}


def lab(linear):
    x, y, z = np.cbrt(np.maximum(XYZ @ np.clip(linear, 0, 1) / XYZ.sum(1), 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_lines_are_told_apart_by_every_kind_of_vision(theme, vision):
    seen = {name: lab(np.array(VISIONS[vision]) @ styles(theme)[name]) for name in LINES}
    apart = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(LINES, 2)}
    assert min(apart.values()) >= LEAST_DELTA_E, min(apart, key=apart.get)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_from_the_page(theme):
    light = {name: XYZ[1] @ styles(theme)[name] + 0.05 for name in (*LINES, "card")}
    assert all(max(light[n], light["card"]) / min(light[n], light["card"]) >= 3 for n in LINES)


def test_each_line_has_a_mark_of_its_own_on_the_line_and_in_the_legend():
    series = [Series(name, list(range(100)), list(range(100)), name) for name in LINES]
    drawn = chart("many", series, Axis("x"), Axis("y"))
    marks = dict(re.findall(r'<g class="(c\w) mark" [^>]*>(.*?)</g>', drawn))
    assert len(set(marks.values())) == len(marks) == len(LINES)
    assert all(drawn.count(f'class="{name} mark"') == 6 for name in LINES)
    places = re.findall(r'mark" transform="translate\(([^)]+)\)"', drawn.split("<svg viewBox")[1])
    assert len(set(places)) == len(places), "lines on each other keep their marks apart"


def test_a_line_alone_has_no_marks_but_a_single_point_is_seen():
    assert " mark" not in chart("one", [Series("a", [1, 2], [3, 4])], Axis("x"), Axis("y"))
    assert " mark" in chart("one", [Series("a", [1], [3])], Axis("x"), Axis("y"))
