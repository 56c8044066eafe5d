"""Exports `tbot.start` from pipelines of OpenTelemetry's SDK, anonymously, and drops every other record.

Registered as `tbot` in opentelemetry_logs_exporter and opentelemetry_traces_exporter, for OTEL_LOGS_EXPORTER=tbot and
for declarative configuration. Transport is left to OpenTelemetry's own OTLP exporter, or to the exporter that is given.
Source: OpenTelemetry specification, Logs SDK and Trace SDK ("Exporter").
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Unpack

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    attach,
    detach,
)
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_tbot import settings
from otel_tbot.consent import is_granted
from otel_tbot.errors import EventError
from otel_tbot.exporters.otlp_exporter import OtlpArguments, build_exporter, check_arguments
from otel_tbot.exporters.records import find_event, to_log_record, to_resource, to_span
from otel_tbot.otlp.encoding import TimedEvent

CONFIG_FILE_VARIABLE: Final = "OTEL_CONFIG_FILE"
FLUSH_TIMEOUT_MS: Final = 30_000

_SELECTION_VARIABLES: Final = {"log": "OTEL_LOGS_EXPORTER", "span": "OTEL_TRACES_EXPORTER"}
_NEIGHBOUR: Final = (
    "another exporter shares its provider, and sends tbot.start on the application's own resource; give `tbot` a "
    "provider that has no other exporter, or call otel_tbot.emit"
)

# Hides the application's trace and baggage, and the request from instrumentation of HTTP and gRPC.
_SUPPRESSED: Final = Context({_SUPPRESS_INSTRUMENTATION_KEY: True, _SUPPRESS_HTTP_INSTRUMENTATION_KEY: True})

logger = logging.getLogger("otel_tbot")


class _Filter:
    """Does what both exporters do, for one signal: asks for consent, filters, anonymises, hands on."""

    _signal: str

    def __init__(self, exporter: Any, arguments: Mapping[str, object]) -> None:
        check_arguments(arguments)
        self._given = exporter
        self._arguments = arguments
        self._resource = to_resource(is_local=True)
        self._is_on = is_granted(os.environ)
        self._is_shut_down = False
        self._has_looked_around = False
        self._dropped = 0
        self._warned: set[str] = set()
        self._pid = 0
        self._reset_after_fork()
        if self._is_on:
            self._warn_of_selection()
            if exporter is None:
                self._exporter = self._build()

    def _reset_after_fork(self) -> None:
        """Starts with nothing in flight and no connection in a new process, which can use neither of its parent's."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._idle = threading.Condition()
            self._in_flight = 0
            self._exporter = self._given

    @property
    def dropped(self) -> int:
        """How many records were dropped so far, because they are not `tbot.start` or break its rules."""
        return self._dropped

    def force_flush(self, timeout_millis: int = FLUSH_TIMEOUT_MS) -> bool:
        """Waits *timeout_millis* at most until no export is in flight; returns whether that happened."""
        self._reset_after_fork()
        with self._idle:
            is_idle = self._idle.wait_for(lambda: not self._in_flight, timeout=max(timeout_millis / 1000, 0))
        if not (is_idle and self._is_on) or self._exporter is None:
            return is_idle
        # SpanExporter's own method returns None in a subclass that has none.
        return self._exporter.force_flush(timeout_millis) is not False

    def shutdown(self, timeout_millis: float = FLUSH_TIMEOUT_MS) -> None:
        """Shuts down the exporter that events are handed to, and waits *timeout_millis* at most for what is in flight.

        OpenTelemetry's exporters then stop waiting to try again. Nothing more is exported.
        """
        self._reset_after_fork()
        if self._is_shut_down:
            return
        self._is_shut_down = True
        if self._exporter is not None:
            self._exporter.shutdown()
        with self._idle:
            self._idle.wait_for(lambda: not self._in_flight, timeout=max(timeout_millis / 1000, 0))
        if self._dropped:
            logger.info("exporter `tbot`: records dropped, not tbot.start or against its rules: %d", self._dropped)

    def _export(self, batch: Sequence[Any]) -> bool:
        """Returns whether every event in *batch* was handed on with success, or none was to be; raises nothing."""
        self._reset_after_fork()
        if self._is_shut_down:
            self._warn_once("shut down", "exporter `tbot`: already shut down; what is recorded now is dropped")
            return False
        if not (self._is_on and is_granted(os.environ)):
            return True
        events = self._find_events(batch)
        if not events:
            return True
        self._warn_of_neighbours()
        with self._idle:
            self._in_flight += 1
        try:
            is_exported = self._hand_on(events)
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()
        if not is_exported:
            logger.warning("exporter `tbot`: events not delivered: %d", len(events))
        return is_exported

    def _find_events(self, batch: Sequence[Any]) -> list[TimedEvent]:
        events = []
        for record in batch:
            try:
                event = find_event(record)
            except EventError as error:
                self._warn_once("invalid", f"exporter `tbot`: dropped a tbot.start that breaks a rule: {error}")
                continue
            if event is not None:
                events.append(event)
            elif "other" not in self._warned:
                self._warn_once(
                    "other", f"exporter `tbot`: only tbot.start leaves; other {self._signal}s are dropped and counted"
                )
        with self._idle:
            self._dropped += len(batch) - len(events)
        return events

    def _hand_on(self, events: Sequence[TimedEvent]) -> bool:
        to_otel: Any = to_span if self._signal == "span" else to_log_record
        records = [to_otel(event, time_ns=time_ns, resource=self._resource) for event, time_ns in events]
        token = attach(_SUPPRESSED)
        try:
            if self._exporter is None:
                self._exporter = self._build()
            result = self._exporter and self._exporter.export(records)
        except Exception as error:  # noqa: BLE001  # one exporter call: the host must not notice, whatever it raises
            # By its class alone: its text can repeat a setting.
            name = type(error).__name__
            self._warn_once(name, f"exporter `tbot`: the exporter that it hands events to raised {name}")
            return False
        finally:
            detach(token)
        return result in (LogRecordExportResult.SUCCESS, SpanExportResult.SUCCESS)

    def _build(self) -> Any:
        """Returns OpenTelemetry's OTLP exporter; None, after a warning, if a setting keeps it from being built."""
        for setting in (settings.PROTOCOL, settings.COMPRESSION):
            if warning := setting.find_warning(os.environ, self._signal):
                self._warn_once(setting.name, warning)
        try:
            return build_exporter(self._signal, self._arguments, os.environ)
        except Exception as error:  # noqa: BLE001  # a setting must not keep the host from starting
            name = type(error).__name__
            self._warn_once(
                f"build {name}",
                f"exporter `tbot`: cannot build OpenTelemetry's OTLP exporter ({name}), so nothing is sent; "
                "check OTEL_EXPORTER_OTLP_* and the exporter's arguments",
            )
            return None

    def _warn_once(self, kind: str, text: str) -> None:
        with self._idle:
            is_new = kind not in self._warned
            self._warned.add(kind)
        if is_new:
            logger.warning(text)

    def _warn_of_selection(self) -> None:
        variable = _SELECTION_VARIABLES[self._signal]
        names = {name.strip() for name in os.environ.get(variable, "").split(",")} - {"", "none"}
        if "tbot" in names and len(names) > 1 and not os.environ.get(CONFIG_FILE_VARIABLE):
            self._warn_once("neighbour", f"{variable}: {_NEIGHBOUR}")

    def _warn_of_neighbours(self) -> None:
        """Looks once whether the global provider, the only one that can be found, has other exporters too."""
        if self._has_looked_around:
            return
        self._has_looked_around = True
        exporters = _list_exporters(get_logger_provider() if self._signal == "log" else trace.get_tracer_provider())
        if len(exporters) > 1 and self in exporters:
            self._warn_once("neighbour", f"exporter `tbot`: {_NEIGHBOUR}")


