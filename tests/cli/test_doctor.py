import json
import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime

import grpc
import pytest
import trustme

import otel_tbot
from otel_tbot import settings
from otel_tbot.cli import doctor
from otel_tbot.cli.doctor import LEVELS, Finding, is_healthy, to_text
from tests.support.bridge_process import BridgeProcess
from tests.support.commands import ON, run_command, run_in_shell, run_on_terminal
from tests.support.processes import LAUNCHER, Launch
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, raw_server, refusing_port, silent_server

CANARY = "canary-3f0a"
OTLP = "OTEL_EXPORTER_OTLP"
ADDRESS = "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"


EXAMINE = """
import json, sys, threading
from otel_tbot.cli.doctor import examine, to_json
report = to_json(examine(json.load(sys.stdin)), is_on=True)
print(threading.active_count(), report)
"""


def examine(environ):
    """Returns the findings under *environ*; with telemetry on, a new process examines it, and leaves no thread.

    It forks a relay. In this process, a thread of a server, of gRPC or of coverage can hold a lock at that moment, and
    nothing would release it in the child.
    """
    if not ON.items() <= environ.items():
        return doctor.examine(environ)
    command = [sys.executable, "-P", "-c", EXAMINE]
    finished = subprocess.run(command, input=json.dumps(environ), capture_output=True, text=True, check=True)
    threads, _, report = finished.stdout.partition(" ")
    found = [Finding(**finding) for finding in json.loads(report)["findings"]]
    assert "1" == threads or not is_healthy(found)
    return found


