"""`python -m benchmarks.guard`: events a second through the collector with the guard and without, side by side.

Requests of 100 events over OTLP/HTTP from four threads; the exporter is debug, which only counts.
"""

import statistics
import tempfile
import threading
import time
from pathlib import Path

import requests

from benchmarks.servers import ROOT, read_cpu_seconds
from tests.collector.otelcol import KitCollector
from tests.collector.test_guard import an_event

EVENTS_A_REQUEST, REQUESTS, ROUNDS, THREADS = 100, 400, 3, 4
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
    program = str(ROOT / "build" / "collector" / "otelcol")
    with KitCollector(program, folder, "guard", "local", more=more) as collector:
        before, began = read_cpu_seconds(collector.pid), time.monotonic()
        threads = [threading.Thread(target=_send, args=(f"{collector.url}/v1/logs", body)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, spent = time.monotonic() - began, read_cpu_seconds(collector.pid) - before
    events = REQUESTS * EVENTS_A_REQUEST
    return events / seconds, 1e6 * spent / events


def _send(url: str, body: bytes) -> None:
    with requests.Session() as session:
        session.headers["Content-Type"] = "application/x-protobuf"
        for _ in range(REQUESTS // THREADS):
            session.post(url, data=body, timeout=60).raise_for_status()


def main() -> None:
    """Prints a table: median of the rounds."""
    body = to_body()
    measured: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for is_guarded, rounds in measured.items():
                rounds.append(measure(Path(folder), body, is_guarded=is_guarded))
    print("| collector | events a second | processor time an event, µs |")
    print("| --- | --- | --- |")
    for is_guarded, rounds in measured.items():
        rate, spent = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"| {'with' if is_guarded else 'without'} the guard | {rate:.0f} | {spent:.1f} |")


if __name__ == "__main__":
    main()
