"""Measures figures `library` and `plugin`: the import, `emit` and the exporter plug-ins, next to OpenTelemetry's own.

`python -m benchmarks.library PART` measures one part inside a separate process and prints its values as JSON.
"""

import gc
import json
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.competitors import environment
from benchmarks.processes import BIN, CONSENT, PLAIN, ROOT, Samples, interleave, run_alone
from benchmarks.table import Figure
from tests.support.otelcol import Collector

ROUNDS, EMITS, EXPORTS = 60, 40, 60
BATCH = 512
_SCRIPT = ROOT / "benchmarks" / "plain_sdk.py"
_EMIT = "import otel_tbot; otel_tbot.emit(otel_tbot.TbotStart(run_mode='one-shot'), deadline_seconds=60)"


def measure_library(collector: Collector) -> list[Figure]:
    """`import otel_tbot`, `emit` off, and `emit` on next to a hand-written pipeline of the SDK."""
    on = PLAIN | CONSENT | collector.environ("http/protobuf", "log")
    # With -P the installed package is imported, not the checkout in the working directory.
    python = (environment("pip") / "bin" / "python", "-P")
    taken = interleave(
        {
            "bare": lambda: run_alone((*python, "-c", "pass"), PLAIN).seconds,
            "import": lambda: run_alone((*python, "-c", "import otel_tbot"), PLAIN).seconds,
        },
        ROUNDS,
    )
    scripts = interleave(
        {
            "plain": lambda: run_alone((*python, _SCRIPT, "http/protobuf"), on).seconds,
            "emit": lambda: run_alone((*python, "-c", _EMIT), on).seconds,
        },
        ROUNDS // 3,
    )
    off, warm = _measure_inside("off", PLAIN), _measure_inside("emit", on)
    figure = Figure(
        "5. The library",
        f"{ROUNDS} starts of an interpreter ({ROUNDS // 3} of one that sends), {EMITS} events within one process.",
    )
    figure.add("a bare interpreter, start to end", taken["bare"], "ms", scale=1e3)
    figure.add("`import otel_tbot`", taken["import"], "ms", scale=1e3, base=taken["bare"], at_most=1.1)
    figure.add(
        "`emit` off, a call", off["off"], "us", scale=1e6,
        goal="at most 2 us", is_met=off["off"].minimum <= 2e-6,
    )  # fmt: skip
    figure.add("a pipeline of the SDK for one record, built, sent and shut down", warm["plain"], "ms", scale=1e3)
    figure.add("`emit` on", warm["emit"], "ms", scale=1e3, base=warm["plain"], at_most=1.2)
    figure.add("the same as a whole script: the SDK", scripts["plain"], "ms", scale=1e3)
    figure.add(
        "the same as a whole script: `emit`", scripts["emit"], "ms", scale=1e3, base=scripts["plain"], at_most=1.2
    )
    return [figure]


def measure_plugin(collector: Collector) -> list[Figure]:
    """Batches of 512 through the plug-in, and through OpenTelemetry's own OTLP exporter, which it wraps."""
    environ = PLAIN | CONSENT | collector.environ("http/protobuf", "log")
    taken = _measure_inside("plugin", environ)
    figure = Figure(
        f"6. The exporter plug-in: a record, in batches of {BATCH}",
        f"{EXPORTS} batches each, http/protobuf, processor time and wall time of one process; the collector's is not "
        "in the former. The plug-in filters and rebuilds each record, and hands it to OpenTelemetry's OTLP exporter.",
    )
    for signal in ("log", "span"):
        foreign = taken[f"{signal}, foreign: processor"]
        figure.add(
            f"`tbot`, another {signal}, which it drops, processor time", foreign, "us", scale=1e6,
            goal="at most 1 us", is_met=foreign.minimum <= 1e-6,
        )  # fmt: skip
        for part, name in (("processor", "processor time"), ("wall", "wall time")):
            bare = taken[f"{signal}, bare: {part}"]
            figure.add(f"OpenTelemetry's OTLP exporter, {signal}, {name}", bare, "us", scale=1e6)
            ours = taken[f"{signal}, plug-in: {part}"]
            figure.add(f"`tbot`, {signal}, {name}", ours, "us", scale=1e6, base=bare, at_most=1.5)
    return [figure]


