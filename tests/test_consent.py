import itertools

import pytest

from otel_tbot.consent import FROM_ENVIRONMENT, FROM_REPORT, enabled, is_granted, is_sdk_disabled

VARIABLE = "TELEPORT_ANONYMOUS_TELEMETRY"
ON = ("1", "t", "T", "TRUE", "true", "True")
OFF = (
    "",
    "0",
    "f",
    "F",
    "false",
    "False",
    "FALSE",
    " 1",
    "1 ",
    "1\n",
    "yes",
    "on",
    "y",
    "TrUe",
    "tRUE",
    "2",
    "01",
    "１",
)


@pytest.mark.parametrize("text", ON)
@pytest.mark.parametrize("origin", [FROM_ENVIRONMENT, FROM_REPORT])
def test_the_six_spellings_of_true_grant(text, origin):
    """What Go's strconv.ParseBool takes as true grants."""
    assert is_granted({VARIABLE: text}, origin)


@pytest.mark.parametrize("text", OFF)
@pytest.mark.parametrize("origin", [FROM_ENVIRONMENT, FROM_REPORT])
def test_everything_else_withholds(text, origin):
    """A value that is not one of the six withholds, even from a report: unclear is no."""
    assert not is_granted({VARIABLE: text}, origin)


def test_every_spelling_of_true_but_three_withholds():
    """Of the 16 ways to write `true` in mixed case, the three that ParseBool knows grant."""
    spellings = {"".join(letters) for letters in itertools.product("tT", "rR", "uU", "eE")}

    assert {"true", "True", "TRUE"} == {text for text in spellings if is_granted({VARIABLE: text})}


def test_unset_withholds_here_and_a_report_grants_by_itself():
    """Unset means off where the event begins; a report could only be sent by a tbot that was opted in."""
    assert not is_granted({})
    assert not is_granted({}, FROM_ENVIRONMENT)
    assert is_granted({}, FROM_REPORT)


def test_an_unknown_origin_withholds():
    """Consent from nobody known is none."""
    assert not is_granted({}, "elsewhere")


@pytest.mark.parametrize("text", ["true", "TRUE", "True", "tRuE", " true "])
@pytest.mark.parametrize("origin", [FROM_ENVIRONMENT, FROM_REPORT])
def test_a_disabled_sdk_withholds_in_any_case(text, origin):
    """OTEL_SDK_DISABLED=true, in any case as the specification has it, is off for every origin."""
    environ = {VARIABLE: "1", "OTEL_SDK_DISABLED": text}

    assert is_sdk_disabled(environ)
    assert not is_granted(environ, origin)


@pytest.mark.parametrize("text", ["", "false", "1", "yes"])
def test_only_true_disables_the_sdk(text):
    """The specification takes anything but `true` as false."""
    environ = {VARIABLE: "1", "OTEL_SDK_DISABLED": text}

    assert not is_sdk_disabled(environ)
    assert is_granted(environ)


def test_enabled_reads_this_process_s_environment(monkeypatch):
    """`enabled` asks the environment anew each time."""
    assert not enabled()
    monkeypatch.setenv(VARIABLE, "1")
    assert enabled()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not enabled()
