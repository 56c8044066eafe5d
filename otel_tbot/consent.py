"""Decides from an environment whether an event may be created and sent.

This is on the start path of `otel-tbot run`, so it imports only os.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONSENT_VARIABLE = "TELEPORT_ANONYMOUS_TELEMETRY"
SDK_DISABLED_VARIABLE = "OTEL_SDK_DISABLED"
ADDRESS_VARIABLE = "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"
"""tbot reports to this address instead of Teleport's own."""
HELPER_VARIABLE = "_TBOT_TELEMETRY_HELPER"
HELPER_VERSION_VARIABLE = "_TBOT_TELEMETRY_HELPER_VERSION"

# Consent travels with the event as the name of its origin.
FROM_ENVIRONMENT = "environment"
FROM_REPORT = "report"

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_CLEARLY_OFF = frozenset(("", "0", "f", "false", "n", "no", "off", "none", "disabled"))


def is_granted(environ: "Mapping[str, str]", origin: str = FROM_ENVIRONMENT) -> bool:
    """Returns whether an event whose consent comes from *origin* may be sent under *environ*. Pure; raises nothing.

    FROM_ENVIRONMENT: consent is granted if the variable has one of the six values that Go's strconv.ParseBool reads as
    true ("1", "t", "T", "TRUE", "true", "True"). Every other value withholds it, and so does an unset variable.
    FROM_REPORT: tbot only reports if it was opted in, so the report itself grants consent. A variable that is set to
    any other value withholds it.
    OTEL_SDK_DISABLED=true, in upper or lower case, withholds both.

    Source: Teleport, "Telemetry" page (variable, opt-in); tbot (spellings); OpenTelemetry specification, SDK
    environment variables.
    """
    # The opt-in comes first: it is unset nearly everywhere, and then `emit` costs one look-up.
    value = environ.get(CONSENT_VARIABLE)
    is_opted_in = origin == FROM_REPORT if value is None else value in _TRUE
    return is_opted_in and not is_sdk_disabled(environ)


def is_sdk_disabled(environ: "Mapping[str, str]") -> bool:
    """Returns whether *environ* turns OpenTelemetry off altogether. Pure; raises nothing."""
    return environ.get(SDK_DISABLED_VARIABLE, "").strip().lower() == "true"


def find_mistake(environ: "Mapping[str, str]") -> str:
    """Returns a sentence about the opt-in variable if its value is off, but was perhaps meant to be on. Pure."""
    value = environ.get(CONSENT_VARIABLE, "")
    if value in _TRUE or value.lower() in _CLEARLY_OFF:
        return ""
    return f"{CONSENT_VARIABLE}: has a value that does not mean on, so telemetry is off; set it to 1 to turn it on"


def enabled() -> bool:
    """Returns whether this process's environment opts in to telemetry, by `is_granted`. Raises nothing."""
    return is_granted(os.environ)
