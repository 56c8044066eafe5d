"""Writes the event in the schema of OpenTelemetry's semantic-conventions registry, for `make docs`.

Source of the schema: open-telemetry/weaver, schemas/semconv-syntax.md and semconv.schema.json. Source of the rules for
names: open-telemetry/semantic-conventions, policies/.
"""

import json
import textwrap
from collections.abc import Iterator

from otel_tbot.event import ATTRIBUTES, EVENT_NAME, MAX_COUNT, OTHER, Attribute

HEAD = """\
# What otel-tbot sends, in the schema of OpenTelemetry's semantic-conventions registry. `make docs` writes this file
# from otel_tbot/event.py; README.md in this folder says how to read it.
groups:
"""
STABILITY = "development"
NAMESPACE = "tbot."
SPAN_KIND = "internal"
EXAMPLES: dict[str, list[str]] = {
    "tbot.version": ["18.4.1", "19.0.0-beta.2", OTHER],
    "tbot.helper": ["gha:teleport-actions/auth", OTHER],
    "tbot.helper_version": ["v2.0.1", OTHER],
    "session.id": ["2f1c9a4e-7d0b-4c2a-9a53-0c1de2f6b7a8"],
}
_LINE_CHARACTERS = 116
_BRIEF = "tbot was started. Sent at most once per start, and only if its user opted in."
_NOTE = (
    "The resource is `service.name` (always `tbot`), `telemetry.sdk.*` and, only if the event is made on the machine "
    "that tbot runs on, `os.type` and `host.arch`; nothing else. Times are whole seconds by the clock of the sending "
    "process. "
)
_SIGNAL_NOTES = {
    "event": "The record has severity INFO, the body `tbot.start`, and no trace context.",
    "span": "For pipelines that carry only spans: a root span of 1 microsecond, whose ids are made of `session.id`.",
}


def to_registry() -> str:
    """Returns the whole file."""
    own = [attribute for attribute in ATTRIBUTES if attribute.key.startswith(NAMESPACE)]
    lines = [
        "  - id: registry.tbot",
        "    type: attribute_group",
        "    display_name: tbot Attributes",
        *_to_text("brief", "Attributes of Teleport's Machine ID agent tbot.", 4),
        "    attributes:",
    ]
    for attribute in own:
        lines += _to_definition(attribute)
    for kind, note in _SIGNAL_NOTES.items():
        lines += [
            f"  - id: {kind}.{EVENT_NAME}" + (f".{SPAN_KIND}" if kind == "span" else ""),
            f"    type: {kind}",
            f"    name: {EVENT_NAME}" if kind == "event" else f"    span_kind: {SPAN_KIND}",
            f"    stability: {STABILITY}",
            *_to_text("brief", _BRIEF, 4),
            *_to_text("note", _NOTE + note, 4),
            "    attributes:",
        ]
        for attribute in ATTRIBUTES:
            lines += _to_reference(attribute)
    return HEAD + "\n".join(lines) + "\n"


def _to_definition(attribute: Attribute) -> Iterator[str]:
    yield f"      - id: {attribute.key}"
    if attribute.values:
        yield "        type:"
        yield "          members:"
        for value in (*attribute.values, *((OTHER,) if attribute.may_be_other else ())):
            yield f"            - id: {value.strip('_').lower().replace('-', '_')}"
            yield f"              value: {json.dumps(value)}"
            if value == OTHER:
                yield "              brief: Any other value."
            yield f"              stability: {STABILITY}"
    else:
        yield f"        type: {attribute.type}"
    yield f"        stability: {STABILITY}"
    yield from _to_text("brief", attribute.brief, 8)
    yield from _to_rules(attribute)


def _to_rules(attribute: Attribute) -> Iterator[str]:
    """Yields the rules that the schema has no field for, as a note for people and as annotations for programs."""
    if attribute.key in EXAMPLES:
        yield f"        examples: {json.dumps(EXAMPLES[attribute.key])}"
    else:
        yield f"        examples: {json.dumps([0, 2] if attribute.type == 'int' else list(attribute.values[:2]))}"
    if attribute.type == "int":
        yield from _to_text("note", f"0 to {MAX_COUNT}.", 8)
        yield "        annotations:"
        yield f"          otel_tbot: {{minimum: 0, maximum: {MAX_COUNT}}}"
    elif attribute.pattern:
        other = f", or `{OTHER}` for any other text" if attribute.may_be_other else ""
        yield from _to_text("note", f"{attribute.form[0].upper()}{attribute.form[1:]}{other}.", 8)
        yield "        annotations:"
        yield "          otel_tbot:"
        # YAML reads no escapes in single quotes.
        yield f"            pattern: '{attribute.pattern}'"


def _to_reference(attribute: Attribute) -> Iterator[str]:
    yield f"      - ref: {attribute.key}"
    if attribute.is_required:
        yield "        requirement_level: required"
    else:
        yield "        requirement_level:"
        yield "          conditionally_required: If it is known."
    if not attribute.key.startswith(NAMESPACE):
        yield from _to_text("brief", attribute.brief, 8)
        yield from _to_rules(attribute)


def _to_text(key: str, text: str, indent: int) -> Iterator[str]:
    """Yields *text* under *key*, as a folded YAML string."""
    yield f"{' ' * indent}{key}: >-"
    yield from (
        f"{' ' * (indent + 2)}{line}" for line in textwrap.wrap(text, _LINE_CHARACTERS - indent, break_long_words=False)
    )
