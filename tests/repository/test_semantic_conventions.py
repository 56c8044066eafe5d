"""Checks the published definition of the event against the rules of OpenTelemetry's registry, and against the code.

No package registry has the schema of OpenTelemetry's registry, or its checker, weaver, a Rust program that is not on
crates.io. Therefore semconv.schema.json in this folder states the rules again, more strictly if the schema allows forms
that we do not use. The rules and their sources, in open-telemetry/weaver at the commits
1316aec56ab1 (semconv.schema.json), 08c60cbfe401 (semconv-syntax.md) and 3f5197732d10 (definition-manifest.v2.json):

- groups have an id, a type of five, a brief, attributes, and no unknown key; all but attribute groups a stability;
  events a name, spans a kind of five (semconv.schema.json)
- an attribute is defined (id, type, stability, brief; a string has examples) or referred to, and not both; members of
  an enumeration have id, value and stability (semconv.schema.json, semconv-syntax.md)
- a requirement level is required, recommended, opt_in, or conditionally_required with its condition
- ids are unique, a reference leads to a definition, here or in the registry that the manifest depends on
- a manifest has a schema URL that ends in a version, a stability, and dependencies with a schema URL each

find_policy_errors states the policies that OpenTelemetry applies to its own registry, in the folder policies/ of
open-telemetry/semantic-conventions at the commits 038c92c7c932 (yaml_schema.rego), 09cb3cf21934 (registry.rego),
03a584f1adac (attribute_name_collisions.rego), 040f979a2ccd (group_stability.rego), c9462e8702d8
(unbounded_attributes.rego) and 4a988c90a710 (reference_attributes.rego). The schema covers brief.rego.
"""

import copy
import json
import re

import jsonschema
import pytest
import yaml
from opentelemetry.semconv._incubating.attributes import host_attributes, os_attributes, session_attributes
from opentelemetry.semconv.attributes import service_attributes, telemetry_attributes
from opentelemetry.semconv.schemas import Schemas

from otel_tbot.event import ATTRIBUTES, EVENT_NAME, MAX_COUNT, OTHER
from otel_tbot.exporters.records import to_resource
from otel_tbot.otlp.encoding import HOST_ARCHS, OS_TYPES
from tests.support.checkout import ROOT

