"""Shows what `run` sends, and that it sends nothing without consent, with a command and a collector on this machine."""

import contextlib
import os
import re
import secrets
import signal
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

from otel_tbot.cli.output import get_width, print_message, print_result, style, to_paragraph, to_row
from otel_tbot.consent import ADDRESS_VARIABLE, CONSENT_VARIABLE, SDK_DISABLED_VARIABLE

_FAKE_TBOT: Final = (sys.executable, "-P", "-m", "otel_tbot.tbot.fake", "start", "--oneshot")
_ARRIVAL_SECONDS: Final = 3.0

_MIN_CHARACTERS: Final = 5
"""Shorter names are not searched for, because they occur in other words by chance."""

_COLUMN: Final = 33

# A first start compiles everything that it imports.
_TIMEOUT_MS: Final = "10000"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One OTLP request: its path, its headers in order, and its body."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver on a free loopback port that accepts and keeps every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[_Request] = []
        self.has_request = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: _Collector

    def do_POST(self) -> None:  # the base class's name
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append(_Request(path=self.path, headers=tuple(self.headers.items()), body=body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.has_request.set()

    def log_message(self, *_arguments: object) -> None:
        """Prints nothing; the requests are shown at the end."""


def show_demo(command: Sequence[str]) -> int:
    """Runs *command*, or the fake tbot, behind `run` with telemetry on and off, and prints the requests that arrive.

    Runs the fake a third time, without a collector. Returns 0 if the first start sent one request, without any planted
    name or name of this machine, and the second start sent none; otherwise 1.
    """
    print_result(to_paragraph("This starts tbot with telemetry on, and again with telemetry off.", width=get_width()))
    print_result("A small OTLP receiver in this process plays the collector.")
    # Without the arguments, one of which may be a token.
    name = " ".join([*command[:1], *("…" for _ in command[1:2])]) or "tbot start --oneshot"
    is_fake = not command
    if is_fake:
        command = _FAKE_TBOT
        text = "No command was given, so a fake tbot is started. It speaks tbot's protocol."
        print_result(to_paragraph(text, width=get_width()))
    print_result("\n  tbot ─► otel-tbot run ─► OTLP ─► collector")

    with_consent = f"{CONSENT_VARIABLE}=1 otel-tbot run -- {name}"
    _print_title(1, "Telemetry is on", with_consent)
    planted = f"planted-{secrets.token_hex(4)}"
    with _Collector() as collector:
        status = _run(command, collector.endpoint, consent="1", planted=planted)
        collector.has_request.wait(_ARRIVAL_SECONDS)
        collector.shutdown()
        requests = list(collector.requests)
    _print_text(f"The command ended with status {status}. The collector received {_count(requests)}.")
    for request in requests:
        _print_request(request)
    found = _print_search(requests, planted) if requests else []

    _print_title(2, "Telemetry is off", f"otel-tbot run -- {name}")
    with _Collector() as collector:
        status = _run(command, collector.endpoint, consent=None, planted=planted)
        collector.shutdown()
        unwanted = list(collector.requests)
    _print_text(f"The command ended with status {status}. The collector received {_count(unwanted)}.")

    if is_fake:
        _print_title(3, "Telemetry is on, but there is no collector", with_consent)
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))  # bound, but not listening, so connections are refused
            began = time.monotonic()
            status = _run(command, f"http://127.0.0.1:{refusing.getsockname()[1]}", consent="1", planted=planted)
            seconds = time.monotonic() - began
        _print_text(f"The command ended with status {status} after {seconds:.1f} s: tbot starts all the same.")

    if len(requests) == 1 and not unwanted and not found:
        conclusion = "This is all that otel-tbot sends, and only with your consent."
        print_result(style("\n" + to_paragraph(conclusion, width=get_width()), "good"))
        next_steps = "Next: `otel-tbot preview` for your own tbot, `otel-tbot doctor` for your settings."
        print_result(to_paragraph(next_steps, width=get_width()))
        return 0
    message = "expected one request, and then none; is the command a tbot of version 12.1 or later?"
    if found:
        message = f"the request contains {', '.join(found)}; please report this as SECURITY.md describes"
    print_message("demo", message)
    return 1


