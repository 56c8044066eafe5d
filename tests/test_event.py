import dataclasses
import re
import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_tbot.errors import EventError, OtelTbotError
from otel_tbot.event import (
    ATTRIBUTES,
    HELPER_PATTERN,
    HELPER_VERSION_PATTERN,
    JOIN_METHODS,
    MAX_COUNT,
    OTHER,
    RUN_MODES,
    SESSION_ID_PATTERN,
    VERSION_PATTERN,
    Attribute,
    TbotStart,
    to_helper,
    to_helper_version,
    to_join_type,
    to_version,
)

RANDOM_ID = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
TIME_BASED_ID = "c232ab00-9414-11ec-b3c8-9f6bdeced846"
NAME_BASED_ID = "2ed6657d-e927-568b-95e1-2665a8aea6a2"
COUNTS = ("destinations_other", "destinations_database", "destinations_kubernetes", "destinations_application")
TEXTS = st.text() | st.from_regex(VERSION_PATTERN) | st.from_regex(HELPER_PATTERN) | st.sampled_from(JOIN_METHODS)
BY_KEY = {attribute.key: attribute for attribute in ATTRIBUTES}


def test_the_table_is_the_documented_event():
    """Keys, types and what is always there are those of the design, in its order."""
    documented = [
        ("tbot.run_mode", "string", True),
        ("tbot.version", "string", False),
        ("tbot.join_type", "string", False),
        ("tbot.helper", "string", False),
        ("tbot.helper_version", "string", False),
        ("tbot.destinations_other", "int", True),
        ("tbot.destinations_database", "int", True),
        ("tbot.destinations_kubernetes", "int", True),
        ("tbot.destinations_application", "int", True),
        ("session.id", "string", True),
    ]

    assert documented == [(attribute.key, attribute.type, attribute.is_required) for attribute in ATTRIBUTES]
    assert {field.name for field in dataclasses.fields(TbotStart)} == {attribute.field for attribute in ATTRIBUTES}


def test_the_join_methods_are_tbot_s():
    """The closed list of join methods."""
    methods = (
        "token azure azure_devops bitbucket bound_keypair circleci ec2 env0 gcp generic_oidc github gitlab iam "
        "kubernetes oracle spacelift terraform_cloud tpm"
    )

    assert tuple(methods.split()) == JOIN_METHODS


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", ""),
        ("18.4.1", "18.4.1"),
        ("0.0.0", "0.0.0"),
        ("18.4.1-dev", "18.4.1-dev"),
        ("18.4.1-dev.12", "18.4.1-dev.12"),
        ("18.4.1-alpha.1", "18.4.1-alpha.1"),
        ("18.4.1-beta2", "18.4.1-beta2"),
        ("18.4.1-rc.3", "18.4.1-rc.3"),
        ("18.4.1+build.host", "18.4.1"),
        ("18.4.1-rc.3+git.abcdef", "18.4.1-rc.3"),
        ("18.4.1-acme.corp", "18.4.1"),
        ("18.4.1-device", "18.4.1"),
        ("18.4.1-rc.3-acme", "18.4.1-rc.3"),
        ("18.4.1-dev.acme", "18.4.1-dev"),
        ("18.4.1-dev.12345", "18.4.1-dev"),
        ("18.4.1-dev12345", "18.4.1"),
        ("18.4.1.7", "18.4.1"),
        ("18.4.1 on acme", "18.4.1"),
        ("18.4.1\n", "18.4.1"),
        ("v18.4.1", "18.4.1"),
        ("v18.4.1-rc.3+git", "18.4.1-rc.3"),
        ("vv18.4.1", OTHER),
        ("v", OTHER),
        ("18.4", OTHER),
        ("18", OTHER),
        ("018.4.1", OTHER),
        ("18.4.20261123", OTHER),
        ("10000.0.0", OTHER),
        ("acme", OTHER),
        (" 18.4.1", OTHER),
        ("１８.4.1", OTHER),
        ("-1.0.0", OTHER),
    ],
)
def test_a_version_is_cut_where_free_text_begins(text, version):
    """Three numbers and a known pre-release suffix travel; what follows does not; no version is `_OTHER`."""
    assert version == to_version(text)
    assert version == TbotStart(run_mode="daemon", version=text).version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", ""),
        ("1", "1"),
        ("v1", "v1"),
        ("v2.0.1", "v2.0.1"),
        ("1.2.3.4", "1.2.3.4"),
        ("v1.0.0-rc.1", "v1.0.0-rc.1"),
        ("1.2.3-beta", "1.2.3-beta"),
        ("1.2.3+acme", "1.2.3"),
        ("1.2.3 acme", "1.2.3"),
        ("1.2.3.4.5", "1.2.3.4"),
        ("vv1", OTHER),
        ("main", OTHER),
        ("4f2a9c1", OTHER),
        ("7d", OTHER),
        ("20261123", OTHER),
        ("v", OTHER),
    ],
)
def test_a_helper_s_version_is_cut_where_free_text_begins(text, version):
    """One to four numbers, a leading v and a known suffix travel; the beginning of a commit id does not."""
    assert version == to_helper_version(text)
    assert version == TbotStart(run_mode="daemon", helper="h", helper_version=text).helper_version


