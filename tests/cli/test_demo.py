import os
import re
import signal
import threading

import pytest

from tests.support.commands import run_on_terminal
from tests.support.polling import poll_until
from tests.support.processes import LAUNCHER, Launch

DEMO = (LAUNCHER[0], "demo")
KEYS = (
    "tbot.run_mode", "tbot.version", "tbot.join_type", "tbot.destinations_other", "tbot.destinations_database",
    "tbot.destinations_kubernetes", "tbot.destinations_application", "session.id", "service.name",
    "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version", "os.type", "host.arch",
)  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {
            "TELEPORT_ANONYMOUS_TELEMETRY": "0",
            "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": "http://127.0.0.1:9",
            "OTEL_SDK_DISABLED": "true",
            "OTEL_TBOT_SIGNAL": "span",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc",
            "OTEL_RESOURCE_ATTRIBUTES": "host.name=canary",
        },
    ],
    ids=["plain", "with settings"],
)
def test_demo_shows_one_record_and_then_nothing(environ):
    """The first start sends one record and the second no request, whatever is set on the machine."""
    launch = Launch({**os.environ, **environ})

    finished = launch.run([], launcher=DEMO)
    shown = finished.stdout

    assert (0, "") == (finished.returncode, finished.stderr)
    assert 1 == shown.count("The collector received 1 request.")
    assert 1 == shown.count("The collector received no requests.")
    assert shown.index("received 1 request.") < shown.index("received no requests.")
    assert re.search(r"POST /v1/logs, [1-9][0-9]{2} bytes", shown)
    assert "so a fake tbot is started" in shown
    assert all(re.search(rf"^ +{re.escape(key)} \s+\S+( \(a whole second\))?$", shown, re.MULTILINE) for key in KEYS)
    assert 3 == len(re.findall(r"^[1-9]\. ", shown, re.MULTILINE))
    assert "the report failed: unavailable: " in shown.partition("\n3. ")[2]
    launch.wait_for_end()


@pytest.mark.parametrize(
    ("user", "remark"),
    [
        (None, "not searched: it is not set"),
        ("tbot", "not searched: it is too short to tell from other words"),
        ("python", "not searched: the request of any machine contains this word"),
        ("canary-4b2f", "not found"),
    ],
)
def test_demo_searches_the_request_for_names_of_this_machine(user, remark, tmp_path):
    """It says which names were not found, and why it did not search for a name."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent/canary", "COLUMNS": "100"}
    environ |= {} if user is None else {"USER": user}

    finished = Launch(environ).run([], launcher=DEMO, cwd=tmp_path)

    assert 0 == finished.returncode, finished.stderr
    for name in ("OTEL_SERVICE_NAME, planted", "OTEL_RESOURCE_ATTRIBUTES, planted", "your home directory"):
        assert re.search(rf"^ +{name} +not found$", finished.stdout, re.MULTILINE)
    assert re.search(rf"^ +your user's name +{remark}$", finished.stdout, re.MULTILINE)


def test_demo_works_in_a_directory_that_is_gone(tmp_path):
    """There is no name to search for then."""
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {' '.join(DEMO)}"

    finished = Launch({"PATH": os.environ["PATH"]}).run(["-c", script], launcher=("sh",))

    assert 0 == finished.returncode, finished.stderr
    assert re.search(r"^ +the working directory +not searched: it is not set$", finished.stdout, re.MULTILINE)


def test_demo_fails_when_it_finds_a_name():
    """A version that is the user's name stands for a leak: found, it ends the demo with status 1."""
    environ = {"PATH": os.environ["PATH"], "USER": "18.4.1"}

    finished = Launch(environ).run([], launcher=DEMO)

    assert 1 == finished.returncode
    assert re.search(r"^ +your user's name +FOUND$", finished.stdout, re.MULTILINE)
    assert (
        "otel-tbot: demo: the request contains your user's name; please report this as SECURITY.md describes\n"
        == finished.stderr
    )


def test_demo_runs_the_command_that_it_is_given(reporter):
    """A command after -- is started instead of the fake tbot."""
    launch = Launch(dict(os.environ))

    finished = launch.run(
        ["--", reporter, "start", "--oneshot", "--version", "17.0.0", "--exit-code", "4"], launcher=DEMO
    )

    assert (0, "") == (finished.returncode, finished.stderr)
    assert "fake" not in finished.stdout
    assert "\n3. " not in finished.stdout
    assert re.search(r"^ +tbot\.version +17\.0\.0$", finished.stdout, re.MULTILINE)
    assert 2 == finished.stdout.count("The command ended with status 4.")
    launch.wait_for_end()


def test_demo_repeats_no_argument_of_the_command():
    """An argument may be a token: the program is shown, and that it has arguments."""
    finished = Launch(dict(os.environ)).run(["--", "true", "start", "--token", "canary-4b2f"], launcher=DEMO)

    assert 1 == finished.stdout.count("\n  $ otel-tbot run -- true …\n")
    assert "canary-4b2f" not in finished.stdout + finished.stderr


def test_an_interrupt_of_the_demo_shows_no_traceback(tmp_path):
    """Ctrl-C reaches the processes that the demo has started too, here one whose interpreter is still starting."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    os.mkfifo(gate)
    hold = f"open({str(begun)!r}, 'w').close(); open({str(gate)!r}).read()"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif sys.orig_argv[-1] == '--oneshot' and 'run' not in sys.orig_argv: {hold}\n"
    )
    launch = Launch({"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)})
    process = launch.start([], launcher=DEMO, start_new_session=True)
    poll_until(begun.exists, waiting_for="the process that the demo starts")

    os.killpg(process.pid, signal.SIGINT)
    assert -signal.SIGINT == process.wait(timeout=60)
    threading.Thread(target=gate.write_text, args=("",), daemon=True).start()
    shown = process.stdout.read() + process.stderr.read()

    assert "Traceback" not in shown
    assert "tbot (fake)" not in shown
    launch.wait_for_end()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_demo_fits_the_terminal(columns):
    """Its prose does; a command to copy and what the fake tbot prints are not broken."""
    _, shown = run_on_terminal("demo", columns=columns, NO_COLOR="1")
    prose = [line for line in shown.splitlines() if not line.startswith(("  $ ", "tbot (fake)"))]

    assert columns >= max(map(len, prose))


@pytest.mark.parametrize("command", [["true"], ["nonexistent-command"]])
def test_demo_fails_when_the_command_reports_nothing(command):
    """A command that is not tbot ends the demo with status 1 and a remedy."""
    launch = Launch(dict(os.environ))

    finished = launch.run(["--", *command], launcher=DEMO)

    assert 1 == finished.returncode
    assert finished.stderr.splitlines()[-1].startswith("otel-tbot: demo: expected one request, and then none; ")
    assert 2 == finished.stdout.count("The collector received no requests.")
    launch.wait_for_end()
