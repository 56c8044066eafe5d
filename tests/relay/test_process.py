import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from otel_tbot.relay.process import REFUSAL
from tests.support.checkout import ROOT
from tests.support.processes import CONSENT, Launch

KEEP = """
import socket, sys, threading
from otel_tbot.relay.process import Door
fd, timeout_seconds, lifetime_seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
door = Door(socket.socket(fileno=fd), timeout_seconds=timeout_seconds, report_start=b"POST /secret/",
    lifetime_seconds=lifetime_seconds)
{body}
def close_with_input():
    sys.stdin.read()
    door.close()
threading.Thread(target=close_with_input, daemon=True).start()
door.keep()
"""
TAKE = """
def take(connection, accepted_at):
    connection.setblocking(True)
    with connection:
        try:
            connection.sendall(connection.recv(100))
        except ConnectionResetError:
            pass
    door.watch_no_more(connection)
    door.release()
door.open_to(take)
"""
HANG = """
door.open_to(lambda connection, accepted_at: None)
"""


@contextmanager
def keeping(
    body: str = "", *, timeout_seconds: float, lifetime_seconds: float
) -> Iterator[tuple[int, subprocess.Popen]]:
    """A door in a process of its own; its port and that process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [str(listener.fileno()), str(timeout_seconds), str(lifetime_seconds)]
        process = subprocess.Popen(
            [sys.executable, "-c", KEEP.format(body=body), *arguments],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
        )
        port = listener.getsockname()[1]
    try:
        yield port, process
    finally:
        process.communicate(timeout=60)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_a_connection_that_nobody_takes_is_refused_in_tbot_s_protocol():
    """While the relay still imports, a connection at its limit gets `unavailable`, whatever it has sent so far."""
    with keeping(timeout_seconds=0.1, lifetime_seconds=60) as (port, _):
        for sent in (b"", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 30_000):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)
                head, _, body = read_all(connection).partition(b"\r\n\r\n")

            assert head.startswith(b"HTTP/1.1 503 ")
            assert f"Content-Length: {len(body)}".encode() in head.splitlines()
            assert "unavailable" == json.loads(body)["code"]


def test_the_process_ends_when_what_it_refused_was_the_report():
    """A report that came before the relay could read it has its answer; there is nothing to stay for."""
    with keeping(timeout_seconds=0.1, lifetime_seconds=60) as (port, process):
        for path in ("/else/", "/secret/"):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                assert process.poll() is None
                connection.sendall(f"POST {path}x HTTP/1.1\r\n\r\n".encode())

                assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        assert 0 == process.wait(60)


def test_connections_that_came_early_are_handed_over_with_those_that_come_later():
    """What was accepted before somebody takes connections is taken too."""
    body = "held = threading.Event()\ndef later():\n    held.wait()\n    exec(TAKE)\nTAKE = '''" + TAKE + "'''\n"
    body += "threading.Thread(target=later, daemon=True).start()\ndoor_hold = door.hold\n"
    body += "def hold():\n    door_hold()\n    held.set()\ndoor.hold = hold\n"
    with keeping(body, timeout_seconds=60, lifetime_seconds=60) as (port, _):
        for sent in (b"early", b"late"):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)

                assert sent == read_all(connection)


def test_a_connection_that_breaks_off_is_no_matter():
    """Connections that are reset before or after they are accepted leave the door open for others."""
    with keeping(TAKE, timeout_seconds=60, lifetime_seconds=60) as (port, _):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"x")

            assert b"x" == read_all(connection)


@pytest.mark.parametrize("body", ["", TAKE])
def test_the_process_ends_with_its_lifetime(body):
    """Without a report the process ends by itself, with status 0."""
    with keeping(body, timeout_seconds=60, lifetime_seconds=0.1) as (_, process):
        assert 0 == process.wait(60)


def test_the_process_ends_when_it_is_closed_and_nothing_is_held():
    """Closed, it waits for what is held and for nothing else."""
    body = "door.hold()\ndoor.close()\nthreading.Timer(0.05, door.release).start()\n"
    with keeping(body, timeout_seconds=60, lifetime_seconds=60) as (_, process):
        assert 0 == process.wait(60)


def test_the_process_ends_though_a_thread_hangs():
    """What is held for ever ends at the last resort: the lifetime, the longest limit and a second."""
    body = "door.hold()\ndoor._ends_at = door._closes_at\n"
    with keeping(body, timeout_seconds=60, lifetime_seconds=0.1) as (_, process):
        assert 0 == process.wait(60)


def test_more_connections_than_the_door_holds_wait_their_turn():
    """Beyond the bound, connections wait in the socket's queue until one ends."""
    with keeping(timeout_seconds=0.2, lifetime_seconds=60) as (port, _):
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]

        for connection in connections:
            with connection:
                assert read_all(connection).startswith(b"HTTP/1.1 503 ")


def test_the_relay_survives_running_out_of_descriptors():
    """At a low limit of descriptors the relay answers one connection after the other, and does not spin."""
    body = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
    with keeping(body, timeout_seconds=0.1, lifetime_seconds=60) as (port, _):
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]

        for connection in connections:
            with connection:
                assert read_all(connection).startswith(b"HTTP/1.1 503 ")


def test_a_relay_that_cannot_start_closes_what_waits():
    """A broken installation ends the relay, and tbot's connection with it; tbot itself is not disturbed."""
    launch = Launch({**CONSENT, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
    environ = launch.environ | {"PYTHONPATH": str(ROOT / "tests" / "support" / "broken")}

    process = launch.start(["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS; exec cat"], env=environ)
    port = int(process.stdout.readline().split(":")[2].partition("/")[0])
    with socket.socket() as connection:
        ended = connection.connect_ex(("127.0.0.1", port)) or read_until_end(connection)
    out, err = process.communicate("still here\n")

    assert ended
    assert (0, "still here\n", "") == (process.returncode, out, err)
    launch.wait_for_end()


def read_until_end(connection: socket.socket) -> bool:
    """Whether the other side closed without a word, or reset."""
    try:
        return read_all(connection) == b""
    except ConnectionResetError:
        return True


def test_what_hangs_is_cut_off_and_its_process_ends():
    """A connection that was taken and never served is refused near its limit, and the process does not stay behind."""
    with keeping(HANG, timeout_seconds=0.5, lifetime_seconds=600) as (port, process):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /secret/ HTTP/1.1\r\n")

            assert REFUSAL == read_all(connection)
        assert 0 == process.wait(60)


def test_the_process_ends_with_its_door():
    """Should the door itself fail, for want of memory, say, the process ends, and no client waits for it."""
    body = "door._accept = lambda: [].pop()"
    with keeping(body, timeout_seconds=60, lifetime_seconds=600) as (port, process):
        with socket.create_connection(("127.0.0.1", port)):
            assert 1 == process.wait(60)
