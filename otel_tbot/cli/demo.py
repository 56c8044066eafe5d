"""`otel-tbot demo`: a command goes in, what `run` makes of it with and without consent comes out on the screen."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from otel_tbot.cli.terminal import Painter, leave_plain
from otel_tbot.consent import ADDRESS_VARIABLE, CONSENT_VARIABLE, SDK_DISABLED_VARIABLE

_STAND_IN: Final = (sys.executable, "-P", "-m", "otel_tbot.tbot.fake", "start", "--oneshot")
_ARRIVAL_SECONDS: Final = 3.0

# Shorter names than this stand in other words by chance.
_FEW_CHARACTERS: Final = 5
_COLUMN: Final = 35

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


class _Screen:
    """Where the story is told, in the colours of *paint*."""

    def __init__(self, paint: Painter) -> None:
        self.paint = paint

    def say(self, line: str) -> None:
        """A line, flushed, since the commands in between write to the same screen."""
        print(line, flush=True)

    def title(self, number: int, text: str, command: str) -> None:
        """The head of a part, and the command that it runs."""
        self.say(self.paint(f"\n{number}. {text}", "strong"))
        self.say(f"{self.paint('  $', 'quiet')} {command}\n")

    def head(self, text: str) -> None:
        """The head of a table."""
        self.say(self.paint(f"\n  {text}", "strong"))

    def row(self, name: str, value: object, remark: str = "") -> None:
        """A row of a table."""
        self.say(f"    {name:<{_COLUMN}}{value}{self.paint(remark, 'quiet')}")


def demo(command: Sequence[str], paint: Painter = leave_plain) -> int:
    """Runs *command*, or a stand-in for tbot, behind `run` opted in and again not, and shows what arrived.

    The stand-in runs a third time, where no collector is. 0 when the first start brought one record, without what was
    planted or names this machine, and the second no request at all, otherwise 1.
    """
    screen = _Screen(paint)
    screen.say("tbot starts with telemetry on, and off; a receiver of ours plays the collector.")
    name = " ".join(command) or "tbot start --oneshot"
    is_stand_in = not command
    if is_stand_in:
        command = _STAND_IN
        screen.say("No command was given after --: `tbot` is a stand-in that speaks its protocol.")
    screen.say("\n  tbot ─► otel-tbot run ─► OTLP ─► receiver")

    opted_in = f"{CONSENT_VARIABLE}=1 otel-tbot run -- {name}"
    screen.title(1, "Telemetry is on", opted_in)
    planted = f"planted-{secrets.token_hex(4)}"
    with _Receiver() as receiver:
        status = _run(command, receiver.endpoint, consent="1", planted=planted)
        receiver.has_come.wait(_ARRIVAL_SECONDS)
        receiver.shutdown()
        requests = list(receiver.requests)
    screen.say(f"  The command ended with status {status}. The receiver got {_count(requests)}.")
    for request in requests:
        _show(request, screen)
    betrayed = _show_search(requests, planted, screen) if requests else []

    screen.title(2, "Telemetry is off", f"otel-tbot run -- {name}")
    with _Receiver() as receiver:
        status = _run(command, receiver.endpoint, consent=None, planted=planted)
        receiver.shutdown()
        unwanted = list(receiver.requests)
    screen.say(f"  The command ended with status {status}. The receiver got {_count(unwanted)}.")

    if is_stand_in:
        screen.title(3, "Telemetry is on, and the collector is not there", opted_in)
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))  # ours, and nobody listens on it
            began = time.monotonic()
            status = _run(command, f"http://127.0.0.1:{refusing.getsockname()[1]}", consent="1", planted=planted)
            seconds = time.monotonic() - began
        screen.say(f"  The command ended with status {status} after {seconds:.1f} s: tbot starts all the same.")

    if len(requests) == 1 and not unwanted and not betrayed:
        screen.say(paint("\nThat is all that otel-tbot sends, and only when you say so.", "good"))
        screen.say("Next: `otel-tbot preview` for a tbot of yours, `otel-tbot doctor` for your settings.")
        return 0
    fault = "expected one request and then none; is the command a tbot of 12.1 or later?"
    if betrayed:
        fault = f"the request holds {', '.join(betrayed)}; please report this, see SECURITY.md"
    print(f"otel-tbot: demo: {fault}", file=sys.stderr)
    return 1


def _run(command: Sequence[str], endpoint: str, *, consent: str | None, planted: str) -> int:
    ours = (CONSENT_VARIABLE, ADDRESS_VARIABLE, SDK_DISABLED_VARIABLE)
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith(("OTEL_EXPORTER_OTLP_", "OTEL_TBOT_"))
    }
    environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TBOT_TIMEOUT": _TIMEOUT_MS}
    environ |= {"OTEL_SERVICE_NAME": planted, "OTEL_RESOURCE_ATTRIBUTES": f"host.name={planted}"}
    if consent is not None:
        environ[CONSENT_VARIABLE] = consent
    arguments = [sys.executable, "-P", "-m", "otel_tbot", "run", "--", *command]
    return subprocess.run(arguments, env=environ, check=False).returncode  # noqa: S603  # what the user asked to run


def _show(request: _Request, screen: _Screen) -> None:
    from otel_tbot.otlp.client import parse_log_request

    (resource_logs,) = parse_log_request(request.body)["resourceLogs"]
    (scope_logs,) = resource_logs["scopeLogs"]
    (record,) = scope_logs["logRecords"]
    moment = datetime.fromtimestamp(int(record["timeUnixNano"]) / 1e9, tz=UTC)
    screen.head(f"The request: POST {request.path}, {len(request.body)} bytes")
    for name, value in request.headers:
        screen.row(name, value)
    screen.head("The log record in it")
    screen.row("event name", record["eventName"])
    screen.row("time", f"{moment:%Y-%m-%dT%H:%M:%SZ}", ", cut to the whole second")
    screen.row("severity", record["severityText"])
    screen.row("body", record["body"]["stringValue"])
    for attribute in record["attributes"]:
        (value,) = attribute["value"].values()
        screen.row(attribute["key"], value)
    screen.say(screen.paint("    The session.id is random, made for this one start and never used again.", "quiet"))
    screen.head("Its resource, whole")
    for attribute in resource_logs["resource"]["attributes"]:
        (value,) = attribute["value"].values()
        screen.row(attribute["key"], value)
    screen.head("Its scope")
    screen.row(scope_logs["scope"]["name"], scope_logs["scope"]["version"])


def _show_search(requests: Sequence[_Request], planted: str, screen: _Screen) -> list[str]:
    """Looks in all that was sent for what would say who it was; returns what was found."""
    sent = "\n".join(
        [f"{request.path}\n{request.headers}\n{request.body.decode(errors='replace')}" for request in requests]
    )
    sought = {
        "OTEL_SERVICE_NAME, planted": planted,
        "OTEL_RESOURCE_ATTRIBUTES, planted": f"host.name={planted}",
        "this machine's name": socket.gethostname(),
        "your user's name": os.environ.get("USER", ""),
        "your home directory": os.environ.get("HOME", ""),
        "the working directory": os.getcwd(),
    }
    screen.head("Looked for in it")
    everybodys = _describe_request_of_anybody()
    found = []
    for what, text in sought.items():
        # So short or common that a request from any machine may hold it.
        if len(text) < _FEW_CHARACTERS or text in everybodys:
            continue
        is_there = text in sent
        screen.row(what, screen.paint("THERE", "bad") if is_there else screen.paint("not there", "good"))
        found += [what] * is_there
    return found


def _describe_request_of_anybody() -> str:
    """All that a request from any machine holds."""
    from otel_tbot.cli.preview import to_preview
    from otel_tbot.event import TbotStart

    request = to_preview(TbotStart(run_mode="one-shot"), {}, signal="log")
    return request.body + request.way


def _count(requests: Sequence[_Request]) -> str:
    return f"{len(requests) or 'no'} request{'' if len(requests) == 1 else 's'}"
