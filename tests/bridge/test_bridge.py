import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import requests
from google.protobuf.json_format import MessageToDict, MessageToJson

from otel_tbot import __version__
from otel_tbot.bridge.application import Bridge, BridgeError
from otel_tbot.event import TbotStart
from otel_tbot.tbot.http_request import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_BYTES
from otel_tbot.tbot.report import to_report
from tests.support.bridge_process import PROCEDURE, BridgeProcess, allow_open_files
from tests.support.polling import poll_until
from tests.support.processes import LAUNCHER, MEASURED
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, refusing_port, silent_server

CANARY = "canary-71c4"
PATIENT = {"OTEL_TBOT_TIMEOUT": "10000"}
PROTO = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}


def to_fields(message):
    """Returns a message as nested dictionaries."""
    return MessageToDict(message, preserving_proto_field_name=True)


def environ_of(server, **more):
    """The settings that send to *server*."""
    protocol = "grpc" if isinstance(server, OtlpGrpcServer) else "http/protobuf"
    return PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, **more}


def a_report(run_mode="daemon"):
    """Returns a report and its session id."""
    report = to_report(TbotStart(run_mode=run_mode, version="18.4.1", join_type="iam"))
    return report.SerializeToString(), report.distinct_id


def post(bridge, body=None, *, path=PROCEDURE, **headers):
    """Posts a report, and returns the response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(bridge.url + path, data=body or a_report()[0], headers=PROTO | named, timeout=60)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_report_is_answered_once_the_collector_has_its_event(protocol, signal):
    """One request arrives, anonymous, without the bridge's own operating system and architecture."""
    body, session_id = a_report()
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        with BridgeProcess(environ_of(server, OTEL_TBOT_SIGNAL=signal)) as bridge:
            answer = post(bridge, body, User_Agent=CANARY, X_Forwarded_For=CANARY, Forwarded=f"for={CANARY}")
        (request,) = server.requests
    fields = to_fields(request.message)
    (group,) = fields.get("resource_logs") or fields.get("resource_spans")

    assert (200, b"") == (answer.status_code, answer.content)
    assert [session_id] == request.session_ids
    assert ["service.name", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"] == [
        attribute["key"] for attribute in group["resource"]["attributes"]
    ]
    assert CANARY not in str(request)
    assert "" == bridge.written


WAITING = "otel_tbot_bridge_reports_waiting"


def read_count(url, name):
    """The value of the metric *name* on the page at *url*, which has it once."""
    lines = requests.get(url, timeout=60).text.splitlines()
    (line,) = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return float(line.rpartition(" ")[2])


def to_json_body():
    """A report as JSON."""
    return MessageToJson(to_report(TbotStart(run_mode="daemon"))).encode()


FORMS = {
    "sized": (lambda: a_report()[0], {}),
    "chunked": (lambda: iter([a_report()[0][:10], a_report()[0][10:]]), {}),
    "gzip": (lambda: gzip.compress(a_report()[0]), {"Content_Encoding": "gzip"}),
    "JSON": (to_json_body, {"Content_Type": "application/json"}),
    "with a timeout": (lambda: a_report()[0], {"Connect_Timeout_Ms": "60000"}),
}


