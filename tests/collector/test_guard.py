import copy
import json
import struct
import time
import uuid

import grpc
import pytest
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from otel_tbot.event import ATTRIBUTES, OTHER, TbotStart
from otel_tbot.otlp.encoding import encode_request, to_json
from tests.support.hostile_otlp import CANARY, MARKS, NUMBER, plant_everywhere
from tests.support.otelcol import KitCollector
from tests.support.polling import poll_until
from tools.guard import GUARD, renew_guard

SECOND_NS = 1_000_000_000
PATHS = {"log": "/v1/logs", "span": "/v1/traces"}
MESSAGES = {"log": ExportLogsServiceRequest, "span": ExportTraceServiceRequest}
OPTIONAL = [attribute.key for attribute in ATTRIBUTES if not attribute.is_required]


class Local(KitCollector):
    """`otelcol --config guard.yaml --config local.yaml`, or without the guard's processors, on free ports."""

    def __init__(self, program, folder, *, is_guarded=True, output="json", more=()):
        self.path = folder / "events"
        if not is_guarded:
            # A later list replaces an earlier one: these pipelines have no processor of the guard.
            bare = "{service: {pipelines: {logs/tbot: {processors: []}, traces/tbot: {processors: []}}}}"
            more = ["--config", f"yaml:{bare}", *more]
        # Written at once, so that a test need not wait for the interval.
        for setting in ("flush_interval: 10ms", f"format: {output}"):
            more = [*more, "--config", f"yaml:exporters::file/tbot::{setting}"]
        super().__init__(program, folder, "guard", "local", environ={"TBOT_EVENTS_FILE": str(self.path)}, more=more)

    def send(self, request, signal, protocol):
        """Sends *request*; returns whether it was accepted."""
        return self.send_all([request], signal, protocol) == 1

    def send_all(self, prepared, signal, protocol):
        """Sends each request; returns how many were accepted."""
        if protocol == "grpc":
            stub = TraceServiceStub if signal == "span" else LogsServiceStub
            with grpc.insecure_channel(self.environ["TBOT_OTLP_GRPC"]) as channel:
                return sum(_export(stub(channel), request) for request in prepared)
        headers = {"Content-Type": "application/x-protobuf"}
        with requests.Session() as session:
            return sum(
                session.post(self.url + PATHS[signal], data=r.SerializeToString(), headers=headers, timeout=60).ok
                for r in prepared
            )

    def wait_for_text(self, session_id):
        """Returns all that was written as JSON, once *session_id* is in it."""

        def read():
            text = self.path.read_text() if self.path.exists() else ""
            return text if session_id in text and text.endswith("\n") else ""

        return poll_until(read, waiting_for="the honest event")

    def wait_for_messages(self, session_id, signal):
        """Returns every request that was written as protobuf, once *session_id* is in one."""

        def read():
            data = self.path.read_bytes() if self.path.exists() else b""
            found = []
            # Each message follows its length.
            while len(data) >= 4 and len(data) >= 4 + (size := struct.unpack(">I", data[:4])[0]):
                found.append(MESSAGES[signal].FromString(data[4 : 4 + size]))
                data = data[4 + size :]
            return found if found and session_id in str(found[-1]) else None

        return poll_until(read, waiting_for="the honest event")


def _export(stub, request):
    try:
        stub.Export(request, timeout=60)
    except grpc.RpcError:
        return False
    return True


def an_event(signal, **fields):
    """Returns the request that an honest sender makes of a full event, and its session id."""
    event = TbotStart(
        run_mode="one-shot",
        version="18.4.1-rc.2",
        join_type="kubernetes",
        helper="gha:teleport-actions/auth",
        helper_version="v2.0.1",
        destinations_database=2,
        **fields,
    )
    return encode_request([(event, 1_790_000_000 * SECOND_NS)], signal=signal, is_local=True), event.session_id


def parts_of(request):
    """Returns resource, scope and record that a request has first."""
    group = (request.resource_logs if hasattr(request, "resource_logs") else request.resource_spans)[0]
    scope = (group.scope_logs if hasattr(group, "scope_logs") else group.scope_spans)[0]
    record = (scope.log_records if hasattr(scope, "log_records") else scope.spans)[0]
    return group.resource, scope.scope, record


def record_of(request):
    """Returns the record that a request has first."""
    return parts_of(request)[2]


def value_of(record, key):
    """Returns the value that *record* has under *key*."""
    (value,) = [attribute.value for attribute in record.attributes if attribute.key == key]
    return value


def set_value(record, key, value):
    """Gives *record* another value under *key*, in the field for its type; no value for None."""
    target = value_of(record, key)
    target.Clear()
    kinds = {str: "string_value", int: "int_value", bool: "bool_value", float: "double_value", bytes: "bytes_value"}
    if value is not None:
        setattr(target, kinds[type(value)], value)


