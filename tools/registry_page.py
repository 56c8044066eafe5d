"""Writes the tables of the page on the registry, in the form of OpenTelemetry's own registry pages, for `make docs`.

Source of the form: open-telemetry/semantic-conventions, templates/registry/markdown, and docs/registry/attributes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tools.pages import to_table
from tools.registry import to_registry

_LEVELS = "https://opentelemetry.io/docs/specs/semconv/general/attribute-requirement-level/"
_VALUES = (
    "`{key}` has the following list of well-known values. If one of them applies, then the respective value MUST be "
    "used; no other value is used."
)


def to_attributes() -> str:
    """Returns the table of the attributes that the registry defines, their notes and their values."""
    (group,) = _read_groups("attribute_group")
    notes: list[str] = []
    rows = [
        (_to_anchor(one["id"]), _to_stability(one), _to_type(one), _to_text(one, notes), _to_examples(one))
        for one in sorted(group["attributes"], key=lambda one: one["id"])
    ]
    lines = [to_table(("Key", "Stability", "Value Type", "Description", "Example Values"), rows), *notes]
    for one in sorted(group["attributes"], key=lambda one: one["id"]):
        if isinstance(one["type"], Mapping):
            lines += ["---", f'<a id="{_to_slug(one["id"])}-values"></a>', _VALUES.format(key=one["id"])]
            lines.append(to_table(("Value", "Description", "Stability"), map(_to_member, one["type"]["members"])))
    return "\n\n".join(lines)


def to_event() -> str:
    """Returns the event's status, name, meaning and attributes with their requirement levels."""
    (event,) = _read_groups("event")
    return "\n\n".join(
        [f"**Status:** {_to_stability(event)}", f"The event name MUST be `{event['name']}`.", _to_signal(event)]
    )


def to_span() -> str:
    """Returns the span's status, kind, meaning and attributes with their requirement levels."""
    (span,) = _read_groups("span")
    kind = f"Span kind MUST be `{span['span_kind'].upper()}`."
    return "\n\n".join([f"**Status:** {_to_stability(span)}", kind, _to_signal(span)])


def _read_groups(kind: str) -> list[dict[str, Any]]:
    return [group for group in yaml.safe_load(to_registry())["groups"] if group["type"] == kind]


def _to_signal(group: Mapping[str, Any]) -> str:
    (defined,) = _read_groups("attribute_group")
    definitions = {one["id"]: one for one in defined["attributes"]}
    notes: list[str] = []
    rows = []
    for reference in group["attributes"]:
        key = reference["ref"]
        # OpenTelemetry defines the others; all of them are strings.
        one = {"type": "string", "stability": "development", **definitions.get(key, {}), **reference}
        level = _to_level(reference["requirement_level"])
        rows.append((f"`{key}`", _to_stability(one), level, _to_type(one), _to_text(one, notes), _to_examples(one)))
    head = ("Key", "Stability", f"[Requirement Level]({_LEVELS})", "Value Type", "Description", "Example Values")
    texts = [_to_lines(group["brief"]), _to_lines(group["note"])]
    return "\n\n".join([*texts, "**Attributes:**", to_table(head, rows), *notes])


def _to_lines(text: str) -> str:
    """Returns *text* with one sentence on each line, as all pages have it."""
    return re.sub(r"(?<=[.]) (?=[A-Z])", "\n", text.strip())


def _to_slug(key: str) -> str:
    return re.sub("[._]", "-", key)


def _to_anchor(key: str) -> str:
    return f'<a id="{_to_slug(key)}" href="#{_to_slug(key)}">`{key}`</a>'


def _to_stability(one: Mapping[str, Any]) -> str:
    return str(one["stability"]).replace("_", " ").capitalize()


def _to_type(one: Mapping[str, Any]) -> str:
    return "string" if isinstance(one["type"], Mapping) else str(one["type"])


def _to_text(one: Mapping[str, Any], notes: list[str]) -> str:
    key = one.get("id") or one["ref"]
    brief = str(one["brief"]).strip()
    return f"{brief} {_add_note(key, one['note'], notes)}" if "note" in one else brief


def _add_note(key: str, text: str, notes: list[str]) -> str:
    """Adds a note below the table and returns the mark that refers to it."""
    mark = f"[{len(notes) + 1}]"
    notes.append(f"**{mark} `{key}`:** {text.strip()}")
    return mark


def _to_level(level: str | Mapping[str, str]) -> str:
    if isinstance(level, str):
        return f"`{level.capitalize()}`"
    ((name, condition),) = level.items()
    return f"`{name.replace('_', ' ').title()}` {condition}"


def _to_examples(one: Mapping[str, Any]) -> str:
    examples: Sequence[object] = one["examples"]
    shown = "; ".join(f"`{example}`" for example in examples)
    if isinstance(one["type"], Mapping) and len(one["type"]["members"]) > len(examples):
        shown += f' <a href="#{_to_slug(one.get("id") or one["ref"])}-values">(see more)</a>'
    return shown


def _to_member(member: Mapping[str, str]) -> tuple[str, str, str]:
    return f"`{member['value']}`", member.get("brief", member["id"]).strip(), _to_stability(member)
