"""Proves promise 4: only the documented data leaves. Thousands of events on the wire show the table, all of it."""

import asyncio
import random
import re
import string
import time
from collections import defaultdict

import pytest
import yaml
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tbot import Outcome, TbotLogRecordExporter, TbotSpanExporter, TbotStart, __version__, emit
from otel_tbot.bridge.application import Bridge
from otel_tbot.event import ATTRIBUTES
from otel_tbot.exporters.records import to_log_record, to_resource, to_span
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest
from tests.proof.recording import RecordingProxy
from tests.support.asgi import call
from tests.support.bridge_process import PROCEDURE
from tests.support.checkout import ROOT
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer

KINDS = {"log": ExportLogsServiceRequest, "span": ExportTraceServiceRequest}
JOIN_TYPES = (
    *("token", "azure", "azure_devops", "bitbucket", "bound_keypair", "circleci", "ec2", "env0", "gcp", "generic_oidc"),
    *("github", "gitlab", "iam", "kubernetes", "oracle", "spacelift", "terraform_cloud", "tpm"),
)
_NUMBER = "[0-9]{1,4}"
_STAGE = rf"(-(dev|alpha|beta|rc)(\.?{_NUMBER})?)?"

# Copied from the documentation, not imported from the code: key, type on the wire, and the pattern of its values.
DOCUMENTED = {
    "tbot.run_mode": ("string_value", "one-shot|daemon"),
    "tbot.version": ("string_value", rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_STAGE}|_OTHER"),
    "tbot.join_type": ("string_value", "|".join((*JOIN_TYPES, "_OTHER"))),
    "tbot.helper": ("string_value", "[A-Za-z0-9._:/-]{1,64}|_OTHER"),
    "tbot.helper_version": ("string_value", rf"v?{_NUMBER}(\.{_NUMBER}){{0,3}}{_STAGE}|_OTHER"),
    "tbot.destinations_other": ("int_value", "[0-9]{1,10}"),
    "tbot.destinations_database": ("int_value", "[0-9]{1,10}"),
    "tbot.destinations_kubernetes": ("int_value", "[0-9]{1,10}"),
    "tbot.destinations_application": ("int_value", "[0-9]{1,10}"),
    "session.id": ("string_value", "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
}
OPTIONAL = {"tbot.version", "tbot.join_type", "tbot.helper", "tbot.helper_version"}
RESOURCE = {
    "service.name": "tbot",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": r"[0-9.a-z]+",
}
FIELDS = {
    "log": {
        *("resource", "scope_logs", "resource.attributes", "scope_logs.scope", "scope_logs.log_records"),
        *("scope_logs.scope.name", "scope_logs.scope.version"),
        *(
            f"scope_logs.log_records.{name}"
            for name in (
                *("time_unix_nano", "observed_time_unix_nano", "severity_number", "severity_text", "body"),
                *("attributes", "event_name"),
            )
        ),
    },
    "span": {
        *("resource", "scope_spans", "resource.attributes", "scope_spans.scope", "scope_spans.spans"),
        *("scope_spans.scope.name", "scope_spans.scope.version"),
        *(
            f"scope_spans.spans.{name}"
            for name in (
                *("trace_id", "span_id", "flags", "name", "kind", "start_time_unix_nano", "end_time_unix_nano"),
                *("attributes", "status"),
            )
        ),
    },
}
SPAN_NS = 1_000
"""How long a span is: the shortest that Jaeger draws."""

FIXED = {
    "log": {"severity_number": 9, "severity_text": "INFO", "event_name": "tbot.start"},
    "span": {"name": "tbot.start", "kind": 1},
}


def draw_text(random_source, *likely):
    """Returns one of *likely*, a part or a variation of it, or arbitrary text."""
    text = random_source.choice(likely)
    match random_source.randrange(6):
        case 0:
            alphabet = string.printable + "äß\u0661\u202e\U0001f600"
            return "".join(random_source.choices(alphabet, k=random_source.randrange(80)))
        case 1:
            return text + random_source.choice(("-canary", "+canary", " canary", "\n", ".5", "0" * 70))
        case 2:
            return text[: random_source.randrange(len(text) + 1)]
        case _:
            return text


def draw_report(random_source):
    """Returns a report as a current, an older or a newer tbot, or another program, might send it."""
    report = SubmitTbotEventRequest()
    uuid = f"{random_source.getrandbits(128):032x}"
    variant = random_source.choice("89ab")
    report.distinct_id = f"{uuid[:8]}-{uuid[8:12]}-4{uuid[13:16]}-{variant}{uuid[17:20]}-{uuid[20:]}"
    if random_source.randrange(3) == 0:
        report.distinct_id = report.distinct_id.upper()
    report.timestamp.seconds = random_source.randrange(2**33)
    report.timestamp.nanos = random_source.randrange(10**9)
    start = report.start
    start.run_mode = random_source.choice((1, 2))
    start.version = draw_text(random_source, "", "18.4.1", "17.0.0-dev.3", "16.1.2-rc.1", "v18.4.1", "15.0.0-alpha")
    start.join_type = draw_text(random_source, "", *JOIN_TYPES)
    start.helper = draw_text(random_source, "", "gha:teleport-actions/auth", "acme.deploy_x-1", "no helper")
    start.helper_version = draw_text(random_source, "", "v2.0.1", "3", "1.2.3.4", "2.0-beta.1")
    for name in ("other", "database", "kubernetes", "application"):
        number = random_source.choice((0, 1, random_source.randrange(100), random_source.randrange(2**31), 2**31 - 1))
        setattr(start, f"destinations_{name}", number)
    return report


def walk(message: Message, name="") -> list[tuple[str, object]]:
    """Returns every field that is set in *message* with its path; attributes and bodies are not entered."""
    found = []
    for field, value in message.ListFields():
        path = f"{name}.{field.name}".lstrip(".")
        found.append((path, value))
        if field.name in ("attributes", "body"):
            continue
        for child in value if field.is_repeated else [value]:
            if isinstance(child, Message):
                found += walk(child, path)
    return found


@pytest.mark.promise("documented.wire")
def test_the_table_of_the_documentation_is_that_of_the_code():
    """Keys, types and the optional keys in this file are those of the one table in the code."""
    kinds = {"string": "string_value", "int": "int_value"}

    assert {key: kind for key, (kind, _) in DOCUMENTED.items()} == {a.key: kinds[a.type] for a in ATTRIBUTES}
    assert {attribute.key for attribute in ATTRIBUTES if not attribute.is_required} == OPTIONAL


@pytest.mark.promise("documented.wire")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_wire_shows_the_documented_keys_types_and_values_and_no_others(signal, protocol, cases):
    """Over thousands of generated reports, each key, type, value and field is documented, and all of them occur."""
    random_source = random.Random(f"{signal} {protocol}")  # noqa: S311  # reproducible
    count = 2200
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        with RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
            environ = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": proxy.url,
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_TBOT_SIGNAL": signal,
                "OTEL_TBOT_TIMEOUT": "60000",
            }
            statuses = asyncio.run(submit(environ, [draw_report(random_source) for _ in range(count)]))
        requests = proxy.recording.requests()

    assert {200} == set(statuses)
    values = defaultdict(set)
    events = 0
    for request in requests:
        message = KINDS[signal].FromString(request.body)
        for group in message.resource_logs if signal == "log" else message.resource_spans:
            assert {path for path, _ in walk(group)} <= FIELDS[signal]
            check_resource(group)
            for scope in group.scope_logs if signal == "log" else group.scope_spans:
                assert ("otel_tbot", __version__) == (scope.scope.name, scope.scope.version)
                for record in scope.log_records if signal == "log" else scope.spans:
                    check_record(record, signal, values)
                    events += 1
    assert count == events
    assert set(DOCUMENTED) == set(values)
    check_registry(values, {"log": "event.tbot.start", "span": "span.tbot.start.internal"}[signal])
    assert {"one-shot", "daemon"} == values["tbot.run_mode"]
    assert {*JOIN_TYPES, "_OTHER"} == values["tbot.join_type"]
    assert all("_OTHER" in values[key] for key in OPTIONAL)
    assert {0, 2**31 - 1} <= values["tbot.destinations_other"]
    cases.add(events)


