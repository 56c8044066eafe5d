"""Writes results to stdout and messages to stderr, whatever these are: terminals, pipes, full disks, or closed.

Colours are for terminals only. NO_COLOR (https://no-color.org) turns them off, FORCE_COLOR turns them on elsewhere.
"""

import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Mapping
from typing import Final, Literal, NoReturn, TextIO

import click

from otel_tbot.errors import OtelTbotError

Style = Literal["strong", "good", "doubtful", "bad", "quiet"]

STATUS_NOT_WRITTEN: Final = 74
"""The exit status if the work is done, but its result cannot be written to stdout (EX_IOERR of sysexits.h)."""

MAX_WIDTH: Final = 100
_MIN_WIDTH: Final = 40
_MIN_TEXT_WIDTH: Final = 30

_STYLES: Final[dict[Style, dict[str, object]]] = {
    "strong": {"bold": True},
    "good": {"fg": "green"},
    "doubtful": {"fg": "yellow"},
    "bad": {"fg": "red", "bold": True},
    "quiet": {"dim": True},
}
# For encodings that do not have these characters.
_PLAIN_CHARACTERS: Final = str.maketrans({"→": "->", "…": "...", "─": "-", "►": ">"})


class OutputError(OtelTbotError):
    """The result could not be written to stdout."""

    exit_status = STATUS_NOT_WRITTEN


def reserve_standard_streams() -> None:
    """Opens /dev/null in place of each closed standard stream, so that no file gets the number of one."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is fd


def style(text: str, name: Style) -> str:
    """Returns *text* with the codes of a terminal; `print_result` removes them for anything else. Pure."""
    return click.style(text, **_STYLES[name])  # type: ignore[arg-type]  # the values above are what it takes


def print_result(text: str) -> None:
    """Prints *text* to stdout, at once.

    Ends the process as SIGPIPE would if the reader of a pipe is gone.

    Raises:
        OutputError: it cannot be written, for example because the disk is full.
    """
    if sys.stdout is None:
        return  # closed by the caller, who does not want it
    if not has_colours(sys.stdout, os.environ):
        text = click.unstyle(text)
    try:
        sys.stdout.write(_to_encodable(text, sys.stdout.encoding) + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise to_output_error(error) from None


def to_output_error(error: OSError) -> OutputError:
    """Returns the error to raise for *error*, which writing to stdout raised; ends the process for a closed pipe."""
    sys.stdout = None  # or the interpreter tries again at its end, and changes the status
    if isinstance(error, BrokenPipeError):
        _die_of_closed_pipe()
    return OutputError(f"the result cannot be written to stdout: {error.strerror}")


def print_message(command: str, text: str) -> None:
    """Prints *text* to stderr after the names of program and *command*; does nothing if that fails.

    It is one line, except on a terminal, where words are not broken at the right margin.
    """
    line = f"otel-tbot: {command}: {text}" if command else f"otel-tbot: {text}"
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    try:
        if os.isatty(2):
            line = to_paragraph(line, width=min(os.get_terminal_size(2).columns, MAX_WIDTH), indent="  ")
        # Not through sys.stderr: what it cannot write, it would try to write again at the end.
        os.write(2, f"{_to_encodable(line, encoding)}\n".encode(encoding))
    except OSError:
        pass


def has_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether *stream* gets colours under *environ*: terminals do, unless NO_COLOR or TERM=dumb forbids it."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return environ.get("TERM") != "dumb" and stream.isatty()


def is_terminal() -> bool:
    """Whether results go to a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def get_width() -> int:
    """Returns the number of columns to fill: those of the terminal, within bounds that suit prose."""
    return max(_MIN_WIDTH, min(shutil.get_terminal_size().columns, MAX_WIDTH))


def to_paragraph(text: str, *, width: int, indent: str = "") -> str:
    """Returns *text* wrapped between words, with *indent* before all lines but the first. Pure."""
    width = max(width, _MIN_WIDTH)
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def to_row(name: str, text: str, *, column: int, indent: str = "  ", width: int) -> str:
    """Returns a row of a table: *name* padded to *column*, and the lines of *text*, wrapped next to it. Pure.

    The text goes below the name if there is little room next to it.
    """
    start = f"{indent}{name:<{column}}  "
    is_below = width - len(start) < min(len(text), _MIN_TEXT_WIDTH)
    margin = f"{indent}  " if is_below else " " * len(start)
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(line, width - len(margin), break_long_words=False, break_on_hyphens=False)
    if is_below:
        return "\n".join([f"{indent}{name}", *(margin + line for line in lines)])
    return start + f"\n{margin}".join(lines)


def _to_encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_CHARACTERS).encode(encoding, "backslashreplace").decode(encoding)
    return text


def _die_of_closed_pipe() -> NoReturn:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(1)
