import logging
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    InMemoryLogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_tbot import ExporterError, TbotStart, __version__
from otel_tbot.exporters import TbotLogRecordExporter, TbotSpanExporter, to_environ
from otel_tbot.exporters.records import to_resource
from tests.support.application import CANARY, WAYS, run_application
from tests.support.polling import poll_until
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, refusing_port, silent_server, trickling_server

SESSION = "6d0b2c7e-93c4-4c7b-9d2a-0f2b8a1c5e11"
SECOND_NS = 1_000_000_000


@pytest.fixture
def opted_in(monkeypatch):
    """Telemetry is on."""
    monkeypatch.setenv("TELEPORT_ANONYMOUS_TELEMETRY", "1")


def server_of(protocol):
    """A receiver that speaks *protocol*."""
    return OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()


def to_fields(message):
    """A protobuf message as nested (name, value) pairs, so that a field that nobody thought of is seen."""
    return {
        field.name: [to_fields(item) for item in value]
        if field.type == field.TYPE_MESSAGE and not hasattr(value, "DESCRIPTOR")
        else to_fields(value)
        if field.type == field.TYPE_MESSAGE
        else value
        for field, value in message.ListFields()
    }


def to_pairs(attributes):
    """OTLP attributes as fields."""
    return [
        {"key": key, "value": {"int_value": value} if isinstance(value, int) else {"string_value": value}}
        for key, value in attributes.items()
    ]


def expected_request(signal, event):
    """The whole request that holds *event*, with its times and ids replaced by 0."""
    resource = {"attributes": to_pairs(to_resource(is_local=True).attributes)}
    scope = {"name": "otel_tbot", "version": __version__}
    if signal == "log":
        record = {
            "time_unix_nano": 0,
            "observed_time_unix_nano": 0,
            "severity_number": 9,
            "severity_text": "INFO",
            "body": {"string_value": "tbot.start"},
            "attributes": to_pairs(event.attributes()),
            "event_name": "tbot.start",
        }
        return {"resource_logs": [{"resource": resource, "scope_logs": [{"scope": scope, "log_records": [record]}]}]}
    span = {
        "trace_id": 0,
        "span_id": 0,
        "flags": 256,
        "name": "tbot.start",
        "kind": 1,
        "start_time_unix_nano": 0,
        "end_time_unix_nano": 0,
        "attributes": to_pairs(event.attributes()),
        "status": {},
    }
    return {"resource_spans": [{"resource": resource, "scope_spans": [{"scope": scope, "spans": [span]}]}]}


def without_chance(fields, began):
    """*fields* with times and ids, once checked, replaced by 0."""
    (group,) = fields.get("resource_logs") or fields.get("resource_spans")
    (scope,) = group.get("scope_logs") or group.get("scope_spans")
    (record,) = scope.get("log_records") or scope.get("spans")
    for name in [name for name in record if name.endswith("time_unix_nano")]:
        assert 0 == record[name] % SECOND_NS
        assert int(began) <= record[name] // SECOND_NS <= time.time()
        record[name] = 0
    for name in [name for name in record if name.endswith("_id")]:
        assert any(record[name])
        record[name] = 0
    return fields


EXPECTED_HEADERS = {
    "http/protobuf": {
        "host",
        "user-agent",
        "accept-encoding",
        "accept",
        "connection",
        "content-type",
        "content-length",
    },
    "grpc": {"user-agent"},
}
DECLARED_HEADERS = {"http/protobuf": {"x-token", "x-more", "content-encoding"}, "grpc": {"x-token", "x-more"}}


