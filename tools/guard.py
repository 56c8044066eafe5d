"""Writes the collector guard's statements from the table of attributes."""

import re
import textwrap
from collections.abc import Iterable
from typing import Final

from otel_tbot.event import ATTRIBUTES, MAX_COUNT, OTHER, Attribute
from otel_tbot.otlp.encoding import HOST_ARCHS, OS_TYPES, SCOPE_NAME
from tools import ROOT

GUARD: Final = ROOT / "collector-config" / "guard.yaml"

# A version of the SDK or of this package, as a regular expression of Go.
_SDK_VERSION: Final = "[0-9]{1,4}(?:[.][0-9]{1,4}){1,3}(?:(?:a|b|rc|[.]dev)[0-9]{1,4})?"
_LINE_CHARACTERS: Final = 116


def renew_guard(text: str) -> str:
    """Returns *text*, the guard's file, with each list between its markers written again. Pure."""
    for context in ("log", "span"):
        text = _replace(text, f"conditions: {context}", _to_list(to_conditions(context), 6))
        text = _replace(text, f"attributes: {context}", _to_list(to_attribute_statements(context), 10))
    resource = "      - context: resource\n        statements:\n" + _to_list(to_resource_statements(), 10)
    scope = "      - context: scope\n        statements:\n" + _to_list(to_scope_statements(), 10)
    return _replace(text, "resource and scope", resource + scope)


def to_conditions(context: str) -> list[str]:
    """Returns the conditions that drop a record: one for each attribute that has no substitute value."""
    return [
        f"not ({_to_test(attribute, _to_path(context, attribute.key))})"
        for attribute in ATTRIBUTES
        if attribute.is_required
    ]


def to_attribute_statements(context: str) -> list[str]:
    """Returns the statements that write a record's attributes again, in the order of the table.

    A key is copied as its value only: what else its entry holds, such as an index into a table of strings, is not. A
    value that a newer sender knows and this guard does not becomes OTHER. Without a helper there is no version of one.
    """
    statements = []
    for attribute in ATTRIBUTES:
        path, copy = _to_path(context, attribute.key), f'{context}.cache["{attribute.key}"]'
        if attribute.is_required:
            statements.append(f"set({copy}, {path})")
        else:
            helper = f' and {context}.cache["tbot.helper"] != nil' if attribute.key == "tbot.helper_version" else ""
            statements += [
                f'set({copy}, "{OTHER}") where {path} != nil and {path} != ""{helper}',
                f"set({copy}, {path}) where {_to_test(attribute, path)}{helper}",
            ]
    return [*statements, f"set({context}.attributes, {context}.cache)"]


def to_resource_statements() -> list[str]:
    """Returns the statements that leave nothing on a resource but what the package's own resource has."""
    tests = {
        "telemetry.sdk.version": f'IsMatch(X, "{_to_pattern(_SDK_VERSION)}")',
        "os.type": f"ContainsValue({_to_values(dict.fromkeys(OS_TYPES.values()))}, X)",
        "host.arch": f"ContainsValue({_to_values(dict.fromkeys(HOST_ARCHS.values()))}, X)",
    }
    statements = ['set(resource.cache["service.name"], "tbot")']
    for key, value in (("telemetry.sdk.language", "python"), ("telemetry.sdk.name", "opentelemetry")):
        statements.append(f'set(resource.cache["{key}"], "{value}") where {_to_path("resource", key)} != nil')
    for key, test in tests.items():
        path = _to_path("resource", key)
        statements.append(f'set(resource.cache["{key}"], {path}) where IsString({path}) and {test.replace("X", path)}')
    return [
        *statements,
        "set(resource.attributes, resource.cache)",
        "set(resource.dropped_attributes_count, 0)",
        'set(resource.schema_url, "")',
    ]


def to_scope_statements() -> list[str]:
    """Returns the statements that leave nothing on a scope but what the package's own scope has."""
    return [
        f'set(scope.name, "{SCOPE_NAME}")',
        f'set(scope.version, "") where not IsMatch(scope.version, "{_to_pattern(_SDK_VERSION)}")',
        "keep_keys(scope.attributes, [])",
        "set(scope.dropped_attributes_count, 0)",
        'set(scope.schema_url, "")',
    ]


def _to_path(context: str, key: str) -> str:
    return f'{context}.attributes["{key}"]'


def _to_test(attribute: Attribute, path: str) -> str:
    """Returns the condition under which the value at *path* keeps to the rule of *attribute*."""
    if attribute.type == "int":
        return f"IsInt({path}) and {path} >= 0 and {path} <= {MAX_COUNT}"
    if attribute.values:
        return f"IsString({path}) and ContainsValue({_to_values(attribute.values)}, {path})"
    return f'IsString({path}) and IsMatch({path}, "{_to_pattern(attribute.pattern)}")'


def _to_values(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _to_pattern(pattern: str) -> str:
    """Returns *pattern* as a string of OTTL that matches a whole value."""
    return f"^(?:{pattern})$".replace("\\", "\\\\")


def _to_list(entries: Iterable[str], indent: int) -> str:
    """Returns *entries* as a list in YAML, each over as many lines as it needs."""
    return "".join(_to_item(entry, " " * indent) for entry in entries)


def _to_item(entry: str, pad: str) -> str:
    lines = textwrap.wrap(entry, _LINE_CHARACTERS - len(pad), break_long_words=False, break_on_hyphens=False)
    if len(lines) == 1:
        return f"{pad}- {entry}\n"
    return f"{pad}- >-\n" + "".join(f"{pad}  {line}\n" for line in lines)


def _replace(text: str, name: str, lines: str) -> str:
    pattern = rf"( *# <{name}>\n).*?( *# </{name}>\n)"
    if not re.search(pattern, text, re.DOTALL):
        raise AssertionError(f"guard.yaml: no markers for {name}")
    return re.sub(pattern, lambda found: found.group(1) + lines + found.group(2), text, flags=re.DOTALL)