def test_every_form_of_the_protocol_is_understood():
    """Sized, chunked, compressed, as JSON, with a timeout: each is one event."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        for name, (to_body, headers) in FORMS.items():
            body, session_id = a_report()
            sent = iter([body[:10], body[10:]]) if name == "chunked" else body if name == "sized" else to_body()
            assert 200 == post(bridge, sent, **headers).status_code, name
            if name in ("chunked", "sized"):
                assert [session_id] == server.requests[-1].session_ids

    assert len(FORMS) == sum(len(request.session_ids) for request in server.requests)


REFUSALS = {
    "refused": lambda: OtlpHttpServer(Answer(status=403, body=CANARY.encode(), content_type="text/plain")),
    "rejected in part": lambda: OtlpHttpServer(Answer(body=b"\x0a\x02\x08\x01")),
    "redirected": lambda: OtlpHttpServer(Answer(status=302, headers={"Location": f"http://{CANARY}/"})),
    "grpc error": lambda: OtlpGrpcServer(code=grpc.StatusCode.INTERNAL),
    "silent": silent_server,
}


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
def test_an_event_that_the_collector_does_not_accept_is_unavailable(fault):
    """The response says so, and contains nothing that the collector sent."""
    with fault() as server:
        environ = environ_of(server, OTEL_TBOT_TIMEOUT="200")
        with BridgeProcess(environ) as bridge:
            answer = post(bridge, a_report("one-shot")[0])

    assert (503, "unavailable") == (answer.status_code, answer.json()["code"])
    assert CANARY not in answer.text + bridge.written


def test_a_client_s_own_timeout_ends_its_wait():
    """After Connect-Timeout-Ms the client gets `deadline_exceeded`, although the bridge would wait longer."""
    with silent_server() as server, BridgeProcess(environ_of(server)) as bridge:
        answer = post(bridge, Connect_Timeout_Ms="50")

    assert (504, "deadline_exceeded") == (answer.status_code, answer.json()["code"])


def raw(bridge, request, *, until_closed=True):
    """Sends bytes, and returns everything that arrives until the connection is closed; b"" if it is reset."""
    with bridge.connect() as connection:
        try:
            connection.sendall(request)
            received = b""
            while until_closed and (chunk := connection.recv(65536)):
                received += chunk
        except ConnectionError:
            return b""
        return received


def is_closed(connection):
    """Waits for the other side; returns whether it closes *connection* without sending anything."""
    try:
        return b"" == connection.recv(1)
    except ConnectionError:
        return True


def list_descriptors(pid):
    """Returns the descriptors of a process."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


HEAD = f"POST {PROCEDURE} HTTP/1.1\r\nHost: x\r\n".encode()
REQUESTS = {
    "unknown path": (404, {"path": "/x"}),
    "wrong content type": (415, {"Content_Type": "application/grpc"}),
    "broken protobuf": (400, {"body": b"\xff\xff"}),
    "broken JSON": (400, {"body": b"{", "Content_Type": "application/json"}),
    "a body of 17 KiB": (429, {"body": b"x" * (17 * 1024)}),
    "a body that unpacks to 1 MB": (429, {"body": gzip.compress(b"x" * 10**6), "Content_Encoding": "gzip"}),
    "an unknown encoding": (501, {"body": b"x", "Content_Encoding": "br"}),
    "no event": (400, {"body": b"\x0a\x01x"}),
}
BYTES = {
    "not HTTP": b"\x16\x03\x01" + CANARY.encode() * 10 + b"\r\n\r\n",
    "headers without end": HEAD + b"X: " + b"x" * (3 * MAX_HEAD_BYTES),
    "too large headers": HEAD + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "too many headers": HEAD + b"X: x\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    "too long a path": b"POST /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is not text": b"POST /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body without end": HEAD + b"Content-Length: 10000000\r\n\r\n" + b"x" * (MAX_REQUEST_BYTES + 200_000),
    "chunks without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n" * 40,
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
}


def test_bad_requests_are_rejected_and_a_good_one_is_still_served():
    """Each gets a Connect error or an HTTP status, which repeats nothing of the request."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        for name, (status, request) in REQUESTS.items():
            assert status == post(bridge, **request).status_code, name
        for name, request in BYTES.items():
            received = raw(bridge, request)
            assert received[:12] in {
                b"HTTP/1.1 400",
                b"HTTP/1.1 429",
                b"HTTP/1.1 415",
                b"HTTP/1.1 404",
                b"HTTP/1.1 431",
            }, name
            assert CANARY.encode() not in received, name
        assert 405 == requests.get(bridge.url + PROCEDURE, timeout=60).status_code
        assert 200 == post(bridge).status_code

    assert 1 == len(server.requests)
    assert CANARY not in bridge.written
    assert "" == bridge.written


def test_a_broken_rule_is_named_and_its_value_is_not():
    """The error `invalid_argument` names the field and the rule."""
    report = to_report(TbotStart(run_mode="daemon"))
    report.distinct_id = CANARY
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        answer = post(bridge, report.SerializeToString())

    assert {"code": "invalid_argument", "message": "session_id: must be a random (version 4) UUID"} == answer.json()
    assert not server.requests


def test_fields_of_a_later_tbot_are_ignored():
    """A report with an unknown protobuf field is accepted, and the field is not sent."""
    body, _ = a_report()
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        assert 200 == post(bridge, body + b"\xfa\x7f\x06canary").status_code

    assert 1 == len(server.requests)
    assert "canary" not in str(server.requests)


def test_too_many_waiting_reports_are_rejected_at_once():
    """One report above the bound gets `resource_exhausted` at once, and later reports are accepted again."""
    script = """
