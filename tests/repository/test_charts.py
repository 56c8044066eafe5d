import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks.charts import CHARTS, PICTURES, RESULTS, measure, read_rows, to_ratio, to_seconds
from tests.support.checkout import ROOT

FIGURES = read_rows(RESULTS.read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")


def read_texts(path):
    """Returns the lines of text in an SVG file."""
    return {"".join(text.itertext()) for text in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_a_chart_shows_what_was_measured_last(chart):
    """Each bar has its name, what it is compared with, its ratio and both times: `make bench` drew them all again."""
    texts = read_texts(PICTURES / f"{chart.name}.svg")
    wanted = {chart.title.replace("`", "")}
    for one in measure(chart, FIGURES):
        wanted |= {one.bar.label.replace("`", ""), f"against {one.bar.base_label}"}
        wanted |= {f"{one.value}, against {one.base_value}"}
        assert any(text.startswith(to_ratio(one.ratio)) for text in texts)

    assert wanted <= texts


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_the_page_shows_each_chart_and_says_what_it_shows(chart):
    """Each chart is on the page, with a description for readers who cannot see it."""
    assert re.search(rf"!\[.{{20,}}\]\(\.\./pictures/{chart.name}\.svg\)", PAGE)


def test_a_ratio_is_that_of_its_two_rows():
    """The ratio of a bar agrees with the minima that stand next to it, but for their rounding."""
    measured = [one for chart in CHARTS for one in measure(chart, FIGURES)]

    assert measured
    for one in measured:
        assert one.ratio == pytest.approx(to_seconds(one.value) / to_seconds(one.base_value), rel=0.02)


def test_a_row_that_is_missing_is_named():
    """A renamed row of RESULTS.md fails here, not in an empty chart."""
    chart = CHARTS[0]
    rows = {**FIGURES, chart.figure: {}}

    with pytest.raises(KeyError, match=re.escape(chart.bars[0].what)):
        measure(chart, rows)
