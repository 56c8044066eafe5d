import base64
import copy
import json

import grpc
import pytest
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from otel_tbot.event import ATTRIBUTES, TbotStart
from otel_tbot.otlp.client import to_json
from otel_tbot.otlp.encoding import load_encoder
from tests.support.hostile_otlp import CANARY, plant_everywhere
from tests.support.otelcol import CONFIG, KitCollector
from tests.support.polling import poll_until
from tools import generate as tables

SECOND_NS = 1_000_000_000
# As text, and as JSON writes bytes.
MARKS = (CANARY, base64.b64encode(CANARY.encode()).decode())
PATHS = {"log": "/v1/logs", "span": "/v1/traces"}


class Local(KitCollector):
    """`otelcol --config guard.yaml --config local.yaml`, or without the guard's processors, on free ports."""

    def __init__(self, program, folder, *, is_guarded=True, more=()):
        self.path = folder / "events.jsonl"
        if not is_guarded:
            # A list is replaced by a later one: nothing of the guard is in these pipelines.
            bare = "{service: {pipelines: {logs/tbot: {processors: []}, traces/tbot: {processors: []}}}}"
            more = ["--config", f"yaml:{bare}", *more]
        # Written at once, so that a test need not wait for the interval.
        more = [*more, "--config", "yaml:exporters::file/tbot::flush_interval: 10ms"]
        super().__init__(program, folder, "guard", "local", environ={"TBOT_EVENTS_FILE": str(self.path)}, more=more)

    def send(self, request, signal, protocol):
        """Sends *request*; whether it was accepted."""
        if protocol == "grpc":
            stub = TraceServiceStub if signal == "span" else LogsServiceStub
            with grpc.insecure_channel(self.environ["TBOT_OTLP_GRPC"]) as channel:
                try:
                    stub(channel).Export(request, timeout=60)
                except grpc.RpcError:
                    return False
                return True
        headers = {"Content-Type": "application/x-protobuf"}
        return requests.post(self.url + PATHS[signal], data=request.SerializeToString(), headers=headers, timeout=60).ok

    def text_with(self, session_id):
        """All that came out, once *session_id* is in it."""

        def read():
            text = self.path.read_text() if self.path.exists() else ""
            return text if session_id in text and text.endswith("\n") else ""

        return poll_until(read, waiting_for="the honest event")


def an_event(signal, **fields):
    """The request that an honest sender makes of a full event, and its session id."""
    event = TbotStart(
        run_mode="one-shot",
        version="18.4.1-rc.2",
        join_type="kubernetes",
        helper="gha:teleport-actions/auth",
        helper_version="v2.0.1",
        destinations_database=2,
        **fields,
    )
    return load_encoder(signal, is_local=True)([(event, 1_790_000_000 * SECOND_NS)]), event.session_id


def record_of(request):
    """The one record of a request."""
    (group,) = request.resource_logs if hasattr(request, "resource_logs") else request.resource_spans
    (scope,) = group.scope_logs if hasattr(group, "scope_logs") else group.scope_spans
    (record,) = scope.log_records if hasattr(scope, "log_records") else scope.spans
    return record


def list_hostile(signal):
    """Requests with a canary in one place each, in all places, and in values of documented keys."""
    honest, _ = an_event(signal)
    yield from plant_everywhere(honest)
    for attribute in ATTRIBUTES:
        for position in (0, None):
            request = copy.deepcopy(honest)
            attributes = list(record_of(request).attributes)
            twin = copy.deepcopy(attributes[0])
            twin.key, twin.value.string_value = attribute.key, CANARY
            attributes.insert(0 if position == 0 else len(attributes), twin)
            del record_of(request).attributes[:]
            record_of(request).attributes.extend(attributes)
            yield f"{attribute.key} twice, at {position}", request


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_no_canary_comes_through_the_guard(signal, protocol, otelcol, tmp_path):
    """Every text field of OTLP, arrays, maps, bytes and keys twice: nothing comes out; without the guard, all do."""
    hostile = list(list_hostile(signal))
    for name in ("guarded", "bare"):
        (tmp_path / name).mkdir()
    with Local(otelcol, tmp_path / "bare", is_guarded=False) as bare, Local(otelcol, tmp_path / "guarded") as guarded:
        for _, request in hostile:
            bare.send(request, signal, protocol)
            guarded.send(request, signal, protocol)
        last, session_id = an_event(signal)
        assert guarded.send(last, signal, protocol)
        bare.send(last, signal, protocol)
        through, unguarded = guarded.text_with(session_id), bare.text_with(session_id)

    # The harness plants what would arrive: all but what stands beside another value of a oneof, or is no text there.
    planted = sum(any(mark in line for mark in MARKS) for line in unguarded.splitlines())
    assert 60 < len(hostile)
    assert 0.9 * len(hostile) <= planted
    assert not [line for line in through.splitlines() if any(mark in line for mark in MARKS)]
    # Fields that are set or cleared do not cost the event.
    assert 10 < through.count("tbot.run_mode")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_honest_event_passes_unchanged(signal, protocol, otelcol, tmp_path):
    """What the package sends comes out as it was sent, whole."""
    request, session_id = an_event(signal)
    with Local(otelcol, tmp_path) as local:
        assert local.send(request, signal, protocol)
        (line,) = local.text_with(session_id).splitlines()

    def plain(fields):
        """Without the order in which JSON has its keys."""
        return json.dumps(fields, sort_keys=True)

    assert plain(to_json(request)) == plain(json.loads(line))


