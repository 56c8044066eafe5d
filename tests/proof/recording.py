"""Records the bytes that a sender puts on the wire, by a proxy in front of a real receiver, and decodes them."""

import gzip
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import hpack

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9
_PADDED, _PRIORITY, _END_HEADERS = 0x8, 0x20, 0x4


@dataclass
class Recording:
    """The bytes of each connection, in the order in which the connections began."""

    connections: list[bytearray] = field(default_factory=list)

    def raw(self) -> bytes:
        """Returns all bytes as they were received."""
        return b"\0".join(map(bytes, self.connections))

    def requests(self) -> "list[Request]":
        """Returns every request, decompressed."""
        return [request for connection in self.connections for request in parse(bytes(connection))]

    def texts(self) -> list[bytes]:
        """Returns all bytes as they were received, and all headers and decompressed bodies."""
        unpacked = [
            part
            for request in self.requests()
            for part in (*(f"{name}: {value}".encode() for name, value in request.headers), request.body)
        ]
        return [self.raw(), *unpacked]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its headers in order, with the request line of HTTP/1.1 as ":line", and its decompressed body."""

    headers: Sequence[tuple[str, str]]
    body: bytes

    def named(self) -> Mapping[str, str]:
        """Returns the headers by name."""
        return dict(self.headers)


class RecordingProxy:
    """Forwards connections to *port* of 127.0.0.1, and keeps the bytes that the clients sent.

    With *context*, it speaks TLS to the clients.
    """

    def __init__(self, port: int, *, listen_port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", listen_port), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.recording = Recording()
        self.are_resumed: list[bool] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self.are_resumed.append(bool(client.session_reused))
        except OSError:
            client.close()
            return
        kept = bytearray()
        with self._lock:
            self.recording.connections.append(kept)
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=_pass_on, args=(server, client, None), daemon=True)
            back.start()
            _pass_on(client, server, kept)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    try:
        while chunk := source.recv(65536):
            if kept is not None:
                kept += chunk
            target.sendall(chunk)
    except OSError:
        pass  # one of the two has disconnected
    for end in (target, source):
        try:
            end.shutdown(socket.SHUT_WR if end is target else socket.SHUT_RD)
        except OSError:
            pass  # it is closed already


def parse(connection: bytes) -> Iterator[Request]:
    """Yields the requests in the bytes of one *connection*, HTTP/1.1 or gRPC."""
    if connection.startswith(_PREFACE):
        yield from _parse_http2(connection[len(_PREFACE) :])
        return
    rest = connection
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = [(":line", line)]
        headers += [(name.lower(), value.strip()) for name, _, value in (text.partition(":") for text in lines)]
        named = dict(headers)
        if named.get("transfer-encoding", "").lower() == "chunked":
            body, rest = _join_chunks(rest)
        else:
            length = int(named.get("content-length", "0"))
            body, rest = rest[:length], rest[length:]
        yield Request(headers, unpack(body, named.get("content-encoding", "identity")))


def _join_chunks(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, rest


def unpack(body: bytes, encoding: str) -> bytes:
    """Returns *body* decompressed."""
    return {"gzip": gzip.decompress, "deflate": zlib.decompress, "identity": bytes}[encoding](body)


def read_frames(rest: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields HTTP/2 frames as type, flags, stream and payload, without an unfinished one at the end."""
    while len(rest) >= 9:
        length = int.from_bytes(rest[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", rest[3:9])
        if len(rest) < 9 + length:
            return
        yield kind, flags, stream, rest[9 : 9 + length]
        rest = rest[9 + length :]


def _parse_http2(rest: bytes) -> Iterator[Request]:
    decoder = hpack.Decoder()
    headers: dict[int, list[tuple[str, str]]] = {}
    bodies: dict[int, bytes] = {}
    block = b""
    for kind, flags, stream, payload in read_frames(rest):
        if flags & _PADDED and kind in (_DATA, _HEADERS):
            payload = payload[1 : len(payload) - payload[0]]  # noqa: PLW2901  # without its padding
        if kind in (_HEADERS, _CONTINUATION):
            block += payload[5 if kind == _HEADERS and flags & _PRIORITY else 0 :]
            if flags & _END_HEADERS:
                headers[stream] = [(str(name), str(value)) for name, value in decoder.decode(block)]
                bodies[stream] = block = b""
        elif kind == _DATA:
            bodies[stream] += payload
    for stream, named in headers.items():
        yield Request(named, _to_message(bodies[stream], dict(named).get("grpc-encoding", "identity")))


def _to_message(body: bytes, encoding: str) -> bytes:
    """Returns the message of a unary gRPC request, which has one byte for its compression and four for its length."""
    if len(body) < 5:
        return body
    length = int.from_bytes(body[1:5], "big")
    message = body[5 : 5 + length]
    return unpack(message, encoding if body[0] else "identity")
