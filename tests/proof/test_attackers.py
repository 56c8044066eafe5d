"""Proves promise 7: another process on the machine learns nothing from the relay, and cannot misuse it."""

import os
import secrets
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_tbot.event import TbotStart
from otel_tbot.relay.server import LIFETIME_SECONDS, MAX_CONNECTIONS
from otel_tbot.tbot.report import to_report
from tests.relay.test_server import PATIENT, PROCEDURE, Command, endpoint, one_shot, running
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, Launch
from tests.support.servers import Answer, OtlpHttpServer

OTHER_USER = 65534


def list_guesses(secret):
    """Returns paths that an attacker may try who knows everything but the secret: similar, tricky and random ones."""
    upper = secret.upper() if secret.upper() != secret else secret[::-1]
    near = [secret[:n] for n in range(len(secret))] + [secret + "0", "0" + secret, upper, secret[::-1]]
    near += [secret[:n] + ("0" if secret[n] != "0" else "1") + secret[n + 1 :] for n in range(len(secret))]
    tricks = [
        "",
        "*",
        ".",
        "..",
        "%00",
        "%2e%2e",
        "?",
        "#",
        f"x/../{secret[:-1]}",
        "/",
        "//",
        f"%20{secret}",
        f"{secret[:-1]}%",
    ]
    guesses = near + tricks + [secrets.token_hex(16) for _ in range(1000)]
    return [guess for guess in guesses if guess != secret]


@pytest.mark.promise("attackers.secret")
def test_a_process_that_finds_the_port_cannot_report_without_the_path(cases):
    """More than a thousand paths without the secret get 404, nothing is sent, and the report with it arrives."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        secret = command.address.rpartition("/")[2]
        base = f"http://127.0.0.1:{command.port}"
        body = to_report(one_shot()).SerializeToString()
        statuses = set()
        for guess in list_guesses(secret):
            statuses.add(command.post(f"/{guess}{PROCEDURE}", body, base=base)[0])
            cases.add()

        assert {404} == statuses
        assert not server.requests
        event = one_shot()
        assert (200, "") == command.report(event)
        assert [[event.session_id]] == [request.session_ids for request in server.requests]


@pytest.mark.promise("attackers.secret")
def test_each_start_has_a_new_secret_of_128_bits(cases):
    """Of many starts, no two have the same path or the same half of it."""
    paths = []
    for _ in range(40):
        launch = Launch({"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **CONSENT})
        finished = launch.run(["sh", "-c", "echo $TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"])
        paths.append(finished.stdout.strip().rpartition("/")[2])
        cases.add()
        launch.wait_for_end()
    halves = [path[:16] for path in paths] + [path[16:] for path in paths]

    assert {32} == {len(path) for path in paths}
    assert len(halves) == len(set(halves))


@pytest.mark.promise("attackers.hold")
def test_open_connections_do_not_keep_the_relay_after_its_report():
    """Silent and unfinished connections of others end with the relay once it has answered the report."""
    # At its limit the relay would answer these connections and end in any case, so the limit is long.
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "600000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with ExitStack() as stack:
            for number in range(MAX_CONNECTIONS // 2):
                connection = stack.enter_context(command.connect())
                connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"")
            assert (200, "") == command.report(one_shot())
            command.launch.wait_for_no_relay()


@pytest.mark.promise("attackers.hold")
@pytest.mark.parametrize("sent", [b"", b"POST /", b"POST /" + b"0" * 32 + b"/", b"GET / HTTP/1.1\r\n"])
def test_connections_that_use_every_place_neither_delay_nor_lose_a_report(sent):
    """The oldest connections that have not sent the secret path are closed, long before their limit of ten minutes."""
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "600000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with ExitStack() as stack:
            for _ in range(3 * MAX_CONNECTIONS):
                stack.enter_context(command.connect()).sendall(sent)
            assert (200, "") == command.report(one_shot())
            command.launch.wait_for_no_relay()


@pytest.mark.promise("attackers.hold")
def test_a_flood_of_connections_does_not_keep_the_relay_after_its_command():
    """A client that connects again and again cannot keep the relay alive after the command has ended."""
    with OtlpHttpServer() as server:
        command = Command({"OTEL_TBOT_TIMEOUT": "1000"} | endpoint(server.url))
        command.wait_until_served()
        is_over = threading.Event()

        def flood():
            while not is_over.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", command.port), timeout=1) as connection:
                        connection.sendall(b"GET / HTTP/1.1\r\n")
                        connection.settimeout(0.05)
                        connection.recv(1)
                except OSError:
                    pass

        threads = [threading.Thread(target=flood, daemon=True) for _ in range(16)]
        for thread in threads:
            thread.start()
        try:
            command.process.communicate("")
            ended = time.monotonic()
            command.launch.wait_for_no_relay()
            lingered = time.monotonic() - ended
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    assert 0 == command.process.returncode
    # Its timeout and one second, with much room for a busy machine. Kept, it would stay for the rest of its lifetime.
    assert lingered < LIFETIME_SECONDS / 2
    assert not server.requests


@pytest.mark.promise("attackers.twice")
@pytest.mark.parametrize("replay", ["the same bytes", "another report", "many at once"])
def test_no_client_makes_a_relay_send_twice(replay):
    """Even with the secret path, at the same time or later, one start is one event."""
    gate = threading.Event()
    with OtlpHttpServer(Answer(gate=gate)) as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        event = one_shot()
        early = [command.connect() for _ in range(8 if replay == "many at once" else 1)]
        assert (404, "") == command.post("/else", b"", base=f"http://127.0.0.1:{command.port}")
        with command.begin_report(event) as first:
            server.wait_for_request()
            again = event if replay == "the same bytes" else TbotStart(run_mode="daemon")
            body = to_report(again).SerializeToString()
            path = "/" + command.address.rpartition("/")[2] + PROCEDURE
            kind = "Content-Type: application/proto"
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            responses = []
            for connection in early:
                with connection:
                    connection.sendall(head.encode() + body)
                    responses.append(connection.recv(4096))
            gate.set()
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
        command.launch.wait_for_no_relay()

        assert all(response.startswith(b"HTTP/1.1 429 ") for response in responses)
        assert command.is_refusing()
        assert [[event.session_id]] == [request.session_ids for request in server.requests]


def find_processes(secret, name):
    """Returns the processes whose file *name* in /proc holds *secret*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if secret.encode() in (entry / name).read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass  # it has ended, or belongs to another user
    return sorted(found)


