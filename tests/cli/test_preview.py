import json
import re
import uuid

import pytest

from otel_tbot.event import ATTRIBUTES
from otel_tbot.otlp.encoding import to_json
from tests.support.commands import ON, run_command, run_on_terminal
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer

CANARY = "canary-3f0a"
TBOT_YAML = f"""
version: v2
onboarding: {{join_method: github, token: {CANARY}}}
outputs: [{{type: kubernetes/v2, selectors: [{{name: {CANARY}}}]}}, {{type: identity}}]
"""


def attributes_of(shown):
    """Returns the attributes in a request of OTLP/JSON."""
    (group,) = shown.get("resourceLogs") or shown.get("resourceSpans")
    (scope,) = group.get("scopeLogs") or group.get("scopeSpans")
    (record,) = scope.get("logRecords") or scope.get("spans")
    return {attribute["key"]: next(iter(attribute["value"].values())) for attribute in record["attributes"]}


START_LINES = {
    "options": ("-c", "FILE", "--oneshot", "--join-method", "gcp", "--tbot-version", "18.4.1"),
    "tbot's own line": ("--tbot-version=18.4.1", "--", "tbot", "-c", "FILE", "start", "--join-method=gcp", "--oneshot"),
    "combined short flags": (
        *("--tbot-version", "v18.4.1", "--", "tbot", "start", "-dc", "FILE", "--oneshot", "--join-method", "gcp"),
    ),
    "with other flags": (
        *("--tbot-version", "18.4.1", "--", "/opt/tbot", "-d", "--log-format", "json", "start", "--insecure"),
        *("--proxy-server", f"{CANARY}:443", "--ca-pin", CANARY, "-cFILE", "--oneshot", "--join-method", "gcp"),
    ),
}


@pytest.mark.parametrize("line", START_LINES.values(), ids=START_LINES)
def test_preview_shows_the_event_of_a_tbot_however_it_is_described(line, tmp_path):
    """By options or by tbot's own command line: the same event, and nothing else of the file and the line."""
    path = tmp_path / "tbot.yaml"
    path.write_text(TBOT_YAML)
    finished = run_command("preview", *(word.replace("FILE", str(path)) for word in line))
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
    assert "warning" not in finished.stderr


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
    """A subcommand counts as a destination; the value of a flag does not."""
    attributes = attributes_of(json.loads(run_command("preview", "--", "tbot", *line).stdout))

    assert (kubernetes, join_type) == (attributes["tbot.destinations_kubernetes"], attributes.get("tbot.join_type"))


def test_a_pin_replaces_the_onboarding_section(tmp_path):
    """As for tbot, given as an option and after --; without it the file's method is there."""
    path = tmp_path / "tbot.yaml"
    path.write_text(TBOT_YAML)
    lines = [
        ("-c", str(path)),
        ("-c", str(path), "--ca-pin", "x"),
        ("--", "tbot", "start", "-c", str(path), "--ca-pin=x"),
    ]
    methods = [attributes_of(json.loads(run_command("preview", *line).stdout)).get("tbot.join_type") for line in lines]

    assert ["github", None, None] == methods


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("18.4.1", "18.4.1"),
        ("v18.4.1", "18.4.1"),
        ("Teleport v18.4.1 git:v18.4.1-0-gabcdef go1.24", "18.4.1"),
        ("Teleport OSS v18.4.1", "18.4.1"),
        ("Teleport Enterprise v18.4.1-rc.2 git:v18.4.1-rc.2-0-gabcdef go1.24\n", "18.4.1-rc.2"),
        ("Teleport 18.4.1", "18.4.1"),
        ("Teleport", "_OTHER"),
        ("vv18.4.1", "_OTHER"),
        ("tsh v18.4.1", "_OTHER"),
        ("", None),
    ],
)
def test_a_version_is_read_from_what_tbot_prints(text, version):
    """A version, with v or without, or the line of `tbot version`; only the version is kept."""
    finished = run_command("preview", "--tbot-version", text)

    assert version == attributes_of(json.loads(finished.stdout)).get("tbot.version")
    assert "abcdef" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("consent", [None, "1"])
