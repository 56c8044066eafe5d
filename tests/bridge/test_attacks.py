"""Checks that under each attack the bridge's memory fits its deployment, and honest reports are answered meanwhile.

Each test prints the figures of docs/reference/bridge.md: `pytest -rP` shows them.
"""

import contextlib
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import pytest

from otel_tbot.bridge.batching import MAX_PENDING
from otel_tbot.bridge.connection import MAX_UNANSWERED, READ_SECONDS, WRITE_SECONDS
from otel_tbot.bridge.server import (
    MAX_CONNECTIONS,
    MAX_LARGE_TLS_CONNECTIONS,
    MAX_TLS_CONNECTIONS,
)
from otel_tbot.tbot.http_request import MAX_HEAD_BYTES, MAX_REQUEST_BYTES
from tests.bridge.test_bridge import HEAD, a_report, environ_of, list_descriptors
from tests.support.bridge_process import PROCEDURE, BridgeProcess, allow_open_files
from tests.support.polling import poll_until
from tests.support.servers import OtlpHttpServer, silent_server

MEMORY_KIB = 192 * 1024
"""The limit of the container in deploy/kubernetes.yaml."""

HONEST_SECONDS = 10.0
"""tbot waits so long."""

SECRET = "0123456789abcdef"  # noqa: S105  # of a test
ALLOWANCE_SECONDS = 20.0
"""For pauses of a busy machine. Without the limit that is tested, a client would have 620 seconds."""

PACKET_BYTES = 64 * 1024
LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""
OWN_DESCRIPTORS = 32
"""More than the bridge has without clients."""


class Target:
    """A bridge under attack, on HTTP or on HTTPS, mounted under a path prefix."""

    def __init__(self, process, context):
        self.process = process
        self._context = context
        self.connections = []
        self.report_seconds = []

    def connect(self):
        """Returns a connection, which is closed at the end."""
        connection = self.process.connect()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_hostname="127.0.0.1")
        self.connections.append(connection)
        return connection

    def send(self, data):
        """Sends *data* on a new connection; the bridge may have closed it before the end."""
        connection = self.connect()
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return connection

    def report(self):
        """Reports a start, and keeps the seconds until it was accepted."""
        began = time.monotonic()
        connection = self.connect()
        body, _ = a_report()
        head = HEAD.replace(PROCEDURE.encode(), f"/{SECRET}{PROCEDURE}".encode())
        head += b"Content-Type: application/proto\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.close()
        self.report_seconds.append(time.monotonic() - began)


@contextlib.contextmanager
def targeted(environ, tmp_path, tls, *options, is_tls=True, **how):
    """Starts a bridge behind a path prefix; at the end the connections to it are closed."""
    folder, context = tls
    (tmp_path / "prefix").write_text(SECRET)
    options = ["--path-prefix-file", str(tmp_path / "prefix"), *options]
    if is_tls:
        options += ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
    with BridgeProcess(environ, *options, **how) as process:
        target = Target(process, context if is_tls else None)
        try:
            yield target
        finally:
            for connection in target.connections:
                connection.close()


@contextlib.contextmanager
def attacked(tmp_path, tls, *, is_tls, **how):
    """Starts a bridge; at the end, asserts that its memory was bounded, and that it answered reports meanwhile."""
    allow_open_files(MAX_CONNECTIONS + 1024)
    with (
        OtlpHttpServer() as server,
        targeted(environ_of(server), tmp_path, tls, is_tls=is_tls, is_measured=False, **how) as target,
    ):
        target.report()
        sizes, is_over = [], threading.Event()

        def watch():
            while not is_over.wait(0.1):
                sizes.append(target.process.memory_kib())
                target.report()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield target
            target.report()
            sizes.append(target.process.memory_kib())
        finally:
            is_over.set()
            thread.join()
        print(f"FIGURES {max(sizes) // 1024} MiB, {max(target.report_seconds):.1f} s")  # noqa: T201  # for the page
        assert max(sizes) < MEMORY_KIB
        assert max(target.report_seconds) < HONEST_SECONDS
        assert len(target.report_seconds) == sum(len(request.session_ids) for request in server.requests)