import asyncio, sys
from otel_tbot.bridge import batching
batching.BatchSender.__init__.__kwdefaults__["max_pending"] = 3
from otel_tbot.__main__ import main
main()
"""
    gate = threading.Event()
    with OtlpHttpServer(Answer(gate=gate)) as server:
        process = BridgeProcess(environ_of(server), program=(sys.executable, "-c", script))
        with process as bridge:
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(post(bridge))) for _ in range(4)]
            for thread in threads:
                thread.start()
            # The collector has not responded yet, so the first response is for the report that did not have to wait.
            poll_until(lambda: answers, waiting_for="a rejection")
            rejected = answers[0]
            gate.set()
            for thread in threads:
                thread.join()
            assert 200 == post(bridge).status_code

    assert (429, "resource_exhausted") == (rejected.status_code, rejected.json()["code"])
    assert [200, 200, 200] == [answer.status_code for answer in answers[1:]]


def test_a_client_that_leaves_does_not_disturb_the_others():
    """If a client disconnects while its report waits, its event still arrives, so do later ones; no warning."""
    gate = threading.Event()
    body, left = a_report()
    with OtlpHttpServer(Answer(gate=gate)) as server, BridgeProcess(environ_of(server)) as bridge:
        with bridge.connect() as connection:
            head = HEAD + b"Content-Type: application/proto\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            server.wait_for_request()
        gate.set()
        assert 200 == post(bridge).status_code
        bridge.end()

    assert "" == bridge.written
    assert left == server.requests[0].session_ids[0]
    assert 2 == sum(len(request.session_ids) for request in server.requests)


def test_a_thousand_silent_clients_do_not_keep_honest_ones_out():
    """While clients send nothing, half of their headers or half of a body, reports are accepted in bounded memory."""
    allow_open_files(2048)
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        for _ in range(3):
            assert 200 == post(bridge).status_code
        before = bridge.memory_kib()
        beginnings = [b"", HEAD, HEAD + b"Content-Type: application/proto\r\nContent-Length: 100\r\n\r\nx"]
        held = []
        for number in range(1000):
            connection = bridge.connect()
            connection.sendall(beginnings[number % 3])
            held.append(connection)
        for _ in range(20):
            assert 200 == post(bridge).status_code
        after = bridge.memory_kib()

        assert 0 == bridge.end()
        assert 32 * 1024 > after - before
        for connection in held:
            connection.close()
    assert 23 == sum(len(request.session_ids) for request in server.requests)


def test_silent_clients_are_closed():
    """The bridge closes the connection of a client that does not finish its request, in its headers or in its body."""
    in_body = HEAD + b"Content-Type: application/proto\r\nContent-Length: 9\r\n\r\nx"
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        held = [bridge.connect() for _ in range(4)]
        for connection, beginning in zip(held, (b"", HEAD, in_body, b"\r\n"), strict=True):
            connection.sendall(beginning)
        for connection in held:
            assert is_closed(connection)
            connection.close()


def test_at_the_limit_of_connections_the_longest_silent_gives_way():
    """If silent clients hold all connections, the one that has been silent longest is closed for a new client."""
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (276, 276))
from otel_tbot.__main__ import main
main()
"""
    with OtlpHttpServer() as server:
        process = BridgeProcess(environ_of(server), program=(sys.executable, "-c", script))
        with process as bridge:
            held = [bridge.connect() for _ in range(60)]
            assert 200 == post(bridge).status_code
            assert is_closed(held[0])
            for connection in held:
                connection.close()

    assert 1 == len(server.requests)


