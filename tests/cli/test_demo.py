import os
import re

import pytest

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
    """Whatever is set on the machine, the first start brings one record and the second no request."""
    launch = Launch({**os.environ, **environ})

    finished = launch.run([], launcher=DEMO)
    shown = finished.stdout

    assert (0, "") == (finished.returncode, finished.stderr)
    assert 1 == shown.count("The receiver got 1 request.")
    assert 1 == shown.count("The receiver got no requests.")
    assert shown.index("got 1 request.") < shown.index("got no requests.")
    assert re.search(r"POST /v1/logs, [1-9][0-9]{2} bytes", shown)
    assert "`tbot` is a stand-in" in shown
    assert all(re.search(rf"^ +{re.escape(key)} +\S+$", shown, re.MULTILINE) for key in KEYS)
    assert 3 == len(re.findall(r"^[1-9]\. ", shown, re.MULTILINE))
    assert "the report was answered with unavailable: " in shown.partition("\n3. ")[2]
    launch.wait_for_end()


def test_demo_looks_for_the_machine_in_what_was_sent(tmp_path):
    """What was planted and what names machine and user is looked for; names that any request may hold are not."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent/canary", "USER": "tbot"}

    finished = Launch(environ).run([], launcher=DEMO, cwd=tmp_path)

    assert 0 == finished.returncode, finished.stderr
    for name in ("OTEL_SERVICE_NAME, planted", "OTEL_RESOURCE_ATTRIBUTES, planted", "your home directory"):
        assert re.search(rf"^ +{name} +not there$", finished.stdout, re.MULTILINE)
    assert "your user's name" not in finished.stdout


def test_demo_fails_when_it_finds_what_it_looks_for():
    """A version that is the user's name stands for a leak: found, it ends the demo with status 1."""
    environ = {"PATH": os.environ["PATH"], "USER": "18.4.1"}

    finished = Launch(environ).run([], launcher=DEMO)

    assert 1 == finished.returncode
    assert re.search(r"^ +your user's name +THERE$", finished.stdout, re.MULTILINE)
    assert (
        "otel-tbot: demo: the request holds your user's name; please report this, see SECURITY.md\n" == finished.stderr
    )


def test_demo_runs_the_command_that_it_is_given(reporter):
    """A command after -- takes the stand-in's place."""
    launch = Launch(dict(os.environ))

    finished = launch.run(
        ["--", reporter, "start", "--oneshot", "--version", "17.0.0", "--exit-code", "4"], launcher=DEMO
    )

    assert (0, "") == (finished.returncode, finished.stderr)
    assert "stand-in" not in finished.stdout
    assert "\n3. " not in finished.stdout
    assert re.search(r"^ +tbot\.version +17\.0\.0$", finished.stdout, re.MULTILINE)
    assert 2 == finished.stdout.count("The command ended with status 4.")
    launch.wait_for_end()


@pytest.mark.parametrize("command", [["true"], ["nonexistent-command"]])
def test_demo_fails_when_the_command_reports_nothing(command):
    """A command that is no tbot ends the demo with status 1 and a remedy."""
    launch = Launch(dict(os.environ))

    finished = launch.run(["--", *command], launcher=DEMO)

    assert 1 == finished.returncode
    assert finished.stderr.splitlines()[-1].startswith("otel-tbot: demo: expected one request and then none; ")
    assert 2 == finished.stdout.count("The receiver got no requests.")
    launch.wait_for_end()