@pytest.mark.parametrize("consent", ["1", None], ids=["on", "off"])
@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_brings_the_anonymous_event_and_nothing_else(way, protocol, signal, consent, tmp_path):
    """Way in, protocol, signal: opted in exactly one request, all of it as documented, headers included; else none."""
    event = TbotStart(run_mode="one-shot", version="18.4.1", join_type="iam", session_id=str(uuid.uuid4()))
    began = time.time()
    with server_of(protocol) as server:
        finished = run_application(
            way,
            signal=signal,
            protocol=protocol,
            url=server.url,
            session_id=event.session_id,
            folder=tmp_path,
            consent=consent,
        )
        requests = list(server.requests)

    assert 0 == finished.returncode, finished.stderr
    assert CANARY not in finished.stderr
    assert (1 if consent else 0) == len(requests)
    for request in requests:
        declared = DECLARED_HEADERS[protocol] if way == "declarative" else set()
        assert expected_request(signal, event) == without_chance(to_fields(request.message), began)
        assert EXPECTED_HEADERS[protocol] | declared == set(request.headers)
        assert CANARY not in str(request.headers)


def logs_around(exporter, **attributes):
    """A logger whose provider, on a revealing resource, exports to a plug-in around *exporter*, and the plug-in."""
    plugin = TbotLogRecordExporter(exporter)
    provider = LoggerProvider(Resource.create({"host.name": CANARY, **attributes}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(plugin))
    return provider.get_logger(CANARY), plugin


def start(**fields):
    """A log record that tells of a start."""
    event = {"tbot.run_mode": "daemon", "session.id": SESSION, **fields}
    return LogRecord(event_name="tbot.start", body=CANARY, attributes=event)


@pytest.mark.usefixtures("opted_in")
def test_any_exporter_can_be_wrapped():
    """Around an exporter of the caller's, the event comes out anew, on the anonymous resource and scope."""
    memory = InMemoryLogRecordExporter()
    logger, plugin = logs_around(memory)
    with TracerProvider().get_tracer("x").start_as_current_span("x"):
        logger.emit(start(**{"tbot.helper": "a b", "tbot.version": f"1.2.3-{CANARY}", CANARY: CANARY}))
        logger.emit(LogRecord(event_name="other", body=CANARY))
        logger.emit(LogRecord(body="tbot.start"))
    (record,) = memory.get_finished_logs()

    assert to_resource(is_local=True) == record.resource
    assert ("otel_tbot", __version__) == (record.instrumentation_scope.name, record.instrumentation_scope.version)
    assert {
        "tbot.run_mode": "daemon",
        "tbot.version": "1.2.3",
        "tbot.helper": "_OTHER",
        "tbot.destinations_other": 0,
        "tbot.destinations_database": 0,
        "tbot.destinations_kubernetes": 0,
        "tbot.destinations_application": 0,
        "session.id": SESSION,
    } == dict(record.log_record.attributes)
    assert not record.log_record.trace_id
    assert "tbot.start" == record.log_record.body
    assert 2 == plugin.dropped
    assert CANARY not in record.to_json()


@pytest.mark.usefixtures("opted_in")
def test_a_span_s_surroundings_do_not_come_out():
    """Parent, links, events, status, trace state and ids of the application's span are left behind."""
    memory = InMemorySpanExporter()
    plugin = TbotSpanExporter(memory)
    provider = TracerProvider(resource=Resource.create({"host.name": CANARY}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(plugin))
    tracer = provider.get_tracer(CANARY)
    with tracer.start_as_current_span(CANARY) as parent:
        link = trace.Link(parent.get_span_context(), {CANARY: CANARY})
        attributes = {"tbot.run_mode": "daemon", CANARY: CANARY}
        with tracer.start_as_current_span("tbot.start", attributes=attributes, links=[link]) as span:
            span.add_event(CANARY)
            span.set_status(trace.StatusCode.ERROR, CANARY)
    (exported,) = memory.get_finished_spans()

    assert CANARY not in exported.to_json()
    assert (None, (), ()) == (exported.parent, tuple(exported.links), tuple(exported.events))
    assert exported.context.trace_id != span.get_span_context().trace_id
    assert exported.start_time == exported.end_time
    assert 0 == exported.start_time % SECOND_NS
    assert 1 == plugin.dropped


INVALID = {
    "no run mode": {"tbot.run_mode": CANARY},
    "a count below 0": {"tbot.destinations_other": -1},
    "a count that is a text": {"tbot.destinations_other": CANARY},
    "a count that is a list": {"tbot.destinations_other": [1]},
    "a session id that is no UUID": {"session.id": CANARY},
    "a version that is a number": {"tbot.version": 18},
}


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("fields", INVALID.values(), ids=INVALID)
def test_an_event_that_breaks_a_rule_is_dropped_and_said_once(fields, caplog):
    """It is counted, the first one named by field and rule in one line, and its text is repeated nowhere."""
    memory = InMemoryLogRecordExporter()
    logger, plugin = logs_around(memory)
    logger.emit(start(**fields))
    logger.emit(start(**fields))
    logger.emit(start())

    assert 1 == len(memory.get_finished_logs())
    assert 2 == plugin.dropped
    assert 1 == caplog.text.count("dropped a tbot.start that breaks a rule: ")
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("opted_in")
def test_what_is_dropped_is_said_once_and_counted(caplog):
    """A hundred other records are one line, which does not repeat them; the count is told at the end."""
    caplog.set_level(logging.INFO)
    logger, plugin = logs_around(InMemoryLogRecordExporter())
    for _ in range(100):
        logger.emit(LogRecord(body=CANARY, event_name=CANARY))
    plugin.shutdown()

    assert 100 == plugin.dropped
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert [
        "exporter `tbot`: only tbot.start leaves; other logs are dropped and counted",
        "exporter `tbot`: dropped, since they were no tbot.start or broke its rules: 100",
    ] == lines


def test_off_nothing_is_built_and_nothing_goes_on(caplog):
    """Off at the start: no exporter within, nothing to a given one, and no line; turned on later, it stays off."""
    memory = InMemoryLogRecordExporter()
    logger, _ = logs_around(memory)
    with OtlpHttpServer() as server:
        own = TbotLogRecordExporter(endpoint=server.url + "/v1/logs")
        logger.emit(start())
        os.environ["TELEPORT_ANONYMOUS_TELEMETRY"] = "1"
        try:
            logger.emit(start())
            assert LogRecordExportResult.SUCCESS is own.export(memory_of_one_start())
            assert not server.requests
            assert LogRecordExportResult.SUCCESS is TbotLogRecordExporter(endpoint=server.url + "/v1/logs").export(
                memory_of_one_start()
            )
            assert 1 == len(server.requests)
        finally:
            del os.environ["TELEPORT_ANONYMOUS_TELEMETRY"]

    assert () == tuple(memory.get_finished_logs())
    assert not caplog.records


def memory_of_one_start():
    """A batch with one start, as a processor hands it on."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(Resource({}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    provider.get_logger("x").emit(start())
    return memory.get_finished_logs()


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("variable", [("TELEPORT_ANONYMOUS_TELEMETRY", "0"), ("OTEL_SDK_DISABLED", "true")])
def test_turned_off_later_nothing_leaves_any_more(variable, monkeypatch):
    """Consent is asked at every export."""
    batch = memory_of_one_start()
    with OtlpHttpServer() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs")
        assert LogRecordExportResult.SUCCESS is exporter.export(batch)
        monkeypatch.setenv(*variable)
        assert LogRecordExportResult.SUCCESS is exporter.export(batch)

    assert 1 == len(server.requests)


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_forked_child_exports_over_a_connection_of_its_own(protocol):
    """After a fork the child's event arrives, still anonymous, and the parent's later ones too."""
    script = f"""
import os, sys
from tests.exporters.test_exporters import memory_of_one_start
from otel_tbot.exporters import TbotLogRecordExporter
batch = memory_of_one_start()
exporter = TbotLogRecordExporter(protocol={protocol!r}, endpoint=sys.argv[1], timeout=60000)
if {protocol != "grpc"}:  # gRPC cannot be used on both sides of a fork
    exporter.export(batch)
exporter._gate._sending.acquire(); exporter._gate._state.acquire()  # as another thread may hold them
closed = TbotLogRecordExporter()
closed.shutdown()
pid = os.fork()
if pid == 0:
    os._exit(0 if (exporter.export(batch).name, closed.export(batch).name) == ("SUCCESS", "FAILURE") else 1)
exporter._gate._sending.release(); exporter._gate._state.release()
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), exporter.export(batch).name)
"""
    with server_of(protocol) as server:
        url = server.url if protocol == "grpc" else server.url + "/v1/logs"
        environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}
        finished = subprocess.run(
            [sys.executable, "-c", script, url], env=environ, capture_output=True, text=True, check=False, timeout=120
        )

    assert ("0 SUCCESS\n", 0) == (finished.stdout, finished.returncode), finished.stderr
    assert (2 if protocol == "grpc" else 3) == len(server.requests)
    resource = to_pairs(to_resource(is_local=True).attributes)
    assert all(resource == to_fields(r.message)["resource_logs"][0]["resource"]["attributes"] for r in server.requests)


@pytest.mark.usefixtures("opted_in")
def test_threads_share_an_exporter():
    """Exports from many threads at once are each answered by their own outcome."""
    batch = memory_of_one_start()
    with OtlpHttpServer() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=60000)
        results = []
        threads = [threading.Thread(target=lambda: results.append(exporter.export(batch))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [LogRecordExportResult.SUCCESS] * 16 == results
    assert 16 == len(server.requests)


@pytest.mark.usefixtures("opted_in")
def test_a_collector_that_comes_back_in_time_gets_the_event():
    """A refusal that may be tried again is tried again, within the timeout; the record arrives once accepted."""
    batch = memory_of_one_start()
    with OtlpHttpServer(Answer(status=503, headers={"Retry-After": "0"})) as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=60000)
        results = []
        thread = threading.Thread(target=lambda: results.append(exporter.export(batch)))
        thread.start()
        server.wait_for_request()
        server.answer = Answer()
        thread.join()

    assert [LogRecordExportResult.SUCCESS] == results
    assert 2 <= len(server.requests)


FAULTS = {
    "refused": lambda: OtlpHttpServer(Answer(status=400)),
    "redirected": lambda: OtlpHttpServer(Answer(status=302, headers={"Location": "/x"})),
    "a web page": lambda: OtlpHttpServer(Answer(content_type="text/html")),
    "rejected": lambda: OtlpHttpServer(Answer(body=b"\x0a\x02\x08\x01")),
    "silent": silent_server,
    "a body without end": trickling_server,
    "a head without end, which the transport's own timeout does not see": lambda: trickling_server(
        b"HTTP/1.1 200 OK\r\nX: "
    ),
}


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_was_not_accepted_is_a_failure_and_one_line(fault, caplog):
    """Where the SDK's exporter says success, or waits, this one says failure, in time and in a line."""
    with fault() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=500)

        assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
        assert exporter.force_flush(timeout_millis=60000)
    assert ["exporter `tbot`: events not delivered: 1"] == [line.partition(" (")[0] for line in caplog.messages]


