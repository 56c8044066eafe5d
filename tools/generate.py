"""`python -m tools.generate [--check]`: writes what pages, guard and registry list anew from the code.

With --check it fails where they differ.
"""

import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Final

from otel_tbot.event import ATTRIBUTES, MAX_COUNT, OTHER, Attribute
from otel_tbot.exporters.records import SCOPE, to_resource
from otel_tbot.otlp.encoding import HOST_ARCHS, OS_TYPES
from otel_tbot.settings import SETTINGS
from tools import ROOT, reference
from tools.pages import read_pages
from tools.panels import DASHBOARD, EXPECTED
from tools.registry import to_registry

REGISTRY = ROOT / "semantic-conventions" / "tbot.yaml"
GUARD = ROOT / "collector-config" / "guard.yaml"

# What a version of the SDK and of this package looks like, in Go's regular expressions.
_SDK_VERSION = "[0-9]{1,4}(?:[.][0-9]{1,4}){1,3}(?:(?:a|b|rc|[.]dev)[0-9]{1,4})?"
_LINE_CHARACTERS = 116
_TABLE = re.compile(r"(<!-- ([a-z ]+): `make docs` writes this table -->\n)(.*?)(<!-- end of \2 -->\n)", re.DOTALL)


def main() -> int:
    """0 where every file is true now, 1 where --check found that one was not."""
    status = 0
    files = [(page.path, renew_page) for page in read_pages()]
    for path, renew in (*files, (GUARD, renew_guard), (REGISTRY, lambda _: to_registry())):
        text = path.read_text(encoding="utf-8")
        renewed = renew(text)
        if "--check" not in sys.argv:
            path.write_text(renewed, encoding="utf-8")
        elif text != renewed:
            print(f"{path.relative_to(ROOT)}: differs from the code; run `make docs`", file=sys.stderr)
            status = 1
    return status


def find_tables(text: str) -> list[str]:
    """The names of the tables that a page has markers for."""
    return [name for _, name, _, _ in _TABLE.findall(text)]


def renew_page(text: str) -> str:
    """*text* with each table between its markers made anew."""
    return _TABLE.sub(lambda found: found.group(1) + TABLES[found.group(2)]() + "\n" + found.group(4), text)


def to_panel_table() -> str:
    """Each panel of the dashboard with its queries and what they answer after the known events."""
    rows = ["| Panel | Query | Answer |", "| --- | --- | --- |"]
    for panel in DASHBOARD["panels"]:
        queries = "<br>".join(f"`{target['expr']}`".replace("|", "\\|") for target in panel["targets"])
        unit = panel["fieldConfig"]["defaults"]["unit"]
        answers = ", ".join(
            f"{name or '(not known)'} {f'{value:.0%}' if unit == 'percentunit' else f'{value:g}'}"
            for name, value in EXPECTED[panel["title"]].items()
        )
        rows.append(f"| {panel['title']} | {queries} | {answers} |")
    return "\n".join(rows)


def renew_guard(text: str) -> str:
    """*text* with each list between its markers made anew."""
    lists = {
        "attributes: log": (6, to_conditions("log")),
        "attributes: span": (6, to_conditions("span")),
        "keys: log": (10, to_keys("log")),
        "keys: span": (10, to_keys("span")),
    }
    for name, (indent, entries) in lists.items():
        text = _replace(text, name, "".join(_to_item(entry, indent) for entry in entries))
    resource = "      - context: resource\n        statements:\n"
    resource += "".join(_to_item(entry, 10) for entry in to_resource_statements())
    resource += "      - context: scope\n        statements:\n"
    resource += "".join(_to_item(entry, 10) for entry in to_scope_statements())
    return _replace(text, "resource", resource)


def _replace(text: str, name: str, lines: str) -> str:
    kind = name.partition(":")[0]
    pattern = rf"( *# <{re.escape(name)}>\n).*?( *# </{kind}>\n)"
    if not re.search(pattern, text, re.DOTALL):
        raise AssertionError(f"guard.yaml has no markers for {name}")
    return re.sub(pattern, lambda found: found.group(1) + lines + found.group(2), text, flags=re.DOTALL)


def _to_item(entry: str, indent: int) -> str:
    """An item of a list in YAML, over as many lines as it takes."""
    folded = textwrap.wrap(entry, _LINE_CHARACTERS - indent, break_long_words=False, break_on_hyphens=False)
    pad = " " * indent
    if len(folded) == 1:
        return f"{pad}- {entry}\n"
    return f"{pad}- >-\n" + "".join(f"{pad}  {line}\n" for line in folded)


