import subprocess
import sys

import pytest

from otel_tbot import __version__
from tests.conftest import ROOT
from tests.launching import LAUNCHER

COMMANDS = ("run", "demo")


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, to its end."""
    return subprocess.run([LAUNCHER[0], *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(arguments):
    """Without a command, or asked for help, the commands are listed on stdout."""
    finished = run_command(*arguments)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout.startswith("usage: otel-tbot")
    assert all(f"\n    {command} " in finished.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_one_screen_and_has_an_example(command):
    """Each command's help has an example and its exit statuses, in 24 lines of 90 characters."""
    finished = run_command(command, "--help")
    lines = finished.stdout.splitlines()

    assert (0, "") == (finished.returncode, finished.stderr)
    assert lines[0].startswith(f"usage: otel-tbot {command} ")
    assert "example:" in lines
    assert any(line.startswith("exit status: ") for line in lines)
    assert 24 >= len(lines)
    assert 90 >= max(map(len, lines))


def test_version_is_the_package_s():
    """--version prints name and version."""
    finished = run_command("--version")

    assert (0, f"otel-tbot {__version__}\n", "") == (finished.returncode, finished.stdout, finished.stderr)


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "--"), ("runs",), ("--unknown",), ("run", "--unknown", "--", "true"), ("demo", "x")]
)
def test_wrong_usage_is_status_2_and_says_what_is_right(arguments):
    """Wrong usage runs nothing and says on stderr what to do."""
    finished = run_command(*arguments)

    assert (2, "") == (finished.returncode, finished.stdout)
    assert "usage: otel-tbot" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_windows_is_told_that_run_needs_posix():
    """Where there is no exec that keeps the process, `run` says so, and what works instead."""
    script = "import sys; sys.platform = 'win32'; from otel_tbot.__main__ import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", script, "run", "--", "true"], capture_output=True, text=True, check=False
    )

    assert 2 == finished.returncode
    assert "otel-tbot: run: needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`\n" == finished.stderr


def test_a_missing_extra_is_said_with_its_remedy():
    """A command that needs the extra `relay` says how to get it."""
    without = f"[{str(ROOT)!r}] + [entry for entry in sys.path if 'site-packages' not in entry]"
    script = f"import sys; sys.path = {without}; from otel_tbot.__main__ import main; main()"
    finished = subprocess.run([sys.executable, "-P", "-c", script, "demo"], capture_output=True, text=True, check=False)

    assert (2, "") == (finished.returncode, finished.stdout)
    assert "otel-tbot: demo: needs the extra `relay`: pip install 'otel-tbot[relay]'\n" == finished.stderr
