import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid

import grpc
import pytest
import trustme
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
from otel_tbot.exporters import TbotLogRecordExporter, TbotSpanExporter
from otel_tbot.exporters.records import to_resource
from tests.otlp.test_client import has_ipv6_loopback, ipv6_forwarder
from tests.support.application import CANARY, WAYS, run_application
from tests.support.polling import poll_until
from tests.support.servers import Answer, OtlpGrpcServer, OtlpHttpServer, refusing_port, silent_server

SESSION = "6d0b2c7e-93c4-4c7b-9d2a-0f2b8a1c5e11"
SECOND_NS = 1_000_000_000


@pytest.fixture
def opted_in(monkeypatch):
    """Telemetry is on."""
    monkeypatch.setenv("TELEPORT_ANONYMOUS_TELEMETRY", "1")


def server_of(protocol):
    """Returns a receiver that speaks *protocol*."""
    return OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()


def to_fields(message):
    """Returns a protobuf message as nested mappings, so that an unexpected field is seen."""
    return {
        field.name: [to_fields(item) for item in value]
        if field.type == field.TYPE_MESSAGE and not hasattr(value, "DESCRIPTOR")
        else to_fields(value)
        if field.type == field.TYPE_MESSAGE
        else value
        for field, value in message.ListFields()
    }


def to_pairs(attributes):
    """Returns OTLP attributes as `to_fields` returns them."""
    return [
        {"key": key, "value": {"int_value": value} if isinstance(value, int) else {"string_value": value}}
        for key, value in attributes.items()
    ]


def expected_request(signal, event):
    """Returns the whole request that holds *event*, with its times replaced by 0."""
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
        "trace_id": uuid.UUID(event.session_id).bytes,
        "span_id": uuid.UUID(event.session_id).bytes[8:],
        "flags": 256,
        "name": "tbot.start",
        "kind": 1,
        "start_time_unix_nano": 0,
        "end_time_unix_nano": 0,
        "attributes": to_pairs(event.attributes()),
        "status": {},
    }
    return {"resource_spans": [{"resource": resource, "scope_spans": [{"scope": scope, "spans": [span]}]}]}


def without_times(fields, began):
    """Returns *fields* with times, once checked, replaced by 0."""
    (group,) = fields.get("resource_logs") or fields.get("resource_spans")
    (scope,) = group.get("scope_logs") or group.get("scope_spans")
    (record,) = scope.get("log_records") or scope.get("spans")
    names = [name for name in record if name.endswith("time_unix_nano")]
    assert (1_000 if "end_time_unix_nano" in names else 0) == record[names[1]] - record[names[0]]
    assert 0 == record[names[0]] % SECOND_NS
    assert int(began) <= record[names[0]] // SECOND_NS <= time.time()
    record.update(dict.fromkeys(names, 0))
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
    """Way in, protocol, signal: with consent exactly one request, all of it as documented, headers too; else none."""
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
        assert expected_request(signal, event) == without_times(to_fields(request.message), began)
        assert EXPECTED_HEADERS[protocol] | declared == set(request.headers)
        assert CANARY not in str(request.headers)


