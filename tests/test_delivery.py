import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from otel_tbot import Outcome, TbotStart, emit
from otel_tbot import delivery as sending
from otel_tbot.consent import FROM_ENVIRONMENT, FROM_REPORT
from tests.support.polling import poll_until
from tests.support.processes import MEASURED
from tests.support.servers import (
    Answer,
    OtlpGrpcServer,
    OtlpHttpServer,
    garbage_server,
    refusing_port,
    silent_server,
    trickling_server,
)

CONSENT = "TELEPORT_ANONYMOUS_TELEMETRY"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PATIENT_SECONDS = 60.0


@pytest.fixture
def server():
    """A collector that accepts."""
    with OtlpHttpServer() as running:
        yield running


@pytest.fixture
def _granted(monkeypatch, server):
    monkeypatch.setenv(CONSENT, "1")
    monkeypatch.setenv(ENDPOINT, server.url)


def an_event() -> TbotStart:
    """A one-shot's start."""
    return TbotStart(run_mode="one-shot")


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_emit_sends_one_event_of_now(signal, server, monkeypatch):
    """One call is one event, with the local resource and a time of our own clock in whole seconds."""
    monkeypatch.setenv("OTEL_TBOT_SIGNAL", signal)
    event = an_event()
    began = int(time.time())

    assert Outcome.ACCEPTED is emit(event, deadline_seconds=PATIENT_SECONDS)
    (request,) = server.requests
    message = request.message
    if signal == "log":
        resource = message.resource_logs[0].resource
        moment = message.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano
    else:
        resource = message.resource_spans[0].resource
        moment = message.resource_spans[0].scope_spans[0].spans[0].start_time_unix_nano
    assert [event.session_id] == request.session_ids
    assert 0 == moment % 1_000_000_000
    assert began <= moment // 1_000_000_000 <= time.time()
    assert {"os.type", "host.arch"} < {attribute.key for attribute in resource.attributes}


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("value", [None, "", "0", " 1", "yes", "1"])
def test_emit_sends_only_with_consent(value, server, monkeypatch):
    """Off, nothing reaches the collector that reaches it when on."""
    if value is None:
        monkeypatch.delenv(CONSENT)
    else:
        monkeypatch.setenv(CONSENT, value)

    assert (Outcome.ACCEPTED if value == "1" else Outcome.OFF) is emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    assert (1 if value == "1" else 0) == len(server.requests)


@pytest.mark.usefixtures("_granted")
def test_emit_is_off_with_the_sdk(server, monkeypatch):
    """OTEL_SDK_DISABLED=true is off too."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    assert Outcome.OFF is emit(an_event())
    assert not server.requests


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_emit_loads_opentelemetry_only_with_consent(value, server):
    """Off, no module of OpenTelemetry, no socket module and no thread is there after the call."""
    script = (
        "import sys, threading, otel_tbot\n"
        "outcome = otel_tbot.emit(otel_tbot.TbotStart(run_mode='daemon'), deadline_seconds=60)\n"
        "print(outcome.value, 'opentelemetry' in sys.modules, 'socket' in sys.modules)"
    )
    environ = {ENDPOINT: server.url} | ({} if value is None else {CONSENT: value})
    finished = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)

    assert ("accepted True True\n" if value == "1" else "off False False\n") == finished.stdout
    assert "" == finished.stderr
    assert (1 if value == "1" else 0) == len(server.requests)


@pytest.mark.parametrize(
    ("origin", "environ", "outcome"),
    [
        (FROM_REPORT, {}, Outcome.ACCEPTED),
        (FROM_REPORT, {CONSENT: "1"}, Outcome.ACCEPTED),
        (FROM_REPORT, {CONSENT: "0"}, Outcome.OFF),
        (FROM_REPORT, {"OTEL_SDK_DISABLED": "true"}, Outcome.OFF),
        (FROM_ENVIRONMENT, {}, Outcome.OFF),
        (FROM_ENVIRONMENT, {CONSENT: "1"}, Outcome.ACCEPTED),
        (FROM_ENVIRONMENT, {CONSENT: "0"}, Outcome.OFF),
    ],
)
def test_consent_is_asked_again_where_the_event_leaves(origin, environ, outcome, server):
    """What was turned off since the event began does not leave."""
    sent = sending.send(
        an_event(),
        origin=origin,
        is_local=False,
        time_ns=0,
        deadline_seconds=PATIENT_SECONDS,
        environ={ENDPOINT: server.url, **environ},
    )

    assert outcome is sent
    assert (1 if outcome is Outcome.ACCEPTED else 0) == len(server.requests)


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize(
    ("fault", "protocol"),
    [(silent_server, "http/protobuf"), (silent_server, "grpc"), (trickling_server, "http/protobuf")],
)
def test_emit_keeps_its_deadline_whatever_the_other_side_does(fault, protocol, monkeypatch):
    """A collector that is silent, or never ends its answer, costs the deadline and no more: it is still at it then."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_TBOT_TIMEOUT", "2000")
    with fault() as slow:
        monkeypatch.setenv(ENDPOINT, slow.url)
        sending.load(os.environ)

        assert Outcome.TIMED_OUT is emit(an_event())
        assert slow.connections