@pytest.mark.usefixtures("opted_in")
def test_shutdown_ends_an_export_that_waits_to_try_again():
    """Shutdown does not wait for the next try; a second one does nothing; what comes after is refused."""
    batch = memory_of_one_start()
    with refusing_port() as url:
        exporter = TbotSpanExporter(endpoint=url, timeout=600_000)
        log_exporter = TbotLogRecordExporter(endpoint=url, timeout=600_000)
        results = []
        thread = threading.Thread(target=lambda: results.append(log_exporter.export(batch)))
        thread.start()
        poll_until(lambda: not log_exporter.force_flush(timeout_millis=1), waiting_for="the export to be under way")
        log_exporter.shutdown()
        thread.join(60)
        log_exporter.shutdown()
        exporter.shutdown()

    assert [LogRecordExportResult.FAILURE] == results
    assert LogRecordExportResult.FAILURE is log_exporter.export(batch)
    assert SpanExportResult.FAILURE is exporter.export([])


@pytest.mark.usefixtures("opted_in")
def test_shutdown_and_flush_end_in_their_time_beside_a_silent_collector():
    """With an export under way that gets no answer, force_flush says no and shutdown returns."""
    with silent_server() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=600_000)
        thread = threading.Thread(target=exporter.export, args=(memory_of_one_start(),), daemon=True)
        thread.start()
        poll_until(lambda: server.connections, waiting_for="the export to be under way")

        assert exporter.force_flush(timeout_millis=10) is False
        exporter.shutdown(timeout_millis=10)
    thread.join(60)
    assert not thread.is_alive()


