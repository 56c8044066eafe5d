import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select

import pytest

from otel_tbot.event import TbotStart
from otel_tbot.launcher import MIN_DESCRIPTORS
from otel_tbot.relay.server import MAX_CONNECTIONS
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest
from otel_tbot.tbot.report import to_report
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import (
    Answer,
    OtlpGrpcServer,
    OtlpHttpServer,
    closing_server,
    cutting_server,
    garbage_server,
    refusing_port,
    silent_server,
    trickling_server,
)

PROCEDURE = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
PROTO = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
PATIENT = {"OTEL_TBOT_TIMEOUT": "60000"}


class Command:
    """A command behind `run` that prints its address and runs until its input is closed."""

    def __init__(self, environ: dict[str, str], **options: object) -> None:
        self.launch = Launch(BASIC | CONSENT | environ)
        script = ["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS; exec cat"]
        self.process = self.launch.start(script, **options)
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.split(":")[2].partition("/")[0])

    def report(self, event: TbotStart | SubmitTbotEventRequest, **options: object) -> tuple[int, str]:
        """Sends *event* as tbot does, but with a length; returns the HTTP status and the Connect error code or ""."""
        report = to_report(event) if isinstance(event, TbotStart) else event
        return self.post(PROCEDURE, report.SerializeToString(), **options)

    def post(
        self, path: str, body: bytes | None, *, headers: dict[str, str] = PROTO, base: str | None = None
    ) -> tuple[int, str]:
        """Sends one request; returns the HTTP status and the Connect error code or ""."""
        request = urllib.request.Request((base or self.address) + path, data=body, headers=headers)  # noqa: S310  # ours
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as response:
                return response.status, ""
        except urllib.error.HTTPError as error:
            with error:
                content = error.read()
            return error.code, json.loads(content)["code"] if content.startswith(b"{") else ""

    def wait_until_served(self) -> None:
        """Waits until the relay has imported what reads a request."""
        elsewhere = {"path": "", "body": b"", "base": f"http://127.0.0.1:{self.port}"}
        poll_until(lambda: self.post(**elsewhere)[0] == 404, waiting_for="the relay to serve")

    def connect(self) -> socket.socket:
        """Returns a connection that has sent nothing yet."""
        return socket.create_connection(("127.0.0.1", self.port))

    def begin_report(self, event: TbotStart) -> socket.socket:
        """Sends *event* and does not read the response yet."""
        body = to_report(event).SerializeToString()
        path = "/" + self.address.rpartition("/")[2] + PROCEDURE
        connection = self.connect()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        return connection

    def head(self) -> bytes:
        """Returns the first lines of a report, without its length."""
        path = "/" + self.address.rpartition("/")[2] + PROCEDURE
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n".encode()

    def is_refusing(self) -> bool:
        """Returns whether the address refuses connections."""
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) != 0


@contextmanager
def running(environ: dict[str, str], **options: object) -> Iterator[Command]:
    """A command behind `run`. At the end it must have run undisturbed, with nothing on stderr and no process left."""
    command = Command(environ, **options)
    try:
        yield command
        out, err = command.process.communicate("undisturbed\n")

        assert (0, "undisturbed\n", "") == (command.process.returncode, out, err)
        command.launch.wait_for_end()
    finally:
        command.process.kill()
        command.process.wait()


def one_shot(**fields: object) -> TbotStart:
    """Returns a one-shot's start."""
    return TbotStart(run_mode="one-shot", **fields)


def a_daemon() -> TbotStart:
    """Returns a daemon's start: if OTEL_TBOT_TIMEOUT is short, the relay may still be importing what sends it."""
    return TbotStart(run_mode="daemon")


def endpoint(url: str) -> dict[str, str]:
    """Returns the setting that sends to *url*."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url}


def read_all(connection: socket.socket) -> bytes:
    """Returns everything that arrives until the other side closes."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_the_relay_receives_one_report_and_ends():
    """The report is answered once the collector has accepted its event; then the port refuses connections."""
    event = one_shot()
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        assert (200, "") == command.report(event)
        assert [[event.session_id]] == [request.session_ids for request in server.requests]
        poll_until(command.is_refusing, waiting_for="the port to refuse connections")
        command.launch.wait_for_no_relay()


