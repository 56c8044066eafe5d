"""OpenTelemetry's plug-ins: what a pipeline exports goes in, `tbot.start` alone comes out, made anew.

Registered as `tbot` in opentelemetry_logs_exporter and opentelemetry_traces_exporter, so that OTEL_LOGS_EXPORTER=tbot
and declarative configuration find them.
Source: OpenTelemetry specification, Logs SDK and Trace SDK ("Exporter"), Configuration ("otlp_http", "otlp_grpc").
"""

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypedDict, Unpack
from urllib.parse import quote

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_tbot import settings
from otel_tbot.consent import is_granted
from otel_tbot.deadline import run_within
from otel_tbot.errors import EventError, ExporterError
from otel_tbot.event import TbotStart
from otel_tbot.exporters import records as anonymity
from otel_tbot.otlp.client import OtlpSender, no_context
from otel_tbot.otlp.encoding import Event, load_encoder
from otel_tbot.outcome import Outcome

Record = ReadableLogRecord | ReadableSpan
Headers = Mapping[str, str] | Sequence[Mapping[str, str | None]]

CONFIG_FILE_VARIABLE: Final = "OTEL_CONFIG_FILE"
FLUSH_TIMEOUT_MS: Final = 30_000

_SELECTION_VARIABLES: Final = {"log": "OTEL_LOGS_EXPORTER", "span": "OTEL_TRACES_EXPORTER"}
_TLS_SETTINGS: Final = {
    "ca_file": settings.CERTIFICATE,
    "key_file": settings.CLIENT_KEY,
    "cert_file": settings.CLIENT_CERTIFICATE,
    "insecure": settings.INSECURE,
}
_MAX_TIMEOUT_MS: Final = settings.MAX_EXPORT_TIMEOUT_SECONDS * 1000
_TIMEOUT_RULE: Final = f"a whole number of milliseconds from 0 to {_MAX_TIMEOUT_MS}"
_FIRST_BACKOFF_SECONDS: Final = 1.0

logger = logging.getLogger("otel_tbot")


class OtlpArguments(TypedDict, total=False):
    """Where and how an exporter sends over OTLP, by the keys of declarative configuration's own OTLP exporters.

    `protocol` is http/protobuf or grpc; `endpoint` for http/protobuf the whole URL; `headers` a mapping, or a list of
    name and value; `headers_list` is "name=value,…"; `timeout` is in milliseconds, tries included (0: ten minutes);
    `tls` has ca_file, key_file, cert_file, insecure; `encoding` is protobuf.

    What is not given comes from OTEL_EXPORTER_OTLP_*, but not where OTEL_CONFIG_FILE is set, whose file stands for all
    variables.
    """

    protocol: str | None
    endpoint: str | None
    headers: Headers | None
    headers_list: str | None
    timeout: int | None
    compression: str | None
    tls: Mapping[str, object] | None
    encoding: str | None


class TbotLogRecordExporter(LogRecordExporter):
    """Exports `tbot.start` log records, anonymous, and drops all others.

    Around *exporter*, or, without one, over OTLP of its own by `OtlpArguments`. Telemetry off, no exporter is made, and
    one that is given gets nothing; what was off at the start stays off.

    Raises:
        ExporterError: naming every argument that breaks its rule.
    """

    def __init__(self, exporter: LogRecordExporter | None = None, **arguments: Unpack[OtlpArguments]) -> None:
        self._gate = _Gate("log", self, exporter, arguments)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """SUCCESS where every event in *batch* was accepted, or there was none; never raises."""
        return LogRecordExportResult.SUCCESS if self._gate.export(batch) else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = FLUSH_TIMEOUT_MS) -> bool:
        """Waits until no export is under way, *timeout_millis* at most; whether that came about."""
        return self._gate.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = FLUSH_TIMEOUT_MS) -> None:
        """Ends an export that waits to try again, waits for others *timeout_millis* at most; no more is exported."""
        self._gate.shutdown(timeout_millis)

    @property
    def dropped(self) -> int:
        """How many records were dropped so far, since they were no `tbot.start` or broke its rules."""
        return self._gate.dropped