class FailingExporter(SpanExporter):
    """An exporter that raises with a secret in its text, and notes what it is asked."""

    def __init__(self):
        self.calls = []

    def export(self, _spans):
        raise RuntimeError(CANARY)

    def force_flush(self, timeout_millis=0):
        self.calls.append(("force_flush", timeout_millis > 0))
        return True

    def shutdown(self):
        self.calls.append(("shutdown", True))


@pytest.mark.usefixtures("opted_in")
def test_an_exporter_within_that_raises_is_a_failure_that_tells_no_secret(caplog):
    """Its class is named once; flush and shutdown reach it."""
    within = FailingExporter()
    exporter = TbotSpanExporter(within)
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.get_tracer("x").start_span("tbot.start", attributes={"tbot.run_mode": "daemon"}).end()

    assert SpanExportResult.FAILURE is exporter.export(memory.get_finished_spans())
    assert SpanExportResult.SUCCESS is exporter.export([])
    assert exporter.force_flush()
    exporter.shutdown()
    assert [("force_flush", True), ("shutdown", True)] == within.calls
    assert "the exporter within raised RuntimeError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_no_trace_or_baggage_reaches_the_exporter_within(signal):
    """While the exporter within works, the context holds neither span nor baggage of the application."""
    seen = []

    class Looking(InMemoryLogRecordExporter if signal == "log" else InMemorySpanExporter):
        def export(self, batch):
            seen.append((dict(baggage.get_all()), trace.get_current_span().get_span_context().is_valid))
            return super().export(batch)

    token = context.attach(baggage.set_baggage(CANARY, CANARY))
    try:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(TbotSpanExporter(Looking() if signal == "span" else None)))
        with provider.get_tracer("x").start_as_current_span("x"):
            if signal == "log":
                logs_around(Looking())[0].emit(start())
            else:
                provider.get_tracer("x").start_span("tbot.start", attributes={"tbot.run_mode": "daemon"}).end()
    finally:
        context.detach(token)

    assert [({}, False)] == seen


