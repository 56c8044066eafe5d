"""What travels: events go in, the OTLP request that carries them comes out, anonymous by construction.

Made of OTLP's own messages. The SDK's records and encoder would make the same bytes (tests/test_wire.py compares), but
importing them takes longer than all else that a relay does, and encoding with them twice as long (benchmarks).
Source: OpenTelemetry specification, Logs Data Model, Trace API, Resource SDK; opentelemetry-proto;
docs/reference/event.md for the rest.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot._version import __version__
from otel_tbot.event import EVENT_NAME, TbotStart

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    Request = ExportLogsServiceRequest | ExportTraceServiceRequest

Event = tuple[TbotStart, int]
"""An event and its time, in nanoseconds since the epoch by our own clock."""

SCOPE_NAME: Final = "otel_tbot"
_NEVER_AGAIN: Final = "session.id"

_ANYWHERE: Final = {
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
    """The attributes of an event's resource, whole; of the system and processor only where tbot runs here (*is_local*).

    Asks the operating system for its own name, and nothing else.
    """
    return {**_ANYWHERE, **(_describe_platform() if is_local else {})}


def _describe_platform() -> dict[str, str]:
    if hasattr(os, "uname"):
        name, machine = os.uname().sysname, os.uname().machine
    else:
        name, machine = "Windows", os.environ.get("PROCESSOR_ARCHITECTURE", "")
    platform = {"os.type": OS_TYPES.get(name), "host.arch": HOST_ARCHS.get(machine.lower())}
    return {key: value for key, value in platform.items() if value is not None}


def load_encoder(signal: str, *, is_local: bool) -> Callable[[Sequence[Event]], "Request"]:
    """What makes the request, of *signal* ("log" or "span"), that carries events; no events make an empty one.

    *is_local* as for `describe_resource`. Imports the messages of that signal.
    """
    resource = Resource(attributes=_to_attributes(describe_resource(is_local=is_local)))
    scope = InstrumentationScope(name=SCOPE_NAME, version=__version__)
    return _load_span_encoder(resource, scope) if signal == "span" else _load_log_encoder(resource, scope)


def _load_log_encoder(resource: Resource, scope: InstrumentationScope) -> Callable[[Sequence[Event]], "Request"]:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

    body = AnyValue(string_value=EVENT_NAME)

    def encode(events: Sequence[Event]) -> ExportLogsServiceRequest:
        records = []
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
        groups = [ResourceLogs(resource=resource, scope_logs=[ScopeLogs(scope=scope, log_records=records)])]
        return ExportLogsServiceRequest(resource_logs=groups if records else ())

    return encode


def _load_span_encoder(resource: Resource, scope: InstrumentationScope) -> Callable[[Sequence[Event]], "Request"]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

    status = Status()

    def encode(events: Sequence[Event]) -> ExportTraceServiceRequest:
        spans = []
        for event, time_ns in events:
            seconds_ns = to_whole_second(time_ns)
            span = Span(
                trace_id=make_id(16),
                span_id=make_id(8),
                flags=_FLAGS_NO_REMOTE_PARENT,
                name=EVENT_NAME,
                kind=_KIND_INTERNAL,  # type: ignore[arg-type]  # an enum's number
                start_time_unix_nano=seconds_ns,
                end_time_unix_nano=seconds_ns,
                attributes=_to_attributes(event.attributes()),
                status=status,
            )
            spans.append(span)
        groups = [ResourceSpans(resource=resource, scope_spans=[ScopeSpans(scope=scope, spans=spans)])]
        return ExportTraceServiceRequest(resource_spans=groups if spans else ())

    return encode


def _to_attributes(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        _build_attribute(key, value) if key == _NEVER_AGAIN else _recall_attribute(key, value)
        for key, value in values.items()
    ]


def _build_attribute(key: str, value: str | int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value) if type(value) is int else AnyValue(string_value=value))  # type: ignore[arg-type]  # is a text where it is no int


# A fleet's starts are much alike: recalled, eight of nine attributes cost a tenth (3.5 instead of 10 us an event).
_recall_attribute = lru_cache(maxsize=1024)(_build_attribute)


def to_whole_second(time_ns: int) -> int:
    """*time_ns* cut to the whole second: finer would join the event to Teleport's audit log. Pure."""
    return time_ns - time_ns % 1_000_000_000


def make_id(size_bytes: int) -> bytes:
    """*size_bytes* random bytes, never the invalid id of zeros.

    From the operating system, since an application may have seeded Python's generator.
    """
    while not any(made := os.urandom(size_bytes)):
        pass  # pragma: no cover  # once in 2 to the 64th
    return made
