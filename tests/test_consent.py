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
def test_the_six_spellings_of_true_grant_consent(text, origin):
    """A value that Go's strconv.ParseBool reads as true grants consent."""
    assert is_granted({VARIABLE: text}, origin)


@pytest.mark.parametrize("text", OFF)
@pytest.mark.parametrize("origin", [FROM_ENVIRONMENT, FROM_REPORT])
def test_every_other_value_withholds_consent(text, origin):
    """A value that is not one of the six withholds consent, even that of a report."""
    assert not is_granted({VARIABLE: text}, origin)


def test_only_three_spellings_of_the_word_true_grant_consent():
    """Of the 16 ways to write `true` in mixed case, the three that ParseBool knows grant consent."""
    spellings = {"".join(letters) for letters in itertools.product("tT", "rR", "uU", "eE")}

    assert {"true", "True", "TRUE"} == {text for text in spellings if is_granted({VARIABLE: text})}


def test_an_unset_variable_withholds_consent_and_a_report_grants_it():
    """Unset means off in the environment; a report is only sent by a tbot that was opted in."""
    assert not is_granted({})
    assert not is_granted({}, FROM_ENVIRONMENT)
    assert is_granted({}, FROM_REPORT)


def test_an_unknown_origin_withholds_consent():
    """An origin that is not known grants nothing."""
    assert not is_granted({}, "elsewhere")


@pytest.mark.parametrize("text", ["true", "TRUE", "True", "tRuE", " true "])
@pytest.mark.parametrize("origin", [FROM_ENVIRONMENT, FROM_REPORT])
def test_a_disabled_sdk_withholds_consent_in_upper_and_lower_case(text, origin):
    """OTEL_SDK_DISABLED=true is off for every origin, in upper and lower case as the specification says."""
    environ = {VARIABLE: "1", "OTEL_SDK_DISABLED": text}

    assert is_sdk_disabled(environ)
    assert not is_granted(environ, origin)


@pytest.mark.parametrize("text", ["", "false", "1", "yes"])
def test_only_true_disables_the_sdk(text):
    """The specification reads every value but `true` as false."""
    environ = {VARIABLE: "1", "OTEL_SDK_DISABLED": text}

    assert not is_sdk_disabled(environ)
    assert is_granted(environ)


def test_enabled_reads_this_process_s_environment(monkeypatch):
    """`enabled` reads the environment each time."""
    assert not enabled()
    monkeypatch.setenv(VARIABLE, "1")
    assert enabled()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not enabled()