def logs_around(exporter, **attributes):
    """Returns a logger of a provider with a revealing resource and a plug-in around *exporter*, and the plug-in."""
    plugin = TbotLogRecordExporter(exporter)
    provider = LoggerProvider(Resource.create({"host.name": CANARY, **attributes}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(plugin))
    return provider.get_logger(CANARY), plugin


def start(**fields):
    """Returns a log record that reports a start."""
    event = {"tbot.run_mode": "daemon", "session.id": SESSION, **fields}
    return LogRecord(event_name="tbot.start", body=CANARY, attributes=event)


@pytest.mark.usefixtures("opted_in")
def test_any_exporter_can_be_wrapped():
    """An exporter that the caller gives gets the event rebuilt, on the anonymous resource and scope."""
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
def test_a_span_s_surroundings_do_not_leave():
    """Parent, links, events, status, trace state and ids of the application's span are dropped."""
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
    session = uuid.UUID(exported.attributes["session.id"])
    assert (session.int, session.int & (2**64 - 1)) == (exported.context.trace_id, exported.context.span_id)
    assert session.int not in {span.get_span_context().trace_id, parent.get_span_context().trace_id}
    assert 1_000 == exported.end_time - exported.start_time
    assert 0 == exported.start_time % SECOND_NS
    assert 1 == plugin.dropped


INVALID = {
    "no run mode": {"tbot.run_mode": CANARY},
    "a count below 0": {"tbot.destinations_other": -1},
    "a count that is a string": {"tbot.destinations_other": CANARY},
    "a count that is a list": {"tbot.destinations_other": [1]},
    "an invalid session id": {"session.id": CANARY},
    "a version that is a number": {"tbot.version": 18},
}


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("fields", INVALID.values(), ids=INVALID)
def test_an_event_that_breaks_a_rule_is_dropped_with_one_warning(fields, caplog):
    """It is counted; one line names the first one's field and rule; its value is repeated nowhere."""
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
def test_other_records_are_dropped_with_one_warning_and_counted(caplog):
    """A hundred other records are one line, which does not repeat them; the count is logged at the end."""
    caplog.set_level(logging.INFO)
    logger, plugin = logs_around(InMemoryLogRecordExporter())
    for _ in range(100):
        logger.emit(LogRecord(body=CANARY, event_name=CANARY))
    plugin.shutdown()

    assert 100 == plugin.dropped
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert [
        "exporter `tbot`: only tbot.start leaves; other logs are dropped and counted",
        "exporter `tbot`: records dropped, not tbot.start or against its rules: 100",
    ] == lines


def test_off_nothing_is_built_or_handed_on(caplog):
    """Off at the start: a given exporter gets nothing, and no line is logged; turned on later, it stays off."""
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
    """Returns a batch with one start, as a processor hands it on."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(Resource({}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    provider.get_logger("x").emit(start())
    return memory.get_finished_logs()


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("variable", [("TELEPORT_ANONYMOUS_TELEMETRY", "0"), ("OTEL_SDK_DISABLED", "true")])
def test_turned_off_later_nothing_leaves_any_longer(variable, monkeypatch):
    """Consent is asked for at every export."""
    batch = memory_of_one_start()
    with OtlpHttpServer() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs")
        assert LogRecordExportResult.SUCCESS is exporter.export(batch)
        monkeypatch.setenv(*variable)
        assert LogRecordExportResult.SUCCESS is exporter.export(batch)

    assert 1 == len(server.requests)


OFF_SCRIPT = """
import sys
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace.export import SpanExporter
before = set(sys.modules)
import otel_tbot
otel_tbot.TbotLogRecordExporter(), otel_tbot.TbotSpanExporter(endpoint="http://c:4317")
new = {name for name in set(sys.modules) - before if name.startswith(("grpc", "requests", "opentelemetry.exporter"))}
print(sorted(new))
"""


@pytest.mark.parametrize("consent", ["1", "0"])
def test_off_no_otlp_exporter_is_imported(consent):
    """With consent withheld, none of OpenTelemetry's exporters, gRPC or requests is imported; granted, all are."""
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": consent}
    finished = subprocess.run(
        [sys.executable, "-c", OFF_SCRIPT], env=environ, capture_output=True, text=True, check=True, timeout=120
    )

    assert ("[]\n" == finished.stdout) == (consent == "0")
    assert all((name in finished.stdout) == (consent == "1") for name in ("grpc", "requests", "otlp.proto.http"))


@pytest.mark.usefixtures("opted_in")
def test_a_forked_child_exports_over_its_own_connection():
    """After a fork, parent and child each use a connection that the other does not; what was shut down stays so."""
    script = """
import os, sys
from tests.exporters.test_exporters import memory_of_one_start
from otel_tbot.exporters import TbotLogRecordExporter
batch = memory_of_one_start()
exporter = TbotLogRecordExporter(endpoint=sys.argv[1], timeout=60000)
exporter.export(batch)
closed = TbotLogRecordExporter()
closed.shutdown()
pid = os.fork()
if pid == 0:
    os._exit(0 if (exporter.export(batch).name, closed.export(batch).name) == ("SUCCESS", "FAILURE") else 1)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), exporter.export(batch).name)
"""
    with OtlpHttpServer() as server:
        environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}
        finished = subprocess.run(
            [sys.executable, "-c", script, server.url + "/v1/logs"],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert ("0 SUCCESS\n", 0) == (finished.stdout, finished.returncode), finished.stderr
    assert 3 == len(server.requests)
    resource = to_pairs(to_resource(is_local=True).attributes)
    assert all(resource == to_fields(r.message)["resource_logs"][0]["resource"]["attributes"] for r in server.requests)


@pytest.mark.usefixtures("opted_in")
def test_threads_share_an_exporter():
    """Each of many exports at once has its own result, and what they drop is counted."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(Resource({}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    provider.get_logger("x").emit(LogRecord(body="other"))
    batch = [*memory_of_one_start(), *memory.get_finished_logs()]
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
    assert 16 == exporter.dropped


FAULTS = {
    "rejecting": lambda: OtlpHttpServer(Answer(status=400)),
    "silent": silent_server,
    "without a listener": refusing_port,
}


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_an_event_that_is_not_delivered_is_a_failure_and_one_line(fault, caplog):
    """OpenTelemetry's exporter logs why; one line says how many events it concerns."""
    with fault() as server:
        url = server if isinstance(server, str) else server.url
        exporter = TbotLogRecordExporter(endpoint=url + "/v1/logs", timeout=500)

        assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
        assert exporter.force_flush(timeout_millis=60000)
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert ["exporter `tbot`: events not delivered: 1"] == lines


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_not_followed(status):
    """The event reaches the collector that was named, and no server that this one names."""
    with OtlpHttpServer() as other:
        redirect = Answer(status=status, headers={"Location": other.url + "/v1/logs"})
        with OtlpHttpServer(redirect) as server:
            TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=60000).export(memory_of_one_start())

    assert 1 == len(server.requests)
    assert not other.requests


