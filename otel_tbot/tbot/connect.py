"""The service that speaks tbot's protocol: reports go in, events go on, and the answer tells what became of them.

Connect RPC, prehog.v1alpha.TbotReportingService/SubmitTbotEvent: one unary procedure, in binary or JSON, its body as it
is or gzipped. `Call` is the protocol, without any I/O; the relay of `run` reads it from a socket, and
`build_application` from an ASGI server, for the bridge. Client addresses and headers are neither kept nor logged.

Our own, and not a library's, for the relay's sake: importing connectrpc's server took 150 of the 240 ms of processor
time that a relay may take in all (benchmarks), and the protocol of one unary procedure is what is here.
Source: Connect protocol, "Unary request", "Unary response", "Error codes"; prehog/tbot.proto.
"""

import hmac
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, NamedTuple

from otel_tbot.errors import EventError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest
from otel_tbot.tbot.report import PROCEDURE, parse_report

MAX_REQUEST_BYTES: Final = 16 * 1024
"""A report has some two hundred bytes."""

_PROTO, _JSON = b"application/proto", b"application/json"
_GZIP_WINDOW: Final = 31
_MAX_TIMEOUT_DIGITS: Final = 10

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]
Deliver = Callable[[TbotStart], Awaitable[Outcome]]
Note = Callable[[str], None]

logger = logging.getLogger("otel_tbot")