@pytest.mark.parametrize(
    ("text", "helper"),
    [
        ("", ""),
        ("gha:teleport-actions/auth", "gha:teleport-actions/auth"),
        ("a", "a"),
        ("A-Za-z0-9._:/-", "A-Za-z0-9._:/-"),
        ("x" * 64, "x" * 64),
        ("x" * 65, OTHER),
        ("acme helper", OTHER),
        ("helper@acme", OTHER),
        ("hélper", OTHER),
        ("helper\n", OTHER),
    ],
)
def test_a_helper_is_1_to_64_of_the_allowed_characters(text, helper):
    """A helper's name outside its characters is counted as `_OTHER`."""
    assert helper == to_helper(text)
    assert helper == TbotStart(run_mode="daemon", helper=text).helper


@pytest.mark.parametrize("method", JOIN_METHODS)
def test_a_known_join_method_travels(method):
    """Each join method of the list is itself."""
    assert method == to_join_type(method)
    assert method == TbotStart(run_mode="daemon", join_type=method).join_type


@pytest.mark.parametrize("text", ["acme", "IAM", "iam ", "azure-devops", OTHER])
def test_an_unknown_join_method_is_other(text):
    """Everything else that is not empty becomes `_OTHER`."""
    assert OTHER == TbotStart(run_mode="daemon", join_type=text).join_type


def test_a_helper_s_version_needs_a_helper():
    """Without a helper its version is dropped."""
    event = TbotStart(run_mode="daemon", helper_version="1.2.3")

    assert "" == event.helper_version
    assert "tbot.helper_version" not in event.attributes()


@pytest.mark.parametrize("mode", RUN_MODES)
def test_attributes_of_a_full_event(mode):
    """All attributes in the order of the table, each of its type."""
    session_id = str(uuid.uuid4())
    event = TbotStart(
        run_mode=mode,
        version="18.4.1",
        join_type="iam",
        helper="gha:x",
        helper_version="v1",
        destinations_other=1,
        destinations_database=2,
        destinations_kubernetes=3,
        destinations_application=MAX_COUNT,
        session_id=session_id.upper(),
    )

    assert [
        ("tbot.run_mode", mode),
        ("tbot.version", "18.4.1"),
        ("tbot.join_type", "iam"),
        ("tbot.helper", "gha:x"),
        ("tbot.helper_version", "v1"),
        ("tbot.destinations_other", 1),
        ("tbot.destinations_database", 2),
        ("tbot.destinations_kubernetes", 3),
        ("tbot.destinations_application", MAX_COUNT),
        ("session.id", session_id),
    ] == list(event.attributes().items())