def find(findings, subject):
    """Returns the finding about *subject*."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


@pytest.mark.parametrize(
    ("environ", "level", "text"),
    [
        ({}, "note", "telemetry is off: the variable is not set"),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": ""}, "note", "telemetry is off: the variable is empty"),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": "0"}, "note", "telemetry is off: the variable is false"),
        (
            {"TELEPORT_ANONYMOUS_TELEMETRY": "yes"},
            "warning",
            "has a value that does not mean on, so telemetry is off",
        ),
        (
            {"TELEPORT_ANONYMOUS_TELEMETRY": " 1"},
            "warning",
            "has a value that does not mean on, so telemetry is off",
        ),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_SDK_DISABLED": "true"}, "ok", "telemetry is on"),
    ],
)
def test_off_nothing_is_connected_to_and_that_is_said(environ, level, text):
    """The variable, how it was read, and that neither collector nor address was tried; status 0."""
    with OtlpHttpServer() as server:
        addresses = {f"{OTLP}_ENDPOINT": server.url, ADDRESS: server.url}
        finished = run_command("doctor", "--json", **addresses, **environ)
    report = json.loads(finished.stdout)
    findings = [Finding(**finding) for finding in report["findings"]]
    consent = find(findings, "TELEPORT_ANONYMOUS_TELEMETRY")

    assert (0, "", "off") == (finished.returncode, finished.stderr, report["telemetry"])
    assert (level, text) == (consent.level, consent.text)
    assert bool(consent.remedy) == (level == "warning")
    assert (
        "not tried, because telemetry is off; nothing was connected to or started" == find(findings, "collector").text
    )
    assert not server.requests
    assert not [finding for finding in findings if finding.seconds is not None]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_responds_is_healthy(protocol):
    """An empty request is accepted, with its time; status 0."""
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        environ = ON | {f"{OTLP}_ENDPOINT": server.url, f"{OTLP}_PROTOCOL": protocol}
        finished = run_command("doctor", "--json", **environ)
        report = json.loads(finished.stdout)
        text = run_command("doctor", **environ).stdout

    (tried,) = [finding for finding in report["findings"] if finding["subject"] == "collector"]
    assert (0, "", "on", True) == (finished.returncode, finished.stderr, report["telemetry"], report["healthy"])
    assert "ok" == tried["level"]
    assert tried["seconds"] > 0
    assert 2 == len(server.requests)
    assert not server.requests[0].session_ids
    assert "accepted an empty request, " in " ".join(text.split())


ANSWERS = {
    "400": (400, "warning", ""),
    "422, as Loki": (422, "warning", ""),
    "302": (302, "problem", "set the endpoint to where the redirect leads; otel-tbot follows none"),
    "401": (401, "problem", "check the token in OTEL_EXPORTER_OTLP_HEADERS"),
    "403": (403, "problem", "check the token in OTEL_EXPORTER_OTLP_HEADERS"),
    "404": (404, "problem", "check the path and the protocol: does an OTLP receiver listen there?"),
    "405": (405, "problem", "check the path and the protocol: does an OTLP receiver listen there?"),
    "413": (413, "problem", "check that an OTLP receiver listens there, and no proxy in front of it interferes"),
    "415": (415, "problem", "check that an OTLP receiver listens there, and no proxy in front of it interferes"),
    "426": (426, "problem", "check that an OTLP receiver listens there, and no proxy in front of it interferes"),
    "429": (429, "problem", "the collector limits requests; try again later, or raise its limit"),
    "418": (418, "problem", "check that an OTLP receiver for this protocol listens there"),
    "500": (500, "problem", "look into the log of the collector"),
    "503": (503, "problem", "look into the log of the collector"),
}


@pytest.mark.parametrize(("status", "level", "remedy"), ANSWERS.values(), ids=ANSWERS)
def test_each_rejection_is_a_problem_unless_the_request_was_only_empty(status, level, remedy):
    """400 and 422 to an empty request say nothing about events; every other rejection is a problem with a remedy."""
    with OtlpHttpServer(Answer(status=status)) as server:
        findings = examine(ON | {f"{OTLP}_ENDPOINT": server.url})
        url = f"{server.url}/v1/logs"
    finding = find(findings, "collector")

    text = f"{url} rejects requests: HTTP status {status}"
    if level == "warning":
        text = f"{url} rejects an empty request (HTTP status {status}): cannot tell whether events arrive"
        remedy = "send one event with `otel-tbot emit`"
    assert (level, text, remedy) == (finding.level, finding.text, finding.remedy)
    assert is_healthy(findings) == (level == "warning")


def test_a_web_page_is_a_problem():
    """A page with status 200 is not an acceptance."""
    with OtlpHttpServer(Answer(content_type="text/html")) as server:
        finding = find(examine(ON | {f"{OTLP}_ENDPOINT": server.url}), "collector")

    assert ("problem", True) == (finding.level, "HTTP status 200 with a response that is not OTLP" in finding.text)


@pytest.mark.parametrize(
    ("code", "level"),
    [
        ("INVALID_ARGUMENT", "warning"),
        ("UNAUTHENTICATED", "problem"),
        ("UNIMPLEMENTED", "problem"),
        ("RESOURCE_EXHAUSTED", "problem"),
        ("UNAVAILABLE", "problem"),
    ],
)
def test_a_grpc_rejection_is_a_problem_unless_the_request_was_only_empty(code, level):
    """gRPC statuses are judged like those of HTTP."""
    with OtlpGrpcServer(code=grpc.StatusCode[code]) as server:
        environ = {f"{OTLP}_ENDPOINT": server.url, f"{OTLP}_PROTOCOL": "grpc"}
        finding = find(examine(ON | environ), "collector")

    assert level == finding.level
    assert f"gRPC status {code}" in finding.text
    assert finding.remedy


def test_problems_come_first_with_a_remedy_and_status_1():
    """A port that refuses: the summary, then the problem, what to do, and what is fine after it."""
    with refusing_port() as url:
        finished = run_command("doctor", **{f"{OTLP}_ENDPOINT": url}, **ON)
    summary, _, problem, *rest = finished.stdout.splitlines()
    words = " ".join(finished.stdout.split())

    assert (1, "") == (finished.returncode, finished.stderr)
    assert "1 problem, no warnings" == summary
    assert problem.startswith("problem  collector  ")
    assert "cannot be reached: Connection refused (" in words
    assert "→ check that the collector listens there, and the firewalls on the path" in words
    assert "ok       TELEPORT_ANONYMOUS_TELEMETRY  telemetry is on" in rest


def test_findings_are_sorted_by_level():
    """Problems, warnings, what is ok, and notes."""
    environ = ON | {f"{OTLP}_ENDPOINT": "x", "OTEL_TBOT_TIMEOUT": "5", "HTTP_PROXY": "x"}
    levels = [finding.level for finding in examine(environ)]

    assert sorted(levels, key=LEVELS.index) == levels
    assert set(LEVELS) == set(levels)


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("consent", ["1", "yes"])
def test_the_report_fits_the_terminal(columns, consent):
    """No line of prose is wider than the terminal, and the columns are aligned."""
    _, shown = run_on_terminal(
        "doctor",
        columns=columns,
        NO_COLOR="1",
        TELEPORT_ANONYMOUS_TELEMETRY=consent,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_TBOT_TIMEOUT="5",
    )
    lines = shown.splitlines()

    assert columns >= max(map(len, lines))
    rows = lines[2 : lines.index("", 2)]
    assert all(line[:9].strip() in ("", *LEVELS) for line in rows)
    texts = {len(line) - len(line.lstrip()) for line in rows if line.startswith(" " * 9)}
    assert 1 == len(texts)


@pytest.mark.parametrize("host", ["nonexistent.invalid", "collector..invalid", f"{'x' * 64}.invalid"])
@pytest.mark.parametrize("port", [4317, 4318])
def test_an_unknown_host_is_a_problem_of_its_name(host, port):
    """The remedy names the host; a part of the name may be empty or too long."""
    finding = find(examine(ON | {f"{OTLP}_ENDPOINT": f"http://{host}:{port}"}), "collector")

    assert ("problem", "check the host in the endpoint") == (finding.level, finding.remedy)
    assert "cannot be reached: the host name has no address (" in finding.text


def test_a_silent_collector_is_a_problem_after_some_seconds():
    """doctor stops waiting."""
    with silent_server() as server:
        finding = find(examine(ON | {f"{OTLP}_ENDPOINT": server.url}), "collector")

    assert "problem" == finding.level
    assert finding.text.endswith("does not respond in time")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority, and the file with its certificate."""
    path = tmp_path_factory.mktemp("certificate") / "authority.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(path)
    return made, path


