"""Proves promise 3: starts are unlinkable. Nothing that one start leaves or receives occurs in the next one."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import trustme
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.proof.recording import RecordingProxy
from tests.support.checkout import ROOT
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer

KINDS = {"log": ExportLogsServiceRequest, "span": ExportTraceServiceRequest}
OFFERED = {
    "Set-Cookie": "start=canary; Max-Age=31536000; Path=/",
    "ETag": '"canary"',
    "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
    "Cache-Control": "max-age=31536000",
    "Alt-Svc": 'h2="canary.test:443"; ma=31536000',
    "Strict-Transport-Security": "max-age=31536000",
    "X-Canary": "canary",
}
RETURNED = ("cookie", "if-none-match", "if-modified-since", "x-canary")


def start_many(url, signal, protocol, count, folder, *more):
    """Sends *count* events from one process, and checks its outcomes and that it wrote no file."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tests.proof.starts", url, signal, protocol, str(count), *more]
    finished = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=550)
    assert 0 == finished.returncode, finished.stderr
    result = json.loads(finished.stdout)
    assert {"accepted": count} == result["outcomes"]
    assert [] == result["written"]
    assert [] == list(folder.iterdir())


def list_ids(requests, signal):
    """Returns every identifier of every request: session ids, and trace and span ids, which the session id decides."""
    ids = []
    for request in requests:
        message = KINDS[signal].FromString(request.body)
        groups = message.resource_logs if signal == "log" else message.resource_spans
        for scope in groups[0].scope_logs if signal == "log" else groups[0].scope_spans:
            for record in scope.log_records if signal == "log" else scope.spans:
                (session_id,) = (a.value.string_value for a in record.attributes if a.key == "session.id")
                others = [value.hex() for value in (record.trace_id, record.span_id) if value]
                digits = session_id.replace("-", "")
                assert others == ([] if signal == "log" else [digits, digits[16:]])
                ids += [session_id, *others]
    return ids


@pytest.mark.promise("unlinkable.ids")
@pytest.mark.parametrize(
    ("signal", "protocol", "count"),
    [("log", "http/protobuf", 4500), ("span", "http/protobuf", 4500), ("log", "grpc", 600), ("span", "grpc", 600)],
)
def test_no_identifier_occurs_twice_and_no_connection_is_used_twice(signal, protocol, count, tmp_path, cases):
    """Of thousands of starts on one host, no two share an id or a connection, and none writes a file."""
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer(Answer(headers=OFFERED)) as server:
        with RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
            start_many(proxy.url, signal, protocol, count, tmp_path)
            requests = proxy.recording.requests()
    ids = list_ids(requests, signal)
    occurrences = Counter(ids)

    assert count == len(proxy.recording.connections) == len(requests)
    assert count * (1 if signal == "log" else 3) == len(ids)
    assert [] == [text for text, number in occurrences.items() if number > 1]
    assert 1 == len({tuple(name for name, _ in request.headers) for request in requests})
    assert [] == [name for request in requests for name, _ in request.headers if name in RETURNED]
    assert b"canary" not in proxy.recording.raw()
    cases.add(count)


@pytest.mark.promise("unlinkable.carried")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_no_tls_session_and_no_cookie_is_used_by_the_next_start(protocol, tmp_path, cases):
    """A server that hands out session tickets, cookies and ETags gets none of them back."""
    count = 150
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.num_tickets = 4
    if protocol == "grpc":
        context.set_alpn_protocols(["h2"])
    certificate = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(certificate)
    home = tmp_path / "home"
    home.mkdir()
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer(Answer(headers=OFFERED)) as server:
        with RecordingProxy(int(server.url.rpartition(":")[2]), context=context) as proxy:
            start_many(proxy.url, "log", protocol, count, home, str(certificate))
            requests = proxy.recording.requests()

    assert [False] * count == proxy.are_resumed
    assert count == len(requests)
    assert [] == [name for request in requests for name, _ in request.headers if name in RETURNED]
    cases.add(count)


@pytest.mark.promise("unlinkable.carried")
def test_a_resumed_session_is_seen(tmp_path):
    """The recording shows a client that resumes its session, so it would show ours."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    with OtlpHttpServer() as server, RecordingProxy(int(server.url.rpartition(":")[2]), context=context) as proxy:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", proxy.port)) as plain:
                with client.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured:
                    secured.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    assert secured.recv(1)
                    session = secured.session

    assert [False, True] == proxy.are_resumed
    assert list(tmp_path.iterdir()) == []


def list_files(*folders):
    """Returns every file below *folders*, with its size and time of change."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in Path(folder).rglob("*")
        if not path.is_dir()
    }


@pytest.mark.promise("unlinkable.disk")
@pytest.mark.parametrize("way", ["run", "emit"])
def test_starts_as_processes_leave_no_file(way, reporter, tmp_path, cases):
    """Processes that start one after the other write nothing to the home, temporary and package folders."""
    count = 25
    home = tmp_path / "home"
    home.mkdir()
    package = Path(sys.modules["otel_tbot"].__file__).parent
    with OtlpHttpServer(Answer(headers=OFFERED)) as server, RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
        environ |= {**CONSENT, "OTEL_EXPORTER_OTLP_ENDPOINT": proxy.url, "OTEL_TBOT_TIMEOUT": "60000"}
        command = [reporter, "-oneshot"] if way == "run" else [LAUNCHER[0], "emit", "--oneshot"]
        launch = Launch(environ)
        before = None
        for number in range(count + 1):
            if number == 1:
                # The first start may write bytecode.
                before = list_files(home, package)
            finished = launch.run(command, launcher=LAUNCHER if way == "run" else (), cwd=home)
            assert 0 == finished.returncode, finished.stderr
            assert finished.stdout.startswith("ok " if way == "run" else "the collector accepted")
            launch.wait_for_end()
        requests = proxy.recording.requests()
    ids = list_ids(requests, "log")

    assert before == list_files(home, package)
    assert {} == list_files(home)
    assert count + 1 == len(requests) == len(proxy.recording.connections) == len(set(ids)) == len(ids)
    assert [] == [name for request in requests for name, _ in request.headers if name in RETURNED]
    cases.add(count + 1)
