"""Processes, each run alone and to its end: commands go in, what they took comes out."""

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
"""A small environment: the start of an interpreter grows with what it finds there."""

CONSENT: Final = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}

_LIMIT_SECONDS: Final = 120.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def become_reaper() -> None:
    """From now on a relay, which is nobody's child, becomes ours, so that it can be waited for."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command's run: `seconds` from its start to its end, `output`, and when the first of that came.

    `processor_seconds` is what all of it took, with what it left behind. The `left_*` are those of a process that it
    left, 0 where there was none: seconds from the first output to its end, its processor time and its largest resident
    memory.
    """

    seconds: float
    output: str
    output_after_seconds: float
    processor_seconds: float
    left_seconds: float
    left_processor_seconds: float
    left_mib: float


def run_alone(command: Sequence[str | Path], environ: Mapping[str, str], *, stdin: int | None = None) -> Run:
    """Runs *command* to its end and to that of all that it left; kills what takes longer than two minutes."""
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
    """Waits for the end of a child of ours, kills it at the limit; its usage, status and the time of its end."""
    timer = threading.Timer(_LIMIT_SECONDS, os.kill, (pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    _, status, usage = os.wait4(pid, 0)
    ended = time.perf_counter()
    timer.cancel()
    return usage, status, ended


def list_children(pid: int) -> list[int]:
    """The children of a process, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # a thread that has ended
    return found


def list_processes(pid: int) -> list[int]:
    """The process and all below it."""
    return [pid, *(below for child in list_children(pid) for below in list_processes(child))]


def read_processor_seconds(pid: int) -> float:
    """Processor time of the process and all below it."""
    fields = [Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split() for p in list_processes(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / _TICKS


def read_memory_mib(pid: int) -> float:
    """Proportional set size of the process and all below it; 0 where it has ended."""
    try:
        lines = [line for p in list_processes(pid) for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@contextmanager
def serving(command: Sequence[str | Path], environ: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """A server that prints `listening on URL` when it is ready; that URL, and its process."""
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
    """Posts *count* reports over 64 connections; what the reporter says of them. Raises where one was refused."""
    command = [str(REPORTER), "load", "-address", url, "-count", str(count), *more]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    totals = dict(json.loads(finished.stdout))
    if totals["errors"]:
        raise RuntimeError(f"reports were refused: {totals['errors']}")
    return totals


@dataclass(slots=True)
class Samples:
    """What one case took, round by round."""

    values: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def median(self) -> float:
        """What half of them are above."""
        return statistics.median(self.values)


def interleave(
    cases: Mapping[str, Callable[[], float | Mapping[str, float]]], rounds: int, *, is_warmed: bool = True
) -> dict[str, Samples]:
    """Each case once a round, one after the other; where a case gives several values, each by its name.

    *is_warmed* asks for a round before them that does not count: bytecode and caches are then where they stay.
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