class TbotSpanExporter(SpanExporter):
    """Exports `tbot.start` spans, anonymous, and drops all others; otherwise as `TbotLogRecordExporter`."""

    def __init__(self, exporter: SpanExporter | None = None, **arguments: Unpack[OtlpArguments]) -> None:
        self._gate = _Gate("span", self, exporter, arguments)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS where every event in *spans* was accepted, or there was none; never raises."""
        return SpanExportResult.SUCCESS if self._gate.export(spans) else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = FLUSH_TIMEOUT_MS) -> bool:
        """Waits until no export is under way, *timeout_millis* at most; whether that came about."""
        return self._gate.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = FLUSH_TIMEOUT_MS) -> None:
        """Ends an export that waits to try again, waits for others *timeout_millis* at most; no more is exported."""
        self._gate.shutdown(timeout_millis)

    @property
    def dropped(self) -> int:
        """How many spans were dropped so far, since they were no `tbot.start` or broke its rules."""
        return self._gate.dropped


def to_environ(signal: str, arguments: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that says what *arguments* (`OtlpArguments`), and *environ* below them, say. Pure.

    Raises:
        ExporterError: naming every argument that breaks its rule.
    """
    inherited = {} if environ.get(CONFIG_FILE_VARIABLE) else environ
    merged = {name: value for name, value in inherited.items() if name.startswith("OTEL_EXPORTER_OTLP_")}
    known = OtlpArguments.__annotations__
    faults = [(name, f"must be one of {', '.join(known)}") for name in arguments if name not in known]
    if arguments.get("encoding") not in (None, "protobuf"):
        faults.append(("encoding", "must be protobuf"))
    given: list[tuple[str, settings.Setting, object]] = [
        ("protocol", settings.PROTOCOL, arguments.get("protocol")),
        ("endpoint", settings.ENDPOINT, arguments.get("endpoint")),
        ("compression", settings.COMPRESSION, arguments.get("compression")),
        ("timeout", settings.EXPORT_TIMEOUT, _to_seconds(arguments.get("timeout"))),
    ]
    try:
        joined = _join_headers(arguments.get("headers"), arguments.get("headers_list"))
        given.append(("headers", settings.HEADERS, joined))
    except (AttributeError, KeyError, TypeError):
        faults.append(("headers", "must be a map, or a list of name and value"))
    tls = arguments.get("tls") or {}
    if isinstance(tls, Mapping) and not tls.keys() - _TLS_SETTINGS:
        given += [(f"tls.{key}", _TLS_SETTINGS[key], value) for key, value in tls.items()]
    else:
        faults.append(("tls", f"must be a map of {', '.join(_TLS_SETTINGS)}"))
    for name, setting, value in given:
        if value is None:
            continue
        written = str(value).lower() if isinstance(value, bool) else value
        try:
            setting.parse(written)  # type: ignore[arg-type]  # raises what is caught here
            merged[setting.variables(signal)[0]] = str(written)
        except (AttributeError, TypeError, ValueError):  # Python's words for a text that is none
            faults.append((name, f"must be {_TIMEOUT_RULE if name == 'timeout' else setting.rule}"))
    if faults:
        raise ExporterError(faults)
    return merged


def _to_seconds(timeout_ms: object) -> str | None:
    if timeout_ms is None:
        return None
    # 0 is no limit, in the schema's words; here it is one that nobody meets.
    return f"{(timeout_ms or _MAX_TIMEOUT_MS) / 1000:f}" if type(timeout_ms) is int else ""


def _join_headers(headers: object, headers_list: object) -> str | None:
    """Both forms of headers as a variable has them; raises what Python raises for a shape that is no such form."""
    if headers is None and headers_list is None:
        return None
    entries = [headers_list.strip()] if headers_list else []  # type: ignore[attr-defined]  # see above
    if isinstance(headers, Mapping):
        pairs = list(headers.items())
    else:
        pairs = [(pair["name"], pair.get("value")) for pair in headers or ()]  # type: ignore[attr-defined]  # see above
    # A value that is null is an empty one.
    entries += [f"{quote(name, safe='')}={quote(value or '', safe='')}" for name, value in pairs]
    return ",".join(entries)


