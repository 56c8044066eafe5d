"""Figure `guard`: events a second through the collector with the guard and without, side by side.

Requests of 100 events over OTLP/HTTP from four threads; the exporter is debug, which only counts.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from benchmarks.processes import COLLECTOR, interleave, read_processor_seconds
from benchmarks.table import Figure
from tests.collector.test_guard import an_event
from tests.support.otelcol import Collector, KitCollector

EVENTS_A_REQUEST, REQUESTS, ROUNDS, THREADS = 100, 400, 5, 4
_BARE = "{service: {pipelines: {logs/tbot: {processors: []}, traces/tbot: {processors: []}}}}"
_QUIET = """
exporters: {debug/tbot: {verbosity: basic}}
service:
  pipelines: {logs/tbot: {exporters: [debug/tbot]}, traces/tbot: {exporters: [debug/tbot]}}
"""


def to_body() -> bytes:
    """A request with many honest events."""
    request, _ = an_event("log")
    records = request.resource_logs[0].scope_logs[0].log_records
    for _ in range(EVENTS_A_REQUEST - 1):
        records.add().CopyFrom(records[0])
    return bytes(request.SerializeToString())


def measure(folder: Path, body: bytes, *, is_guarded: bool) -> tuple[float, float]:
    """Events a second, and microseconds of the collector's processor time an event."""
    more = ["--config", f"yaml:{_QUIET}", *([] if is_guarded else ["--config", f"yaml:{_BARE}"])]
    with KitCollector(str(COLLECTOR), folder, "guard", "local", more=more) as collector:
        before, began = read_processor_seconds(collector.pid), time.monotonic()
        threads = [threading.Thread(target=_send, args=(f"{collector.url}/v1/logs", body)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, spent = time.monotonic() - began, read_processor_seconds(collector.pid) - before
    events = REQUESTS * EVENTS_A_REQUEST
    return events / seconds, 1e6 * spent / events


def _send(url: str, body: bytes) -> None:
    with requests.Session() as session:
        session.headers["Content-Type"] = "application/x-protobuf"
        for _ in range(REQUESTS // THREADS):
            session.post(url, data=body, timeout=60).raise_for_status()


def measure_guard(_collector: Collector) -> list[Figure]:
    """The collector with the guard, beside itself without."""
    body = to_body()
    with TemporaryDirectory() as folder:

        def once(*, is_guarded: bool) -> Mapping[str, float]:
            rate, spent = measure(Path(folder), body, is_guarded=is_guarded)
            return {"rate": rate, "spent": spent}

        taken = interleave(
            {"without": lambda: once(is_guarded=False), "with": lambda: once(is_guarded=True)}, ROUNDS, is_warmed=False
        )
    figure = Figure(
        "8. The guard",
        f"{ROUNDS} rounds of {REQUESTS * EVENTS_A_REQUEST:,} events in requests of {EVENTS_A_REQUEST}, four at a time; "
        "the exporter only counts.",
    )
    for name in ("without", "with"):
        figure.add(f"{name} the guard: events a second", taken[f"{name}: rate"], "")
    for name in ("without", "with"):
        base = None if name == "without" else taken["without: spent"]
        figure.add(
            f"{name} the guard: the collector's processor time an event", taken[f"{name}: spent"], "us", base=base
        )
    return [figure]