class Response(NamedTuple):
    """An answer: its HTTP status, headers and body. `reason` is what a report was refused for, "" for none."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    reason: str = ""


class RefusedError(Exception):
    """Ends a call with `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


# Source: Connect protocol, "Error codes".
_STATUSES: Final = {
    "invalid_argument": 400,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def to_error(code: str, message: str, *, reason: str = "") -> Response:
    """The answer that is a Connect error of *code*; refused for *reason*, if that is not the code. Pure.

    *message* is a text of ours, printable ASCII, so that JSON needs no more than this.
    """
    text = message.replace("\\", "\\\\").replace('"', '\\"')
    body = f'{{"code":"{code}","message":"{text}"}}'.encode()
    return Response(_STATUSES[code], ((b"content-type", _JSON),), body, reason or code)


def to_answer(outcome: Outcome, *, is_json: bool = False) -> Response:
    """The answer for an event that ended with *outcome*: OK for ACCEPTED only, else `unavailable`. Pure.

    It tells nothing of the collector.
    """
    if outcome is Outcome.ACCEPTED:
        return _ACCEPTED_JSON if is_json else _ACCEPTED
    message = f"the event did not reach the OpenTelemetry Collector: {outcome.value}"
    return to_error("unavailable", message, reason=outcome.value)


# SubmitTbotEventResponse has no fields.
_ACCEPTED: Final = Response(200, ((b"content-type", _PROTO),))
_ACCEPTED_JSON: Final = Response(200, ((b"content-type", _JSON),), b"{}")

FULL: Final = to_error("resource_exhausted", "too many reports wait for the collector")


class Call:
    """One request: its head is checked first, its body comes in by pieces, and then it is an event, or is refused.

    *path_prefix*, such as "/secret", stands in front of the procedure's path; any other path is not found. *headers*
    are names in lower case, and values. `timeout_seconds` is how long the client says that it waits, None for no limit.

    Raises:
        RefusedError: the head is none of this procedure; also from `add` and `finish`, for the body.
    """

    def __init__(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], *, path_prefix: str) -> None:
        found = path.encode("utf-8", "surrogateescape")
        prefix = path_prefix.encode()
        if not hmac.compare_digest(found[: len(prefix)], prefix) or path[len(path_prefix) :] != PROCEDURE:
            raise RefusedError(Response(404))
        if method != "POST":
            raise RefusedError(Response(405, ((b"allow", b"POST"),)))
        fields = dict(headers)
        content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type not in (_PROTO, _JSON):
            raise RefusedError(Response(415, ((b"accept-post", b", ".join((_PROTO, _JSON))),)))
        if fields.get(b"connect-protocol-version", b"1") != b"1":
            raise RefusedError(to_error("invalid_argument", "connect-protocol-version: must be 1"))
        encoding = fields.get(b"content-encoding") or b"identity"
        if encoding not in (b"identity", b"gzip"):
            raise RefusedError(to_error("unimplemented", "content-encoding: must be gzip or identity"))
        self.is_json = content_type == _JSON
        self.timeout_seconds = _parse_timeout(fields.get(b"connect-timeout-ms"))
        self._is_gzipped = encoding == b"gzip"
        self._body = b""

    def add(self, piece: bytes) -> None:
        """Takes the next piece of the body."""
        self._body += piece
        if len(self._body) > MAX_REQUEST_BYTES:
            raise _too_large()

    def finish(self) -> TbotStart:
        """The event that the whole body tells of."""
        body = _unpack(self._body) if self._is_gzipped else self._body
        try:
            report = _parse_json(body) if self.is_json else SubmitTbotEventRequest.FromString(body)
        except Exception:  # noqa: BLE001  # google.protobuf raises several kinds, which quote the input
            raise RefusedError(to_error("invalid_argument", "the body is no SubmitTbotEventRequest")) from None
        try:
            return parse_report(report)
        except EventError as error:
            raise RefusedError(to_error("invalid_argument", str(error))) from None


def _parse_timeout(text: bytes | None) -> float | None:
    if not text:
        return None
    if len(text) > _MAX_TIMEOUT_DIGITS or not text.isdigit():
        rule = f"connect-timeout-ms: must be a whole number of up to {_MAX_TIMEOUT_DIGITS} digits"
        raise RefusedError(to_error("invalid_argument", rule))
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
        raise RefusedError(to_error("invalid_argument", "the body is not gzipped, or not whole"))
    return unpacked


def _parse_json(body: bytes) -> SubmitTbotEventRequest:
    from google.protobuf.json_format import Parse

    return Parse(body, SubmitTbotEventRequest(), ignore_unknown_fields=True)


def _too_large() -> RefusedError:
    return RefusedError(to_error("resource_exhausted", f"a report may have {MAX_REQUEST_BYTES} bytes"))


def build_application(deliver: Deliver, *, path_prefix: str = "", note: Note = lambda _reason: None) -> AsgiApplication:
    """The ASGI application that answers each report with what *deliver* made of it.

    *path_prefix* as for `Call`. *deliver* may raise RefusedError. *note* is called for each request whose body was
    taken, with the reason it was refused for, "" for none.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = Call(scope["method"], scope["path"], scope["headers"], path_prefix=path_prefix)
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client has gone
                call.add(message.get("body", b""))
                if not message.get("more_body"):
                    break
        except RefusedError as refused:
            response = refused.response
        else:
            reason = "canceled"
            try:
                response = await _answer(call, deliver)
                reason = response.reason
            finally:
                note(reason)
        await send_response(send, response)

    return application


async def send_response(send: Send, response: Response) -> None:
    """Answers with *response*."""
    headers = [(b"content-length", b"%d" % len(response.body)), *response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def _answer(call: Call, deliver: Deliver) -> Response:
    try:
        event = call.finish()
        if call.timeout_seconds is None:
            outcome = await deliver(event)
        else:
            from asyncio import timeout  # loaded by whoever runs this, and of no use to the relay

            async with timeout(call.timeout_seconds):
                outcome = await deliver(event)
    except RefusedError as refused:
        return refused.response
    except TimeoutError:
        return to_error("deadline_exceeded", "the client's own timeout has passed")
    except Exception as error:  # noqa: BLE001  # one request: whatever it is, the event did not leave
        logger.warning("a report could not be handled: %s", type(error).__name__)
        outcome = Outcome.UNREACHABLE
    return to_answer(outcome, is_json=call.is_json)