class _Gate:
    """What both exporters do: consent, the allow-list, and the way out, for one signal."""

    def __init__(
        self,
        signal: str,
        owner: object,
        wrapped: LogRecordExporter | SpanExporter | None,
        arguments: Mapping[str, object],
    ) -> None:
        self._signal = signal
        self._owner = weakref.ref(owner)
        self._wrapped = wrapped
        self._environ = to_environ(signal, arguments, os.environ)
        self._timeout_seconds: float = settings.EXPORT_TIMEOUT.resolve(self._environ, signal)
        self._resource = anonymity.to_resource(is_local=True)
        self._encode = load_encoder(signal, is_local=True)
        self._is_on = is_granted(os.environ)
        self._has_looked_around = False
        self.dropped = 0
        self._said: set[str] = set()
        self.begin()
        _gates.add(self)
        if self._is_on:
            if wrapped is None:
                for fault in settings.find_warnings(self._environ, plugin_signal=signal):
                    logger.warning(fault)
            self._warn_of_selection()

    def begin(self, *, is_shut_down: bool = False) -> None:
        """Starts with nothing under way and no connection, at first and in a forked child, where both are another's."""
        self._state = threading.Condition()
        self._under_way = 0
        self._sending = threading.Lock()
        self._sender: OtlpSender | None = None
        self._is_shut_down = threading.Event()
        if is_shut_down:
            self._is_shut_down.set()

    def begin_in_child(self) -> None:
        """Starts anew after a fork; what was shut down stays so."""
        self.begin(is_shut_down=self._is_shut_down.is_set())

    def export(self, batch: Sequence[Record]) -> bool:
        if self._is_shut_down.is_set():
            self._say_once("shut down", "exporter `tbot`: shut down already; what comes now is dropped")
            return False
        if not (self._is_on and is_granted(os.environ)):
            return True
        events = [event for event in map(self._find_event, batch) if event is not None]
        if not events:
            return True
        self._warn_of_neighbours()
        with self._note_under_way():
            outcome = self._export_wrapped(events) if self._wrapped is not None else self._export_otlp(events)
        if outcome is not Outcome.ACCEPTED:
            logger.warning("exporter `tbot`: events not delivered: %d (%s)", len(events), outcome.value)
        return outcome is Outcome.ACCEPTED

    def force_flush(self, timeout_ms: float) -> bool:
        deadline = time.monotonic() + timeout_ms / 1000
        if not self._wait_for_idle(timeout_ms / 1000):
            return False
        if self._wrapped is None or not self._is_on:
            return True
        remaining_ms = max(int((deadline - time.monotonic()) * 1000), 0)
        # SpanExporter's own returns nothing where a subclass has none.
        return self._wrapped.force_flush(remaining_ms) is not False

    def shutdown(self, timeout_ms: float) -> None:
        if self._is_shut_down.is_set():
            return
        self._is_shut_down.set()
        self._wait_for_idle(timeout_ms / 1000)
        if self._wrapped is not None:
            self._wrapped.shutdown()
        elif self._sender is not None:
            self._sender.close()
        if self.dropped:
            logger.info("exporter `tbot`: dropped, since they were no tbot.start or broke its rules: %d", self.dropped)

    def _find_event(self, record: Record) -> tuple[TbotStart, int] | None:
        try:
            found = anonymity.find_event(record)
        except EventError as error:
            self._drop("invalid", f"exporter `tbot`: dropped a tbot.start that breaks a rule: {error}")
            return None
        if found is None:
            self._drop(
                "other", f"exporter `tbot`: only tbot.start leaves; other {self._signal}s are dropped and counted"
            )
        return found

    def _drop(self, kind: str, text: str) -> None:
        with self._state:
            self.dropped += 1
        self._say_once(kind, text)

    def _say_once(self, kind: str, text: str) -> None:
        with self._state:
            is_new = kind not in self._said
            self._said.add(kind)
        if is_new:
            logger.warning(text)

    def _export_wrapped(self, events: Sequence[Event]) -> Outcome:
        to_otel: Any = anonymity.to_span if self._signal == "span" else anonymity.to_log_record
        try:
            records = [to_otel(event, time_ns=time_ns, resource=self._resource) for event, time_ns in events]
            with no_context():
                result = self._wrapped.export(records)  # type: ignore[union-attr]  # asked by the caller
        except Exception as error:  # noqa: BLE001  # one exporter call: whatever it is, the host must not feel it
            self._say_once(type(error).__name__, f"exporter `tbot`: the exporter within raised {type(error).__name__}")
            return Outcome.UNREACHABLE
        is_accepted = result in (LogRecordExportResult.SUCCESS, SpanExportResult.SUCCESS)
        return Outcome.ACCEPTED if is_accepted else Outcome.REFUSED

    def _export_otlp(self, events: Sequence[Event]) -> Outcome:
        if not settings.has_endpoint(self._environ, self._signal):
            return Outcome.UNREACHABLE
        deadline = time.monotonic() + self._timeout_seconds
        # One at a time: a sender keeps the answer to its last batch.
        if not self._sending.acquire(timeout=self._timeout_seconds):
            return Outcome.TIMED_OUT
        try:
            outcome = run_within(deadline - time.monotonic(), lambda: self._try_until(deadline, events))
            if outcome is None:
                # Left behind with its thread, which still waits for its answer.
                self._sender = None
            return outcome or Outcome.TIMED_OUT
        finally:
            self._sending.release()

    def _try_until(self, deadline: float, events: Sequence[Event]) -> Outcome:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        try:
            sender = self._sender = self._sender or OtlpSender(
                self._environ, signal=self._signal, deadline_seconds=self._timeout_seconds
            )
            body = self._encode(events).SerializeToString()
            while True:
                outcome = sender.send(body, deadline_seconds=deadline - time.monotonic())
                # Spread, so that many who lost the same collector do not come back together.
                pause = max(sender.answer.retry_after_seconds, backoff_seconds * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
                if not sender.answer.is_retryable or time.monotonic() + pause > deadline:
                    return outcome
                if self._is_shut_down.wait(pause):
                    return outcome
                backoff_seconds *= 2
        except Exception as error:  # noqa: BLE001  # one exporter call: whatever it is, the host must not feel it
            self._say_once(type(error).__name__, f"exporter `tbot`: cannot export: {type(error).__name__}")
            return Outcome.UNREACHABLE

    @contextmanager
    def _note_under_way(self) -> Iterator[None]:
        with self._state:
            self._under_way += 1
        try:
            yield
        finally:
            with self._state:
                self._under_way -= 1
                self._state.notify_all()

    def _wait_for_idle(self, timeout_seconds: float) -> bool:
        with self._state:
            return self._state.wait_for(lambda: not self._under_way, timeout=max(timeout_seconds, 0))

    def _warn_of_selection(self) -> None:
        variable = _SELECTION_VARIABLES[self._signal]
        names = {name.strip() for name in os.environ.get(variable, "").split(",")} - {"", "none"}
        if "tbot" in names and len(names) > 1 and not os.environ.get(CONFIG_FILE_VARIABLE):
            self._say_once("neighbour", f"{variable}: {_NEIGHBOUR}")

    def _warn_of_neighbours(self) -> None:
        """Looks once whether the global provider, the one that can be seen, has others beside this exporter."""
        if self._has_looked_around:
            return
        self._has_looked_around = True
        exporters = _list_exporters(get_logger_provider() if self._signal == "log" else trace.get_tracer_provider())
        if len(exporters) > 1 and self._owner() in exporters:
            self._say_once("neighbour", f"exporter `tbot`: {_NEIGHBOUR}")


_NEIGHBOUR: Final = (
    "another exporter shares its provider, and sends tbot.start on the application's own resource; give `tbot` a "
    "provider of its own, or call otel_tbot.emit"
)


def _list_exporters(provider: object) -> list[object]:
    """The exporters of *provider*'s processors. The SDK has no public way to ask, so what it renames is not seen."""
    processors: Sequence[object] = ()
    for multi, inner in (
        ("_multi_log_record_processor", "_log_record_processors"),
        ("_active_span_processor", "_span_processors"),
    ):
        processors = processors or getattr(getattr(provider, multi, None), inner, ())
    found = [
        getattr(getattr(processor, "_batch_processor", processor), name, None)
        for processor in processors
        for name in ("_exporter", "span_exporter")
    ]
    return [exporter for exporter in found if exporter is not None]


_gates: "weakref.WeakSet[_Gate]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for gate in _gates:
        gate.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
