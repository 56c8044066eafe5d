import json
import re
import subprocess
import sys
import uuid

import pytest

from otel_tbot import __version__
from otel_tbot.otlp.client import to_json
from tests.support.checkout import ROOT
from tests.support.processes import LAUNCHER, MEASURED
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, refusing_port

COMMANDS = ("run", "demo", "bridge", "emit", "preview", "doctor")
CANARY = "canary-3f0a"


BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


def run_command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The installed command, to its end, in an environment of *environ* and little else."""
    return subprocess.run(
        [LAUNCHER[0], *arguments],
        env=BASIC | MEASURED | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(arguments):
    """Without a command, or asked for help, the commands are listed on stdout."""
    finished = run_command(*arguments)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout.startswith("usage: otel-tbot")
    assert all(f"\n    {command} " in finished.stdout for command in COMMANDS)
    assert "\nexample:\n" in finished.stdout
    assert 24 >= finished.stdout.count("\n")
    assert 80 >= max(map(len, finished.stdout.splitlines()))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_one_screen_and_has_an_example(command):
    """Each command's help has an example and its exit statuses, in 24 lines of 80 columns."""
    finished = run_command(command, "--help")
    lines = finished.stdout.splitlines()

    assert (0, "") == (finished.returncode, finished.stderr)
    assert lines[0].startswith(f"usage: otel-tbot {command} ")
    assert "example:" in lines
    assert any(line.startswith("exit status: ") for line in lines)
    assert 24 >= len(lines)
    assert 80 >= max(map(len, lines))


def test_version_is_the_package_s():
    """--version prints name and version."""
    finished = run_command("--version")

    assert (0, f"otel-tbot {__version__}\n", "") == (finished.returncode, finished.stdout, finished.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "--"),
        ("runs",),
        ("--unknown",),
        ("run", "--unknown", "--", "true"),
        ("demo", "x"),
        ("emit", "--unknown"),
        ("preview", "x"),
        ("preview", "--signal", "metric"),
        ("doctor", "--jso"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_right(arguments):
    """Wrong usage runs nothing and says on stderr what to do."""
    finished = run_command(*arguments)

    assert (2, "") == (finished.returncode, finished.stdout)
    assert "usage: otel-tbot" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_command_without_its_dashes_is_told_of_them():
    """A command that stands where an option would: the line says where it belongs."""
    finished = run_command("demo", "tbot", "start")

    rule = "unknown: an argument, where a command would stand behind --; see `otel-tbot demo --help`"
    assert f"otel-tbot: {rule}\n" == finished.stderr.partition("\n")[2]


def test_windows_is_told_that_run_needs_posix():
    """Where there is no exec that keeps the process, `run` says so, and what works instead."""
    script = "import sys; sys.platform = 'win32'; from otel_tbot.__main__ import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", script, "run", "--", "true"], capture_output=True, text=True, check=False
    )

    assert 2 == finished.returncode
    assert "otel-tbot: run: needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`\n" == finished.stderr


