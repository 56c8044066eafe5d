"""Shows a small fleet's starts on a web page, on this machine and without Docker; `make view` runs it.

It starts the real Collector with its guard and VictoriaLogs, which has a web page inside, sends the starts of FLEET
through `otel-tbot run` and a bridge, prints the address and some queries, and waits for Ctrl-C. Everything listens on
free loopback ports and keeps its data in a temporary folder, which is removed at the end.
"""

import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.support.backends import VictoriaLogs
from tests.support.bridge_process import BridgeProcess
from tests.support.checkout import REPORTER, find_collector
from tests.support.otelcol import KitCollector
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, LAUNCHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Some tbots that start alike: behind `run` as one-shots, or as daemons that report to the bridge."""

    starts: int
    version: str
    join_method: str
    options: tuple[str, ...] = ()
    helper: tuple[str, str] | None = None
    is_behind_run: bool = False


FLEET: Final = (
    Fleet(
        starts=6,
        version="18.4.1",
        join_method="github",
        helper=("gha:teleport-actions/auth", "v2.0.1"),
        is_behind_run=True,
    ),
    Fleet(starts=2, version="18.3.0", join_method="gitlab", is_behind_run=True),
    Fleet(starts=9, version="18.4.1", join_method="kubernetes", options=("-destinations-kubernetes=3",)),
    Fleet(starts=4, version="18.3.0", join_method="iam", options=("-destinations-database=2",)),
    Fleet(starts=3, version="17.7.9", join_method="token", options=("-destinations-application=1",)),
    Fleet(starts=1, version="19.0.0-beta.1", join_method="tpm", options=("-destinations-other=1",)),
)

QUERIES: Final = {
    "starts by version": "* | stats by (tbot.version) count() starts | sort by (starts desc)",
    "join methods of one version": 'tbot.version:="18.4.1" | stats by (tbot.join_type) count() starts',
    "helpers and their versions": "tbot.helper:* | stats by (tbot.helper, tbot.helper_version) count() starts",
    "destinations, added up": "* | stats sum(tbot.destinations_kubernetes) kubernetes, "
    "sum(tbot.destinations_database) database, sum(tbot.destinations_application) application",
    "every event, whole": "*",
}

_OPTIONS: Final = "g0.range_input=5m&g0.relative_time=last_5_minutes&graph_mode=stats&view=json"


def count_by_version() -> dict[str, int]:
    """Returns how many starts of each version FLEET has."""
    counts: dict[str, int] = {}
    for fleet in FLEET:
        counts[fleet.version] = counts.get(fleet.version, 0) + fleet.starts
    return counts


def to_page(url: str, query: str) -> str:
    """Returns the address of VictoriaLogs' web page at *url*, with *query* filled in."""
    return f"{url}/select/vmui/#/?query={quote(query)}&{_OPTIONS}"


def main() -> int:
    """Runs until Ctrl-C; returns 0, or 1 if a program was not built."""
    collector_path = find_collector()
    needed = {"the collector": collector_path, "the reporter": REPORTER, "VictoriaLogs": VictoriaLogs.program_path()}
    if missing := [name for name, path in needed.items() if not path.exists()]:
        print(f"view: {' and '.join(missing)}: not built; run `make view`, which needs Go", file=sys.stderr)
        return 1
    # Also in the background of a script, where SIGINT is ignored unless somebody asks for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as started:
            _show(started, collector_path)
            signal.pause()
    except KeyboardInterrupt:
        print("\nEverything has ended, and its data is removed.", flush=True)
    return 0


def _show(started: ExitStack, collector_path: Path) -> None:
    folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="otel-tbot-view-")))
    print("Starting VictoriaLogs, the collector with its guard, and a bridge …", flush=True)
    store = started.enter_context(VictoriaLogs(folder))
    kit = KitCollector(str(collector_path), folder / "collector", "guard", "grafana", environ=store.environ())
    collector = started.enter_context(kit)
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TBOT_TIMEOUT": "10000"}
    bridge = started.enter_context(BridgeProcess(endpoint))

    expected = sum(fleet.starts for fleet in FLEET)
    print(f"Sending {expected} starts through `otel-tbot run` and the bridge …", flush=True)
    for fleet in FLEET:
        _send(fleet, endpoint, bridge.url)
    poll_until(lambda: len(store.query_logs("*")) == expected, waiting_for=f"{expected} events in VictoriaLogs")

    print(
        f"\nVictoriaLogs has all {expected}. Open its page:\n\n  {to_page(store.url, QUERIES['starts by version'])}\n"
    )
    print("Queries worth trying there (the tab Table shows the numbers):\n")
    for name, query in QUERIES.items():
        print(f"  {name}\n    {query}")
    print("\nPress Ctrl-C to end.", flush=True)


def _send(fleet: Fleet, endpoint: dict[str, str], bridge_url: str) -> None:
    environ = dict(CONSENT)
    if fleet.helper:
        environ |= {"_TBOT_TELEMETRY_HELPER": fleet.helper[0], "_TBOT_TELEMETRY_HELPER_VERSION": fleet.helper[1]}
    command = [str(REPORTER), "-version", fleet.version, "-join-type", fleet.join_method, *fleet.options]
    if fleet.is_behind_run:
        command = [*LAUNCHER, *command, "-oneshot"]
        environ |= endpoint
    else:
        environ["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"] = bridge_url
    for _ in range(fleet.starts):
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
