"""Proves promise 5: hostile input is rejected without a crash, is never repeated, and good reports still arrive."""

import asyncio
import base64
import errno
import gzip
import json
import re
import resource
import select
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tbot import settings as otel_settings
from otel_tbot.bridge.application import ReportingService
from otel_tbot.errors import EventError, TbotConfigError
from otel_tbot.event import ATTRIBUTES, TbotStart
from otel_tbot.otlp.config import resolve_config
from otel_tbot.outcome import Outcome
from otel_tbot.relay.server import LIFETIME_SECONDS
from otel_tbot.tbot.config import StartFlags, parse_config, read_event
from otel_tbot.tbot.report import to_report
from tests.proof.mutation import CANARY, Mutator, draw_seeds
from tests.relay.test_server import Command
from tests.support.asgi import call
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import OtlpHttpServer

PREFIX = "/0123456789abcdef0123456789abcdef"

# Source: Connect protocol, "Error Codes".
HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
# The documented codes: the service answers an invalid request with one of them.
CODES = {"invalid_argument", "resource_exhausted", "unimplemented", "deadline_exceeded", "canceled", "unavailable"}
PLAIN = {404, 405, 415}


def check_response(answered, sent):
    """Checks that a response is documented, has the protocol's form, and repeats nothing of *sent*."""
    assert CANARY.encode() not in answered.body, sent
    assert CANARY not in str(answered.headers), sent
    assert b"Traceback" not in answered.body, sent
    if answered.status == 200:
        assert answered.body in (b"", b"{}") or answered.headers.get("content-encoding") == "gzip", sent
    elif answered.status in PLAIN and not answered.body:
        pass
    else:
        assert "application/json" == answered.headers["content-type"], sent
        body = answered.body
        error = json.loads(gzip.decompress(body) if answered.headers.get("content-encoding") == "gzip" else body)
        assert set(error) <= {"code", "message"}, sent
        assert error["code"] in CODES, sent
        assert HTTP_STATUS[error["code"]] == answered.status, sent


class CountingService:
    """Runs the service with a delivery that counts and checks the events."""

    def __init__(self):
        self.events = []
        self.application = ReportingService(self.submit, path_prefix=PREFIX)

    def submit(self, event, _timeout_seconds):
        self.events.append(event)
        attributes = event.attributes()
        assert all(a.allows(attributes[a.key]) for a in ATTRIBUTES if a.key in attributes)
        accepted = asyncio.get_running_loop().create_future()
        accepted.set_result(Outcome.ACCEPTED)
        return accepted


def build_report():
    """Returns the bytes of a valid report."""
    return to_report(TbotStart(run_mode="daemon", version="18.4.1")).SerializeToString()


@pytest.mark.promise("hostile.messages")
@pytest.mark.parametrize("seed", draw_seeds(8))
def test_mutated_messages_get_a_documented_response(seed, cases, caplog):
    """Thousands of requests, valid and nearly valid: each response is documented, nothing is logged or kept."""
    count = 10_000
    mutator = Mutator(seed)
    service = CountingService()
    statuses = Counter()

    async def submit():
        for number in range(count):
            sent = mutator.draw_request(PREFIX + PROCEDURE)
            answered = await call(
                service.application,
                sent.body,
                path=sent.path,
                method=sent.method,
                headers=[(name.lower(), value) for name, value in sent.headers],
                pieces=sent.pieces,
            )
            check_response(answered, f"seed {seed}, request {number}: {sent}")
            statuses[answered.status] += 1
            if number % 1000 == 999:
                before = len(service.events)
                good = await call(service.application, build_report(), path=PREFIX + PROCEDURE)
                assert (200, before + 1) == (good.status, len(service.events))

    began_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(submit())

    assert [] == caplog.records
    # Many requests must pass the first checks, otherwise nothing behind them was tried.
    assert {200, 400, 404, 405, 415, 429, 501} <= set(statuses)
    assert statuses[200] > count / 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began_kib < 64 * 1024
    cases.add(count)


_TEXT = st.text(max_size=40)
_REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "distinct_id": st.one_of(st.uuids(version=4).map(str), st.uuids().map(str), _TEXT),
        "start": st.fixed_dictionaries(
            {},
            optional={
                "run_mode": st.integers(-(2**31), 2**31 - 1),
                **dict.fromkeys(("version", "join_type", "helper", "helper_version"), _TEXT),
                **{
                    f"destinations_{name}": st.integers(-(2**31), 2**31 - 1)
                    for name in ("other", "database", "kubernetes", "application")
                },
            },
        ),
    },
)


