import re
import signal
import subprocess
import sys

import click
import pytest

from otel_tbot import __version__
from otel_tbot.cli.main import cli
from tests.support.commands import BASIC, ON, run_command, run_on_terminal
from tests.support.polling import poll_until
from tests.support.processes import LAUNCHER
from tests.support.servers import Answer, OtlpHttpServer, refusing_port, silent_server

COMMANDS = ("run", "bridge", "emit", "preview", "doctor", "demo")
CANARY = "canary-3f0a"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(arguments):
    """Without a command, or with a request for help, the commands are listed on stdout, on one screen."""
    finished = run_command(*arguments)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout.startswith("Usage: otel-tbot")
    assert all(re.search(rf"^  {command} +[A-Z].*\.$", finished.stdout, re.MULTILINE) for command in COMMANDS)
    assert "\nExample:\n" in finished.stdout
    assert 24 >= finished.stdout.count("\n")
    assert 80 >= max(map(len, finished.stdout.splitlines()))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_one_screen_and_has_an_example(command):
    """Each command's help has an example and its exit statuses, in 24 lines of 80 columns."""
    finished = run_command(command, "--help")
    lines = finished.stdout.splitlines()

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout == run_command(command, "-h").stdout
    assert lines[0].startswith(f"Usage: otel-tbot {command} ")
    assert "Example:" in lines
    assert any(line.startswith("Exit status: ") for line in lines)
    assert 24 >= len(lines)
    assert 80 >= max(map(len, lines))


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal(command, columns):
    """No line is longer than the terminal is wide, and prose stays readable on a wide one."""
    status, shown = run_on_terminal(*filter(None, [command]), "--help", columns=columns)

    assert 0 == status
    assert min(columns, 100) >= max(map(len, shown.splitlines()))


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_is_that_of_the_package(option):
    """-V and --version print name and version."""
    finished = run_command(option)

    assert (0, f"otel-tbot {__version__}\n", "") == (finished.returncode, finished.stdout, finished.stderr)


USAGE = {
    "run without a command": (("run",), "run: no command given; use `otel-tbot run -- COMMAND [ARG...]`"),
    "run with an empty command": (("run", "--"), "run: no command given; use `otel-tbot run -- COMMAND [ARG...]`"),
    "a command without run": (
        ("--", "tbot", CANARY),
        "no command before --; did you mean run? See `otel-tbot --help`",
    ),
    "run with an option": (("run", "--x", "--", "true"), "run: argument 2: unknown option; see `otel-tbot run --help`"),
    "a mistyped command": (("runs",), "unknown command; did you mean run? See `otel-tbot --help`"),
    "an unknown command": ((CANARY,), "unknown command; see `otel-tbot --help`"),
    "an unknown option": ((f"--{CANARY}",), "argument 1: unknown option; see `otel-tbot --help`"),
    "a mistyped option": (
        ("emit", "--onshot"),
        "emit: argument 2: unknown option; did you mean --oneshot? See `otel-tbot emit --help`",
    ),
    "a mistyped option with a value": (
        ("emit", f"--join-methods={CANARY}"),
        "emit: argument 2: unknown option; did you mean --join-method? See `otel-tbot emit --help`",
    ),
    "a mistyped option of tbot": (
        ("emit", "--tokne", CANARY),
        "emit: argument 2: unknown option; did you mean --token? See `otel-tbot emit --help`",
    ),
    "an option that holds a secret": (
        ("emit", f"--token{CANARY}"),
        "emit: argument 2: unknown option; see `otel-tbot emit --help`",
    ),
    "a short option that holds a secret": (
        ("emit", f"-t{CANARY}"),
        "emit: argument 2: unknown option; see `otel-tbot emit --help`",
    ),
    "an unknown option behind a known one": (
        ("preview", "-c", CANARY, f"-x{CANARY}"),
        "preview: argument 4: unknown option; see `otel-tbot preview --help`",
    ),
    "a value of a flag": (
        ("emit", f"--oneshot={CANARY}"),
        "emit: --oneshot: takes no value; see `otel-tbot emit --help`",
    ),
    "a missing value": (("emit", "--helper"), "emit: --helper: needs a value; see `otel-tbot emit --help`"),
    "a value that is not a choice": (
        ("preview", "--signal", CANARY),
        "preview: --signal: must be one of log, span; see `otel-tbot preview --help`",
    ),
    "a value that is not a number": (
        ("bridge", "--idle-timeout", CANARY),
        "bridge: --idle-timeout: must be a whole number of at least 1; see `otel-tbot bridge --help`",
    ),
    "an argument": (
        ("emit", CANARY),
        "emit: unexpected argument; only options may stand here, and a command after --; see `otel-tbot emit --help`",
    ),
    "a command without dashes": (
        ("demo", "tbot", "start"),
        "demo: unexpected argument; only options may stand here, and a command after --; see `otel-tbot demo --help`",
    ),
    "a command after dashes": (
        ("doctor", "--", CANARY),
        "doctor: takes no command after --; see `otel-tbot doctor --help`",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_status_2_and_one_line_that_repeats_no_argument(arguments, message):
    """An argument in the wrong place may be a token: our options and positions are named, and nothing else."""
    finished = run_command(*arguments, **ON)

    assert (2, "", f"otel-tbot: {message}\n") == (finished.returncode, finished.stdout, finished.stderr)
    assert CANARY not in finished.stderr


def list_options():
    """Every command with each of its options, and whether that takes a value."""
    for name, command in cli.commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                yield name, option, not getattr(parameter, "is_flag", False)


@pytest.mark.parametrize(("command", "option", "takes_value"), list(list_options()))
def test_no_usage_error_of_any_option_repeats_a_value(command, option, takes_value, capfd):
    """Each option, wrongly given in every way, names itself at most."""
    from otel_tbot.cli.main import main

    lines = [[command, option]] if takes_value else [[command, f"{option}={CANARY}"]]
    lines += [[command, f"{option}{CANARY}"], [command, option, *([CANARY] if takes_value else []), CANARY]]
    for line in lines:
        if line[1].startswith("-c") and not line[1].startswith("--"):
            continue  # the rest of it is a file name
        assert 2 == main(line)
    assert CANARY not in "".join(capfd.readouterr())


def test_windows_has_no_run():
    """Without an exec that keeps the process, `run` says so, and names what works instead."""
    imports = "import shutil, sys, otel_tbot.cli.main; from otel_tbot.__main__ import main"
    script = f"{imports}; sys.platform = 'win32'; main()"
    finished = subprocess.run(
        [sys.executable, "-c", script, "run", "--", "true"], capture_output=True, text=True, check=False
    )

    assert 2 == finished.returncode
    assert "otel-tbot: run: needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`\n" == finished.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_completion_script(shell):
    """The script asks the command for completions, so it can be evaluated when the shell starts."""
    finished = run_command(_OTEL_TBOT_COMPLETE=f"{shell}_source")

    assert (0, "") == (finished.returncode, finished.stderr)
    assert f"_OTEL_TBOT_COMPLETE={shell}_complete" in finished.stdout


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("otel-tbot ", {f"plain,{command}" for command in COMMANDS}),
        ("otel-tbot pre", {"plain,preview"}),
        ("otel-tbot doctor --j", {"plain,--json"}),
        ("otel-tbot preview --signal ", {"plain,log", "plain,span"}),
        ("otel-tbot emit -c ", {"file,"}),
        ("otel-tbot run -- tbot st", set()),
    ],
)
def test_commands_options_and_values_are_completed(words, completions):
    """As bash asks for them; `run` leaves the rest of the line alone."""
    finished = run_command(_OTEL_TBOT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))

    assert (0, completions, "") == (finished.returncode, set(finished.stdout.split()), finished.stderr)