def test_tls_is_checked_with_the_certificates_that_are_set(authority):
    """With the right certificate all is well; without it, for another name, or with a wrong key, TLS is the problem."""
    made, path = authority
    certificate = made.issue_cert("localhost")
    key, chain = certificate.private_key_pem.bytes(), b"".join(part.bytes() for part in certificate.cert_chain_pems)
    with OtlpGrpcServer(credentials=grpc.ssl_server_credentials([(key, chain)])) as server:
        port = server.url.rpartition(":")[2]
        environ = {f"{OTLP}_PROTOCOL": "grpc", f"{OTLP}_ENDPOINT": server.url}
        with_certificate = examine(ON | environ | {f"{OTLP}_CERTIFICATE": str(path)})
        without = find(examine(ON | environ), "collector")
        environ |= {f"{OTLP}_ENDPOINT": f"127.0.0.1:{port}", f"{OTLP}_CERTIFICATE": str(path)}
        other_name = find(examine(ON | environ), "collector")
        environ |= {f"{OTLP}_CLIENT_CERTIFICATE": str(path), f"{OTLP}_CLIENT_KEY": str(path)}
        wrong_key = find(examine(ON | environ), "collector")

    assert is_healthy(with_certificate)
    assert "its certificate is not accepted: " in without.text
    assert "set OTEL_EXPORTER_OTLP_CERTIFICATE to the certificate of its authority" == without.remedy
    assert "its certificate is not accepted: " in other_name.text
    assert "set the endpoint to a name that is in the collector's certificate" == other_name.remedy
    assert {"problem"} == {without.level, other_name.level, wrong_key.level}


