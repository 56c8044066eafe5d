"""Draws the ratios of benchmarks/RESULTS.md as charts for the documentation; part of `make bench`.

`python -m benchmarks.charts` draws them from what RESULTS.md holds, without measuring.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"
PICTURES: Final = ROOT / "docs" / "pictures"

_UNITS: Final = {"us": 1e-6, "ms": 1e-3}
_LONGEST: Final = 3.0
_ROUNDING: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One ratio: the rows *what* and *base* of the figures of RESULTS.md that begin with a number, and their names."""

    label: str
    what: str
    base_label: str
    base: str
    is_ours: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture with the ratios of one figure of RESULTS.md."""

    name: str
    title: str
    figure: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A bar with its numbers: the ratio of the minima, and both minima with their units."""

    bar: Bar
    ratio: float
    value: str
    base_value: str


_BARE: Final = "a bare Python that executes the command"
_SDK_HTTP: Final = "a script with OpenTelemetry's SDK, over HTTP"
_EXPORTER: Final = "OpenTelemetry's OTLP exporter"
_SERVICE: Final = "the bridge's server with a service that does nothing"

CHARTS: Final = (
    Chart(
        name="benchmark-off",
        title="Telemetry off: time until tbot is executing",
        figure="1.",
        bars=(
            Bar(
                label="`otel-tbot run`, installed by pip",
                what="`otel-tbot run`, installed by pip",
                base_label=_BARE,
                base="bare Python that execs (environment of pip)",
            ),
            Bar(
                label="`otel-tbot run`, installed by uv",
                what="`otel-tbot run`, installed by uv",
                base_label=_BARE,
                base="bare Python that execs (environment of uv)",
            ),
        ),
    ),
    Chart(
        name="benchmark-on",
        title="Telemetry on: time until tbot is executing",
        figure="2.",
        bars=(
            Bar(label="`otel-tbot run`", what="`otel-tbot run`", base_label=_BARE, base="bare Python that execs"),
            Bar(
                label="`otel-cli exec`, a Go program",
                what="`otel-cli exec` (Go)",
                base_label=_BARE,
                base="bare Python that execs",
                is_ours=False,
            ),
            Bar(
                label="`opentelemetry-instrument`",
                what="`opentelemetry-instrument python`, execs",
                base_label=_BARE,
                base="bare Python that execs",
                is_ours=False,
            ),
        ),
    ),
    Chart(
        name="benchmark-wait",
        title="Telemetry on: how much longer a one-shot tbot takes",
        figure="3.",
        bars=(
            Bar(
                label="a collector over HTTP",
                what="a healthy collector, http/protobuf",
                base_label=_SDK_HTTP,
                base="a plain SDK script, http/protobuf",
            ),
            Bar(
                label="a collector over gRPC",
                what="a healthy collector, grpc",
                base_label="a script with OpenTelemetry's SDK, over gRPC",
                base="a plain SDK script, grpc",
            ),
            Bar(
                label="the very first start, over HTTP",
                what="a healthy collector, bytecode not written yet",
                base_label="the same script's very first start",
                base="a plain SDK script, bytecode not written yet",
            ),
            Bar(
                label="a collector that refuses",
                what="a collector that refuses",
                base_label="the script and a collector that refuses",
                base="a plain SDK script, a collector that is refusing",
            ),
            Bar(
                label="a collector that never answers",
                what="a silent collector, OTEL_TBOT_TIMEOUT=1000",
                base_label="the script and a collector that never answers",
                base="a plain SDK script, a collector that is silent",
            ),
        ),
    ),
    Chart(
        name="benchmark-library",
        title="In a Python program",
        figure="5.",
        bars=(
            Bar(
                label="`import otel_tbot`",
                what="`import otel_tbot`",
                base_label="a Python that imports nothing",
                base="a bare interpreter, start to end",
            ),
            Bar(
                label="`emit`, one event",
                what="`emit` on",
                base_label="an SDK pipeline for one record",
                base="a pipeline of the SDK for one record, built, sent and shut down",
            ),
            Bar(
                label="a script that calls `emit`",
                what="the same as a whole script: `emit`",
                base_label="a script that uses the SDK",
                base="the same as a whole script: the SDK",
            ),
        ),
    ),
    Chart(
        name="benchmark-exporter",
        title="The exporter `tbot`: processor time for a record",
        figure="6.",
        bars=(
            Bar(
                label="log records",
                what="`tbot`, log, processor time",
                base_label=_EXPORTER,
                base="OpenTelemetry's OTLP exporter, log, processor time",
            ),
            Bar(
                label="spans",
                what="`tbot`, span, processor time",
                base_label=_EXPORTER,
                base="OpenTelemetry's OTLP exporter, span, processor time",
            ),
        ),
    ),
    Chart(
        name="benchmark-bridge",
        title="The bridge: processor time for a report",
        figure="7.",
        bars=(
            Bar(
                label="the bridge, export included",
                what="the bridge: processor time per report",
                base_label=_SERVICE,
                base="our service without delivery: processor time per report",
            ),
            Bar(
                label="connectrpc, a service that does nothing",
                what="an empty service by connectrpc, on uvicorn: processor time per report",
                base_label=_SERVICE,
                base="our service without delivery: processor time per report",
                is_ours=False,
            ),
            Bar(
                label="connect-go, a service that does nothing",
                what="an empty service by connect-go: processor time per report",
                base_label=_SERVICE,
                base="our service without delivery: processor time per report",
                is_ours=False,
            ),
        ),
    ),
    Chart(
        name="benchmark-guard",
        title="The guard: the collector's processor time for an event",
        figure="8.",
        bars=(
            Bar(
                label="a collector with the guard",
                what="with the guard: the collector's processor time per event",
                base_label="the same collector without it",
                base="without the guard: the collector's processor time per event",
            ),
        ),
    ),
)


