import json
import subprocess
import sys
import threading

import grpc
import pytest
import trustme

import otel_tbot
from otel_tbot import settings
from otel_tbot.cli.doctor import Finding, examine, is_healthy, to_text
from tests.cli.test_main import BASIC, CANARY, run_command
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, refusing_port, silent_server

ON = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}


def find(findings, subject):
    """The finding about *subject*."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "telemetry is off: the variable is not set"),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": ""}, "telemetry is off: the variable is empty"),
        (
            {"TELEPORT_ANONYMOUS_TELEMETRY": "yes"},
            "telemetry is off: only 1, t, T, TRUE, true and True mean on, as for tbot itself",
        ),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_SDK_DISABLED": "true"}, "telemetry is on"),
    ],
)
def test_off_nothing_is_connected_to_and_that_is_said(environ, text):
    """The variable, how it was read, and that the collector was not tried; status 0."""
    with OtlpHttpServer() as server:
        finished = run_command("doctor", "--json", OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **environ)
    report = json.loads(finished.stdout)
    findings = [Finding(**finding) for finding in report["findings"]]

    assert (0, "", "off") == (finished.returncode, finished.stderr, report["telemetry"])
    assert text == find(findings, "TELEPORT_ANONYMOUS_TELEMETRY").text
    assert "not tried, since telemetry is off" == find(findings, "collector").text
    assert not server.requests


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_answers_is_healthy(protocol):
    """Name, connection and an empty export are ok, each with its time; status 0."""
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        environ = ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        finished = run_command("doctor", "--json", **environ)
        report = json.loads(finished.stdout)
        text = run_command("doctor", **environ).stdout

    tried = [finding for finding in report["findings"] if finding["subject"].startswith("collector")]
    assert (0, "", "on", True) == (finished.returncode, finished.stderr, report["telemetry"], report["healthy"])
    assert ["collector: name", "collector: connection", "collector: empty export"] == [f["subject"] for f in tried]
    assert all(finding["level"] == "ok" and finding["seconds"] > 0 for finding in tried)
    assert not server.requests[0].session_ids
    assert "ok       collector: empty export: accepted, " in text


ANSWERS = {
    "400": (Answer(status=400), "ok", "it answers, but takes nothing empty: HTTP status 400"),
    "422, as Loki": (Answer(status=422), "ok", "it answers, but takes nothing empty: HTTP status 422"),
    "401": (Answer(status=401), "problem", "refused, HTTP status 401"),
    "403": (Answer(status=403), "problem", "refused, HTTP status 403"),
    "404": (Answer(status=404), "problem", "refused, HTTP status 404"),
    "302": (Answer(status=302), "problem", "refused, HTTP status 302"),
    "503": (Answer(status=503), "problem", "refused, HTTP status 503"),
    "a web page": (
        Answer(content_type="text/html"),
        "problem",
        "refused, HTTP status 200 with something that is no OTLP",
    ),
}


@pytest.mark.parametrize(("answer", "level", "text"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_told_from_a_refusal(answer, level, text):
    """A 4xx that only dislikes the empty request is an answer; all else that is no acceptance is a problem."""
    with OtlpHttpServer(answer) as server:
        findings = examine(ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url})
    finding = find(findings, "collector: empty export")

    assert (level, text) == (finding.level, finding.text)
    assert bool(finding.remedy) == (level == "problem")
    assert is_healthy(findings) == (level == "ok")


@pytest.mark.parametrize(
    ("code", "level"),
    [
        ("INVALID_ARGUMENT", "ok"),
        ("UNAUTHENTICATED", "problem"),
        ("UNIMPLEMENTED", "problem"),
        ("UNAVAILABLE", "problem"),
    ],
)
def test_a_grpc_answer_is_told_from_a_refusal(code, level):
    """The same over grpc, by status."""
    with OtlpGrpcServer(code=grpc.StatusCode[code]) as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        finding = find(examine(ON | environ), "collector: empty export")

    assert level == finding.level
    assert f"gRPC status {code}" in finding.text


def test_a_problem_is_status_1_and_has_a_remedy():
    """A port that refuses: connection is the problem, and nothing further is tried."""
    with refusing_port() as url:
        finished = run_command("doctor", OTEL_EXPORTER_OTLP_ENDPOINT=url, **ON)
    *_, problem, remedy, _, counts = finished.stdout.splitlines()

    assert (1, "") == (finished.returncode, finished.stderr)
    assert problem.startswith("problem  collector: connection: failed: Connection refused (")
    assert remedy.startswith("         → check that the collector listens there")
    assert "1 problem, no warnings" == counts


def test_a_host_that_is_none_is_a_problem_of_its_name():
    """The name is the first step."""
    finding = find(examine(ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://nonexistent.invalid:4318"}), "collector: name")

    assert ("problem", True) == (finding.level, finding.text.startswith("failed: "))


def test_a_silent_collector_is_a_problem_after_some_seconds():
    """Nobody waits for ever."""
    with silent_server() as server:
        finding = find(examine(ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}), "collector: empty export")

    assert "problem" == finding.level
    assert finding.text in {"timed out", "no answer in time"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority, and the file with its certificate."""
    path = tmp_path_factory.mktemp("certificate") / "authority.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(path)
    return made, path


