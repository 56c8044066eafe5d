"""Checks each limit of docs/reference/bridge.md over HTTPS behind a path prefix, and the application's when mounted."""

import asyncio
import gzip
import json
import re
import sys
import threading

import pytest

from otel_tbot import settings
from otel_tbot.bridge.application import Bridge
from otel_tbot.bridge.batching import MAX_BATCH, MAX_PENDING
from otel_tbot.event import TbotStart
from otel_tbot.tbot.http_request import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_BYTES
from otel_tbot.tbot.report import PROCEDURE, to_report
from tests.bridge import test_attacks
from tests.bridge.test_attacks import SECRET, posting, targeted
from tests.bridge.test_bridge import a_report, environ_of, is_closed
from tests.bridge.test_server import FEW
from tests.support.asgi import call
from tests.support.checkout import ROOT
from tests.support.polling import poll_until
from tests.support.servers import Answer, OtlpHttpServer, silent_server

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = HEALTH.replace(b"Host", b"Connection: close\r\nHost")


@pytest.fixture
def target(tmp_path, tls):
    """A bridge on HTTPS, behind a path prefix."""
    with OtlpHttpServer() as server, targeted(environ_of(server), tmp_path, tls) as target:
        yield target


def read_statuses(target, data):
    """The statuses of the responses to *data*, and to a good request behind it if the connection is still served."""
    connection = target.send(data + LAST)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


def a_post(body=None):
    """A report, or what else is posted as one, as a request."""
    body = a_report()[0] if body is None else body
    return posting(len(body), sent=0) + body


def test_a_report_has_16_kib(target):
    """As sent and as unpacked; what is within the limit is read."""
    packed = [gzip.compress(b"x" * size) for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1)]
    statuses = [read_statuses(target, a_post(b"x" * size)) for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1)]
    unpacked = [
        read_statuses(target, a_post(body).replace(b"Host", b"Content-Encoding: gzip\r\nHost")) for body in packed
    ]

    assert [[400, 200], [429]] == statuses
    assert [[400, 200], [429, 200]] == unpacked


def test_a_body_on_any_other_path_has_16_kib(target):
    """A longer one ends the connection."""
    statuses = [
        read_statuses(target, posting(size, path=path))
        for path in ("/x", PROCEDURE, f"/{SECRET}")
        for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1)
    ]

    assert [[404, 200], [404]] * 3 == statuses


def test_a_request_has_64_headers_of_16_kib(target):
    """One more header, or more bytes, end the connection."""
    requests = [
        HEALTH.replace(b"Host: x\r\n", b"X: x\r\n" * MAX_HEADERS),
        HEALTH.replace(b"Host: x\r\n", b"X: x\r\n" * (MAX_HEADERS + 1)),
        HEALTH.replace(b": x", b": " + b"x" * (MAX_HEAD_BYTES - len(HEALTH))),
        HEALTH.replace(b": x", b": " + b"x" * MAX_HEAD_BYTES),
    ]

    assert [[200, 200], [431], [200, 200], [431]] == [read_statuses(target, request) for request in requests]


def test_an_idle_connection_is_closed(tmp_path, tls):
    """After --idle-timeout; meanwhile it serves further requests."""
    with OtlpHttpServer() as server, targeted(environ_of(server), tmp_path, tls, "--idle-timeout", "5") as target:
        connection = target.connect()
        for _ in range(3):
            connection.sendall(HEALTH)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert is_closed(connection)


def test_at_the_limit_of_connections_the_longest_silent_gives_way(tmp_path, tls):
    """With room for 20, connections that are idle after their handshake and a response give way, the oldest first."""
    program = (sys.executable, "-c", FEW)
    with OtlpHttpServer() as server, targeted(environ_of(server), tmp_path, tls, program=program) as target:
        held = []
        for _ in range(20):
            held.append(target.connect())
            held[-1].sendall(HEALTH)
            assert held[-1].recv(4096)
        held[0].sendall(HEALTH)
        assert held[0].recv(4096)
        target.report()
        assert is_closed(held[1])
        held[0].sendall(HEALTH)
        assert held[0].recv(4096).startswith(b"HTTP/1.1 200")


