import io
import os
import pty

import pytest

from otel_tbot.cli.terminal import build_painter
from tests.cli.test_main import BASIC
from tests.support.processes import LAUNCHER, Launch


class Tty(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "text"),
    [
        (Tty(), {}, "\x1b[32mhello\x1b[0m"),
        (Tty(), {"NO_COLOR": ""}, "\x1b[32mhello\x1b[0m"),
        (Tty(), {"TERM": "xterm-256color"}, "\x1b[32mhello\x1b[0m"),
        (Tty(), {"NO_COLOR": "1"}, "hello"),
        (Tty(), {"NO_COLOR": "0"}, "hello"),
        (Tty(), {"TERM": "dumb"}, "hello"),
        (io.StringIO(), {}, "hello"),
    ],
)
def test_only_a_terminal_gets_colours_and_only_where_they_are_wanted(stream, environ, text):
    """NO_COLOR, set to anything but nothing, takes them away, and so does a terminal that can show none."""
    assert text == build_painter(stream, environ)("hello", "good")


def run_on_terminal(command, environ):
    """What *command* shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = Launch(BASIC | environ).start([command], launcher=LAUNCHER[:1], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux says so when the other side is closed
    os.close(ours)
    process.communicate(timeout=120)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["doctor", "demo"])
def test_commands_for_people_are_painted_on_a_terminal_and_nowhere_else(command):
    """Taken away, by NO_COLOR or by a pipe, colours leave the same words."""
    painted = run_on_terminal(command, {"TERM": "xterm"})
    plain = run_on_terminal(command, {"TERM": "xterm", "NO_COLOR": "1"})
    piped = Launch(BASIC).run([command], launcher=LAUNCHER[:1]).stdout

    assert "\x1b[" in painted
    assert "\x1b[" not in plain + piped
    assert plain.splitlines()[0] == piped.splitlines()[0]
