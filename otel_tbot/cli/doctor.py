"""Examines an environment: what is on, where events go, whether that works, and what to do.

Tries what it reports on: the relay, and the collector with the code that sends, or the address that tbot reports to.
With telemetry off it connects to nothing and starts nothing. It never shows a secret: no header value, no user info or
unusual path of a URL, and a file setting only if it names a file.
"""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from otel_tbot import settings
from otel_tbot.cli.output import Style, style, to_row, to_shown_url
from otel_tbot.consent import (
    ADDRESS_VARIABLE,
    CONSENT_VARIABLE,
    SDK_DISABLED_VARIABLE,
    find_mistake,
    is_granted,
    is_sdk_disabled,
)
from otel_tbot.errors import OtelTbotError
from otel_tbot.outcome import Outcome

OLDEST_TBOT: Final = (12, 1)
"""The first version that reports its start."""

_STEP_SECONDS: Final = 5.0
_FEW_MS: Final = 60
_ENTRY_POINT_GROUPS: Final = ("opentelemetry_logs_exporter", "opentelemetry_traces_exporter")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
# Responses to an empty request that only mean that it was empty. Loki, for one, wants records.
_EMPTY_REJECTED: Final = re.compile(r"HTTP status (400|422)\b|gRPC status INVALID_ARGUMENT\b")
_STATUS_REMEDIES: Final = (
    (r"\b401\b|\b403\b|UNAUTHENTICATED|PERMISSION_DENIED", "check the token in OTEL_EXPORTER_OTLP_HEADERS"),
    (r"\b404\b|\b405\b|UNIMPLEMENTED", "check the path and the protocol: does an OTLP receiver listen there?"),
    (
        r"\b413\b|\b415\b|\b426\b",
        "check that an OTLP receiver listens there, and no proxy in front of it interferes",
    ),
    (r"\b429\b|RESOURCE_EXHAUSTED", "the collector limits requests; try again later, or raise its limit"),
    (r"\b30\d\b", "set the endpoint to where the redirect leads; otel-tbot follows none"),
    (r"\b5\d\d\b|UNAVAILABLE|INTERNAL", "look into the log of the collector"),
)

