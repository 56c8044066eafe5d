import gzip
import json
from collections.abc import Sequence

import pytest
from google.protobuf.json_format import MessageToJson

from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import ConnectCall, to_error_response, to_response
from otel_tbot.tbot.http_request import MAX_REQUEST_BYTES, RequestError
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, SubmitTbotEventResponse
from otel_tbot.tbot.report import to_report
from tests.support.asgi import PROTO

PROCEDURE = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
JSON = ((b"content-type", b"application/json"),)


class Caller:
    """Calls the protocol as a server does; keeps the events that were reported."""

    def __init__(self, outcome: Outcome = Outcome.ACCEPTED, *, path_prefix: str = "") -> None:
        self.events: list[TbotStart] = []
        self._outcome = outcome
        self._path_prefix = path_prefix

    def call(
        self,
        body: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]] = PROTO,
        path: str = PROCEDURE,
        method: str = "POST",
        chunk_bytes: int = 64,
    ) -> tuple[int, bytes]:
        """Makes one call; returns the status and the body of the response."""
        try:
            call = ConnectCall(method, path, ((b"host", b"x"), *headers), path_prefix=self._path_prefix)
            for first in range(0, len(body), chunk_bytes):
                call.add(body[first : first + chunk_bytes])
            self.events.append(call.finish())
            response = to_response(self._outcome, is_json=call.is_json)
        except RequestError as error:
            response = error.response
        return response.status, response.body


def a_report() -> SubmitTbotEventRequest:
    """Returns a daemon's report."""
    return to_report(TbotStart(run_mode="daemon", version="18.4.1"))


@pytest.mark.parametrize(
    ("headers", "to_body"),
    [
        (PROTO, lambda report: report.SerializeToString()),
        ((*PROTO, (b"content-encoding", b"gzip")), lambda report: gzip.compress(report.SerializeToString())),
        (JSON, lambda report: MessageToJson(report).encode()),
        (((b"content-type", b"application/json; charset=utf-8"),), lambda report: MessageToJson(report).encode()),
    ],
    ids=["proto", "gzip", "JSON", "JSON with a charset"],
)
def test_a_report_is_read_in_each_form_of_the_protocol(headers, to_body):
    """In each form of the protocol the call reports one event, and the response is empty."""
    caller = Caller()
    report = a_report()
    status, body = caller.call(to_body(report), headers=headers)

    assert (200, b"{}" if b"json" in headers[0][1] else SubmitTbotEventResponse().SerializeToString()) == (status, body)
    assert [report.distinct_id] == [event.session_id for event in caller.events]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ACCEPTED])
def test_every_outcome_but_accepted_is_unavailable(outcome):
    """Only an accepted event gets OK. Otherwise the response names the outcome and nothing of the collector."""
    status, body = Caller(outcome).call(a_report().SerializeToString())

    assert 503 == status
    assert {
        "code": "unavailable",
        "message": f"the event did not reach the OpenTelemetry Collector: {outcome.value}",
    } == json.loads(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: setattr(report, "distinct_id", "canary"), "session_id: must be a random (version 4) UUID"),
        (lambda report: report.ClearField("start"), "event: must be a start; no other event is known"),
        (
            lambda report: (setattr(report.start, "destinations_other", -7), report.start.ClearField("run_mode")),
            "run_mode: must be one of one-shot, daemon; "
            "destinations_other: must be a whole number from 0 to 2147483647",
        ),
    ],
)
def test_a_report_that_breaks_a_rule_is_invalid(change, message):
    """The response names every broken field and no value, and there is no event."""
    report = a_report()
    change(report)
    caller = Caller()
    status, body = caller.call(report.SerializeToString())

    assert (400, {"code": "invalid_argument", "message": message}) == (status, json.loads(body))
    assert not caller.events