@pytest.mark.parametrize("mode", ["one-shot", "daemon"])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=503),
        Answer(status=400, content_type="text/plain", body=b"canary"),
        Answer(content_type="text/html", body=b"<p>canary</p>"),
        Answer(body=b"\x0a\x02\x08\x01"),
        Answer(body=b"\xff\xff\xff\xff"),
        Answer(status=302, headers={"Location": "/v1/logs"}),
    ],
    ids=["down", "refusing", "a web page", "rejecting one", "garbage", "redirecting"],
)
def test_a_collector_that_does_not_accept_is_unavailable(answer, mode):
    """Every other response of the collector is `unavailable` at once, and the event is sent once."""
    with OtlpHttpServer(answer) as server, running(PATIENT | endpoint(server.url)) as command:
        # A daemon's report has 10 seconds, whatever OTEL_TBOT_TIMEOUT says; the imports shall not take them.
        command.wait_until_served()
        assert (503, "unavailable") == command.report(TbotStart(run_mode=mode))
        assert 1 == len(server.requests)
        command.launch.wait_for_no_relay()


@pytest.mark.parametrize("fault", [closing_server, cutting_server, garbage_server])
def test_a_collector_that_speaks_no_http_is_unavailable(fault):
    """If the peer closes or does not speak HTTP, the report gets `unavailable` at once."""
    with fault() as server, running(PATIENT | endpoint(server.url)) as command:
        assert (503, "unavailable") == command.report(one_shot())
        assert 1 == len(server.connections)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_not_there_is_unavailable(protocol):
    """If the port refuses connections, the report gets `unavailable` at once."""
    with refusing_port() as url:
        with running(PATIENT | endpoint(url) | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}) as command:
            assert (503, "unavailable") == command.report(one_shot())


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("fault", [silent_server, trickling_server])
def test_a_silent_collector_is_unavailable_at_the_limit(fault, protocol):
    """A one-shot gets `unavailable` at OTEL_TBOT_TIMEOUT, although the collector never ends its response."""
    environ = {"OTEL_TBOT_TIMEOUT": "2000", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with fault() as server, running(environ | endpoint(server.url)) as command:
        command.wait_until_served()
        assert (503, "unavailable") == command.report(one_shot())
        command.launch.wait_for_no_relay()


# A package that is found before the real one: it makes every later thread hang at its start, and steps aside.
HANGING_THREADS = """
import importlib, sys, threading
def start(thread):
    threading.Event().wait()
threading.Thread.start = start
sys.path.remove({directory!r})
del sys.modules["httptools"]
importlib.import_module("httptools")
"""


def test_a_sending_that_hangs_is_unavailable_at_the_limit_and_the_relay_ends(tmp_path):
    """A thread that never runs, as when memory has run out, costs the event, and not more of tbot's time."""
    (tmp_path / "httptools.py").write_text(HANGING_THREADS.format(directory=str(tmp_path)))
    with OtlpHttpServer() as server:
        environ = {"OTEL_TBOT_TIMEOUT": "2000", "PYTHONPATH": str(tmp_path)} | endpoint(server.url)
        with running(environ) as command:
            assert (503, "unavailable") == command.report(one_shot())
            command.launch.wait_for_no_relay()

    assert not server.requests


def test_a_daemon_s_event_may_take_longer_than_a_one_shot_s():
    """A daemon does not wait for its report, so its limit is not OTEL_TBOT_TIMEOUT."""
    gate = threading.Event()
    with (
        OtlpHttpServer(Answer(gate=gate)) as server,
        running({"OTEL_TBOT_TIMEOUT": "3000"} | endpoint(server.url)) as command,
    ):
        # Until a report is read, its limit is that of a one-shot.
        command.wait_until_served()
        silent = command.connect()
        reporting = command.begin_report(TbotStart(run_mode="daemon"))
        server.wait_for_request()
        # This gets its response at OTEL_TBOT_TIMEOUT, which is also a one-shot's limit.
        with silent:
            refusal = read_all(silent)
        gate.set()
        with reporting:
            answer = read_all(reporting)

        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent", ["", "POST / HT", "POST {path} HTTP/1.1\r\nHost: x\r\n{type}Content-Length: 9\r\n\r\nx"]
)
def test_a_connection_without_a_report_gets_unavailable_at_the_limit(sent):
    """A silent or incomplete connection gets `unavailable` and is closed; the relay still receives the report."""
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "2000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with command.connect() as connection:
            path = "/" + command.address.rpartition("/")[2] + PROCEDURE
            connection.sendall(sent.format(path=path, type="Content-Type: application/proto\r\n").encode())
            refusal = read_all(connection)

        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert refusal.endswith(b"}")
        assert (200, "") == command.report(a_daemon())


