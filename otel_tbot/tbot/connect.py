"""Speaks tbot's reporting protocol without any I/O: reads one request, and says what the response is.

The protocol is Connect RPC with one unary procedure, prehog.v1alpha.TbotReportingService/SubmitTbotEvent, in protobuf
or JSON, with a plain or gzipped body. The relay and the bridge do the I/O. No header of a client is kept.

This is our own code because importing connectrpc's server takes 259 ms of processor time, more than twice what the
whole relay takes, and because it fails on a header that is not UTF-8.
Source: Connect protocol, "Unary-Request", "Unary-Response", "Error Codes"; prehog/tbot.proto.
"""

import hmac
import zlib
from collections.abc import Iterable
from typing import Final

from otel_tbot.errors import EventError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.http_request import MAX_REQUEST_BYTES, RequestError, Response
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest
from otel_tbot.tbot.report import PROCEDURE, parse_report

WRONG_PREFIX: Final = "wrong_prefix"
"""The reason for rejecting a report that came on another path than it should."""

_PROTO, _JSON = b"application/proto", b"application/json"
_GZIP_WINDOW: Final = 31
_MAX_TIMEOUT_DIGITS: Final = 10

# Source: Connect protocol, "Error Codes".
_STATUSES: Final = {
    "invalid_argument": 400,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def to_error_response(code: str, message: str, *, reason: str = "") -> Response:
    """Returns the response for a Connect error. Pure.

    *message* must be printable ASCII, so that quotes and backslashes are all that JSON needs escaped. *reason* is the
    response's reason if it is not *code*.
    """
    text = message.replace("\\", "\\\\").replace('"', '\\"')
    body = f'{{"code":"{code}","message":"{text}"}}'.encode()
    return Response(_STATUSES[code], ((b"content-type", _JSON),), body, reason or code)


def to_response(outcome: Outcome, *, is_json: bool = False) -> Response:
    """Returns the response to a report: OK if its event was accepted, otherwise `unavailable`. Pure.

    It contains nothing that the collector sent.
    """
    if outcome is Outcome.ACCEPTED:
        return _ACCEPTED_JSON if is_json else _ACCEPTED
    message = f"the event did not reach the OpenTelemetry Collector: {outcome.value}"
    return to_error_response("unavailable", message, reason=outcome.value)


# SubmitTbotEventResponse has no fields.
_ACCEPTED: Final = Response(200, ((b"content-type", _PROTO),), reason=Outcome.ACCEPTED.value)
_ACCEPTED_JSON: Final = Response(200, ((b"content-type", _JSON),), b"{}", reason=Outcome.ACCEPTED.value)

TIMEOUT_RESPONSE: Final = to_error_response("unavailable", "no report was received and answered within the limit")


class ConnectCall:
    """Reads one call: checks the request line and headers at once, collects the body, and returns the event.

    *path_prefix*, such as "/secret", stands in front of the procedure's path; every other path is not found. *headers*
    are pairs of a name in lower case and a value. `timeout_seconds` is how long the client waits, None if it does not
    say.

    Raises:
        RequestError: the request line or a header is not this procedure's; `add` and `finish` raise it for the body.
    """

    def __init__(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], *, path_prefix: str) -> None:
        found = path.encode("utf-8", "surrogateescape")
        prefix = path_prefix.encode()
        if not hmac.compare_digest(found[: len(prefix)], prefix) or path[len(path_prefix) :] != PROCEDURE:
            raise RequestError(Response(404, reason=WRONG_PREFIX if path.endswith(PROCEDURE) else ""))
        if method != "POST":
            raise RequestError(Response(405, ((b"allow", b"POST"),), reason="method_not_allowed"))
        fields = dict(headers)
        content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type not in (_PROTO, _JSON):
            allowed = ((b"accept-post", b", ".join((_PROTO, _JSON))),)
            raise RequestError(Response(415, allowed, reason="unsupported_media_type"))
        if fields.get(b"connect-protocol-version", b"1") != b"1":
            raise RequestError(to_error_response("invalid_argument", "connect-protocol-version: must be 1"))
        encoding = fields.get(b"content-encoding") or b"identity"
        if encoding not in (b"identity", b"gzip"):
            raise RequestError(to_error_response("unimplemented", "content-encoding: must be gzip or identity"))
        self.is_json = content_type == _JSON
        self.timeout_seconds = _parse_timeout(fields.get(b"connect-timeout-ms"))
        self._is_gzipped = encoding == b"gzip"
        self._body = b""

    def add(self, piece: bytes) -> None:
        """Adds the next piece of the body."""
        self._body += piece
        if len(self._body) > MAX_REQUEST_BYTES:
            raise _too_large()

    def finish(self) -> TbotStart:
        """Returns the event that the complete body reports."""
        body = _unpack(self._body) if self._is_gzipped else self._body
        try:
            report = _parse_json(body) if self.is_json else SubmitTbotEventRequest.FromString(body)
        except Exception:  # noqa: BLE001  # google.protobuf raises several kinds, which quote the input
            message = "the body must be a prehog.v1alpha.SubmitTbotEventRequest"
            raise RequestError(to_error_response("invalid_argument", message)) from None
        try:
            return parse_report(report)
        except EventError as error:
            raise RequestError(to_error_response("invalid_argument", str(error))) from None


def _parse_timeout(text: bytes | None) -> float | None:
    if not text:
        return None
    if len(text) > _MAX_TIMEOUT_DIGITS or not text.isdigit():
        rule = f"connect-timeout-ms: must be a whole number of up to {_MAX_TIMEOUT_DIGITS} digits"
        raise RequestError(to_error_response("invalid_argument", rule))
    return int(text) / 1000


def _unpack(body: bytes) -> bytes:
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        unpacked = unpacker.decompress(body, MAX_REQUEST_BYTES + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > MAX_REQUEST_BYTES:
        raise _too_large()
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(to_error_response("invalid_argument", "the body must be one complete gzip member"))
    return unpacked


def _parse_json(body: bytes) -> SubmitTbotEventRequest:
    from google.protobuf.json_format import Parse

    return Parse(body, SubmitTbotEventRequest(), ignore_unknown_fields=True)


def _too_large() -> RequestError:
    return RequestError(to_error_response("resource_exhausted", f"the body may have {MAX_REQUEST_BYTES} bytes"))
