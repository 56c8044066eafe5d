"""Checks claims.yaml, the list of what the pages claim about otel-tbot with the tests that prove each claim."""

import ast
import re

import pytest
import yaml

from tests.support.checkout import ROOT
from tools.pages import read_pages

# What surrounds a message, and what the code puts into it: a command, an outcome, a number, a variable.
_FILLED_IN = r"…|otel-tbot: run: |no relay \(|`|run$|: (?:unreachable|refused|timed out)$|[0-9]+; |TELEPORT_[A-Z_]+"

PAGES = {page.name: page for page in read_pages()}

CLAIMS = [
    (page, row["claim"], row["tests"])
    for page, rows in yaml.safe_load((ROOT / "tests/repository/claims.yaml").read_text(encoding="utf-8")).items()
    for row in rows
]


def to_words(text):
    """Returns *text* on one line, without the marks of emphasis. Pure."""
    return " ".join(text.replace("**", "").split())


@pytest.mark.parametrize(("page", "claim", "tests"), CLAIMS, ids=[f"{page}: {claim[:40]}" for page, claim, _ in CLAIMS])
def test_each_claim_is_in_its_page_and_has_tests(page, claim, tests):
    """The page has the words, and each test that is named exists."""
    assert to_words(claim) in to_words(PAGES[page].text)
    assert tests
    for file, names in tests.items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert names
        assert set(names) <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_of_the_readme_is_a_claim():
    """Each text behind a title in the section Promises is in the list."""
    section = PAGES["README.md"].text.partition("## Promises\n")[2].partition("\n## ")[0]
    promises = re.findall(r"^- \*\*.*?\*\* (.+)$", section, re.MULTILINE)
    claims = {claim for page, claim, _ in CLAIMS if page == "README.md"}

    assert 4 == len(promises)
    assert claims >= set(promises)


def test_the_messages_of_the_troubleshooting_page_are_the_code_s():
    """Each message of otel-tbot in a first column is in the source, so a user who searches for one finds it."""
    paths = sorted((ROOT / "otel_tbot").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"|\{[A-Za-z_.]+\}', "", "".join(path.read_text(encoding="utf-8") for path in paths))
    ours = PAGES["docs/how-to/troubleshooting.md"].text.partition("\n## No event arrives")[0]
    cells = re.findall(r"^\| (`.*?) \|", ours, re.MULTILINE)
    messages = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    parts = [part.strip(" ();:") for text in messages for part in re.split(_FILLED_IN, text)]
    sentences = [part for part in parts if part.count(" ") > 1]

    assert len(sentences) > 10
    assert not [sentence for sentence in sentences if sentence not in source]