@pytest.mark.parametrize(("begin", "end"), [(2000, 2001), (2090, 2091)], ids=["expired", "not yet valid"])
def test_a_certificate_of_another_time_has_its_own_remedy(begin, end, authority):
    """Its authority is known already: the certificate or a clock is wrong."""
    made, path = authority
    times = {"not_before": datetime(begin, 1, 1, tzinfo=UTC), "not_after": datetime(end, 1, 1, tzinfo=UTC)}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("localhost", **times).configure_cert(context)
    with raw_server(lambda connection: context.wrap_socket(connection, server_side=True).close()) as server:
        endpoint = server.url.replace("http://127.0.0.1", "https://localhost")
        finding = find(examine(ON | {f"{OTLP}_ENDPOINT": endpoint, f"{OTLP}_CERTIFICATE": str(path)}), "collector")

    assert "its certificate is not accepted: " in finding.text
    remedy = "renew the collector's certificate, and check the clock of this machine"
    assert ("problem", remedy) == (finding.level, finding.remedy)


def test_the_address_is_examined_if_one_is_set():
    """tbot reports there: an unused collector is left alone, and a bridge at the address gets no event."""
    with OtlpHttpServer() as collector, OtlpHttpServer() as unused:
        with BridgeProcess({f"{OTLP}_ENDPOINT": collector.url}) as bridge:
            environ = ON | {ADDRESS: bridge.url, f"{OTLP}_ENDPOINT": unused.url}
            findings = examine(environ)
            wrong = find(examine(environ | {ADDRESS: f"{bridge.url}/{CANARY}"}), ADDRESS)
    finding = find(findings, ADDRESS)

    assert ("ok", f"{bridge.url} speaks tbot's protocol") == (finding.level, finding.text)
    assert finding.seconds > 0
    assert is_healthy(findings)
    assert ("problem", "check its path: a bridge with a path prefix serves no other") == (wrong.level, wrong.remedy)
    assert f"{bridge.url}/… does not accept reports: HTTP status 404" in wrong.text
    assert not collector.requests + unused.requests


def test_a_real_relay_is_started_and_asked():
    """It takes some time, sends nothing, and leaves no process; with telemetry off none is started."""
    with OtlpHttpServer() as collector:
        # With the default limit, a relay that starts slowly is a warning.
        more = {"OTEL_TBOT_TIMEOUT": "60000", "PATH": "/usr/bin:/bin"}
        launch = Launch({**ON, f"{OTLP}_ENDPOINT": collector.url, **more})
        finished = launch.run(["--json"], launcher=(LAUNCHER[0], "doctor"))
        relay = find([Finding(**f) for f in json.loads(finished.stdout)["findings"]], "relay")

    assert ("ok", "starts, and could send an event") == (relay.level, relay.text)
    assert relay.seconds > 0
    assert [[]] == [request.session_ids for request in collector.requests]
    launch.wait_for_end()
    assert not [finding for finding in examine({}) if finding.subject == "relay"]


def test_a_relay_that_cannot_start_is_a_problem():
    """With too few open files allowed, the reason is there, and what it means for the event."""
    with OtlpHttpServer() as collector:
        environ = {f"{OTLP}_ENDPOINT": collector.url, f"{OTLP}_PROTOCOL": "http/protobuf"}
        script = 'ulimit -n 8; exec "$OTEL_TBOT" doctor --json'
        report = json.loads(run_in_shell(script, **environ, **ON).stdout)
    relay = find([Finding(**finding) for finding in report["findings"]], "relay")

    assert "problem" == relay.level
    assert relay.text.startswith("cannot be used: the limit of open files must be at least ")
    assert relay.remedy