@pytest.mark.promise("attackers.sight")
def test_the_path_is_in_no_process_s_arguments():
    """`ps` does not show the path: no command line on the machine contains it."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        secret = command.address.rpartition("/")[2]

        assert [] == find_processes(secret, "cmdline")
        assert command.process.pid in find_processes(secret, "environ")


@pytest.mark.promise("attackers.sight")
def test_only_the_command_and_the_relay_have_the_address():
    """Of all processes, only the command and the relay have the address in their environment."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        secret = command.address.rpartition("/")[2]

        assert sorted([command.process.pid, *command.launch.relays()]) == find_processes(secret, "environ")
        assert "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS" not in os.environ


@pytest.mark.promise("attackers.sight")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("whose", ["command", "relay"])
def test_another_user_reads_arguments_and_no_environment(whose):
    """Another user can read at most the arguments, without the path, and never the environment, which has it.

    If /proc is mounted with hidepid, that user cannot read the arguments either.
    """
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        pid = command.process.pid if whose == "command" else command.launch.relays()[0]
        read = run_as_other_user(f"cat /proc/{pid}/cmdline")
        refused = run_as_other_user(f"cat /proc/{pid}/environ")
        # This shell's own entry is the control: the other user can read /proc.
        own = run_as_other_user("cat /proc/$$/cmdline")

        assert (0, True) == (own.returncode, bool(own.stdout))
        assert (read.returncode == 0) == bool(read.stdout) == is_visible(pid)
        assert command.address.rpartition("/")[2] not in read.stdout
        assert 0 != refused.returncode
        assert "" == refused.stdout


def is_visible(pid):
    """Returns whether another user can see the process *pid* in /proc; with hidepid=2 they cannot."""
    return run_as_other_user(f"test -e /proc/{pid}").returncode == 0


def run_as_other_user(script, program="sh"):
    """Runs the shell *script* as another user, with *program*."""
    return subprocess.run(
        [program, "-c", script],
        user=OTHER_USER,
        group=OTHER_USER,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.promise("attackers.sight")
@pytest.mark.usefixtures("_namespaces")
def test_another_user_who_connects_cannot_report():
    """A process of another user reaches the port and gets 404."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        request = f"POST /{'0' * 32}{PROCEDURE} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n"
        script = f'exec 3<>/dev/tcp/127.0.0.1/{command.port}; printf "{request}" >&3; head -n 1 <&3'
        finished = run_as_other_user(script, program="bash")

        assert finished.stdout.startswith("HTTP/1.1 404 "), finished.stderr
        assert not server.requests


@pytest.mark.promise("attackers.sight")
def test_the_relay_listens_only_on_loopback():
    """The port is bound to 127.0.0.1, so no other machine can reach it."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        wanted = f":{command.port:04X}"
        listening = [
            line.split()[1]
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
            if line.split()[1].endswith(wanted) and line.split()[3] == "0A"
        ]

        assert ["0100007F" + wanted] == listening
        assert poll_until(command.launch.relays, waiting_for="the relay")
