"""Validates what is known about one start of tbot and holds it as a `TbotStart`.

ATTRIBUTES is the one table of attributes: the documentation, the registry, the collector's guard and the dashboards are
generated from it or tested against it.
Source: Teleport, "Telemetry" page for tbot; tbot's protocol (prehog.v1alpha).
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from otel_tbot.errors import EventError

EVENT_NAME: Final = "tbot.start"
OTHER: Final = "_OTHER"
"""Replaces a string outside its closed vocabulary or pattern: the start is counted, the string does not travel."""

MAX_COUNT: Final = 2**31 - 1
"""tbot's protocol carries counts as int32."""

RunMode = Literal["one-shot", "daemon"]
JoinMethod = Literal[
    "token", "azure", "azure_devops", "bitbucket", "bound_keypair", "circleci", "ec2", "env0", "gcp",
    "generic_oidc", "github", "gitlab", "iam", "kubernetes", "oracle", "spacelift", "terraform_cloud", "tpm",
]  # fmt: skip
JoinType = JoinMethod | Literal["", "_OTHER"]
"""A join method, "" if it is not known, OTHER for any other."""

RUN_MODES: Final[tuple[RunMode, ...]] = get_args(RunMode)
JOIN_METHODS: Final[tuple[JoinMethod, ...]] = get_args(JoinMethod)

# Numbers have at most four digits: longer ones are dates and build numbers, which tell builds apart. The public
# patterns match a whole value and use RE2's syntax only, for the collector's guard.
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_STAGE = "-(?:dev|alpha|beta|rc)"

VERSION_PATTERN: Final = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:{_STAGE}(?:\.?{_NUMBER})?)?"
HELPER_PATTERN: Final = r"[A-Za-z0-9._:/-]{1,64}"
HELPER_VERSION_PATTERN: Final = rf"v?{_NUMBER}(?:\.{_NUMBER}){{0,3}}(?:{_STAGE}(?:\.?{_NUMBER})?)?"
SESSION_ID_PATTERN: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

