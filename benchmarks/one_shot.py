"""Measures `added` and `relay`: the cost of a report for its command, and of the relay."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.competitors import environment
from benchmarks.processes import (
    CONSENT,
    PLAIN,
    REPORTER,
    ROOT,
    Samples,
    interleave,
    list_children,
    read_memory_mib,
    run_alone,
)
from benchmarks.table import Figure
from tests.support.otelcol import Collector
from tests.support.servers import refusing_port, silent_server

ROUNDS, SLOW_ROUNDS = 30, 5
TIMEOUT_MS = 1000
_MAX_MIB, _MAX_LEAVING_SECONDS = 50, 0.150
_EXEC = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
_SCRIPT = ROOT / "benchmarks" / "plain_sdk.py"


def _run() -> tuple[Path | str, ...]:
    return environment("pip") / "bin" / "otel-tbot", "run", "--"


def _take(command: tuple[Path | str, ...], environ: Mapping[str, str]) -> Callable[[], Mapping[str, float]]:
    def measure() -> Mapping[str, float]:
        run = run_alone(command, PLAIN | environ)
        return {"": run.seconds, "processor": run.processor_seconds}

    return measure


def _add(*, to: Samples, of: Samples) -> Samples:
    """Returns what *of* took in addition to the minimum of *to*, for each round."""
    return Samples([value - to.minimum for value in of.values])


def measure_added(collector: Collector) -> list[Figure]:
    """Compares a one-shot that reports and ends, with each kind of collector, with a plain SDK script."""
    figure = Figure(
        "3. On: wall time added to a one-shot that reports at once and ends",
        f"{ROUNDS} rounds ({SLOW_ROUNDS} if a timeout passes). Added is what the reporter in Go takes "
        "behind `run`, in addition to what it takes alone with telemetry off. The plain SDK script sends one record by "
        "a provider, a batch processor and OpenTelemetry's exporter; the start of its interpreter counts.",
    )
    python = environment("pip") / "bin" / "python"
    once = (REPORTER, "start", "--oneshot")
    # Reports at once and runs for another second.
    longer = ("/bin/sh", "-c", f"{REPORTER} start --oneshot & sleep 1; wait")
    healthy = {name: collector.environ(name, "log") for name in ("http/protobuf", "grpc")}
    with refusing_port() as refusing, silent_server() as silent, TemporaryDirectory() as cache:
        refused, unanswered = ({"OTEL_EXPORTER_OTLP_ENDPOINT": url} for url in (refusing, silent.url))
        unanswered["OTEL_TBOT_TIMEOUT"] = str(TIMEOUT_MS)
        uncompiled = {"PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": "1"}
        on = CONSENT
        taken = interleave(
            {
                "alone": _take(once, {}),
                "http": _take((*_run(), *once), healthy["http/protobuf"] | on),
                "plain http": _take((python, _SCRIPT, "http/protobuf"), healthy["http/protobuf"]),
                "refusing": _take((*_run(), *once), refused | on),
                "grpc": _take((*_run(), *once), healthy["grpc"] | on),
                "plain grpc": _take((python, _SCRIPT, "grpc"), healthy["grpc"]),
            },
            ROUNDS,
        )
        slow = interleave(
            {
                "longer alone": _take((python, "-c", _EXEC, *longer), {}),
                "longer": _take((*_run(), *longer), healthy["http/protobuf"] | on),
                "silent": _take((*_run(), *once), unanswered | on),
                "uncompiled": _take(
                    (*_run(), *once), healthy["http/protobuf"] | on | uncompiled | {"OTEL_TBOT_TIMEOUT": "20000"}
                ),
                "plain uncompiled": _take((python, _SCRIPT, "http/protobuf"), healthy["http/protobuf"] | uncompiled),
            },
            SLOW_ROUNDS,
        )
        waiting = {
            name: Samples([run_alone((python, _SCRIPT, "http/protobuf"), PLAIN | environ).seconds])
            for name, environ in (("refusing", refused), ("silent", unanswered))
        }
    added = {name: _add(to=taken["alone"], of=taken[name]) for name in ("http", "grpc", "refusing")}
    added |= {name: _add(to=taken["alone"], of=slow[name]) for name in ("silent", "uncompiled")}
    figure.add("a plain SDK script, http/protobuf", taken["plain http"], "ms", scale=1e3)
    figure.add(
        "a healthy collector, http/protobuf", added["http"], "ms", scale=1e3, base=taken["plain http"], at_most=1.2
    )
    figure.add(
        "a collector that refuses", added["refusing"], "ms", scale=1e3, base=added["http"], at_most=1.05,
        goal="no more than a healthy one (within 5 %)",
    )  # fmt: skip
    figure.add("a plain SDK script, grpc", taken["plain grpc"], "ms", scale=1e3)
    figure.add("a healthy collector, grpc", added["grpc"], "ms", scale=1e3, base=taken["plain grpc"], at_most=1.2)
    behind = Samples([value - slow["longer alone"].minimum for value in slow["longer"].values])
    figure.add(
        "the command runs for a second, beyond a bare Python that execs it", behind, "ms", scale=1e3,
        goal="none measurable (10 ms)", is_met=behind.minimum <= 0.010,
    )  # fmt: skip
    figure.add(
        "a silent collector, OTEL_TBOT_TIMEOUT=1000", added["silent"], "ms", scale=1e3,
        goal=f"at most {TIMEOUT_MS + 50} ms", is_met=added["silent"].minimum <= TIMEOUT_MS / 1000 + 0.050,
    )  # fmt: skip
    figure.add("a plain SDK script, bytecode not written yet", slow["plain uncompiled"], "ms", scale=1e3)
    figure.add(
        "a healthy collector, bytecode not written yet", added["uncompiled"], "ms", scale=1e3,
        base=slow["plain uncompiled"], at_most=1.2,
    )  # fmt: skip
    for protocol, name in (("http/protobuf", "http"), ("grpc", "grpc")):
        plain = taken[f"plain {name}: processor"]
        ours = _add(to=taken["alone: processor"], of=taken[f"{name}: processor"])
        figure.add(f"processor time: a plain SDK script, {protocol}", plain, "ms", scale=1e3)
        figure.add(f"processor time: added with a healthy collector, {protocol}", ours, "ms", scale=1e3, base=plain)
    for name, samples in waiting.items():
        figure.add(f"a plain SDK script, a collector that is {name}", samples, "ms", scale=1e3)
    return [figure]


def measure_relay(collector: Collector) -> list[Figure]:
    """Measures the relay's peak memory, and how long it stays after its response."""
    rounds = ROUNDS // 2
    figure = Figure(
        "4. The relay: memory and life",
        f"{rounds} rounds per protocol. The proportional set size is read every 2 ms in separate rounds, so that "
        "reading it does not slow what is timed. The kernel reports the resident memory, which counts shared pages "
        "fully. The life is from the response that the reporter prints to the relay's end.",
    )
    reporting = (*_run(), REPORTER, "start", "--oneshot")
    for protocol in ("http/protobuf", "grpc"):
        environ = PLAIN | CONSENT | collector.environ(protocol, "log")

        def timed(environ: Mapping[str, str] = environ) -> Mapping[str, float]:
            run = run_alone(reporting, environ)
            return {"life": run.left_seconds, "processor": run.left_processor_seconds, "resident": run.left_mib}

        taken = interleave({protocol: timed}, rounds)
        peak = Samples([_read_peak_mib(reporting, environ) for _ in range(max(1, rounds // 3))])
        bound = max(peak.values)
        figure.add(
            f"proportional set size at its peak, {protocol}", peak, "MiB",
            goal=f"at most {_MAX_MIB} MiB", is_met=bound <= _MAX_MIB,
        )  # fmt: skip
        figure.add(f"resident memory at its peak, {protocol}", taken[f"{protocol}: resident"], "MiB")
        life = taken[f"{protocol}: life"]
        figure.add(
            f"from its response to its end, {protocol}", life, "ms", scale=1e3,
            goal=f"at most {1000 * _MAX_LEAVING_SECONDS:.0f} ms", is_met=life.median <= _MAX_LEAVING_SECONDS,
        )  # fmt: skip
        figure.add(f"processor time, {protocol}", taken[f"{protocol}: processor"], "ms", scale=1e3)
    return [figure]


def _read_peak_mib(command: tuple[Path | str, ...], environ: Mapping[str, str]) -> float:
    """Returns the largest proportional set size of the relay of *command*, read repeatedly while it runs."""
    peak, is_over = [0.0], threading.Event()
    own = os.getpid()
    known = set(list_children(own))

    def watch() -> None:
        while not is_over.is_set():
            # Only a relay counts, not the command.
            for pid in set(list_children(own)) - known:
                peak[0] = max(peak[0], read_memory_mib(pid) if _is_relay(pid) else 0)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run_alone(command, environ)
    is_over.set()
    watcher.join()
    return peak[0]


def _is_relay(pid: int) -> bool:
    try:
        return b"otel_tbot.relay" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
