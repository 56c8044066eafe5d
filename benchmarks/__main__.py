"""`python -m benchmarks [FIGURE…]`: measures the figures named, or all, and prints their tables.

All of them, they are written to benchmarks/RESULTS.md too. Needs what `make bench` installs and builds.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import charts, table
from benchmarks import competitors as peers
from benchmarks.processes import COLLECTOR, ROOT, become_reaper, list_children
from tests.support.otelcol import Collector

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
_LIMIT_SECONDS = 60 * 60


def list_figures() -> dict[str, Callable[[Collector], list[table.Figure]]]:
    """What can be measured, in the order of the table; each gets a collector that takes everything."""
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


def _give_up(*_: object) -> None:
    raise TimeoutError("the benchmarks took too long altogether")


def main() -> int:
    """Measures; 0 whether or not a goal was met: a table is no test."""
    figures = list_figures()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(figures)}; all where none is named"
    )
    named = parser.parse_args().figures or list(figures)
    if unknown := set(named) - set(figures):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    peers.build()
    machine = peers.describe_machine()
    print("\n".join(machine), "\n", flush=True)
    become_reaper()
    signal.signal(signal.SIGALRM, _give_up)
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
        # Whatever went wrong, nothing stays: what lost its parent is a child of ours.
        for pid in list_children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
    if len(named) == len(figures):
        table.write(RESULTS, machine, measured)
        for path in (RESULTS, *charts.write_charts()):
            print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