def test_health_and_readiness_do_not_depend_on_the_collector():
    """/healthz and /readyz succeed while the bridge serves, although the collector is unreachable."""
    with refusing_port() as url, BridgeProcess(PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": url}) as bridge:
        assert 200 == requests.get(f"{bridge.url}/healthz", timeout=60).status_code
        assert 200 == requests.get(f"{bridge.url}/readyz", timeout=60).status_code
        assert 503 == post(bridge).status_code
        assert 200 == requests.get(f"{bridge.url}/readyz", timeout=60).status_code


def test_sigterm_answers_what_it_holds():
    """After SIGTERM a waiting report is answered, new connections are refused, and the status is 0."""
    gate = threading.Event()
    answers = []
    with OtlpHttpServer(Answer(gate=gate)) as server, BridgeProcess(environ_of(server)) as bridge:
        thread = threading.Thread(target=lambda: answers.append(post(bridge).status_code))
        thread.start()
        server.wait_for_request()
        idle, silent = bridge.connect(), bridge.connect()
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.recv(4096)
        bridge.ask_to_end()
        bridge.wait_for_refusal()
        gate.set()
        thread.join()

        assert [200] == answers
        assert 0 == bridge.end()
        idle.close()
        silent.close()
    assert "" == bridge.written


CONNECTS_AT_SIGTERM = """
import asyncio, socket
from otel_tbot.__main__ import main

create_server, set_event, listeners, clients = socket.create_server, asyncio.Event.set, [], []

def record_listener(*arguments, **options):
    listeners.append(create_server(*arguments, **options))
    return listeners[-1]

def connect_and_set(event):
    if listeners[0].fileno() != -1:
        clients.append(socket.create_connection(listeners[0].getsockname()))
    set_event(event)

socket.create_server, asyncio.Event.set = record_listener, connect_and_set
main()
"""
"""Runs the command, and connects to it when it receives SIGTERM, before its event loop runs again."""


def test_a_client_that_connects_at_sigterm_is_no_error():
    """The client is accepted, and nothing is written; a cancelled sock_accept of asyncio would use a closed socket."""
    program = (sys.executable, "-c", CONNECTS_AT_SIGTERM)
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), program=program) as bridge:
        assert 0 == bridge.end()
    assert "" == bridge.written


def test_sigterm_ends_it_in_time_whatever_collector_and_clients_do():
    """With a silent collector and a silent client, reports that wait get `unavailable`, and the status is 0."""
    answers = []
    with silent_server() as server, BridgeProcess(environ_of(server)) as bridge:
        threads = [threading.Thread(target=lambda: answers.append(post(bridge).status_code)) for _ in range(3)]
        for thread in threads:
            thread.start()
        # Not only the first, whose export the collector has: a client that connects after SIGTERM is refused.
        poll_until(lambda: read_count(f"{bridge.url}/metrics", WAITING) == 3, waiting_for="all reports to wait")
        silent = bridge.connect()
        silent.sendall(HEAD)

        assert 0 == bridge.end()
        for thread in threads:
            thread.join()
        silent.close()

    assert [503] * 3 == answers


def test_only_reports_on_the_secret_path_are_taken(tmp_path):
    """With --path-prefix-file, a report on any other path gets 404, and the secret is in no argument."""
    secret = uuid.uuid4().hex
    (tmp_path / "prefix").write_text(f"{secret}\n")
    with OtlpHttpServer() as server:
        with BridgeProcess(environ_of(server), "--path-prefix-file", str(tmp_path / "prefix")) as bridge:
            assert 404 == post(bridge).status_code
            assert 404 == post(bridge, path=f"/{secret[:-1]}x{PROCEDURE}").status_code
            assert 200 == post(bridge, path=f"/{secret}{PROCEDURE}").status_code
            assert 200 == requests.get(f"{bridge.url}/healthz", timeout=60).status_code
            arguments = Path(f"/proc/{bridge.pid}/cmdline").read_bytes()

    assert secret.encode() not in arguments
    assert 1 == len(server.requests)
    assert "" == bridge.written