def test_a_slow_relay_is_a_warning():
    """A relay that needs more than half of the limit gets a warning that names the variable."""
    with OtlpHttpServer() as collector:
        findings = examine(ON | {f"{OTLP}_ENDPOINT": collector.url, "OTEL_TBOT_TIMEOUT": "61", "PATH": ""})
    relay = find(findings, "relay")

    assert "warning" == relay.level
    assert "needs more than half of the 0.061 s that a one-shot tbot waits, so events may be lost" == relay.text
    assert "raise OTEL_TBOT_TIMEOUT" in relay.remedy


def answer_with(response):
    """Returns a server that answers a whole request with *response*."""

    def serve(connection):
        connection.recv(65536)
        connection.sendall(response)

    return raw_server(serve)


@pytest.mark.parametrize(
    ("response", "level", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "ok", "speaks tbot's protocol"),
        (
            b'HTTP/1.1 503 x\r\nContent-Length: 22\r\n\r\n{"code":"unavailable"}',
            "problem",
            "does not accept reports: HTTP status 503, unavailable",
        ),
        (
            b"HTTP/1.1 500 x\r\nContent-Length: 6\r\n\r\ncanary",
            "problem",
            "does not accept reports: HTTP status 500",
        ),
        (b"canary\r\n", "problem", "does not respond: BadStatusLine"),
        (b"", "problem", "does not respond in time"),
    ],
)
def test_each_response_at_the_address_is_told_apart(response, level, text):
    """Only tbot's protocol is fine; the response is not repeated."""
    with answer_with(response) as server:
        finding = find(examine(ON | {ADDRESS: f"{server.url}/{CANARY}"}), ADDRESS)

    assert (level, f"{server.url}/… {text}") == (finding.level, finding.text)
    assert bool(finding.remedy) == (level == "problem")


@pytest.mark.parametrize("address", ["127.0.0.1:1", f"ftp://{CANARY}", CANARY, f"http://[{CANARY}"])
def test_an_address_that_is_not_a_url_is_a_problem(address):
    """The address is not repeated."""
    finding = find(examine(ON | {ADDRESS: address}), ADDRESS)

    assert ("problem", "is not an http:// or https:// URL") == (finding.level, finding.text)


def test_an_address_without_a_listener_is_a_problem():
    """A connection that is refused is named, and the secret path is not."""
    with refusing_port() as url:
        finding = find(examine(ON | {ADDRESS: f"{url}/{CANARY}"}), ADDRESS)

    assert ("problem", f"{url}/… does not respond: Connection refused") == (finding.level, finding.text)


PEM = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
SECRETS = {
    f"{OTLP}_HEADERS": f"authorization=Bearer%20{CANARY}",
    f"{OTLP}_ENDPOINT": f"http://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}?token={CANARY}#{CANARY}",
    f"{OTLP}_CERTIFICATE": PEM,
    f"{OTLP}_CLIENT_KEY": PEM,
    f"{OTLP}_CLIENT_CERTIFICATE": CANARY,
    f"{OTLP}_COMPRESSION": CANARY,
    f"{OTLP}_INSECURE": CANARY,
    f"{OTLP}_TIMEOUT": CANARY,
    "OTEL_TBOT_SIGNAL": CANARY,
    "OTEL_TBOT_TIMEOUT": CANARY,
    "OTEL_RESOURCE_ATTRIBUTES": f"host.name={CANARY}",
    "TELEPORT_BOT_TOKEN": CANARY,
    "HTTPS_PROXY": f"http://{CANARY}@proxy.example",
}