def posting(size, *, path=f"/{SECRET}{PROCEDURE}", sent=None):
    """A request with a body of *size* bytes, of which *sent* are there."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n" % path.encode()
    return head + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size if sent is None else sent)


MANY = {
    "silent": b"",
    "idle": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "64 KiB to a wrong path": posting(64 * 1024, path="/x"),
    "the largest body to a wrong path": posting(MAX_REQUEST_BYTES, path="/x"),
    "a body without its last byte": posting(MAX_REQUEST_BYTES, sent=MAX_REQUEST_BYTES - 1),
    "a header without end": HEAD + b"X: " + b"x" * (MAX_HEAD_BYTES - 1024),
    "many headers": HEAD + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 200) for number in range(60)),
    "a long content type and a body": posting(MAX_REQUEST_BYTES, sent=MAX_REQUEST_BYTES - 1).replace(
        b"application/proto", b"application/proto;" + b"x" * (MAX_HEAD_BYTES - 1024)
    ),
}


@pytest.mark.parametrize("is_tls", [False, True], ids=["HTTP", "HTTPS"])
@pytest.mark.parametrize("data", MANY.values(), ids=MANY)
def test_as_many_connections_as_allowed_fit_the_memory(data, is_tls, tmp_path, tls):
    """Each holds as much as it can, and there are never more than allowed."""
    limit = MAX_TLS_CONNECTIONS if is_tls else MAX_CONNECTIONS
    with attacked(tmp_path, tls, is_tls=is_tls) as target:
        for _ in range(limit + 64):
            target.send(data)
        target.report()
        assert len(list_descriptors(target.process.pid)) <= limit + OWN_DESCRIPTORS
        if data == MANY["idle"]:
            assert len(list_descriptors(target.process.pid)) >= limit


LARGE_BUFFERS = """
from asyncio.sslproto import SSLProtocol
create = SSLProtocol.__init__
SSLProtocol.__init__ = lambda self, *arguments, **named: create(self, *arguments, **named)
from otel_tbot.__main__ import main
main()
"""
"""Runs the command in a Python whose buffers for TLS the bridge cannot make smaller."""


@pytest.mark.parametrize("name", ["silent", "a long content type and a body"])
def test_with_large_buffers_for_tls_fewer_connections_are_allowed(name, tmp_path, tls):
    """They fit the memory too."""
    program = (sys.executable, "-c", LARGE_BUFFERS)
    with attacked(tmp_path, tls, is_tls=True, program=program) as target:
        for _ in range(MAX_LARGE_TLS_CONNECTIONS + 64):
            target.send(MANY[name])
        target.report()
        assert len(list_descriptors(target.process.pid)) <= MAX_LARGE_TLS_CONNECTIONS + OWN_DESCRIPTORS


@pytest.mark.parametrize("is_tls", [False, True], ids=["HTTP", "HTTPS"])
def test_all_attacks_together_fit_the_memory(is_tls, tmp_path, tls):
    """As many reports wait for a silent collector as may, and every other connection holds as much as it can."""
    allow_open_files(MAX_CONNECTIONS + 1024)
    sizes = []
    report, _ = a_report()
    with silent_server() as server, targeted(environ_of(server), tmp_path, tls, is_tls=is_tls) as target:
        for _ in range(MAX_PENDING // MAX_UNANSWERED):
            target.send((posting(len(report), sent=0) + report) * MAX_UNANSWERED)
        for number in range((MAX_TLS_CONNECTIONS if is_tls else MAX_CONNECTIONS) - MAX_PENDING // MAX_UNANSWERED):
            target.send(MANY["a long content type and a body"])
            if number % 64 == 0:
                sizes.append(target.process.memory_kib())
        assert target.send(MANY["idle"]).recv(4096).startswith(b"HTTP/1.1 200")
        sizes.append(target.process.memory_kib())
    print(f"FIGURES {max(sizes) // 1024} MiB")  # noqa: T201  # for the page

    assert max(sizes) < MEMORY_KIB


def is_gone(connection):
    """Whether the other side has closed *connection*; what it sent is read."""
    connection.setblocking(False)
    try:
        return not connection.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


@pytest.mark.parametrize("is_tls", [False, True], ids=["HTTP", "HTTPS"])
def test_a_client_that_pipelines_and_does_not_read_is_closed(is_tls, tmp_path, tls):
    """8 requests are answered, and then the connection ends, again and again."""
    with attacked(tmp_path, tls, is_tls=is_tls) as target:
        for _ in range(100):
            connection = target.connect()
            with contextlib.suppress(OSError):
                while True:  # until the bridge closes the connection
                    connection.send(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        answered = target.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_UNANSWERED + 5))
        received = b""
        while piece := answered.recv(65536):
            received += piece

        assert MAX_UNANSWERED == received.count(b"HTTP/1.1 404")
        assert 1 == received.count(b"connection: close")


def read_queues(port):
    """The bytes that the system holds for each connection to *port*, on its side: not yet sent, and not yet read."""
    queues = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queue, *_ = line.split()
        if local.endswith(f":{port:04X}") and state != LISTENS:
            queues.append(tuple(int(size, 16) for size in queue.split(":")))
    return queues


@pytest.mark.parametrize("is_tls", [False, True], ids=["HTTP", "HTTPS"])
def test_a_client_that_asks_and_does_not_read_is_closed_in_time(is_tls, tmp_path, tls):
    """Once its buffers are full it has 10 seconds, and on the bridge's side these are small."""
    queues = []
    with attacked(tmp_path, tls, is_tls=is_tls) as target:
        connections = [target.connect() for _ in range(40)]
        for connection in connections:
            connection.setblocking(False)
        full_at = {}

        def ask():
            for connection in tuple(connections):
                try:
                    connection.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                except (BlockingIOError, ssl.SSLWantWriteError):
                    full_at.setdefault(connection, time.monotonic())
                except OSError:
                    late = time.monotonic() - full_at.get(connection, time.monotonic())
                    assert late < WRITE_SECONDS + ALLOWANCE_SECONDS
                    connections.remove(connection)
            queues.extend(read_queues(target.process.port))
            return not connections

        poll_until(ask, waiting_for="the end of every connection", deadline_seconds=60)

    assert 0 < max(sent for sent, _ in queues) <= PACKET_BYTES
    assert max(received for _, received in queues) <= PACKET_BYTES


