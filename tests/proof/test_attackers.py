"""Promise 7: another process on the machine gets nothing from the relay, and can do nothing with it."""

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

NOBODY = 65534


def list_guesses(secret):
    """Paths that an attacker may try, who knows all but the secret: near ones, tricks, and any."""
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
def test_whoever_finds_the_port_cannot_report_without_the_path(cases):
    """A thousand and more paths without the secret are 404, nothing is sent, and the report with it arrives."""
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
def test_a_secret_is_new_for_each_start_and_of_128_bits(cases):
    """No two starts have a path, or a part of it, in common, as far as many starts show."""
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
def test_connections_that_stay_hold_no_relay_beyond_its_report():
    """Silent and half-sent connections of others end with the relay, once it has answered the report."""
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "5000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with ExitStack() as stack:
            for number in range(MAX_CONNECTIONS // 2):
                connection = stack.enter_context(command.connect())
                connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"")
            assert (200, "") == command.report(one_shot())
            command.launch.wait_for_no_relay()


@pytest.mark.promise("attackers.hold")
def test_more_connections_than_there_are_places_delay_a_report_and_do_not_lose_it():
    """Those who hold every place are refused at the limit, and the report that waits behind them is taken."""
    with OtlpHttpServer() as server, running({"OTEL_TBOT_TIMEOUT": "2000"} | endpoint(server.url)) as command:
        command.wait_until_served()
        with ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS):
                stack.enter_context(command.connect())
            assert (200, "") == command.report(one_shot())
            command.launch.wait_for_no_relay()


@pytest.mark.promise("attackers.hold")
def test_a_flood_of_connections_holds_no_relay_beyond_its_command():
    """Whoever connects again and again cannot keep the relay alive when the command has ended."""
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
    # Its own timeout and a second, and as much for a machine that does other things as well.
    assert lingered < LIFETIME_SECONDS / 10
    assert not server.requests


@pytest.mark.promise("attackers.twice")
@pytest.mark.parametrize("replay", ["the same bytes", "another report", "many at once"])
def test_nobody_makes_a_relay_emit_twice(replay):
    """Even with the secret path, at the same time or later: one start is one event."""
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
            refused = []
            for connection in early:
                with connection:
                    connection.sendall(head.encode() + body)
                    refused.append(connection.recv(4096))
            gate.set()
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
        command.launch.wait_for_no_relay()

        assert all(answer.startswith(b"HTTP/1.1 429 ") for answer in refused)
        assert command.is_refusing()
        assert [[event.session_id]] == [request.session_ids for request in server.requests]


def find_processes(secret, name):
    """The processes whose file *name* in /proc holds *secret*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if secret.encode() in (entry / name).read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass  # it has ended
    return sorted(found)


@pytest.mark.promise("attackers.sight")
def test_the_path_is_in_no_process_s_arguments():
    """`ps` shows it to nobody: it is in no command line of the machine."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        secret = command.address.rpartition("/")[2]

        assert [] == find_processes(secret, "cmdline")
        assert command.process.pid in find_processes(secret, "environ")


@pytest.mark.promise("attackers.sight")
def test_the_environment_is_set_for_the_command_alone():
    """Of all processes only the command, and the relay that has to know it, have the address."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        secret = command.address.rpartition("/")[2]

        assert sorted([command.process.pid, *command.launch.relays()]) == find_processes(secret, "environ")
        assert "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS" not in os.environ


@pytest.mark.promise("attackers.sight")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("whose", ["command", "relay"])
def test_another_user_reads_arguments_and_no_environment(whose):
    """What other users can read of command and relay has no path in it, and what has it they cannot read."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        pid = command.process.pid if whose == "command" else command.launch.relays()[0]
        read = as_nobody(f"cat /proc/{pid}/cmdline")
        refused = as_nobody(f"cat /proc/{pid}/environ")

        assert 0 == read.returncode
        assert read.stdout
        assert command.address.rpartition("/")[2] not in read.stdout
        assert 0 != refused.returncode
        assert "" == refused.stdout


def as_nobody(script):
    """A shell's *script* run by another user."""
    return subprocess.run(
        ["sh", "-c", script], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False
    )


@pytest.mark.promise("attackers.sight")
@pytest.mark.usefixtures("_namespaces")
def test_another_user_who_connects_cannot_report():
    """A process of another user reaches the port, and gets 404 there."""
    with OtlpHttpServer() as server, running(PATIENT | endpoint(server.url)) as command:
        command.wait_until_served()
        request = f"POST /{'0' * 32}{PROCEDURE} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n"
        script = f'exec 3<>/dev/tcp/127.0.0.1/{command.port}; printf "{request}" >&3; head -n 1 <&3'
        finished = subprocess.run(
            ["bash", "-c", script],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )

        assert finished.stdout.startswith("HTTP/1.1 404 "), finished.stderr
        assert not server.requests


@pytest.mark.promise("attackers.sight")
def test_the_relay_listens_on_loopback_alone():
    """The port is bound to 127.0.0.1: no other machine finds it."""
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