def test_a_second_report_is_rejected_while_the_first_is_sent():
    """The second report gets an error, and the first one still gets its response."""
    gate = threading.Event()
    with OtlpHttpServer(Answer(gate=gate)) as server, running(PATIENT | endpoint(server.url)) as command:
        second = command.connect()
        # This connection is accepted before the first report, because the relay accepts connections in their order.
        assert (404, "") == command.post("/else", b"", base=f"http://127.0.0.1:{command.port}")
        with command.begin_report(one_shot()) as first:
            server.wait_for_request()
            with second:
                body = to_report(one_shot()).SerializeToString()
                path = "/" + command.address.rpartition("/")[2] + PROCEDURE
                second.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                refused = read_all(second)
            gate.set()
            taken = read_all(first)

        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"resource_exhausted" in refused
        assert taken.startswith(b"HTTP/1.1 200 ")
        assert 1 == len(server.requests)


@pytest.mark.parametrize(
    ("status", "code", "request_of"),
    [
        (404, "", lambda command: {"path": PROCEDURE, "body": b"", "base": f"http://127.0.0.1:{command.port}"}),
        (404, "", lambda command: {"path": PROCEDURE, "body": b"", "base": command.address[:-1] + "x"}),
        (404, "", lambda _: {"path": "/prehog.v1alpha.TbotReportingService/Else", "body": b""}),
        (404, "", lambda _: {"path": "", "body": b""}),
        (405, "", lambda _: {"path": PROCEDURE, "body": None}),
        (415, "", lambda _: {"path": PROCEDURE, "body": b"", "headers": {"Content-Type": "application/grpc"}}),
        (415, "", lambda _: {"path": PROCEDURE, "body": b"", "headers": {"Content-Type": "text/plain"}}),
        (400, "invalid_argument", lambda _: {"path": PROCEDURE, "body": b"\xff\xffcanary"}),
        (400, "invalid_argument", lambda _: {"path": PROCEDURE, "body": b""}),
        (
            400,
            "invalid_argument",
            lambda _: {"path": PROCEDURE, "body": b'{"canary', "headers": PROTO | {"Content-Type": "application/json"}},
        ),
        (429, "resource_exhausted", lambda _: {"path": PROCEDURE, "body": b"\x0a\x80\x80\x04" + b"x" * 65_536}),
    ],
    ids=[
        "no secret", "another secret", "another procedure", "no procedure", "GET", "grpc", "text", "broken protobuf",
        "no event", "broken JSON", "too large",
    ],
)  # fmt: skip
def test_a_request_that_is_not_the_report_gets_its_error_and_the_relay_stays(status, code, request_of):
    """A request that is not a report on the secret path gets an error, and the report after it still arrives."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        assert (status, code) == command.post(**request_of(command))
        assert (200, "") == command.report(one_shot())
        assert 1 == len(server.requests)


BODY = to_report(TbotStart(run_mode="one-shot")).SerializeToString()
RAW = {
    "no HTTP": (b"\x16\x03\x01canary\r\n\r\n", b"HTTP/1.1 400 "),
    "endless headers": (b"POST / HTTP/1.1\r\nX: " + b"x" * 40_000, b"HTTP/1.1 431 "),
    "two requests at once": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2, b"HTTP/1.1 404 "),
    "an endless body": (b"{head}Content-Length: 1000000\r\n\r\n" + b"x" * 40_000, b"HTTP/1.1 429 "),
}


@pytest.mark.parametrize(("sent", "beginning"), RAW.values(), ids=RAW)
def test_an_invalid_request_gets_one_response_and_is_closed(sent, beginning):
    """The client reads a whole response even if it is still sending, and the report after it still arrives."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        with command.connect() as connection:
            connection.sendall(sent.replace(b"{head}", command.head()))
            connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)

        assert answer.startswith(beginning)
        assert 1 == answer.count(b"HTTP/1.1 ")
        assert b"canary" not in answer
        assert (200, "") == command.report(one_shot())


