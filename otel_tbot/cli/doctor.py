"""`otel-tbot doctor`: an environment goes in, what is on, where it would go and what is wrong with it comes out.

With telemetry off it connects to nothing and starts nothing. Shows no header's value and no user info of a URL.
"""

import importlib.metadata
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from otel_tbot import settings
from otel_tbot.cli.extras import RELAY_REMEDY, find_missing
from otel_tbot.cli.terminal import Painter, Style, leave_plain
from otel_tbot.consent import ADDRESS_VARIABLE, CONSENT_VARIABLE, SDK_DISABLED_VARIABLE, is_granted, is_sdk_disabled
from otel_tbot.deadline import run_within
from otel_tbot.outcome import Outcome

OLDEST_TBOT: Final = (12, 1)
"""The first that reports its start."""

_STEP_SECONDS: Final = 5.0
_FEW_MS: Final = 60
_ENTRY_POINT_GROUPS: Final = ("opentelemetry_logs_exporter", "opentelemetry_traces_exporter")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
_NOT_AN_ANSWER: Final = ("401", "403", "404", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")

Level = Literal["ok", "note", "warning", "problem"]
_STYLES: Final[dict[Level, Style]] = {"ok": "good", "note": "quiet", "warning": "doubtful", "problem": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found: about what, what, and for a warning or a problem what to do; `seconds` where it was tried."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
    seconds: float | None = None


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Everything that is found under *environ*, in the order that a reader needs it."""
    findings = [*_examine_consent(environ), *_examine_settings(environ), *_examine_traps(environ)]
    findings += [*_examine_installation(), *_examine_tbot(environ)]
    if not is_granted(environ):
        return [*findings, Finding(level="note", subject="collector", text="not tried, since telemetry is off")]
    return [*findings, *_examine_collector(environ)]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether there is no problem among *findings*. Pure."""
    return all(finding.level != "problem" for finding in findings)


def to_text(findings: Sequence[Finding], paint: Painter = leave_plain) -> str:
    """*findings* for people, a line each and one for a remedy, and how many there are of each level. Pure."""
    lines = []
    for finding in findings:
        taken = "" if finding.seconds is None else f" ({finding.seconds * 1000:.0f} ms)"
        level = paint(f"{finding.level:<9}", _STYLES[finding.level])
        lines.append(f"{level}{finding.subject}: {finding.text}{taken}")
        if finding.remedy:
            lines.append(f"{'':<9}→ {finding.remedy}")
    return "\n".join([*lines, "", _summarise(findings, paint)])


def _summarise(findings: Sequence[Finding], paint: Painter) -> str:
    """One line: how many problems and warnings there are. Pure."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("problem", "warning")}
    worst: Level = "problem" if counts["problem"] else "warning" if counts["warning"] else "ok"
    parts = (f"{count or 'no'} {level}{'' if count == 1 else 's'}" for level, count in counts.items())
    return paint(", ".join(parts), _STYLES[worst])


def to_json(findings: Sequence[Finding], *, is_on: bool) -> str:
    """*findings* for programs: `{"telemetry": "on", "healthy": true, "findings": [{"level": …}]}`. Pure."""
    report = {
        "telemetry": "on" if is_on else "off",
        "healthy": is_healthy(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=2)


def _examine_consent(environ: Mapping[str, str]) -> Iterator[Finding]:
    answer = environ.get(CONSENT_VARIABLE)
    if is_granted({**environ, SDK_DISABLED_VARIABLE: ""}):
        yield Finding(level="ok", subject=CONSENT_VARIABLE, text="telemetry is on")
    elif not answer:
        text = "telemetry is off: the variable is " + ("not set" if answer is None else "empty")
        yield Finding(level="note", subject=CONSENT_VARIABLE, text=text)
    else:
        yield Finding(
            level="note",
            subject=CONSENT_VARIABLE,
            text="telemetry is off: only 1, t, T, TRUE, true and True mean on, as for tbot itself",
        )
    if is_sdk_disabled(environ):
        yield Finding(level="note", subject=SDK_DISABLED_VARIABLE, text="turns telemetry off")
    if environ.get(ADDRESS_VARIABLE):
        text = "set: tbot reports there, and `otel-tbot run` starts no relay"
        yield Finding(level="note", subject=ADDRESS_VARIABLE, text=text)


def _examine_settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    signal = settings.SIGNAL.resolve(environ)
    known = set()
    for setting in settings.SETTINGS:
        known |= {*setting.variables("log"), *setting.variables("span")}
        variable, _ = setting.find(environ, signal)
        if settings.COMMANDS in setting.used_by:
            value = _show(setting, environ, signal)
            origin = f"from {variable}" if variable else "default"
            yield Finding(level="note", subject=setting.name, text=f"{value} ({origin})")
    for fault in settings.find_faults(environ):
        variable, _, rule = fault.partition(": ")
        is_endpoint = variable.endswith("_ENDPOINT")
        yield Finding(level="problem" if is_endpoint else "warning", subject=variable, text=rule, remedy="correct it")
    others = sorted(
        name for name in environ if name.startswith("OTEL_") and name not in {*known, SDK_DISABLED_VARIABLE}
    )
    if others:
        yield Finding(level="note", subject="not used by otel-tbot's commands", text=", ".join(others))


def _show(setting: settings.Setting, environ: Mapping[str, str], signal: str) -> str:
    """The value in force as it may be shown."""
    if setting is settings.ENDPOINT:
        return settings.redact_url(settings.resolve_endpoint(environ, signal)) or setting.default_text
    if setting is settings.PROTOCOL:
        return settings.resolve_protocol(environ, signal)
    variable, text = setting.find(environ, signal)
    if not variable or setting.find_fault(environ, signal):
        return setting.default_text
    if setting is settings.HEADERS:
        return ", ".join(f"{name}=(hidden)" for name, _ in setting.resolve(environ, signal)) or setting.default_text
    return text


def _examine_traps(environ: Mapping[str, str]) -> Iterator[Finding]:
    signal = settings.SIGNAL.resolve(environ)
    protocol = settings.resolve_protocol(environ, signal)
    variable, _ = settings.ENDPOINT.find(environ, signal)
    endpoint = settings.resolve_endpoint(environ, signal)
    if re.search(r"/v1/(logs|traces)/+v1/(logs|traces)$", endpoint):
        yield Finding(
            level="problem",
            subject=variable,
            text="the path is there twice, since it is added to the general form",
            remedy=f"leave the path out, or name the variable {settings.ENDPOINT.variables(signal)[0]}",
        )
    _, port = settings.split_host_port(endpoint.partition("://")[2] or endpoint)
    usual = {"4318": "http/protobuf", "4317": "grpc"}.get(port, protocol)
    if usual != protocol:
        yield Finding(
            level="warning",
            subject=variable or settings.ENDPOINT.name,
            text=f"port {port} is usually that of {usual}, and the protocol is {protocol}",
            remedy=f"set {settings.PROTOCOL.name}={usual}, or the port of {protocol}",
        )
    proxies = sorted({name for name in _PROXIES if environ.get(name) or environ.get(name.lower())})
    if proxies:
        text = "set, and not used: the event goes to the endpoint, and to nothing in between"
        yield Finding(level="note", subject=", ".join(proxies), text=text)
    timeout_variable, text = settings.TIMEOUT.find(environ, signal)
    if text and settings.TIMEOUT.resolve(environ) <= _FEW_MS:
        yield Finding(
            level="warning",
            subject=timeout_variable,
            text="is in milliseconds, and few for a collector to answer in",
            remedy="for seconds, write three zeros behind it",
        )
    if fault := settings.EXPORT_TIMEOUT.find_fault(environ, signal):
        name, _, rule = fault.partition(": ")
        text = f"{rule}; the specification says milliseconds, but OpenTelemetry Python reads seconds"
        yield Finding(
            level="warning", subject=name, text=text, remedy="write seconds; only the exporter plug-ins read it"
        )


def _examine_installation() -> Iterator[Finding]:
    if find_missing():
        yield Finding(
            level="problem",
            subject="extra relay",
            text="not installed, so `run` starts no relay",
            remedy=RELAY_REMEDY,
        )
    for group in _ENTRY_POINT_GROUPS:
        if importlib.metadata.entry_points(group=group, name="tbot"):
            yield Finding(level="ok", subject=group, text="`tbot` is registered")
        else:
            yield Finding(
                level="warning",
                subject=group,
                text="`tbot` is not registered, so no variable or file can name it",
                remedy="install the package instead of putting its folder on the path",
            )


def _examine_tbot(environ: Mapping[str, str]) -> Iterator[Finding]:
    path = shutil.which("tbot", path=environ.get("PATH"))
    if path is None:
        yield Finding(level="note", subject="tbot", text="not on PATH")
    elif not is_granted(environ):
        yield Finding(level="note", subject="tbot", text="on PATH; its version is not asked while telemetry is off")
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
        text = "on PATH, but does not tell its version"
        return Finding(level="warning", subject="tbot", text=text, remedy="run `tbot version`")
    version = tuple(map(int, found.groups()))
    if version < OLDEST_TBOT:
        return Finding(
            level="problem",
            subject="tbot",
            text=f"version {'.'.join(found.groups())} does not report its start",
            remedy="use 12.1 or later",
        )
    return Finding(level="ok", subject="tbot", text=f"on PATH, version {'.'.join(found.groups())}")


def _examine_collector(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Name, connection, TLS and an empty export, each only where the one before it worked."""
    signal = settings.SIGNAL.resolve(environ)
    endpoint = settings.resolve_endpoint(environ, signal)
    if not endpoint:
        return
    scheme, _, rest = endpoint.rpartition("://")
    is_secure = scheme == "https" or (not scheme and not settings.INSECURE.resolve(environ, signal))
    host, port = settings.split_host_port(rest)
    port_number = int(port or (443 if is_secure else 80))

    def resolve() -> str:
        addresses = socket.getaddrinfo(host, port_number, type=socket.SOCK_STREAM)
        return f"{host} has {len({address[4][0] for address in addresses})} address(es)"

    def connect() -> str:
        from otel_tbot.otlp.client import build_tls_context

        with socket.create_connection((host, port_number), _STEP_SECONDS) as connection:
            if not is_secure:
                return f"port {port_number} is open, without TLS"
            context = build_tls_context(environ, signal)
            with context.wrap_socket(connection, server_hostname=host) as secured:
                return f"port {port_number} is open, {secured.version()}, certificate valid for {host}"

    steps: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("name", resolve, "check the host in the endpoint, and this machine's resolver"),
        ("connection", connect, "check that the collector listens there, its certificate, and what stands in between"),
    )
    for subject, step, remedy in steps:
        finding = _try(f"collector: {subject}", step, remedy)
        yield finding
        if finding.level == "problem":
            return
    yield _try_export(environ, signal)


def _try(subject: str, step: Callable[[], str], remedy: str) -> Finding:
    began = time.monotonic()

    def work() -> Finding:
        try:
            return Finding(level="ok", subject=subject, text=step(), seconds=time.monotonic() - began)
        except ssl.SSLCertVerificationError as error:
            text = f"the certificate is not accepted: {error.verify_message}"
        except (OSError, UnicodeError) as error:
            text = f"failed: {getattr(error, 'strerror', None) or type(error).__name__}"
        return Finding(level="problem", subject=subject, text=text, remedy=remedy, seconds=time.monotonic() - began)

    late = Finding(level="problem", subject=subject, text="no answer in time", remedy=remedy, seconds=_STEP_SECONDS)
    return run_within(_STEP_SECONDS, work) or late


def _try_export(environ: Mapping[str, str], signal: str) -> Finding:
    from otel_tbot.otlp.client import OtlpSender

    subject = "collector: empty export"
    began = time.monotonic()

    def work() -> Finding:
        status = ""
        try:
            sender = OtlpSender(environ, signal=signal, deadline_seconds=_STEP_SECONDS)
            outcome = sender.send(b"")
            status = sender.answer.status
            sender.close()
        except Exception as error:  # noqa: BLE001  # one exporter call: whatever it is, nothing was exported
            outcome, status = Outcome.UNREACHABLE, type(error).__name__
        seconds = time.monotonic() - began
        if outcome is Outcome.ACCEPTED:
            return Finding(level="ok", subject=subject, text=f"accepted, {status}", seconds=seconds)
        is_no = any(word in status for word in _NOT_AN_ANSWER)
        if not is_no and re.search(r"status (4\d\d|INVALID_ARGUMENT)", status):
            # Loki, for one, wants records.
            text = f"it answers, but takes nothing empty: {status}"
            return Finding(level="ok", subject=subject, text=text, seconds=seconds)
        text = f"{outcome.value}{', ' if status else ''}{status}"
        remedy = "check protocol, path, headers and certificates of the endpoint against the collector's receiver"
        return Finding(level="problem", subject=subject, text=text, remedy=remedy, seconds=seconds)

    late = Finding(
        level="problem",
        subject=subject,
        text="no answer in time",
        remedy="check that it is a collector that listens there",
        seconds=_STEP_SECONDS,
    )
    return run_within(_STEP_SECONDS + 1, work) or late
