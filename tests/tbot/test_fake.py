import sys

import pytest

from tests.support.processes import Launch
from tests.support.servers import raw_server


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({}, "telemetry is off"),
        ({"TELEPORT_ANONYMOUS_TELEMETRY": "0"}, "telemetry is off"),
        (
            {"TELEPORT_ANONYMOUS_TELEMETRY": "1"},
            "telemetry is on, but no address is set; tbot would report to Teleport",
        ),
        (
            {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": "http://127.0.0.1:0"},
            "telemetry is on; the report failed: unavailable: ",
        ),
    ],
)
def test_the_fake_never_reports_without_an_address(environ, line):
    """Like tbot it reports only when opted in; unlike tbot it reports nowhere when no address is set."""
    launch = Launch(environ)

    finished = launch.run(["-m", "otel_tbot.tbot.fake", "start"], launcher=(sys.executable,))

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout.startswith(f"tbot (fake): {line}")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "the report was accepted\n"),
        (
            b'HTTP/1.1 503 x\r\nContent-Length: 37\r\n\r\n{"code":"unavailable","message":"no"}\n',
            "the report failed: unavailable: no\n",
        ),
        (b"HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n", "the report failed: unavailable: JSONDecodeError\n"),
    ],
    ids=["accepted", "rejected", "not a Connect response"],
)
def test_the_fake_prints_the_result_of_its_report(answer, line):
    """It prints the error of a Connect response, and like tbot it ends with 0."""

    def serve(connection):
        request = b""
        while not request.endswith(b"\r\n0\r\n\r\n"):  # the last chunk
            request += connection.recv(65536)
        connection.sendall(answer)

    with raw_server(serve) as server:
        address = {"TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": f"{server.url}/secret"}
        launch = Launch({"TELEPORT_ANONYMOUS_TELEMETRY": "1", **address})
        finished = launch.run(["-m", "otel_tbot.tbot.fake", "start"], launcher=(sys.executable,))

    assert (0, "") == (finished.returncode, finished.stderr)
    assert f"tbot (fake): telemetry is on; {line}" == finished.stdout