GOOD_ARGUMENTS = {
    "nothing": ({}, {}),
    "null": ({"endpoint": None, "headers": None, "tls": None}, {}),
    "an endpoint": ({"endpoint": "http://c:1/v1/logs"}, {"ENDPOINT": "http://c:1/v1/logs"}),
    "a protocol": ({"protocol": "grpc", "endpoint": "c:1"}, {"PROTOCOL": "grpc", "ENDPOINT": "c:1"}),
    "a map of headers": ({"headers": {"a": "b,c"}}, {"HEADERS": "a=b%2Cc"}),
    "a list of headers": ({"headers": [{"name": "a", "value": None}]}, {"HEADERS": "a="}),
    "both forms of headers": (
        {"headers": [{"name": "a", "value": "b"}], "headers_list": "c=d"},
        {"HEADERS": "c=d,a=b"},
    ),
    "milliseconds": ({"timeout": 2500}, {"TIMEOUT": "2.500000"}),
    "no limit": ({"timeout": 0}, {"TIMEOUT": "600.000000"}),
    "tls": (
        {"tls": {"ca_file": "ca", "key_file": "key", "cert_file": "cert", "insecure": True}},
        {"CERTIFICATE": "ca", "CLIENT_KEY": "key", "CLIENT_CERTIFICATE": "cert", "INSECURE": "true"},
    ),
    "an encoding": ({"encoding": "protobuf", "compression": "gzip"}, {"COMPRESSION": "gzip"}),
}