def check_registry(values, group_id):
    """Checks that keys, types and values are those of the published registry, in the group of the signal."""
    registry = yaml.safe_load((ROOT / "semantic-conventions" / "tbot.yaml").read_text(encoding="utf-8"))
    groups = {group["id"]: group for group in registry["groups"]}
    defined = {attribute["id"]: attribute for attribute in groups["registry.tbot"]["attributes"]}
    published = {a["ref"]: {"type": "string", **defined.get(a["ref"], {}), **a} for a in groups[group_id]["attributes"]}

    assert set(published) == set(values)
    for key, attribute in published.items():
        kind, rule = attribute["type"], attribute.get("annotations", {}).get("otel_tbot", {})
        for value in values[key]:
            if kind == "int":
                assert rule["minimum"] <= value <= rule["maximum"]
            elif isinstance(kind, dict):
                assert value in [member["value"] for member in kind["members"]]
            else:
                may_be_other = value == "_OTHER" and "_OTHER" in attribute["examples"]
                assert "string" == kind
                assert may_be_other or re.fullmatch(rule["pattern"], value), key


def check_resource(group):
    """Checks that the resource is complete and has nothing else; a bridge does not know where tbot runs."""
    attributes = {attribute.key: attribute.value.string_value for attribute in group.resource.attributes}
    assert RESOURCE.keys() == attributes.keys()
    assert len(attributes) == len(group.resource.attributes)
    for key, pattern in RESOURCE.items():
        assert re.fullmatch(pattern, attributes[key])