Level = Literal["problem", "warning", "ok", "note"]
LEVELS: Final[tuple[Level, ...]] = ("problem", "warning", "ok", "note")
_STYLES: Final[dict[Level, Style]] = {"ok": "good", "note": "quiet", "warning": "doubtful", "problem": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding: its subject, a text, and a remedy for each problem and warning; `seconds` if something was tried."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
    seconds: float | None = None


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Returns all findings under *environ*: problems first, then warnings, what is ok, and notes."""
    findings = [*_examine_consent(environ), *_examine_destination(environ)]
    findings += [*_examine_settings(environ), *_examine_mistakes(environ)]
    findings += [*_examine_tbot(environ), *_examine_installation(), *_list_settings(environ)]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether there is no problem among *findings*. Pure."""
    return all(finding.level != "problem" for finding in findings)


def to_text(findings: Sequence[Finding], *, width: int = 80) -> str:
    """Returns a summary and a table of *findings*, *width* columns wide. Pure."""
    lines = [_summarise(findings), ""]
    notes = [finding for finding in findings if finding.level == "note"]
    results = [finding for finding in findings if finding.level != "note"]
    column = max((len(finding.subject) for finding in results), default=0)
    for finding in results:
        taken = "" if finding.seconds is None else f" ({finding.seconds * 1000:.0f} ms)"
        text = f"{finding.text}{taken}" + (f"\n→ {finding.remedy}" if finding.remedy else "")
        row = to_row(finding.subject, text, column=column, indent=" " * 9, width=width)
        lines.append(style(f"{finding.level:<9}", _STYLES[finding.level]) + row[9:])
    column = max((len(finding.subject) for finding in notes), default=0)
    lines += ["", style("In force", "strong")] if notes else []
    lines += [to_row(finding.subject, finding.text, column=column, width=width) for finding in notes]
    return "\n".join(lines)


def _summarise(findings: Sequence[Finding]) -> str:
    """Returns one line: how many problems and warnings there are. Pure."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("problem", "warning")}
    worst: Level = "problem" if counts["problem"] else "warning" if counts["warning"] else "ok"
    parts = (f"{count or 'no'} {level}{'' if count == 1 else 's'}" for level, count in counts.items())
    return style(", ".join(parts), _STYLES[worst])


def to_json(findings: Sequence[Finding], *, is_on: bool) -> str:
    """Returns *findings* for programs: `{"telemetry": "on", "healthy": true, "findings": [{"level": …}]}`. Pure."""
    report = {
        "telemetry": "on" if is_on else "off",
        "healthy": is_healthy(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=2)


def _examine_consent(environ: Mapping[str, str]) -> Iterator[Finding]:
    if mistake := find_mistake(environ):
        yield Finding(
            level="warning",
            subject=CONSENT_VARIABLE,
            text=mistake.partition(": ")[2].partition(";")[0],
            remedy="set it to 1 to turn telemetry on, or unset it",
        )
    elif is_granted({**environ, SDK_DISABLED_VARIABLE: ""}):
        yield Finding(level="ok", subject=CONSENT_VARIABLE, text="telemetry is on")
    else:
        state = "not set" if CONSENT_VARIABLE not in environ else "empty" if not environ[CONSENT_VARIABLE] else "false"
        yield Finding(level="note", subject=CONSENT_VARIABLE, text=f"telemetry is off: the variable is {state}")
    if is_sdk_disabled(environ):
        yield Finding(level="note", subject=SDK_DISABLED_VARIABLE, text="turns telemetry off")


def _examine_settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    signal = settings.SIGNAL.resolve(environ)
    for fault in settings.find_faults(environ):
        variable, _, rule = fault.partition(": ")
        is_endpoint = variable.endswith("_ENDPOINT")
        yield Finding(level="problem" if is_endpoint else "warning", subject=variable, text=rule, remedy="correct it")
    for setting in settings.FILE_SETTINGS:
        variable, text = setting.find(environ, signal)
        if variable and not os.path.isfile(text):
            yield Finding(
                level="problem",
                subject=variable,
                text="does not name a file",
                remedy="set it to the path of a PEM file, not to its content",
            )


def _list_settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    signal = settings.SIGNAL.resolve(environ)
    known = {SDK_DISABLED_VARIABLE}
    for setting in settings.SETTINGS:
        known |= {*setting.variables("log"), *setting.variables("span")}
        variable, _ = setting.find(environ, signal)
        if settings.COMMANDS in setting.used_by:
            origin = f"from {variable}" if variable else "default"
            yield Finding(level="note", subject=setting.name, text=f"{_show(setting, environ, signal)} ({origin})")
    others = sorted(name for name in environ if name.startswith("OTEL_") and name not in known)
    if others:
        yield Finding(level="note", subject="not used by the commands", text=", ".join(others))


def _show(setting: settings.Setting, environ: Mapping[str, str], signal: str) -> str:
    """Returns the value in force without anything that may be a secret."""
    if setting is settings.ENDPOINT:
        return to_shown_url(settings.resolve_endpoint(environ, signal)) or setting.default_text
    if setting is settings.PROTOCOL:
        return settings.resolve_protocol(environ, signal)
    variable, text = setting.find(environ, signal)
    if not variable or setting.find_fault(environ, signal):
        return str(setting.default_text)
    if setting is settings.HEADERS:
        return ", ".join(_show_header(*header) for header in setting.resolve(environ, signal)) or setting.default_text
    if setting in settings.FILE_SETTINGS and not os.path.isfile(text):
        return "(hidden)"
    return text


def _show_header(name: str, value: str) -> str:
    # A token that ends in "=" looks like a name without a value.
    return f"{name}=(hidden)" if value.strip("=") else "(hidden)"


def _examine_mistakes(environ: Mapping[str, str]) -> Iterator[Finding]:
    signal = settings.SIGNAL.resolve(environ)
    protocol = settings.resolve_protocol(environ, signal)
    variable, _ = settings.ENDPOINT.find(environ, signal)
    endpoint = settings.resolve_endpoint(environ, signal)
    if re.search(r"/v1/(logs|traces)/+v1/(logs|traces)$", endpoint):
        yield Finding(
            level="problem",
            subject=variable,
            text="already ends in the path that otel-tbot adds to it",
            remedy=f"remove the path, or name the variable {settings.ENDPOINT.variables(signal)[0]}",
        )
    _, port = settings.split_host_port(endpoint.partition("://")[2] or endpoint)
    usual = {"4318": "http/protobuf", "4317": "grpc"}.get(port, protocol)
    if usual != protocol:
        yield Finding(
            level="warning",
            subject=variable or settings.ENDPOINT.name,
            text=f"port {port} is usually for {usual}, but the protocol is {protocol}",
            remedy=f"set {settings.PROTOCOL.name}={usual}, or use the port of {protocol}",
        )
    proxies = sorted({name for name in _PROXIES if environ.get(name) or environ.get(name.lower())})
    if proxies:
        text = "set, but not used: events go directly to the endpoint"
        yield Finding(level="note", subject=", ".join(proxies), text=text)
    timeout_variable, text = settings.TIMEOUT.find(environ, signal)
    if text and settings.TIMEOUT.resolve(environ) <= _FEW_MS:
        yield Finding(
            level="warning",
            subject=timeout_variable,
            text="is in milliseconds, and too short for a collector to respond",
            remedy="if you mean seconds, multiply by 1000",
        )
    if fault := settings.EXPORT_TIMEOUT.find_fault(environ, signal):
        name, _, rule = fault.partition(": ")
        text = f"{rule}; the specification says milliseconds, but OpenTelemetry Python reads seconds"
        yield Finding(level="warning", subject=name, text=text, remedy="use seconds; only the plug-ins read it")


def _examine_installation() -> Iterator[Finding]:
    registered = [g for g in _ENTRY_POINT_GROUPS if importlib.metadata.entry_points(group=g, name="tbot")]
    if len(registered) == len(_ENTRY_POINT_GROUPS):
        yield Finding(level="ok", subject="exporter plug-ins", text="`tbot` is registered for logs and traces")
    else:
        yield Finding(
            level="warning",
            subject="exporter plug-ins",
            text="`tbot` is not registered, so OTEL_LOGS_EXPORTER=tbot does not work",
            remedy="install the package instead of putting its folder on the path",
        )
    if importlib.util.find_spec("uvicorn") is None:
        text = "not installed; only `otel-tbot bridge` needs it: pip install 'otel-tbot[bridge]'"
        yield Finding(level="note", subject="extra `bridge`", text=text)
    if _lacks_bytecode():
        yield Finding(
            level="warning",
            subject="bytecode",
            text="is missing and cannot be written, so each start compiles all modules again and takes longer",
            remedy="compile it once: `uv tool install --compile-bytecode …`, or `python -m compileall` on the folder",
        )


def _lacks_bytecode() -> bool:
    """Whether a module that the relay imports has no bytecode, and this user cannot write it."""
    for name in ("otel_tbot.relay.process", "google.protobuf.descriptor"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.has_location or not spec.cached or os.path.exists(spec.cached):
            continue
        folder = os.path.dirname(spec.cached)
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        if sys.dont_write_bytecode or not os.access(folder, os.W_OK):
            return True
    return False


def _examine_tbot(environ: Mapping[str, str]) -> Iterator[Finding]:
    path = shutil.which("tbot", path=environ.get("PATH"))
    if path is None:
        yield Finding(level="note", subject="tbot", text="not on PATH")
    elif not is_granted(environ):
        yield Finding(level="note", subject="tbot", text="on PATH; not executed, because telemetry is off")
    else:
        yield _examine_tbot_version(path, environ)


def _examine_tbot_version(path: str, environ: Mapping[str, str]) -> Finding:
    try:
        finished = subprocess.run(  # noqa: S603  # the user's own tbot
            [path, "version"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_STEP_SECONDS,
        )
        found = re.search(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})", finished.stdout)
    except (OSError, subprocess.TimeoutExpired):
        found = None
    if found is None:
        text = "on PATH, but does not print its version"
        return Finding(level="warning", subject="tbot", text=text, remedy="run `tbot version` to see why")
    version = tuple(map(int, found.groups()))
    if version < OLDEST_TBOT:
        return Finding(
            level="problem",
            subject="tbot",
            text=f"version {'.'.join(found.groups())} does not report its start",
            remedy="use 12.1 or later",
        )
    return Finding(level="ok", subject="tbot", text=f"on PATH, version {'.'.join(found.groups())}")


def _examine_destination(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Tries the place that an event would go to."""
    if not is_granted(environ):
        text = "not tried, because telemetry is off; nothing was connected to or started"
        yield Finding(level="note", subject="collector", text=text)
    elif address := environ.get(ADDRESS_VARIABLE):
        text = "set: tbot reports there, so `otel-tbot run` starts no relay"
        yield Finding(level="note", subject=ADDRESS_VARIABLE, text=text)
        yield _try_address(address)
    else:
        signal = settings.SIGNAL.resolve(environ)
        if settings.resolve_endpoint(environ, signal):
            yield _try_collector(environ, signal)


def _run_within(seconds: float, step: Callable[[], Finding]) -> Finding | None:
    """Returns the result of *step*, or None after *seconds*; name resolution, for one, cannot be interrupted."""
    results: list[Finding] = []

    def work() -> None:
        results.append(step())

    thread = threading.Thread(target=work, daemon=True, name="otel-tbot doctor")
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _try_address(address: str) -> Finding:
    """Calls tbot's procedure at *address* with an empty request, which holds no event."""
    shown = to_shown_url(address)
    began = time.monotonic()

    def work() -> Finding:
        from otel_tbot.tbot.report import PROCEDURE

        try:
            url = urlsplit(address)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            connection = kind(url.hostname, url.port, timeout=_STEP_SECONDS)
            headers = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
            try:
                connection.request("POST", url.path.rstrip("/") + PROCEDURE, b"", headers)
                response = connection.getresponse()
                status, body = response.status, response.read(4096)
            finally:
                connection.close()
        except ValueError:
            return _to_address_problem("is not an http:// or https:// URL", "correct it; tbot needs a whole URL", began)
        except (OSError, http.client.HTTPException) as error:
            text = f"{shown} does not respond: {_describe_error(error)}"
            return _to_address_problem(text, "check that the bridge or relay runs there", began)
        code = _read_code(body)
        if status == http.client.OK or code == "invalid_argument":
            # The expected response: the request was understood, and holds no event.
            text = f"{shown} speaks tbot's protocol"
            return Finding(level="ok", subject=ADDRESS_VARIABLE, text=text, seconds=time.monotonic() - began)
        text = f"{shown} does not accept reports: HTTP status {status}{f', {code}' if code else ''}"
        return _to_address_problem(text, "check the path in it: a bridge serves only its secret prefix", began)

    late = _to_address_problem(f"{shown} does not respond in time", "check that the bridge or relay runs there", began)
    return _run_within(_STEP_SECONDS, work) or late


def _to_address_problem(text: str, remedy: str, began: float) -> Finding:
    seconds = time.monotonic() - began
    return Finding(level="problem", subject=ADDRESS_VARIABLE, text=text, remedy=remedy, seconds=seconds)


def _read_code(body: bytes) -> str:
    """Returns the code of a Connect error, "" for anything else. Pure."""
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError):
        return ""
    return code if isinstance(code, str) and re.fullmatch("[a-z_]{1,32}", code) else ""


