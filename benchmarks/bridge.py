"""Measures `bridge`, `servers` and `memory`: the cost of a report for a bridge, its server, and its memory."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import (
    BIN,
    PLAIN,
    REPORTER,
    Samples,
    interleave,
    load,
    read_memory_mib,
    read_processor_seconds,
    run_server,
)
from benchmarks.table import Figure
from otel_tbot.event import TbotStart
from otel_tbot.otlp.client import OtlpClient
from otel_tbot.otlp.config import resolve_config
from otel_tbot.otlp.encoding import encode_request
from otel_tbot.outcome import Outcome
from tests.support.otelcol import Collector

REPORTS, ROUNDS, CONNECTIONS = 20_000, 5, 64
PACED_REPORTS, PACED_SECONDS = 5_000, 5
MANY_REPORTS, FIRST_REPORTS = 1_000_000, 100_000
_MAX_SECONDS, _MAX_ABOVE_NOOP_SECONDS = 200e-6, 150e-6
_EMPTY = {
    "connectrpc": "an empty service by connectrpc, on uvicorn",
    "go": "an empty service by connect-go",
}

_BRIDGE = (BIN / "otel-tbot", "bridge", "--listen", "127.0.0.1:0")
_NOOP = (BIN / "python", "-m", "benchmarks.noop")
_UVICORN = ("--http", "httptools", "--loop", "asyncio")
_SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn, h11": ("uvicorn", "--http", "h11", "--loop", "asyncio"),
    "uvicorn, httptools": ("uvicorn", *_UVICORN),
    "uvicorn, httptools, uvloop": ("uvicorn", "--http", "httptools", "--loop", "uvloop"),
    "granian": ("granian", "--interface", "asginl", "--no-ws", "--http", "1", "--workers", "1"),
}

# Starts another server on a free port, and prints its address as our bridge does.
_SERVE = """
import os, socket, subprocess, sys, time
with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
process = subprocess.Popen([*sys.argv[1:], "--port", str(port), "--log-level", "warning"])
while process.poll() is None:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
print(f"listening on http://127.0.0.1:{port}", flush=True)
import signal
signal.signal(signal.SIGTERM, lambda *_: process.terminate())
process.wait()
"""


def _serve(application: str, server: tuple[str, ...], *more: str) -> tuple[Path | str, ...]:
    return BIN / "python", "-c", _SERVE, str(BIN / server[0]), *server[1:], *more, application


@contextmanager
def _measured(
    command: tuple[Path | str, ...], environ: Mapping[str, str], collector_pid: int = 0
) -> Iterator[Callable[[], Mapping[str, float]]]:
    """Runs a server; yields a function that measures one round of it, and the processor time of *collector_pid*."""
    with run_server(command, PLAIN | environ) as (url, pid):
        load(url, 2000)

        def measure() -> Mapping[str, float]:
            spent = [read_processor_seconds(process) for process in (pid, collector_pid) if process]
            totals = load(url, REPORTS)
            spent = [
                (read_processor_seconds(process) - before) / REPORTS
                for process, before in zip([process for process in (pid, collector_pid) if process], spent, strict=True)
            ]
            memory = read_memory_mib(pid)
            paced = load(url, PACED_REPORTS, "-over", f"{PACED_SECONDS}s")
            return {
                "processor": spent[0],
                "collector": spent[-1],
                "p99": totals["p99_ms"] / 1e3,
                "median": totals["median_ms"] / 1e3,
                "rate": totals["per_second"],
                "paced p99": paced["p99_ms"] / 1e3,
                "memory": memory,
            }

        yield measure


def _rounds(
    cases: Mapping[str, tuple[tuple[Path | str, ...], Mapping[str, str]]],
    *,
    collector_pid: int = 0,
    rounds: int = ROUNDS,
) -> dict[str, Samples]:
    """Measures rounds of each case; a new server is started for each, so that only one runs at a time."""

    def once(command: tuple[Path | str, ...], environ: Mapping[str, str]) -> Callable[[], Mapping[str, float]]:
        def measure() -> Mapping[str, float]:
            with _measured(command, environ, collector_pid) as take:
                return take()

        return measure

    return interleave({name: once(*case) for name, case in cases.items()}, rounds, is_warmed=False)


def measure_bridge(collector: Collector) -> list[Figure]:
    """Compares the bridge, in front of a collector, with services that do nothing."""
    pid = collector._process.pid  # noqa: SLF001  # the tests' own
    environ = collector.environ("http/protobuf", "log")
    taken = _rounds(
        {
            "connectrpc": (_serve("benchmarks.noop_connectrpc:app", ("uvicorn", *_UVICORN), "--lifespan", "off"), {}),
            "noop": (_NOOP, {}),
            "bridge": (_BRIDGE, environ),
            "two": (_serve("otel_tbot.bridge:app", ("uvicorn", *_UVICORN), "--workers", "2"), environ),
            "go": ((REPORTER, "serve"), {}),
        },
        collector_pid=pid,
    )
    export = _time_export(environ)
    figure = Figure(
        "7. The bridge",
        f"{ROUNDS} rounds of {REPORTS:,} reports over {CONNECTIONS} connections, as fast as they are answered, and of "
        f"{PACED_REPORTS:,} in {PACED_SECONDS} s; load generator, bridge and collector share {os.cpu_count()} cores, "
        "so no rate is that of a bridge alone. The empty services respond at once and send nothing. One export "
        "has 64 events, and nothing else runs.",
    )
    noop, ours = taken["noop: processor"], taken["bridge: processor"]
    most = min(noop.minimum + _MAX_ABOVE_NOOP_SECONDS, _MAX_SECONDS)
    figure.add("our service without delivery: processor time per report", noop, "us", scale=1e6)
    figure.add(
        "the bridge: processor time per report", ours, "us", scale=1e6, base=noop,
        goal=f"at most {most * 1e6:.0f} us", is_met=ours.minimum <= most,
    )  # fmt: skip
    for case, name in _EMPTY.items():
        figure.add(f"{name}: processor time per report", taken[f"{case}: processor"], "us", scale=1e6, base=noop)
    figure.add(
        "the collector behind the bridge: processor time per report", taken["bridge: collector"], "us", scale=1e6
    )
    figure.add("one export", export, "ms", scale=1e3)
    for part, pace in (
        ("p99", "as fast as possible"),
        ("paced p99", f"{PACED_REPORTS // PACED_SECONDS} per second"),
    ):
        limit = taken[f"connectrpc: {part}"].median + 2 * export.median
        figure.add(f"our service without delivery: 99th percentile, {pace}", taken[f"noop: {part}"], "ms", scale=1e3)
        figure.add(f"{_EMPTY['connectrpc']}: 99th percentile, {pace}", taken[f"connectrpc: {part}"], "ms", scale=1e3)
        figure.add(
            f"the bridge: 99th percentile, {pace}", taken[f"bridge: {part}"], "ms", scale=1e3,
            goal=f"median at most {limit * 1e3:.1f} ms", is_met=taken[f"bridge: {part}"].median <= limit,
        )  # fmt: skip
    for case, name in {
        "noop": "our service without delivery",
        **_EMPTY,
        "bridge": "the bridge",
        "two": "two workers of uvicorn",
    }.items():
        figure.add(f"{name}: reports per second", taken[f"{case}: rate"], "")
    figure.add("two workers of uvicorn: processor time per report", taken["two: processor"], "us", scale=1e6, base=ours)
    figure.add("the bridge: proportional set size", taken["bridge: memory"], "MiB")
    return [figure]


def _time_export(environ: Mapping[str, str]) -> Samples:
    """Times one export of as many events as there are connections, over an open connection."""
    batch = [(TbotStart(run_mode="daemon"), 0)] * CONNECTIONS
    body = encode_request(batch, signal="log", is_local=False).SerializeToString()
    client = OtlpClient(resolve_config(environ, signal="log"))

    def send() -> float:
        began = time.perf_counter()
        result = client.send(body, deadline=time.monotonic() + 10)
        if result.outcome is not Outcome.ACCEPTED:
            raise RuntimeError(result.status)
        return time.perf_counter() - began

    taken = interleave({"": send}, 100)[""]
    client.close()
    return taken


def measure_servers(_collector: Collector) -> list[Figure]:
    """Compares servers that could run the bridge's service, with a service that sends nothing."""
    cases: dict[str, tuple[tuple[Path | str, ...], Mapping[str, str]]] = {
        name: (_serve("benchmarks.noop:app", server, *(["--lifespan", "off"] if "uvicorn" in name else [])), {})
        for name, server in _SERVERS.items()
    }
    cases["the bridge's own"] = (_NOOP, {})
    taken = _rounds(cases, rounds=3)
    figure = Figure("The server under the bridge", f"3 rounds of {REPORTS:,} reports; the service sends nothing.")
    chosen = taken["the bridge's own: processor"]
    for name in cases:
        figure.add(f"{name}: processor time per report", taken[f"{name}: processor"], "us", scale=1e6, base=chosen)
    for name in cases:
        figure.add(f"{name}: proportional set size", taken[f"{name}: memory"], "MiB")
    return [figure]


def measure_memory(collector: Collector) -> list[Figure]:
    """Measures the bridge's memory after 100,000 and after 1,000,000 reports."""
    with run_server(_BRIDGE, PLAIN | collector.environ("http/protobuf", "log")) as (url, pid):
        sizes = []
        for count in (FIRST_REPORTS, MANY_REPORTS - FIRST_REPORTS):
            load(url, count)
            sizes.append(read_memory_mib(pid))
    figure = Figure("7. The bridge's memory", f"Proportional set size, {CONNECTIONS} connections, one run.")
    figure.add_value(f"after {FIRST_REPORTS:,} reports", f"{sizes[0]:.1f} MiB")
    figure.add_value(
        f"after {MANY_REPORTS:,} reports", f"{sizes[1]:.1f} MiB",
        goal="flat: at most 1.05 times", is_met=sizes[1] <= 1.05 * sizes[0],
    )  # fmt: skip
    return [figure]