@pytest.mark.promise("hostile.messages")
def test_generated_messages_get_a_documented_response(cases):
    """A well-formed message with any content is accepted, with an event that follows its rules, or rejected."""
    from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest

    service = CountingService()

    @settings(
        max_examples=3000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(fields=_REPORTS)
    def submit(fields):
        request = SubmitTbotEventRequest(distinct_id=fields.get("distinct_id", "").encode("utf-8", "replace").decode())
        if "start" in fields:
            for name, value in fields["start"].items():
                setattr(
                    request.start, name, value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                )
            request.start.SetInParent()
        answered = asyncio.run(call(service.application, request.SerializeToString(), path=PREFIX + PROCEDURE))
        check_response(answered, fields)
        assert answered.status in (200, 400)
        cases.add()

    submit()
    assert service.events


_PATIENCE_SECONDS = 0.2


class Attack:
    """Sends streams to our server over several connections at once, and counts the statuses of the responses."""

    def __init__(self, port, seed):
        self.port = port
        self.mutator = Mutator(seed)
        self.statuses = Counter()

    def run(self, prefix, count):
        """Sends *count* requests, some of them valid."""
        streams = [self.mutator.draw_stream(self.mutator.draw_request(prefix + PROCEDURE)) for _ in range(count)]
        with ThreadPoolExecutor(8) as threads:
            for status in threads.map(self.send, streams):
                self.statuses[status] += 1

    def send(self, stream):
        """Sends bytes and reads the response; returns its status, or 0 if the connection was only closed.

        If there is no response for a while, the stream is an unfinished request, and this side ends it.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            received = b""
            try:
                connection.sendall(stream)
                if not select.select([connection], [], [], _PATIENCE_SECONDS)[0]:
                    end_sending(connection)
                while chunk := connection.recv(65536):
                    received += chunk
                    if not select.select([connection], [], [], 0.05)[0]:
                        end_sending(connection)
            except ConnectionError:
                pass  # closed without a response, which is allowed
        assert CANARY.encode() not in received, (self.mutator.seed, stream)
        assert b"Traceback" not in received, (self.mutator.seed, stream)
        # `Expect: 100-continue` gets an interim response first.
        found = re.match(rb"(?:HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1\.1 (\d{3}) ", received)
        if received == b"HTTP/1.1 100 Continue\r\n\r\n":
            return 0
        assert found or not received, (self.mutator.seed, stream, received)
        return int(found.group(1)) if found else 0


def end_sending(connection):
    """Says that no more bytes come, unless the server has reset the connection already."""
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


DOCUMENTED_STATUSES = {0, 200, *PLAIN, *(HTTP_STATUS[code] for code in CODES)}


# All that a client can make a bridge log: a fixed text and a count, not often.
LOGGED = re.compile(
    r"reports (came on a wrong path; check the path in the address that these tbots were given|"
    r"were answered `unavailable`, because the collector did not accept their events \(timed out\); "
    r"run `otel-tbot doctor` with the same settings to see why); count: \d+"
)
MAX_LOGGED = 50


@pytest.mark.promise("hostile.bridge")
@pytest.mark.parametrize("seed", draw_seeds(4))
def test_mutated_bytes_do_not_disturb_a_bridge(seed, cases):
    """Over TCP: documented responses or a closed connection, bounded memory and log; valid reports arrive."""
    count = 4000
    with OtlpHttpServer() as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "10000"}
        with BridgeProcess(environ) as bridge:
            attack = Attack(bridge.port, seed)
            attack.run("", 500)
            before_kib = bridge.memory_kib()
            for _ in range(7):
                attack.run("", 500)
                assert 200 == send_good(bridge.port)
            after_kib = bridge.memory_kib()

    assert set(attack.statuses) <= DOCUMENTED_STATUSES
    assert {0, 200, 400, 404, 405, 415} <= set(attack.statuses)
    assert after_kib - before_kib < 32 * 1024
    assert [] == [line for line in bridge.written.splitlines() if not LOGGED.fullmatch(line)]
    assert bridge.written.count("\n") <= MAX_LOGGED
    cases.add(count)


def send_good(port):
    """Sends a valid report and waits for its response; returns the status."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(to_good_stream(PROCEDURE))
        return int(connection.recv(65536).split()[1])


def to_good_stream(path):
    """Returns a valid report as bytes of HTTP."""
    body = build_report()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


@pytest.mark.promise("hostile.relay")
@pytest.mark.parametrize("seed", draw_seeds(4))
def test_mutated_bytes_do_not_disturb_a_relay(seed, cases):
    """The relay rejects everything without the secret path, in bounded memory, and then accepts the report."""
    count = 1400
    attack = Attack(0, seed)
    tried = 0
    while tried < count:
        # A relay lives a minute: on a slow machine the next one gets the rest.
        tried += disturb_a_relay(attack, count - tried)
    cases.add(tried)


def disturb_a_relay(attack, count):
    """Sends *count* requests without the secret path to a new relay, or as many as half of its lifetime allows."""
    tried = 0
    with OtlpHttpServer() as server:
        middle = time.monotonic() + LIFETIME_SECONDS / 2
        command = Command({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "60000"})
        command.wait_until_served()
        attack.port = command.port
        (relay,) = command.launch.relays()
        before_kib = 0
        while not tried or (tried < count and time.monotonic() < middle):
            attack.run("/00000000000000000000000000000000", 200)
            tried += 200
            after_kib = read_memory_kib(relay)
            before_kib = before_kib or after_kib
        assert not server.requests
        event = TbotStart(run_mode="one-shot")
        assert (200, "") == command.report(event)
        out, err = command.process.communicate("undisturbed\n")
        command.launch.wait_for_end()

    assert (0, "undisturbed\n", "") == (command.process.returncode, out, err)
    assert set(attack.statuses) <= DOCUMENTED_STATUSES - {200}
    assert [[event.session_id]] == [request.session_ids for request in server.requests]
    assert after_kib - before_kib < 32 * 1024
    return tried


def read_memory_kib(pid):
    """Returns the resident memory of *pid*."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(file.read().split("VmRSS:")[1].split()[0])


@pytest.mark.promise("hostile.relay")
@pytest.mark.parametrize("seed", draw_seeds(40))
def test_mutated_reports_on_the_secret_path_are_rejected_or_are_the_one_report(seed, cases):
    """On the secret path too, each gets a documented response, and at most one event is sent."""
    mutator = Mutator(seed + 100_000)
    with OtlpHttpServer() as server:
        command = Command({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "60000"})
        path = "/" + command.address.rpartition("/")[2] + PROCEDURE
        attack = Attack(command.port, seed)
        tried = 0
        for _ in range(10):
            stream = mutator.draw_stream(mutator.draw_request(path))
            try:
                attack.statuses[attack.send(stream)] += 1
            except ConnectionError:
                break  # one of them was a report, and the relay has ended, or ends while we connect
            tried += 1
        command.process.communicate()
        command.launch.wait_for_end()
        sent = [session_id for request in server.requests for session_id in request.session_ids]

    assert set(attack.statuses) <= DOCUMENTED_STATUSES
    assert len(sent) <= 1
    assert attack.statuses[200] <= len(sent)
    cases.add(tried)


@pytest.mark.promise("hostile.files")
@pytest.mark.parametrize("seed", draw_seeds(4))
def test_hostile_files_are_a_configuration_or_an_error_of_one_line(seed, cases):
    """Each is read, or rejected in one line with place, rule and remedy that repeats nothing; none takes long."""
    count = 3000
    mutator = Mutator(seed)
    results = Counter()
    for number in range(count):
        data = mutator.draw_file()
        began = time.process_time()
        try:
            parse_config(data, source="tbot.yaml")
            results["read"] += 1
        except TbotConfigError as error:
            text = str(error)
            assert "\n" not in text, (seed, number, data)
            assert text.startswith("tbot.yaml"), (seed, number, data)
            assert CANARY not in text, (seed, number, data)
            results["rejected"] += 1
        assert time.process_time() - began < 2, (seed, number, data)
    assert results["read"] > count / 20
    assert results["rejected"] > count / 20
    cases.add(count)


@pytest.mark.promise("hostile.files")
@pytest.mark.parametrize("seed", draw_seeds(30))
def test_the_command_ends_with_2_or_0_for_a_hostile_file(seed, tmp_path):
    """`preview` of a hostile file, by path and by variable, ends with status 0 or 2 and without a traceback."""
    data = Mutator(seed + 500).draw_file()
    path = tmp_path / "tbot.yaml"
    path.write_bytes(data)
    by_path = {"TBOT_CONFIG_PATH": str(path)}
    by_value = {"TBOT_CONFIG": base64.b64encode(data).decode()}
    ended = []
    for more in (by_path, by_value):
        environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **more}
        finished = subprocess.run(
            [LAUNCHER[0], "preview"], env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert finished.returncode in (0, 2), finished.stderr
        assert "Traceback" not in finished.stderr
        lines = finished.stderr.splitlines()
        assert lines
        assert all(line.startswith("otel-tbot: preview: ") for line in lines), finished.stderr
        assert 1 == len(lines) or finished.returncode == 0
        assert CANARY not in finished.stderr + finished.stdout
        ended.append(finished.returncode)

    assert ended[0] == ended[1] or not data


@pytest.mark.promise("hostile.settings")
@pytest.mark.parametrize("seed", draw_seeds(2))
def test_hostile_settings_are_a_value_or_a_warning_of_one_line(seed, cases):
    """Each setting has a value within its rule; a warning names the variable and repeats nothing of its value."""
    count = 6000
    mutator = Mutator(seed)
    names = sorted(
        {name for setting in otel_settings.SETTINGS for signal in ("log", "span") for name in setting.variables(signal)}
    )
    warned = 0
    for number in range(count):
        chosen = mutator.random.sample(names, k=mutator.random.randrange(1, 6))
        environ = {name: mutator.draw_setting() for name in chosen}
        for signal in ("log", "span"):
            config = resolve_config(environ, signal=signal)
            for warning in {*config.warnings, *otel_settings.find_warnings(environ, signal)}:
                assert warning.partition(":")[0] in names, (seed, number, environ)
                assert CANARY not in warning, (seed, number, environ)
                assert "\n" not in warning, (seed, number, environ)
                warned += 1
            assert config.protocol in otel_settings.PROTOCOLS
            assert (config.endpoint is not None) == otel_settings.has_endpoint(environ, signal)
            if config.endpoint is not None:
                parts = (config.endpoint.authority, config.endpoint.path, config.endpoint.query, config.endpoint.user)
                assert all(part.isascii() and (part.isprintable() or not part) for part in parts), (seed, number)
                assert 0 < config.endpoint.port < 2**16, (seed, number, environ)
                assert CANARY not in config.endpoint.to_text() or CANARY in config.endpoint.host, (seed, number)
            assert 0.001 <= config.timeout_seconds <= 1000
            for name, value in config.headers:
                assert name.isascii(), (seed, number, environ)
                assert not {"\n", "\r"} & {*name, *value}, (seed, number, environ)
    assert warned > count / 4
    cases.add(count)


@pytest.mark.promise("hostile.settings")
@pytest.mark.parametrize("seed", draw_seeds(25))
def test_hostile_settings_keep_no_command_from_running(seed, reporter):
    """Behind `run` the command starts, with at most one line, which repeats no value."""
    mutator = Mutator(seed + 900)
    names = sorted({name for setting in otel_settings.SETTINGS for name in setting.variables("log")})
    environ = {name: mutator.draw_setting() for name in mutator.random.sample(names, k=4)}
    # A drawn value could name another host.
    environ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] = "http://127.0.0.1:9/" + mutator.random.choice(
        ("", "x?y", "%zz", "a b")
    )
    environ["OTEL_TBOT_TIMEOUT"] = mutator.random.choice(("500", "-1", "1e3"))
    launch = Launch({"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **CONSENT, **environ})
    finished = launch.run([reporter, "-oneshot", "-exit-code", "7"], errors="surrogateescape")
    launch.wait_for_end()

    assert 7 == finished.returncode
    assert finished.stdout.startswith("error unavailable ")
    assert finished.stderr.count("\n") <= 1
    assert CANARY not in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.promise("hostile.files")
@pytest.mark.parametrize("seed", draw_seeds(1))
def test_hostile_variables_of_tbot_are_an_event_or_an_error(seed, cases):
    """Variables and flags of tbot with any text give an event that follows its rules, or an error of one line."""
    mutator = Mutator(seed)
    results = Counter()
    for number in range(1000):
        environ = {
            "TBOT_CONFIG": mutator.random.choice(
                ("", mutator.draw_text(), base64.b64encode(mutator.draw_file()).decode())
            ),
            "_TBOT_TELEMETRY_HELPER": mutator.draw_text(),
            "_TBOT_TELEMETRY_HELPER_VERSION": mutator.draw_text(),
        }
        try:
            event = read_event(StartFlags(), environ, version=mutator.draw_text())
            attributes = event.attributes()
            assert all(a.allows(attributes[a.key]) for a in ATTRIBUTES if a.key in attributes), (seed, number, environ)
            results["event"] += 1
        except (TbotConfigError, EventError) as error:
            text = str(error)
            results["error"] += 1
            assert CANARY not in text, (seed, number, environ)
            assert "\n" not in text, (seed, number, environ)
    assert results["event"] > 100 < results["error"]
    cases.add(1000)
