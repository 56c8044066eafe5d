"""Copies the pages, and every file that they link to, into the folder that the documentation site is built from.

The site's pages are the repository's, under the same paths, so each link leads to the same place in both.
"""

import shutil
import sys
from typing import Final

from tools import ROOT
from tools.pages import read_pages

SOURCE: Final = ROOT / "build" / "site-source"


def main() -> int:
    """Writes the folder again; returns 0."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    pages = read_pages()
    files = {page.path for page in pages}
    for page in pages:
        targets = [link.partition("#")[0] for link in page.links() if "://" not in link]
        files |= {(page.path.parent / target).resolve() for target in targets if target}
    for file in sorted(files):
        if file.is_file():
            copy = SOURCE / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    for page in pages:
        (SOURCE / page.name).write_text(to_site(page.text), encoding="utf-8")
    return 0


def to_site(text: str) -> str:
    """Returns *text* with four spaces before what is nested in a numbered item, as Python's Markdown requires. Pure."""
    lines, is_fenced = [], False
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            is_fenced = not is_fenced
        lines.append(" " + line if line.startswith("   ") and not is_fenced else line)
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
