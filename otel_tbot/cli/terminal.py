"""Colours: a stream and its environment go in, a function that paints texts for it comes out.

Only a terminal gets colours, and none where NO_COLOR says so (https://no-color.org: set, and not empty) or the terminal
can show none (TERM=dumb). A text says all without them.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TextIO

Style = Literal["strong", "good", "doubtful", "bad", "quiet"]
Painter = Callable[[str, Style], str]

NO_COLOR_VARIABLE: Final = "NO_COLOR"

# Select Graphic Rendition of ECMA-48: bold, green, yellow, red, and the default intensity's opposite.
_CODES: Final[dict[Style, str]] = {"strong": "1", "good": "32", "doubtful": "33", "bad": "1;31", "quiet": "2"}


def build_painter(stream: TextIO, environ: Mapping[str, str]) -> Painter:
    """What takes a text and a style to the text as *stream* shows it, painted or as it is.

    *environ* is the environment of whoever looks at it; asks *stream* whether it is a terminal.
    """
    if environ.get(NO_COLOR_VARIABLE) or environ.get("TERM") == "dumb" or not stream.isatty():
        return leave_plain
    return lambda text, style: f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def leave_plain(text: str, _style: Style) -> str:
    """*text* as it is. Pure."""
    return text