@pytest.mark.parametrize("command", ["demo", "emit", "preview"])
def test_a_missing_extra_is_said_with_its_remedy(command):
    """A command that needs the extra `relay` says how to get it."""
    without = f"[{str(ROOT)!r}] + [entry for entry in sys.path if 'site-packages' not in entry]"
    script = f"import sys; sys.path = {without}; from otel_tbot.__main__ import main; main()"
    finished = subprocess.run(
        [sys.executable, "-P", "-c", script, command],
        env=BASIC | {"TELEPORT_ANONYMOUS_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (2, "") == (finished.returncode, finished.stdout)
    assert f"otel-tbot: {command}: needs the extra `relay`: pip install 'otel-tbot[relay]'\n" == finished.stderr


TBOT_YAML = f"""
version: v2
onboarding: {{join_method: github, token: {CANARY}}}
outputs: [{{type: kubernetes/v2, selectors: [{{name: {CANARY}}}]}}, {{type: identity}}]
"""


def attributes_of(shown):
    """The attributes in a request of OTLP/JSON."""
    (group,) = shown.get("resourceLogs") or shown.get("resourceSpans")
    (scope,) = group.get("scopeLogs") or group.get("scopeSpans")
    (record,) = scope.get("logRecords") or scope.get("spans")
    return {attribute["key"]: next(iter(attribute["value"].values())) for attribute in record["attributes"]}


START_LINES = {
    "options": ("-c", "FILE", "--oneshot", "--join-method", "gcp", "--tbot-version", "18.4.1"),
    "tbot's own line": ("--tbot-version=18.4.1", "--", "tbot", "-c", "FILE", "start", "--join-method=gcp", "--oneshot"),
    "with what is not ours": (
        *("--tbot-version", "18.4.1", "--", "/opt/tbot", "-d", "--log-format", "json", "start", "--insecure"),
        *("--proxy-server", f"{CANARY}:443", "--ca-pin", CANARY, "-c", "FILE", "--oneshot", "--join-method", "gcp"),
    ),
}


@pytest.mark.parametrize("line", START_LINES.values(), ids=START_LINES)
def test_preview_shows_the_event_of_a_tbot_however_it_is_described(line, tmp_path):
    """By options, or by tbot's own command line: the same event, in OTLP/JSON, and nothing else of file and line."""
    path = tmp_path / "tbot.yaml"
    path.write_text(TBOT_YAML)
    finished = run_command("preview", *(str(path) if word == "FILE" else word for word in line))
    attributes = attributes_of(json.loads(finished.stdout))

    assert 0 == finished.returncode
    assert str(uuid.UUID(attributes.pop("session.id")))
    assert {
        "tbot.run_mode": "one-shot",
        "tbot.version": "18.4.1",
        "tbot.join_type": "gcp",
        "tbot.destinations_other": "1",
        "tbot.destinations_database": "0",
        "tbot.destinations_kubernetes": "1",
        "tbot.destinations_application": "0",
    } == attributes
    assert CANARY not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("line", "kubernetes", "join_type"),
    [
        (("start", "kubernetes", "--token", "x"), "1", None),
        (("start", "--token", "kubernetes", "legacy"), "0", None),
        (("start", "--destination", "kubernetes", "--join-uri", "tbot+proxy+tpm://x@y"), "0", "tpm"),
        (("start", "--no-oneshot", "k8s", "--name-selector", "x"), "1", None),
        (("start", "--fips", "k8s/v2", "--join-method", "unheard"), "1", "_OTHER"),
    ],
)
def test_a_command_line_of_tbot_is_read_as_tbot_reads_it(line, kubernetes, join_type):
    """A subcommand counts as a destination; the value of a flag is none."""
    attributes = attributes_of(json.loads(run_command("preview", "--", "tbot", *line).stdout))

    assert (kubernetes, join_type) == (attributes["tbot.destinations_kubernetes"], attributes.get("tbot.join_type"))


@pytest.mark.parametrize("consent", [None, "1"])
def test_preview_says_where_it_would_go_and_whether_and_sends_nothing(consent):
    """On stderr: endpoint without user info, protocol, size; on or off; no request is made."""
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": consent} if consent else {}
    with OtlpHttpServer() as server:
        endpoint = server.url.replace("://", f"://{CANARY}:{CANARY}@")
        finished = run_command(
            "preview", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="gzip", **environ
        )

    state = "nothing was sent; `emit`" if consent else "nothing was sent, and telemetry is off; on, `emit`"
    way = rf"to {server.url}/v1/logs over http/protobuf, \d+ bytes, \d+ with gzip"
    assert re.fullmatch(f"otel-tbot: preview: {state} would send this {way}\n", finished.stderr)
    assert not server.requests


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_preview_is_what_emit_sends(signal, protocol):
    """For one input, request and size are the same, but for time, session id, and a span's ids."""
    arguments = (
        "--oneshot",
        "--join-method",
        "gcp",
        "--tbot-version",
        "18.4.1",
        "--helper",
        "x",
        "--helper-version",
        "1",
    )
    server = OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()
    with server:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_TBOT_SIGNAL": signal,
            "OTEL_TBOT_TIMEOUT": "60000",
            "TELEPORT_ANONYMOUS_TELEMETRY": "1",
        }
        previewed = run_command("preview", *arguments, **environ)
        emitted = run_command("emit", *arguments, **environ)
        (request,) = server.requests
    chance = r'"(session.id", "value": \{"stringValue|traceId|spanId|\w*[tT]imeUnixNano)": "[0-9a-f-]+"'
    sent = to_json(request.message)

    assert (0, "the collector has accepted the event\n", "") == (emitted.returncode, emitted.stdout, emitted.stderr)
    assert re.sub(chance, "", json.dumps(sent)) == re.sub(chance, "", json.dumps(json.loads(previewed.stdout)))
    assert f" {request.message.ByteSize()} bytes\n" in previewed.stderr


