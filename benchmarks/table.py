"""Writes figures as tables, on the screen and in RESULTS.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.processes import Samples

_BEGIN, _END = "<!-- figures: `make bench` writes what follows -->", "<!-- end of figures -->"
_HEAD: Final = ("what", "minimum", "median", "ratio", "goal", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: what was measured, its minimum and median with a unit, its ratio, and its goal, met or missed."""

    what: str
    minimum: str
    median: str = ""
    ratio: str = ""
    goal: str = ""
    is_met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Returns the text of its columns."""
        verdict = "" if self.is_met is None else "met" if self.is_met else "**missed**"
        return self.what, self.minimum, self.median, self.ratio, self.goal, verdict


@dataclass(slots=True)
class Figure:
    """The rows of one figure, and how they were measured."""

    title: str
    about: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        what: str,
        samples: Samples,
        unit: str,
        *,
        scale: float = 1,
        base: Samples | None = None,
        at_most: float | None = None,
        goal: str = "",
        is_met: bool | None = None,
    ) -> None:
        """Adds a row of *samples* times *scale*; with *base*, also the ratio of the minima, which *at_most* limits."""
        ratio = samples.minimum / base.minimum if base is not None else None
        if at_most is not None and ratio is not None:
            goal, is_met = goal or f"at most {at_most:.2f} times", ratio <= at_most
        row = Row(
            what=what,
            minimum=f"{_to_text(samples.minimum * scale)} {unit}",
            median=f"{_to_text(samples.median * scale)} {unit}",
            ratio="" if ratio is None else f"{ratio:.2f}",
            goal=goal,
            is_met=is_met,
        )
        self.rows.append(row)

    def add_value(self, what: str, text: str, *, goal: str = "", is_met: bool | None = None) -> None:
        """Adds a row of one value."""
        self.rows.append(Row(what=what, minimum=text, goal=goal, is_met=is_met))


def _to_text(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def to_lines(figure: Figure) -> list[str]:
    """Returns the figure as Markdown with aligned columns."""
    cells = [_HEAD, *(row.cells() for row in figure.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "| " + " | ".join("-" * max(width, 3) for width in widths) + " |"
    return [f"## {figure.title}", "", figure.about, "", texts[0], rule, *texts[1:], ""]


def write(path: Path, machine: Sequence[str], figures: Sequence[Figure]) -> None:
    """Writes *machine* and *figures* between the marks in the file at *path*, and keeps the text around them."""
    before, _, rest = path.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    lines = [_BEGIN, "", *machine, "", *(line for figure in figures for line in to_lines(figure)), _END]
    path.write_text(before + "\n".join(lines) + after)
