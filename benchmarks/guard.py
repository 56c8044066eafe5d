"""Measures `guard`: events per second through the collector with the guard and without it.

Four threads send requests of 100 events over OTLP/HTTP; the collector's exporter is debug, which only counts them.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from benchmarks.processes import COLLECTOR, interleave, read_processor_seconds
from benchmarks.table import Figure
from otel_tbot.event import TbotStart
from otel_tbot.otlp.encoding import encode_request
from tests.support.otelcol import Collector, KitCollector

EVENTS_PER_REQUEST, REQUESTS, ROUNDS, THREADS = 100, 400, 5, 4
_BARE = "{service: {pipelines: {logs/tbot: {processors: []}, traces/tbot: {processors: []}}}}"
_QUIET = """
exporters: {debug/tbot: {verbosity: basic}}
service:
  pipelines: {logs/tbot: {exporters: [debug/tbot]}, traces/tbot: {exporters: [debug/tbot]}}
"""


def to_body() -> bytes:
    """Returns a request with many valid events."""
    events = [(TbotStart(run_mode="daemon", version="18.4.1", join_type="iam"), 10**9)] * EVENTS_PER_REQUEST
    return bytes(encode_request(events, signal="log", is_local=True).SerializeToString())


def measure(folder: Path, body: bytes, *, is_guarded: bool) -> tuple[float, float]:
    """Returns events per second, and microseconds of the collector's processor time per event."""
    more = ["--config", f"yaml:{_QUIET}", *([] if is_guarded else ["--config", f"yaml:{_BARE}"])]
    with KitCollector(str(COLLECTOR), folder, "guard", "local", more=more) as collector:
        before, began = read_processor_seconds(collector.pid), time.monotonic()
        threads = [threading.Thread(target=_send, args=(f"{collector.url}/v1/logs", body)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, spent = time.monotonic() - began, read_processor_seconds(collector.pid) - before
    events = REQUESTS * EVENTS_PER_REQUEST
    return events / seconds, 1e6 * spent / events


def _send(url: str, body: bytes) -> None:
    with requests.Session() as session:
        session.headers["Content-Type"] = "application/x-protobuf"
        for _ in range(REQUESTS // THREADS):
            session.post(url, data=body, timeout=60).raise_for_status()


def measure_guard(_collector: Collector) -> list[Figure]:
    """Compares the collector with the guard and without it."""
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
        f"{ROUNDS} rounds of {REQUESTS * EVENTS_PER_REQUEST:,} events in requests of {EVENTS_PER_REQUEST}, four at a "
        "time; the exporter only counts them.",
    )
    for name in ("without", "with"):
        figure.add(f"{name} the guard: events per second", taken[f"{name}: rate"], "")
    for name in ("without", "with"):
        base = None if name == "without" else taken["without: spent"]
        figure.add(
            f"{name} the guard: the collector's processor time per event", taken[f"{name}: spent"], "us", base=base
        )
    return [figure]