@pytest.mark.parametrize(("arguments", "environ"), GOOD_ARGUMENTS.values(), ids=GOOD_ARGUMENTS)
def test_arguments_are_the_schema_s(arguments, environ):
    """The keys of otlp_http and otlp_grpc say what the variables say, and stand before them."""
    general = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTHER": "x"}
    named = {f"OTEL_EXPORTER_OTLP_LOGS_{name}": value for name, value in environ.items()}

    assert {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **named} == to_environ("log", arguments, general)
    assert named == to_environ("log", arguments, general | {"OTEL_CONFIG_FILE": "x"})


BAD_ARGUMENTS = {
    "protocol": {"protocol": "http/json"},
    "endpoint": {"endpoint": f"ftp://{CANARY}"},
    "compression": {"compression": CANARY},
    "timeout": {"timeout": -1},
    "timeout that is a text": {"timeout": CANARY},
    "timeout beyond the limit": {"timeout": 600_001},
    "headers": {"headers": [{"value": CANARY}]},
    "headers that are a text": {"headers": CANARY},
    "headers with a name that is none": {"headers": {f"{CANARY} x": "y"}},
    "headers that are numbers": {"headers": [1]},
    "headers with a number": {"headers": {"a": 1}},
    "tls that is a list": {"tls": [CANARY]},
    "tls with more": {"tls": {CANARY: "x"}},
    "tls with a number": {"tls": {"ca_file": 1}},
    "encoding": {"encoding": "json"},
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_a_bad_argument_is_named_with_its_rule_and_without_its_value(arguments):
    """ExporterError, of one line, with the key; on or off."""
    with pytest.raises(ExporterError) as raised:
        TbotLogRecordExporter(**arguments)
    text = str(raised.value)

    assert text.startswith(next(iter(arguments)))
    assert ": must be " in text
    assert CANARY not in text
    assert "\n" not in text


def test_every_bad_argument_is_named_at_once():
    """All faults are in one error, an argument that does not exist too."""
    with pytest.raises(ExporterError) as raised:
        TbotSpanExporter(endpoints="x", timeout=-1, encoding="json")

    assert ["endpoints", "encoding", "timeout"] == [name for name, _ in raised.value.faults]


@pytest.mark.usefixtures("opted_in")
def test_a_malformed_variable_is_a_line_and_no_error(monkeypatch, caplog):
    """The host application starts, whatever its variables hold; the line names variable and rule."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", CANARY)
    exporter = TbotLogRecordExporter()

    assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
    assert [
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: must be an http:// or https:// URL (grpc: HOST:PORT too);"
        " using no endpoint, so nothing is sent",
        "OTEL_EXPORTER_OTLP_TIMEOUT: must be a number of seconds above 0 and up to 600; using 10",
        "exporter `tbot`: events not delivered: 1 (unreachable)",
    ] == caplog.messages


@pytest.mark.usefixtures("opted_in")
def test_a_certificate_that_cannot_be_read_is_a_failure(caplog, tmp_path):
    """Nothing is sent without the protection that was asked for."""
    with OtlpHttpServer() as server:
        endpoint = server.url.replace("http:", "https:") + "/v1/logs"
        exporter = TbotLogRecordExporter(endpoint=endpoint, tls={"ca_file": str(tmp_path / "none")}, timeout=60000)

        assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
    assert "events not delivered: 1" in caplog.text


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize(
    ("variable", "value", "warnings"),
    [
        ("OTEL_LOGS_EXPORTER", "otlp,tbot", 1),
        ("OTEL_LOGS_EXPORTER", "tbot, console", 1),
        ("OTEL_LOGS_EXPORTER", "tbot", 0),
        ("OTEL_LOGS_EXPORTER", "none,tbot", 0),
        ("OTEL_LOGS_EXPORTER", "otlp,console", 0),
        ("OTEL_TRACES_EXPORTER", "otlp,tbot", 0),
    ],
)
def test_a_neighbour_in_the_variable_is_warned_of(variable, value, warnings, monkeypatch, caplog):
    """`otlp,tbot` would send the event on the application's own resource too, and one line says so."""
    monkeypatch.setenv(variable, value)
    TbotLogRecordExporter(InMemoryLogRecordExporter())

    assert warnings == caplog.text.count("another exporter shares its provider")


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_neighbour_on_the_global_provider_is_warned_of(neighbours, signal):
    """However the provider was made: at the first event, a line tells of another exporter beside it."""
    script = f"""
import logging
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_tbot.exporters import TbotLogRecordExporter, TbotSpanExporter
logging.basicConfig(format="%(message)s")
if {signal == "log"}:
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(TbotLogRecordExporter(InMemoryLogRecordExporter())))
    for _ in range({neighbours}):
        provider.add_log_record_processor(BatchLogRecordProcessor(InMemoryLogRecordExporter()))
    _logs.set_logger_provider(provider)
    provider.get_logger("x").emit(_logs.LogRecord(event_name="tbot.start", attributes={{"tbot.run_mode": "daemon"}}))
else:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(TbotSpanExporter(InMemorySpanExporter())))
    for _ in range({neighbours}):
        provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    provider.get_tracer("x").start_span("tbot.start", attributes={{"tbot.run_mode": "daemon"}}).end()
provider.shutdown()
"""
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env={"TELEPORT_ANONYMOUS_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert neighbours == finished.stderr.count("another exporter shares its provider")


@pytest.mark.usefixtures("opted_in")
def test_an_event_waits_for_the_end_and_is_not_lost_with_it():
    """An application that ends right after the event still delivers it: the batch processor flushes at exit."""
    script = """
import sys
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from otel_tbot.exporters import TbotLogRecordExporter
provider = LoggerProvider()
provider.add_log_record_processor(BatchLogRecordProcessor(TbotLogRecordExporter(endpoint=sys.argv[1], timeout=60000)))
provider.get_logger("x").emit(LogRecord(event_name="tbot.start", attributes={"tbot.run_mode": "daemon"}))
"""
    with OtlpHttpServer() as server:
        finished = subprocess.run(
            [sys.executable, "-c", script, server.url + "/v1/logs"],
            env={"TELEPORT_ANONYMOUS_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert (0, "") == (finished.returncode, finished.stderr)
    assert 1 == len(server.requests)


@pytest.mark.usefixtures("opted_in")
def test_times_that_are_none_become_now():
    """A record without a time, or with one that OTLP cannot carry, gets that of its export, cut to the second."""
    memory = InMemoryLogRecordExporter()
    logger, _ = logs_around(memory)
    began = int(time.time())
    for moment in (None, 0, -1, 2**63):
        logger.emit(
            LogRecord(
                event_name="tbot.start",
                timestamp=moment,
                observed_timestamp=moment,
                attributes={"tbot.run_mode": "daemon"},
            )
        )
    logger.emit(LogRecord(event_name="tbot.start", timestamp=7_999_999_999, attributes={"tbot.run_mode": "daemon"}))
    *unknown, known = [record.log_record.timestamp for record in memory.get_finished_logs()]

    assert 7 * SECOND_NS == known
    assert 4 == len(unknown)
    assert all(began <= moment // SECOND_NS <= time.time() and moment % SECOND_NS == 0 for moment in unknown)
