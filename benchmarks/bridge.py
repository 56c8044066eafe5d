"""Figures `bridge`, `servers` and `memory`: what a report costs a bridge, under which server, and for how long."""

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
    serving,
)
from benchmarks.table import Figure
from otel_tbot.event import TbotStart
from otel_tbot.otlp.client import OtlpSender
from otel_tbot.otlp.encoding import load_encoder
from otel_tbot.outcome import Outcome
from tests.support.otelcol import Collector

REPORTS, ROUNDS, CONNECTIONS = 20_000, 5, 64
PACED_REPORTS, PACED_SECONDS = 5_000, 5
MANY_REPORTS, FIRST_REPORTS = 1_000_000, 100_000
_MOST_ABOVE_NOOP = 150e-6
_EMPTY = {
    "connectrpc": "an empty service by connectrpc, on the same server",
    "go": "an empty service by connect-go",
}

_BRIDGE = (BIN / "otel-tbot", "bridge", "--listen", "127.0.0.1:0")
_UVICORN = ("--http", "httptools", "--loop", "asyncio")
_SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn, h11": ("uvicorn", "--http", "h11", "--loop", "asyncio"),
    "uvicorn, httptools": ("uvicorn", *_UVICORN),
    "uvicorn, httptools, uvloop": ("uvicorn", "--http", "httptools", "--loop", "uvloop"),
    "granian": ("granian", "--interface", "asginl", "--no-ws", "--http", "1", "--workers", "1"),
}

# A server of somebody else's on a free port, which says where it listens as ours does.
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
    command: tuple[Path | str, ...], environ: Mapping[str, str], beside: int = 0
) -> Iterator[Callable[[], Mapping[str, float]]]:
    """A server, and what takes one round's values of it; `beside` is the processor time of the process *beside*."""
    with serving(command, PLAIN | environ) as (url, pid):
        load(url, 2000)

        def measure() -> Mapping[str, float]:
            spent = [read_processor_seconds(process) for process in (pid, beside) if process]
            totals = load(url, REPORTS)
            spent = [
                (read_processor_seconds(process) - before) / REPORTS
                for process, before in zip([process for process in (pid, beside) if process], spent, strict=True)
            ]
            memory = read_memory_mib(pid)
            paced = load(url, PACED_REPORTS, "-over", f"{PACED_SECONDS}s")
            return {
                "processor": spent[0],
                "beside": spent[-1],
                "p99": totals["p99_ms"] / 1e3,
                "median": totals["median_ms"] / 1e3,
                "rate": totals["per_second"],
                "paced p99": paced["p99_ms"] / 1e3,
                "memory": memory,
            }

        yield measure


def _rounds(
    cases: Mapping[str, tuple[tuple[Path | str, ...], Mapping[str, str]]], *, beside: int = 0, rounds: int = ROUNDS
) -> dict[str, Samples]:
    """Rounds of each case, its server started anew for each, so that one runs at a time."""

    def once(command: tuple[Path | str, ...], environ: Mapping[str, str]) -> Callable[[], Mapping[str, float]]:
        def measure() -> Mapping[str, float]:
            with _measured(command, environ, beside) as take:
                return take()

        return measure

    return interleave({name: once(*case) for name, case in cases.items()}, rounds, is_warmed=False)


