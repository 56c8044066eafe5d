"""Proves a part of promise 5: clients that pipeline, do not read or stall take bounded memory, and are disconnected."""

import socket
from contextlib import ExitStack

import pytest

from tests.proof.test_hostile import build_report, send_good
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.polling import poll_until
from tests.support.servers import OtlpHttpServer

CONNECTIONS = 60
MAX_GROWTH_KIB = 48 * 1024
MAX_SENT_BYTES = 64 * 1024 * 1024
"""A client that may send more than this is not limited."""

LAST_SECONDS = 120
"""When every client must be disconnected; the documented limits are much shorter."""


def to_request(method, path, body=b"", *, length=None):
    """Returns a request as bytes; the connection stays open after it."""
    lines = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
    return f"{lines}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


# The bytes that each client sends first, and the bytes that it repeats as long as the bridge reads.
PRESSURES = {
    "pipelined requests to a wrong path": (b"", to_request("GET", "/")),
    "pipelined probes": (b"", to_request("GET", "/healthz")),
    "pipelined reports": (b"", to_request("POST", PROCEDURE, build_report())),
    "pipelined large bodies to a wrong path": (b"", to_request("POST", "/x", b"x" * 16_000)),
    "pipelined invalid reports": (b"", to_request("POST", PROCEDURE, b"\xff" * 1000)),
    "half of a request's headers": (b"POST / HTTP/1.1\r\nHost: x\r\nX-Half: ", b""),
    "half of a report": (to_request("POST", PROCEDURE, build_report()[:5], length=100), b""),
    "a large report that is announced and not sent": (to_request("POST", PROCEDURE, length=2**40), b""),
}


class Client:
    """A connection that sends as much as the bridge reads, and reads nothing itself."""

    def __init__(self, port, first, repeated):
        self._socket = socket.socket()
        # Small, so that unread responses soon fill it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(first)
        self._socket.setblocking(False)
        self._chunk = repeated * max(1, 65_536 // len(repeated)) if repeated else b""
        self._offset = 0
        self.sent = len(first)
        self.is_closed = False

    def push(self):
        """Sends once, or looks whether the bridge has disconnected."""
        try:
            if self._chunk:
                count = self._socket.send(self._chunk[self._offset :])
                self._offset = (self._offset + count) % len(self._chunk)
                self.sent += count
            elif self._socket.recv(4096) == b"":
                self.is_closed = True
        except BlockingIOError:
            pass  # the bridge does not read now
        except OSError:
            self.is_closed = True

    def close(self):
        """Closes the connection."""
        self._socket.close()


@pytest.mark.promise("hostile.pressure")
@pytest.mark.parametrize("name", PRESSURES)
def test_clients_that_take_without_reading_are_bounded_and_disconnected(name, cases):
    """The bridge stays small, answers valid reports, and disconnects each of these clients."""
    with OtlpHttpServer() as server, ExitStack() as stack:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "30000"}
        bridge = stack.enter_context(BridgeProcess(environ, is_measured=False))
        assert 200 == send_good(bridge.port)
        before_kib = bridge.memory_kib()
        clients = [Client(bridge.port, *PRESSURES[name]) for _ in range(CONNECTIONS)]
        for client in clients:
            stack.callback(client.close)
        growths = []
        valid = []

        def are_closed():
            for client in clients:
                if not client.is_closed:
                    client.push()
            growths.append(bridge.memory_kib() - before_kib)
            assert growths[-1] < MAX_GROWTH_KIB
            assert max(client.sent for client in clients) < MAX_SENT_BYTES
            if len(growths) % 200 == 1:
                valid.append(send_good(bridge.port))
            return all(client.is_closed for client in clients)

        poll_until(are_closed, waiting_for="every client to be disconnected", deadline_seconds=LAST_SECONDS)
        valid.append(send_good(bridge.port))

    assert {200} == set(valid)
    cases.add(CONNECTIONS)