def test_preview_names_the_destination_and_sends_nothing(consent):
    """On stderr: endpoint without user info, protocol, size; on or off; no request is made."""
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": consent} if consent else {}
    with OtlpHttpServer() as server:
        endpoint = server.url.replace("://", f"://{CANARY}:{CANARY}@")
        finished = run_command(
            "preview", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="gzip", **environ
        )

    off = "nothing was sent, and telemetry is off; if it were on, `emit`"
    state = "nothing was sent; `emit`" if consent else off
    destination = rf"to {server.url}/v1/logs over http/protobuf, \d+ bytes, \d+ with gzip"
    assert re.fullmatch(f"otel-tbot: preview: {state} would send this {destination}\n", finished.stderr)
    assert not server.requests


def test_a_secret_path_is_not_shown():
    """A token in the path is hidden on both ways out."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://c:4318/{CANARY}?token={CANARY}"}
    finished = run_command("preview", **environ)
    _, table = run_on_terminal("preview", **environ)

    assert "to http://c:4318/… over" in finished.stderr
    assert "to http://c:4318/… over" in " ".join(table.split())
    assert CANARY not in finished.stdout + finished.stderr + table


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_preview_is_what_emit_sends(signal, protocol):
    """For one input, request and size are the same, except for time, session id, and a span's ids."""
    arguments = ("--oneshot", "--join-method", "gcp", "--tbot-version", "18.4.1", "--helper", "x")
    arguments += ("--helper-version", "1")
    server = OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()
    with server:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_TBOT_SIGNAL": signal,
            "OTEL_TBOT_TIMEOUT": "60000",
            **ON,
        }
        previewed = run_command("preview", *arguments, **environ)
        emitted = run_command("emit", *arguments, **environ)
        (request,) = server.requests
    chance = r'"(session.id", "value": \{"stringValue|traceId|spanId|\w*[tT]imeUnixNano)": "[0-9a-f-]+"'
    sent = to_json(request.message)

    assert (0, "the collector accepted the event\n", "") == (emitted.returncode, emitted.stdout, emitted.stderr)
    assert re.sub(chance, "", json.dumps(sent)) == re.sub(chance, "", json.dumps(json.loads(previewed.stdout)))
    assert f" {request.message.ByteSize()} bytes\n" in previewed.stderr


def test_preview_names_malformed_settings():
    """A setting that would not be used is named, and so is a malformed endpoint."""
    finished = run_command("preview", OTEL_EXPORTER_OTLP_ENDPOINT=CANARY, OTEL_EXPORTER_OTLP_COMPRESSION="deflate")
    first, second = finished.stderr.splitlines()

    warning = "otel-tbot: preview: warning: OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or https:// URL"
    assert first.startswith(warning)
    assert second.endswith("would send this to no endpoint: it is malformed; see `otel-tbot doctor`")
    assert CANARY not in finished.stderr


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_gets_a_table_of_all_facts_the_resource_and_the_destination(columns):
    """The ten facts, unknown ones named as such, within the width of the terminal; and no JSON."""
    status, shown = run_on_terminal(
        "preview", "--join-method", "gcp", "--helper", "x", columns=columns, NO_COLOR="1", OTEL_TBOT_SIGNAL="span"
    )
    resource = ("service.name", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version", "os.type")

    assert 0 == status
    assert shown.startswith("The event tbot.start, as a span\n")
    assert all(re.search(rf"^  {re.escape(a.key)}\s+\S", shown, re.MULTILINE) for a in ATTRIBUTES)
    assert all(re.search(rf"^  {re.escape(key)} +\S", shown, re.MULTILINE) for key in (*resource, "host.arch"))
    assert re.search(r"^  tbot\.join_type +gcp$", shown, re.MULTILINE)
    assert re.search(r"^  tbot\.version +\(not known, left out\)$", shown, re.MULTILINE)
    assert re.search(r"^  telemetry +off$", shown, re.MULTILINE)
    assert "to http://localhost:4318/v1/traces over http/protobuf, " in " ".join(shown.split())
    assert columns >= max(map(len, shown.splitlines()))
    assert "{" not in shown


def test_a_terminal_gets_the_request_if_asked():
    """--json prints the same as a pipe gets."""
    _, shown = run_on_terminal("preview", "--json")
    request, _, message = shown.rpartition("}\n")

    assert ["resourceLogs"] == list(json.loads(request + "}"))
    assert message.startswith("otel-tbot: preview: nothing was sent, ")
