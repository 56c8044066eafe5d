"""Reads the one request of a connection to the relay, without any I/O.

Imports httptools and protobuf, so only the relay's worker imports it.
"""

import hmac
from typing import Final

from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import ConnectCall, to_error_response, to_response
from otel_tbot.tbot.http_request import CONTINUE, Headers, Request, RequestParser, Response, to_bytes

_PROBE: Final = Response(204)
_SECOND_REPORT: Final = to_error_response("resource_exhausted", "this relay has already received its one report")


class HttpRequest:
    """Reads one request from the bytes that `feed` gets: a report, a probe, or what only gets a response.

    A probe is `GET` on *path_prefix* itself, which no report can be.
    """

    def __init__(self, *, path_prefix: str) -> None:
        self._path_prefix = path_prefix
        self._parser = RequestParser(self._open_call)

    def feed(self, data: bytes) -> bytes:
        """Reads the next bytes; returns what must be sent before the client sends the rest, usually nothing."""
        self._parser.feed(data)
        must_continue, self._parser.wants_continue = self._parser.wants_continue, False
        return CONTINUE if must_continue else b""

    @property
    def event(self) -> TbotStart | None:
        """The event of a complete report."""
        return self._request.event if self._request else None

    @property
    def is_probe(self) -> bool:
        """Whether this is a complete probe."""
        return self._request is not None and self._request.response is _PROBE

    @property
    def is_complete(self) -> bool:
        """Whether the client has sent all of it."""
        return self._request is not None and self._request.is_complete

    @property
    def response(self) -> bytes | None:
        """The response to a request that is neither a report nor a probe; it can be known before the request ends."""
        if self._request is None or self._request.response is None or self.is_probe:
            return None
        return to_bytes(self._request.response, is_last=True)

    def to_response(self, outcome: Outcome | None) -> bytes:
        """Returns the response to the report, whose event ended with *outcome*; None if it is not the first. Pure."""
        is_json = self._request is not None and self._request.is_json
        return to_bytes(to_response(outcome, is_json=is_json) if outcome else _SECOND_REPORT, is_last=True)

    @property
    def _request(self) -> Request | None:
        return self._parser.requests[0] if self._parser.requests else None

    def _open_call(self, method: str, path: str, headers: Headers) -> ConnectCall | Response:
        is_address = hmac.compare_digest(path.encode("ascii", "surrogateescape"), self._path_prefix.encode())
        if method == "GET" and is_address:
            return _PROBE
        return ConnectCall(method, path, headers, path_prefix=self._path_prefix)