@pytest.mark.usefixtures("opted_in")
def test_a_cookie_is_not_sent_back():
    """A collector cannot mark the sender by a cookie."""
    with OtlpHttpServer(Answer(headers={"Set-Cookie": f"a={CANARY}"})) as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=60000)
        exporter.export(memory_of_one_start())
        exporter.export(memory_of_one_start())

    assert 2 == len(server.requests)
    assert not [request for request in server.requests if "cookie" in request.headers]


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_shutdown_ends_an_export_that_waits_to_try_again(protocol):
    """Shutdown does not wait for the next try; a second one does nothing; what comes after is rejected."""
    batch = memory_of_one_start()
    with refusing_port() as url:
        exporter = TbotSpanExporter(endpoint=url, timeout=600_000)
        log_exporter = TbotLogRecordExporter(protocol=protocol, endpoint=url, timeout=600_000)
        results = []
        thread = threading.Thread(target=lambda: results.append(log_exporter.export(batch)))
        thread.start()
        poll_until(lambda: not log_exporter.force_flush(timeout_millis=1), waiting_for="the export to be in flight")
        log_exporter.shutdown()
        thread.join(60)
        log_exporter.shutdown()
        exporter.shutdown()

    assert [LogRecordExportResult.FAILURE] == results
    assert LogRecordExportResult.FAILURE is log_exporter.export(batch)
    assert SpanExportResult.FAILURE is exporter.export([])


@pytest.mark.usefixtures("opted_in")
def test_shutdown_and_flush_keep_their_time_with_a_silent_collector():
    """With an export in flight that is not answered, force_flush returns False and shutdown returns."""
    with silent_server() as server:
        exporter = TbotLogRecordExporter(endpoint=server.url + "/v1/logs", timeout=600_000)
        thread = threading.Thread(target=exporter.export, args=(memory_of_one_start(),), daemon=True)
        thread.start()
        poll_until(lambda: server.connections, waiting_for="the export to be in flight")

        assert exporter.force_flush(timeout_millis=10) is False
        exporter.shutdown(timeout_millis=10)
    thread.join(60)
    assert not thread.is_alive()


