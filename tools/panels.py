"""Holds known events and what each panel of the dashboard shows after them, counted by hand."""

from typing import Any, Final

EVENTS: Final[tuple[dict[str, Any], ...]] = (
    *(
        {
            "run_mode": "one-shot",
            "version": "18.4.1",
            "join_type": "github",
            "helper": "gha:a/b",
            "helper_version": "v2",
        },
    )
    * 4,
    *({"run_mode": "daemon", "version": "18.4.1", "join_type": "kubernetes", "destinations_kubernetes": 3},) * 3,
    *({"run_mode": "daemon", "version": "17.0.0", "join_type": "kubernetes", "destinations_database": 2},) * 2,
    {"run_mode": "daemon", "destinations_application": 1, "destinations_other": 1},
    {"run_mode": "one-shot", "version": "_OTHER", "join_type": "_OTHER", "helper": "wrapper", "destinations_other": 2},
)
"""Eleven starts; of the last but one neither version nor join method is known."""

REMOTE: Final = 2
"""As many of EVENTS, from the end, reached a bridge: the machine that tbot runs on is not known."""

EXPECTED: Final[dict[str, dict[str, float]]] = {
    "Starts": {"starts": 11},
    "Trend of starts": {"starts": 11},
    "Starts over time": {"one-shot": 5, "daemon": 6},
    "Versions over time": {"18.4.1": 7, "17.0.0": 2, "unknown": 1, "_OTHER": 1},
    "Versions in the last 24 hours": {"18.4.1": 7, "17.0.0": 2, "unknown": 1, "_OTHER": 1},
    "Join methods": {"github": 4, "kubernetes": 5, "unknown": 1, "_OTHER": 1},
    "Helpers and their versions": {"gha:a/b v2": 4, "wrapper unknown": 1},
    "Operating systems": {"linux amd64": 9, "unknown unknown": 2},
    "Destinations per start": {
        "Database Service": round(4 / 11, 6),
        "Kubernetes Service": round(9 / 11, 6),
        "Application Service": round(1 / 11, 6),
        "other": round(3 / 11, 6),
    },
    "Destinations in all": {
        "Database Service": 4,
        "Kubernetes Service": 9,
        "Application Service": 1,
        "other": 3,
    },
    "Events": {
        "one-shot tbot 18.4.1, join method github, helper gha:a/b": 4,
        "daemon tbot 18.4.1, join method kubernetes, no helper": 3,
        "daemon tbot 17.0.0, join method kubernetes, no helper": 2,
        "daemon tbot unknown, join method unknown, no helper": 1,
        "one-shot tbot _OTHER, join method _OTHER, helper wrapper": 1,
    },
}
"""By the panel's title: the name of each series, or each line of the event stream, and its number."""
