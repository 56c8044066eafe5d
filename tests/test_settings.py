import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tbot import settings

CANARY = "canary"
VARIABLES = sorted(
    {name for setting in settings.SETTINGS for signal in settings.SIGNALS for name in setting.variables(signal)}
)

MALFORMED = [
    ("OTEL_TBOT_SIGNAL", "canary", "OTEL_TBOT_SIGNAL: must be log or span; using log"),
    ("OTEL_TBOT_SIGNAL", "LOG", "OTEL_TBOT_SIGNAL: must be log or span; using log"),
    *(
        (
            "OTEL_TBOT_TIMEOUT",
            text,
            "OTEL_TBOT_TIMEOUT: must be a whole number of milliseconds from 1 to 999999; using 3000",
        )
        for text in ("canary", "0", "-1", "1.5", "1s", "1000000", "1e3", "1_000", "١")
    ),
    *(
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            text,
            "OTEL_EXPORTER_OTLP_ENDPOINT: must be an http:// or https:// URL (grpc: HOST:PORT too); "
            "using no endpoint, so nothing is sent",
        )
        for text in (
            "canary", "ftp://canary:21", "http://", "http:///path", "http://canary:0", "http://canary:65536",
            "http://canary:x", "http://canary host:1", "http://canar\x00y:1", "http://cänary", ":4317", "unix:/canary",
            "http://[canary", "http://[::1]canary:1", "http://[canary]:1",
        )
    ),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "canary:4318",
        "OTEL_EXPORTER_OTLP_ENDPOINT: must begin with http:// or https://; using no endpoint, so nothing is sent",
    ),
    *(
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            text,
            "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf or grpc; "
            "using http/protobuf, or grpc if the endpoint's port is 4317",
        )
        for text in ("canary", "http/json", "GRPC")
    ),
    *(
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            text,
            "OTEL_EXPORTER_OTLP_HEADERS: entry 1: must be name=value, URL-encoded, and not set by otel-tbot itself; "
            "no header is sent",
        )
        for text in (
            "canary", "=canary", "a b=canary", "a=canary%0d%0ab", "ä=canary", "a=can%00ary", "host=canary",
            "Content-Length=1", "transfer-encoding=canary",
        )
    ),
    (
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "canary",
        "OTEL_EXPORTER_OTLP_COMPRESSION: must be none, gzip or deflate; using none",
    ),
    ("OTEL_EXPORTER_OTLP_INSECURE", "canary", "OTEL_EXPORTER_OTLP_INSECURE: must be true or false; using false"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "text", "warning"), MALFORMED)
def test_a_malformed_value_is_one_warning_without_the_value(variable, text, warning):
    """The warning names the variable, the rule and what is used instead, and that is used."""
    (setting,) = (setting for setting in settings.SETTINGS if setting.name == variable)

    assert [warning] == list(settings.find_warnings({variable: text}))
    assert CANARY not in warning
    assert "canary:4318" == text or setting.default == setting.resolve({variable: text})


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        (settings.SIGNAL, "span", "span"),
        (settings.SIGNAL, " log ", "log"),
        (settings.TIMEOUT, "1", 1),
        (settings.TIMEOUT, "999999", 999999),
        (settings.PROTOCOL, "grpc", "grpc"),
        (settings.HEADERS, "A=1, b = two%20words,,c=", (("a", "1"), ("b", "two words"), ("c", ""))),
        (settings.HEADERS, "authorization=Basic%20eA==", (("authorization", "Basic eA=="),)),
        (settings.COMPRESSION, "gzip", "gzip"),
        (settings.CERTIFICATE, "ca.pem", "ca.pem"),
        (settings.INSECURE, "True", True),
        (settings.INSECURE, "false", False),
    ],
)
def test_a_well_formed_value_is_taken(setting, text, value):
    """Well-formed values have no warning."""
    assert value == setting.resolve({setting.name: text})
    assert "" == setting.find_warning({setting.name: text})


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("text", [None, "", "  "])
def test_unset_and_empty_mean_the_default(setting, text):
    """An empty variable counts as unset, as in OpenTelemetry's specification."""
    environ = {} if text is None else {setting.name: text}

    assert setting.default == setting.resolve(environ)
    assert "" == setting.find_warning(environ)


@pytest.mark.parametrize(("signal", "otlp"), [("log", "LOGS"), ("span", "TRACES")])
def test_the_signal_s_own_variable_comes_first(signal, otlp):
    """OTEL_EXPORTER_OTLP_LOGS_* or _TRACES_* decides before the general one, and its warning names it."""
    other = {"LOGS": "TRACES", "TRACES": "LOGS"}[otlp]
    environ = {
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        f"OTEL_EXPORTER_OTLP_{otlp}_COMPRESSION": "deflate",
        f"OTEL_EXPORTER_OTLP_{other}_COMPRESSION": "none",
        "OTEL_TBOT_SIGNAL": signal,
    }

    assert "deflate" == settings.COMPRESSION.resolve(environ, signal)
    assert [f"OTEL_EXPORTER_OTLP_{otlp}_COMPRESSION: must be none, gzip or deflate; using none"] == list(
        settings.find_warnings(environ | {f"OTEL_EXPORTER_OTLP_{otlp}_COMPRESSION": "canary"})
    )
    assert ("OTEL_TBOT_SIGNAL",) == settings.SIGNAL.variables(signal)


