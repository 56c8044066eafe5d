import asyncio
import gzip
import json
from collections.abc import Sequence

import pytest
from google.protobuf.json_format import MessageToJson

from otel_tbot.bridge.application import ReportingService
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import MAX_REQUEST_BYTES, to_error_response
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, SubmitTbotEventResponse
from otel_tbot.tbot.report import to_report
from tests.support.asgi import PROTO, call

PROCEDURE = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
JSON = ((b"content-type", b"application/json"),)


class Caller:
    """Calls the application as an ASGI server does; keeps the events that it delivered."""

    def __init__(self, outcome: Outcome | Exception = Outcome.ACCEPTED, *, path_prefix: str = "") -> None:
        self.events: list[TbotStart] = []

        async def deliver(event: TbotStart) -> Outcome:
            self.events.append(event)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        self._application = ReportingService(deliver, path_prefix=path_prefix)

    def call(
        self,
        body: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]] = PROTO,
        path: str = PROCEDURE,
        method: str = "POST",
        chunk_bytes: int = 64,
    ) -> tuple[int, bytes]:
        """One request; its status and body."""
        answered = asyncio.run(
            call(
                self._application,
                body,
                path=path,
                method=method,
                headers=((b"host", b"x"), *headers),
                pieces=-(-len(body) // chunk_bytes) or 1,
            )
        )
        return answered.status, answered.body


def a_report() -> SubmitTbotEventRequest:
    """A daemon's report."""
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
def test_a_report_is_delivered_and_answered(headers, to_body):
    """In each form of the protocol the event is delivered once, and the answer is an empty response."""
    caller = Caller()
    report = a_report()
    status, body = caller.call(to_body(report), headers=headers)

    assert (200, b"{}" if b"json" in headers[0][1] else SubmitTbotEventResponse().SerializeToString()) == (status, body)
    assert [report.distinct_id] == [event.session_id for event in caller.events]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ACCEPTED])
def test_whatever_is_not_accepted_is_unavailable(outcome):
    """No outcome but acceptance is answered with OK; the answer says which it was and nothing of the collector."""
    status, body = Caller(outcome).call(a_report().SerializeToString())

    assert 503 == status
    assert {
        "code": "unavailable",
        "message": f"the event did not reach the OpenTelemetry Collector: {outcome.value}",
    } == json.loads(body)


def test_a_failure_of_our_own_is_unavailable_and_does_not_tell(caplog):
    """A defect is answered as a failed delivery; its class is logged, its text is not."""
    status, body = Caller(RuntimeError("canary")).call(a_report().SerializeToString())

    assert 503 == status
    assert b"canary" not in body
    assert ["a report could not be handled: RuntimeError"] == [record.getMessage() for record in caplog.records]


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
    """Every broken field is named, none of their values, and nothing is delivered."""
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
def test_a_body_that_is_no_report_is_invalid_and_not_repeated(body, headers):
    """Broken protobuf and JSON are answered without what stood in them."""
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
def test_a_header_of_the_protocol_that_means_nothing_is_refused_and_not_repeated(header, status, code):
    """A version, a timeout and an encoding that are none have each their error, which holds nothing of the value."""
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
def test_other_headers_are_no_matter(header, method):
    """Whatever else a client sends, of text or not, changes nothing."""
    caller = Caller()
    status, _ = caller.call(a_report().SerializeToString(), headers=(*PROTO, header), method=method)

    assert (200 if method == "POST" else 405) == status
    assert (1 if method == "POST" else 0) == len(caller.events)


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc-web", b"canary", b"\xff"])
def test_another_method_is_refused_whatever_its_content_type(content_type):
    """405, though connectrpc would fail on some of the types."""
    assert 405 == Caller().call(b"", headers=((b"content-type", content_type),), method="GET")[0]


@pytest.mark.parametrize("headers", [PROTO, (*PROTO, (b"content-encoding", b"gzip"))])
def test_a_body_above_the_limit_is_refused(headers):
    """More than 16 KiB, also as a small body that unpacks to more, is no report."""
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
    """Any other path is not found, any other method and content type refused, and the right ones work."""
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
def test_a_body_that_is_not_gzipped_whole_is_invalid(body):
    """What says gzip and is none, or not all of it, is no report; the whole of it is one."""
    caller = Caller()
    headers = (*PROTO, (b"content-encoding", b"gzip"))
    status, answer = caller.call(body, headers=headers)

    assert (400, "invalid_argument") == (status, json.loads(answer)["code"])
    assert not caller.events
    assert 200 == caller.call(GZIPPED, headers=headers)[0]


@pytest.mark.parametrize("timeout_ms", [b"20", b"60000"])
def test_a_client_s_own_timeout_is_kept(timeout_ms):
    """When the client says that it waits no longer, it is `deadline_exceeded`; in time it is the outcome."""
    is_short = timeout_ms == b"20"

    async def deliver(_event):
        await asyncio.sleep(60 if is_short else 0)
        return Outcome.ACCEPTED

    caller = Caller()
    caller._application = ReportingService(deliver)  # noqa: SLF001  # one that takes its time
    status, answer = caller.call(a_report().SerializeToString(), headers=(*PROTO, (b"connect-timeout-ms", timeout_ms)))

    assert (504 if is_short else 200) == status
    assert not is_short or json.loads(answer)["code"] == "deadline_exceeded"


def test_a_client_that_leaves_before_its_body_is_whole_reports_nothing():
    """Half a body is no report, and nobody is there to be answered."""
    noted, sent = [], []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def deliver(_event):
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": PROCEDURE, "headers": list(PROTO)}
    asyncio.run(ReportingService(deliver, on_report=noted.append)(scope, receive, send))

    assert ([], []) == (noted, sent)


@pytest.mark.parametrize("message", ["", "plain", 'a "quoted" word', "a back\\slash", '\\"'])
def test_an_error_is_json_whatever_its_message(message):
    """A message with what JSON escapes comes out as it went in."""
    body = to_error_response("unavailable", message).body

    assert {"code": "unavailable", "message": message} == json.loads(body)
