"""What may leave: a `TbotStart` goes in, an anonymous OpenTelemetry record or span comes out.

Nothing of the process around it is asked: no resource detector, no current span, no baggage, no global provider.
Source: OpenTelemetry specification, Logs Data Model, Trace API, Resource SDK; docs/reference/event.md for the rest.
"""

import time
from typing import Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    INVALID_SPAN,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)

from otel_tbot._version import __version__
from otel_tbot.event import EVENT_NAME, TbotStart
from otel_tbot.otlp.encoding import SCOPE_NAME, describe_resource, make_id, to_whole_second

SCOPE: Final = InstrumentationScope(SCOPE_NAME, __version__)

_MAX_TIME_NS: Final = 2**63 - 1

# An empty Context is falsy, and LogRecord would take the current one in its place.
_NO_TRACE: Final = set_span_in_context(INVALID_SPAN, Context())


def to_resource(*, is_local: bool) -> Resource:
    """The whole resource of an event; with operating system and architecture only where tbot runs here (*is_local*).

    `Resource(...)` adds nothing by itself, as `Resource.create` does. Asks the operating system for its own name.
    """
    return Resource(describe_resource(is_local=is_local))


def find_event(record: ReadableLogRecord | ReadableSpan) -> tuple[TbotStart, int] | None:
    """The event that a finished *record* of somebody's pipeline tells of, and its time; None where it is another. Pure.

    Whatever else is on it, its resource, scope, context, body and other attributes included, is left behind. A time
    that is none, or beyond what OTLP carries, becomes that of now.

    Raises:
        EventError: it is named `tbot.start`, but its attributes break a rule.
    """
    if isinstance(record, ReadableSpan):
        name, attributes, times = record.name, record.attributes, [record.start_time]
    else:
        log = record.log_record
        name, attributes, times = log.event_name or "", log.attributes, [log.timestamp, log.observed_timestamp]
    if name != EVENT_NAME:
        return None
    event = TbotStart.from_attributes(attributes or {})
    known = [time_ns for time_ns in times if time_ns and 0 < time_ns <= _MAX_TIME_NS]
    return event, known[0] if known else time.time_ns()


def to_log_record(event: TbotStart, *, time_ns: int, resource: Resource) -> ReadableLogRecord:
    """*event* as a log record: event name and body `tbot.start`, severity INFO, both times, no trace context. Pure.

    *time_ns*, in nanoseconds since the epoch by our own clock, is cut to the whole second.
    """
    seconds_ns = to_whole_second(time_ns)
    record = LogRecord(
        timestamp=seconds_ns,
        observed_timestamp=seconds_ns,
        context=_NO_TRACE,
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body=EVENT_NAME,
        attributes=event.attributes(),
        event_name=EVENT_NAME,
    )
    return ReadableLogRecord(log_record=record, resource=resource, instrumentation_scope=SCOPE)


def to_span(event: TbotStart, *, time_ns: int, resource: Resource) -> ReadableSpan:
    """*event* as a span: INTERNAL, a root with ids of its own, start = end, *time_ns* cut to the whole second.

    The ids come from the operating system.
    """
    seconds_ns = to_whole_second(time_ns)
    return ReadableSpan(
        name=EVENT_NAME,
        context=SpanContext(
            trace_id=int.from_bytes(make_id(16), "big"),
            span_id=int.from_bytes(make_id(8), "big"),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        ),
        resource=resource,
        attributes=event.attributes(),
        kind=SpanKind.INTERNAL,
        start_time=seconds_ns,
        end_time=seconds_ns,
        instrumentation_scope=SCOPE,
    )
