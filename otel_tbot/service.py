"""The service that speaks tbot's protocol: reports go in, events go on, and the answer tells what became of them.

Connect RPC, prehog.v1alpha.TbotReportingService/SubmitTbotEvent, as an ASGI application; the bridge serves it for many
reports, the relay of `run` for one. Client addresses and headers are neither read nor logged.
Source: Connect protocol, "Unary request" and "Error codes"; prehog/tbot.proto.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_codecs
from connectrpc.errors import ConnectError

from otel_tbot.errors import EventError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.prehog.tbot_connect import TbotReportingServiceASGIApplication
from otel_tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, SubmitTbotEventResponse
from otel_tbot.report import parse_report

MAX_REQUEST_BYTES: Final = 16 * 1024
"""A report has some two hundred bytes."""

_CONTENT_TYPES: Final = (b"application/proto", b"application/json")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]
Deliver = Callable[[TbotStart], Awaitable[Outcome]]

logger = logging.getLogger("otel_tbot")


def build_application(
    deliver: Deliver, *, path_prefix: str = "", note: Callable[[str], None] = lambda _reason: None
) -> AsgiApplication:
    """The ASGI application that answers each report with what *deliver* made of it.

    Answers OK for ACCEPTED only, `invalid_argument` for a report that breaks a rule (naming the field, not its
    value), `unavailable` for any other outcome. *path_prefix*, such as "/secret", stands in front of the procedure's
    path; any other path is not found. *note* is called for each report with the reason it was refused for, "" for none.
    """
    connect = TbotReportingServiceASGIApplication(
        _TbotReporting(deliver, note),
        read_max_bytes=MAX_REQUEST_BYTES,
        codecs=[_QuietCodec(codec, note) for codec in google_protobuf_codecs()],
    )
    prefix = path_prefix.encode()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(path[: len(prefix)], prefix):
                await answer_plainly(send, 404)
                return
            content_type = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
            if scope["method"] == "POST" and content_type not in _CONTENT_TYPES:
                await answer_plainly(send, 415, (b"accept-post", b", ".join(_CONTENT_TYPES)))
                return
            scope = {**scope, "path": scope["path"][len(path_prefix) :], "root_path": ""}
        await connect(scope, receive, send)

    return application


class _TbotReporting:
    """TbotReportingService, on *deliver*."""

    def __init__(self, deliver: Deliver, note: Callable[[str], None]) -> None:
        self._deliver = deliver
        self._note = note

    async def submit_tbot_event(self, request: SubmitTbotEventRequest, _context: object, /) -> SubmitTbotEventResponse:
        reason = "canceled"
        try:
            outcome = await self._deliver(parse_report(request))
            reason = "" if outcome is Outcome.ACCEPTED else outcome.value
        except EventError as error:
            reason = Code.INVALID_ARGUMENT.value
            raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from None
        except ConnectError as error:
            reason = error.code.value
            raise
        except Exception as error:  # noqa: BLE001  # one request: whatever it is, the event did not leave
            logger.warning("a report could not be handled: %s", type(error).__name__)
            outcome = Outcome.UNREACHABLE
            reason = outcome.value
        finally:
            self._note(reason)
        if outcome is not Outcome.ACCEPTED:
            raise to_unavailable(outcome)
        return SubmitTbotEventResponse()


def to_unavailable(outcome: Outcome) -> ConnectError:
    """The answer for an event that the collector is not known to have; tells nothing of the collector. Pure."""
    return ConnectError(Code.UNAVAILABLE, f"the event did not reach the OpenTelemetry Collector: {outcome.value}")


class _QuietCodec:
    """A codec whose errors do not repeat what they could not read."""

    def __init__(self, codec: Codec, note: Callable[[str], None]) -> None:
        self._codec = codec
        self._note = note

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: object) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        try:
            return self._codec.decode(data, message_class)
        except Exception:  # noqa: BLE001  # google.protobuf raises several kinds, which quote the input
            self._note(Code.INVALID_ARGUMENT.value)
            raise ConnectError(Code.INVALID_ARGUMENT, "the body is no SubmitTbotEventRequest") from None


async def answer_plainly(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    """Answers with *status* and no body."""
    fields: Sequence[tuple[bytes, bytes]] = [(b"content-length", b"0"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b""})
