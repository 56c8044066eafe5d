"""`python -m benchmarks.servers`: the bridge's service, doing nothing, under each server that could carry it.

Processor time a report and memory, side by side in one run, interleaved; the load is tests/reporter's (64 connections).
Needs requirements/bench.txt, which `make bench` installs.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
REPORTS, ROUNDS = 20_000, 3
SERVERS = {
    "uvicorn, h11": ("uvicorn", "--http", "h11", "--loop", "asyncio"),
    "uvicorn, httptools": ("uvicorn", "--http", "httptools", "--loop", "asyncio"),
    "uvicorn, httptools, uvloop": ("uvicorn", "--http", "httptools", "--loop", "uvloop"),
    "granian": ("granian", "--interface", "asgi", "--no-ws", "--http", "1", "--workers", "1"),
}


def list_processes(pid: int) -> list[int]:
    """The process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in list_processes(int(child)))]


def read_cpu_seconds(pid: int) -> float:
    """Processor time of the process and all below it."""
    fields = [Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split() for p in list_processes(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def read_memory_mib(pid: int) -> float:
    """Proportional set size of the process and all below it."""
    lines = [line for p in list_processes(pid) for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def load(url: str, count: int) -> dict[str, float]:
    """Posts *count* reports; what the reporter says of them."""
    command = [ROOT / "build" / "reporter", "load", "-address", url, "-count", str(count)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(finished.stdout))


def measure(arguments: tuple[str, ...]) -> tuple[float, float, float]:
    """Microseconds of processor time a report, reports a second, MiB."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    quiet = ["--port", str(port), "--log-level", "warning", "benchmarks.noop:app"]
    process = subprocess.Popen([BIN / arguments[0], *arguments[1:], *quiet], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    load(url, 2000)
    before = read_cpu_seconds(process.pid)
    totals = load(url, REPORTS)
    spent = read_cpu_seconds(process.pid) - before
    memory = read_memory_mib(process.pid)
    process.terminate()
    process.wait()
    return 1e6 * spent / REPORTS, totals["per_second"], memory


def main() -> None:
    """Prints a table: minimum and median of the rounds."""
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SERVERS}
    for _ in range(ROUNDS):
        for name, arguments in SERVERS.items():
            measured[name].append(measure(arguments))
    print("| server | processor time a report, µs (min, median) | reports a second (median) | memory, MiB |")
    print("| --- | --- | --- | --- |")
    for name, rounds in measured.items():
        spent, rate, memory = zip(*rounds, strict=True)
        row = f"{min(spent):.0f}, {statistics.median(spent):.0f} | {statistics.median(rate):.0f} | {max(memory):.0f}"
        print(f"| {name} | {row} |")


if __name__ == "__main__":
    main()