def check_record(record, signal, values):
    """Checks one record: each key once, with its type and pattern, the fixed fields, times in whole seconds."""
    kinds = {attribute.key: attribute.value.WhichOneof("value") for attribute in record.attributes}
    assert len(kinds) == len(record.attributes)
    assert DOCUMENTED.keys() - OPTIONAL <= kinds.keys() <= DOCUMENTED.keys()
    for attribute in record.attributes:
        kind, pattern = DOCUMENTED[attribute.key]
        assert kind == kinds[attribute.key]
        value = getattr(attribute.value, kind)
        assert re.fullmatch(pattern, str(value)), attribute.key
        assert kind != "int_value" or 0 <= value <= 2**31 - 1
        values[attribute.key].add(value)
    assert "tbot.helper" in kinds or "tbot.helper_version" not in kinds
    for name, value in FIXED[signal].items():
        assert value == getattr(record, name)
    if signal == "log":
        assert "tbot.start" == record.body.string_value
        assert record.time_unix_nano == record.observed_time_unix_nano
        assert 0 == record.time_unix_nano % 10**9
    else:
        assert record.start_time_unix_nano + SPAN_NS == record.end_time_unix_nano
        assert 0 == record.start_time_unix_nano % 10**9
        session_id = next(a.value.string_value for a in record.attributes if a.key == "session.id")
        digits = session_id.replace("-", "")
        assert (digits, digits[16:]) == (record.trace_id.hex(), record.span_id.hex())
        assert 0 == record.status.ByteSize()
        assert record.flags & ~0x100 in (0, 1)


