"""The pages of the documentation, as what tests ask of them: headings, links, tables and examples."""

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
    """A fenced block: where it is, its language, its text.

    `run` is what the comment before it says a test does with it, as words; `need` what the line before it says that a
    test cannot have. Both are empty where nothing is said.
    """

    place: str
    language: str
    text: str
    run: tuple[str, ...] = ()
    need: str = ""


class Page:
    """One page; `name` is its path below the repository's root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.text = path.read_text(encoding="utf-8")

    def examples(self) -> Iterator[Example]:
        """Its fenced blocks, in order, also those in lists."""
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
        """Its text without its fenced blocks."""
        return re.sub(r"^ *```\S*\n.*?^ *```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def anchors(self) -> set[str]:
        """What a link can point at: each heading, as repository browsers spell it."""
        anchors: set[str] = set()
        for heading in re.findall(r"^#+ (.+)$", self.prose(), re.MULTILINE):
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            while slug in anchors:
                slug += "-1"
            anchors.add(slug)
        return anchors

    def links(self) -> list[str]:
        """The targets of its links."""
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
    """Every page of the repository, README first."""
    paths = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    paths += [ROOT / folder / "README.md" for folder in ("deploy", "deploy/helm/otel-tbot", "semantic-conventions")]
    paths.sort(key=lambda path: path != ROOT / "README.md")
    return [Page(path) for path in paths]


def to_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