class TbotLogRecordExporter(_Filter, LogRecordExporter):
    """Exports `tbot.start` log records, anonymous, and drops all others.

    Hands them to *exporter* or, without one, to OpenTelemetry's OTLP exporter, configured by OTEL_EXPORTER_OTLP_* and
    `OtlpArguments`. With telemetry off that one is not built, and a given one gets nothing; what is off when this
    exporter is built stays off.

    Raises:
        ExporterError: naming every argument that breaks its rule.
    """

    _signal = "log"

    def __init__(self, exporter: LogRecordExporter | None = None, **arguments: Unpack[OtlpArguments]) -> None:
        super().__init__(exporter, arguments)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Returns SUCCESS if every event in *batch* was exported, or it holds no event; never raises."""
        return LogRecordExportResult.SUCCESS if self._export(batch) else LogRecordExportResult.FAILURE


class TbotSpanExporter(_Filter, SpanExporter):
    """Exports `tbot.start` spans, anonymous, and drops all others; otherwise as `TbotLogRecordExporter`."""

    _signal = "span"

    def __init__(self, exporter: SpanExporter | None = None, **arguments: Unpack[OtlpArguments]) -> None:
        super().__init__(exporter, arguments)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Returns SUCCESS if every event in *spans* was exported, or it holds no event; never raises."""
        return SpanExportResult.SUCCESS if self._export(spans) else SpanExportResult.FAILURE


def _list_exporters(provider: object) -> list[object]:
    """Returns the exporters of *provider*'s processors; none if the SDK, which has no public way, renames its own."""
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