def test_an_interrupt_ends_a_command_without_a_traceback():
    """Ctrl-C while the collector is silent: the process ends by SIGINT (130 to a shell), and prints nothing."""
    with silent_server() as server:
        process = subprocess.Popen(
            [LAUNCHER[0], "emit"],
            env=BASIC | ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "60000"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        poll_until(lambda: server.connections, waiting_for="a connection")
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=60)

    assert (-signal.SIGINT, ("", "")) == (process.returncode, shown)


def test_a_refused_or_unreachable_collector_is_status_1():
    """The line has the outcome and what to do next; the library's warnings are messages of the command."""
    environ = ON | {"OTEL_TBOT_TIMEOUT": "60000"}
    with OtlpHttpServer(Answer(status=403)) as server:
        refused = run_command("emit", OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **environ)
    with refusing_port() as url:
        unreachable = run_command("emit", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_HEADERS=CANARY, **environ)

    line = "otel-tbot: emit: the event was not delivered: {}; run `otel-tbot doctor` to see why\n"
    assert (1, "", line.format("refused")) == (refused.returncode, refused.stdout, refused.stderr)
    assert (1, "") == (unreachable.returncode, unreachable.stdout)
    warning = "otel-tbot: emit: warning: OTEL_EXPORTER_OTLP_HEADERS: entry 1: must be name=value"
    assert unreachable.stderr.startswith(warning)
    assert unreachable.stderr.endswith(line.format("unreachable"))
    assert CANARY not in unreachable.stderr


def test_grpc_prints_nothing_of_its_own():
    """A TLS handshake that fails, with a port that speaks none, is only the command's own line."""
    with OtlpHttpServer() as server:
        endpoint = server.url.replace("http://", "https://")
        environ = ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TBOT_TIMEOUT": "60000"}
        finished = run_command("emit", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **environ)

    line = "otel-tbot: emit: the event was not delivered: unreachable; run `otel-tbot doctor` to see why\n"
    assert (1, "", line) == (finished.returncode, finished.stdout, finished.stderr)


