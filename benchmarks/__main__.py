"""Measures the figures that are named, or all, and prints their tables.

`python -m benchmarks [FIGURE…]`. If all are measured, the tables are also written to benchmarks/RESULTS.md.
`make bench` installs and builds what this needs.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import charts, competitors, table
from benchmarks.processes import COLLECTOR, ROOT, become_reaper, list_children
from tests.support.otelcol import Collector

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
_LIMIT_SECONDS = 60 * 60


def list_figures() -> dict[str, Callable[[Collector], list[table.Figure]]]:
    """Returns what can be measured, in the order of the table; each figure gets a collector that accepts everything."""
    from benchmarks import bridge, fleet, guard, library, one_shot, start

    return {
        "off": start.measure_off,
        "on": start.measure_on,
        "added": one_shot.measure_added,
        "relay": one_shot.measure_relay,
        "library": library.measure_library,
        "plugin": library.measure_plugin,
        "bridge": bridge.measure_bridge,
        "servers": bridge.measure_servers,
        "memory": bridge.measure_memory,
        "guard": guard.measure_guard,
        "fleet": fleet.measure_fleet,
    }


def _stop_measuring(*_: object) -> None:
    raise TimeoutError("the benchmarks together took longer than an hour")


def main() -> int:
    """Measures; returns 0, also if a goal was missed, because a table is not a test."""
    figures = list_figures()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"any of {', '.join(figures)}; all if none is named"
    )
    named = parser.parse_args().figures or list(figures)
    if unknown := set(named) - set(figures):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    competitors.build()
    machine = competitors.describe_machine()
    print("\n".join(machine), "\n", flush=True)
    become_reaper()
    signal.signal(signal.SIGALRM, _stop_measuring)
    signal.alarm(_LIMIT_SECONDS)
    measured = []
    try:
        for name in named:
            began = time.monotonic()
            with TemporaryDirectory() as folder, Collector(str(COLLECTOR), Path(folder)) as collector:
                for figure in figures[name](collector):
                    measured.append(figure)
                    print("\n".join(table.to_lines(figure)), flush=True)
            print(f"({name}: {time.monotonic() - began:.0f} s)\n", file=sys.stderr, flush=True)
    finally:
        # Leave no process, also after an error: this process adopts those that lost their parent.
        for pid in list_children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
    if len(named) == len(figures):
        table.write(RESULTS, machine, measured)
        for path in (RESULTS, *charts.write_charts()):
            print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