FEW_PENDING = """
from otel_tbot.bridge import batching
batching.BatchSender.__init__.__kwdefaults__["max_pending"] = 3
from otel_tbot.__main__ import main
main()
"""


def test_one_more_waiting_report_is_rejected_at_once(tmp_path, tls):
    """With room for 3: `resource_exhausted` while the others wait; later ones are accepted."""
    gate = threading.Event()
    program = (sys.executable, "-c", FEW_PENDING)
    with OtlpHttpServer(Answer(gate=gate)) as server:
        with targeted(environ_of(server), tmp_path, tls, program=program) as target:
            waiting = target.send(a_post() * 3)
            server.wait_for_request()
            poll_until(lambda: read_statuses(target, a_post()) == [429, 200], waiting_for="a rejection")
            gate.set()
            received = b""
            while received.count(b"HTTP/1.1 200") < 3:
                received += waiting.recv(4096)
            target.report()


PATIENT = """
from otel_tbot import settings
settings.DAEMON_TIMEOUT_MS = 60_000
from otel_tbot.__main__ import main
main()
"""
"""Runs the command with a minute for a daemon's report, which must wait until all others are there."""


def test_one_export_has_512_events(tmp_path, tls):
    """What waits beyond that is in the next one."""
    gate = threading.Event()
    program = (sys.executable, "-c", PATIENT)
    with (
        OtlpHttpServer(Answer(gate=gate)) as server,
        targeted(environ_of(server), tmp_path, tls, program=program) as target,
    ):
        first = target.send(a_post())
        server.wait_for_request()
        connections = [target.send(a_post() * 8) for _ in range(MAX_BATCH // 8)]
        connections.append(target.send(a_post()))
        poll_until(lambda: read_waiting(target) == MAX_BATCH + 2, waiting_for="reports that wait")
        gate.set()
        assert first.recv(4096).startswith(b"HTTP/1.1 200")
        for connection in connections:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        poll_until(lambda: len(server.requests) == 3, waiting_for="the last export")

    assert [1, MAX_BATCH, 1] == [len(request.session_ids) for request in server.requests]


def read_waiting(target):
    """The number of reports that wait, as /metrics says."""
    connection = target.send(LAST.replace(b"/healthz", b"/metrics"))
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return float(re.search(rb"(?m)^otel_tbot_bridge_reports_waiting.* ([0-9.]+)$", received)[1])


def test_what_waits_at_the_end_is_unavailable(tmp_path, tls):
    """With a silent collector, reports are answered before the bridge ends, with status 0."""
    with silent_server() as server, targeted(environ_of(server), tmp_path, tls) as target:
        connections = [target.send(a_post()) for _ in range(3)]
        poll_until(lambda: server.connections, waiting_for="the export")
        assert 0 == target.process.end()

        assert [b"HTTP/1.1 503"] * 3 == [connection.recv(4096)[:12] for connection in connections]


TESTS = {
    "A report": test_a_report_has_16_kib,
    "A body on any other path": test_a_body_on_any_other_path_has_16_kib,
    "A request's headers": test_a_request_has_64_headers_of_16_kib,
    "Time for one request": test_attacks.test_a_client_that_trickles_is_closed_in_time,
    "Time for a TLS handshake": test_attacks.test_a_client_that_trickles_is_closed_in_time,
    "Time to read a response": test_attacks.test_a_client_that_asks_and_does_not_read_is_closed_in_time,
    "Requests of one connection without a response": (
        test_attacks.test_a_client_that_pipelines_and_does_not_read_is_closed
    ),
    "An idle connection": test_an_idle_connection_is_closed,
    "Connections": test_attacks.test_as_many_connections_as_allowed_fit_the_memory,
    "Connections with TLS": test_at_the_limit_of_connections_the_longest_silent_gives_way,
    "Waiting reports": test_one_more_waiting_report_is_rejected_at_once,
    "Events in one export": test_one_export_has_512_events,
    "Waiting at the end": test_what_waits_at_the_end_is_unavailable,
}
"""The test of each limit that runs over HTTPS and behind a path prefix."""


def test_each_limit_of_the_page_has_a_test_over_https():
    """A new limit needs a row."""
    page = (ROOT / "docs" / "reference" / "bridge.md").read_text(encoding="utf-8")
    table = page.split("<!-- limits:")[1].split("<!-- end of limits")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]

    assert list(TESTS) == [row for row in rows if row not in {"What", "---"}]


MOUNT = "/mounted/here"


async def post_mounted(bridge, body=None):
    """Posts a report to an application that is mounted; the response."""
    body = a_report()[0] if body is None else body
    return await call(bridge, body, path=MOUNT + PROCEDURE, root_path=MOUNT)


async def wait_until_waiting(bridge, count):
    """Lets the event loop run until *count* reports wait."""
    while bridge.waiting < count:  # noqa: ASYNC110  # each task has its turn in each round
        await asyncio.sleep(0)


def test_mounted_a_report_has_16_kib():
    """What is within the limit is read."""

    async def run(server):
        bridge = Bridge(environ_of(server))
        answers = [await post_mounted(bridge, b"x" * (MAX_REQUEST_BYTES + more)) for more in (0, 1)]
        await bridge.stop()
        return [(answer.status, json.loads(answer.body)["code"]) for answer in answers]

    with OtlpHttpServer() as server:
        assert [(400, "invalid_argument"), (429, "resource_exhausted")] == asyncio.run(run(server))


def test_mounted_2048_reports_wait_and_an_export_has_512_events(monkeypatch):
    """One more is `resource_exhausted` at once; the others are accepted once the collector answers."""
    # The first must wait until all others are there.
    monkeypatch.setattr(settings, "DAEMON_TIMEOUT_MS", 60_000)
    gate = threading.Event()

    async def run(server):
        bridge = Bridge(environ_of(server))
        first = asyncio.create_task(post_mounted(bridge))
        await asyncio.to_thread(server.wait_for_request)
        waiting = [asyncio.create_task(post_mounted(bridge)) for _ in range(MAX_PENDING - 1)]
        await wait_until_waiting(bridge, MAX_PENDING)
        rejected = await post_mounted(bridge)
        gate.set()
        accepted = [answer.status for answer in await asyncio.gather(first, *waiting)]
        after = await post_mounted(bridge)
        await bridge.stop()
        return rejected.status, accepted, after.status

    with OtlpHttpServer(Answer(gate=gate)) as server:
        assert (429, [200] * MAX_PENDING, 200) == asyncio.run(run(server))
        assert [1, *[MAX_BATCH] * 3, MAX_BATCH - 1, 1] == [len(request.session_ids) for request in server.requests]


def test_mounted_what_waits_at_the_end_is_unavailable():
    """When the server ends its lifespan, reports that wait are answered."""

    async def run(server):
        bridge = Bridge(environ_of(server))
        waiting = [asyncio.create_task(post_mounted(bridge)) for _ in range(3)]
        await wait_until_waiting(bridge, len(waiting))
        await bridge.stop(0.1)
        return [answer.status for answer in await asyncio.gather(*waiting)]

    with silent_server() as server:
        assert [503] * 3 == asyncio.run(run(server))


def test_mounted_a_report_is_counted_once_for_its_own_path():
    """A report on the path outside the mount is a wrong path."""

    async def run(server):
        bridge = Bridge(environ_of(server))
        report = to_report(TbotStart(run_mode="daemon")).SerializeToString()
        answers = [
            (await call(bridge, report, path=path, root_path=MOUNT)).status
            for path in (MOUNT + PROCEDURE, f"/other{PROCEDURE}", f"{MOUNT}x{PROCEDURE}")
        ]
        await bridge.stop()
        return answers, dict(bridge.counts.rejected)

    with OtlpHttpServer() as server:
        assert ([200, 404, 404], {"wrong_prefix": 2}) == asyncio.run(run(server))
