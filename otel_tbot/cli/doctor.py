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
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from otel_tbot import settings
from otel_tbot.cli.output import Style, style, to_row
from otel_tbot.consent import (
    ADDRESS_VARIABLE,
    CONSENT_VARIABLE,
    SDK_DISABLED_VARIABLE,
    find_mistake,
    is_granted,
    is_sdk_disabled,
)
from otel_tbot.errors import OtelTbotError
from otel_tbot.otlp.config import OtlpConfig, resolve_config
from otel_tbot.outcome import Outcome

OLDEST_TBOT: Final = (12, 1)
"""The first version that reports its start."""

_STEP_SECONDS: Final = 5.0
_RELAY_SECONDS: Final = 20.0
_FEW_MS: Final = 60
_MANY_SECONDS: Final = 1000
_EXPORT_TIMEOUT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_TIMEOUT"
_FILE_SETTINGS: Final = (settings.CERTIFICATE, settings.CLIENT_KEY, settings.CLIENT_CERTIFICATE)
_ENTRY_POINT_GROUPS: Final = ("opentelemetry_logs_exporter", "opentelemetry_traces_exporter")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
# Responses to an empty request that only mean that it was empty. Loki, for one, wants records.
_EMPTY_REJECTED: Final = re.compile("HTTP status (400|422)|gRPC status INVALID_ARGUMENT")
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
# By OpenSSL's codes: X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH.
_DATE_REMEDY: Final = "renew the collector's certificate, and check the clock of this machine"
_NAME_REMEDY: Final = "set the endpoint to a name that is in the collector's certificate"
_CERTIFICATE_REMEDIES: Final = {9: _DATE_REMEDY, 10: _DATE_REMEDY, 62: _NAME_REMEDY, 64: _NAME_REMEDY}
_UNKNOWN_AUTHORITY_REMEDY: Final = f"set {settings.CERTIFICATE.name} to the certificate of its authority"

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
    config = resolve_config(environ)
    findings = [*_examine_consent(environ), *_examine_destination(environ, config)]
    findings += [*_examine_settings(environ, config), *_examine_mistakes(environ, config)]
    findings += [*_examine_tbot(environ), *_examine_installation(), *_list_settings(environ, config)]
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


def _examine_settings(environ: Mapping[str, str], config: OtlpConfig) -> Iterator[Finding]:
    for warning in config.warnings:
        variable, _, rule = warning.partition(": ")
        level: Level = "problem" if variable.endswith("_ENDPOINT") else "warning"
        yield Finding(level=level, subject=variable, text=rule, remedy="correct it")
    for setting in _FILE_SETTINGS:
        variable, text = setting.find(environ, config.signal)
        if variable and not os.path.isfile(text):
            yield Finding(
                level="problem" if config.is_tls else "warning",
                subject=variable,
                text="does not name a file",
                remedy="set it to the path of a PEM file, not to its content",
            )


def _list_settings(environ: Mapping[str, str], config: OtlpConfig) -> Iterator[Finding]:
    known = {SDK_DISABLED_VARIABLE}
    for setting in settings.SETTINGS:
        known |= {*setting.variables("log"), *setting.variables("span")}
        variable, _ = setting.find(environ, config.signal)
        origin = f"from {variable}" if variable else "default"
        yield Finding(level="note", subject=setting.name, text=f"{_show(setting, environ, config)} ({origin})")
    others = sorted(name for name in environ if name.startswith("OTEL_") and name not in known)
    if others:
        yield Finding(level="note", subject="not used by the commands", text=", ".join(others))


def _show(setting: settings.Setting, environ: Mapping[str, str], config: OtlpConfig) -> str:
    """Returns the value in force without anything that may be a secret."""
    if setting is settings.ENDPOINT:
        return config.endpoint.to_text() if config.endpoint else setting.default_text
    if setting is settings.PROTOCOL:
        return config.protocol
    if setting is settings.HEADERS:
        headers = setting.resolve(environ, config.signal)
        return ", ".join(_show_header(*header) for header in headers) or setting.default_text
    variable, text = setting.find(environ, config.signal)
    if not variable or setting.find_warning(environ, config.signal):
        return setting.default_text
    if setting in _FILE_SETTINGS and not os.path.isfile(text):
        return "(hidden)"
    return text


def _show_header(name: str, value: str) -> str:
    # A token that ends in "=" looks like a name without a value.
    return f"{name}=(hidden)" if value.strip("=") else "(hidden)"