def test_unknown_facts_are_left_out_but_counts_are_not():
    """An event of which little is known has its run mode, four counts and its session."""
    event = TbotStart(run_mode="daemon")
    required = {attribute.key for attribute in ATTRIBUTES if attribute.is_required}

    assert required == set(event.attributes())
    assert {0} == {event.attributes()[f"tbot.{name}"] for name in COUNTS}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, MAX_COUNT + 1, 2**63, 1.0, "1", None, True])
def test_a_count_out_of_bounds_or_of_another_type_is_rejected(name, value):
    """A count is a whole number from 0 to 2^31-1; the error names the field and the rule."""
    with pytest.raises(EventError) as raised:
        TbotStart(run_mode="daemon", **{name: value})

    assert ((name, "must be a whole number from 0 to 2147483647"),) == raised.value.faults
    assert f"{name}: must be a whole number from 0 to 2147483647" == str(raised.value)


@pytest.mark.parametrize("value", ["", "canary", "ONE-SHOT", "_OTHER", "one-shot "])
def test_an_unknown_run_mode_is_rejected(value):
    """The error names the field and the two run modes."""
    with pytest.raises(EventError) as raised:
        TbotStart(run_mode=value)

    assert "run_mode: must be one of one-shot, daemon" == str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "canary",
        TIME_BASED_ID,
        NAME_BASED_ID,
        RANDOM_ID.replace("-", ""),
        "{" + RANDOM_ID + "}",
        "urn:uuid:" + RANDOM_ID,
        RANDOM_ID + "\n",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_only_a_random_uuid_is_a_session_id(value):
    """Only a version 4 UUID is random; others can hold a network card's address, or a name."""
    with pytest.raises(EventError) as raised:
        TbotStart(run_mode="daemon", session_id=value)

    assert "session_id: must be a random (version 4) UUID" == str(raised.value)


@pytest.mark.parametrize("name", ["run_mode", "version", "join_type", "helper", "helper_version", "session_id"])
@pytest.mark.parametrize("value", [None, 1, b"x", ["x"]])
def test_a_string_of_another_type_is_rejected(name, value):
    """Only a string is a string."""
    with pytest.raises(EventError) as raised:
        TbotStart(**{"run_mode": "daemon", name: value})

    assert ((name, "must be a string"),) == raised.value.faults


def test_the_error_names_every_broken_field_and_no_value():
    """One error names every broken field in the table's order, and none of their values."""
    with pytest.raises(OtelTbotError) as raised:
        TbotStart(run_mode="canary", version=7, destinations_other=-987, session_id="canary")

    assert ["run_mode", "version", "destinations_other", "session_id"] == [fault[0] for fault in raised.value.faults]
    assert 2 == raised.value.exit_status
    assert not re.search("canary|987|7$", str(raised.value))


def test_an_event_does_not_change():
    """Once built and checked, an event stays what it is."""
    event = TbotStart(run_mode="daemon")

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.run_mode = "canary"


def test_every_start_has_another_id():
    """Session ids are made for each event."""
    assert 1000 == len({TbotStart(run_mode="daemon").session_id for _ in range(1000)})


@given(version=TEXTS, join_type=TEXTS, helper=TEXTS, helper_version=TEXTS)
def test_whatever_the_texts_are_only_allowed_values_travel(version, join_type, helper, helper_version):
    """Any text makes an event, and each of its attributes is allowed by the table."""
    event = TbotStart(
        run_mode="daemon", version=version, join_type=join_type, helper=helper, helper_version=helper_version
    )

    assert all(BY_KEY[key].allows(value) for key, value in event.attributes().items())
    assert event == dataclasses.replace(event)


@given(text=TEXTS, to_value=st.sampled_from([to_version, to_helper_version, to_join_type, to_helper]))
def test_a_string_becomes_empty_its_own_beginning_or_other(text, to_value):
    """No conversion invents characters, and a converted string stays as it is."""
    value = to_value(text)

    assert value == OTHER or (
        text.removeprefix("v" * (to_value is to_version)).startswith(value) and bool(text) == bool(value)
    )
    assert value == OTHER or value == to_value(value)


