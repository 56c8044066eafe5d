"""Sends OTLP over HTTP/1.1: one connection, one request after the other, each until a deadline.

Without proxies, ~/.netrc, cookies and redirects. Each wait is bounded by what is left until the deadline, so a
collector that sends a byte now and then keeps no thread. Own code and not a library's: importing http.client and ssl
takes longer than everything else that a relay does (measured), and requests follows redirects and reads credentials
elsewhere.
Source: RFC 9112; OTLP specification, "OTLP/HTTP".
"""

import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import httptools

if TYPE_CHECKING:
    import ssl

    from otel_tbot.otlp.config import OtlpConfig
    from otel_tbot.settings import Endpoint

    Address = tuple[int, int, int, str, tuple[object, ...]]

_MAX_RESPONSE_BYTES: Final = 64 * 1024
"""Of a response's headers and body, of which OTLP's have a few; the rest of a larger one is not read."""

_MAX_INTERIM_RESPONSES: Final = 100
_RECEIVE_BYTES: Final = 16 * 1024

_OK: Final = 200

# What may stand in a URL as it is; the percent sign too, since what is encoded already stays so.
_TARGET_SAFE: Final = "!#$%&'()*+,/:;=?@[]~"


class HttpResponse(NamedTuple):
    """A response; the names of `headers` are in lower case. A truncated `body` was too large to be OTLP's."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_truncated: bool = False


class HttpTransport:
    """One connection to one collector, made when it is needed and kept as long as the collector keeps it.

    *build_context* is called for each connection over TLS, so that certificates that were replaced on disk are used.
    """

    def __init__(
        self,
        config: "OtlpConfig",
        endpoint: "Endpoint",
        *,
        user_agent: str,
        build_context: "Callable[[OtlpConfig], ssl.SSLContext]",
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._build_context = build_context
        self._compress = COMPRESSIONS[config.compression]
        self._head = _to_head(config, endpoint, user_agent)
        self._connection: socket.socket | None = None
        self._is_abandoned = False

    def send(self, body: bytes, deadline: float) -> HttpResponse:
        """Sends *body* and returns the response; *deadline* is in the time of time.monotonic.

        Raises:
            TimeoutError: the deadline passed, or the request was abandoned.
            OSError: there is no connection, or no whole response of HTTP (ssl.SSLError included).
            UnicodeError: the host is not a name.
        """
        if self._connection is not None and _is_dropped(self._connection):
            self.close()
        try:
            connection = self._connection = self._connection or self._connect(deadline)
            connection.settimeout(_remaining(deadline))
            packed = self._compress(body)
            connection.sendall(b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(packed), packed))
            return self._receive(connection, deadline)
        except BaseException:
            # The rest of a response must not be taken for the response to the next request.
            self.close()
            raise

    def abandon(self) -> None:
        """Ends a `send` that another thread is in: it returns soon. The transport is not used again."""
        self._is_abandoned = True
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already

    def close(self) -> None:
        """Closes the connection; the next `send` makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def connect(self, deadline: float) -> None:
        """Connects without sending anything.

        Raises:
            OSError: it cannot be reached (ssl.SSLError included).
            TlsError: a certificate file cannot be used.
        """
        self._connection = self._connect(deadline)

    def _connect(self, deadline: float) -> socket.socket:
        # The name is looked up without a limit: nothing can end the C library's resolver.
        addresses = socket.getaddrinfo(self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM)
        connection = _connect_to_first(addresses, deadline, lambda: self._is_abandoned)
        # From here on `abandon` can end what this thread waits for; before, it could only say so.
        self._connection = connection
        if self._is_abandoned:
            raise TimeoutError
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._config.is_tls:
            return connection
        context = self._build_context(self._config)
        connection.settimeout(_remaining(deadline))
        self._connection = context.wrap_socket(connection, server_hostname=self._endpoint.server_name)
        return self._connection

    def _receive(self, connection: socket.socket, deadline: float) -> HttpResponse:
        response = _Response()
        while not (response.is_complete or response.size_bytes > _MAX_RESPONSE_BYTES):
            connection.settimeout(_remaining(deadline))
            data = connection.recv(_RECEIVE_BYTES)
            if self._is_abandoned:
                raise TimeoutError
            if not data:
                response.end()
                break
            response.feed(data)
        is_truncated = response.size_bytes > _MAX_RESPONSE_BYTES and response.status >= _OK
        if not (response.is_complete or is_truncated):
            raise ConnectionError("not a whole response")
        if response.is_last or response.has_more or is_truncated:
            self.close()
        return HttpResponse(response.status, response.headers, bytes(response.body), is_truncated)


