"""Calculates from benchmarks/RESULTS.md and the chart's values what a fleet needs: the tables of the page on scale."""

import math
import re
from typing import Final

import yaml

from tools import ROOT
from tools.chart import CHART
from tools.pages import to_table

RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"

# A core is not planned full: what comes together does not come evenly.
_FILL: Final = 0.5
_AT_LEAST: Final = 2
# The fleet pair of the collector kit calls the collector of the chart an agent.
_COST: Final = re.compile(r"^\| (bridge|agent|collector): processor time per start; memory +\| (\d+) us;", re.MULTILINE)

_RATES: Final = (
    ("10,000 in a minute, such as a rollout", 10_000 / 60, "alone"),
    ("A million in an hour", 1e6 / 3600, "alone"),
    ("A million in a minute", 1e6 / 60, "together"),
)
_OUTAGES: Final = (
    ("10,000 a day", 10_000 / 86_400),
    ("100,000 a day", 100_000 / 86_400),
    ("A million a day", 1e6 / 86_400),
    ("A million an hour", 1e6 / 3600),
    ("A million a minute", 1e6 / 60),
)


def read_costs() -> dict[str, dict[str, int]]:
    """Returns the microseconds of processor time a start, by how starts come and by component."""
    part = RESULTS.read_text(encoding="utf-8").partition("## 9. The whole chain")[2].partition("\n## ")[0]
    found = [(name.replace("agent", "collector"), int(cost)) for name, cost in _COST.findall(part)]
    return {"alone": dict(found[:2]), "together": dict(found[2:])}


def to_cost_table() -> str:
    """Returns the processor time that a start costs bridge and collector."""
    costs = read_costs()
    rows = [
        (text, f"{costs[how]['bridge']} us", f"{costs[how]['collector']} us")
        for text, how in (("Starts that come one by one", "alone"), ("Starts that come together", "together"))
    ]
    return to_table(("Processor time a start", "Bridge", "Collector"), rows)


def to_need_table() -> str:
    """Returns how many bridges and collectors serve each rate of starts."""
    costs = read_costs()
    rows = [
        (text, f"{rate:,.0f}", *(str(count_pods(rate, costs[how][name])) for name in ("bridge", "collector")))
        for text, rate, how in _RATES
    ]
    return to_table(("Starts", "A second", "Bridges", "Collectors"), rows)


def count_pods(rate: float, microseconds: float) -> int:
    """Returns how many pods of one core each serve *rate* starts a second, two at least. Pure."""
    return max(math.ceil(rate * microseconds / 1e6 / _FILL), _AT_LEAST)


def to_outage_table() -> str:
    """Returns how long the queues of the chart's collectors last while the destination is down."""
    agent = yaml.safe_load((CHART / "files" / "agent.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    queue = agent["exporters"]["otlp_grpc/gateway"]["sending_queue"]["queue_size"]
    events = queue * values["collector"]["replicas"]
    rows = [(text, to_duration(events / rate)) for text, rate in _OUTAGES]
    return to_table(("Starts", "Until the queues are full"), rows)


def to_duration(seconds: float) -> str:
    """Returns a duration in the largest unit of which there is at least one, rounded down to a tenth. Pure."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1)):
        if seconds >= length:
            return f"{math.floor(seconds / length * 10 + 1e-9) / 10:g} {unit}"
    return "less than a second"
