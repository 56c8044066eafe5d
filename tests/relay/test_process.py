"""The relay's loop in a separate process, with a worker that hangs, fails or loads at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from otel_tbot.event import TbotStart
from otel_tbot.relay.server import LIFETIME_SECONDS, LINGER_SECONDS, MAX_CONNECTIONS
from otel_tbot.tbot.report import PROCEDURE, to_report
from tests.support.checkout import ROOT
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, Launch

RELAY = """
import os, socket, sys, threading
from otel_tbot.relay import server
from otel_tbot.relay.process import load_request_class

def hang():
    threading.Event().wait()

def fail():
    import otel_tbot.nonexistent

load = load_request_class
listener = socket.socket(fileno=int(sys.argv[1]))
{body}
relay = server.Relay(listener, load=load, path_prefix="/secret", timeout_seconds=float(sys.argv[2]),
    lifetime_seconds=float(sys.argv[3]), command_end=0)
relay.run()
os._exit(0)
"""
HANGING = "load = hang"
FAILING = "load = fail"
REPORT = to_report(TbotStart(run_mode="one-shot")).SerializeToString()
POST = f"POST /secret{PROCEDURE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n".encode()
PROBE = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
UNREACHABLE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@contextmanager
def relaying(
    body: str = "", *, timeout_seconds: float = 60, lifetime_seconds: float = 60, protocol: str = "http/protobuf"
) -> Iterator[tuple[int, subprocess.Popen]]:
    """A relay in its own process; its port and that process, whose input stands for the command."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [str(listener.fileno()), str(timeout_seconds), str(lifetime_seconds)]
        process = subprocess.Popen(
            [sys.executable, "-c", RELAY.format(body=body), *arguments],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            env=os.environ | UNREACHABLE | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        )
        port = listener.getsockname()[1]
    try:
        yield port, process
    finally:
        process.communicate(timeout=60)


def connect(port: int) -> socket.socket:
    """A connection that has sent nothing yet."""
    return socket.create_connection(("127.0.0.1", port))


def read_all(connection: socket.socket) -> bytes:
    """Everything that arrives until the other side closes."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def exchange(port: int, sent: bytes) -> bytes:
    """The response to *sent*."""
    with connect(port) as connection:
        connection.sendall(sent)
        return read_all(connection)


def is_disconnected(connection: socket.socket) -> bool:
    """Whether the other side closes or resets the connection without a response."""
    try:
        return read_all(connection) == b""
    except ConnectionResetError:
        return True


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_worker(process: subprocess.Popen) -> None:
    """Waits until the relay has started its worker, the second thread, and its loop begins; the worker must hang."""
    poll_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2, waiting_for="the relay's worker")


def test_a_connection_gets_unavailable_at_its_deadline_while_the_worker_imports():
    """The loop answers in tbot's protocol, whatever the connection has sent so far."""
    with relaying(HANGING, timeout_seconds=0.1) as (port, _):
        for sent in (b"", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 30_000):
            headers, _, body = exchange(port, sent).partition(b"\r\n\r\n")

            assert headers.startswith(b"HTTP/1.1 503 ")
            assert f"Content-Length: {len(body)}".encode() in headers.splitlines()
            assert "unavailable" == json.loads(body)["code"]