@pytest.mark.usefixtures("_granted")
def test_emit_does_not_wait_for_a_late_acceptance(server):
    """At the deadline the outcome is TIMED_OUT, though the collector accepts the event later."""
    gate = threading.Event()
    server.answer = Answer(gate=gate)

    assert Outcome.TIMED_OUT is emit(an_event(), deadline_seconds=0.5)
    gate.set()
    server.answer = Answer()
    assert Outcome.ACCEPTED is emit(an_event(), deadline_seconds=PATIENT_SECONDS)


@pytest.mark.usefixtures("_granted")
def test_no_time_at_all_is_timed_out(server):
    """A deadline that has passed sends nothing."""
    assert Outcome.TIMED_OUT is emit(an_event(), deadline_seconds=0)
    assert Outcome.ACCEPTED is emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    assert 1 == len(server.requests)


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_delivery_never_raises(protocol, monkeypatch, caplog, capfd):
    """Whatever stands at the endpoint, the outcome is not ACCEPTED, and nothing is written but by us."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with refusing_port() as nobody, garbage_server() as garbage:
        for url in (
            nobody,
            garbage.url,
            nobody.replace("http:", "https:"),
            "http://canary.invalid:1",
            "http://[::1]:1",
        ):
            monkeypatch.setenv(ENDPOINT, url)

            assert Outcome.UNREACHABLE is emit(an_event(), deadline_seconds=20)
    assert not [record for record in caplog.records if not record.name.startswith("otel_tbot")]
    assert ("", "") == capfd.readouterr()


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_sender_that_cannot_be_built_is_unreachable(protocol, monkeypatch, caplog, tmp_path):
    """A certificate that cannot be read is one warning without its text or path, and never an exception."""
    monkeypatch.setenv(ENDPOINT, "https://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "canary"))

    assert Outcome.UNREACHABLE is emit(an_event(), deadline_seconds=20)
    messages = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert not [message for message in messages if "canary" in message]
    assert 1 >= len(messages)


@pytest.mark.usefixtures("_granted")
def test_malformed_settings_are_warnings_and_their_defaults_hold(server, monkeypatch, caplog):
    """Each malformed setting is one warning without its value; the event is sent with the defaults."""
    monkeypatch.setenv("OTEL_TBOT_SIGNAL", "canary")
    monkeypatch.setenv("OTEL_TBOT_TIMEOUT", "canary")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "canary canary")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "canary")

    assert Outcome.ACCEPTED is emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [
        "OTEL_TBOT_SIGNAL",
        "OTEL_TBOT_TIMEOUT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
    ] == [warning.partition(":")[0] for warning in warnings]
    assert "canary" not in caplog.text
    assert 1 == len(server.requests)


@pytest.mark.usefixtures("_granted")
def test_a_malformed_endpoint_is_no_endpoint(server, monkeypatch, caplog):
    """An endpoint that is no URL is not replaced by the default, which would be somebody else's."""
    monkeypatch.setenv(ENDPOINT, "canary")

    assert Outcome.UNREACHABLE is emit(an_event())
    assert 1 == len(caplog.records)
    assert "canary" not in caplog.text
    assert not server.requests


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_threads_send_at_once(protocol, monkeypatch):
    """Calls from several threads do not disturb each other: each event arrives once."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    receiver = OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()
    with receiver:
        monkeypatch.setenv(ENDPOINT, receiver.url)
        events = [an_event() for _ in range(12)]
        outcomes = []
        threads = [
            threading.Thread(target=lambda event=event: outcomes.append(emit(event, deadline_seconds=PATIENT_SECONDS)))
            for event in events
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [Outcome.ACCEPTED] * 12 == outcomes
    assert {event.session_id for event in events} == {request.session_ids[0] for request in receiver.requests}
    assert 12 == len(receiver.requests)


def test_a_forked_child_sends_as_its_parent_does(server):
    """After a fork the child's event arrives, on a resource with nothing of the child's process."""
    script = """