# The end of a version in a longer string: neither a number nor a stage may be the beginning of a longer word.
_STAGE_AT = rf"(?:{_STAGE}(?![A-Za-z])(?:\.?{_NUMBER}(?![0-9]))?(?![0-9]))?"
_VERSION = re.compile(rf"v?({_NUMBER}\.{_NUMBER}\.{_NUMBER}(?![0-9]){_STAGE_AT})")
# A single number may be the beginning of a commit id, so no letter may follow it either.
_HELPER_VERSION = re.compile(rf"(v?{_NUMBER}(?:\.{_NUMBER}){{0,3}}{_STAGE_AT})(?![0-9A-Za-z])")
_HELPER = re.compile(HELPER_PATTERN)
_SESSION_ID = re.compile(SESSION_ID_PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of the event.

    `values` is the closed vocabulary of a string. An open one matches `pattern` as a whole; `form` says the same for
    people. An int is 0 to MAX_COUNT. `may_be_other` says that the value can be OTHER, `is_required` that the attribute
    is always present. `field` is its name in `TbotStart`.
    """

    key: str
    type: Literal["string", "int"]
    field: str
    brief: str
    values: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""
    may_be_other: bool = False
    is_required: bool = False

    def allows(self, value: object) -> bool:
        """Returns whether *value* may travel under this key. Pure; raises nothing."""
        if self.type == "int":
            return type(value) is int and 0 <= value <= MAX_COUNT
        if not isinstance(value, str):
            return False
        if self.may_be_other and value == OTHER:
            return True
        return value in self.values if self.values else re.fullmatch(self.pattern, value) is not None


ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    Attribute(
        key="tbot.run_mode",
        type="string",
        field="run_mode",
        brief="Whether tbot was started to run once (`--oneshot`) or as a daemon.",
        values=RUN_MODES,
        is_required=True,
    ),
    Attribute(
        key="tbot.version",
        type="string",
        field="version",
        brief="The running tbot's version, without anything that follows it, such as the name of a build.",
        pattern=VERSION_PATTERN,
        form="`18.4.1`, with `-dev`, `-alpha`, `-beta` or `-rc` and their number if it has them",
        may_be_other=True,
    ),
    Attribute(
        key="tbot.join_type",
        type="string",
        field="join_type",
        brief="The join method that tbot uses.",
        values=JOIN_METHODS,
        may_be_other=True,
    ),
    Attribute(
        key="tbot.helper",
        type="string",
        field="helper",
        brief="The helper that started tbot, such as `gha:teleport-actions/auth`; only if a helper did.",
        pattern=HELPER_PATTERN,
        form="1 to 64 of `A-Za-z0-9._:/-`",
        may_be_other=True,
    ),
    Attribute(
        key="tbot.helper_version",
        type="string",
        field="helper_version",
        brief="The helper's version; only with a helper.",
        pattern=HELPER_VERSION_PATTERN,
        form="`v2.0.1`, one to four numbers, with the suffixes of a version",
        may_be_other=True,
    ),
    Attribute(
        key="tbot.destinations_other",
        type="int",
        field="destinations_other",
        brief="Destinations associated with none of the Database, Kubernetes and Application Services.",
        is_required=True,
    ),
    Attribute(
        key="tbot.destinations_database",
        type="int",
        field="destinations_database",
        brief="Destinations associated with the Database Service.",
        is_required=True,
    ),
    Attribute(
        key="tbot.destinations_kubernetes",
        type="int",
        field="destinations_kubernetes",
        brief="Destinations associated with the Kubernetes Service.",
        is_required=True,
    ),
    Attribute(
        key="tbot.destinations_application",
        type="int",
        field="destinations_application",
        brief="Destinations associated with the Application Service.",
        is_required=True,
    ),
    Attribute(
        key="session.id",
        type="string",
        field="session_id",
        brief="A random id made for this one start; never stored, never used again.",
        pattern=SESSION_ID_PATTERN,
        form="a version 4 UUID",
        is_required=True,
    ),
)


def to_version(text: str) -> str:
    """Returns the version that *text* begins with, without a leading `v`; "" for "", otherwise OTHER. Pure."""
    return _to_prefix(_VERSION, text)


def to_helper_version(text: str) -> str:
    """Returns the helper's version that *text* begins with; "" for "", otherwise OTHER. Pure; raises nothing."""
    return _to_prefix(_HELPER_VERSION, text)


def to_join_type(text: str) -> JoinType:
    """Returns *text* if it is a join method, "" for "", otherwise OTHER. Pure; raises nothing."""
    return _JOIN_TYPES.get(text, OTHER)


_JOIN_TYPES: Final[dict[str, JoinType]] = {"": "", **{method: method for method in JOIN_METHODS}}


def to_helper(text: str) -> str:
    """Returns *text* if it is 1 to 64 of the allowed characters, "" for "", otherwise OTHER. Pure; raises nothing."""
    return text if text == "" or _HELPER.fullmatch(text) else OTHER


def _to_prefix(pattern: re.Pattern[str], text: str) -> str:
    if text == "":
        return ""
    found = pattern.match(text)
    return found.group(1) if found else OTHER


def _new_session_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class TbotStart:
    """One start of tbot, complete and valid once built; "" means that a fact is not known.

    A string outside its vocabulary or pattern becomes OTHER, a version loses its leading `v` and anything that follows
    it, and `helper_version` is dropped if there is no helper.

    Raises:
        EventError: naming every field of the wrong type, an unknown run mode, a count below 0 or above MAX_COUNT, and
            a session id that is not a random (version 4) UUID: older UUID versions can hold a network card's address.
    """

    run_mode: RunMode
    version: str = ""
    join_type: JoinType = ""
    helper: str = ""
    helper_version: str = ""
    destinations_other: int = 0
    destinations_database: int = 0
    destinations_kubernetes: int = 0
    destinations_application: int = 0
    session_id: str = field(default_factory=_new_session_id)

    def __post_init__(self) -> None:
        errors = [error for attribute in ATTRIBUTES if (error := self._find_error(attribute))]
        if errors:
            raise EventError(errors)
        helper = to_helper(self.helper)
        for name, value in (
            ("version", to_version(self.version)),
            ("join_type", to_join_type(self.join_type)),
            ("helper", helper),
            ("helper_version", to_helper_version(self.helper_version) if helper else ""),
            ("session_id", self.session_id.lower()),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, object]) -> "TbotStart":
        """Returns the event with *attributes*, whose keys are those of ATTRIBUTES; other keys are ignored. Pure.

        Raises:
            EventError: as for the fields themselves; `run_mode` is required.
        """
        fields = {a.field: attributes[a.key] for a in ATTRIBUTES if a.key in attributes}
        return cls(**{"run_mode": "", **fields})  # type: ignore[arg-type]  # checked as all values are

    def attributes(self) -> dict[str, str | int]:
        """Returns the event's OpenTelemetry attributes in the order of ATTRIBUTES, without unknown facts. Pure."""
        values = ((attribute.key, getattr(self, attribute.field)) for attribute in ATTRIBUTES)
        return {key: value for key, value in values if value != ""}

    def _find_error(self, attribute: Attribute) -> tuple[str, str] | None:
        value = getattr(self, attribute.field)
        if attribute.type == "int":
            return (
                None if attribute.allows(value) else (attribute.field, f"must be a whole number from 0 to {MAX_COUNT}")
            )
        if not isinstance(value, str):
            return attribute.field, "must be a string"
        if attribute.field == "run_mode" and value not in RUN_MODES:
            return attribute.field, f"must be one of {', '.join(RUN_MODES)}"
        if attribute.field == "session_id" and not _SESSION_ID.fullmatch(value.lower()):
            return attribute.field, "must be a random (version 4) UUID"
        return None
