import os
import platform
import types
import uuid

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.version import __version__ as sdk_version
from opentelemetry.trace import SpanKind

from otel_tbot import __version__
from otel_tbot.event import TbotStart
from otel_tbot.exporters.records import to_log_record, to_resource, to_span

BASE_RESOURCE = {
    "service.name": "tbot",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": sdk_version,
}
SECOND_NS = 1_000_000_000
TIME_NS = 1_795_466_556 * SECOND_NS + 123_456_789


@pytest.fixture
def _surroundings(monkeypatch):
    """Surrounds a test with a span, baggage and every variable that reaches into a careless pipeline."""
    for name, value in {
        "OTEL_SERVICE_NAME": "canary",
        "OTEL_RESOURCE_ATTRIBUTES": "host.name=canary",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "host,os,process,otel",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_TRACES_SAMPLER": "always_off",
    }.items():
        monkeypatch.setenv(name, value)
    token = context.attach(baggage.set_baggage("canary", "canary"))
    with TracerProvider().get_tracer("canary").start_as_current_span("canary") as span:
        assert trace.get_current_span() is span
        yield
    context.detach(token)


def an_event() -> TbotStart:
    """Returns an event with some of its attributes."""
    return TbotStart(run_mode="daemon", version="18.4.1", destinations_database=2, session_id=str(uuid.uuid4()))


@pytest.mark.usefixtures("_surroundings")
def test_the_resource_is_whole_and_fixed():
    """The resource has exactly what is documented, and nothing of the environment or of detectors."""
    system = {"Linux": "linux", "Darwin": "darwin"}[platform.system()]
    machine = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]

    assert BASE_RESOURCE == dict(to_resource(is_local=False).attributes)
    assert BASE_RESOURCE | {"os.type": system, "host.arch": machine} == dict(to_resource(is_local=True).attributes)
    assert "" == to_resource(is_local=True).schema_url


@pytest.mark.parametrize(
    ("name", "machine", "described"),
    [
        ("Linux", "x86_64", {"os.type": "linux", "host.arch": "amd64"}),
        ("Linux", "armv7l", {"os.type": "linux", "host.arch": "arm32"}),
        ("Linux", "riscv64", {"os.type": "linux"}),
        ("Darwin", "arm64", {"os.type": "darwin", "host.arch": "arm64"}),
        ("canary", "canary", {}),
    ],
)
def test_a_system_outside_the_registry_is_left_out(name, machine, described, monkeypatch):
    """Only values of OpenTelemetry's registry travel; any other could identify a machine."""
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(sysname=name, machine=machine, nodename="canary"))

    assert BASE_RESOURCE | described == dict(to_resource(is_local=True).attributes)


def test_windows_is_known_by_its_own_variable(monkeypatch):
    """Without uname, the architecture is the one that Windows states."""
    monkeypatch.delattr(os, "uname")
    monkeypatch.setenv("PROCESSOR_ARCHITECTURE", "AMD64")

    assert BASE_RESOURCE | {"os.type": "windows", "host.arch": "amd64"} == dict(to_resource(is_local=True).attributes)


def encoded_attributes(event: TbotStart) -> list[tuple[str, object]]:
    """Returns what the attributes of *event* must be on the wire."""
    return list(event.attributes().items())


def decoded(attributes) -> list[tuple[str, object]]:
    """Returns attributes of the wire as pairs."""
    return [(a.key, getattr(a.value, a.value.WhichOneof("value"))) for a in attributes]


@pytest.mark.usefixtures("_surroundings")
def test_a_log_record_is_what_is_documented_on_the_wire():
    """Every part of the encoded record; no trace context, though a span is active."""
    event = an_event()
    request = encode_logs([to_log_record(event, time_ns=TIME_NS, resource=to_resource(is_local=False))])
    (resource_logs,) = request.resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (record,) = scope_logs.log_records

    assert list(BASE_RESOURCE.items()) == decoded(resource_logs.resource.attributes)
    assert ("otel_tbot", __version__) == (scope_logs.scope.name, scope_logs.scope.version)
    assert encoded_attributes(event) == decoded(record.attributes)
    for part in (resource_logs.resource, scope_logs.scope, record):
        part.ClearField("attributes")
    assert {
        "time_unix_nano": TIME_NS // SECOND_NS * SECOND_NS,
        "observed_time_unix_nano": TIME_NS // SECOND_NS * SECOND_NS,
        "severity_number": 9,
        "severity_text": "INFO",
        "event_name": "tbot.start",
    } == {field.name: value for field, value in record.ListFields() if field.name != "body"}
    assert "tbot.start" == record.body.string_value
    assert ["resource", "scope_logs"] == [field.name for field, _ in resource_logs.ListFields()]
    assert ["scope", "log_records"] == [field.name for field, _ in scope_logs.ListFields()]
    assert ["name", "version"] == [field.name for field, _ in scope_logs.scope.ListFields()]
    assert not resource_logs.resource.ListFields()


@pytest.mark.usefixtures("_surroundings")
def test_a_span_is_what_is_documented_on_the_wire():
    """Every part of the encoded span: a root, INTERNAL, 1 microsecond long, whose ids are those of the session."""
    event = an_event()
    span = to_span(event, time_ns=TIME_NS, resource=to_resource(is_local=False))
    (resource_spans,) = encode_spans([span]).resource_spans
    (scope_spans,) = resource_spans.scope_spans
    (wire,) = scope_spans.spans
    fields = {field.name: value for field, value in wire.ListFields()}
    session = uuid.UUID(event.session_id).bytes

    assert encoded_attributes(event) == decoded(fields.pop("attributes"))
    assert (session, session[8:]) == (fields.pop("trace_id"), fields.pop("span_id"))
    assert not fields.pop("status").ListFields()
    assert {
        "name": "tbot.start",
        "kind": 1,
        "flags": 256,
        "start_time_unix_nano": TIME_NS // SECOND_NS * SECOND_NS,
        "end_time_unix_nano": TIME_NS // SECOND_NS * SECOND_NS + 1_000,
    } == fields
    assert SpanKind.INTERNAL == span.kind
    assert list(BASE_RESOURCE.items()) == decoded(resource_spans.resource.attributes)
    assert ("otel_tbot", __version__) == (scope_spans.scope.name, scope_spans.scope.version)