@pytest.mark.parametrize("consent", [None, "0", "", "no", "False"])
def test_emit_off_sends_nothing_and_reads_nothing(consent, tmp_path):
    """With telemetry off, the status is 0 and a line says so; the file is not read."""
    environ = {} if consent is None else {"TELEPORT_ANONYMOUS_TELEMETRY": consent}
    with OtlpHttpServer() as server:
        finished = run_command("emit", "-c", str(tmp_path / "none"), OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **environ)

    assert (0, "telemetry is off: nothing was sent\n", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert not server.requests


@pytest.mark.parametrize("command", ["emit", "preview"])
@pytest.mark.parametrize("consent", ["yes", "on", " 1", "TrUe", "1 ", "y"])
def test_a_value_that_was_perhaps_meant_to_be_on_gets_a_warning(consent, command):
    """It is off all the same, as for tbot."""
    with OtlpHttpServer() as server:
        finished = run_command(command, OTEL_EXPORTER_OTLP_ENDPOINT=server.url, TELEPORT_ANONYMOUS_TELEMETRY=consent)

    assert 0 == finished.returncode
    assert finished.stderr.startswith(
        f"otel-tbot: {command}: warning: TELEPORT_ANONYMOUS_TELEMETRY: has a value that does not mean on, "
        "so telemetry is off; set it to 1 to turn it on\n"
    )
    assert not server.requests


BAD_INPUT = {
    "a missing file": (("-c", f"/{CANARY}"), "--config: cannot be read (No such file or directory); check path and"),
    "a configuration as a file": (("-c", f"token: {CANARY}\n"), "--config: cannot be read (No such file or directory)"),
    "an invalid join URI": (("--join-uri", CANARY), "--join-uri: not a join URI; write "),
    "an invalid configuration": (("--config-string", CANARY), "--config-string: not base64; encode the file"),
    "a command that does not start tbot": (("--", "tbot", CANARY), "the command after --: must be `tbot start`"),
    "a flag without its value": (("--", "tbot", "start", "--join-method"), "--join-method: needs a value"),
    "flags on both sides": (
        ("--oneshot", "--", "tbot", "start"),
        "tbot's flags are given both before and after --; give them on one side",
    ),
}


@pytest.mark.parametrize("command", ["emit", "preview"])
@pytest.mark.parametrize(("arguments", "rule"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_status_2_and_one_line(arguments, rule, command):
    """It names place, rule and remedy, and never the value."""
    finished = run_command(command, *arguments, **ON)

    assert (2, "", 1) == (finished.returncode, finished.stdout, finished.stderr.count("\n"))
    assert finished.stderr.startswith(f"otel-tbot: {command}: {rule}")
    assert CANARY not in finished.stderr


OTHERS = {
    "a version": (("--tbot-version", CANARY), "--tbot-version: not a version such as 18.4.1"),
    "a helper": (("--helper", f"{CANARY}!"), "--helper: not 1 to 64 of A-Za-z0-9._:/-"),
    "a helper's version": (("--helper", "x", "--helper-version", CANARY), "--helper-version: not like v2.0.1"),
    "a join method": (("--join-method", CANARY), "--join-method: not a join method that otel-tbot knows"),
    "a join method of tbot's flags": (
        ("--", "tbot", "start", "--join-method", CANARY),
        "--join-method: not a join method that otel-tbot knows",
    ),
    "a join URI": (
        ("--join-uri", f"tbot+proxy+{CANARY}://x@y"),
        "--join-uri: not a join method that otel-tbot knows",
    ),
    "a join method of the file": (
        ("--config-string", "dmVyc2lvbjogdjIKb25ib2FyZGluZzoge2pvaW5fbWV0aG9kOiBjYW5hcnktM2YwYX0K"),
        "onboarding.join_method: not a join method that otel-tbot knows",
    ),
}


@pytest.mark.parametrize("command", ["emit", "preview"])
@pytest.mark.parametrize(("arguments", "rule"), OTHERS.values(), ids=OTHERS)
def test_a_value_that_is_replaced_gets_a_warning(arguments, rule, command):
    """The event says _OTHER; the warning names the option and not the value, and the command goes on."""
    with OtlpHttpServer() as server:
        environ = ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "60000"}
        finished = run_command(command, *arguments, **environ)

    line = f"otel-tbot: {command}: warning: {rule}; the event says _OTHER instead\n"
    assert (0, line) == (finished.returncode, finished.stderr[: len(line)])
    assert 1 == finished.stderr.count("warning: ")
    assert CANARY not in finished.stdout + finished.stderr


def test_an_unknown_flag_of_tbot_gets_a_warning():
    """It could change the event in a way that this version does not know."""
    finished = run_command("preview", "--", "tbot", "start", f"--{CANARY}")

    line = (
        "otel-tbot: preview: warning: the command after --, argument 2: a flag that otel-tbot does not know, "
        "so the event does not depend on it\n"
    )
    assert (0, line) == (finished.returncode, finished.stderr[: len(line)])
    assert CANARY not in finished.stdout + finished.stderr


def test_every_command_is_a_click_command_with_help_for_each_visible_option():
    """No option is left without a sentence, except those of tbot itself, which are accepted but not listed."""
    options = [p for command in cli.commands.values() for p in command.params if isinstance(p, click.Option)]

    assert {"config_string", "join_uri", "token", "ca_pin", "destination_dir"} == {o.name for o in options if o.hidden}
    assert all(option.help for option in options if not option.hidden)
