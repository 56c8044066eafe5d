"""Encodes events as OTLP requests that hold nothing but the documented attributes.

Made of OTLP's own messages. The SDK's records and encoder make the same bytes (tests/otlp/test_encoding.py compares),
but importing them takes longer than everything else that a relay does, and encoding with them twice as long
(benchmarks). Nothing of the surrounding process is read: no resource detector, no current span, no baggage.
Source: OpenTelemetry specification, Logs Data Model, Trace API, Resource SDK; opentelemetry-proto;
docs/reference/event.md.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot._version import __version__
from otel_tbot.event import EVENT_NAME, TbotStart

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from otel_tbot.settings import Signal

    Request = ExportLogsServiceRequest | ExportTraceServiceRequest

TimedEvent = tuple[TbotStart, int]
"""An event and its time, in nanoseconds since the epoch by our own clock."""

SCOPE_NAME: Final = "otel_tbot"

SPAN_NS: Final = 1_000
"""How long a span is: the shortest that Jaeger draws."""

_UNCACHED_KEY: Final = "session.id"

_BASE_RESOURCE: Final = {
    "service.name": "tbot",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": sdk_version,
}

# Values of OpenTelemetry's registry; a system or processor outside it is left out.
OS_TYPES: Final = {"Linux": "linux", "Darwin": "darwin", "Windows": "windows", "FreeBSD": "freebsd"}
HOST_ARCHS: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv6l": "arm32",
    "armv7l": "arm32",
    "i386": "x86",
    "i686": "x86",
    "ppc64": "ppc64",
    "ppc64le": "ppc64",
    "s390x": "s390x",
}

# Source: opentelemetry-proto, SeverityNumber, SpanKind, SpanFlags.
_SEVERITY_INFO: Final = 9
_KIND_INTERNAL: Final = 1
_FLAGS_NO_REMOTE_PARENT: Final = 0x100


def describe_resource(*, is_local: bool) -> dict[str, str]:
    """Returns all attributes of an event's resource, with system and processor only if tbot runs here (*is_local*).

    Asks the operating system for its own name, and nothing else.
    """
    return {**_BASE_RESOURCE, **(_describe_platform() if is_local else {})}


def _describe_platform() -> dict[str, str]:
    if hasattr(os, "uname"):
        name, machine = os.uname().sysname, os.uname().machine
    else:
        name, machine = "Windows", os.environ.get("PROCESSOR_ARCHITECTURE", "")
    platform = {"os.type": OS_TYPES.get(name), "host.arch": HOST_ARCHS.get(machine.lower())}
    return {key: value for key, value in platform.items() if value is not None}


def encode_request(events: Sequence[TimedEvent], *, signal: "Signal", is_local: bool) -> "Request":
    """Returns the request that carries *events*, an empty one for none. *is_local* as for `describe_resource`."""
    return _encode_spans(events, is_local) if signal == "span" else _encode_log_records(events, is_local)


def _encode_log_records(events: Sequence[TimedEvent], is_local: bool) -> "ExportLogsServiceRequest":  # noqa: FBT001  # one caller
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

    if not events:
        return ExportLogsServiceRequest()
    records = []
    body = AnyValue(string_value=EVENT_NAME)
    for event, time_ns in events:
        seconds_ns = to_whole_second(time_ns)
        record = LogRecord(
            time_unix_nano=seconds_ns,
            observed_time_unix_nano=seconds_ns,
            severity_number=_SEVERITY_INFO,  # type: ignore[arg-type]  # an enum's number
            severity_text="INFO",
            body=body,
            attributes=_to_attributes(event.attributes()),
            event_name=EVENT_NAME,
        )
        records.append(record)
    scope_logs = ScopeLogs(scope=_scope(), log_records=records)
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=_resource(is_local=is_local), scope_logs=[scope_logs])]
    )


def _encode_spans(events: Sequence[TimedEvent], is_local: bool) -> "ExportTraceServiceRequest":  # noqa: FBT001  # one caller
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

    if not events:
        return ExportTraceServiceRequest()
    spans = []
    status = Status()
    for event, time_ns in events:
        seconds_ns = to_whole_second(time_ns)
        trace_id, span_id = to_span_ids(event.session_id)
        span = Span(
            trace_id=trace_id,
            span_id=span_id,
            flags=_FLAGS_NO_REMOTE_PARENT,
            name=EVENT_NAME,
            kind=_KIND_INTERNAL,  # type: ignore[arg-type]  # an enum's number
            start_time_unix_nano=seconds_ns,
            end_time_unix_nano=seconds_ns + SPAN_NS,
            attributes=_to_attributes(event.attributes()),
            status=status,
        )
        spans.append(span)
    scope_spans = ScopeSpans(scope=_scope(), spans=spans)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=_resource(is_local=is_local), scope_spans=[scope_spans])]
    )


@lru_cache(maxsize=1)
def _scope() -> InstrumentationScope:
    return InstrumentationScope(name=SCOPE_NAME, version=__version__)


@lru_cache(maxsize=2)
def _resource(*, is_local: bool) -> Resource:
    return Resource(attributes=_to_attributes(describe_resource(is_local=is_local)))


def to_span_ids(session_id: str) -> tuple[bytes, bytes]:
    """Returns trace id and span id of the span that carries the event of *session_id*. Pure.

    A UUID has the 16 random bytes of a trace id, of which the last 8 are the span id. So a span has no further
    identifier, and the same event sent twice is recognised.
    """
    trace_id = bytes.fromhex(session_id.replace("-", ""))
    return trace_id, trace_id[8:]


def _to_attributes(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        _to_attribute(key, value) if key == _UNCACHED_KEY else _cached_attribute(key, value)
        for key, value in values.items()
    ]


def _to_attribute(key: str, value: str | int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value) if type(value) is int else AnyValue(string_value=value))  # type: ignore[arg-type]  # a string, if it is not an int


# A fleet's starts are much alike: cached, eight of nine attributes cost a tenth (3.5 instead of 10 us an event).
_cached_attribute = lru_cache(maxsize=1024)(_to_attribute)


def to_whole_second(time_ns: int) -> int:
    """Returns *time_ns* cut to the whole second: a finer time would join the event to Teleport's audit log. Pure."""
    return time_ns - time_ns % 1_000_000_000


def to_json(request: "Request") -> dict[str, Any]:
    """Returns *request* as OTLP/JSON: enums as numbers, ids in hexadecimal. Pure.

    Source: OTLP specification, "JSON Protobuf Encoding".
    """
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in fields.get("resourceSpans", ()):
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                span |= {key: base64.b64decode(span[key]).hex() for key in ("traceId", "spanId")}
    return fields


def parse_log_request(body: bytes) -> dict[str, Any]:
    """Returns the OTLP/HTTP request *body*, which holds log records, as OTLP/JSON. Pure.

    Raises:
        google.protobuf.message.DecodeError: it is not such a request.
    """
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return to_json(ExportLogsServiceRequest.FromString(body))