def test_preview_names_what_is_malformed():
    """A setting that would not hold is named, and an endpoint that is none."""
    finished = run_command("preview", OTEL_EXPORTER_OTLP_ENDPOINT=CANARY, OTEL_EXPORTER_OTLP_COMPRESSION="deflate")
    first, second = finished.stderr.splitlines()

    assert first.startswith("otel-tbot: preview: OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or https:// URL")
    assert second.endswith("would send this to no endpoint: it is malformed; see `otel-tbot doctor`")
    assert CANARY not in finished.stderr


def test_emit_takes_no_no_for_a_yes():
    """Not accepted: status 1, the outcome and where to look next."""
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}
    with OtlpHttpServer(Answer(status=403)) as server:
        refused = run_command("emit", OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **environ)
    with refusing_port() as url:
        unreachable = run_command("emit", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_HEADERS=CANARY, **environ)

    line = "otel-tbot: emit: the event was not delivered: {}; `otel-tbot doctor` looks for the reason\n"
    assert (1, "", line.format("refused")) == (refused.returncode, refused.stdout, refused.stderr)
    assert (1, "") == (unreachable.returncode, unreachable.stdout)
    assert unreachable.stderr.startswith("OTEL_EXPORTER_OTLP_HEADERS: must be name=value pairs")
    assert unreachable.stderr.endswith(line.format("unreachable"))
    assert CANARY not in unreachable.stderr


@pytest.mark.parametrize("consent", [None, "0", "yes"])
def test_emit_off_sends_nothing_and_reads_nothing(consent, tmp_path):
    """Off: status 0 and a line that says so, whatever the file is."""
    environ = {} if consent is None else {"TELEPORT_ANONYMOUS_TELEMETRY": consent}
    with OtlpHttpServer() as server:
        finished = run_command("emit", "-c", str(tmp_path / "none"), OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **environ)

    assert (0, "telemetry is off: nothing was sent\n", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert not server.requests


BAD_INPUT = {
    "a file that is not there": (("-c", "/nonexistent/tbot.yaml"), "/nonexistent/tbot.yaml: cannot be read"),
    "a join URI that is none": (("--join-uri", CANARY), "--join-uri: no join URI; write "),
    "a command that is no start": (("--", "tbot", CANARY), "what stands behind -- must be a `tbot start`"),
    "a flag without its value": (("--", "tbot", "start", "--join-method"), "what stands behind -- is no command line"),
    "flags on both sides": (("--oneshot", "--", "tbot", "start"), "tbot's flags stand either before or behind --"),
}


@pytest.mark.parametrize("command", ["emit", "preview"])
@pytest.mark.parametrize(("arguments", "rule"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_status_2_and_one_line(arguments, rule, command):
    """It names place, rule and remedy, and never the value."""
    finished = run_command(command, *arguments, TELEPORT_ANONYMOUS_TELEMETRY="1")

    assert (2, "") == (finished.returncode, finished.stdout)
    assert f"otel-tbot: {command}: {rule}" in finished.stderr
    assert CANARY not in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("emit", "--tokenn", CANARY),
        ("emit", CANARY),
        ("emit", f"--oneshot={CANARY}"),
        ("preview", "--signal", CANARY),
        (CANARY,),
    ],
)
def test_wrong_usage_is_not_repeated(arguments):
    """What stands in the wrong place may be a token: the flag is named, its value is not."""
    finished = run_command(*arguments)

    assert 2 == finished.returncode
    assert "otel-tbot" in finished.stderr
    assert CANARY not in finished.stderr