def session_of(request):
    """Returns the session id of the one record of a request, "" if it has none."""
    try:
        return value_of(record_of(request), "session.id").string_value
    except ValueError:
        return ""


def list_hostile(signal):
    """Yields requests with foreign data in one place each, and with a documented key twice."""
    honest, _ = an_event(signal)
    yield from plant_everywhere(honest)
    for attribute in ATTRIBUTES:
        twins = [
            KeyValue(key=attribute.key, value={"string_value": CANARY}),
            KeyValue(key=attribute.key, value={"string_value_strindex": 1_234_567_891}),
            KeyValue(key=attribute.key, value={}),
        ]
        for twin in twins:
            for position in (0, len(ATTRIBUTES)):
                request = copy.deepcopy(honest)
                attributes = list(record_of(request).attributes)
                attributes.insert(position, twin)
                del record_of(request).attributes[:]
                record_of(request).attributes.extend(attributes)
                yield f"{attribute.key} twice, at {position}", request


def mark(request):
    """Gives the event of *request* a session id that no other has; returns it, "" if it has none to replace."""
    fresh = str(uuid.uuid4())
    for attribute in record_of(request).attributes:
        if attribute.key == "session.id" and attribute.value.string_value not in ("", CANARY):
            attribute.value.string_value = fresh
            return fresh
    return ""


def find_difference(came, expected):
    """Returns how a request that came through the guard differs from *expected*, "" if only as the guard may change it.

    It may replace or remove the value of an attribute that is not required, remove an attribute of the resource and
    the scope's version, and cut a time. Everything else is the same, byte for byte.
    """
    allowed = copy.deepcopy(expected)
    resource, scope, record = parts_of(allowed)
    came_resource, came_scope, came_record = parts_of(came)
    keys = [attribute.key for attribute in came_record.attributes]
    kept = [attribute for attribute in record.attributes if attribute.key in keys or attribute.key not in OPTIONAL]
    for attribute in kept:
        if attribute.key in OPTIONAL and value_of(came_record, attribute.key).string_value == OTHER:
            attribute.value.string_value = OTHER
    kept_resource = [one for one in resource.attributes if one.key in {one.key for one in came_resource.attributes}]
    for target, values in ((record.attributes, kept), (resource.attributes, kept_resource)):
        copies = copy.deepcopy(values)
        del target[:]
        target.extend(copies)
    scope.version = scope.version if came_scope.version else ""
    cut_ns = NUMBER - NUMBER % SECOND_NS
    if getattr(came_record, "time_unix_nano", None) == cut_ns:
        record.time_unix_nano = record.observed_time_unix_nano = cut_ns
    if getattr(came_record, "start_time_unix_nano", None) == cut_ns:
        record.start_time_unix_nano, record.end_time_unix_nano = cut_ns, cut_ns + 1000
    return "" if came.SerializeToString() == allowed.SerializeToString() else f"{came}\nis not\n{allowed}"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_nothing_planted_comes_through_the_guard(signal, protocol, otelcol, tmp_path):
    """Foreign text and numbers in every field of OTLP leave nothing in what the guard lets pass; unguarded, they do."""
    hostile = list(list_hostile(signal))
    expected = {}
    for _, request in hostile:
        if session_id := mark(request):
            expected[session_id], _ = an_event(signal, session_id=session_id)
    for name in ("guarded", "bare"):
        (tmp_path / name).mkdir()
    with (
        Local(otelcol, tmp_path / "bare", is_guarded=False, output="proto") as bare,
        Local(otelcol, tmp_path / "guarded", output="proto") as guarded,
    ):
        last, session_id = an_event(signal)
        prepared = [*(request for _, request in hostile), last]
        bare.send_all(prepared, signal, protocol)
        guarded.send_all(prepared, signal, protocol)
        through = guarded.wait_for_messages(session_id, signal)[:-1]
        unguarded = bare.wait_for_messages(session_id, signal)[:-1]

    # What was planted does arrive, except in fields that the protocol does not have.
    known = [request for name, request in hostile if "<unknown" not in name]
    planted, arrived = (
        sum(any(mark in request.SerializeToString() for mark in MARKS) for request in sent)
        for sent in (known, unguarded)
    )
    assert 500 < planted
    assert 0.95 * planted <= arrived
    assert [] == [found for came in through if (found := find_difference(came, expected[session_of(came)]))]
    # Fields that are set or cleared do not cost the event.
    assert 0.8 * len(hostile) < len(through)