class FailingExporter(SpanExporter):
    """An exporter that raises an error with a secret in its text, and records the other calls."""

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
def test_an_exporter_that_raises_is_a_failure_that_repeats_no_secret(caplog):
    """The error's class is named once; flush and shutdown reach the exporter."""
    given = FailingExporter()
    exporter = TbotSpanExporter(given)
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.get_tracer("x").start_span("tbot.start", attributes={"tbot.run_mode": "daemon"}).end()

    assert SpanExportResult.FAILURE is exporter.export(memory.get_finished_spans())
    assert SpanExportResult.SUCCESS is exporter.export([])
    assert exporter.force_flush()
    exporter.shutdown()
    assert [("force_flush", True), ("shutdown", True)] == given.calls
    assert "the exporter that it hands events to raised RuntimeError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_no_trace_or_baggage_reaches_a_given_exporter(signal):
    """While a given exporter works, the context holds neither span nor baggage of the application."""
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


class Certificates:
    """A server's and a client's certificate of one authority, as files."""

    def __init__(self, folder):
        authority = trustme.CA()
        self.ca_file, self.cert_file, self.key_file = (str(folder / name) for name in ("ca", "cert", "key"))
        authority.cert_pem.write_to_path(self.ca_file)
        client = authority.issue_cert("client")
        client.private_key_pem.write_to_path(self.key_file)
        client.cert_chain_pems[0].write_to_path(self.cert_file)
        self._authority, self._server = authority, authority.issue_cert("localhost")

    def server_of(self, protocol):
        """Returns a receiver that speaks *protocol* over TLS and demands a client's certificate."""
        if protocol == "grpc":
            chain = self._server.cert_chain_pems[0].bytes()
            credentials = grpc.ssl_server_credentials(
                [(self._server.private_key_pem.bytes(), chain)], self._authority.cert_pem.bytes(), True
            )
            return OtlpGrpcServer(credentials=credentials)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server.configure_cert(context)
        self._authority.configure_trust(context)
        return OtlpHttpServer(tls=context)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates for this module."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def one_start(signal):
    """Returns a batch with one start, as *signal*."""
    if signal == "log":
        return memory_of_one_start()
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.get_tracer("x").start_span("tbot.start", attributes={"tbot.run_mode": "daemon"}).end()
    return memory.get_finished_spans()


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("source", ["variables", "arguments"])
def test_the_settings_reach_the_wire(source, protocol, signal, certificates, monkeypatch):
    """Endpoint, headers, compression and TLS files, from the variables or from the schema's keys."""
    exporter_class = TbotLogRecordExporter if signal == "log" else TbotSpanExporter
    files = {"ca_file": certificates.ca_file, "key_file": certificates.key_file, "cert_file": certificates.cert_file}
    with certificates.server_of(protocol) as server:
        path = {"log": "/v1/logs", "span": "/v1/traces"}[signal] if protocol == "http/protobuf" else ""
        if source == "variables":
            for name, value in {
                "ENDPOINT": server.url,
                "PROTOCOL": protocol,
                "HEADERS": "X-Token=a%20b,x-more=1",
                "COMPRESSION": "gzip",
                "TIMEOUT": "60",
                "CERTIFICATE": files["ca_file"],
                "CLIENT_KEY": files["key_file"],
                "CLIENT_CERTIFICATE": files["cert_file"],
            }.items():
                monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
            exporter = exporter_class()
        else:
            exporter = exporter_class(
                protocol=protocol,
                endpoint=server.url + path,
                headers=[{"name": "X-Token", "value": "a b"}, {"name": "x-empty", "value": None}],
                headers_list="x-more=1,x-token=c",
                compression="gzip",
                timeout=60_000,
                tls=files,
                encoding="protobuf",
            )

        assert "SUCCESS" == exporter.export(one_start(signal)).name
        exporter.shutdown()
    (request,) = server.requests
    assert ("a b", "1") == (request.headers["x-token"], request.headers["x-more"])
    if source == "arguments":
        assert "" == request.headers["x-empty"]
    if protocol == "http/protobuf":
        assert (path, "gzip") == (request.path, request.headers["content-encoding"])


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("value", ["none", "gzip", "deflate"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_each_compression_is_understood(protocol, value, monkeypatch):
    """An argument stands before the variable; `none` too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none" if value == "gzip" and protocol != "grpc" else "gzip")
    with server_of(protocol) as server:
        path = "/v1/logs" if protocol == "http/protobuf" else ""
        exporter = TbotLogRecordExporter(protocol=protocol, endpoint=server.url + path, compression=value, timeout=0)

        assert LogRecordExportResult.SUCCESS is exporter.export(memory_of_one_start())
        exporter.shutdown()
    (request,) = server.requests
    if protocol == "http/protobuf":
        assert (None if value == "none" else value) == request.headers.get("content-encoding")


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize(("value", "warnings"), [("none", 0), ("gzip", 0), ("deflate", 0), (CANARY, 1)])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_each_compression_of_the_variable_delivers(protocol, value, warnings, monkeypatch, caplog):
    """OpenTelemetry's gRPC exporter alone would raise for `none` and `deflate`; a malformed value is a warning."""
    with server_of(protocol) as server:
        for name, text in {"PROTOCOL": protocol, "ENDPOINT": server.url, "COMPRESSION": value}.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", text)
        exporter = TbotLogRecordExporter()

        assert LogRecordExportResult.SUCCESS is exporter.export(memory_of_one_start())
        exporter.shutdown()
    assert 1 == len(server.requests)
    assert warnings == len(caplog.messages)
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("headers", [{"X-Token": "a,b"}, [{"name": "X-Token", "value": "a,b"}]], ids=["map", "list"])
def test_headers_are_a_map_or_a_list(headers):
    """Both shapes arrive; a comma in a value is part of it."""
    with OtlpHttpServer() as server:
        TbotLogRecordExporter(endpoint=server.url + "/v1/logs", headers=headers).export(memory_of_one_start())

    assert "a,b" == server.requests[0].headers["x-token"]


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize(
    ("environ", "arguments", "protocol"),
    [
        ({}, {}, "http"),
        ({"ENDPOINT": "http://c:4317"}, {}, "grpc"),
        ({"ENDPOINT": "http://c:4318", "LOGS_ENDPOINT": "http://c:4317"}, {}, "grpc"),
        ({"ENDPOINT": "http://c:4317", "PROTOCOL": "http/protobuf"}, {}, "http"),
        ({"PROTOCOL": "grpc"}, {}, "grpc"),
        ({"PROTOCOL": "grpc", "LOGS_PROTOCOL": "http/protobuf"}, {}, "http"),
        ({"PROTOCOL": ""}, {"endpoint": "http://c:4317"}, "grpc"),
        ({"ENDPOINT": "http://c:4317"}, {"endpoint": "http://c:4318/v1/logs"}, "http"),
        ({"PROTOCOL": "http/protobuf"}, {"protocol": "grpc"}, "grpc"),
        ({"TRACES_PROTOCOL": "grpc", "TRACES_ENDPOINT": "http://c:4317"}, {}, "http"),
    ],
)
def test_the_protocol_is_the_one_that_is_set_or_the_port_s(environ, arguments, protocol):
    """The signal's own variable comes first; an argument before both; port 4317 means grpc if neither is set."""
    script = (
        "import json, sys\nfrom otel_tbot import TbotLogRecordExporter\n"
        "TbotLogRecordExporter(**json.loads(sys.argv[1]))\n"
        "print(*(name for name in ('grpc', 'http') if 'opentelemetry.exporter.otlp.proto.' + name in sys.modules))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        env={
            "TELEPORT_ANONYMOUS_TELEMETRY": "1",
            **{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()},
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert (f"{protocol}\n", "") == (finished.stdout, finished.stderr)


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nothing_of_netrc_or_proxies_is_used(protocol, tmp_path, monkeypatch):
    """Credentials of ~/.netrc do not travel, and a proxy of the environment is not asked."""
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {CANARY} password {CANARY}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with OtlpHttpServer() as proxy, server_of(protocol) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", proxy.url.removeprefix("http://"))
        monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8")
        path = "/v1/logs" if protocol == "http/protobuf" else ""
        exporter = TbotLogRecordExporter(protocol=protocol, endpoint=server.url + path, timeout=60_000)

        assert LogRecordExportResult.SUCCESS is exporter.export(memory_of_one_start())
        exporter.shutdown()
    assert not proxy.requests
    (request,) = server.requests
    assert EXPECTED_HEADERS[protocol] == set(request.headers)


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_ipv6_zone_is_not_sent(protocol):
    """It names a network interface, and can hold a MAC address. OpenTelemetry's HTTP client cannot connect to one."""
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback address")
    _, name = socket.if_nameindex()[0]
    path = "/v1/logs" if protocol == "http/protobuf" else ""
    with server_of(protocol) as server, ipv6_forwarder(server.url) as (port, seen):
        endpoint = f"http://[::1%{name}]:{port}{path}"
        exporter = TbotLogRecordExporter(
            protocol=protocol, endpoint=endpoint, timeout=500 if protocol == "http/protobuf" else 60_000
        )

        assert (exporter.export(memory_of_one_start()).name == "SUCCESS") == (protocol == "grpc")
        exporter.shutdown()
    assert (f"[::1]:{port}".encode() in seen) == (protocol == "grpc")
    assert f"::1%{name}".encode() not in seen
    assert f"::1%25{name}".encode() not in seen


BAD_ARGUMENTS = {
    "protocol": {"protocol": "http/json"},
    "endpoint": {"endpoint": f"ftp://{CANARY}"},
    "endpoint that is a number": {"endpoint": 4317},
    "compression": {"compression": CANARY},
    "timeout": {"timeout": -1},
    "timeout that is a string": {"timeout": CANARY},
    "timeout that is a boolean": {"timeout": True},
    "timeout beyond the limit": {"timeout": 600_001},
    "headers": {"headers": [{"value": CANARY}]},
    "headers that are a string": {"headers": CANARY},
    "headers with an invalid name": {"headers": {f"{CANARY} x": "y"}},
    "headers with an equals sign in a name": {"headers": {f"{CANARY}=x": "y"}},
    "headers that are numbers": {"headers": [1]},
    "headers with a number": {"headers": {"a": 1}},
    "headers with a line break": {"headers": {"a": f"{CANARY}\nb"}},
    "headers_list": {"headers_list": f"a=b,{CANARY}"},
    "headers_list that is a list": {"headers_list": [CANARY]},
    "headers_list with a line break": {"headers_list": f"a={CANARY}%0ab"},
    "tls that is a list": {"tls": [CANARY]},
    "tls with more": {"tls": {CANARY: "x"}},
    "tls with a number": {"tls": {"ca_file": 1}},
    "tls with a string for a boolean": {"tls": {"insecure": CANARY}},
    "encoding": {"encoding": "json"},
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_a_bad_argument_is_named_with_its_rule_and_without_its_value(arguments):
    """ExporterError names the key, in one line; telemetry need not be on."""
    with pytest.raises(ExporterError) as raised:
        TbotLogRecordExporter(**arguments)
    text = str(raised.value)

    assert text.startswith(next(iter(arguments)))
    assert ": must be " in text
    assert CANARY not in text
    assert "\n" not in text


def test_every_bad_argument_is_named_at_once():
    """All errors are in one exception, an argument that does not exist too."""
    with pytest.raises(ExporterError) as raised:
        TbotSpanExporter(
            endpoints="x", timeout=-1, encoding="json", headers_list="x", tls={"ca_file": 1, "insecure": 2}
        )

    names = [error.partition(":")[0] for error in str(raised.value).split("; ")]
    assert ["endpoints", "encoding", "timeout", "headers_list", "tls.ca_file", "tls.insecure"] == names


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("exporter_class", [TbotLogRecordExporter, TbotSpanExporter])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINT", CANARY),
        ("ENDPOINT", "http://["),
        ("TIMEOUT", CANARY),
        ("TIMEOUT", "-1"),
        ("COMPRESSION", CANARY),
        ("HEADERS", CANARY),
        ("HEADERS", "bad name=x"),
        ("CERTIFICATE", "none"),
        ("CLIENT_CERTIFICATE", "none"),
    ],
)
def test_a_malformed_variable_never_raises(name, value, protocol, exporter_class, monkeypatch, caplog):
    """The application starts and exports; otel_tbot logs an event that is not delivered, and no traceback."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with server_of(protocol) as server:
        url = server.url.replace("http:", "https:") if "CERTIFICATE" in name else server.url
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        # With these two no request can reach the server; with the others one can, so that it must be answered in time.
        timeout = 500 if name in {"ENDPOINT", "CERTIFICATE"} else 60_000
        exporter = exporter_class(timeout=timeout) if name != "TIMEOUT" else exporter_class()
        result = exporter.export(one_start("log" if exporter_class is TbotLogRecordExporter else "span"))
        exporter.shutdown()

    lines = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert (result.name == "SUCCESS") == (len(server.requests) == 1)
    assert (result.name == "FAILURE") == ("exporter `tbot`: events not delivered: 1" in lines)
    assert CANARY not in str(lines)
    assert not [record for record in caplog.records if record.name == "otel_tbot" and record.exc_info]


@pytest.mark.usefixtures("opted_in")
def test_a_malformed_protocol_is_a_line_and_the_default(monkeypatch, caplog):
    """One line names variable, rule and what is used instead; the event arrives."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", CANARY)
    with OtlpHttpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        exporter = TbotLogRecordExporter()

        assert LogRecordExportResult.SUCCESS is exporter.export(memory_of_one_start())
    (line,) = caplog.messages
    assert line.startswith("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL: must be http/protobuf or grpc; using http/protobuf")
    assert CANARY not in line


@pytest.mark.usefixtures("opted_in")
def test_an_exporter_that_cannot_be_built_is_a_line_and_a_failure(monkeypatch, caplog):
    """The line names the error's class and the remedy; the event counts as not delivered."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", CANARY)
    exporter = TbotLogRecordExporter()

    assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
    exporter.shutdown()
    assert [
        "exporter `tbot`: cannot build OpenTelemetry's OTLP exporter (ValueError), so nothing is sent; "
        "check OTEL_EXPORTER_OTLP_* and the exporter's arguments",
        "exporter `tbot`: events not delivered: 1",
    ] == caplog.messages


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_certificate_that_cannot_be_read_is_a_failure(protocol, caplog, tmp_path):
    """Nothing is sent without the protection that is asked for."""
    with server_of(protocol) as server:
        endpoint = server.url.replace("http:", "https:") + ("" if protocol == "grpc" else "/v1/logs")
        tls = {"ca_file": str(tmp_path / "none")}
        exporter = TbotLogRecordExporter(protocol=protocol, endpoint=endpoint, tls=tls, timeout=60000)

        assert LogRecordExportResult.FAILURE is exporter.export(memory_of_one_start())
    assert not server.requests
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
def test_a_neighbour_in_the_variable_is_a_warning(variable, value, warnings, monkeypatch, caplog):
    """`otlp,tbot` would send the event on the application's own resource too, and one line says so."""
    monkeypatch.setenv(variable, value)
    TbotLogRecordExporter(InMemoryLogRecordExporter())

    assert warnings == caplog.text.count("another exporter shares its provider")


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_neighbour_on_the_global_provider_is_a_warning(neighbours, signal):
    """However the provider was built: at the first event, one line reports another exporter next to it."""
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
def test_an_invalid_time_becomes_the_current_time():
    """A record without a time gets that of its export, in whole seconds; with an observed time alone it keeps that."""
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
    observed = LogRecord(
        event_name="tbot.start", observed_timestamp=8_999_999_999, attributes={"tbot.run_mode": "daemon"}
    )
    logger.emit(observed)
    *unknown, known, seen = [record.log_record.timestamp for record in memory.get_finished_logs()]

    assert (7 * SECOND_NS, 8 * SECOND_NS) == (known, seen)
    assert 4 == len(unknown)
    assert all(began <= moment // SECOND_NS <= time.time() and moment % SECOND_NS == 0 for moment in unknown)
