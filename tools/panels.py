"""The dashboard's panels, events that are known, and what each panel has to show after them."""

import json
from typing import Any, Final

from tools import ROOT

CONFIG = ROOT / "collector-config"

DASHBOARD: Final[dict[str, Any]] = json.loads((CONFIG / "dashboards" / "tbot-starts.json").read_text(encoding="utf-8"))

EVENTS: Final[list[dict[str, Any]]] = (
    [{"run_mode": "one-shot", "version": "18.4.1", "join_type": "github", "helper": "gha:a/b", "helper_version": "v2"}]
    * 4
    + [{"run_mode": "daemon", "version": "18.4.1", "join_type": "kubernetes", "destinations_kubernetes": 3}] * 3
    + [{"run_mode": "daemon", "version": "17.0.0", "join_type": "kubernetes", "destinations_database": 2}] * 2
    + [{"run_mode": "daemon", "destinations_application": 1, "destinations_other": 1}]
)

EXPECTED: Final[dict[str, dict[str, float]]] = {
    "Starts": {"starts": 10},
    "Starts over time": {"one-shot": 4, "daemon": 6},
    "Run modes": {"one-shot": 4, "daemon": 6},
    "Share of versions": {"18.4.1": 0.7, "17.0.0": 0.2, "": 0.1},
    "Join methods": {"github": 4, "kubernetes": 5, "": 1},
    "Helpers": {"gha:a/b": 4},
    "Destinations per start": {
        "Database Service": 0.4,
        "Kubernetes Service": 0.9,
        "Application Service": 0.1,
        "none of these": 0.1,
    },
    "Starts counted by the collectors, by join method": {"github": 4, "kubernetes": 5, "unknown": 1},
    "Starts counted by the collectors, with destinations of": {
        "Database Service": 2,
        "Kubernetes Service": 3,
        "Application Service": 1,
        "none of these": 1,
    },
    "Events": {"events": 10},
}
"""By the panel's title: what stands beside each number, and the number; counted from EVENTS by hand."""


def resolve(expression: str) -> str:
    """A panel's query as Grafana sends it for the last hour. Pure."""
    return expression.replace("$__range", "1h").replace("$__interval", "1h")


def to_shown(panel: dict[str, Any], results: list[list[dict[str, Any]]]) -> dict[str, float]:
    """What *panel* shows of the *results* of its queries, in the form of EXPECTED. Pure."""
    shown = {}
    for target, result in zip(panel["targets"], results, strict=True):
        for series in result:
            legend = target["legendFormat"]
            if legend.startswith("{{"):
                legend = series["metric"].get(legend.strip("{}"), "")
            shown[legend] = round(float(series["value"][1]), 6)
    return shown