def read_rows(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns minimum and ratio of each row in *text*, RESULTS.md: by the heading's number, then by row. Pure."""
    figures: dict[str, dict[str, tuple[str, str]]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        rows = figures.setdefault(section.partition(" ")[0], {})
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("|") and len(cells) > 3:
                rows.setdefault(cells[0], (cells[1], cells[3]))
    return figures


def to_seconds(text: str) -> float:
    """Returns a time such as "8.67 ms" in seconds. Pure."""
    number, _, unit = text.partition(" ")
    return float(number) * _UNITS[unit]


def measure(chart: Chart, figures: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[Measured]:
    """Returns the bars of *chart* with their numbers; raises KeyError, naming the row, if RESULTS.md lacks one."""
    rows = figures[chart.figure]
    measured = []
    for bar in chart.bars:
        (value, written), (base_value, _) = rows[bar.what], rows[bar.base]
        ratio = to_seconds(value) / to_seconds(base_value)
        # The minima are rounded, so the ratio that was computed from the samples is the better one.
        if written and abs(float(written) / ratio - 1) < _ROUNDING:
            ratio = float(written)
        measured.append(Measured(bar=bar, ratio=ratio, value=value, base_value=base_value))
    return measured


def to_ratio(ratio: float) -> str:
    """Returns a ratio as people read it: "1.08 times". Pure."""
    return f"{ratio:.1f} times" if ratio >= 10 else f"{ratio:.2f} times"


def draw(chart: Chart, measured: list[Measured], path: Path) -> None:
    """Writes *chart* as an SVG file whose text stays text, and whose bytes depend on the numbers only."""
    import matplotlib as mpl

    mpl.use("svg")
    fonts = ["DejaVu Sans", "sans-serif"]
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": chart.name, "font.family": fonts})
    from matplotlib import pyplot as plt

    height = 1.1 + 0.55 * len(measured)
    figure = plt.figure(figsize=(10, height), facecolor="white")
    axes = figure.add_axes((0.37, 0.55 / height, 0.33, (height - 1) / height))
    positions = range(len(measured), 0, -1)
    edge = max(1.1, *(min(one.ratio, _LONGEST) for one in measured))
    for position, one in zip(positions, measured, strict=True):
        color = "#2f6fb0" if one.bar.is_ours else "#a9b4c0"
        axes.barh(position, min(one.ratio, edge), height=0.55, color=color)
        beyond = "  (the bar is cut)" if one.ratio > edge else ""
        text = f"{to_ratio(one.ratio)}{beyond}\n{one.value}, against {one.base_value}"
        axes.text(1.04, position, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)
    axes.axvline(1, color="#b03a2e", linewidth=1.2)
    labels = [f"{one.bar.label.replace('`', '')}\nagainst {one.bar.base_label}" for one in measured]
    axes.set_yticks(list(positions), labels, fontsize=9)
    axes.set_xlim(0, edge)
    axes.set_ylim(0.5, len(measured) + 0.5)
    axes.set_xlabel("red line: as much as what it is compared with; shorter is better", fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.text(0.01, 1 - 0.25 / height, chart.title.replace("`", ""), fontsize=12, fontweight="bold", va="center")
    figure.savefig(path, metadata={"Date": None, "Creator": "benchmarks/charts.py"})
    plt.close(figure)


def write_charts(results: Path = RESULTS, folder: Path = PICTURES) -> list[Path]:
    """Draws every chart from *results* into *folder*; returns the files."""
    figures = read_rows(results.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    paths = []
    for chart in CHARTS:
        path = folder / f"{chart.name}.svg"
        draw(chart, measure(chart, figures), path)
        paths.append(path)
    return paths


def main() -> int:
    """Draws the charts and prints where they are; returns 0."""
    for path in write_charts():
        print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