def _try_collector(environ: Mapping[str, str], signal: str) -> Finding:
    """Sends an empty request with the code that sends events; if nothing responds, finds out why."""
    shown = to_shown_url(settings.resolve_endpoint(environ, signal))
    began = time.monotonic()

    def work() -> Finding:
        outcome, status = _send_empty_request(environ, signal)
        seconds = time.monotonic() - began
        if outcome is Outcome.ACCEPTED:
            text = f"{shown} accepted an empty request, {status}"
            return Finding(level="ok", subject="collector", text=text, seconds=seconds)
        if outcome is Outcome.REFUSED and _EMPTY_REJECTED.search(status):
            text = f"{shown} responds, but rejects an empty request ({status}), so this cannot tell whether it works"
            remedy = "send one event with `otel-tbot emit`"
            return Finding(level="warning", subject="collector", text=text, remedy=remedy, seconds=seconds)
        if outcome is Outcome.REFUSED:
            remedy = next(
                (remedy for pattern, remedy in _STATUS_REMEDIES if re.search(pattern, status)),
                "check that an OTLP receiver of this protocol listens there",
            )
            return _to_collector_problem(f"{shown} rejects requests: {status}", remedy, began)
        if outcome is Outcome.TIMED_OUT:
            return late
        try:
            reason, remedy = _find_reason(environ, signal)
        except (OSError, ValueError) as error:
            reason, remedy = _describe_error(error), "check that the collector listens there, and firewalls between"
        return _to_collector_problem(f"{shown} cannot be reached: {reason}", remedy, began)

    late = _to_collector_problem(f"{shown} does not respond in time", "check that a collector listens there", began)
    return _run_within(_STEP_SECONDS * 2, work) or late


