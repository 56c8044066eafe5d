"""`python -m benchmarks.bridge_memory`: the bridge's resident memory after 100,000 and after 1,000,000 reports."""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.servers import BIN, ROOT, load
from tests.collector.otelcol import Collector

STEPS = (100_000, 900_000)


def main() -> int:
    """Prints the memory after each step; 1 where it grew by more than 5 %."""
    program = str(ROOT / "build" / "collector" / "otelcol")
    with tempfile.TemporaryDirectory() as folder, Collector(program, Path(folder)) as collector:
        command = [BIN / "otel-tbot", "bridge", "--listen", "127.0.0.1:0"]
        environ = collector.environ("http/protobuf", "log")
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        url = str(process.stdout.readline().split()[-1])  # type: ignore[union-attr]  # a pipe
        sizes = []
        for count in STEPS:
            totals = load(url, count)
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes.append(int(status.split("VmRSS:")[1].split()[0]))
            print(f"after {count} more: {sizes[-1]} KiB, {totals}")
        process.terminate()
        process.wait()
    return 0 if sizes[-1] <= sizes[0] * 1.05 else 1


if __name__ == "__main__":
    sys.exit(main())
