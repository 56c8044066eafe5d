"""Refuses the phrases and retired names that read as if translated, in all tracked text; part of `make check`.

`python -m tools.check_wording [--count] [FILE...]`. --count prints how often each phrase occurs, and always succeeds.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools import ROOT

PHRASES: Final = {
    r"(?:is|are|was|were) (?-i:none)": "is not an X; invalid X",
    r"(?:that|which|it) (?:is|are|was) no(?! longer\b| more\b)": "is not an X; invalid X",
    r"goes? in, | comes? out\b": "Converts X to Y; reads X",
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix",
    r"beside": "next to",
    r"for want of": "for lack of",
    r"at hand": "drop it",
    r"of (?:ours|yours|mine|(?:its|their|one's|his) own)": "our, your, its",
    r"whoever|whomever": "the client, the caller",
    r"nobody": "no client, no process",
    r"tell(?:s|ing)? of|told of": "reports",
    r"c[ao]mes? about": "happens",
    r"ha(?:s|ve) (?:its|their) answer": "is answered",
    r"cuts? off|cutting off": "shut down, truncate",
    r"br[eo]aks? off|broke off|broken off|breaking off": "disconnect",
    r"l(?:eft|eaves?|eaving) behind": "abandoned, dropped",
    r"under way": "in flight",
    r"a yes": "a true value",
    r"(?:None|False|True|\"\"|only|also|even|but|except|0|1) where": "if",
    r"where (?:there|nothing|none|no) (?:is|are|was|were)? ?(?:no|none|set)": "if",
    r"where (?:it|that|this) (?:is|are|was|fails|does|has|cannot|can)": "if, when",
}
"""Each phrase, as a regular expression over whole words, and what to say instead."""

NAMES: Final = (
    r"doorkeeper|\bDoor\b|GroupCommit|GroupSender|load_encoder|load_judge|_NEVER_AGAIN|_ANYWHERE|_recall_attribute|stand_in|"
    r"yaml_tree|\b_Gate\b|\bRefusedError|to_answer|_UNUSABLE|_TOO_LATE|no_context|OtlpSender|_TimedSender|\bgive_up\b|"
    r"_say_once|find_faults?\b|\bNOWHERE\b|begin_in_child|wait_no_more|watch_no_more|_cut_off|_become_relay|_examine_traps"
)
"""Retired names of the code."""

# This list itself, other people's text, generated code, and what is written down as it was.
_EXEMPT: Final = re.compile(
    r"tools/check_wording\.py|LICENSE|.*\.(?:sum|mod|png|svg|json)|.*prehog/.*|benchmarks/RESULTS\.md"
)
_PATTERN: Final = re.compile(
    "|".join(
        [rf"(?P<p{number}>(?<![\w-]){phrase}(?![\w-]))" for number, phrase in enumerate(PHRASES)]
        + [f"(?P<name>(?-i:{NAMES}))"]
    ),
    re.IGNORECASE,
)


def main(arguments: list[str]) -> int:
    """Prints each place with a phrase to avoid; returns 1 if there is one, otherwise 0."""
    names = [argument for argument in arguments if not argument.startswith("--")]
    found = list(find_phrases([Path(name) for name in names] or list_tracked_files()))
    if "--count" in arguments:
        for phrase, number in Counter(place[2].lower() for place in found).most_common():
            print(f"{number:6} {phrase}")
        print(f"{len(found):6} in all")
        return 0
    for path, line, phrase, remedy in found:
        print(f"{path}:{line}: {phrase.strip()!r}: say: {remedy}")
    return 1 if found else 0


def list_tracked_files() -> list[Path]:
    """Returns every text file that git tracks, or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file() and not _EXEMPT.fullmatch(name)]


def find_phrases(paths: list[Path]) -> Iterator[tuple[Path, int, str, str]]:
    """Yields (path, line, phrase, what to say instead) for each phrase to avoid."""
    remedies = [*PHRASES.values(), "the name that STYLE.md gives"]
    for path in paths:
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        for found in _PATTERN.finditer(text):
            number = len(PHRASES) if found.lastgroup == "name" else int(str(found.lastgroup)[1:])
            yield path, text.count("\n", 0, found.start()) + 1, found.group(), remedies[number]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
