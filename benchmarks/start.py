"""Measures `off` and `on`: the time until the command behind `otel-tbot run --` is executing."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.competitors import OTEL_CLI, environment
from benchmarks.processes import BIN, CONSENT, PLAIN, interleave, run_alone
from benchmarks.table import Figure
from tests.support.otelcol import Collector

ROUNDS = 60
# Prints when it was executed, by the same clock.
_COMMAND = ("/usr/bin/date", "+%s%N")
_EXEC = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"


def _time_until_executing(*front: str | Path, **environ: str) -> Callable[[], float]:
    def measure() -> float:
        began = time.time_ns()
        return (int(run_alone([*front, *_COMMAND], PLAIN | environ).output) - began) / 1e9

    return measure


def measure_off(_collector: Collector) -> list[Figure]:
    """Compares the installed command, by pip and by uv, with a bare Python of the same environment."""
    cases = {}
    for installer in ("pip", "uv"):
        binaries = environment(installer) / "bin"
        cases[f"bare Python, {installer}"] = _time_until_executing(binaries / "python", "-c", _EXEC)
        cases[f"otel-tbot run, {installer}"] = _time_until_executing(binaries / "otel-tbot", "run", "--")
    taken = interleave(cases, ROUNDS)
    figure = Figure("1. Off: time until the command is executing", f"{ROUNDS} rounds; the console script of the wheel.")
    for installer in ("pip", "uv"):
        floor = taken[f"bare Python, {installer}"]
        figure.add(f"bare Python that execs (environment of {installer})", floor, "ms", scale=1e3)
        ours = taken[f"otel-tbot run, {installer}"]
        figure.add(f"`otel-tbot run`, installed by {installer}", ours, "ms", scale=1e3, base=floor, at_most=1.10)
    return [figure]


def measure_on(collector: Collector) -> list[Figure]:
    """Compares the command with telemetry on, and its relay, with other programs in front of a command."""
    environ = collector.environ("http/protobuf", "log")
    binaries = environment("pip") / "bin"
    instrument = BIN / "opentelemetry-instrument"
    cli = (OTEL_CLI, "exec", "--endpoint", environ["OTEL_EXPORTER_OTLP_ENDPOINT"], "--protocol", "http/protobuf", "--")
    cases = {
        "bare Python that execs": _time_until_executing(binaries / "python", "-c", _EXEC),
        "`otel-tbot run`": _time_until_executing(binaries / "otel-tbot", "run", "--", **environ, **CONSENT),
        "`otel-cli exec` (Go)": _time_until_executing(*cli),
        "`opentelemetry-instrument python`, execs": _time_until_executing(
            instrument, BIN / "python", "-c", _EXEC, **environ, OTEL_METRICS_EXPORTER="none"
        ),
    }
    taken = interleave(cases, ROUNDS)
    about = f"{ROUNDS} rounds; the relay has ended before the next round begins."
    figure = Figure("2. On: time until the command is executing", about)
    floor = taken["bare Python that execs"]
    for name, samples in taken.items():
        at_most = 1.25 if "run" in name else None
        figure.add(name, samples, "ms", scale=1e3, base=None if samples is floor else floor, at_most=at_most)
    return [figure]