def _examine_mistakes(environ: Mapping[str, str], config: OtlpConfig) -> Iterator[Finding]:
    variable, _ = settings.ENDPOINT.find(environ, config.signal)
    if config.endpoint and re.search(r"/v1/(logs|traces)/+v1/(logs|traces)$", config.endpoint.path):
        yield Finding(
            level="problem",
            subject=variable,
            text="already ends in the path that otel-tbot adds to it",
            remedy=f"remove the path, or name the variable {settings.ENDPOINT.variables(config.signal)[0]}",
        )
    port = config.endpoint.port if config.endpoint else 0
    usual = {4318: "http/protobuf", 4317: "grpc"}.get(port, config.protocol)
    if usual != config.protocol:
        yield Finding(
            level="warning",
            subject=variable or settings.ENDPOINT.name,
            text=f"port {port} is usually for {usual}, but the protocol is {config.protocol}",
            remedy=f"set {settings.PROTOCOL.name}={usual}, or use the port of {config.protocol}",
        )
    proxies = sorted({name for name in _PROXIES if environ.get(name) or environ.get(name.lower())})
    if proxies:
        text = "set, but not used: events go directly to the endpoint"
        yield Finding(level="note", subject=", ".join(proxies), text=text)
    if settings.TIMEOUT.find(environ, config.signal)[1] and config.timeout_seconds * 1000 <= _FEW_MS:
        yield Finding(
            level="warning",
            subject=settings.TIMEOUT.name,
            text="is in milliseconds, and too short for a collector to respond",
            remedy="if you mean seconds, multiply by 1000",
        )
    if environ.get(_EXPORT_TIMEOUT_VARIABLE, "").isdigit() and int(environ[_EXPORT_TIMEOUT_VARIABLE]) >= _MANY_SECONDS:
        yield Finding(
            level="warning",
            subject=_EXPORT_TIMEOUT_VARIABLE,
            text="looks like milliseconds, as the specification says, but OpenTelemetry Python reads seconds",
            remedy="use seconds; only the exporter plug-ins read it",
        )


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
    if importlib.util.find_spec("prometheus_client") is None:
        text = "not installed; without it `otel-tbot bridge` has no /metrics: pip install 'otel-tbot[bridge]'"
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


def _examine_destination(environ: Mapping[str, str], config: OtlpConfig) -> Iterator[Finding]:
    """Tries the place that an event would go to."""
    if not is_granted(environ):
        text = "not tried, because telemetry is off; nothing was connected to or started"
        yield Finding(level="note", subject="collector", text=text)
    elif address := environ.get(ADDRESS_VARIABLE):
        text = "set: tbot reports there, so `otel-tbot run` starts no relay"
        yield Finding(level="note", subject="relay", text=text)
        yield _AddressTrial(address).run()
    elif config.endpoint:
        yield _try_relay(environ, config)
        yield _CollectorTrial(config).run()


def _try_relay(environ: Mapping[str, str], config: OtlpConfig) -> Finding:
    """Starts the relay that `run` would start, and asks it whether it could send; it sends nothing."""
    from otel_tbot.relay.probe import probe_relay

    result = probe_relay(environ, timeout_seconds=_RELAY_SECONDS)
    if isinstance(result, str):
        remedy = "correct this; until then `otel-tbot run` starts tbot without a relay, and its event is lost"
        return Finding(level="problem", subject="relay", text=f"cannot be used: {result}", remedy=remedy)
    if result > config.timeout_seconds / 2:
        limit = f"{config.timeout_seconds:g} s"
        text = f"needs more than half of the {limit} that a one-shot tbot waits, so events may be lost"
        remedy = f"raise {settings.TIMEOUT.name}, give it more CPU, or compile bytecode (--compile-bytecode)"
        return Finding(level="warning", subject="relay", text=text, remedy=remedy, seconds=result)
    return Finding(level="ok", subject="relay", text="starts, and could send an event", seconds=result)


class _Trial(ABC):
    """Tries something that may hang, in a thread, and returns one finding with its time."""

    timeout_seconds: float = _STEP_SECONDS

    def __init__(self, subject: str, target: str) -> None:
        self._subject = subject
        self._target = target
        self._began = time.monotonic()
        self._findings: list[Finding] = []

    def run(self) -> Finding:
        """Returns what was found; a problem if there is no result in time."""
        # A daemon thread, because nothing can interrupt the resolver of the C library.
        thread = threading.Thread(target=self._work, daemon=True, name="otel-tbot doctor")
        thread.start()
        thread.join(self.timeout_seconds)
        return self._findings[0] if self._findings else self.to_late_finding()

    def to_late_finding(self) -> Finding:
        """Returns the finding for a server that is too slow."""
        text = f"{self._target} does not respond in time"
        return self.to_finding("problem", text, "check that the right program listens there")

    def to_finding(self, level: Level, text: str, remedy: str = "") -> Finding:
        """Returns a finding with the time since the beginning."""
        seconds = time.monotonic() - self._began
        return Finding(level=level, subject=self._subject, text=text, remedy=remedy, seconds=seconds)

    def _work(self) -> None:
        self._findings.append(self.find())

    @abstractmethod
    def find(self) -> Finding:
        """Tries it; may block."""