def test_a_second_request_behind_the_report_is_ignored():
    """A second request on the report's connection is dropped: one relay, one report, one response."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        with command.connect() as connection:
            request = command.head() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
            connection.sendall(request * 2)
            answer = read_all(connection)

        assert answer.startswith(b"HTTP/1.1 200 ")
        assert 1 == answer.count(b"HTTP/1.1 ")
        assert 1 == len(server.requests)


def test_a_client_that_expects_100_continue_gets_it():
    """Expect: 100-continue is answered before the body arrives."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        with command.connect() as connection:
            connection.sendall(command.head() + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))

            assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(4096)
            connection.sendall(BODY)
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"POST /else HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"])
def test_a_connection_that_is_reset_does_not_matter(sent):
    """A client that disconnects, even while it is being answered, does not disturb the relay."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        for _ in range(3):
            with command.connect() as connection:
                connection.sendall(sent)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        assert (200, "") == command.report(one_shot())


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("run_mode", lambda report: report.start.ClearField("run_mode")),
        ("session_id", lambda report: setattr(report, "distinct_id", "canary")),
        ("destinations_other", lambda report: setattr(report.start, "destinations_other", -1)),
    ],
)
def test_a_report_that_breaks_a_rule_is_invalid(field, change):
    """A report that breaks a rule gets `invalid_argument`; nothing is sent, and the relay stays."""
    report = to_report(one_shot())
    change(report)
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        assert (400, "invalid_argument") == command.report(report)
        assert (200, "") == command.report(one_shot())
        assert 1 == len(server.requests)
    assert field


def test_a_client_that_disconnects_does_not_stop_its_event():
    """If the client has disconnected before its response, the event still arrives, and the relay ends."""
    gate = threading.Event()
    event = one_shot()
    with OtlpHttpServer(Answer(gate=gate)) as server, running(PATIENT | endpoint(server.url)) as command:
        command.begin_report(event).close()
        server.wait_for_request()
        gate.set()

        assert [event.session_id] == server.requests[0].session_ids
        command.launch.wait_for_no_relay()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_s_end_does_not_stop_its_event(number):
    """An event that is in flight when the command dies is still sent; then the relay ends."""
    gate = threading.Event()
    with OtlpHttpServer(Answer(gate=gate)) as server:
        command = Command(PATIENT | endpoint(server.url))
        with command.begin_report(one_shot()) as connection:
            server.wait_for_request()
            command.process.send_signal(number)
            command.process.communicate()

            assert 1 == len(command.launch.relays())
            gate.set()
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        command.launch.wait_for_end()


def test_half_a_report_of_a_command_that_died_does_not_keep_the_relay():
    """A connection that ended with the command is closed, and the relay ends."""
    with OtlpHttpServer() as server:
        command = Command(PATIENT | endpoint(server.url))
        with command.connect() as connection:
            connection.sendall(b"POST / HTTP/1.1\r\n")
            command.process.kill()
            command.process.communicate()
        command.launch.wait_for_end()

    assert not server.requests


def test_connections_that_come_before_the_relay_accepts_do_not_delay_the_report():
    """The kernel queues twice as many as the relay serves, which closes the oldest that are not tbot's.

    A connection that finds the queue full would be tried again after one second, and two.
    """
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command, ExitStack() as open_sockets:
        relay = command.launch.wait_for_relay()
        os.kill(relay, signal.SIGSTOP)
        waiting = [open_sockets.enter_context(socket.socket()) for _ in range(2 * MAX_CONNECTIONS)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", command.port))

        poll_until(lambda: len(waiting) == len(select([], waiting, [], 0)[1]), waiting_for="all to be connected")
        os.kill(relay, signal.SIGCONT)
        assert (200, "") == command.report(one_shot())

    assert 1 == len(server.requests)


def test_a_relay_that_is_killed_leaves_the_command_alone():
    """If the relay is killed, the command does not notice, and its report gets an error."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        os.kill(command.launch.wait_for_relay(), signal.SIGKILL)
        # The kernel frees a process's memory, which is how it is found, before it closes its sockets.
        poll_until(command.is_refusing, waiting_for="the port to be closed")


