import asyncio
import json

import pytest

from otel_tbot.bridge.application import Bridge, ReportingService
from otel_tbot.bridge.batching import FullError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.report import PROCEDURE, to_report
from tests.support.asgi import PROTO, call

REPORT = to_report(TbotStart(run_mode="daemon", version="18.4.1")).SerializeToString()


class Service:
    """Calls the service as an ASGI server does; every event ends with *outcome*, or submitting it raises it."""

    def __init__(self, outcome=Outcome.ACCEPTED, *, path_prefix=""):
        self.events = []
        self._outcome = outcome
        self.service = ReportingService(self._submit, path_prefix=path_prefix)

    def _submit(self, event, _timeout_seconds):
        self.events.append(event)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        future = asyncio.get_running_loop().create_future()
        future.set_result(self._outcome)
        return future

    def post(self, body=REPORT, **request):
        """Returns the response."""
        return asyncio.run(call(self.service, body, **{"path": PROCEDURE, **request}))


def test_a_report_is_answered_with_its_outcome():
    """In one piece or in many; it is counted."""
    for pieces in (1, 7):
        service = Service()

        assert (200, b"") == ((answer := service.post(pieces=pieces)).status, answer.body)
        assert [18] == [int(event.version.partition(".")[0]) for event in service.events]
        assert (1, 1, {}) == (
            service.service.counts.received,
            service.service.counts.accepted,
            service.service.counts.rejected,
        )


@pytest.mark.parametrize(
    ("outcome", "headers", "status", "code", "reason"),
    [
        (Outcome.REFUSED, (), 503, "unavailable", "refused"),
        (Outcome.TIMED_OUT, (), 503, "unavailable", "timed out"),
        (Outcome.TIMED_OUT, ((b"connect-timeout-ms", b"20"),), 504, "deadline_exceeded", "deadline_exceeded"),
        (FullError(), (), 429, "resource_exhausted", "resource_exhausted"),
        (RuntimeError("canary"), (), 503, "unavailable", "unreachable"),
    ],
    ids=str,
)
def test_a_report_that_was_not_accepted_gets_an_error_and_is_counted(outcome, headers, status, code, reason):
    """Each failure has its status, its Connect code and its reason in the counts; no text of an exception is sent."""
    service = Service(outcome)
    answer = service.post(headers=(*PROTO, *headers))

    assert (status, code) == (answer.status, json.loads(answer.body)["code"])
    assert b"canary" not in answer.body
    assert {reason: 1} == service.service.counts.rejected


def test_a_failure_of_our_own_is_logged_by_its_class(caplog):
    """The exception's class is logged, its text is not."""
    Service(RuntimeError("canary")).post()

    assert ["a report could not be handled: RuntimeError"] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("root_path", "path"), [("", ""), ("/m", "/m"), ("/m", ""), ("/a/b", "/a/b")])
def test_it_can_be_mounted(root_path, path):
    """Reports and probes are found under a root path, whether the server leaves it in the path or not."""
    service = Service(path_prefix="/secret")

    assert 200 == service.post(path=f"{path}/secret{PROCEDURE}", root_path=root_path).status
    assert 404 == service.post(path=f"{path}{PROCEDURE}", root_path=root_path).status
    bridge = Bridge({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    answer = asyncio.run(call(bridge, b"", path=f"{path}/healthz", method="GET", root_path=root_path))
    assert 200 == answer.status


def test_a_root_path_is_not_the_beginning_of_a_name():
    """/mountedx is not under /mounted."""
    assert 404 == Service().post(path=f"/mountedx{PROCEDURE}", root_path="/mounted").status


def test_a_client_that_disconnects_before_its_body_is_complete_reports_nothing():
    """Half a body is not a report, and there is no client to answer."""
    service, sent = Service(), []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PROCEDURE, "headers": list(PROTO)}
    asyncio.run(service.service(scope, receive, send))

    assert ([], [], 0) == (service.events, sent, service.service.counts.received)


def test_a_websocket_is_rejected():
    """The handshake is answered as ASGI says, and nothing fails."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": PROCEDURE, "headers": []}
    asyncio.run(Service().service(scope, None, send))

    assert [{"type": "websocket.close"}] == sent