import os, sys, otel_tbot
def emit():
    return otel_tbot.emit(otel_tbot.TbotStart(run_mode="daemon"), deadline_seconds=60) is otel_tbot.Outcome.ACCEPTED
assert emit()
child = os.fork()
if child == 0:
    os._exit(0 if emit() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environ = MEASURED | {CONSENT: "1", ENDPOINT: server.url}
    finished = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)

    assert (0, "", "") == (finished.returncode, finished.stdout, finished.stderr)
    resources = [request.message.resource_logs[0].resource for request in server.requests]
    assert resources[0] == resources[1]


def test_emit_sets_and_uses_nothing_global(server):
    """The global providers stay unset, and a provider of the application gets no span or record of ours."""
    script = """
import otel_tbot
from opentelemetry import _logs, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
assert otel_tbot.emit(otel_tbot.TbotStart(run_mode="daemon"), deadline_seconds=60) is otel_tbot.Outcome.ACCEPTED
assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
assert type(_logs.get_logger_provider()).__name__ == "ProxyLoggerProvider"
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
assert otel_tbot.emit(otel_tbot.TbotStart(run_mode="daemon"), deadline_seconds=60) is otel_tbot.Outcome.ACCEPTED
assert not spans.get_finished_spans()
"""
    environ = MEASURED | {CONSENT: "1", ENDPOINT: server.url}
    finished = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert 2 == len(server.requests)


def test_nothing_is_left_behind(server, monkeypatch):
    """After an accepted event no thread and no descriptor is left."""
    monkeypatch.setenv(CONSENT, "1")
    monkeypatch.setenv(ENDPOINT, server.url)
    emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    ours = {thread.name for thread in threading.enumerate()}
    before = len(os.listdir("/dev/fd"))

    for _ in range(5):
        assert Outcome.ACCEPTED is emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    poll_until(lambda: before >= len(os.listdir("/dev/fd")), waiting_for="the server to close its connections")
    poll_until(lambda: "otel-tbot" not in {t.name for t in threading.enumerate()}, waiting_for="the sender's thread")

    assert {name for name in ours if name.startswith("otel-tbot")} <= {"otel-tbot"}


@pytest.mark.parametrize(
    "environ", [{}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TBOT_SIGNAL": "span"}, {ENDPOINT: "canary"}]
)
def test_load_raises_nothing(environ):
    """Loading ahead of time says nothing, whatever is set."""
    assert sending.load(environ) is None


def test_load_leaves_what_is_missing_to_send(tmp_path):
    """A broken OpenTelemetry is no exception, neither ahead of time nor when an event is sent."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise RuntimeError('canary')\n")
    script = (
        "import otel_tbot; from otel_tbot import delivery; delivery.load({})\n"
        "print(otel_tbot.emit(otel_tbot.TbotStart(run_mode='daemon')).value)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env=MEASURED | {CONSENT: "1", "PYTHONPATH": str(tmp_path), "OTEL_TBOT_TIMEOUT": "60000"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ("unreachable\n", "the event could not be sent: RuntimeError\n") == (finished.stdout, finished.stderr)