def measure_bridge(collector: Collector) -> list[Figure]:
    """The bridge in front of a collector, beside empty services."""
    pid = collector._process.pid  # noqa: SLF001  # the tests' own
    environ = collector.environ("http/protobuf", "log")
    taken = _rounds(
        {
            "connectrpc": (_serve("benchmarks.noop_connectrpc:app", ("uvicorn", *_UVICORN), "--lifespan", "off"), {}),
            "noop": (_serve("benchmarks.noop:app", ("uvicorn", *_UVICORN), "--lifespan", "off"), {}),
            "bridge": (_BRIDGE, environ),
            "two": (_serve("otel_tbot.bridge:app", ("uvicorn", *_UVICORN), "--workers", "2"), environ),
            "go": ((REPORTER, "serve"), {}),
        },
        beside=pid,
    )
    export = _time_export(environ)
    figure = Figure(
        "7. The bridge",
        f"{ROUNDS} rounds of {REPORTS:,} reports over {CONNECTIONS} connections, as fast as they are answered, and of "
        f"{PACED_REPORTS:,} in {PACED_SECONDS} s; load generator, bridge and collector share {os.cpu_count()} cores, "
        "so the rates are no bridge's of its own. The empty services answer at once and send nothing. One export is "
        "that of 64 events, alone.",
    )
    noop, ours = taken["noop: processor"], taken["bridge: processor"]
    figure.add("our service around nothing: processor time a report", noop, "us", scale=1e6)
    figure.add(
        "the bridge: processor time a report", ours, "us", scale=1e6, base=noop,
        goal=f"at most {noop.minimum * 1e6:.0f} + {_MOST_ABOVE_NOOP * 1e6:.0f} us",
        is_met=ours.minimum <= noop.minimum + _MOST_ABOVE_NOOP,
    )  # fmt: skip
    for case, name in _EMPTY.items():
        figure.add(f"{name}: processor time a report", taken[f"{case}: processor"], "us", scale=1e6, base=noop)
    figure.add("the collector behind the bridge: processor time a report", taken["bridge: beside"], "us", scale=1e6)
    figure.add("one export", export, "ms", scale=1e3)
    for part, pace in (
        ("p99", "as fast as they are answered"),
        ("paced p99", f"{PACED_REPORTS // PACED_SECONDS} a second"),
    ):
        limit = taken[f"connectrpc: {part}"].median + 2 * export.median
        figure.add(f"our service around nothing: 99th percentile, {pace}", taken[f"noop: {part}"], "ms", scale=1e3)
        figure.add(f"{_EMPTY['connectrpc']}: 99th percentile, {pace}", taken[f"connectrpc: {part}"], "ms", scale=1e3)
        figure.add(
            f"the bridge: 99th percentile, {pace}", taken[f"bridge: {part}"], "ms", scale=1e3,
            goal=f"median at most {limit * 1e3:.1f} ms", is_met=taken[f"bridge: {part}"].median <= limit,
        )  # fmt: skip
    for case, name in {
        "noop": "our service around nothing",
        **_EMPTY,
        "bridge": "the bridge",
        "two": "two workers",
    }.items():
        figure.add(f"{name}: reports a second", taken[f"{case}: rate"], "")
    figure.add("two workers: processor time a report", taken["two: processor"], "us", scale=1e6, base=ours)
    figure.add("the bridge: proportional set size", taken["bridge: memory"], "MiB")
    return [figure]


def _time_export(environ: Mapping[str, str]) -> Samples:
    """One export of as many events as there are connections, on a connection that is there."""
    body = load_encoder("log", is_local=False)([(TbotStart(run_mode="daemon"), 0)] * CONNECTIONS).SerializeToString()
    sender = OtlpSender(environ, signal="log", deadline_seconds=10)

    def send() -> float:
        began = time.perf_counter()
        if sender.send(body) is not Outcome.ACCEPTED:
            raise RuntimeError(sender.answer.status)
        return time.perf_counter() - began

    taken = interleave({"": send}, 100)[""]
    sender.close()
    return taken


def measure_servers(_collector: Collector) -> list[Figure]:
    """The bridge's service, around nothing, under each server that could carry it."""
    cases = {
        name: (_serve("benchmarks.noop:app", server, *(["--lifespan", "off"] if "uvicorn" in name else [])), {})
        for name, server in _SERVERS.items()
    }
    taken = _rounds(cases, rounds=3)
    figure = Figure("The server under the bridge", f"3 rounds of {REPORTS:,} reports; the service does nothing.")
    chosen = taken["uvicorn, httptools: processor"]
    for name in _SERVERS:
        figure.add(f"{name}: processor time a report", taken[f"{name}: processor"], "us", scale=1e6, base=chosen)
    for name in _SERVERS:
        figure.add(f"{name}: proportional set size", taken[f"{name}: memory"], "MiB")
    return [figure]


def measure_memory(collector: Collector) -> list[Figure]:
    """The bridge's memory after 100,000 and after 1,000,000 reports."""
    with serving(_BRIDGE, PLAIN | collector.environ("http/protobuf", "log")) as (url, pid):
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
