"""Runs an application that records one event and ends: `python -m tests.support.endings ENDING EXPORTER ...`.

EXPORTER is `tbot`, or `otlp` for OpenTelemetry's own exporter in its place. The application prints the monotonic time
at which it records the event; `run_ending` measures from there to the end of the application.
"""

import atexit
import os
import subprocess
import sys
import threading
import time

from tests.support.checkout import ROOT
from tests.support.processes import MEASURED

ENDINGS = ("last statement", "atexit", "__del__", "daemon thread", "forked child")


def main(ending: str, exporter: str, signal: str, protocol: str, processor: str, url: str) -> None:
    """Records one `tbot.start` at *ending*, in a pipeline that was built at the start."""
    # Shut down by its own handler at exit, a provider would drop what a `__del__` records after it.
    pipeline = _build_pipeline(exporter, signal, protocol, processor, url, shutdown_on_exit=ending != "__del__")
    record = _Recorder(signal, *pipeline)
    if ending == "last statement":
        record()
    elif ending == "atexit":
        # Registered after the provider's own handler, so that it runs before that.
        atexit.register(record)
    elif ending == "__del__":
        # What a module still holds is deleted after all handlers have run.
        sys.modules["tests.support.checkout"].held = _RecordsWhenDeleted(record)  # type: ignore[attr-defined]
    elif ending == "daemon thread":
        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        record.is_done.wait()
    else:
        process_id = os.fork()
        if process_id == 0:
            record()
            return
        _, status = os.waitpid(process_id, 0)
        # The parent records no event.
        sys.exit(os.waitstatus_to_exitcode(status))


class _Recorder:
    """Records one event when called."""

    def __init__(self, signal: str, provider: object, attributes: dict[str, str | int]) -> None:
        from opentelemetry._logs import LogRecord

        self._provider = provider
        self._attributes = attributes
        self._record = LogRecord(event_name="tbot.start", attributes=attributes) if signal == "log" else None
        self.is_done = threading.Event()

    def __call__(self) -> None:
        os.write(sys.stdout.fileno(), f"{time.monotonic()}\n".encode())
        if self._record is not None:
            self._provider.get_logger("x").emit(self._record)  # type: ignore[attr-defined]
        else:
            self._provider.get_tracer("x").start_span("tbot.start", attributes=self._attributes).end()  # type: ignore[attr-defined]
        self.is_done.set()


class _RecordsWhenDeleted:
    """Records an event in its `__del__`."""

    def __init__(self, record: _Recorder) -> None:
        self._record = record

    def __del__(self) -> None:
        self._record()


def _build_pipeline(
    exporter: str, signal: str, protocol: str, processor: str, url: str, *, shutdown_on_exit: bool
) -> tuple[object, dict[str, str | int]]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    from otel_tbot import TbotLogRecordExporter, TbotSpanExporter, TbotStart

    package = "grpc" if protocol == "grpc" else "http"
    module = __import__(
        f"opentelemetry.exporter.otlp.proto.{package}.{'_log' if signal == 'log' else 'trace'}_exporter",
        fromlist=["*"],
    )
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    is_batch = processor == "batch"
    if signal == "log":
        build = TbotLogRecordExporter if exporter == "tbot" else module.OTLPLogExporter
        provider = LoggerProvider(shutdown_on_exit=shutdown_on_exit)
        provider.add_log_record_processor((BatchLogRecordProcessor if is_batch else SimpleLogRecordProcessor)(build()))
    else:
        build = TbotSpanExporter if exporter == "tbot" else module.OTLPSpanExporter
        provider = TracerProvider(shutdown_on_exit=shutdown_on_exit)
        provider.add_span_processor((BatchSpanProcessor if is_batch else SimpleSpanProcessor)(build()))
    return provider, TbotStart(run_mode="daemon").attributes()


def run_ending(ending: str, exporter: str, *, signal: str, protocol: str, processor: str, url: str) -> float:
    """Runs the application to its end, and returns the seconds from the record to the end."""
    command = [sys.executable, "-m", "tests.support.endings", ending, exporter, signal, protocol, processor, url]
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", **MEASURED}
    finished = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=120)
    return time.monotonic() - float(finished.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