def _run(command: Sequence[str], endpoint: str, *, consent: str | None, planted: str) -> int:
    own_variables = (CONSENT_VARIABLE, ADDRESS_VARIABLE, SDK_DISABLED_VARIABLE)
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in own_variables and not name.startswith(("OTEL_EXPORTER_OTLP_", "OTEL_TBOT_"))
    }
    environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TBOT_TIMEOUT": _TIMEOUT_MS}
    environ |= {"OTEL_SERVICE_NAME": planted, "OTEL_RESOURCE_ATTRIBUTES": f"host.name={planted}"}
    if consent is not None:
        environ[CONSENT_VARIABLE] = consent
    arguments = [sys.executable, "-P", "-m", "otel_tbot", "run", "--", *command]
    # An interrupt would end a starting interpreter with a traceback, so it waits until the fake tbot is ready for it.
    blocked = {signal.SIGINT} if command is _FAKE_TBOT else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        process = subprocess.Popen(arguments, env=environ)  # noqa: S603  # what the user asked to run
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process.wait()


def _print_title(number: int, text: str, command: str) -> None:
    print_result(style(f"\n{number}. {text}", "strong"))
    print_result(f"{style('  $', 'quiet')} {command}\n")


def _print_text(text: str) -> None:
    print_result("  " + to_paragraph(text, width=get_width() - 2, indent="  "))


def _print_heading(text: str) -> None:
    print_result(style(f"\n  {text}", "strong"))


def _print_row(name: str, value: object) -> None:
    print_result(to_row(name, str(value), column=_COLUMN, indent=" " * 4, width=get_width()))


def _print_request(request: _Request) -> None:
    from otel_tbot.otlp.encoding import parse_log_request

    (resource_logs,) = parse_log_request(request.body)["resourceLogs"]
    (scope_logs,) = resource_logs["scopeLogs"]
    (record,) = scope_logs["logRecords"]
    started = datetime.fromtimestamp(int(record["timeUnixNano"]) / 1e9, tz=UTC)
    _print_heading(f"The request: POST {request.path}, {len(request.body)} bytes")
    for name, value in request.headers:
        _print_row(name, value)
    _print_heading("Its log record")
    _print_row("event name", record["eventName"])
    _print_row("time", f"{started:%Y-%m-%dT%H:%M:%SZ} (a whole second)")
    _print_row("severity", record["severityText"])
    _print_row("body", record["body"]["stringValue"])
    for attribute in record["attributes"]:
        (value,) = attribute["value"].values()
        _print_row(attribute["key"], value)
    _print_heading("Its resource, complete")
    for attribute in resource_logs["resource"]["attributes"]:
        (value,) = attribute["value"].values()
        _print_row(attribute["key"], value)
    _print_heading("Its scope")
    _print_row(scope_logs["scope"]["name"], scope_logs["scope"]["version"])
    print_result("")
    _print_text("The session.id is random: it is made for this one start and never used again.")


def _print_search(requests: Sequence[_Request], planted: str) -> list[str]:
    """Searches the requests for names that would identify this machine; returns those that were found."""
    sent = "\n".join(f"{r.path}\n{r.headers}\n{r.body.decode(errors='replace')}" for r in requests)
    working_directory = ""
    with contextlib.suppress(OSError):  # it may be deleted
        working_directory = os.getcwd()
    names = {
        "OTEL_SERVICE_NAME, planted": planted,
        "OTEL_RESOURCE_ATTRIBUTES, planted": f"host.name={planted}",
        "this machine's name": socket.gethostname(),
        "your user's name": os.environ.get("USER", ""),
        "your home directory": os.environ.get("HOME", ""),
        "the working directory": working_directory,
    }
    _print_heading("Names searched for in the request")
    any_request = _get_request_of_any_machine()
    found = []
    for name, text in names.items():
        if not text:
            _print_row(name, "not searched: it is not set")
        elif len(text) < _MIN_CHARACTERS:
            _print_row(name, "not searched: it is too short to tell from other words")
        elif text in any_request:
            _print_row(name, "not searched: the request of any machine contains this word")
        elif text in sent:
            _print_row(name, style("FOUND", "bad"))
            found.append(name)
        else:
            _print_row(name, style("not found", "good"))
    return found


def _get_request_of_any_machine() -> str:
    """Returns a request without facts; every machine sends these words."""
    from otel_tbot.cli.preview import to_preview
    from otel_tbot.event import TbotStart
    from otel_tbot.otlp.config import resolve_config

    request = to_preview(TbotStart(run_mode="one-shot"), resolve_config({}))
    # Without the random id, which could contain a short name by chance.
    return re.sub(request.event.session_id, "", request.body) + request.destination


def _count(requests: Sequence[_Request]) -> str:
    return f"{len(requests) or 'no'} request{'' if len(requests) == 1 else 's'}"