@pytest.mark.parametrize(
    ("environ", "signal", "protocol", "endpoint"),
    [
        ({}, "log", "http/protobuf", "http://localhost:4318/v1/logs"),
        ({}, "span", "http/protobuf", "http://localhost:4318/v1/traces"),
        ({"PROTOCOL": "grpc"}, "log", "grpc", "http://localhost:4317"),
        ({"ENDPOINT": "http://c:4318"}, "log", "http/protobuf", "http://c:4318/v1/logs"),
        ({"ENDPOINT": "http://c:4318/"}, "span", "http/protobuf", "http://c:4318/v1/traces"),
        ({"ENDPOINT": "https://c/otlp/"}, "log", "http/protobuf", "https://c/otlp/v1/logs"),
        ({"LOGS_ENDPOINT": "https://c/otlp"}, "log", "http/protobuf", "https://c/otlp"),
        ({"LOGS_ENDPOINT": "https://c/otlp"}, "span", "http/protobuf", "http://localhost:4318/v1/traces"),
        ({"ENDPOINT": "http://c:4317"}, "log", "grpc", "http://c:4317"),
        ({"ENDPOINT": "http://c:4317", "PROTOCOL": "http/protobuf"}, "log", "http/protobuf", "http://c:4317/v1/logs"),
        ({"ENDPOINT": "http://c:4318", "TRACES_PROTOCOL": "grpc"}, "span", "grpc", "http://c:4318"),
        ({"ENDPOINT": "c:4317"}, "log", "grpc", "https://c:4317"),
        ({"ENDPOINT": "c:5000", "PROTOCOL": "grpc"}, "log", "grpc", "https://c:5000"),
        ({"ENDPOINT": "c:5000"}, "log", "http/protobuf", ""),
        ({"ENDPOINT": "canary"}, "log", "http/protobuf", ""),
        ({"ENDPOINT": "http://c:4318", "LOGS_ENDPOINT": "canary"}, "log", "http/protobuf", ""),
    ],
)
def test_protocol_and_endpoint_follow_the_specification(environ, signal, protocol, endpoint):
    """The path is added to the general form only; port 4317 means grpc; a malformed endpoint is not used."""
    environ = {f"OTEL_EXPORTER_OTLP_{name}": text for name, text in environ.items()} | {"OTEL_TBOT_SIGNAL": signal}

    assert protocol == settings.resolve_protocol(environ, signal)
    resolved = settings.resolve_endpoint(environ, signal)
    assert endpoint == ((resolved and f"{resolved.scheme}://{resolved.authority}{resolved.path}") or "")
    assert bool(endpoint) == settings.has_endpoint(environ, signal)
    assert bool(endpoint) == (not list(settings.find_warnings(environ)))


@given(environ=st.dictionaries(st.sampled_from(VARIABLES), st.text(min_size=1)))
def test_no_value_makes_reading_settings_fail(environ):
    """Whatever a variable holds, every setting has a value, and warnings are fixed strings."""
    rules = {
        f"{name}: must be {setting.rule}; using {setting.default_text}"
        for setting in settings.SETTINGS
        for signal in settings.SIGNALS
        for name in setting.variables(signal)
    } | {warning for name, _, warning in MALFORMED if name.endswith("ENDPOINT")}
    rules |= {rule.replace("_OTLP_END", f"_OTLP_{otlp}_END") for rule in rules for otlp in ("LOGS", "TRACES")}
    headers = r"OTEL_EXPORTER_OTLP_(LOGS_|TRACES_)?HEADERS: entry [0-9, ]+: must be name=value, URL-encoded, and not .*"

    assert not {w for w in settings.find_warnings(environ) if not re.fullmatch(headers, w)} - rules
    for signal in settings.SIGNALS:
        for setting in settings.SETTINGS:
            setting.resolve(environ, signal)
        endpoint = settings.resolve_endpoint(environ, signal)
        assert (endpoint is None) != settings.has_endpoint(environ, signal)


def test_of_several_headers_the_good_ones_stay():
    """Each malformed entry is named by its position, and the others are sent."""
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "a=1,canary,b=2,=canary,c=can%00ary"}

    assert (("a", "1"), ("b", "2")) == settings.HEADERS.resolve(environ)
    assert [
        "OTEL_EXPORTER_OTLP_HEADERS: entry 2, 4, 5: must be name=value, URL-encoded, and not set by otel-tbot itself; "
        "the others are sent"
    ] == list(settings.find_warnings(environ))


def test_settings_import_nothing():
    """The table is read on tbot's start path, so it loads no other module."""
    script = (
        "import sys; before = set(sys.modules); import otel_tbot.settings; print(*sorted(set(sys.modules) - before))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ["otel_tbot", "otel_tbot.settings"] == finished.stdout.split()
