import io
import json
import re
import signal

import pytest

from otel_tbot.cli.output import has_colours, to_row
from tests.support.commands import ON, run_command, run_in_shell, run_on_terminal
from tests.support.servers import OtlpHttpServer, refusing_port

DISK_FULL = "the result cannot be written to stdout: No space left on device"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm-256color"}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": "0"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"FORCE_COLOR": ""}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_only_a_terminal_gets_colours_unless_a_variable_decides(stream, environ, expected):
    """NO_COLOR, if not empty, turns them off and comes first; FORCE_COLOR, if not empty, turns them on."""
    assert expected is has_colours(stream, environ)


@pytest.mark.parametrize("command", ["doctor", "demo", "preview"])
def test_colours_change_no_word(command):
    """Without them, by NO_COLOR or in a pipe, the text is the same; FORCE_COLOR brings them into a pipe."""
    _, coloured = run_on_terminal(command)
    _, plain = run_on_terminal(command, NO_COLOR="1")
    forced = run_command(command, FORCE_COLOR="1").stdout

    assert "\x1b[" in coloured
    assert "\x1b[" not in plain + run_command(command).stdout
    assert re.sub(r"\x1b\[\d+m", "", coloured).splitlines()[0] == plain.splitlines()[0]
    assert ("\x1b[" in forced) is (command != "preview")  # JSON has no colours


@pytest.mark.parametrize("arguments", ["preview", "doctor", "doctor --json", "demo", "--help", "emit --help", "-V"])
def test_a_full_disk_is_one_line_and_status_74(arguments):
    """The result cannot be written: stderr says so, and there is no traceback."""
    finished = run_in_shell(f'"$OTEL_TBOT" {arguments} >/dev/full')
    command = "" if arguments.startswith("-") else f" {arguments.partition(' ')[0]}:"

    assert 74 == finished.returncode
    assert f"otel-tbot:{command} {DISK_FULL}\n" == finished.stderr.splitlines(keepends=True)[-1]
    assert 1 == len(finished.stderr.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_that_cannot_be_written_is_one_line(shell):
    """A full disk and a closed pipe, as for the other results."""
    full = run_in_shell('"$OTEL_TBOT" >/dev/full', _OTEL_TBOT_COMPLETE=f"{shell}_source")
    closed = run_in_shell('exec 6> >(exec true); wait $!; "$OTEL_TBOT" >&6', _OTEL_TBOT_COMPLETE=f"{shell}_source")

    assert (74, f"otel-tbot: {DISK_FULL}\n") == (full.returncode, full.stderr)
    assert (128 + signal.SIGPIPE, "") == (closed.returncode, closed.stderr)


def test_a_full_disk_does_not_hide_that_the_event_was_delivered():
    """The event arrived: the status is neither 0 nor 1, and the line says that the collector has it."""
    with OtlpHttpServer() as server:
        finished = run_in_shell(
            '"$OTEL_TBOT" emit >/dev/full', OTEL_EXPORTER_OTLP_ENDPOINT=server.url, OTEL_TBOT_TIMEOUT="60000", **ON
        )

    assert 1 == len(server.requests)
    line = f"otel-tbot: emit: the collector accepted the event, but {DISK_FULL}\n"
    assert (74, line) == (finished.returncode, finished.stderr)


@pytest.mark.parametrize("arguments", ["preview", "doctor", "--help"])
def test_a_closed_pipe_ends_a_command_quietly(arguments):
    """As for other programs: by SIGPIPE (141 to a shell), without a message."""
    finished = run_in_shell(f'"$OTEL_TBOT" {arguments} | true; echo "${{PIPESTATUS[0]}}"')
    # The command may be done before the reader is gone.
    shown = {run_in_shell(f'"$OTEL_TBOT" {arguments} > >(exec true); wait; echo done').stderr, finished.stderr}

    assert finished.stdout.strip() in {"0", str(128 + signal.SIGPIPE)}
    assert all("Traceback" not in text and "Broken" not in text for text in shown)


def test_a_pipe_that_is_closed_before_the_result_is_sigpipe(tmp_path):
    """The reader is gone before the command starts, so this row is certain."""
    script = f'mkfifo {tmp_path}/p; exec 5<>{tmp_path}/p 6>{tmp_path}/p 5<&-; "$OTEL_TBOT" doctor >&6; echo $?'
    finished = run_in_shell(script)

    assert (f"{128 + signal.SIGPIPE}\n", "") == (finished.stdout, finished.stderr)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/null 2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [("preview", 0), ("doctor", 0), ("emit", 0), ("demo", 0), ("--help", 0), ("emit --x", 2), ("preview -c /x", 2)],
)
def test_closed_streams_change_no_status(arguments, status, closed):
    """A caller who closes a stream does not want its output: that is not an error, and there is no traceback."""
    finished = run_in_shell(f'"$OTEL_TBOT" {arguments} {closed}')

    assert status == finished.returncode
    assert "Traceback" not in finished.stderr + finished.stdout


