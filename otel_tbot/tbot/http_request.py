"""Parses the HTTP/1.1 requests of one connection, without any I/O and within limits.

httptools reads the bytes. What is added here are the limits, and that a body is neither kept longer nor larger than a
report needs, on whatever path it comes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

if TYPE_CHECKING:
    from otel_tbot.event import TbotStart
    from otel_tbot.tbot.connect import ConnectCall

MAX_REQUEST_BYTES: Final = 16 * 1024
"""The largest body, as sent and as unpacked. A report has about 200 bytes."""

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a client waits for if a request says so, see `RequestParser.wants_continue`."""

# A chunk of one byte takes six bytes.
_MAX_RAW_BYTES: Final = MAX_HEAD_BYTES + 6 * MAX_REQUEST_BYTES
_PROTOCOL_HEADERS: Final = (
    *(b"content-type", b"content-encoding", b"connect-protocol-version", b"connect-timeout-ms"),
    *(b"content-length", b"transfer-encoding", b"expect"),
)

Headers = Sequence[tuple[bytes, bytes]]


class Response(NamedTuple):
    """An HTTP response: its status, headers and body.

    `reason` is for counts: "accepted", or why the request was rejected, or "" if it was not a report at all.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    reason: str = ""


_BAD_REQUEST: Final = Response(400)
_TOO_LARGE: Final = Response(413)
_TOO_LARGE_HEAD: Final = Response(431)


class RequestError(Exception):
    """Ends a request; the client gets `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Request(NamedTuple):
    """One request, read as far as it is going to be.

    `event` is what it reports, or `response` what it gets instead. If `is_last`, the connection ends with its response;
    unless `is_complete`, the client may still be sending, and must be able to read the response before the connection
    is closed.
    """

    event: "TbotStart | None"
    response: Response | None
    is_json: bool
    timeout_seconds: float | None
    is_last: bool
    is_complete: bool


class RequestParser:
    """Collects the requests of one connection in `requests`, in the order in which they arrived.

    *open_call* is called with method, path and the headers that matter once a request's headers are complete. It
    returns the call, or a response, or raises RequestError. After *max_requests* that are not taken out of `requests`,
    and after every error, the last request says that it is the last, and the rest of the input is ignored.
    """

    def __init__(
        self, open_call: "Callable[[str, str, Headers], ConnectCall | Response]", *, max_requests: int = 1
    ) -> None:
        self.requests: deque[Request] = deque()
        self.is_in_request = False
        self.is_finished = False
        self.wants_continue = False
        self._open_call = open_call
        self._max_requests = max_requests
        self._parser = HttpRequestParser(self)
        self._raw_bytes = 0
        self._reset()

    def feed(self, data: bytes) -> None:
        """Reads the next bytes of the connection. Never raises: a request that cannot be read gets its response."""
        self._raw_bytes += len(data)
        while data and not self.is_finished:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                data = self._remove_upgrade() + data[upgrade.args[0] :]
            except HttpParserError:
                # Also for what a callback raised after it had finished.
                if not self.is_finished:
                    self._finish(_BAD_REQUEST)
        if not self.is_finished and self._raw_bytes > (MAX_HEAD_BYTES if self._call is None else _MAX_RAW_BYTES):
            self._finish(_TOO_LARGE_HEAD if self._call is None else _TOO_LARGE)

    def _remove_upgrade(self) -> bytes:
        """Starts the current request again, without the Upgrade header that httptools would end HTTP for.

        A server may ignore that header (RFC 9110, 7.8).
        """
        fields = [*self._headers, (b"connection", b"close")]
        lines = b"".join(b"%s: %s\r\n" % field for field in fields)
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (self._parser.get_method(), self._url, lines)
        self._parser = HttpRequestParser(self)
        self._reset()
        return head

    def _reset(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_count = self._head_bytes = self._body_bytes = 0
        self._call: "ConnectCall | Response | None" = None

    def _finish(self, response: Response) -> None:
        """Rejects the request that is being read, and ends the input with it."""
        if isinstance(self._call, Response) and response is _TOO_LARGE:
            response = self._call
        self.requests.append(Request(None, response, False, None, is_last=True, is_complete=False))
        self.is_finished = True
        self.is_in_request = self.wants_continue = False
        self._reset()

    def _stop(self, response: Response) -> None:
        self._finish(response)
        raise ValueError  # ends the parser's work; `feed` handles it

    def on_message_begin(self) -> None:
        """httptools calls this, and the methods below."""
        self.is_in_request = True

    def on_url(self, url: bytes) -> None:
        """Adds a piece of the request's target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a header, and keeps it if the protocol uses it."""
        self._header_count += 1
        self._count_head(len(name) + len(value))
        name = name.lower()
        if name in _PROTOCOL_HEADERS:
            self._headers.append((name, value))

    def _count_head(self, added: int) -> None:
        self._head_bytes += added
        if self._head_bytes > MAX_HEAD_BYTES or self._header_count > MAX_HEADERS:
            self._stop(_TOO_LARGE_HEAD)

    def on_headers_complete(self) -> None:
        """Opens the call."""
        method = self._parser.get_method().decode()
        if method == "CONNECT":
            self._stop(Response(405))
        # A proxy's client sends the whole URL (RFC 9112, 3.2.2).
        raw = self._url.partition(b"?")[0] if self._url.startswith(b"/") else parse_url(self._url).path or b""
        path = raw.decode("ascii", "surrogateescape")
        try:
            self._call = self._open_call(method, path, self._headers)
        except RequestError as error:
            self._call = error.response
        if self._parser.should_upgrade():
            return  # `feed` starts it again
        if any(name == b"expect" and value.lower() == b"100-continue" for name, value in self._headers):
            if isinstance(self._call, Response):
                self._stop(self._call)
            self.wants_continue = True
        # Not needed any more, and as large as a body.
        self._url = b""
        self._headers = []

    def on_body(self, piece: bytes) -> None:
        """Adds a piece of the body, or discards it if the request is rejected."""
        self._body_bytes += len(piece)
        if self._call is None or isinstance(self._call, Response):
            if self._body_bytes > MAX_REQUEST_BYTES:
                self._stop(_TOO_LARGE)
            return
        try:
            self._call.add(piece)
        except RequestError as error:
            self._stop(error.response)

    def on_message_complete(self) -> None:
        """Adds the request to `requests`."""
        if self._parser.should_upgrade():
            return  # `feed` starts it again
        is_last = not self._parser.should_keep_alive() or len(self.requests) + 1 >= self._max_requests
        event, response, is_json, timeout_seconds = None, None, False, None
        if self._call is None or isinstance(self._call, Response):
            response = self._call
        else:
            is_json, timeout_seconds = self._call.is_json, self._call.timeout_seconds
            try:
                event = self._call.finish()
            except RequestError as error:
                response = error.response
        self.requests.append(Request(event, response, is_json, timeout_seconds, is_last, is_complete=True))
        self.is_in_request = self.wants_continue = False
        self.is_finished = is_last
        self._raw_bytes = 0
        self._reset()
        if is_last:
            raise ValueError  # ends the parser's work; `feed` handles it


def to_bytes(response: Response, *, is_last: bool) -> bytes:
    """Returns *response* as HTTP/1.1. Pure."""
    fields = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    if is_last:
        fields.append((b"connection", b"close"))
    lines = b"".join(b"%s: %s\r\n" % field for field in fields)
    return b"HTTP/1.1 %d \r\n%s\r\n%s" % (response.status, lines, response.body)
