"""Runs commands alone and to their end, and measures the time and memory that they take."""

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
BIN: Final = Path(sys.executable).parent
COLLECTOR: Final = ROOT / "build" / "collector" / "otelcol"
REPORTER: Final = ROOT / "build" / "reporter"

PLAIN: Final = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
"""A small environment, because a large one makes the start of an interpreter longer."""

CONSENT: Final = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}

_LIMIT_SECONDS: Final = 120.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def become_reaper() -> None:
    """Makes this process the parent of relays that lose theirs, so that it can wait for them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command's run: `seconds` from its start to its end, `output`, and when the first output came.

    `processor_seconds` includes that of a process that it left running, such as a relay. The `left_*` are of that
    process, or 0 without one: seconds from the first output to its end, processor time, largest resident memory.
    """

    seconds: float
    output: str
    output_after_seconds: float
    processor_seconds: float
    left_seconds: float
    left_processor_seconds: float
    left_mib: float


def run_alone(command: Sequence[str | Path], environ: Mapping[str, str], *, stdin: int | None = None) -> Run:
    """Runs *command* until it and every process that it left have ended; kills after two minutes."""
    before = set(list_children(os.getpid()))
    reader, writer = os.pipe()
    argv = [str(word) for word in command]
    actions: list[tuple[int, ...] | tuple[int, str, int, int]] = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    actions += [(os.POSIX_SPAWN_DUP2, stdin, 0)] if stdin is not None else []
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, dict(environ), file_actions=actions)
    os.close(writer)
    first, output = [0.0], [b""]

    def read() -> None:
        with open(reader, "rb", buffering=0) as pipe:
            while piece := pipe.read(65536):
                first[0] = first[0] or time.perf_counter()
                output[0] += piece

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    own, status, ended = _wait_for(pid)
    thread.join(_LIMIT_SECONDS)
    left = []
    while others := set(list_children(os.getpid())) - before:
        left += [_wait_for(other) for other in others]
    if status != 0:
        raise RuntimeError(f"{argv[0]} ended with {os.waitstatus_to_exitcode(status)}")
    usages = [usage for usage, _, _ in left]
    left_processor_seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return Run(
        seconds=ended - began,
        output=output[0].decode(),
        output_after_seconds=(first[0] or ended) - began,
        left_seconds=max([moment for _, _, moment in left], default=0) - first[0] if left and first[0] else 0,
        processor_seconds=own.ru_utime + own.ru_stime + left_processor_seconds,
        left_processor_seconds=left_processor_seconds,
        left_mib=max([usage.ru_maxrss / 1024 for usage in usages], default=0),
    )


def _wait_for(pid: int) -> tuple["os.struct_rusage", int, float]:  # type: ignore[name-defined]  # resource's own
    """Waits for the end of our child *pid*, kills it at the limit; returns its usage, status and time of its end."""
    timer = threading.Timer(_LIMIT_SECONDS, os.kill, (pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    _, status, usage = os.wait4(pid, 0)
    ended = time.perf_counter()
    timer.cancel()
    return usage, status, ended


def list_children(pid: int) -> list[int]:
    """Returns the children of a process, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # a thread that has ended
    return found


def list_processes(pid: int) -> list[int]:
    """Returns the process and all its descendants."""
    return [pid, *(below for child in list_children(pid) for below in list_processes(child))]


def read_processor_seconds(pid: int) -> float:
    """Returns the processor time of the process and all its descendants."""
    fields = [Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split() for p in list_processes(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / _TICKS


def read_memory_mib(pid: int) -> float:
    """Returns the proportional set size of the process and all its descendants; 0 if it has ended."""
    try:
        lines = [line for p in list_processes(pid) for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@contextmanager
def run_server(command: Sequence[str | Path], environ: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Runs a server that prints `listening on URL` when it is ready; yields that URL and its process id."""
    process = subprocess.Popen(
        [str(word) for word in command], env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(_LIMIT_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]  # a pipe
        timer.cancel()
        if not line.startswith("listening on "):
            raise RuntimeError(f"{command[0]} does not listen: {line!r}")
        yield line.split()[-1], process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def load(url: str, count: int, *more: str) -> dict[str, float]:
    """Posts *count* reports over 64 connections and returns the reporter's totals; raises if one was rejected."""
    command = [str(REPORTER), "load", "-address", url, "-count", str(count), *more]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    totals = dict(json.loads(finished.stdout))
    if totals["errors"]:
        raise RuntimeError(f"reports were rejected: {totals['errors']}")
    return totals


@dataclass(slots=True)
class Samples:
    """The values of one case, one for each round."""

    values: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)


def interleave(
    cases: Mapping[str, Callable[[], float | Mapping[str, float]]], rounds: int, *, is_warmed: bool = True
) -> dict[str, Samples]:
    """Runs each case once per round, one after the other; returns its values, by name if a case has several.

    With *is_warmed* a first round does not count, so that bytecode and caches are there for the others.
    """
    taken: dict[str, Samples] = {}
    for case in cases.values() if is_warmed else ():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            result = case()
            values = result if isinstance(result, Mapping) else {"": result}
            for part, value in values.items():
                taken.setdefault(f"{name}{part and ': '}{part}", Samples()).values.append(value)
    return taken