@pytest.mark.parametrize("signal", ["log", "span"])
def test_without_the_feature_that_clears_events_and_links_a_request_with_them_is_rejected(signal, otelcol, tmp_path):
    """An older collector ignores `set` with nil; the guard then rejects the request, and an honest one still passes."""
    more = ["--feature-gates=-ottl.set.allowNil"]
    honest, session_id = an_event(signal)
    hostile = copy.deepcopy(honest)
    if signal == "span":
        record_of(hostile).events.add(name=CANARY)
    with Local(otelcol, tmp_path, more=more) as local:
        is_accepted = local.send(hostile, signal, "http/protobuf")
        assert local.send(honest, signal, "http/protobuf")
        text = local.wait_for_text(session_id)

    assert (signal == "log") == is_accepted
    assert CANARY not in text


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_honest_event_passes_unchanged(signal, protocol, otelcol, tmp_path):
    """The guard changes nothing of what the package sends."""
    request, session_id = an_event(signal)
    with Local(otelcol, tmp_path) as local:
        assert local.send(request, signal, protocol)
        (line,) = local.wait_for_text(session_id).splitlines()

    def plain(fields):
        """Returns *fields* without the order in which JSON has its keys."""
        return json.dumps(fields, sort_keys=True)

    assert plain(to_json(request)) == plain(json.loads(line))


@pytest.mark.parametrize("signal", ["log", "span"])
def test_attributes_come_in_one_order(signal, otelcol, tmp_path):
    """Attributes leave in the order of the table, in any order that a sender has them."""
    request, session_id = an_event(signal)
    for part in (parts_of(request)[0], record_of(request)):
        reverse = list(reversed(part.attributes))
        del part.attributes[:]
        part.attributes.extend(copy.deepcopy(reverse))
    with Local(otelcol, tmp_path, output="proto") as local:
        assert local.send(request, signal, "http/protobuf")
        (came,) = local.wait_for_messages(session_id, signal)

    honest, _ = an_event(signal, session_id=session_id)
    assert "" == find_difference(came, honest)


NEWER = {
    "tbot.version": ["19.0.0-nightly.4", "18.4.1+x", "18.4.12345", "18.4.1\nx", "next"],
    "tbot.join_type": ["quantum", "tokens", "Token"],
    "tbot.helper": ["x" * 65, "a b", "ü"],
    "tbot.helper_version": ["abc", "1.2.3.4.5", "v2-nightly"],
}


@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_value_that_this_guard_does_not_know_is_counted_as_other(signal, otelcol, tmp_path):
    """A newer sender's value becomes `_OTHER`, of whatever type; the accepted event is not dropped."""
    prepared, keys = [], {}
    for key, values in NEWER.items():
        for value in [*values, 7, True, 1.5, b"x"]:
            request, session_id = an_event(signal)
            set_value(record_of(request), key, value)
            prepared.append(request)
            keys[session_id] = key
    with Local(otelcol, tmp_path, output="proto") as local:
        assert len(prepared) == local.send_all(prepared, signal, "http/protobuf")
        through = local.wait_for_messages(session_id, signal)

    assert list(keys) == [session_of(came) for came in through]
    for came in through:
        session_id = session_of(came)
        assert OTHER == value_of(record_of(came), keys[session_id]).string_value
        assert "" == find_difference(came, an_event(signal, session_id=session_id)[0])


@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_helper_s_version_needs_a_helper(signal, otelcol, tmp_path):
    """As in the product, the version of a helper leaves only next to the helper."""
    request, session_id = an_event(signal)
    kept = [attribute for attribute in record_of(request).attributes if attribute.key != "tbot.helper"]
    copies = copy.deepcopy(kept)
    del record_of(request).attributes[:]
    record_of(request).attributes.extend(copies)
    with Local(otelcol, tmp_path, output="proto") as local:
        assert local.send(request, signal, "http/protobuf")
        (came,) = local.wait_for_messages(session_id, signal)

    keys = [attribute.key for attribute in record_of(came).attributes]
    assert [a.key for a in ATTRIBUTES if a.key not in ("tbot.helper", "tbot.helper_version")] == keys


OUTSIDE = {
    "another event": ("name", "other"),
    "an unknown run mode": ("tbot.run_mode", CANARY),
    "no run mode": ("tbot.run_mode", None),
    "a session id of version 1": ("session.id", "6d0b2c7e-93c4-1c7b-9d2a-0f2b8a1c5e11"),
    "no session id": ("session.id", None),
    "a count below 0": ("tbot.destinations_other", -1),
    "a count above the limit": ("tbot.destinations_other", 2**31),
    "a count that is a string": ("tbot.destinations_other", "1"),
    "a count that is a fraction": ("tbot.destinations_other", 1.5),
    "no count": ("tbot.destinations_other", None),
}