BEGINNINGS = {
    "nothing": (b"", b"\r\n"),
    "headers": (HEAD, b"x"),
    "a body": (posting(100, sent=1), b"x"),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1"),
    "a TLS handshake": (b"\x16\x03\x01", b"\x02"),
}


@pytest.mark.parametrize("is_tls", [False, True], ids=["HTTP", "HTTPS"])
def test_a_client_that_trickles_is_closed_in_time(is_tls, tmp_path, tls):
    """Bytes that come one by one do not extend the 10 seconds for a request or a handshake."""
    with attacked(tmp_path, tls, is_tls=is_tls) as target:
        began = time.monotonic()
        open_connections = {}
        for name, (beginning, _) in BEGINNINGS.items():
            connection = target.process.connect() if name == "a TLS handshake" else target.connect()
            target.connections.append(connection)
            connection.sendall(beginning)
            open_connections[name] = connection

        def trickle():
            for name, connection in tuple(open_connections.items()):
                with contextlib.suppress(OSError):
                    connection.send(BEGINNINGS[name][1])
                if is_gone(connection):
                    del open_connections[name]
            return not open_connections

        poll_until(trickle, waiting_for="the end of every connection", deadline_seconds=60)
        assert time.monotonic() - began < READ_SECONDS + ALLOWANCE_SECONDS


def test_a_response_reaches_a_client_that_is_still_sending():
    """A body above the limit is answered before the connection is closed, and the client can read the response."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as process:
        for _ in range(20):
            with process.connect() as connection:
                connection.sendall(posting(100_000, path=PROCEDURE))
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(4096).startswith(b"HTTP/1.1 429")
