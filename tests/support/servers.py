"""Starts real servers on free loopback ports, each with one fault or none."""

import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.support.polling import poll_until

_HANG_SECONDS = 120.0


@dataclass
class Received:
    """One OTLP request: path (or grpc method), headers (or metadata) in lower case, message, and HTTP's body."""

    path: str
    headers: dict[str, str]
    message: Message
    body: bytes = b""

    @property
    def session_ids(self) -> list[str]:
        """The session ids in it."""
        text = str(self.message).split('key: "session.id"')[1:]
        return [part.split('string_value: "')[1].split('"')[0] for part in text]


@dataclass
class Answer:
    """An HTTP response: status, headers and body, sent once `gate` is set, if there is a gate."""

    status: int = 200
    content_type: str | None = "application/x-protobuf"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None


class OtlpHttpServer:
    """An OTLP/HTTP receiver that keeps its requests and sends one response; over TLS with *tls*, as localhost."""

    def __init__(self, answer: Answer | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer or Answer()
        self.requests: list[Received] = []
        self.has_come = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                packed = self.rfile.read(int(self.headers["Content-Length"]))
                unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}
                body = unpack.get(self.headers.get("Content-Encoding", ""), bytes)(packed)
                kinds = {"traces": ExportTraceServiceRequest, "metrics": ExportMetricsServiceRequest}
                kind = kinds.get(self.path.rpartition("/")[2], ExportLogsServiceRequest)
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append(Received(self.path, headers, kind.FromString(body), packed))
                server.has_come.set()
                if server.answer.gate is not None:
                    server.answer.gate.wait(_HANG_SECONDS)
                self.answer(server.answer)

            do_GET = do_POST

            def answer(self, answer: Answer) -> None:
                self.send_response(answer.status)
                if answer.content_type is not None:
                    self.send_header("Content-Type", answer.content_type)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    pass  # the client may disconnect

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            # Without the handshake in accept(), which would keep the server's one thread.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f"https://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.answer.gate is not None:
            self.answer.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for_request(self) -> Received:
        """Waits for the first request and returns it."""
        poll_until(lambda: self.requests, waiting_for="an OTLP request")
        return self.requests[0]


class OtlpGrpcServer:
    """An OTLP/gRPC receiver that keeps its requests; it rejects some, fails with a status, or is late, if told to."""

    def __init__(
        self,
        *,
        rejected: int = 0,
        code: grpc.StatusCode | None = None,
        gate: threading.Event | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.requests: list[Received] = []
        self.deadlines: list[float | None] = []
        self.peers: list[str] = []
        server = self

        def answer(request: Message, context: grpc.ServicerContext, path: str, response: Any) -> Any:
            headers = {key.lower(): str(value) for key, value in context.invocation_metadata()}
            server.deadlines.append(context.time_remaining())
            server.peers.append(context.peer())
            server.requests.append(Received(path, headers, request))
            if gate is not None:
                gate.wait(_HANG_SECONDS)
            if code is not None:
                context.abort(code, "canary")
            return response

        class Logs(LogsServiceServicer):
            def Export(self, request: Message, context: grpc.ServicerContext) -> Any:
                response = ExportLogsServiceResponse()
                response.partial_success.rejected_log_records = rejected
                return answer(request, context, "logs", response)

        class Traces(TraceServiceServicer):
            def Export(self, request: Message, context: grpc.ServicerContext) -> Any:
                response = ExportTraceServiceResponse()
                response.partial_success.rejected_spans = rejected
                return answer(request, context, "traces", response)

        self._gate = gate
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_LogsServiceServicer_to_server(Logs(), self._server)
        add_TraceServiceServicer_to_server(Traces(), self._server)
        if credentials is None:
            self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            self.url = f"https://localhost:{self._server.add_secure_port('127.0.0.1:0', credentials)}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._gate is not None:
            self._gate.set()
        self._server.stop(None).wait()


class _Raw:
    """A TCP server that serves each connection in its own thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._serve = serve
        self.connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._run_one, args=(connection,), daemon=True).start()

    def _run_one(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            pass  # the client may disconnect

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close_connections(self) -> None:
        for connection in self.connections:
            connection.close()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[_Raw]:
    """A server that calls *serve* with each connection."""
    server = _Raw(serve)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        # First, so that a connection that was just accepted is closed too: unclosed, it would fail a later test.
        thread.join()
        server.close_connections()


def silent_server():
    """A server that accepts and never sends anything."""
    return raw_server(lambda _: None)


def closing_server():
    """A server that accepts and closes at once."""
    return raw_server(lambda connection: connection.shutdown(socket.SHUT_RDWR))


def garbage_server():
    """A server that accepts and sends something that is not HTTP."""
    return raw_server(lambda connection: connection.sendall(b"\x00\xffcanary\r\n" * 100))


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100000\r\n\r\n"


def cutting_server():
    """A server that sends the headers of a success and the first byte of its body, and closes."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(_HEAD + b"x")
        connection.shutdown(socket.SHUT_RDWR)

    return raw_server(serve)


@contextmanager
def trickling_server(head: bytes = _HEAD) -> Iterator[_Raw]:
    """A server that sends *head* and then a byte at a time, without end."""
    end = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while not end.wait(0.02):
            connection.sendall(b"x")

    with raw_server(serve) as server:
        yield server
        end.set()


@contextmanager
def refusing_port() -> Iterator[str]:
    """The URL of a port that no process listens on, nor can listen on meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
