"""The opt-in: an environment goes in, whether an event may be made and may leave comes out.

Part of the start path of `otel-tbot run`, so it imports nothing but os.
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

# Consent travels with the event as the name of who gave it.
FROM_ENVIRONMENT = "environment"
FROM_REPORT = "report"

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_CLEARLY_OFF = frozenset(("", "0", "f", "false", "n", "no", "off", "none", "disabled"))


def is_granted(environ: "Mapping[str, str]", origin: str = FROM_ENVIRONMENT) -> bool:
    """Whether an event whose consent comes from *origin* may be sent under *environ*. Pure; raises nothing.

    FROM_ENVIRONMENT: the variable grants in the six spellings that Go's strconv.ParseBool takes as true
    ("1", "t", "T", "TRUE", "true", "True"). All else, unset and " 1" included, withholds: unclear is no.
    FROM_REPORT: a tbot only reports when it was opted in, so the report itself grants; a variable that is set
    to anything that does not mean on takes that back.
    OTEL_SDK_DISABLED=true (in any case) withholds from both.

    Source: Teleport, "Telemetry" page (variable, opt-in); tbot (spellings); OpenTelemetry specification, SDK
    environment variables.
    """
    # The opt-in first: where there is none, which is nearly everywhere, one look-up is all that `emit` costs.
    answer = environ.get(CONSENT_VARIABLE)
    is_answered_yes = origin == FROM_REPORT if answer is None else answer in _TRUE
    return is_answered_yes and not is_sdk_disabled(environ)


def is_sdk_disabled(environ: "Mapping[str, str]") -> bool:
    """Whether *environ* turns OpenTelemetry off altogether. Pure; raises nothing."""
    return environ.get(SDK_DISABLED_VARIABLE, "").strip().lower() == "true"


def find_mistake(environ: "Mapping[str, str]") -> str:
    """Returns a sentence about the opt-in variable if its value is off, but was perhaps meant to be on. Pure."""
    value = environ.get(CONSENT_VARIABLE, "")
    if value in _TRUE or value.lower() in _CLEARLY_OFF:
        return ""
    return f"{CONSENT_VARIABLE}: has a value that does not mean on, so telemetry is off; set it to 1 to turn it on"


def enabled() -> bool:
    """Whether this process's environment opts in to telemetry, by `is_granted`. Raises nothing."""
    return is_granted(os.environ)
