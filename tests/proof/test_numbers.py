"""Proves a part of promise 2: a number in a field of a report or a record leaves only as a documented count."""

import asyncio
import struct

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from otel_tbot import TbotLogRecordExporter, TbotSpanExporter, TbotStart
from otel_tbot.tbot.report import to_report
from tests.proof.recording import RecordingProxy
from tests.proof.test_documented import submit
from tests.relay.test_server import PATIENT, Command
from tests.support.hostile_otlp import CANARY, MARKS, NUMBER, NUMBER_32, plant_everywhere
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer

KINDS = {"log": ExportLogsServiceRequest, "span": ExportTraceServiceRequest}
EVENT = TbotStart(run_mode="daemon", version="18.4.1", join_type="iam")
TRACE_ID = NUMBER << 64 | NUMBER
COUNTS = tuple(f"start.destinations_{name}" for name in ("other", "database", "kubernetes", "application"))
"""Fields of a report whose number is meant to travel, as the value of one attribute."""

# Ids are big-endian. Sessions are random, so a mark of four bytes is too short to prove anything.
FOUND = (*(mark for mark in MARKS if len(mark) > 4), struct.pack(">Q", NUMBER), str(NUMBER).encode())


def find_marks(body):
    """Returns the planted numbers and texts in *body*, each as it would be written."""
    return [mark for mark in FOUND if mark in body]


def list_events(body, signal):
    """Returns the log records or spans of a request."""
    request = KINDS[signal].FromString(body)
    if signal == "log":
        return [record for group in request.resource_logs for scope in group.scope_logs for record in scope.log_records]
    return [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]


def list_reports():
    """Yields the path of a field, and a report with foreign data in it."""
    report = to_report(EVENT)
    report.timestamp.seconds = 1
    yield from plant_everywhere(report)


@pytest.mark.promise("anonymous.numbers")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_number_in_a_report_to_a_bridge_leaves_only_as_a_count(signal, protocol, cases):
    """Of all fields of a report, known and unknown, only the four counts bring their number to the collector."""
    for name, report in list_reports():
        with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
            with RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
                environ = {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": proxy.url,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                    "OTEL_TBOT_SIGNAL": signal,
                    "OTEL_TBOT_TIMEOUT": "60000",
                }
                (status,) = asyncio.run(submit(environ, [report]))
            bodies = [request.body for request in proxy.recording.requests()]

        assert (status, len(bodies)) in {(200, 1), (400, 0)}, name
        if name in COUNTS:
            (event,) = list_events(bodies[0], signal)
            planted = [a.key for a in event.attributes if a.value.int_value == NUMBER_32]
            assert [name.replace("start.", "tbot.")] == planted
            assert 200 == status
        else:
            assert [] == [mark for body in bodies for mark in find_marks(body)], name
            assert not any(CANARY.encode()[:8] in body for body in bodies), name
        cases.add()


@pytest.mark.promise("anonymous.numbers")
@pytest.mark.parametrize("name", ["<unknown number>", "start.<unknown number>", "timestamp.seconds", "timestamp.nanos"])
def test_a_number_in_a_report_to_a_relay_does_not_leave(name):
    """The relay sends the event without the planted number."""
    report = dict(list_reports())[name]
    with OtlpHttpServer() as server:
        command = Command(PATIENT | {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url})
        status = command.report(report)
        command.process.communicate("")
        command.launch.wait_for_end()
        (request,) = server.requests

    assert (200, "") == status
    assert [] == find_marks(request.body)


SCOPE = InstrumentationScope(str(NUMBER), str(NUMBER), str(NUMBER), {"number": NUMBER})
RESOURCE = Resource({"number": NUMBER, "numbers": [NUMBER, NUMBER_32], "part": NUMBER_32 + 0.5})
CONTEXT = SpanContext(
    TRACE_ID, NUMBER, is_remote=True, trace_flags=TraceFlags(255), trace_state=TraceState([("n", "1")])
)
EXTRA = {"number": NUMBER, "part": NUMBER_32 + 0.5, "numbers": [NUMBER], "tbot.number": NUMBER, str(NUMBER): "x"}

# One field with a foreign number each, as arguments of the record's class.
PLANTED = {
    "log": {
        "trace id": {"trace_id": TRACE_ID},
        "span id": {"span_id": NUMBER},
        "trace flags": {"trace_flags": TraceFlags(255)},
        "severity": {"severity_number": SeverityNumber.FATAL4, "severity_text": str(NUMBER)},
        "body": {"body": NUMBER},
        "body of numbers": {"body": {"number": [NUMBER, NUMBER_32 + 0.5]}},
        "attributes": {"attributes": {**EVENT.attributes(), **EXTRA}},
        "observed time": {"observed_timestamp": NUMBER},
        "time below a second": {"timestamp": 10**9 + NUMBER % 10**9},
    },
    "span": {
        "context": {"context": CONTEXT},
        "parent": {"parent": CONTEXT},
        "kind": {"kind": SpanKind.CONSUMER},
        "attributes": {"attributes": {**EVENT.attributes(), **EXTRA}},
        "events": {"events": [Event("number", {"number": NUMBER}, timestamp=NUMBER)]},
        "links": {"links": [Link(CONTEXT, {"number": NUMBER})]},
        "status": {"status": Status(StatusCode.ERROR, str(NUMBER))},
        "end": {"end_time": NUMBER},
        "time below a second": {"start_time": 10**9 + NUMBER % 10**9},
    },
}
AROUND = {
    "resource": {"resource": RESOURCE},
    "scope": {"instrumentation_scope": SCOPE},
}


def build_record(signal, fields, around):
    """Returns a `tbot.start` of second 1 with *fields* and *around* replaced."""
    around = {"resource": Resource({}), **around}
    if signal == "span":
        plain = {"name": "tbot.start", "attributes": EVENT.attributes(), "start_time": 10**9, "end_time": 10**9 + 1000}
        plain["context"] = SpanContext(1, 1, is_remote=False)
        return ReadableSpan(**{**plain, **fields}, **around)
    plain = {"event_name": "tbot.start", "attributes": EVENT.attributes(), "timestamp": 10**9}
    return ReadableLogRecord(log_record=LogRecord(**{**plain, **fields}), **around)


@pytest.mark.promise("anonymous.numbers")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_number_in_a_record_changes_no_byte_of_what_the_plug_in_sends(signal, protocol, monkeypatch, cases):
    """Whatever number is in a record, its span, scope or resource, the request is the one of the plain event."""
    rows = {name: (fields, {}) for name, fields in PLANTED[signal].items()}
    rows |= {name: ({}, around) for name, around in AROUND.items()}
    exporter_class = TbotLogRecordExporter if signal == "log" else TbotSpanExporter
    bodies = {}
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        for name, (fields, around) in {"plain": ({}, {}), **rows}.items():
            with RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
                monkeypatch.setenv("TELEPORT_ANONYMOUS_TELEMETRY", "1")
                monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", proxy.url)
                monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
                exporter = exporter_class()
                assert "SUCCESS" == exporter.export([build_record(signal, fields, around)]).name
                exporter.shutdown()
                (request,) = proxy.recording.requests()
                bodies[name] = request.body

    for name in rows:
        assert bodies["plain"] == bodies[name], name
        assert [] == find_marks(bodies[name]), name
        cases.add()
