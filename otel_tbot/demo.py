"""`otel-tbot demo`: a command goes in, what `run` makes of it with and without consent comes out on the screen."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from otel_tbot.consent import CONSENT_VARIABLE, SDK_DISABLED_VARIABLE
from otel_tbot.launcher import ADDRESS_VARIABLE

_STAND_IN: Final = (sys.executable, "-P", "-m", "otel_tbot.stand_in", "start", "--oneshot")
_ARRIVAL_SECONDS: Final = 3.0

# A first start compiles everything it imports.
_TIMEOUT_MS: Final = "10000"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One OTLP request: its path, its headers as they came, its body."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _Receiver(ThreadingHTTPServer):
    """An OTLP/HTTP receiver on a free loopback port that takes everything and keeps it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[_Request] = []
        self.has_come = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: _Receiver

    def do_POST(self) -> None:  # the base class's name
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append(_Request(path=self.path, headers=tuple(self.headers.items()), body=body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.has_come.set()

    def log_message(self, *_arguments: object) -> None:
        """Says nothing: what came is shown at the end."""


def demo(command: Sequence[str]) -> int:
    """Runs *command*, or a stand-in for tbot, behind `run` opted in and again not, and shows what arrived.

    0 when the first start brought one record and the second no request at all, otherwise 1.
    """
    _print("One start of tbot with telemetry on, one with it off; a receiver on this machine is the collector.")
    if command:
        name = " ".join(command)
    else:
        command, name = _STAND_IN, "tbot start --oneshot"
        _print("No command was given after --, so `tbot` is a stand-in that speaks tbot's protocol.")

    _print(f"\n1. {CONSENT_VARIABLE}=1 otel-tbot run -- {name}\n")
    with _Receiver() as receiver:
        status = _run(command, receiver.endpoint, consent="1")
        receiver.has_come.wait(_ARRIVAL_SECONDS)
        receiver.shutdown()
        requests = list(receiver.requests)
    _print(f"   The command ended with status {status}. The receiver got {_count(requests)}.")
    for request in requests:
        _show(request)

    _print(f"\n2. otel-tbot run -- {name}\n")
    with _Receiver() as receiver:
        status = _run(command, receiver.endpoint, consent=None)
        receiver.shutdown()
        unwanted = list(receiver.requests)
    _print(f"   The command ended with status {status}. The receiver got {_count(unwanted)}.")

    if len(requests) == 1 and not unwanted:
        _print("\nThat is all that otel-tbot sends, and only when you say so.")
        return 0
    print(
        "otel-tbot: demo: expected one request and then none; is the command a tbot of 12.1 or later?", file=sys.stderr
    )
    return 1


def _run(command: Sequence[str], endpoint: str, *, consent: str | None) -> int:
    ours = (CONSENT_VARIABLE, ADDRESS_VARIABLE, SDK_DISABLED_VARIABLE)
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith(("OTEL_EXPORTER_OTLP_", "OTEL_TBOT_"))
    }
    environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TBOT_TIMEOUT": _TIMEOUT_MS}
    if consent is not None:
        environ[CONSENT_VARIABLE] = consent
    arguments = [sys.executable, "-P", "-m", "otel_tbot", "run", "--", *command]
    return subprocess.run(arguments, env=environ, check=False).returncode  # noqa: S603  # what the user asked to run


def _show(request: _Request) -> None:
    from otel_tbot.otlp import parse_log_request

    (resource_logs,) = parse_log_request(request.body)["resourceLogs"]
    (scope_logs,) = resource_logs["scopeLogs"]
    (record,) = scope_logs["logRecords"]
    time = datetime.fromtimestamp(int(record["timeUnixNano"]) / 1e9, tz=UTC)
    _print(f"\n   The request: POST {request.path}, {len(request.body)} bytes")
    for name, value in request.headers:
        _print(f"     {name:<34}{value}")
    _print("\n   The log record in it")
    _print(f"     {'event name':<34}{record['eventName']}")
    _print(f"     {'time':<34}{time:%Y-%m-%dT%H:%M:%SZ}, cut to the whole second")
    _print(f"     {'severity':<34}{record['severityText']}")
    _print(f"     {'body':<34}{record['body']['stringValue']}")
    _show_attributes(record["attributes"])
    _print("\n   Its resource, whole")
    _show_attributes(resource_logs["resource"]["attributes"])
    _print("\n   Its scope")
    _print(f"     {scope_logs['scope']['name']} {scope_logs['scope']['version']}")


def _show_attributes(attributes: Sequence[dict[str, Any]]) -> None:
    for attribute in attributes:
        (value,) = attribute["value"].values()
        _print(f"     {attribute['key']:<34}{value}")


def _count(requests: Sequence[_Request]) -> str:
    return f"{len(requests) or 'no'} request{'' if len(requests) == 1 else 's'}"


def _print(line: str) -> None:
    # Flushed, since the commands in between write to the same screen.
    print(line, flush=True)