@pytest.mark.parametrize("headers", [PROTO, JSON])
@pytest.mark.parametrize(
    "body", [b"\xff\xffcanary", b'{"canary": 1}', b'{"start": {"run_mode": "canary"}}', b"{canary"]
)
def test_an_invalid_body_is_rejected_and_not_repeated(body, headers):
    """The response to broken protobuf or JSON contains nothing of it."""
    caller = Caller()
    status, answer = caller.call(body, headers=headers)

    assert (400, "invalid_argument") == (status, json.loads(answer)["code"])
    assert b"canary" not in answer
    assert not caller.events


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ((b"connect-timeout-ms", b"canary-10ms"), 400, "invalid_argument"),
        ((b"connect-timeout-ms", b"99999999999"), 400, "invalid_argument"),
        ((b"connect-timeout-ms", b"12345678901"), 400, "invalid_argument"),
        ((b"connect-timeout-ms", b"-1"), 400, "invalid_argument"),
        ((b"connect-protocol-version", b"canary"), 400, "invalid_argument"),
        ((b"connect-protocol-version", b"2"), 400, "invalid_argument"),
        ((b"content-encoding", b"canary"), 501, "unimplemented"),
        ((b"content-encoding", b"br"), 501, "unimplemented"),
        ((b"content-encoding", b"\xff"), 501, "unimplemented"),
        ((b"connect-timeout-ms", b"60000"), 200, ""),
        ((b"connect-timeout-ms", b""), 200, ""),
        ((b"content-encoding", b"identity"), 200, ""),
    ],
    ids=str,
)
def test_an_invalid_header_of_the_protocol_is_rejected_and_not_repeated(header, status, code):
    """An invalid version, timeout or encoding gets an error that does not contain the value."""
    caller = Caller()
    others = [other for other in PROTO if other[0] != header[0]]
    answered, body = caller.call(a_report().SerializeToString(), headers=(*others, header))

    assert (status, code) == (answered, json.loads(body)["code"] if body else "")
    assert b"canary" not in body
    assert (status == 200) == bool(caller.events)


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"\xff\xfe"),
        (b"\xff", b"x"),
        (b"host", b"[canary"),
        (b"host", b"x:canary"),
        (b"accept-encoding", b"\xc3\x28"),
        (b"user-agent", b"\xff"),
    ],
)
def test_other_headers_change_nothing(header, method):
    """Other headers, valid text or not, have no influence."""
    caller = Caller()
    status, _ = caller.call(a_report().SerializeToString(), headers=(*PROTO, header), method=method)

    assert (200 if method == "POST" else 405) == status
    assert (1 if method == "POST" else 0) == len(caller.events)


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc-web", b"canary", b"\xff"])
def test_another_method_is_rejected_with_every_content_type(content_type):
    """The response is 405, also for types on which connectrpc fails."""
    assert 405 == Caller().call(b"", headers=((b"content-type", content_type),), method="GET")[0]


@pytest.mark.parametrize("headers", [PROTO, (*PROTO, (b"content-encoding", b"gzip"))])
def test_a_body_above_the_limit_is_rejected(headers):
    """A body of more than 16 KiB, as sent or as unpacked, is not a report."""
    report = a_report()
    report.start.helper = "x" * MAX_REQUEST_BYTES
    body = report.SerializeToString()
    caller = Caller()
    status, answer = caller.call(gzip.compress(body) if len(headers) > len(PROTO) else body, headers=headers)

    assert (429, "resource_exhausted") == (status, json.loads(answer)["code"])
    assert not caller.events


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (404, {"path": PROCEDURE}),
        (404, {"path": "/secret"}),
        (404, {"path": "/secretx" + PROCEDURE}),
        (404, {"path": "/secret/" + PROCEDURE}),
        (404, {"path": "/s\udcffcret" + PROCEDURE}),
        (404, {"path": ""}),
        (405, {"path": "/secret" + PROCEDURE, "method": "GET"}),
        (405, {"path": "/secret" + PROCEDURE, "method": "PUT"}),
        (415, {"path": "/secret" + PROCEDURE, "headers": ((b"content-type", b"application/grpc"),)}),
        (415, {"path": "/secret" + PROCEDURE, "headers": ((b"content-type", b"application/connect+proto"),)}),
        (415, {"path": "/secret" + PROCEDURE, "headers": ()}),
    ],
    ids=str,
)
def test_only_the_procedure_on_the_secret_path_is_served(status, request_of):
    """Another path, method or content type is rejected, and the right ones work."""
    caller = Caller(path_prefix="/secret")

    assert status == caller.call(a_report().SerializeToString(), **request_of)[0]
    assert not caller.events
    assert 200 == caller.call(a_report().SerializeToString(), path="/secret" + PROCEDURE)[0]


GZIPPED = gzip.compress(a_report().SerializeToString())


@pytest.mark.parametrize(
    "body",
    [b"", b"canary", GZIPPED[:-1], GZIPPED + b"canary", GZIPPED * 2],
    ids=["none", "no gzip", "cut", "more", "two"],
)
def test_a_body_that_is_not_one_complete_gzip_member_is_invalid(body):
    """A truncated, extended or unpacked body is invalid; the complete one is a report."""
    caller = Caller()
    headers = (*PROTO, (b"content-encoding", b"gzip"))
    status, answer = caller.call(body, headers=headers)

    assert (400, "invalid_argument") == (status, json.loads(answer)["code"])
    assert not caller.events
    assert 200 == caller.call(GZIPPED, headers=headers)[0]


@pytest.mark.parametrize(("timeout_ms", "expected"), [(b"20", 0.02), (b"60000", 60.0), (None, None)])
def test_how_long_the_client_waits_is_read(timeout_ms, expected):
    """Connect-Timeout-Ms in seconds, None if the client does not say."""
    headers = (*PROTO, *([(b"connect-timeout-ms", timeout_ms)] if timeout_ms else []))

    assert expected == ConnectCall("POST", PROCEDURE, headers, path_prefix="").timeout_seconds


@pytest.mark.parametrize("message", ["", "plain", 'a "quoted" word', "a back\\slash", '\\"'])
def test_an_error_is_json_whatever_its_message(message):
    """The body is JSON that contains the message unchanged."""
    body = to_error_response("unavailable", message).body

    assert {"code": "unavailable", "message": message} == json.loads(body)