@pytest.mark.parametrize("consent", ["", "1"])
def test_a_message_never_goes_into_the_result(consent, tmp_path):
    """With stderr closed, the file of the result would get its number; it holds nothing but JSON."""
    path = tmp_path / "request.json"
    finished = run_in_shell(f'"$OTEL_TBOT" preview 2>&- >{path}', TELEPORT_ANONYMOUS_TELEMETRY=consent)

    assert 0 == finished.returncode
    assert ["resourceLogs"] == list(json.loads(path.read_text()))


def test_a_connection_never_gets_the_number_of_a_closed_stream():
    """With all streams closed, `emit` sends its event, and nothing else over that connection."""
    with OtlpHttpServer() as server:
        environ = ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "60000"}
        finished = run_in_shell('"$OTEL_TBOT" emit --join-method x <&- >&- 2>&-', **environ)

    assert 0 == finished.returncode
    assert 1 == len(server.requests)


ENCODINGS = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("environ", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("arguments", ["doctor", "demo", "preview", "--help", "emit --join-uri x"])
def test_an_encoding_without_an_arrow_gets_one_of_ascii(arguments, environ):
    """Every character can be shown, and the words are the same."""
    with refusing_port() as url:
        finished = run_command(*arguments.split(), OTEL_EXPORTER_OTLP_ENDPOINT=f"{url}/x", **ON, **environ)

    shown = finished.stdout + finished.stderr
    assert "Traceback" not in shown
    assert shown.isascii()
    if arguments == "doctor":
        assert re.search(r"^ +-> check ", shown, re.MULTILINE)
        assert f"{url}/... " in shown


def test_an_argument_that_is_not_text_is_shown_escaped(tmp_path):
    """A file name of other bytes is named in the message."""
    finished = run_in_shell(
        "cd \"$FOLDER\" && echo x >$'x\\xff' && \"$OTEL_TBOT\" preview -c $'x\\xff'", FOLDER=str(tmp_path)
    )

    assert (2, "otel-tbot: preview: x\\udcff:1: the file: must be a map\n") == (finished.returncode, finished.stderr)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_message_is_one_line_in_a_pipe_and_wrapped_between_words_on_a_terminal(columns):
    """The words are the same, and no line is wider than the terminal, or than is easy to read."""
    line = run_command("preview", "--tbot-version", "x", "--onshot").stderr
    _, shown = run_on_terminal("preview", "--tbot-version", "x", "--onshot", columns=columns)

    assert 1 == line.count("\n")
    assert line.split() == shown.split()
    assert min(columns, 100) >= max(map(len, shown.splitlines()))


def test_a_row_wraps_its_text_next_to_its_name_or_below_it():
    """On a narrow screen the text goes below the name."""
    text = "one two three four five six seven eight nine"

    assert "  name  one two three four five six\n        seven eight nine" == to_row("name", text, column=4, width=40)
    assert "  a-long-name\n    one two three four five\n    six seven eight nine" == to_row(
        "a-long-name", text, column=14, width=30
    )
    assert "  name  a\n        → b" == to_row("name", "a\n→ b", column=4, width=80)