def _to_collector_problem(text: str, remedy: str, began: float) -> Finding:
    return Finding(level="problem", subject="collector", text=text, remedy=remedy, seconds=time.monotonic() - began)


def _send_empty_request(environ: Mapping[str, str], signal: str) -> tuple[Outcome, str]:
    """Returns the outcome of an empty request, and the status of the response."""
    from otel_tbot.otlp.client import OtlpSender

    try:
        sender = OtlpSender(environ, signal=signal, deadline_seconds=_STEP_SECONDS)
        outcome = sender.send(b"")
        status = sender.answer.status
        sender.close()
    except (OSError, ValueError, OtelTbotError):
        return Outcome.UNREACHABLE, ""
    return outcome, status


def _find_reason(environ: Mapping[str, str], signal: str) -> tuple[str, str]:
    """Resolves the name, connects, and makes the TLS handshake; returns what failed, and a remedy."""
    from otel_tbot.otlp.client import build_tls_context

    scheme, _, rest = settings.resolve_endpoint(environ, signal).rpartition("://")
    is_secure = scheme == "https" or (not scheme and not settings.INSECURE.resolve(environ, signal))
    host, port = settings.split_host_port(rest)
    try:
        socket.getaddrinfo(host, int(port or 0), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return f"the name has no address ({_describe_error(error)})", "check the host in the endpoint"
    with socket.create_connection((host, int(port or (443 if is_secure else 80))), _STEP_SECONDS) as connection:
        if is_secure:
            try:
                context = build_tls_context(environ, signal)
            except (OSError, ValueError) as error:
                text = f"the certificate files cannot be used ({type(error).__name__})"
                return text, f"check {', '.join(setting.name for setting in settings.FILE_SETTINGS)}"
            try:
                context.wrap_socket(connection, server_hostname=host).close()
            except ssl.SSLCertVerificationError as error:
                text = f"its certificate is not accepted: {error.verify_message}"
                return text, f"set {settings.CERTIFICATE.name} to the certificates of its authority"
            except ssl.SSLError as error:
                return f"TLS fails: {error.reason or type(error).__name__}", "check that the endpoint speaks TLS"
    return "it closes the connection, or speaks another protocol", "check the protocol and the port"


def _describe_error(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or type(error).__name__)
