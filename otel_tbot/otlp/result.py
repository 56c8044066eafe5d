"""Tells an acceptance from every other response of a collector."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    from otel_tbot.settings import Signal

    Response = ExportLogsServiceResponse | ExportTraceServiceResponse

_EMPTY_STATUSES: Final = frozenset((200, 202, 204))
_OTLP_STATUSES: Final = frozenset((200, 202))

_REJECTED_FIELDS: Final = {"log": "rejected_log_records", "span": "rejected_spans"}

# Numbers of the fields of google.rpc.Status (code, message, details). A response of OTLP has one field, a message.
_STATUS_FIELDS: Final = frozenset((1, 2, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one request, and the response's `status` for people ("HTTP status 503"), "" without one."""

    outcome: Outcome
    status: str = ""


def parse_http_response(status: int, headers: Mapping[str, str], body: bytes, *, signal: "Signal") -> Result:
    """Returns the result of a whole HTTP response; *headers* have names in lower case. Pure.

    Accepted are 200, 202 and 204 with an empty body that is not called a web page, and 200 and 202 with a response of
    OTLP, in protobuf or JSON, that rejects nothing.
    Source: OTLP specification, "OTLP/HTTP Response", "Partial Success".
    """
    text = f"HTTP status {status}"
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if status not in _EMPTY_STATUSES:
        return Result(outcome=Outcome.REFUSED, status=text)
    if not body and content_type != "text/html":
        return Result(outcome=Outcome.ACCEPTED, status=text)
    if status in _OTLP_STATUSES and content_type == "application/x-protobuf":
        return Result(outcome=parse_protobuf(body, signal=signal), status=text)
    if status in _OTLP_STATUSES and content_type == "application/json":
        return Result(outcome=_parse_json(body), status=text)
    return Result(outcome=Outcome.REFUSED, status=f"{text} with a response that is not OTLP")


def parse_protobuf(body: bytes, *, signal: "Signal") -> Outcome:
    """Returns ACCEPTED if *body* is a response to a request of *signal* that rejects nothing, otherwise REFUSED. Pure.

    The Collector sends an empty partial success with each response. A negative count is not an acceptance.
    """
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    try:
        response = _response_type(signal).FromString(body)
    except DecodeError:
        return Outcome.REFUSED
    unknown = UnknownFieldSet(response)
    if any(unknown[index].field_number in _STATUS_FIELDS for index in range(len(unknown))):
        return Outcome.REFUSED
    rejected = getattr(response.partial_success, _REJECTED_FIELDS[signal])
    return Outcome.REFUSED if rejected else Outcome.ACCEPTED


def _response_type(signal: "Signal") -> "type[Response]":
    if signal == "span":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        return ExportTraceServiceResponse
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    return ExportLogsServiceResponse


def _parse_json(body: bytes) -> Outcome:
    """As `parse_protobuf`, for OTLP/JSON, in which a count is a number, a string of digits, or null for 0."""
    try:
        response = json.loads(body)
        partial_success = response.pop("partialSuccess", None) or response.pop("partial_success", None) or {}
        rejected = [value for key, value in partial_success.items() if key.startswith("rejected")]
    except (AttributeError, RecursionError, TypeError, ValueError):
        return Outcome.REFUSED  # not JSON, or not in the shape of a response
    is_accepted = not response and all(value in (0, "0", None) for value in rejected)
    return Outcome.ACCEPTED if is_accepted else Outcome.REFUSED
