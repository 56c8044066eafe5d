"""Generates tables of the docs, the guard, the dashboards and the registry from the code.

`python -m tools.generate [--check]`: with --check it writes nothing, and fails if a file differs from the code.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from otel_tbot.event import ATTRIBUTES, MAX_COUNT, OTHER, Attribute
from otel_tbot.settings import SETTINGS
from tools import ROOT, chart, dashboards, reference, registry_page, scale
from tools.guard import GUARD, renew_guard
from tools.pages import read_pages, to_table
from tools.panels import EXPECTED
from tools.registry import to_registry

REGISTRY = ROOT / "semantic-conventions" / "tbot.yaml"
_TABLE = re.compile(r"(<!-- ([a-z ]+): `make docs` writes this table -->\n)(.*?)(<!-- end of \2 -->\n)", re.DOTALL)


def main() -> int:
    """Writes or compares every file; returns 1 if --check finds a difference, otherwise 0."""
    status = 0
    files = [(page.path, renew_page) for page in read_pages()]
    files += [(dashboards.FOLDER / store.file_name, partial(_renew_dashboard, store)) for store in dashboards.STORES]
    files += [(GUARD, renew_guard), (REGISTRY, lambda _: to_registry())]
    # After the guard, which is one of the sources.
    files += [(copy, partial(chart.read_source, source)) for copy, source in chart.COPIES.items()]
    # After the copies, which are in the manifests. Without Helm they stay as they are; a test compares them.
    files += [(chart.MANIFESTS, chart.render_manifests)] if chart.HELM.exists() else []
    for path, renew in files:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        renewed = renew(text)
        if "--check" not in sys.argv:
            path.write_text(renewed, encoding="utf-8")
        elif text != renewed:
            print(f"{path.relative_to(ROOT)}: differs from the code; run `make docs`", file=sys.stderr)
            status = 1
    return status


def _renew_dashboard(store: dashboards.Store, _: str) -> str:
    """Returns the dashboard for *store*."""
    return dashboards.to_text(store)


def find_tables(text: str) -> list[str]:
    """Returns the names of the tables for which a page has markers."""
    return [name for _, name, _, _ in _TABLE.findall(text)]


def renew_page(text: str) -> str:
    """Returns *text* with each table between its markers generated again."""
    return _TABLE.sub(lambda found: found.group(1) + TABLES[found.group(2)]() + "\n" + found.group(4), text)


def to_panel_table() -> str:
    """Returns each panel of the dashboard with its queries, and what they answer after the known events."""
    store = dashboards.VictoriaLogs()
    rows = ["| Panel | What its query does with the filtered events (LogsQL) | Answer |", "| --- | --- | --- |"]
    for panel in dashboards.list_panels(dashboards.to_dashboard(store)):
        if panel["title"] not in EXPECTED:
            continue
        queries = "<br>".join(f"`{dashboards.to_computation(target['expr'])}`" for target in panel["targets"])
        answers = ", ".join(f"{name} {value:g}" for name, value in EXPECTED[panel["title"]].items())
        rows.append(f"| {panel['title']} | {queries.replace('|', chr(92) + '|')} | {answers} |")
    return "\n".join(rows)


def to_attribute_table() -> str:
    """Returns the table of attributes: key, type, allowed values, meaning, and whether each is always there."""
    return to_table(
        ("Attribute", "Type", "Allowed values", "Meaning", "Always there"),
        ((f"`{a.key}`", a.type, to_values(a), a.brief, "yes" if a.is_required else "no") for a in ATTRIBUTES),
    )


def to_values(attribute: Attribute) -> str:
    """Returns the values that *attribute* may have, for people."""
    if attribute.type == "int":
        return f"0 to {MAX_COUNT}"
    other = f", else `{OTHER}`" if attribute.may_be_other else ""
    if attribute.values:
        return ", ".join(f"`{value}`" for value in attribute.values) + other
    return f"{attribute.form}{other}"


def to_setting_table() -> str:
    """Returns the table of variables: name, allowed values, default, meaning."""
    return to_table(
        ("Variable", "Allowed values", "Default", "Meaning"),
        ((f"`{s.name}`", s.rule, s.unset_text, s.meaning) for s in SETTINGS),
    )


TABLES: Final[dict[str, Callable[[], str]]] = {
    "attributes": to_attribute_table,
    "registry attributes": registry_page.to_attributes,
    "registry event": registry_page.to_event,
    "registry span": registry_page.to_span,
    "settings": to_setting_table,
    "resource": reference.to_resource_table,
    "commands": reference.to_command_sections,
    "names": reference.to_name_table,
    "outcomes": reference.to_outcome_table,
    "limits": reference.to_limit_table,
    "metrics": reference.to_metric_table,
    "panels": to_panel_table,
    "performance": reference.to_performance_table,
    "kit": reference.to_kit_table,
    "kit variables": reference.to_kit_variable_table,
    "targets": reference.to_target_table,
    "chart values": chart.to_values_table,
    "start cost": scale.to_cost_table,
    "fleet need": scale.to_need_table,
    "outage": scale.to_outage_table,
}
"""Every table that pages can have, by the name in its markers."""


if __name__ == "__main__":
    sys.exit(main())