def to_conditions(context: str) -> list[str]:
    """The conditions under which a record is dropped, one an attribute."""
    return [_to_condition(attribute, f'{context}.attributes["{attribute.key}"]') for attribute in ATTRIBUTES]


def _to_condition(attribute: Attribute, path: str) -> str:
    if attribute.type == "int":
        return f"not IsInt({path}) or {path} < 0 or {path} > {MAX_COUNT}"
    if attribute.values:
        allowed = (*attribute.values, *((OTHER,) if attribute.may_be_other else ()))
        test = f"ContainsValue({_to_list(allowed)}, {path})"
    else:
        test = f'IsMatch({path}, "{_to_pattern(attribute.pattern)}")'
        if attribute.may_be_other:
            test = f'({path} == "{OTHER}" or {test})'
    known = "" if attribute.is_required else f"{path} != nil and "
    return f"{known}not (IsString({path}) and {test})"


def to_keys(context: str) -> list[str]:
    """The statement that keeps the documented keys."""
    return [f"keep_keys({context}.attributes, {_to_list(attribute.key for attribute in ATTRIBUTES)})"]


def to_resource_statements() -> list[str]:
    """The statements that leave of a resource what the package's own has."""
    statements = [
        'merge_maps(resource.cache, resource.attributes, "insert")',
        "set(resource.attributes, resource.cache)",
    ]
    statements.append(f"keep_keys(resource.attributes, {_to_list(to_resource(is_local=True).attributes)})")
    constants = {"telemetry.sdk.language": "python", "telemetry.sdk.name": "opentelemetry"}
    statements.append('set(resource.attributes["service.name"], "tbot")')
    for key, value in constants.items():
        statements.append(f'set(resource.attributes["{key}"], "{value}") where resource.attributes["{key}"] != nil')
    for key, values in (("os.type", OS_TYPES), ("host.arch", HOST_ARCHS)):
        path = f'resource.attributes["{key}"]'
        allowed = _to_list(dict.fromkeys(values.values()))
        test = f"not (IsString({path}) and ContainsValue({allowed}, {path}))"
        statements.append(f'delete_key(resource.attributes, "{key}") where {path} != nil and {test}')
    path = 'resource.attributes["telemetry.sdk.version"]'
    test = f'not (IsString({path}) and IsMatch({path}, "{_to_pattern(_SDK_VERSION)}"))'
    statements.append(f'delete_key(resource.attributes, "telemetry.sdk.version") where {path} != nil and {test}')
    return [*statements, "set(resource.dropped_attributes_count, 0)", 'set(resource.schema_url, "")']


def to_scope_statements() -> list[str]:
    """The statements that leave of a scope what the package's own has."""
    return [
        f'set(scope.name, "{SCOPE.name}")',
        f'set(scope.version, "") where not IsMatch(scope.version, "{_to_pattern(_SDK_VERSION)}")',
        "keep_keys(scope.attributes, [])",
        "set(scope.dropped_attributes_count, 0)",
        'set(scope.schema_url, "")',
    ]


def _to_list(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _to_pattern(pattern: str) -> str:
    """A whole match, as a text of OTTL has it."""
    return f"^(?:{pattern})$".replace("\\", "\\\\")


def to_attribute_table() -> str:
    """The attributes: key, type, allowed values, meaning, and whether each is always there."""
    return reference.to_table(
        ("Attribute", "Type", "Allowed values", "Meaning", "Always there"),
        ((f"`{a.key}`", a.type, to_values(a), a.brief, "yes" if a.is_required else "no") for a in ATTRIBUTES),
    )


def to_values(attribute: Attribute) -> str:
    """What may stand under a key, for people."""
    if attribute.type == "int":
        return f"0 to {MAX_COUNT}"
    other = f", else `{OTHER}`" if attribute.may_be_other else ""
    if attribute.values:
        return ", ".join(f"`{value}`" for value in attribute.values) + other
    return f"{attribute.form}{other}"


def to_setting_table() -> str:
    """The variables: names, rule, default, meaning."""
    return reference.to_table(
        ("Variable", "Allowed values", "Default", "Meaning"),
        ((f"`{s.name}`", s.rule, s.unset_text, s.meaning) for s in SETTINGS),
    )


TABLES: Final[dict[str, Callable[[], str]]] = {
    "attributes": to_attribute_table,
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
}
"""Every table that pages can have, by the name in its markers."""


if __name__ == "__main__":
    sys.exit(main())
