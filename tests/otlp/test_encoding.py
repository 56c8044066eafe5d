import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from otel_tbot.event import TbotStart
from otel_tbot.exporters.records import to_log_record, to_resource, to_span
from otel_tbot.otlp.encoding import encode_request

TIME_NS = 1_795_466_556_123_456_789
EVENTS = {
    "the least": {"run_mode": "daemon"},
    "all of it": {
        "run_mode": "one-shot",
        "version": "18.4.1-rc.2",
        "join_type": "kubernetes",
        "helper": "gha:teleport-actions/auth",
        "helper_version": "v2.0.1",
        "destinations_other": 1,
        "destinations_database": 2,
        "destinations_kubernetes": 3,
        "destinations_application": 2**31 - 1,
    },
    "outside the vocabulary": {"run_mode": "daemon", "version": "x", "join_type": "x", "helper": "x y"},
}


def sdk_request(signal, events, *, is_local):
    """What OpenTelemetry's own encoder makes of the SDK's records of *events*."""
    convert, encode = (to_span, encode_spans) if signal == "span" else (to_log_record, encode_logs)
    resource = to_resource(is_local=is_local)
    return encode([convert(event, time_ns=time_ns, resource=resource) for event, time_ns in events])


def without_ids(request):
    """*request*; the random ids of its spans, once their sizes are checked, are emptied."""
    for group in getattr(request, "resource_spans", ()):
        for span in group.scope_spans[0].spans:
            assert (16, 8) == (len(span.trace_id), len(span.span_id))
            span.ClearField("trace_id")
            span.ClearField("span_id")
    return request


@pytest.mark.parametrize("is_local", [True, False], ids=["local", "of a bridge"])
@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("fields", EVENTS.values(), ids=EVENTS)
def test_a_request_is_byte_for_byte_what_opentelemetry_s_encoder_makes(fields, signal, is_local):
    """Both renderings of the event, this one and that of the SDK's records, are the same on the wire."""
    events = [(TbotStart(**fields), TIME_NS), (TbotStart(**fields), TIME_NS + 10**9)]
    request = encode_request(events, signal=signal, is_local=is_local)
    expected = sdk_request(signal, events, is_local=is_local)

    assert without_ids(expected).SerializeToString() == without_ids(request).SerializeToString()
    assert len(request.SerializeToString()) > 2 * len(events[0][0].session_id)


@pytest.mark.parametrize("signal", ["log", "span"])
def test_no_events_make_an_empty_request(signal):
    """Without events the request is empty: it has no resource either."""
    assert b"" == encode_request([], signal=signal, is_local=True).SerializeToString()


def test_what_one_event_said_is_not_in_the_next():
    """Cached attributes of earlier events do not get into later ones."""
    many = [TbotStart(run_mode="daemon", destinations_other=n, version=f"18.{n}.0") for n in range(2000)]
    (group,) = encode_request([(event, TIME_NS) for event in many], signal="log", is_local=False).resource_logs
    sent = [{a.key: a.value for a in record.attributes} for record in group.scope_logs[0].log_records]

    assert [event.attributes() for event in many] == [
        {key: value.int_value if value.HasField("int_value") else value.string_value for key, value in record.items()}
        for record in sent
    ]