def test_tls_is_checked_with_the_certificates_that_are_set(authority):
    """With the right certificate the handshake is ok; without it, or for another name, it is the problem."""
    made, path = authority
    certificate = made.issue_cert("localhost")
    key, chain = certificate.private_key_pem.bytes(), b"".join(part.bytes() for part in certificate.cert_chain_pems)
    with OtlpGrpcServer(credentials=grpc.ssl_server_credentials([(key, chain)])) as server:
        port = server.url.rpartition(":")[2]
        environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        with_certificate = examine(ON | environ | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(path)})
        without = find(examine(ON | environ), "collector: connection")
        environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_CERTIFICATE": str(path)}
        other_name = find(examine(ON | environ), "collector: connection")
        environ |= {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(path), "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(path)}
        wrong_key = find(examine(ON | environ), "collector: connection")

    assert is_healthy(with_certificate)
    assert "TLSv1.3, certificate valid for localhost" in find(with_certificate, "collector: connection").text
    assert without.text.startswith("the certificate is not accepted: ")
    assert other_name.text.startswith("the certificate is not accepted: ")
    assert {"problem"} == {without.level, other_name.level, wrong_key.level}


SECRETS = {
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{CANARY}",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{CANARY}:{CANARY}@127.0.0.1:1/otlp?token={CANARY}#{CANARY}",
    "OTEL_RESOURCE_ATTRIBUTES": f"host.name={CANARY}",
    "TELEPORT_BOT_TOKEN": CANARY,
    "HTTPS_PROXY": f"http://{CANARY}@proxy.example",
    "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": f"http://127.0.0.1:1/{CANARY}",
}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_secrets_are_in_neither_form(form):
    """Header values, user info and query of URLs, other variables' values: hidden; their names are told."""
    finished = run_command("doctor", *form, **ON, **SECRETS)

    assert CANARY not in finished.stdout + finished.stderr
    assert "authorization=(hidden)" in finished.stdout
    assert "http://127.0.0.1:1/otlp/v1/logs" in finished.stdout or "http://127.0.0.1:1/otlp" in finished.stdout
    assert "OTEL_RESOURCE_ATTRIBUTES" in finished.stdout
    assert "HTTPS_PROXY: set, and not used" in finished.stdout or '"HTTPS_PROXY"' in finished.stdout


def test_every_setting_is_told_with_its_origin():
    """Each setting that commands read: its value, and the variable that it comes from."""
    environ = {
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/x",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_TBOT_TIMEOUT": "many",
    }
    findings = examine(environ)
    told = {finding.subject: finding.text for finding in findings if finding.level == "note"}
    read = {setting.name for setting in settings.SETTINGS if settings.COMMANDS in setting.used_by}

    assert read <= told.keys()
    assert "http://c:1/x (from OTEL_EXPORTER_OTLP_LOGS_ENDPOINT)" == told["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert "gzip (from OTEL_EXPORTER_OTLP_COMPRESSION)" == told["OTEL_EXPORTER_OTLP_COMPRESSION"]
    assert "1000 (from OTEL_TBOT_TIMEOUT)" == told["OTEL_TBOT_TIMEOUT"]
    assert "log (default)" == told["OTEL_TBOT_SIGNAL"]
    assert "http/protobuf (default)" == told["OTEL_EXPORTER_OTLP_PROTOCOL"]
    assert ["must be a whole number of milliseconds from 1 to 999999; using 1000"] == [
        finding.text for finding in findings if finding.level == "warning" and finding.subject == "OTEL_TBOT_TIMEOUT"
    ]


OTLP = "OTEL_EXPORTER_OTLP"
TRAPS = {
    "the path doubled": ({f"{OTLP}_ENDPOINT": "http://c:4318/v1/logs"}, "problem", "the path is there twice"),
    "the other signal's path": ({f"{OTLP}_ENDPOINT": "http://c:4318/v1/traces/"}, "problem", "the path is there twice"),
    "grpc on the port of http": (
        {f"{OTLP}_ENDPOINT": "http://c:4318", f"{OTLP}_PROTOCOL": "grpc"},
        "warning",
        "port 4318 is usually that of http/protobuf",
    ),
    "http on the port of grpc": (
        {f"{OTLP}_ENDPOINT": "http://c:4317", f"{OTLP}_PROTOCOL": "http/protobuf"},
        "warning",
        "port 4317 is usually that of grpc",
    ),
    "a malformed endpoint": ({f"{OTLP}_ENDPOINT": CANARY}, "problem", "must be an http:// or https:// URL"),
    "proxies": ({"http_proxy": CANARY}, "note", "set, and not used"),
    "a timeout in seconds": ({"OTEL_TBOT_TIMEOUT": "5"}, "warning", "is in milliseconds"),
    "an export timeout in milliseconds": (
        {f"{OTLP}_TIMEOUT": "10000"},
        "warning",
        "OpenTelemetry Python reads seconds",
    ),
    "an address": ({"TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": CANARY}, "note", "`otel-tbot run` starts no relay"),
    "turned off for all": ({"OTEL_SDK_DISABLED": "TRUE"}, "note", "turns telemetry off"),
}


@pytest.mark.parametrize(("environ", "level", "text"), TRAPS.values(), ids=TRAPS)
def test_known_traps_are_found(environ, level, text):
    """Each with its remedy; without it, the same finding is not there."""
    found = [finding for finding in examine(environ) if text in finding.text]

    assert [level] == [finding.level for finding in found]
    assert bool(found[0].remedy) == (level != "note")
    assert not [finding for finding in examine({}) if text in finding.text]
    assert CANARY not in to_text(examine(environ))


TBOTS = {
    "new enough": ("echo 'Teleport v18.4.1 git:v18.4.1-0-gabc go1.24.5'", "ok", "on PATH, version 18.4.1"),
    "the oldest": ("echo Teleport v12.1.0", "ok", "on PATH, version 12.1.0"),
    "too old": ("echo Teleport v12.0.9", "problem", "version 12.0.9 does not report its start"),
    "without a version": ("echo hello", "warning", "on PATH, but does not tell its version"),
    "failing": ("exit 3", "warning", "on PATH, but does not tell its version"),
}


@pytest.mark.parametrize(("script", "level", "text"), TBOTS.values(), ids=TBOTS)
def test_tbot_is_asked_for_its_version(script, level, text, tmp_path):
    """Where telemetry is on; off, it is only looked for."""
    tbot = tmp_path / "tbot"
    tbot.write_text(f"#!/bin/sh\n{script}\n")
    tbot.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OTEL_EXPORTER_OTLP_ENDPOINT": "x"}
    finding = find(examine(ON | environ), "tbot")

    assert (level, text) == (finding.level, finding.text)
    assert "on PATH; its version is not asked while telemetry is off" == find(examine(environ), "tbot").text
    assert "not on PATH" == find(examine({"PATH": "/nonexistent"}), "tbot").text


def test_what_is_not_installed_is_told(tmp_path):
    """Without the extra and without the entry points: what is missing, and how to get it."""
    script = f"""
import json, sys
sys.path = [entry for entry in sys.path if "site-packages" not in entry]
sys.path.append({str(tmp_path)!r})
sys.path_importer_cache.clear()
from otel_tbot.cli.doctor import examine
print(json.dumps([(f.level, f.subject, f.remedy) for f in examine({{}})]))
"""
    (tmp_path / "otel_tbot").symlink_to(otel_tbot.__path__[0])
    finished = subprocess.run(
        [sys.executable, "-P", "-c", script], env=BASIC, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(finished.stdout)

    assert ["problem", "extra relay", "pip install 'otel-tbot[relay]'"] in found
    remedy = "install the package instead of putting its folder on the path"
    assert ["warning", "opentelemetry_logs_exporter", remedy] in found


def test_threads_of_a_tried_step_do_not_stay():
    """After a healthy look nothing of ours runs on."""
    with OtlpHttpServer() as server:
        examine(ON | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url})

    assert not [thread for thread in threading.enumerate() if thread.name == "otel-tbot"]