def test_the_relay_loads_nothing_from_the_directory_it_was_started_in(tmp_path):
    """Modules in the working directory are not imported, even if they have names that the relay imports."""
    for name in ("asyncio", "uvicorn", "otel_tbot", "opentelemetry"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('canary')\n")
    with OtlpHttpServer() as server:
        launch = Launch(BASIC | CONSENT | PATIENT | endpoint(server.url) | {"WEB_CONCURRENCY": "canary"})
        process = launch.start(["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS; exec cat"], cwd=tmp_path)
        command = Command.__new__(Command)
        command.address = process.stdout.readline().strip()

        assert (200, "") == command.report(one_shot())
        process.communicate()
        launch.wait_for_end()


def test_files_that_settings_name_are_those_of_the_caller_s_directory(tmp_path):
    """A relative name of a certificate file is resolved in the caller's directory, although the relay leaves it."""
    with OtlpHttpServer() as server:
        environ = BASIC | CONSENT | PATIENT | endpoint(server.url) | {"OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem"}
        (tmp_path / "ca.pem").write_text("")
        launch = Launch(environ)
        process = launch.start(["cat"], cwd=tmp_path)
        relay = launch.wait_for_relay()
        poll_until(lambda: os.readlink(f"/proc/{relay}/cwd") == "/", waiting_for="the relay in /")

        assert str(tmp_path / "ca.pem").encode() not in Path(f"/proc/{relay}/environ").read_bytes()
        process.communicate()
        launch.wait_for_end()


@pytest.mark.parametrize(
    ("chunk", "pause_seconds", "status"),
    [(b"1\r\nx\r\n", 0.002, b"503"), (b"1;" + b"x" * 500 + b"\r\nx\r\n", 0.0, b"413")],
    ids=["slow", "large chunk headers"],
)
def test_a_body_without_end_is_rejected_at_a_limit(chunk, pause_seconds, status):
    """Chunks without end, none of them large, keep a connection until OTEL_TBOT_TIMEOUT or a limit of bytes."""
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "2000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with command.connect() as connection:
            connection.sendall(command.head() + b"Transfer-Encoding: chunked\r\n\r\n")
            ended = threading.Event()

            def trickle() -> None:
                try:
                    while not ended.wait(pause_seconds):
                        connection.sendall(chunk)
                except OSError:
                    pass  # the relay has closed the connection

            thread = threading.Thread(target=trickle)
            thread.start()
            response = connection.recv(4096)
            ended.set()
            thread.join()

        assert response.startswith(b"HTTP/1.1 " + status)
        assert (200, "") == command.report(a_daemon())


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_smallest_limit_of_open_files_that_starts_a_relay_delivers_the_event(protocol):
    """MIN_DESCRIPTORS are enough for the report, the collector and the imports."""
    with OtlpHttpServer() if protocol == "http/protobuf" else OtlpGrpcServer() as server:
        environ = PATIENT | endpoint(server.url) | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        launcher = ("sh", "-c", f'ulimit -n {MIN_DESCRIPTORS[protocol]}; exec "$@"', "sh", *LAUNCHER)
        with running(environ, launcher=launcher) as command:
            assert (200, "") == command.report(one_shot())
            assert 1 == len(server.requests)