@given(text=st.text(min_size=1), prefix=st.sampled_from(["", "18.4.1", "18.4.1-rc.1", "v1.2", "18.4.1+"]))
def test_text_after_a_version_does_not_travel(text, prefix):
    """If text follows a version, only the version is kept."""
    for value in (to_version(f"{prefix}{text}"), to_helper_version(f"{prefix}{text}")):
        assert re.fullmatch(f"(?:{VERSION_PATTERN})|(?:{HELPER_VERSION_PATTERN})|{OTHER}", value)


@given(name=st.sampled_from([*COUNTS, "run_mode", "session_id"]), text=st.text(min_size=4))
def test_an_error_never_repeats_a_value(name, text):
    """For any invalid value of a field, the error is one of the fixed rules."""
    # Hypothesis also tries strings of our own code, and the field allows some of them.
    assume(not any(attribute.allows(text.lower()) for attribute in ATTRIBUTES if attribute.field == name))
    rules = r"must be (one of one-shot, daemon|a whole number from 0 to 2147483647|a random \(version 4\) UUID)"

    with pytest.raises(EventError) as raised:
        TbotStart(**{"run_mode": "daemon", name: text})

    assert re.fullmatch(rf"{name}: {rules}", str(raised.value))


@given(values=st.tuples(*[st.integers(0, MAX_COUNT)] * 4))
def test_every_count_in_bounds_travels_as_it_is(values):
    """Counts within their bounds are not changed."""
    event = TbotStart(run_mode="daemon", **dict(zip(COUNTS, values, strict=True)))

    assert list(values) == [event.attributes()[f"tbot.{name}"] for name in COUNTS]


@pytest.mark.parametrize("pattern", [VERSION_PATTERN, HELPER_PATTERN, HELPER_VERSION_PATTERN, SESSION_ID_PATTERN])
def test_public_patterns_use_only_what_the_collector_understands(pattern):
    """RE2, the guard's regular expressions, has neither look-around nor back-references nor Python's own groups."""
    assert re.compile(pattern)
    assert not re.search(r"\(\?(?!:)|\\[1-9AbBZdDsSwW]", pattern)


@pytest.mark.parametrize(
    ("key", "value", "is_allowed"),
    [
        ("tbot.run_mode", "daemon", True),
        ("tbot.run_mode", OTHER, False),
        ("tbot.run_mode", 1, False),
        ("tbot.version", "1.2.3", True),
        ("tbot.version", OTHER, True),
        ("tbot.version", "1.2.3+x", False),
        ("tbot.version", "", False),
        ("tbot.version", ["1.2.3"], False),
        ("tbot.join_type", "iam", True),
        ("tbot.join_type", "canary", False),
        ("tbot.helper", "x" * 65, False),
        ("tbot.helper_version", "v1", True),
        ("tbot.destinations_other", 0, True),
        ("tbot.destinations_other", MAX_COUNT, True),
        ("tbot.destinations_other", MAX_COUNT + 1, False),
        ("tbot.destinations_other", -1, False),
        ("tbot.destinations_other", True, False),
        ("tbot.destinations_other", "0", False),
        ("tbot.destinations_other", 0.0, False),
        ("session.id", RANDOM_ID, True),
        ("session.id", TIME_BASED_ID, False),
    ],
)
def test_the_table_says_which_values_may_travel(key, value, is_allowed):
    """A finished attribute is checked by type, vocabulary, pattern and bounds."""
    assert is_allowed == BY_KEY[key].allows(value)


def test_an_attribute_without_a_vocabulary_or_a_pattern_allows_nothing():
    """A row of the table without its rule fails closed."""
    attribute = Attribute(key="k", type="string", field="f", brief="b")

    assert not attribute.allows("x")
