import logging
import socket
import subprocess
import sys
import threading
import time

import pytest

from otel_tbot import Outcome, TbotStart, emit
from otel_tbot.consent import FROM_ENVIRONMENT, FROM_REPORT
from otel_tbot.delivery import EventSender
from otel_tbot.errors import OtelTbotError
from tests.support.polling import poll_until
from tests.support.processes import MEASURED
from tests.support.servers import (
    Answer,
    OtlpGrpcServer,
    OtlpHttpServer,
    garbage_server,
    raw_server,
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


def load() -> None:
    """Imports what sending needs, so that a deadline is spent on the collector alone."""
    with OtlpHttpServer() as http, OtlpGrpcServer() as grpc:
        for server in (http, grpc):
            protocol = "grpc" if server is grpc else "http/protobuf"
            environ = {ENDPOINT: server.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
            sender = EventSender(environ, origin=FROM_REPORT, is_local=True)
            assert Outcome.ACCEPTED is sender.send([(an_event(), 0)], deadline=time.monotonic() + PATIENT_SECONDS)
            sender.close()


def an_event() -> TbotStart:
    """A one-shot's start."""
    return TbotStart(run_mode="one-shot")


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("signal", ["log", "span"])
def test_emit_sends_one_event_of_now(signal, server, monkeypatch):
    """One call is one event, with the local resource and a time of our clock in whole seconds."""
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
    """With telemetry off nothing arrives at the collector; with it on, the event does."""
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
    """With telemetry off, a call loads neither OpenTelemetry nor sockets."""
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
def test_consent_is_checked_again_before_the_event_leaves(origin, environ, outcome, server):
    """If telemetry was turned off since the event began, the event does not leave."""
    sender = EventSender({ENDPOINT: server.url, **environ}, origin=origin, is_local=False)
    sent = sender.send([(an_event(), 0)], deadline=time.monotonic() + PATIENT_SECONDS)
    sender.close()

    assert outcome is sent
    assert (1 if outcome is Outcome.ACCEPTED else 0) == len(server.requests)


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize(
    ("fault", "protocol"),
    [(silent_server, "http/protobuf"), (silent_server, "grpc"), (trickling_server, "http/protobuf")],
)
def test_emit_keeps_its_deadline_whatever_the_other_side_does(fault, protocol, monkeypatch):
    """A collector that is silent, or never ends its response, costs the deadline and no more."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_TBOT_TIMEOUT", "2000")
    with fault() as slow:
        monkeypatch.setenv(ENDPOINT, slow.url)
        load()

        outcomes = set()

        def has_connected():
            outcomes.add(emit(an_event()))
            return slow.connections

        # If this process pauses, a deadline can pass before there is a connection.
        poll_until(has_connected, waiting_for="a connection")
        assert {Outcome.TIMED_OUT} == outcomes


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
def test_a_deadline_that_has_passed_is_timed_out(server):
    """A deadline that has passed sends nothing."""
    assert Outcome.TIMED_OUT is emit(an_event(), deadline_seconds=0)
    assert Outcome.ACCEPTED is emit(an_event(), deadline_seconds=PATIENT_SECONDS)
    assert 1 == len(server.requests)


EMIT_TO_EACH = """
import logging, os, sys
import otel_tbot

class Recorder(logging.Handler):
    names = set()
    def emit(self, record):
        self.names.add(record.name)

logging.basicConfig(handlers=[Recorder()])
for url in sys.argv[2:]:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    print(otel_tbot.emit(otel_tbot.TbotStart(run_mode="one-shot"), deadline_seconds=float(sys.argv[1])).value)
print({name for name in Recorder.names if not name.startswith("otel_tbot")} or "no other logger")
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_delivery_never_raises(protocol):
    """If no collector answers at the endpoint, the outcome is not ACCEPTED, and only our logger writes."""
    with refusing_port() as refusing, garbage_server() as garbage:
        urls = (
            refusing,
            garbage.url,
            refusing.replace("http:", "https:"),
            "http://canary.invalid:1",
            "http://[::1]:1",
        )
        # Not in this process: gRPC writes to its stderr when the servers of earlier tests have ended.
        finished = subprocess.run(
            [sys.executable, "-c", EMIT_TO_EACH, str(PATIENT_SECONDS), *urls],
            env=MEASURED | {CONSENT: "1", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    assert ("unreachable\n" * len(urls) + "no other logger\n", "") == (finished.stdout, finished.stderr)
    assert 0 == finished.returncode


@pytest.mark.usefixtures("_granted")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_unreadable_certificate_is_unreachable(protocol, monkeypatch, caplog, tmp_path):
    """A certificate that cannot be read is one warning without its content or path, and never an exception."""
    monkeypatch.setenv(ENDPOINT, "https://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "canary"))

    assert Outcome.UNREACHABLE is emit(an_event(), deadline_seconds=20)
    messages = [record.getMessage() for record in caplog.records if record.name == "otel_tbot"]
    assert not [message for message in messages if "canary" in message]
    assert 1 >= len(messages)


@pytest.mark.usefixtures("_granted")
def test_malformed_settings_are_warnings_and_their_defaults_are_used(server, monkeypatch, caplog):
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
def test_a_malformed_endpoint_is_not_used(server, monkeypatch, caplog):
    """A malformed endpoint is not replaced by the default, which may be another's collector."""
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
    # Python 3.12 warns of a fork if the thread of the first call has not quite ended.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    finished = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    assert (0, "", "") == (finished.returncode, finished.stdout, finished.stderr)
    resources = [request.message.resource_logs[0].resource for request in server.requests]
    assert resources[0] == resources[1]


def test_emit_sets_and_uses_nothing_global(server):
    """The global providers stay unset, and a provider of the application gets none of our spans or records."""
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


def test_an_accepted_event_leaves_no_thread_and_no_descriptor(server):
    """After an accepted event no thread and no descriptor is left."""
    assert {"accepted"} == emit_and_end_all(server.url, deadline_seconds=PATIENT_SECONDS)


EMIT_AND_END_ALL = """
import os, stat, sys, threading, time
import otel_tbot
# Before the first event, so that its deadline is spent on the collector alone.
import otel_tbot.otlp.client, otel_tbot.otlp.encoding, otel_tbot.otlp.grpc_transport, otel_tbot.otlp.http_transport

def open_sockets():
    # gRPC opens and closes its own epoll and event descriptors when it likes; a connection is a socket.
    found = 0
    for name in os.listdir("/dev/fd"):
        try:
            found += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            pass  # the descriptor of the listing itself
    return found

for _ in range(5):
    print(otel_tbot.emit(otel_tbot.TbotStart(run_mode="daemon"), deadline_seconds=float(sys.argv[1])).value)
deadline = time.monotonic() + 60
while open_sockets() or "otel-tbot" in {thread.name for thread in threading.enumerate()}:
    if time.monotonic() > deadline:
        sys.exit(f"{open_sockets()} sockets and {threading.enumerate()} are left")
    time.sleep(0.01)
"""


def emit_and_end_all(url: str, *, deadline_seconds: float, **environ: str) -> set[str]:
    """Sends five events in a new process and returns their outcomes; fails if a thread or a socket stays."""
    finished = subprocess.run(
        [sys.executable, "-c", EMIT_AND_END_ALL, str(deadline_seconds)],
        env=MEASURED | {CONSENT: "1", ENDPOINT: url} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == finished.returncode, finished.stderr
    return set(finished.stdout.splitlines())


def wait_for_no_thread() -> None:
    """Waits until the sender's thread has ended."""
    poll_until(lambda: "otel-tbot" not in {t.name for t in threading.enumerate()}, waiting_for="the sender's thread")


TRICKLING_HEADERS = b"HTTP/1.1 200 OK\r\nX-Trickle: "


def endless_interim_server():
    """A server that sends interim responses without end."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    return raw_server(serve)


@pytest.mark.parametrize(
    ("fault", "protocol"),
    [
        (silent_server, "http/protobuf"),
        (silent_server, "grpc"),
        (trickling_server, "http/protobuf"),
        (lambda: trickling_server(TRICKLING_HEADERS), "http/protobuf"),
        (endless_interim_server, "http/protobuf"),
        (trickling_server, "grpc"),
    ],
    ids=["silent", "silent grpc", "body trickles", "headers trickle", "interim responses", "trickles grpc"],
)
def test_a_missed_deadline_leaves_no_thread_and_no_descriptor(fault, protocol):
    """The thread and the connection of a timed-out event end, although the collector continues to send."""
    with fault() as server:
        outcomes = set()
        # On a slow machine 0.2 s pass before there is a connection.
        for deadline_seconds in (0.2, 2, 20):
            outcomes |= emit_and_end_all(
                server.url, deadline_seconds=deadline_seconds, OTEL_EXPORTER_OTLP_PROTOCOL=protocol
            )
            if server.connections:
                break

        assert server.connections

    assert outcomes <= {"timed out", "unreachable"}


def test_a_broken_opentelemetry_raises_nothing(tmp_path):
    """If OpenTelemetry cannot be imported, the event is not sent, and one warning names the exception's class."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise RuntimeError('canary')\n")
    script = "import otel_tbot; print(otel_tbot.emit(otel_tbot.TbotStart(run_mode='daemon')).value)"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env=MEASURED | {CONSENT: "1", "PYTHONPATH": str(tmp_path), "OTEL_TBOT_TIMEOUT": "60000"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ("unreachable\n", "the event could not be sent: RuntimeError\n") == (finished.stdout, finished.stderr)


def test_a_sender_sends_what_is_submitted_in_its_worker(server):
    """`submit` returns at once; the outcome comes from the worker's thread, once a batch."""
    sender = EventSender({ENDPOINT: server.url}, origin=FROM_REPORT, is_local=False)
    outcomes = []
    server.answer = Answer(gate=threading.Event())
    for _ in range(2):
        sender.submit(
            [(an_event(), 0)],
            deadline=time.monotonic() + PATIENT_SECONDS,
            on_outcome=lambda outcome: outcomes.append((outcome, threading.current_thread().name)),
        )
    assert not outcomes
    server.answer.gate.set()
    poll_until(lambda: len(outcomes) == 2, waiting_for="both outcomes")
    sender.close()

    assert [(Outcome.ACCEPTED, "otel-tbot")] * 2 == outcomes
    wait_for_no_thread()


def test_an_abandoned_batch_does_not_keep_the_next_one(server):
    """After `abandon` the next batch goes over another connection, while the first one's outcome is not ACCEPTED."""
    sender = EventSender({ENDPOINT: server.url}, origin=FROM_REPORT, is_local=False)
    outcomes = []
    server.answer = Answer(gate=threading.Event())
    sender.submit([(an_event(), 0)], deadline=time.monotonic() + PATIENT_SECONDS, on_outcome=outcomes.append)
    server.wait_for_request()
    sender.abandon()
    poll_until(lambda: outcomes, waiting_for="the abandoned batch's outcome")
    server.answer.gate.set()
    server.answer = Answer()

    assert [Outcome.TIMED_OUT] == outcomes
    assert Outcome.ACCEPTED is sender.send([(an_event(), 0)], deadline=time.monotonic() + PATIENT_SECONDS)
    sender.close()


@pytest.mark.parametrize(
    ("environ", "rule"),
    [
        ({ENDPOINT: "canary"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be"),
        (
            {ENDPOINT: "https://c", "OTEL_EXPORTER_OTLP_CERTIFICATE": "missing"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE: no such",
        ),
    ],
)
def test_a_sender_says_before_the_first_batch_that_it_cannot_send(environ, rule):
    """`check` raises for settings with which no event could be sent, and connects to nothing."""
    with pytest.raises(OtelTbotError, match=rule):
        EventSender(environ, origin=FROM_REPORT, is_local=False).check()
    assert EventSender({}, origin=FROM_REPORT, is_local=False).check() is None


AT_THE_END = {
    "last statement": "emit()",
    "atexit": "import atexit; atexit.register(emit)",
    "__del__": (
        "class Late:\n    def __del__(self):\n        emit()\nlate = Late()\nimport sys; sys.modules['late'] = late"
    ),
    "daemon thread": "import threading; t = threading.Thread(target=emit, daemon=True); t.start(); t.join()",
    "forked child": "import os\nif os.fork() == 0:\n    emit(); os._exit(0)\nos.wait()",
}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("code", AT_THE_END.values(), ids=AT_THE_END)
def test_an_event_at_the_interpreter_s_end_neither_hangs_nor_raises(code, protocol):
    """Wherever `emit` is called, it returns an outcome; while modules and threads still work, the event arrives."""
    script = (
        "from otel_tbot import TbotStart, emit as send\n"
        "def emit(write=__import__('os').write, send=send, event=TbotStart(run_mode='daemon')):\n"
        "    outcome = send(event)\n"
        "    write(1, outcome.value.encode())\n"
        f"{code}\n"
    )
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        environ = {ENDPOINT: server.url, CONSENT: "1", "OTEL_TBOT_TIMEOUT": "60000"}
        environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
        finished = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False, timeout=120
        )

        is_late = "__del__" in code or ("atexit" in code and protocol == "grpc")
        assert (0, "") == (finished.returncode, "" if is_late else finished.stderr)
        assert finished.stdout in ({"accepted", "unreachable"} if is_late else {"accepted"})
        assert (finished.stdout == "accepted") == (len(server.requests) == 1)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_under_gevent_a_silent_collector_costs_a_bounded_time(protocol):
    """gevent's threads do not run while gRPC waits, so that the call ends by its own timeout."""
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import otel_tbot\n"
        "print(otel_tbot.emit(otel_tbot.TbotStart(run_mode='daemon'), deadline_seconds=1).value)"
    )
    environ = {CONSENT: "1", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with silent_server() as silent, OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        for url, outcomes in ((silent.url, {"timed out"}), (server.url, {"accepted"})):
            finished = subprocess.run(
                [sys.executable, "-c", script.replace("=1", "=60") if url == server.url else script],
                env={**environ, ENDPOINT: url},
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            )

            assert finished.stdout.strip() in outcomes