@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_record_that_breaks_a_rule_is_dropped(signal, otelcol, tmp_path):
    """A rule without a substitute value drops the record; the least event and one with `_OTHER` everywhere pass."""
    prepared = []
    for key, value in OUTSIDE.values():
        request, _ = an_event(signal)
        if key == "name":
            setattr(record_of(request), "name" if signal == "span" else "event_name", value)
        else:
            set_value(record_of(request), key, value)
        prepared.append(request)
    unknown = TbotStart(run_mode="daemon", version="x", join_type="x", helper="x y", helper_version="x")
    passing = [
        encode_request([(event, SECOND_NS)], signal=signal, is_local=False)
        for event in (TbotStart(run_mode="daemon"), unknown)
    ]
    with Local(otelcol, tmp_path, output="proto") as local:
        local.send_all([*prepared, *passing], signal, "http/protobuf")
        through = local.wait_for_messages(unknown.session_id, signal)

    assert passing == through


NOW = 0
TIMES = [
    ((1_790_000_000_900_000_000, 1_790_000_007_000_000_000), 1_790_000_000),
    ((0, 1_790_000_007_900_000_000), 1_790_000_007),
    ((0, 0), NOW),
    ((2**64 - 1, 0), NOW),
    ((2**63, 1_790_000_007_900_000_000), 1_790_000_007),
    ((SECOND_NS - 1, 1_790_000_007_900_000_000), 1_790_000_007),
    ((0, SECOND_NS - 1), NOW),
    ((SECOND_NS, 0), 1),
]


@pytest.mark.parametrize("signal", ["log", "span"])
def test_a_record_has_a_time_in_whole_seconds(signal, otelcol, tmp_path):
    """Without a valid time a record gets its observed time, a span its end; without either, the guard's own clock."""
    prepared = []
    for (first, second), _ in TIMES:
        request, session_id = an_event(signal)
        record = record_of(request)
        if signal == "span":
            record.start_time_unix_nano, record.end_time_unix_nano = first, second
        else:
            record.time_unix_nano, record.observed_time_unix_nano = first, second
        prepared.append(request)
    began = int(time.time())
    with Local(otelcol, tmp_path, output="proto") as local:
        assert len(prepared) == local.send_all(prepared, signal, "http/protobuf")
        through = local.wait_for_messages(session_id, signal)
    ended = time.time()

    assert len(TIMES) == len(through)
    for came, (_, expected) in zip(through, TIMES, strict=True):
        record = record_of(came)
        start, end = (
            (record.start_time_unix_nano, record.end_time_unix_nano - 1000)
            if signal == "span"
            else (record.time_unix_nano, record.observed_time_unix_nano)
        )
        assert start == end
        assert 0 == start % SECOND_NS
        assert began <= start // SECOND_NS <= ended if expected == NOW else expected == start // SECOND_NS


def test_metrics_are_not_accepted(otelcol, tmp_path):
    """The guard has no rule for metrics or profiles, so a collector of the kit takes neither."""
    metrics = ExportMetricsServiceRequest()
    metrics.resource_metrics.add().scope_metrics.add().metrics.add(name=CANARY).gauge.data_points.add(as_int=1)
    headers = {"Content-Type": "application/x-protobuf"}
    event, session_id = an_event("log")
    with Local(otelcol, tmp_path) as local:
        statuses = [
            requests.post(local.url + path, data=metrics.SerializeToString(), headers=headers, timeout=60).status_code
            for path in ("/v1/metrics", "/v1development/profiles")
        ]
        assert local.send(event, "log", "http/protobuf")
        text = local.wait_for_text(session_id)

    assert [404, 404] == statuses
    assert 1 == len(text.splitlines())


def test_a_mixed_request_loses_only_what_is_not_the_event(otelcol, tmp_path):
    """Next to other records in one request, the honest event still passes."""
    request, session_id = an_event("log")
    records = request.resource_logs[0].scope_logs[0].log_records
    records.add().CopyFrom(records[0])
    records[1].event_name = CANARY
    with Local(otelcol, tmp_path) as local:
        assert local.send(request, "log", "http/protobuf")
        text = local.wait_for_text(session_id)

    assert 1 == text.count("tbot.run_mode")
    assert CANARY not in text


def test_an_error_in_a_statement_ends_the_request(otelcol, tmp_path):
    """If a statement that is added fails, nothing is written, and the sender is told."""
    failing = "yaml:processors::transform/tbot_start::log_statements: ['set(log.time, Time(log.body, \"%Y\"))']"
    request, _ = an_event("log")
    with Local(otelcol, tmp_path, more=["--config", failing]) as local:
        assert not local.send(request, "log", "http/protobuf")
    assert "" == local.path.read_text()


def test_the_guard_s_statements_are_written_from_the_table():
    """Allow-list, vocabularies and patterns in guard.yaml are those of otel_tbot.event."""
    text = GUARD.read_text(encoding="utf-8")

    assert renew_guard(text) == text