def _measure_inside(part: str, environ: Mapping[str, str]) -> dict[str, Samples]:
    command = [BIN / "python", "-m", "benchmarks.library", part]
    finished = subprocess.run(
        command, env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    return {name: Samples(values) for name, values in json.loads(finished.stdout).items()}


def _time_off() -> dict[str, Samples]:
    from otel_tbot import TbotStart, emit

    number = 20_000
    event = TbotStart(run_mode="daemon")
    timer = timeit.Timer("emit(event)", globals={"emit": emit, "event": event})
    return {"off": Samples([seconds / number for seconds in timer.repeat(20, number)])}


def _time_emit() -> dict[str, Samples]:
    from benchmarks import plain_sdk
    from otel_tbot import Outcome, TbotStart, emit

    def emit_one() -> float:
        began = time.perf_counter()
        outcome = emit(TbotStart(run_mode="one-shot", version="18.4.1", join_type="token"), deadline_seconds=60)
        seconds = time.perf_counter() - began
        if outcome is not Outcome.ACCEPTED:
            raise RuntimeError(outcome.value)
        return seconds

    def send_plainly() -> float:
        began = time.perf_counter()
        plain_sdk.send("http/protobuf")
        return time.perf_counter() - began

    return interleave({"plain": send_plainly, "emit": emit_one}, EMITS)


def _time_plugin() -> dict[str, Samples]:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from otel_tbot import TbotLogRecordExporter, TbotSpanExporter

    cases: dict[str, Callable[[], Mapping[str, float]]] = {}
    for signal, (batch, foreign), bare, plugin in (
        ("log", _record_logs(), OTLPLogExporter, TbotLogRecordExporter),
        ("span", _record_spans(), OTLPSpanExporter, TbotSpanExporter),
    ):
        cases[f"{signal}, bare"] = _export(bare(), batch)
        cases[f"{signal}, plug-in"] = _export(plugin(), batch)
        cases[f"{signal}, foreign"] = _export(plugin(), foreign)
    return interleave(cases, EXPORTS)


def _make_attributes() -> list[dict[str, str | int]]:
    from otel_tbot import TbotStart

    events = [
        TbotStart(run_mode="daemon", version="18.4.1", join_type="kubernetes", destinations_other=number % 4)
        for number in range(BATCH)
    ]
    return [event.attributes() for event in events]


def _record_logs() -> tuple[Sequence[Any], Sequence[Any]]:
    """Returns a batch of events and one of other log records, as a provider hands them to an exporter."""
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    memory, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    for attributes in _make_attributes():
        provider.get_logger("bench").emit(LogRecord(event_name="tbot.start", body="tbot.start", attributes=attributes))
    for number in range(BATCH):
        provider.get_logger("bench").emit(LogRecord(body=f"request {number}", attributes={"http.route": "/"}))
    recorded = memory.get_finished_logs()
    return recorded[:BATCH], recorded[BATCH:]


def _record_spans() -> tuple[Sequence[Any], Sequence[Any]]:
    """Returns a batch of events and one of other spans, as `_record_logs` does."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for attributes in _make_attributes():
        provider.get_tracer("bench").start_span("tbot.start", attributes=attributes).end()
    for _ in range(BATCH):
        provider.get_tracer("bench").start_span("GET /", attributes={"http.route": "/"}).end()
    recorded = memory.get_finished_spans()
    return recorded[:BATCH], recorded[BATCH:]


def _export(exporter: Any, batch: Sequence[Any]) -> Callable[[], Mapping[str, float]]:
    def measure() -> Mapping[str, float]:
        gc.collect()
        began, spent = time.perf_counter(), time.process_time()
        result = exporter.export(batch)
        taken = {"processor": time.process_time() - spent, "wall": time.perf_counter() - began}
        if result.name != "SUCCESS":
            raise RuntimeError(result.name)
        return {name: seconds / BATCH for name, seconds in taken.items()}

    return measure


if __name__ == "__main__":
    os.environ.setdefault("OTEL_METRICS_EXPORTER", "none")
    measured = {"off": _time_off, "emit": _time_emit, "plugin": _time_plugin}[sys.argv[1]]()
    print(json.dumps({name: samples.values for name, samples in measured.items()}))