class _Response:
    """One response, read from pieces; interim responses (1xx) before it are skipped. Without I/O."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.size_bytes = 0
        self.status = 0
        self.is_complete = False
        self.is_last = False
        self.has_more = False
        self._interim = 0
        self._has_headers = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Reads the next piece.

        Raises:
            ConnectionError: it is not HTTP.
        """
        self.size_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.is_complete:
                raise ConnectionError("not a response of HTTP") from None
            self.has_more = True

    def end(self) -> None:
        """Notes that the connection has ended: a body of no stated length is complete then, if it has begun."""
        names = self.headers.keys()
        is_bounded = "content-length" in names or "transfer-encoding" in names
        self.is_complete = self._has_headers and not is_bounded and bool(self.body)
        self.is_last = True

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_more = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # Not the trailers, which come behind a chunked body.
        if not self._has_headers:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if not self.is_complete:
            self.status = self._parser.get_status_code()
            self._has_headers = self.status >= _OK

    def on_body(self, piece: bytes) -> None:
        if not self.is_complete:
            self.body += piece

    def on_message_complete(self) -> None:
        if self.is_complete:
            return
        if self.status < _OK:
            self._interim += 1
            if self._interim > _MAX_INTERIM_RESPONSES:
                raise OSError("too many interim responses")
            self.headers.clear()
            return
        self.is_complete = True
        self.is_last = not self._parser.should_keep_alive()


def _to_head(config: "OtlpConfig", endpoint: "Endpoint", user_agent: str) -> bytes:
    """Returns the request's first line and its headers but the content's length. Pure."""
    target = quote(endpoint.path or "/", safe=_TARGET_SAFE)
    if endpoint.query:
        target += "?" + quote(endpoint.query, safe=_TARGET_SAFE)
    headers = {
        "host": endpoint.authority,
        "user-agent": user_agent,
        "accept-encoding": "identity",
        "accept": "*/*",
        "connection": "keep-alive",
        "content-type": "application/x-protobuf",
        **dict(config.headers),
    }
    if config.compression != "none":
        headers["content-encoding"] = config.compression
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def _connect_to_first(
    addresses: "Sequence[Address]", deadline: float, is_abandoned: Callable[[], bool]
) -> socket.socket:
    """Returns a connection to the first of *addresses* that accepts one.

    Each gets an equal part of the time that is left, so that one that drops every packet does not take all of it.
    """
    error: OSError = OSError("no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        if is_abandoned():
            raise TimeoutError
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_remaining(deadline) / (len(addresses) - tried))
            connection.connect(address)
        except OSError as failed:
            connection.close()
            error = failed
        else:
            return connection
    raise error


def _remaining(deadline: float) -> float:
    """Returns the seconds until *deadline*; raises TimeoutError if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _is_dropped(connection: socket.socket) -> bool:
    """Returns whether the collector has closed *connection*, or sent something that was not asked for."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except BlockingIOError:
        return False
    except OSError as error:
        # TLS has another exception for "nothing there"; the module ssl is loaded only if TLS is used.
        return type(error).__name__ != "SSLWantReadError"
    return True


def _compress_gzip(body: bytes) -> bytes:
    import gzip

    # Without the time, which would be this machine's own.
    return gzip.compress(body, mtime=0)


def _compress_deflate(body: bytes) -> bytes:
    import zlib

    return zlib.compress(body)


COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "none": bytes,
    "gzip": _compress_gzip,
    "deflate": _compress_deflate,
}
"""What a body becomes under each value of OTEL_EXPORTER_OTLP_COMPRESSION."""