def run_bridge(*arguments, **environ):
    """Runs a bridge that cannot serve, and returns the finished command."""
    return subprocess.run(
        [LAUNCHER[0], "bridge", "--listen", "127.0.0.1:0", *arguments],
        env={"PATH": os.environ["PATH"], **MEASURED, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


STARTS = {
    "no": (
        {"TELEPORT_ANONYMOUS_TELEMETRY": "0"},
        (),
        "TELEPORT_ANONYMOUS_TELEMETRY: set, but not to a value that means on; unset it",
    ),
    "empty": (
        {"TELEPORT_ANONYMOUS_TELEMETRY": ""},
        (),
        "TELEPORT_ANONYMOUS_TELEMETRY: set, but not to a value that means on",
    ),
    "disabled": (
        {"OTEL_SDK_DISABLED": "true"},
        (),
        "OTEL_SDK_DISABLED: telemetry is off; unset it, or start no bridge",
    ),
    "endpoint": ({"OTEL_EXPORTER_OTLP_ENDPOINT": CANARY}, (), "OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or"),
    "certificate": (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:4318", "OTEL_EXPORTER_OTLP_CERTIFICATE": f"/{CANARY}"},
        (),
        "OTEL_EXPORTER_OTLP_CERTIFICATE: no such file or directory; name a readable PEM file",
    ),
    "address": ({}, ("--listen", CANARY), "--listen: must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080"),
    "port": ({}, ("--listen", "127.0.0.1:65536"), "--listen: must be HOST:PORT"),
    "no brackets": ({}, ("--listen", "::1:80"), "--listen: must be HOST:PORT"),
    "a prefix as a file": ({}, ("--path-prefix-file", CANARY), "--path-prefix-file: cannot be read (No such file or"),
    "no prefix in it": (
        {},
        ("--path-prefix-file", "/dev/null"),
        "--path-prefix-file: /dev/null must contain one line of",
    ),
}


@pytest.mark.parametrize(("environ", "arguments", "rule"), STARTS.values(), ids=STARTS)
def test_a_bridge_that_must_not_or_cannot_run_says_why(environ, arguments, rule):
    """It ends with status 2 and one line with place, rule and remedy, and does not listen."""
    finished = run_bridge(*arguments, **environ)

    assert (2, "") == (finished.returncode, finished.stdout)
    assert finished.stderr.startswith(f"otel-tbot: bridge: {rule}")
    assert 1 == finished.stderr.count("\n")
    assert CANARY not in finished.stderr


def test_a_variable_of_the_tls_library_keeps_no_bridge_from_starting(tmp_path):
    """Without TLS, the file that SSLKEYLOGFILE names is not opened, so a name that cannot be opened changes nothing."""
    path = tmp_path / "keys"
    with OtlpHttpServer() as server:
        for name in (str(path), "/nonexistent/keys"):
            with BridgeProcess(environ_of(server, SSLKEYLOGFILE=name)) as bridge:
                assert 200 == post(bridge).status_code

    assert not path.exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_port_that_is_taken_is_status_1(address):
    """A taken port is not wrong usage: the status is 1, and one line says what is wrong."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address.strip("[]"), 0), family=family) as taken:
        finished = run_bridge("--listen", f"{address}:{taken.getsockname()[1]}")

    assert (1, "") == (finished.returncode, finished.stdout)
    assert "otel-tbot: bridge: cannot listen on " in finished.stderr
    assert "Address already in use" in finished.stderr


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_cannot_be_a_name_is_one_clear_error(host):
    """A label that is empty or too long gets the same line as an address that is not this machine's."""
    finished = run_bridge("--listen", f"{host}:0")

    assert (1, "") == (finished.returncode, finished.stdout)
    assert (
        f"otel-tbot: bridge: cannot listen on {host}:0: not a host name; choose another with --listen\n"
        == finished.stderr
    )


def test_nothing_of_a_client_is_written_even_at_debug():
    """With every logger at DEBUG, the bridge writes neither the address nor a header of any client."""
    script = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from otel_tbot.__main__ import main
main()
"""
    with OtlpHttpServer(Answer(status=503)) as server:
        process = BridgeProcess(environ_of(server), program=(sys.executable, "-c", script))
        with process as bridge:
            with requests.Session() as session:
                session.headers.update(PROTO | {"User-Agent": CANARY, "X-Forwarded-For": CANARY, "Cookie": CANARY})
                url = bridge.url + PROCEDURE
                bodies = (a_report()[0], b"\xff" + CANARY.encode(), b"x" * 20_000)
                statuses = [session.post(url, data=body, timeout=60).status_code for body in bodies]
                session.post(f"{bridge.url}/{CANARY}", timeout=60)
            with bridge.connect() as connection:
                local = connection.getsockname()
                connection.sendall(CANARY.encode() + b"\r\n\r\n")
                connection.recv(4096)
            bridge.end()

    assert [503, 400, 429] == statuses
    assert "DEBUG" in bridge.written
    assert CANARY not in bridge.written
    assert str(local[1]) not in bridge.written


STOPS_METRICS_SLOWLY = (
    sys.executable,
    "-c",
    """
from opentelemetry.sdk.metrics import MeterProvider
shutdown = MeterProvider.shutdown
MeterProvider.shutdown = lambda provider, **_: shutdown(provider, timeout_millis=60_000)
from otel_tbot.__main__ import main
main()
""",
)
"""Runs the command with more than a second for the last export of its metrics."""


def test_its_own_metrics_are_exported_only_if_asked_for():
    """OTEL_METRICS_EXPORTER=otlp exports counts and durations on the bridge's own resource, not with the events."""
    report = to_report(TbotStart(run_mode="daemon"))
    report.distinct_id = CANARY
    with OtlpHttpServer() as server, OtlpHttpServer() as metrics:
        environ = environ_of(server) | {
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{metrics.url}/v1/metrics",
        }
        with BridgeProcess(environ, program=STOPS_METRICS_SLOWLY) as bridge:
            for _ in range(3):
                post(bridge)
            post(bridge, report.SerializeToString())
            post(bridge, b"\xff")
            bridge.end()
        sent = to_fields(metrics.requests[-1].message)
    (group,) = sent["resource_metrics"]
    (scope,) = group["scope_metrics"]
    points = {
        metric["name"]: next(metric[kind]["data_points"] for kind in ("sum", "gauge", "histogram") if kind in metric)
        for metric in scope["metrics"]
    }
    resource = {a["key"]: a["value"].get("string_value") for a in group["resource"]["attributes"]}

    assert "otel-tbot-bridge" == resource["service.name"]
    assert __version__ == resource["service.version"]
    assert {
        *("otel_tbot.bridge.reports.received", "otel_tbot.bridge.reports.accepted"),
        *(
            "otel_tbot.bridge.reports.rejected",
            "otel_tbot.bridge.reports.waiting",
            "otel_tbot.bridge.export.duration",
        ),
    } == points.keys()
    assert "5" == points["otel_tbot.bridge.reports.received"][0]["as_int"]
    assert "3" == points["otel_tbot.bridge.reports.accepted"][0]["as_int"]
    (rejected,) = points["otel_tbot.bridge.reports.rejected"]
    assert ("2", "invalid_argument") == (rejected["as_int"], rejected["attributes"][0]["value"]["string_value"])
    assert "3" == points["otel_tbot.bridge.export.duration"][0]["count"]
    assert CANARY not in str(sent)
    assert {"/v1/logs"} == {request.path for request in server.requests}
    assert {"/v1/metrics"} == {request.path for request in metrics.requests}


@pytest.mark.parametrize("value", ["none", "", "unheard-of", " , none"])
def test_metrics_that_cannot_be_sent_do_not_delay_events(value):
    """One line names an exporter that is not installed; with `none` or an empty value, nothing is written."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server, OTEL_METRICS_EXPORTER=value)) as bridge:
        assert 200 == post(bridge).status_code
    rule = "OTEL_METRICS_EXPORTER: no exporter of that name is installed; use otlp, prometheus or none\n"
    expected = rule if value == "unheard-of" else ""

    assert expected == bridge.written
    assert {"/v1/logs"} == {request.path for request in server.requests}


@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_it_is_an_application_for_other_servers(lifespan):
    """uvicorn serves `otel_tbot.bridge:app`, with and without a lifespan."""
    with OtlpHttpServer() as server:
        script = f"""
import asyncio, signal, socket, uvicorn
signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again at its end
listener = socket.create_server(("127.0.0.1", 0))
config = uvicorn.Config("otel_tbot.bridge:app", lifespan={lifespan!r}, log_level="error")
print(f"listening on http://127.0.0.1:{{listener.getsockname()[1]}}", flush=True)
asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
"""
        process = BridgeProcess(environ_of(server), program=(sys.executable, "-c", script))
        with process as bridge:
            assert 200 == post(bridge).status_code
            assert 200 == requests.get(f"{bridge.url}/readyz", timeout=60).status_code
            bridge.ask_to_end()
            bridge.end()

    assert 1 == len(server.requests)


def test_an_application_that_must_not_run_fails_its_lifespan():
    """The other server gets the reason at startup."""
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    asyncio.run(Bridge({"OTEL_SDK_DISABLED": "true"})({"type": "lifespan"}, receive, send))

    assert [
        {
            "type": "lifespan.startup.failed",
            "message": "OTEL_SDK_DISABLED: telemetry is off; unset it, or start no bridge",
        }
    ] == sent
    with pytest.raises(BridgeError):
        Bridge({"TELEPORT_ANONYMOUS_TELEMETRY": "no"}).start()


def test_after_consent_is_withdrawn_nothing_is_sent():
    """Consent is checked before each export: the outcome is `off`, and no event arrives."""
    environ = {}

    async def run(server):
        bridge = Bridge(environ)
        environ.update(environ_of(server))
        bridge.start()
        before = await bridge.submit(TbotStart(run_mode="daemon"), None)
        environ["OTEL_SDK_DISABLED"] = "true"
        after = await bridge.submit(TbotStart(run_mode="daemon"), None)
        await bridge.stop()
        return before.value, after.value

    with OtlpHttpServer() as server:
        assert ("accepted", "off") == asyncio.run(run(server))
        assert 1 == len(server.requests)


def test_a_connection_serves_many_reports_and_pipelined_ones():
    """Each of several requests on one connection is answered, even if they are sent at once."""
    body, _ = a_report()
    request = HEAD + b"Content-Type: application/proto\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        with bridge.connect() as connection:
            connection.sendall(request * 3)
            received = b""
            while received.count(b"HTTP/1.1 200") < 3:
                received += connection.recv(65536)

    assert 3 == sum(len(r.session_ids) for r in server.requests)


def test_a_pipelined_request_gets_its_permission_too():
    """A client that asks whether to send its second body is told so once its first response is written."""
    body, _ = a_report()
    head = HEAD + b"Content-Type: application/proto\r\nContent-Length: %d\r\n" % len(body)
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        with bridge.connect() as connection:
            connection.sendall(head + b"\r\n" + body + head + b"Expect: 100-continue\r\n\r\n")
            received = b""
            while not received.endswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
                piece = connection.recv(65536)
                assert piece
                received += piece
            connection.sendall(body)

            assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    assert received.startswith(b"HTTP/1.1 200")


def test_an_error_behind_a_question_for_permission_is_the_last_response():
    """A client that asks whether to send its body, and breaks it in the same packet, gets one response; no warning."""
    request = HEAD + b"Content-Type: application/proto\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nx"
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        with bridge.connect() as connection:
            connection.sendall(request)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        bridge.end()

    assert 1 == received.count(b"HTTP/1.1")
    assert received.startswith(b"HTTP/1.1 400")
    assert "" == bridge.written


STOPS_SLOWLY = (
    sys.executable,
    "-c",
    """
from otel_tbot.bridge import connection
connection.STOPPING_SECONDS = 60
from otel_tbot.__main__ import main
main()
""",
)
"""Runs the command with more than a second for the rest of a request after SIGTERM: this process may pause so long."""


def test_a_half_sent_report_still_comes_after_sigterm():
    """A report whose headers arrived before SIGTERM and whose body arrives after it is accepted."""
    body, session_id = a_report()
    head = HEAD + b"Content-Type: application/proto\r\nContent-Length: %d\r\n\r\n" % len(body)
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), program=STOPS_SLOWLY) as bridge:
        with bridge.connect() as connection:
            connection.sendall(head)
            post(bridge)
            bridge.ask_to_end()
            bridge.wait_for_refusal()
            connection.sendall(body)

            assert connection.recv(4096).startswith(b"HTTP/1.1 200")

    assert session_id in [s for r in server.requests for s in r.session_ids]


@pytest.mark.parametrize("connected", [1, 50])
def test_a_report_of_a_client_that_has_connected_still_comes_after_sigterm(connected):
    """A client that connected before SIGTERM can still send its report, because tbot does not try again."""
    body, _ = a_report()
    head = HEAD + b"Content-Type: application/proto\r\nContent-Length: %d\r\n\r\n" % len(body)
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), program=STOPS_SLOWLY) as bridge:
        with ExitStack() as stack:
            connections = [stack.enter_context(bridge.connect()) for _ in range(connected)]
            bridge.ask_to_end()
            for connection in connections:
                connection.sendall(head + body)

            assert [b"HTTP/1.1 200"] * connected == [connection.recv(4096)[:12] for connection in connections]
        assert 0 == bridge.end()


def test_time_is_that_of_the_receipt_in_whole_seconds():
    """The report's own clock is not read."""
    report = to_report(TbotStart(run_mode="daemon"))
    report.timestamp.FromSeconds(1)
    began = int(time.time())
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        post(bridge, report.SerializeToString())
    record = server.requests[0].message.resource_logs[0].scope_logs[0].log_records[0]

    assert 0 == record.time_unix_nano % 1_000_000_000
    assert began <= record.time_unix_nano // 1_000_000_000 <= time.time()
    assert json.dumps(record.observed_time_unix_nano) == json.dumps(record.time_unix_nano)
