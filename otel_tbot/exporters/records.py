"""Converts events to anonymous OpenTelemetry log records and spans, and finds events in other people's records.

Reads nothing of the process around it: no resource detector, current span, baggage or global provider.
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
from otel_tbot.otlp.encoding import SCOPE_NAME, SPAN_NS, TimedEvent, describe_resource, to_span_ids, to_whole_second

SCOPE: Final = InstrumentationScope(SCOPE_NAME, __version__)

_MAX_TIME_NS: Final = 2**63 - 1

# An empty Context is falsy, and LogRecord would take the current one instead.
_NO_TRACE: Final = set_span_in_context(INVALID_SPAN, Context())


def to_resource(*, is_local: bool) -> Resource:
    """Returns the whole resource of an event; operating system and architecture only if tbot runs here (*is_local*).

    `Resource(...)` adds nothing by itself, unlike `Resource.create`. Asks the operating system for its name.
    """
    return Resource(describe_resource(is_local=is_local))


def find_event(record: ReadableLogRecord | ReadableSpan) -> TimedEvent | None:
    """Returns the event that *record* reports, and its time; None for any other record.

    Everything else that is on it is dropped: its resource, scope, context, body and other attributes. A record
    without a time, or with one that OTLP cannot hold, gets the current time.

    Raises:
        EventError: it is named `tbot.start`, but its attributes break a rule.
    """
    if isinstance(record, ReadableSpan):
        if record.name != EVENT_NAME:
            return None
        attributes, times = record.attributes, [record.start_time]
    else:
        log = record.log_record
        if log.event_name != EVENT_NAME:
            return None
        attributes, times = log.attributes, [log.timestamp, log.observed_timestamp]
    event = TbotStart.from_attributes(attributes or {})
    known = [time_ns for time_ns in times if time_ns and 0 < time_ns <= _MAX_TIME_NS]
    return event, known[0] if known else time.time_ns()


def to_log_record(event: TbotStart, *, time_ns: int, resource: Resource) -> ReadableLogRecord:
    """Converts *event* to a log record: event name and body `tbot.start`, severity INFO, no trace context. Pure.

    Both its times are *time_ns*, in nanoseconds since the epoch by our own clock, cut to the whole second.
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
    """Converts *event* to a span: INTERNAL, a root, 1 microsecond long, from *time_ns* cut to the whole second. Pure.

    Its ids are made of the session id, so that no other identifier travels.
    """
    seconds_ns = to_whole_second(time_ns)
    trace_id, span_id = to_span_ids(event.session_id)
    return ReadableSpan(
        name=EVENT_NAME,
        context=SpanContext(
            trace_id=int.from_bytes(trace_id, "big"),
            span_id=int.from_bytes(span_id, "big"),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        ),
        resource=resource,
        attributes=event.attributes(),
        kind=SpanKind.INTERNAL,
        start_time=seconds_ns,
        end_time=seconds_ns + SPAN_NS,
        instrumentation_scope=SCOPE,
    )