def test_the_relay_ends_after_a_report_that_it_could_not_read_in_time():
    """A report that arrives before the relay can read it is answered, and no other report will come."""
    with relaying(HANGING, timeout_seconds=0.1) as (port, process):
        assert exchange(port, b"POST /else/x HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert process.poll() is None
        assert exchange(port, b"POST /secret/x HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


def test_a_request_that_arrives_before_the_parser_is_read_by_it():
    """Bytes that were received while the worker imported count, and so does the end of the client's stream."""
    body = "inner = load\ndef load():\n    sys.stdin.readline()\n    return inner()"
    body += "\ncommand = os.dup(0)"
    with relaying(body) as (port, process):
        with connect(port) as whole, connect(port) as ended:
            whole.sendall(b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n")
            ended.sendall(b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n")
            ended.shutdown(socket.SHUT_WR)
            process.stdin.write(b"\n")
            process.stdin.flush()

            assert read_all(whole).startswith(b"HTTP/1.1 404 ")
            assert read_all(ended).startswith(b"HTTP/1.1 404 ")


def test_a_report_learns_what_the_relay_cannot_load():
    """If an import fails, the response names the exception and the module, and the relay ends."""
    with relaying(FAILING) as (port, process):
        response = exchange(port, POST + b"Content-Length: %d\r\n\r\n" % len(REPORT) + REPORT)

        assert response.startswith(b"HTTP/1.1 503 ")
        error = json.loads(response.partition(b"\r\n\r\n")[2])
        assert "unavailable" == error["code"]
        message = "the relay cannot load what it needs: ModuleNotFoundError in otel_tbot.nonexistent"
        assert message == error["message"]
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


def test_a_request_without_the_secret_does_not_end_a_relay_that_cannot_load():
    """It is answered, and the report after it still learns the reason."""
    with relaying(FAILING) as (port, _):
        assert exchange(port, b"POST /else HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        assert b"ModuleNotFoundError" in exchange(port, POST + b"Content-Length: 0\r\n\r\n")


@pytest.mark.parametrize("body", [FAILING, ""], ids=["failing", "loaded"])
def test_a_probe_is_answered_and_ends_the_relay(body):
    """`GET` on the address gets 204 if an event could be sent, otherwise the reason."""
    with relaying(body) as (port, process):
        response = exchange(port, PROBE)

        assert response.startswith(b"HTTP/1.1 503 " if body else b"HTTP/1.1 204 ")
        assert bool(body) == (b"ModuleNotFoundError in otel_tbot.nonexistent" in response)
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


@pytest.mark.parametrize(
    "sent", [b"GET /secre HTTP/1.1\r\n\r\n", b"GET /secret/ HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_only_get_on_the_whole_address_is_a_probe(sent):
    """Every other GET is not found, and the relay stays."""
    with relaying() as (port, process):
        assert exchange(port, sent).startswith(b"HTTP/1.1 404 ")
        assert process.poll() is None


def test_connections_that_are_reset_do_not_matter():
    """Connections that are reset before or after they are accepted do not disturb others."""
    with relaying() as (port, _):
        for _ in range(3):
            with connect(port) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        assert exchange(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("body", [HANGING, FAILING, ""])
def test_the_process_ends_with_its_lifetime(body):
    """Without a report the process ends by itself, with status 0."""
    with relaying(body, lifetime_seconds=0.1) as (_, process):
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


@pytest.mark.parametrize("body", [HANGING, FAILING, ""])
def test_the_process_ends_with_the_command(body):
    """When the command has ended and no client waits, the relay ends, whatever its worker does."""
    with relaying(body) as (_, process):
        process.stdin.close()
        assert 0 == process.wait(LIFETIME_SECONDS / 2)
        process.stdin = None


def test_a_client_that_waits_is_answered_after_the_command_has_ended():
    """The command's end closes the listener, and connections until then keep their deadline."""
    with relaying(HANGING, timeout_seconds=1) as (port, process):
        with connect(port) as connection:
            process.stdin.close()
            process.stdin = None
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


@pytest.mark.parametrize("body", [HANGING, ""])
def test_beyond_the_limit_the_oldest_connections_are_answered(body):
    """They get `unavailable` long before their own limit; the newest stay."""
    with ExitStack() as stack, relaying(body, timeout_seconds=LIFETIME_SECONDS) as (port, process):
        connections = [stack.enter_context(connect(port)) for _ in range(MAX_CONNECTIONS + 30)]

        for connection in connections[:30]:
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        for connection in connections[30:]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        process.kill()


def test_the_relay_survives_running_out_of_descriptors():
    """At a low limit of descriptors the relay answers one connection after the other, and does not spin."""
    body = f"{HANGING}\nimport resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
    with relaying(body, timeout_seconds=1) as (port, process):
        wait_for_worker(process)
        before = cpu_seconds(process.pid)  # of the interpreter's start
        connections = [connect(port) for _ in range(20)]

        for connection in connections:
            with connection:
                assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        # It takes some seconds, which a relay that spins would use.
        assert cpu_seconds(process.pid) - before < 0.5


@pytest.mark.parametrize(
    "name",
    ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EINVAL", "EACCES", "EOPNOTSUPP", "ECONNABORTED", "ENOSYS"],
)
def test_an_accept_that_always_fails_refuses_the_client_soon(name, strace, tmp_path):
    """Whatever accept() reports, the client is refused long before its own limit, and the relay does not spin."""
    trace = tmp_path / "trace"
    injected = [strace, "-o", str(trace), "-e", f"inject=accept,accept4:error={name}"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [*injected, sys.executable, "-c", RELAY.format(body=HANGING), str(listener.fileno()), "60", "60"],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
        )
        port = listener.getsockname()[1]
    with connect(port) as connection:
        assert is_disconnected(connection)
    assert 0 == process.wait(LIFETIME_SECONDS / 2)
    process.stdin.close()

    assert trace.read_text().count("accept") < 100


def test_a_socket_that_does_not_listen_ends_the_relay():
    """A descriptor that is not a listener, or not a socket, cannot be accepted from."""
    with relaying("listener = socket.socket()") as (_, process):
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


def test_the_limit_counts_from_the_connection_and_not_from_accept():
    """A relay that was stopped while a client connected answers at the client's limit, not at its own."""
    with relaying(HANGING, timeout_seconds=6) as (port, process):
        wait_for_worker(process)
        os.kill(process.pid, signal.SIGSTOP)
        connecting_at = time.monotonic()
        with connect(port) as connection:
            connection.sendall(b"POST /secret/x HTTP/1.1\r\n")
            poll_until(lambda: time.monotonic() - connecting_at >= 5, waiting_for="most of the limit to pass")
            os.kill(process.pid, signal.SIGCONT)
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
            waited = time.monotonic() - connecting_at

    # Counted from accept, it would be 11 s.
    assert 5.5 <= waited < 10.5


def test_a_connection_that_is_past_its_limit_at_accept_is_answered_at_once():
    """A relay that starts too late does not begin another limit."""
    with relaying(HANGING, timeout_seconds=6, lifetime_seconds=600) as (port, process):
        wait_for_worker(process)
        os.kill(process.pid, signal.SIGSTOP)
        with connect(port) as connection:
            connection.sendall(b"POST /secret/x HTTP/1.1\r\n")
            sent_at = time.monotonic()
            poll_until(lambda: time.monotonic() - sent_at >= 6.5, waiting_for="the limit to pass")
            os.kill(process.pid, signal.SIGCONT)
            resumed_at = time.monotonic()
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")

        # Another limit would be 6 s.
        assert time.monotonic() - resumed_at < 5.5
        # It was the report, so the relay ends long before its lifetime.
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


def test_a_broken_installation_is_what_the_report_gets():
    """A broken httptools costs the event; tbot learns why, and is not disturbed."""
    launch = Launch({**CONSENT, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
    environ = launch.environ | {"PYTHONPATH": str(ROOT / "tests" / "support" / "broken")}

    process = launch.start(["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS; exec cat"], env=environ)
    port, _, secret = process.stdout.readline().strip().split(":")[2].partition("/")
    head = POST.replace(b"/secret", b"/" + secret.encode())
    response = exchange(int(port), head + b"Content-Length: %d\r\n\r\n" % len(REPORT) + REPORT)
    out, err = process.communicate("still here\n")

    assert response.startswith(b"HTTP/1.1 503 ")
    assert b'"the relay cannot load what it needs: RuntimeError in httptools"' in response
    assert str(ROOT).encode() not in response
    assert (0, "still here\n", "") == (process.returncode, out, err)
    launch.wait_for_end()


NO_THREADS = """
import _thread
start = _thread.start_new_thread
started = []
def start_few(*arguments):
    if len(started) == {count}:
        raise RuntimeError
    started.append(start(*arguments))
    return started[-1]
_thread.start_new_thread = start_few
import threading
threading._start_new_thread = start_few
if hasattr(threading, "_start_joinable_thread"):
    joinable = threading._start_joinable_thread
    def start_joinable(*arguments, **keywords):
        if len(started) == {count}:
            raise RuntimeError
        started.append(joinable(*arguments, **keywords))
        return started[-1]
    threading._start_joinable_thread = start_joinable
"""


@pytest.mark.parametrize("count", [0, 1])
def test_a_report_learns_that_no_thread_can_be_started(count):
    """At a limit of tasks the report is answered at once, and the relay ends."""
    with relaying(NO_THREADS.format(count=count)) as (port, process):
        response = exchange(port, POST + b"Content-Length: %d\r\n\r\n" % len(REPORT) + REPORT)

        assert b"the relay cannot start a thread; raise the limit of tasks" in response
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


@pytest.mark.parametrize(("count", "is_enough"), [(2, False), (8, False), (40, True)])
def test_over_grpc_a_report_learns_of_too_few_tasks_before_grpc_hangs(count, is_enough):
    """gRPC hangs with the interpreter's lock if it cannot start a thread, so the relay tries before it imports it."""
    with relaying(NO_THREADS.format(count=count), protocol="grpc") as (port, process):
        response = exchange(port, POST + b"Content-Length: %d\r\n\r\n" % len(REPORT) + REPORT)

        assert (b"raise the limit of tasks" in response) != is_enough
        assert b'"code":"unavailable"' in response
        assert 0 == process.wait(LIFETIME_SECONDS / 2)


def test_the_process_ends_if_its_loop_fails():
    """If the loop itself fails, for lack of memory for example, the process ends, and no client waits."""
    body = "import select\ndef poll():\n    raise MemoryError\nselect.poll = poll"
    with relaying(body) as (port, process):
        process.stderr = None
        assert 0 != process.wait(LIFETIME_SECONDS / 2)
        with socket.socket() as connection:
            assert connection.connect_ex(("127.0.0.1", port)) or is_disconnected(connection)


def test_a_client_that_does_not_disconnect_does_not_keep_the_relay():
    """A client that neither reads its response nor disconnects is closed after LINGER_SECONDS."""
    with relaying(HANGING, timeout_seconds=0.1) as (port, process):
        with connect(port) as connection:
            connection.sendall(b"POST /secret/x")
            assert 0 == process.wait(LINGER_SECONDS + 59)


def test_a_worker_without_memory_does_not_keep_the_loop_from_answering():
    """If there is no memory for the imports, the report still gets its response, and the relay ends."""
    pages = "int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"
    body = f"import resource\nlimit = {pages} + (4 << 20)\nresource.setrlimit(resource.RLIMIT_AS, (limit, limit))"
    with relaying(body, timeout_seconds=1) as (port, process):
        response = exchange(port, POST + b"Content-Length: 0\r\n\r\n")

        assert response.startswith(b"HTTP/1.1 503 ")
        assert 0 == process.wait(LIFETIME_SECONDS / 2)