OUTSIDE = {
    "another event": ("name", "other"),
    "an unknown run mode": ("tbot.run_mode", CANARY),
    "a join method of nobody's": ("tbot.join_type", "tokens"),
    "a version with more": ("tbot.version", "18.4.1+x"),
    "a version of five digits": ("tbot.version", "18.4.12345"),
    "a version with a line": ("tbot.version", "18.4.1\nx"),
    "a helper of 65": ("tbot.helper", "x" * 65),
    "a helper with a space": ("tbot.helper", "a b"),
    "a helper version that is a name": ("tbot.helper_version", "abc"),
    "a session id of version 1": ("session.id", "6d0b2c7e-93c4-1c7b-9d2a-0f2b8a1c5e11"),
    "a count below 0": ("tbot.destinations_other", -1),
    "a count above": ("tbot.destinations_other", 2**31),
    "a count that is a text": ("tbot.destinations_other", "1"),
}


@pytest.mark.parametrize("signal", ["log", "span"])
def test_what_is_outside_the_rules_is_dropped(signal, otelcol, tmp_path):
    """Each rule of the package holds in the collector too; `_OTHER` and what is left out pass."""
    honest, _ = an_event(signal)
    requests_sent = []
    for key, value in OUTSIDE.values():
        request = copy.deepcopy(honest)
        record = record_of(request)
        if key == "name":
            setattr(record, "name" if signal == "span" else "event_name", value)
        for attribute in record.attributes:
            if attribute.key == key:
                attribute.value.Clear()
                setattr(attribute.value, "int_value" if isinstance(value, int) else "string_value", value)
        requests_sent.append(request)
    bare = TbotStart(run_mode="daemon", version="x", join_type="x", helper="x y", helper_version="x")
    encode = load_encoder(signal, is_local=False)
    least, other = (encode([(event, SECOND_NS)]) for event in (TbotStart(run_mode="daemon"), bare))
    with Local(otelcol, tmp_path) as local:
        for request in (*requests_sent, least, other):
            local.send(request, signal, "http/protobuf")
        text = local.text_with(bare.session_id)

    assert 2 == text.count("tbot.run_mode")
    assert 4 == text.count("_OTHER")


def test_a_mixed_request_loses_only_what_is_not_the_event(otelcol, tmp_path):
    """Beside other records in one request, the honest event still passes."""
    request, session_id = an_event("log")
    records = request.resource_logs[0].scope_logs[0].log_records
    records.add().CopyFrom(records[0])
    records[1].event_name = CANARY
    with Local(otelcol, tmp_path) as local:
        assert local.send(request, "log", "http/protobuf")
        text = local.text_with(session_id)

    assert 1 == text.count("tbot.run_mode")
    assert CANARY not in text


def test_an_error_in_a_statement_ends_the_request(otelcol, tmp_path):
    """With a statement that fails layered on top, nothing comes out, and the sender is told."""
    failing = "yaml:processors::transform/tbot_start::log_statements: ['set(log.time, Time(log.body, \"%Y\"))']"
    request, _ = an_event("log")
    with Local(otelcol, tmp_path, more=["--config", failing]) as local:
        assert not local.send(request, "log", "http/protobuf")
    assert "" == local.path.read_text()


def test_the_guard_s_lists_are_the_package_s():
    """Allow-list, vocabularies and patterns in guard.yaml are made from the code's."""
    text = (CONFIG / "guard.yaml").read_text(encoding="utf-8")

    assert tables.renew_guard(text) == text
