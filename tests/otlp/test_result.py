import json

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_tbot.otlp.result import parse_http_response, parse_protobuf
from otel_tbot.outcome import Outcome

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json; charset=utf-8"}
WARNING = b"\x0a\x04\x12\x02hi"

# google.rpc.Status as its fields are: code 1 (varint), message 2 (string), details 3 (message).
STATUSES = (
    b"\x08\x03",
    b"\x08\x03\x12\x02no",
    b"\x12\x02no",
    b"\x1a" + bytes([len(Any(type_url="x").SerializeToString())]) + Any(type_url="x").SerializeToString(),
)


@pytest.mark.parametrize("status", range(200, 300))
def test_which_statuses_accept(status):
    """200, 202 and 204 accept with an empty body, 200 and 202 with a response of OTLP; no other 2xx does."""
    empty = parse_http_response(status, {}, b"", signal="log").outcome
    response = parse_http_response(status, PROTOBUF, WARNING, signal="log").outcome

    assert (empty is Outcome.ACCEPTED) == (status in (200, 202, 204))
    assert (response is Outcome.ACCEPTED) == (status in (200, 202))


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, Outcome.ACCEPTED),
        ({"partialSuccess": {}}, Outcome.ACCEPTED),
        ({"partialSuccess": None}, Outcome.ACCEPTED),
        ({"partial_success": {"rejected_log_records": 0}}, Outcome.ACCEPTED),
        ({"partialSuccess": {"rejectedLogRecords": "0", "errorMessage": "hi"}}, Outcome.ACCEPTED),
        ({"partialSuccess": {"rejectedLogRecords": None}}, Outcome.ACCEPTED),
        ({"partialSuccess": {"rejectedLogRecords": "1"}}, Outcome.REFUSED),
        ({"partialSuccess": {"rejectedLogRecords": 0.5}}, Outcome.REFUSED),
        ({"partialSuccess": {"rejectedLogRecords": float("inf")}}, Outcome.REFUSED),
        ({"partialSuccess": {"rejectedSpans": 1}}, Outcome.REFUSED),
        ({"partialSuccess": {"rejectedLogRecords": "-1"}}, Outcome.REFUSED),
        ({"partialSuccess": {"rejectedLogRecords": "x"}}, Outcome.REFUSED),
        ({"partialSuccess": [1]}, Outcome.REFUSED),
        ({"code": 3, "message": "no"}, Outcome.REFUSED),
        ({"message": "no"}, Outcome.REFUSED),
        ({"error": {}}, Outcome.REFUSED),
        ([], Outcome.REFUSED),
        ([[]], Outcome.REFUSED),
        ("ok", Outcome.REFUSED),
        (1, Outcome.REFUSED),
        (None, Outcome.REFUSED),
    ],
)
def test_which_json_accepts(body, outcome):
    """A response of OTLP/JSON that rejects nothing accepts; other JSON, google.rpc.Status for one, does not."""
    assert outcome is parse_http_response(200, JSON, json.dumps(body).encode(), signal="log").outcome


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff", b"<p>ok</p>"])
def test_malformed_json_is_refused(body):
    """It raises nothing."""
    assert Outcome.REFUSED is parse_http_response(200, JSON, body, signal="log").outcome


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("rejected", [-(2**63), -1, 1, 2**63 - 1])
def test_a_response_that_rejects_is_refused(rejected, signal):
    """A count that is not 0 is not an acceptance, a negative one included."""
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = rejected

    assert Outcome.REFUSED is parse_protobuf(response.SerializeToString(), signal=signal)


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("body", STATUSES)
def test_a_status_of_google_rpc_is_not_a_response(body, signal):
    """As a response of OTLP, google.rpc.Status parses without an error."""
    assert Outcome.REFUSED is parse_protobuf(body, signal=signal)
    assert Outcome.ACCEPTED is parse_protobuf(b"\x0a\x00", signal=signal)


@pytest.mark.parametrize("content_type", ["text/html", "TEXT/HTML; charset=utf-8"])
def test_an_empty_web_page_is_refused(content_type):
    """A portal that intercepts requests may answer 200 with an empty page."""
    assert Outcome.REFUSED is parse_http_response(200, {"content-type": content_type}, b"", signal="log").outcome


@given(status=st.integers(100, 599), body=st.binary(), content_type=st.text())
def test_no_response_raises(status, body, content_type):
    """Whatever a server sends, there is a result, with the status for people."""
    for headers in ({}, PROTOBUF, JSON, {"content-type": content_type}):
        assert str(status) in parse_http_response(status, headers, body, signal="span").status
