"""Measures `fleet`: a deployment that restarts 10,000 pods in 60 s, through the Helm chart's bridges and collector.

Behind them are a gateway and a last collector that writes a file; all of them are real. From the measured values it
calculates the needs of more starts.
"""

import json
import math
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.processes import BIN, COLLECTOR, PLAIN, REPORTER, read_memory_mib, read_processor_seconds, run_server
from benchmarks.table import Figure
from tests.support.chart import ChartCollector, Release
from tests.support.otelcol import Collector, KitCollector

STARTS, SECONDS, BRIDGES, CONNECTIONS = 10_000, 60, 2, 256
_ARRIVAL_SECONDS: Final = 120
_SESSION: Final = re.compile(r'"session\.id","value":\{"stringValue":"([0-9a-f-]{36})"')
# Plan for a core that is half used, because starts do not arrive evenly.
_FILL: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Chain:
    """Running bridges, the chart's collector, a gateway, and the collector behind them."""

    behind: Collector
    urls: list[str]
    processes: dict[str, list[int]]
    folder: Path


def measure_fleet(_collector: Collector) -> list[Figure]:
    """Measures starts, each with its own connection and report; every event must arrive behind the gateway."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        chain = _start(stack, Path(folder))
        about = (
            f"{STARTS:,} starts, each on a separate connection: {BRIDGES} bridges, the collector as the Helm chart "
            "configures it and a gateway, with their guards and queues on disk, a last collector with a file; load "
            "generator and all of them on this machine, one run. The collectors take their processor time until the "
            "last event is behind them."
        )
        figure = Figure("9. The whole chain at fleet scale", about)
        calm = _measure_starts(figure, chain, f"in {SECONDS} s, evenly", SECONDS)
        busy = _measure_starts(figure, chain, "at once", 0)
    return [figure, _calculate(calm, busy)]


def _start(stack: ExitStack, folder: Path) -> _Chain:
    """Starts everything, the last part first; *stack* ends it."""
    for name in ("behind", "gateway", "collector"):
        (folder / name).mkdir()
    behind = stack.enter_context(Collector(str(COLLECTOR), folder / "behind"))
    backend = {"TBOT_BACKEND": f"http://127.0.0.1:{behind.ports['http/protobuf']}"}
    gateway = stack.enter_context(KitCollector(str(COLLECTOR), folder / "gateway", "guard", "gateway", environ=backend))
    destination = {"TBOT_GATEWAY": f"http://{gateway.environ['TBOT_GATEWAY_LISTEN']}"}
    collector = stack.enter_context(ChartCollector(str(COLLECTOR), Release(), folder / "collector", destination))
    command = (BIN / "otel-tbot", "bridge", "--listen", "127.0.0.1:0")
    environ = PLAIN | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url()}
    bridges = [stack.enter_context(run_server(command, environ)) for _ in range(BRIDGES)]
    processes = {"bridge": [pid for _, pid in bridges], "collector": [collector.pid], "gateway": [gateway.pid]}
    return _Chain(behind, [url for url, _ in bridges], processes, folder)


def _measure_starts(figure: Figure, chain: _Chain, how: str, seconds: int) -> dict[str, float]:
    """Adds rows for STARTS starts over *seconds*; returns the processor time per start of each kind of process."""
    before = {name: sum(map(read_processor_seconds, pids)) for name, pids in chain.processes.items()}
    totals, ids = _report_starts(chain, seconds)
    arrived = [session for session in _wait_for(ids, chain.behind) if session in ids]
    spent = {
        name: (sum(map(read_processor_seconds, pids)) - before[name]) / STARTS for name, pids in chain.processes.items()
    }
    ok, lost = sum(total["ok"] for total in totals), len(ids - set(arrived))
    figure.add_value(
        f"{STARTS:,} starts {how}: answered with success", f"{ok:,.0f}", goal=f"{STARTS:,}", is_met=ok == STARTS
    )
    figure.add_value("events lost", f"{lost}", goal="0", is_met=lost == 0)
    figure.add_value("events that arrived twice", f"{len(arrived) - len(set(arrived))}")
    for name, text in (("median_ms", "median"), ("p99_ms", "99th percentile"), ("max_ms", "longest")):
        figure.add_value(f"latency at tbot, {text}", f"{max(total[name] for total in totals):.1f} ms")
    for name, pids in chain.processes.items():
        memory = max(map(read_memory_mib, pids))
        figure.add_value(f"{name}: processor time per start; memory", f"{spent[name] * 1e6:.0f} us; {memory:.0f} MiB")
    return spent


def _report_starts(chain: _Chain, seconds: int) -> tuple[list[dict[str, float]], set[str]]:
    """Spreads starts over the bridges; returns the reporters' totals, and the ids that were accepted."""
    loads, files = [], [chain.folder / f"each-{number}" for number in range(len(chain.urls))]
    for url, file in zip(chain.urls, files, strict=True):
        arguments = ["-address", url, "-count", str(STARTS // len(files)), "-over", f"{seconds}s", "-new-connections"]
        arguments += ["-connections", str(CONNECTIONS), "-each", str(file)]
        loads.append(subprocess.Popen([str(REPORTER), "load", *arguments], stdout=subprocess.PIPE, text=True))
    totals = [json.loads(process.communicate(timeout=10 * SECONDS)[0]) for process in loads]
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    return totals, {words[1] for words in lines if words[0] == "ok"}


def _wait_for(ids: set[str], behind: Collector) -> list[str]:
    """Returns the session ids behind the gateway once all of *ids* have arrived, or the time is over."""
    ends_at = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        arrived = _SESSION.findall(behind.path.read_text()) if behind.path.exists() else []
        if ids <= set(arrived) or time.monotonic() > ends_at:
            return arrived
        time.sleep(0.5)


def _calculate(calm: dict[str, float], busy: dict[str, float]) -> Figure:
    """Calculates what more starts need, from the processor time per start: *calm* one by one, *busy* all at once."""
    figure = Figure(
        "9. On paper: what more starts need",
        f"Cores, filled to {_FILL:.0%}, from the processor time per start above: that of evenly spread starts if "
        "they come one by one (much of it is waking up), that of simultaneous starts if they come together. At least "
        "one of each; a second one is for availability, not for load.",
    )
    for text, rate, spent in (
        ("10,000 starts in a minute", 10_000 / 60, calm),
        ("a million starts in an hour", 1e6 / 3600, calm),
        ("a million starts in a minute", 1e6 / 60, busy),
    ):
        cores = {name: max(1, math.ceil(rate * seconds / _FILL)) for name, seconds in spent.items()}
        needs = ", ".join(f"{name}s {count}" for name, count in cores.items())
        figure.add_value(text, f"{rate:,.0f} per second: {needs}")
    return figure
