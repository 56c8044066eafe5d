import uuid
from datetime import UTC, datetime

import pytest

from otel_tbot import __version__
from otel_tbot.event import ATTRIBUTES, TbotStart
from otel_tbot.otlp.encoding import describe_resource
from tests.support.backends import VictoriaLogs
from tests.support.otelcol import KitCollector, send_over_grpc, send_over_http
from tests.support.polling import poll_until

EVENTS = [
    {"run_mode": "one-shot", "version": "18.4.1", "join_type": "github", "helper": "gha:a/b", "helper_version": "v2"},
    {"run_mode": "one-shot", "version": "18.4.1", "join_type": "github", "helper": "gha:a/b", "helper_version": "v2"},
    {"run_mode": "daemon", "version": "18.4.1", "join_type": "kubernetes", "destinations_kubernetes": 3},
    {"run_mode": "daemon", "version": "17.0.0", "join_type": "kubernetes", "destinations_database": 2},
    {"run_mode": "daemon", "destinations_application": 1, "destinations_other": 1},
]
# Fields that VictoriaLogs adds: the stream that a row belongs to, and its id.
OF_THE_STORE = {"_stream", "_stream_id"}

FLEETS = pytest.mark.parametrize(
    ("files", "send"),
    [
        (("guard", "grafana"), send_over_http),
        (("guard", "grafana", "gateway", "gateway-grafana"), send_over_grpc),
    ],
    ids=["collectors", "gateways"],
)


def to_row(event):
    """Returns what VictoriaLogs shows of *event*, without its time."""
    return {
        "_msg": "tbot.start",
        "event_name": "tbot.start",
        "severity_number": "9",
        "severity_text": "INFO",
        "scope.name": "otel_tbot",
        "scope.version": __version__,
        **describe_resource(is_local=True),
        **{key: str(value) for key, value in event.attributes().items()},
    }


def list_sessions(victorialogs):
    """Returns the session ids of all rows."""
    return {row["session.id"] for row in victorialogs.query_logs("*")}


@FLEETS
def test_each_event_is_one_row_with_the_documented_fields(files, send, otelcol, tmp_path):
    """Two collectors, or gateways, get some events each: the rows are those events, and no row has another field."""
    began = int(datetime.now(UTC).timestamp())
    events = [{**fields, "session_id": str(uuid.uuid4())} for fields in EVENTS]
    with VictoriaLogs(tmp_path) as victorialogs:
        for name, part in (("one", events[::2]), ("two", events[1::2])):
            with KitCollector(otelcol, tmp_path / name, *files, environ=victorialogs.environ()) as collector:
                send(collector, "log", part)
                # Before the collector ends, which leaves in a queue on disk what it has not sent, and in any order.
                awaited = {event["session_id"] for event in part}
                poll_until(
                    lambda awaited=awaited: awaited <= list_sessions(victorialogs), waiting_for=f"the rows of {awaited}"
                )
        rows = victorialogs.query_logs("*")
    times = [datetime.fromisoformat(row.pop("_time")) for row in rows]
    expected = [to_row(TbotStart(**fields)) for fields in events]

    def by_id(found):
        return sorted(found, key=lambda row: row["session.id"])

    assert by_id(expected) == by_id([{k: v for k, v in row.items() if k not in OF_THE_STORE} for row in rows])
    assert all(time.microsecond == 0 and time.timestamp() >= began for time in times)
    # The stream is the resource and the event's name, so nothing of it is a start's own.
    (stream,) = {row["_stream"] for row in rows}
    assert not [attribute.key for attribute in ATTRIBUTES if attribute.key in stream]


@pytest.mark.parametrize("signal", ["log", "span"])
def test_only_log_records_go_to_the_log_store(signal, otelcol, tmp_path):
    """A span is not a row; a log record sent after it is."""
    with VictoriaLogs(tmp_path) as victorialogs:
        with KitCollector(otelcol, tmp_path / "one", "guard", "grafana", environ=victorialogs.environ()) as collector:
            (first,) = send_over_http(collector, signal, EVENTS[:1])
            (last,) = send_over_http(collector, "log", EVENTS[:1])
            expected = {first, last} if signal == "log" else {last}
            poll_until(lambda: expected <= list_sessions(victorialogs), waiting_for="the log records")
        found = list_sessions(victorialogs)

    assert expected == found