# The headers of a request to the collector, from any sender, with a pattern for the whole value.
_AGENT = r"OTel-OTLP-Exporter-Python/[0-9.a-z]+( grpc-python/[0-9.a-z]+ grpc-c/[0-9.]+ \(\w+; chttp2\))?"
HEADERS = {
    "http/protobuf": {
        ":line": r"POST /v1/(logs|traces) HTTP/1\.1",
        "host": r"127\.0\.0\.1:\d+",
        "user-agent": _AGENT,
        "accept-encoding": r"identity|gzip, deflate(, br)?(, zstd)?",
        "accept": r"\*/\*",
        "connection": r"close|keep-alive",
        "content-type": "application/x-protobuf",
        "content-encoding": "gzip",
        "content-length": r"\d+",
    },
    "grpc": {
        ":scheme": "http",
        ":method": "POST",
        ":authority": r"127\.0\.0\.1:\d+",
        ":path": r"/opentelemetry\.proto\.collector\.(logs|trace)\.v1\.(Logs|Trace)Service/Export",
        "te": "trailers",
        "content-type": r"application/grpc",
        "user-agent": _AGENT,
        "grpc-encoding": "gzip",
        "grpc-accept-encoding": r"identity, deflate, gzip",
        "accept-encoding": "identity, gzip",
    },
}
GRPC_TIMEOUT = "grpc-timeout"


def send_two(way, proxy, signal, protocol, compression, monkeypatch):
    """Sends two events, one after the other, by the plug-in or by emit, through *proxy*."""
    monkeypatch.setenv("TELEPORT_ANONYMOUS_TELEMETRY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", proxy.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_TBOT_SIGNAL", signal)
    if compression:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    events = [TbotStart(run_mode="daemon"), TbotStart(run_mode="daemon")]
    if way == "emit":
        assert [Outcome.ACCEPTED] * 2 == [emit(event, deadline_seconds=60) for event in events]
        return
    exporter = TbotLogRecordExporter() if signal == "log" else TbotSpanExporter()
    to_otel = to_log_record if signal == "log" else to_span
    for event in events:
        record = to_otel(event, time_ns=time.time_ns(), resource=to_resource(is_local=True))
        assert "SUCCESS" == exporter.export([record]).name
    exporter.shutdown()


@pytest.mark.promise("documented.transport")
@pytest.mark.parametrize("compression", ["", "gzip"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("way", ["emit", "the plug-in"])
def test_the_transport_sends_the_documented_headers_and_no_others(way, signal, protocol, compression, monkeypatch):
    """Only OpenTelemetry's exporter, behind the plug-in, sends a timeout and gzip's time, and reuses a connection."""
    began = int(time.time())
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        with RecordingProxy(int(server.url.rpartition(":")[2])) as proxy:
            send_two(way, proxy, signal, protocol, compression, monkeypatch)
            requests, raw = proxy.recording.requests(), proxy.recording.raw()
            connections = len(proxy.recording.connections)

    assert 2 == len(requests)
    for request in requests:
        named = dict(request.headers)
        assert len(named) == len(request.headers)
        timeout = named.pop(GRPC_TIMEOUT, "")
        assert bool(timeout) == (way == "the plug-in" and protocol == "grpc")
        unknown = {name: value for name, value in named.items() if name not in HEADERS[protocol]}
        assert {} == unknown
        assert [] == [n for n, value in named.items() if not re.fullmatch(HEADERS[protocol][n], value)], named
    times = [int.from_bytes(found.group(1), "little") for found in re.finditer(rb"(?s)\x1f\x8b\x08.(.{4})", raw)]
    if way == "emit":
        assert 2 == connections
        assert set(times) <= {0}
    else:
        assert connections in (1, 2)
        assert all(time_s == 0 or began <= time_s <= int(time.time()) + 1 for time_s in times)
    assert bool(times) == bool(compression)


async def submit(environ, reports):
    """Submits reports to a bridge, twenty at once so that batches form; returns the statuses of the responses."""
    bridge = Bridge(environ)
    bridge.start()
    statuses = []
    try:
        for first in range(0, len(reports), 20):
            answers = await asyncio.gather(
                *(call(bridge, report.SerializeToString(), path=PROCEDURE) for report in reports[first : first + 20])
            )
            statuses += [answer.status for answer in answers]
    finally:
        await bridge.stop()
    return statuses