FOLDER = ROOT / "semantic-conventions"
GROUPS = yaml.safe_load((FOLDER / "tbot.yaml").read_text(encoding="utf-8"))
MANIFEST = yaml.safe_load((FOLDER / "manifest.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((ROOT / "tests" / "repository" / "semconv.schema.json").read_text(encoding="utf-8"))
DEFINED, EVENT, SPAN = GROUPS["groups"]
DEFINITIONS = {attribute["id"]: attribute for attribute in DEFINED["attributes"]}

# Attributes that OpenTelemetry's registry defines, on which ours depends, from the package generated from it.
OPENTELEMETRY = {
    session_attributes.SESSION_ID,
    host_attributes.HOST_ARCH,
    os_attributes.OS_TYPE,
    service_attributes.SERVICE_NAME,
    telemetry_attributes.TELEMETRY_SDK_LANGUAGE,
    telemetry_attributes.TELEMETRY_SDK_NAME,
    telemetry_attributes.TELEMETRY_SDK_VERSION,
}


def is_valid(groups):
    """Returns whether *groups* follow the schema."""
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(groups)


def test_the_file_follows_the_schema():
    """The file is valid, and so is the schema itself."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    jsonschema.validate(GROUPS, SCHEMA, jsonschema.Draft202012Validator)


def set_value(groups, path, value):
    """Returns a copy of *groups* with *value* at *path*; None removes what is there."""
    broken = copy.deepcopy(groups)
    *steps, last = path
    target = broken
    for step in steps:
        target = target[step]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return broken


FIRST = ("groups", 0, "attributes", 0)
VERSION = ("groups", 0, "attributes", 1)
INVALID = {
    "an unknown key of the file": (("versions",), 2),
    "an unknown key of a group": (("groups", 0, "briefs"), "x"),
    "an unknown type of group": (("groups", 0, "type"), "log"),
    "a group without a brief": (("groups", 0, "brief"), None),
    "an event without a name": (("groups", 1, "name"), None),
    "an event without a stability": (("groups", 1, "stability"), None),
    "an event with a kind": (("groups", 1, "span_kind"), "internal"),
    "a span without a kind": (("groups", 2, "span_kind"), None),
    "a span of an unknown kind": (("groups", 2, "span_kind"), "inner"),
    "an old stability": (("groups", 1, "stability"), "experimental"),
    "an attribute without a stability": ((*FIRST, "stability"), None),
    "an attribute of an unknown type": ((*VERSION, "type"), "text"),
    "a string without examples": ((*VERSION, "examples"), None),
    "an attribute that is defined and referred to": ((*FIRST, "ref"), "tbot.run_mode"),
    "a name with a capital": ((*FIRST, "id"), "tbot.runMode"),
    "a member without a stability": ((*FIRST, "type", "members", 0, "stability"), None),
    "a member whose id is not a word": ((*FIRST, "type", "members", 0, "id"), "one-shot"),
    "an unknown requirement level": (("groups", 1, "attributes", 0, "requirement_level"), "always"),
    "a condition without its text": (
        ("groups", 1, "attributes", 1, "requirement_level"),
        {"conditionally_required": ""},
    ),
}


@pytest.mark.parametrize(("path", "value"), INVALID.values(), ids=INVALID)
def test_the_schema_rejects_each_error(path, value):
    """Breaking each rule of the schema once makes the file invalid."""
    assert not is_valid(set_value(GROUPS, path, value))


STABILITY_RANKS = {"development": 1, "alpha": 2, "beta": 3, "release_candidate": 4, "stable": 5}


def find_policy_errors(groups):
    """Returns the policies that *groups* break, by the name of the policy's file."""
    attributes = [one for group in groups["groups"] for one in group["attributes"]]
    ranks = {one["id"]: STABILITY_RANKS[one["stability"]] for one in attributes if "id" in one}
    names = {get_key(one) for one in attributes}
    errors = {error for group in groups["groups"] for error in find_policy_errors_of_group(group, ranks)}
    for name in names:
        if not re.fullmatch("[a-z][a-z0-9]*([._][a-z0-9]+)*", name) or "." not in name:
            errors.add("yaml_schema")
        if any(other.startswith(f"{name}.") for other in names):
            errors.add("attribute_name_collisions")
        if name.endswith("_ref") and name.removesuffix("_ref") not in names:
            errors.add("reference_attributes")
    return sorted(errors)


def find_policy_errors_of_group(group, ranks):
    """Yields the policies that one group breaks; *ranks* are the stabilities of the defined attributes."""
    keys = [get_key(one) for one in group["attributes"]]
    form = {
        "event": f"event.{group.get('name')}",
        "span": rf"span\.[a-z0-9_.]+\.{group.get('span_kind')}",
        "attribute_group": r"registry\..+",
    }[group["type"]]
    if not re.fullmatch(form, group["id"]) or "prefix" in group or "event.name" in keys:
        yield "yaml_schema"
    if any(("id" in one) != group["id"].startswith("registry.") for one in group["attributes"]):
        yield "registry"
    if len(keys) != len(set(keys)):
        yield "attribute_name_collisions"
    rank = STABILITY_RANKS[group.get("stability", "development")]
    if any(
        rank > ranks.get(get_key(one), 1) for one in group["attributes"] if one.get("requirement_level") != "opt_in"
    ):
        yield "group_stability"
    if any(one.get("annotations", {}).get("value", {}).get("unbounded_size") for one in group["attributes"]):
        yield "unbounded_attributes"


def get_key(attribute):
    """Returns the key that *attribute* defines or refers to."""
    return attribute.get("id") or attribute["ref"]


BROKEN_POLICIES = {
    "an event whose id is not its name's": (("groups", 1, "id"), "event.tbot.started", "yaml_schema"),
    "a span whose id does not end in its kind": (("groups", 2, "id"), "span.tbot.start", "yaml_schema"),
    "an attribute without a namespace": ((*FIRST, "id"), "run_mode", "yaml_schema"),
    "an attribute that begins with a digit": ((*FIRST, "id"), "1tbot.run_mode", "yaml_schema"),
    "the event's name as an attribute": (("groups", 1, "attributes", 0, "ref"), "event.name", "yaml_schema"),
    "a prefix": (("groups", 0, "prefix"), "tbot", "yaml_schema"),
    "a definition outside of the registry": (("groups", 1, "attributes", 0), DEFINED["attributes"][0], "registry"),
    "a reference in the registry": (("groups", 0, "attributes", 0), {"ref": "session.id"}, "registry"),
    "an attribute that is a namespace": ((*FIRST, "id"), "tbot.version.major", "attribute_name_collisions"),
    "an attribute twice": (("groups", 1, "attributes", 0, "ref"), "tbot.version", "attribute_name_collisions"),
    "an event more stable than its attributes": (("groups", 1, "stability"), "stable", "group_stability"),
    "an unbounded value": ((*FIRST, "annotations"), {"value": {"unbounded_size": True}}, "unbounded_attributes"),
    "a reference to nothing": ((*FIRST, "id"), "tbot.config_ref", "reference_attributes"),
}


def test_the_file_follows_the_policies():
    """OpenTelemetry's policies for its own registry hold for this one."""
    assert [] == find_policy_errors(GROUPS)


@pytest.mark.parametrize(("path", "value", "policy"), BROKEN_POLICIES.values(), ids=BROKEN_POLICIES)
def test_each_broken_policy_is_found(path, value, policy):
    """Breaking each policy once is reported."""
    assert policy in find_policy_errors(set_value(GROUPS, path, value))


def test_ids_are_unique_and_references_are_defined():
    """No id occurs twice, every reference is defined here or by OpenTelemetry, and every definition is used."""
    ids = [group["id"] for group in GROUPS["groups"]] + [attribute["id"] for attribute in DEFINED["attributes"]]
    constants = [re.sub("[._]", "_", name) for name in DEFINITIONS]
    referred = {reference["ref"] for group in (EVENT, SPAN) for reference in group["attributes"]}

    assert len(ids) == len(set(ids))
    assert len(constants) == len(set(constants))
    assert set(DEFINITIONS) | (referred & OPENTELEMETRY) == referred
    # A name must not be the namespace of another name.
    assert not [name for name in DEFINITIONS if any(other.startswith(f"{name}.") for other in DEFINITIONS)]


@pytest.mark.parametrize("group", [EVENT, SPAN], ids=["event", "span"])
def test_event_and_span_have_the_attributes_of_the_code(group):
    """Both have the same keys in the same order, required if the code always sets them."""
    levels = {reference["ref"]: reference["requirement_level"] == "required" for reference in group["attributes"]}

    assert {attribute.key: attribute.is_required for attribute in ATTRIBUTES} == levels
    assert [attribute.key for attribute in ATTRIBUTES] == list(levels)
    assert EVENT_NAME == EVENT["name"]
    assert "internal" == SPAN["span_kind"]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.key)
def test_each_attribute_is_defined_as_in_the_code(attribute):
    """Type, values, pattern, bounds and meaning are the code's, and every example is a valid value."""
    references = {reference["ref"]: reference for reference in EVENT["attributes"]}
    defined = DEFINITIONS.get(attribute.key, references[attribute.key])
    rules = defined.get("annotations", {}).get("otel_tbot", {})
    other = (OTHER,) if attribute.may_be_other else ()

    assert attribute.brief == defined["brief"]
    if attribute.values:
        assert [*attribute.values, *other] == [member["value"] for member in defined["type"]["members"]]
    elif attribute.key in DEFINITIONS:
        assert attribute.type == defined["type"]
    assert attribute.pattern == rules.get("pattern", "")
    assert ({"minimum": 0, "maximum": MAX_COUNT} if attribute.type == "int" else {}) == {
        name: rules[name] for name in ("minimum", "maximum") if name in rules
    }
    assert defined["examples"]
    assert all(attribute.allows(example) for example in defined["examples"])
    assert not attribute.may_be_other or attribute.values or f"`{OTHER}`" in defined["note"]


def test_the_resource_is_of_opentelemetry_s_own_attributes():
    """OpenTelemetry defines each key of the resource and its values, and the notes name the keys."""
    values = {member.value for member in host_attributes.HostArchValues}

    assert set(to_resource(is_local=True).attributes) <= OPENTELEMETRY
    assert set(HOST_ARCHS.values()) <= values
    assert set(OS_TYPES.values()) <= {member.value for member in os_attributes.OsTypeValues}
    named = {re.sub(r"^telemetry[.]sdk[.].*", "telemetry.sdk.*", key) for key in to_resource(is_local=True).attributes}
    assert all(key in group["note"] for key in named for group in (EVENT, SPAN))


def test_the_page_shows_the_registry():
    """Each attribute, value, example and requirement level of the registry is on the generated page."""
    page = (ROOT / "docs" / "reference" / "registry.md").read_text(encoding="utf-8")
    attributes, event, span = re.split("^## (?:Event|Span): ", page, flags=re.MULTILINE)

    for key, defined in DEFINITIONS.items():
        (row,) = re.findall(rf"^\| <a id=[^>]+>`{key}`</a> \|(.+)\|$", attributes, re.MULTILINE)
        assert [f"`{example}`" for example in defined["examples"] if f"`{example}`" not in row] == []
        assert defined["brief"] in row
        if isinstance(defined["type"], dict):
            values = attributes.partition(f'<a id="{re.sub("[._]", "-", key)}-values">')[2].partition("\n---\n")[0]
            assert [member["value"] for member in defined["type"]["members"]] == re.findall(
                r"^\| `([^`]+)` \|", values, re.MULTILINE
            )
    for section, group in ((event, EVENT), (span, SPAN)):
        levels = dict(re.findall(r"^\| `([a-z_.]+)` \| Development \| `([A-Za-z ]+)`", section, re.MULTILINE))
        assert {
            reference["ref"]: "Required" if reference["requirement_level"] == "required" else "Conditionally Required"
            for reference in group["attributes"]
        } == levels


def test_the_manifest_names_a_registry_and_what_it_depends_on():
    """It has a schema URL with a version, a stability, and OpenTelemetry's registry at one version in both places."""
    allowed = {"schema_url", "description", "stability", "dependencies"}
    (dependency,) = MANIFEST["dependencies"]
    version = dependency["schema_url"].rpartition("/")[2]

    assert allowed >= set(MANIFEST)
    assert re.fullmatch(r"https?://[^/]+/.+/\d+\.\d+\.\d+", MANIFEST["schema_url"])
    assert MANIFEST["stability"] in SCHEMA["$defs"]["stability"]["enum"]
    assert {"schema_url", "registry_path"} == set(dependency)
    assert dependency["schema_url"] in {schema.value for schema in Schemas}
    assert f"@v{version}[model]" in dependency["registry_path"]