@pytest.mark.parametrize("others", [{}, {ADDRESS: f"http://{CANARY}@127.0.0.1:1/{CANARY}"}], ids=["", "address"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc", CANARY])
@pytest.mark.parametrize("scheme", ["http", "https", ""])
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_no_form_shows_a_secret(form, scheme, protocol, others):
    """No header value, user info, query, path, content of a file, or value of a setting that is malformed."""
    environ = SECRETS | others | {f"{OTLP}_PROTOCOL": protocol}
    environ[f"{OTLP}_ENDPOINT"] = environ[f"{OTLP}_ENDPOINT"].replace("http://", f"{scheme}://" if scheme else "")
    finished = run_command("doctor", *form, **environ, **ON)

    assert 1 == finished.returncode
    assert "authorization=(hidden)" in finished.stdout
    assert "(hidden) (from OTEL_EXPORTER_OTLP_CLIENT_KEY)" in " ".join(finished.stdout.split())
    assert CANARY not in finished.stdout + finished.stderr
    assert "PRIVATE KEY" not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ("authorization=x,x-scope-orgid=1", "authorization=(hidden), x-scope-orgid=(hidden)"),
        ("Y2FuYXJ5LTNmMGE=", "(hidden)"),
        ("Y2FuYXJ5LTNmMGE==", "(hidden)"),
    ],
)
def test_a_token_that_looks_like_a_name_is_hidden(headers, shown):
    """A name without a value may be a token that ends in an equals sign."""
    assert f"{shown} (from {OTLP}_HEADERS)" == find(examine({f"{OTLP}_HEADERS": headers}), f"{OTLP}_HEADERS").text


def test_a_file_setting_names_its_file(authority):
    """A path to a file is shown; anything else is hidden, and named as the problem that it is."""
    _, path = authority
    environ = {f"{OTLP}_CERTIFICATE": str(path), f"{OTLP}_CLIENT_KEY": PEM, f"{OTLP}_ENDPOINT": "https://127.0.0.1:1"}
    findings = examine(environ)
    problem = next(f for f in findings if f.subject == f"{OTLP}_CLIENT_KEY" and f.level == "problem")

    assert f"{path} (from {OTLP}_CERTIFICATE)" == find(findings, f"{OTLP}_CERTIFICATE").text
    assert ("does not name a file", "set it to the path of a PEM file, not to its content") == (
        problem.text,
        problem.remedy,
    )


def test_every_setting_is_shown_with_its_origin():
    """Each setting: its value, and the variable that it comes from."""
    environ = {
        f"{OTLP}_LOGS_ENDPOINT": "http://c:1/v1/logs",
        f"{OTLP}_COMPRESSION": "gzip",
        "OTEL_TBOT_TIMEOUT": "many",
    }
    findings = examine(environ)
    shown = {finding.subject: finding.text for finding in findings if finding.level == "note"}

    assert {setting.name for setting in settings.SETTINGS} <= shown.keys()
    assert "http://c:1/v1/logs (from OTEL_EXPORTER_OTLP_LOGS_ENDPOINT)" == shown["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert "gzip (from OTEL_EXPORTER_OTLP_COMPRESSION)" == shown["OTEL_EXPORTER_OTLP_COMPRESSION"]
    assert "3000 (from OTEL_TBOT_TIMEOUT)" == shown["OTEL_TBOT_TIMEOUT"]
    assert "log (default)" == shown["OTEL_TBOT_SIGNAL"]
    assert "http/protobuf (default)" == shown["OTEL_EXPORTER_OTLP_PROTOCOL"]
    assert ["must be a whole number of milliseconds from 1 to 999999; using 3000"] == [
        finding.text for finding in findings if finding.level == "warning" and finding.subject == "OTEL_TBOT_TIMEOUT"
    ]


MISTAKES = {
    "the path doubled": ({f"{OTLP}_ENDPOINT": "http://c:4318/v1/logs"}, "problem", "already ends in the path"),
    "the other signal's path": (
        {f"{OTLP}_ENDPOINT": "http://c:4318/v1/traces/"},
        "problem",
        "already ends in the path",
    ),
    "grpc on the port of http": (
        {f"{OTLP}_ENDPOINT": "http://c:4318", f"{OTLP}_PROTOCOL": "grpc"},
        "warning",
        "port 4318 is usually for http/protobuf",
    ),
    "http on the port of grpc": (
        {f"{OTLP}_ENDPOINT": "http://c:4317", f"{OTLP}_PROTOCOL": "http/protobuf"},
        "warning",
        "port 4317 is usually for grpc",
    ),
    "a malformed endpoint": ({f"{OTLP}_ENDPOINT": CANARY}, "problem", "must be an http:// or https:// URL"),
    "proxies": ({"http_proxy": CANARY}, "note", "set, but not used"),
    "a timeout in seconds": ({"OTEL_TBOT_TIMEOUT": "5"}, "warning", "is in milliseconds"),
    "an export timeout in milliseconds": (
        {f"{OTLP}_TIMEOUT": "10000"},
        "warning",
        "OpenTelemetry Python reads seconds",
    ),
    "turned off for all": ({"OTEL_SDK_DISABLED": "TRUE"}, "note", "turns telemetry off"),
}


@pytest.mark.parametrize(("environ", "level", "text"), MISTAKES.values(), ids=MISTAKES)
def test_known_mistakes_are_found(environ, level, text):
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
    "without a version": ("echo hello", "warning", "on PATH, but does not print its version"),
    "failing": ("exit 3", "warning", "on PATH, but does not print its version"),
}