class _AddressTrial(_Trial):
    """Calls tbot's procedure at the address that tbot reports to, with an empty request, which holds no event."""

    def __init__(self, address: str) -> None:
        try:
            self._endpoint: settings.Endpoint | None = settings.parse_endpoint(address)
        except ValueError:
            self._endpoint = None
        super().__init__(ADDRESS_VARIABLE, self._endpoint.to_text() if self._endpoint else "")

    def find(self) -> Finding:
        if self._endpoint is None or self._endpoint.scheme not in _CONNECTIONS:
            return self.to_finding("problem", "is not an http:// or https:// URL", "correct it; tbot needs a whole URL")
        try:
            status, body = self._call(self._endpoint)
        except TimeoutError:
            return self.to_late_finding()
        except (OSError, ValueError, http.client.HTTPException) as error:
            text = f"{self._target} does not respond: {_describe_error(error)}"
            return self.to_finding("problem", text, "check that the bridge or relay runs there")
        code = _read_code(body)
        if status == http.client.OK or code == "invalid_argument":
            # The request was understood, and rejected only because it holds no event.
            return self.to_finding("ok", f"{self._target} speaks tbot's protocol")
        text = f"{self._target} does not accept reports: HTTP status {status}{f', {code}' if code else ''}"
        return self.to_finding("problem", text, "check its path: a bridge with a path prefix serves no other")

    def _call(self, endpoint: settings.Endpoint) -> tuple[int, bytes]:
        from otel_tbot.tbot.report import PROCEDURE

        port = endpoint.port or None
        connection = _CONNECTIONS[endpoint.scheme](endpoint.host, port, timeout=self.timeout_seconds)
        try:
            headers = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
            connection.request("POST", endpoint.path.rstrip("/") + PROCEDURE, b"", headers)
            response = connection.getresponse()
            return response.status, response.read(4096)
        finally:
            connection.close()


_CONNECTIONS: Final[Mapping[str, type[http.client.HTTPConnection]]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


def _read_code(body: bytes) -> str:
    """Returns the code of a Connect error, "" for anything else. Pure."""
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return code if isinstance(code, str) and re.fullmatch("[a-z_]{1,32}", code) else ""


class _CollectorTrial(_Trial):
    """Sends an empty request with the code that sends events; if nothing responds, finds out why."""

    timeout_seconds = 2 * _STEP_SECONDS

    def __init__(self, config: OtlpConfig) -> None:
        super().__init__("collector", config.endpoint.to_text() if config.endpoint else "")
        self._config = config

    def find(self) -> Finding:
        from otel_tbot.otlp.client import OtlpClient

        client = OtlpClient(self._config)
        try:
            result = client.send(b"", deadline=time.monotonic() + _STEP_SECONDS)
        except OtelTbotError as error:
            return self.to_finding("problem", f"{self._target} cannot be tried: {error}", "correct the setting")
        finally:
            client.close()
        if result.outcome is Outcome.ACCEPTED:
            return self.to_finding("ok", f"{self._target} accepted an empty request, {result.status}")
        if result.outcome is Outcome.TIMED_OUT:
            text = f"{self._target} does not respond in time"
            return self.to_finding("problem", text, "check that a collector listens there, and its load")
        if result.outcome is Outcome.UNREACHABLE:
            reason, remedy = self._find_reason(result.status)
            return self.to_finding("problem", f"{self._target} cannot be reached: {reason}", remedy)
        if _EMPTY_REJECTED.fullmatch(result.status):
            text = f"{self._target} rejects an empty request ({result.status}): cannot tell whether events arrive"
            return self.to_finding("warning", text, "send one event with `otel-tbot emit`")
        remedy = next(
            (remedy for pattern, remedy in _STATUS_REMEDIES if re.search(pattern, result.status)),
            "check that an OTLP receiver for this protocol listens there",
        )
        return self.to_finding("problem", f"{self._target} rejects requests: {result.status}", remedy)

    def _find_reason(self, status: str) -> tuple[str, str]:
        """Connects, TLS included, and sends nothing; returns what failed, and a remedy."""
        try:
            self._connect()
        except (socket.gaierror, UnicodeError) as error:  # the second for a part of it that is empty or too long
            return f"the host name has no address ({_describe_error(error)})", "check the host in the endpoint"
        except ssl.SSLCertVerificationError as error:
            return _describe_error(error), _CERTIFICATE_REMEDIES.get(error.verify_code, _UNKNOWN_AUTHORITY_REMEDY)
        except ssl.SSLError as error:
            return f"TLS fails ({error.reason or type(error).__name__})", "check that TLS is spoken at this port"
        except (OSError, ValueError) as error:
            return _describe_error(error), "check that the collector listens there, and the firewalls on the path"
        reason = "it closes the connection, or speaks another protocol"
        return f"{reason}{f' ({status})' if status else ''}", "check protocol and port, and the log of the collector"

    def _connect(self) -> None:
        from otel_tbot.otlp.tls import build_context

        endpoint = self._config.endpoint
        if endpoint is None:
            return
        with socket.create_connection((endpoint.host, endpoint.port), _STEP_SECONDS) as connection:
            if self._config.is_tls:
                context = build_context(self._config)
                context.wrap_socket(connection, server_hostname=endpoint.server_name).close()


def _describe_error(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no response in time"
    return str(getattr(error, "strerror", None) or type(error).__name__)
