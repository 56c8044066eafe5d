import json
import os
import subprocess
import uuid

import pytest
import requests

from tests.collector.test_run import BASIC, RESOURCE, SCOPE
from tests.support.application import CANARY, WAYS, run_application
from tests.support.otelcol import Collector, to_values
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, LAUNCHER, MEASURED


@pytest.fixture(scope="module")
def collector(otelcol, tmp_path_factory):
    """The real collector, shared by the tests of this file."""
    with Collector(otelcol, tmp_path_factory.mktemp("collector")) as running:
        yield running


def parts_of(request):
    """Returns resource, scope and record of a request with one record."""
    (group,) = request.get("resourceLogs") or request.get("resourceSpans")
    (scope,) = group.get("scopeLogs") or group.get("scopeSpans")
    (record,) = scope.get("logRecords") or scope.get("spans")
    return group["resource"], scope["scope"], record


def request_of(collector, session_id):
    """Returns the one request with *session_id*, once it has arrived."""
    collector.wait_for_session(session_id)
    (request,) = [request for request in collector.requests() if session_id in str(request)]
    return request


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_arrives_anonymous_at_the_real_collector(way, protocol, signal, collector, tmp_path):
    """By each way in, protocol and signal, the collector gets only the event, and nothing of the application."""
    session_id = str(uuid.uuid4())
    finished = run_application(
        way,
        signal=signal,
        protocol=protocol,
        url=f"http://127.0.0.1:{collector.ports[protocol]}",
        session_id=session_id,
        folder=tmp_path,
    )
    request = request_of(collector, session_id)
    resource, scope, record = parts_of(request)

    assert 0 == finished.returncode, finished.stderr
    assert RESOURCE == to_values(resource["attributes"])
    assert SCOPE == scope
    ids = {"traceId": uuid.UUID(session_id).hex, "spanId": uuid.UUID(session_id).hex[16:]}
    assert (ids if signal == "span" else {}) == {name: record[name] for name in ids if name in record}
    assert CANARY not in json.dumps(collector.requests())
    assert os.uname().nodename not in json.dumps(request)


@pytest.mark.parametrize("way", WAYS)
def test_off_nothing_arrives_at_the_real_collector(way, collector, tmp_path):
    """Without consent, nothing arrives: the only new request is that of a later event with consent."""
    session_ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    url = f"http://127.0.0.1:{collector.ports['http/protobuf']}"
    before = len(collector.requests())
    for session_id, consent in zip(session_ids, (None, "1"), strict=True):
        run_application(
            way,
            signal="log",
            protocol="http/protobuf",
            url=url,
            session_id=session_id,
            folder=tmp_path,
            consent=consent,
        )
    collector.wait_for_session(session_ids[1])

    assert 1 == len(collector.requests()) - before
    assert session_ids[0] not in str(collector.requests())


@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_json_of_a_preview_is_the_same_record_as_over_protobuf(signal, collector):
    """The printed JSON, posted as it is, is the same record as that of `emit`, except for ids and times."""
    arguments = ["--oneshot", "--join-method", "gcp", "--tbot-version", "18.4.1"]
    environ = BASIC | CONSENT | MEASURED | {"OTEL_TBOT_TIMEOUT": "60000"} | collector.environ("http/protobuf", signal)
    path = {"log": "/v1/logs", "span": "/v1/traces"}[signal]

    def run(command: str) -> str:
        finished = subprocess.run(
            [LAUNCHER[0], command, *arguments], env=environ, capture_output=True, text=True, check=True, timeout=120
        )
        return finished.stdout

    printed = run("preview")
    response = requests.post(
        f"{environ['OTEL_EXPORTER_OTLP_ENDPOINT']}{path}",
        data=printed,
        headers={"Content-Type": "application/json"},
        timeout=120,
    )
    assert 200 == response.status_code
    posted = request_of(collector, session_of(json.loads(printed)))
    before = len(collector.requests())
    assert "the collector accepted the event\n" == run("emit")
    emitted = poll_until(lambda: collector.requests()[before:], waiting_for="the emitted event")[0]

    assert without_ids_and_times(posted) == without_ids_and_times(emitted)


def session_of(request):
    """Returns the session id of the record in a request."""
    return to_values(parts_of(request)[2]["attributes"])["session.id"][1]


def without_ids_and_times(request):
    """Returns a request without its record's times and ids, as text."""
    session_id = session_of(request)
    record = parts_of(request)[2]
    for name in [name for name in record if name.endswith(("TimeUnixNano", "timeUnixNano", "Id"))]:
        del record[name]
    return json.dumps(request).replace(session_id, "")