@pytest.mark.parametrize(("script", "level", "text"), TBOTS.values(), ids=TBOTS)
def test_tbot_is_asked_for_its_version(script, level, text, tmp_path):
    """With telemetry on it is executed; off, it is only looked for."""
    tbot = tmp_path / "tbot"
    tbot.write_text(f"#!/bin/sh\n{script}\n")
    tbot.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OTEL_EXPORTER_OTLP_ENDPOINT": "x"}
    finding = find(examine(ON | environ), "tbot")

    assert (level, text) == (finding.level, finding.text)
    assert "on PATH; not executed, because telemetry is off" == find(examine(environ), "tbot").text
    assert "not on PATH" == find(examine({"PATH": "/nonexistent"}), "tbot").text


def run_python(script, tmp_path):
    """Runs *script* with this package on the path, and returns the JSON that it prints."""
    (tmp_path / "otel_tbot").symlink_to(otel_tbot.__path__[0])
    finished = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{script}"],
        env={},  # no PYTHONDONTWRITEBYTECODE
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(finished.stdout)


SHOW = "import json; print(json.dumps([(f.level, f.subject) for f in examine({})]))"


def test_missing_entry_points_and_a_missing_extra_are_found(tmp_path):
    """A plug-in that no variable can name is a warning; the extra is only for the metrics of the bridge."""
    script = f"""
import importlib.metadata, importlib.util
from otel_tbot.cli.doctor import examine
importlib.metadata.entry_points = lambda **_: ()
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "prometheus_client" else find_spec(name)
{SHOW}
"""
    found = run_python(script, tmp_path)
    usual = [(finding.level, finding.subject) for finding in examine({})]

    assert {("warning", "exporter plug-ins"), ("note", "extra `bridge`")} <= {tuple(row) for row in found}
    assert ("ok", "exporter plug-ins") in usual
    assert ("note", "extra `bridge`") not in usual


@pytest.mark.parametrize("is_writable", [True, False])
def test_missing_bytecode_is_a_warning_if_it_cannot_be_written(is_writable, tmp_path):
    """Each start would compile again; if the next start writes it, there is nothing to say."""
    if os.geteuid() == 0 and not is_writable:
        script = "sys.dont_write_bytecode = True"
    else:
        script = ""
        (tmp_path / "cache").mkdir(mode=0o755 if is_writable else 0o555)
    script += f"\nsys.pycache_prefix = {str(tmp_path / 'cache')!r}\nfrom otel_tbot.cli.doctor import examine\n"
    found = run_python(script + SHOW, tmp_path)

    assert is_writable == (["warning", "bytecode"] not in found)
