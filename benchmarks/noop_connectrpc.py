"""Serves an empty SubmitTbotEvent by connectrpc, to measure the library that the service could use instead."""

from typing import Any

from connectrpc.compat import google_protobuf_codecs
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint

from otel_tbot.tbot.http_request import MAX_REQUEST_BYTES
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, SubmitTbotEventResponse
from otel_tbot.tbot.report import PROCEDURE, parse_report

_SERVICE, _METHOD = PROCEDURE.strip("/").split("/")


class _Service:
    async def submit(self, request: SubmitTbotEventRequest, _context: object) -> SubmitTbotEventResponse:
        parse_report(request)
        return SubmitTbotEventResponse()


class _Application(ConnectASGIApplication[_Service]):
    def __init__(self) -> None:
        method: MethodInfo[Any, Any] = MethodInfo(
            name=_METHOD,
            service_name=_SERVICE,
            input=SubmitTbotEventRequest,
            output=SubmitTbotEventResponse,
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=StreamType.UNARY,
        )
        super().__init__(
            service=_Service(),
            endpoints=lambda service: {PROCEDURE: Endpoint.unary(method, service.submit)},
            read_max_bytes=MAX_REQUEST_BYTES,
            codecs=google_protobuf_codecs(),
        )

    @property
    def path(self) -> str:
        return PROCEDURE.rpartition("/")[0]


app = _Application()
