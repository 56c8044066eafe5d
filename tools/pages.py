"""Reads the pages of the documentation: headings, links, tables and examples."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools import ROOT

_FENCE: Final = re.compile(r"^( *)```(\S*)$")
_RUN: Final = re.compile(r"^ *<!-- run: (.+) -->$")
_NEED: Final = re.compile(r"^ *\*Needs (.+)\.\*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A fenced block: its place, its language, its text.

    `run` holds the words of the comment before it, which says how a test runs it. `need` is the text of the line before
    it that names what a test cannot have. Both are empty if there is no such line.
    """

    place: str
    language: str
    text: str
    run: tuple[str, ...] = ()
    need: str = ""


class Page:
    """Reads one page; `name` is its path below the repository's root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.text = path.read_text(encoding="utf-8")

    def examples(self) -> Iterator[Example]:
        """Yields its fenced blocks in order, including those in lists."""
        before, language, indent, start, block = "", None, "", 0, []
        for number, line in enumerate(self.text.splitlines(), 1):
            found = _FENCE.match(line)
            if language is not None:
                if found and not found.group(2):
                    yield _to_example(f"{self.name}:{start}", language, "\n".join(block) + "\n", before)
                    language, before = None, ""
                else:
                    block.append(line.removeprefix(indent))
            elif found:
                (indent, language), start, block = found.groups(), number, []
            elif line.strip():
                before = line

    def prose(self) -> str:
        """Returns its text without its fenced blocks."""
        return re.sub(r"^ *```\S*\n.*?^ *```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def anchors(self) -> set[str]:
        """Returns the anchors that a link can point at: one for each heading, as repository browsers write it."""
        anchors: set[str] = set()
        for heading in re.findall(r"^#+ (.+)$", self.prose(), re.MULTILINE):
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            while slug in anchors:
                slug += "-1"
            anchors.add(slug)
        return anchors

    def links(self) -> list[str]:
        """Returns the targets of its links."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose())


def _to_example(place: str, language: str, text: str, before: str) -> Example:
    run, need = _RUN.match(before), _NEED.match(before)
    return Example(
        place=place,
        language=language,
        text=text,
        run=tuple(shlex.split(run.group(1))) if run else (),
        need=need.group(1) if need else "",
    )


def read_pages() -> list[Page]:
    """Returns every page of the repository, README first."""
    paths = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    paths += [ROOT / folder / "README.md" for folder in ("deploy", "deploy/helm/otel-tbot", "semantic-conventions")]
    paths.sort(key=lambda path: path != ROOT / "README.md")
    return [Page(path) for path in paths]


def to_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown. Pure."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
