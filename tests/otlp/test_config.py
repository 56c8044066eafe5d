import dataclasses

import pytest

from otel_tbot.otlp.config import resolve_config

PREFIX = "OTEL_EXPORTER_OTLP_"


def resolve(signal=None, **environ):
    """The configuration under the variables OTEL_EXPORTER_OTLP_* of *environ*."""
    return resolve_config({PREFIX + name: text for name, text in environ.items()}, signal=signal)


def test_without_settings_the_defaults_hold():
    """A log record over HTTP to a collector on this machine, for three seconds."""
    config = resolve_config({})

    assert ("log", "http/protobuf", "none", 3.0, ()) == (
        config.signal,
        config.protocol,
        config.compression,
        config.timeout_seconds,
        config.warnings,
    )
    assert "http://localhost:4318/v1/logs" == config.endpoint.to_text()
    assert not config.is_tls


def test_every_setting_is_in_the_configuration():
    """Settings are read once; what is handed on is frozen."""
    config = resolve_config(
        {
            "OTEL_TBOT_SIGNAL": "span",
            "OTEL_TBOT_TIMEOUT": "1500",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert.pem",
        }
    )

    assert ("span", "grpc", (("a", "1"),), "gzip", "ca.pem", "key.pem", "cert.pem", 1.5, True) == (
        config.signal,
        config.protocol,
        config.headers,
        config.compression,
        config.certificate_file,
        config.client_key_file,
        config.client_certificate_file,
        config.timeout_seconds,
        config.is_tls,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.signal = "log"


@pytest.mark.parametrize(
    ("environ", "authority", "path", "query"),
    [
        ({"ENDPOINT": "http://c:4318/otlp?token=abc"}, "c:4318", "/otlp/v1/logs", "token=abc"),
        ({"ENDPOINT": "http://c:4318?token=abc"}, "c:4318", "/v1/logs", "token=abc"),
        ({"ENDPOINT": "http://c:4318/otlp/?a=/b#x"}, "c:4318", "/otlp/v1/logs", "a=/b"),
        ({"LOGS_ENDPOINT": "http://c:4318/in?token=abc"}, "c:4318", "/in", "token=abc"),
        ({"ENDPOINT": "https://c"}, "c", "/v1/logs", ""),
        ({"ENDPOINT": "https://c:443"}, "c", "/v1/logs", ""),
        ({"ENDPOINT": "http://c:443"}, "c:443", "/v1/logs", ""),
        ({"ENDPOINT": "http://[fe80::1%25eth0]:4318"}, "[fe80::1]:4318", "/v1/logs", ""),
        ({"ENDPOINT": "http://[fe80::1%eth0]"}, "[fe80::1]", "/v1/logs", ""),
        ({"ENDPOINT": "http://me:pass@c:1/x@y"}, "c:1", "/x@y/v1/logs", ""),
        ({"ENDPOINT": "http://c:4317/x?y=z"}, "c:4317", "", ""),
    ],
)
def test_an_endpoint_is_a_url(environ, authority, path, query):
    """The signal's path goes in front of the query; zone, user information and fragment are not part of the address."""
    endpoint = resolve(**environ).endpoint

    assert (authority, path, query) == (endpoint.authority, endpoint.path, endpoint.query)


@pytest.mark.parametrize(
    ("environ", "port", "is_tls"),
    [
        ({"ENDPOINT": "http://c", "PROTOCOL": "grpc"}, 80, False),
        ({"ENDPOINT": "https://c", "PROTOCOL": "grpc"}, 443, True),
        ({"ENDPOINT": "c:4317"}, 4317, True),
        ({"ENDPOINT": "c:4317", "INSECURE": "true"}, 4317, False),
        ({"PROTOCOL": "grpc"}, 4317, False),
    ],
)
def test_a_grpc_endpoint_has_a_port_and_a_scheme(environ, port, is_tls):
    """A URL without a port has its scheme's, over gRPC as over HTTP."""
    config = resolve(**environ)

    assert (port, is_tls) == (config.endpoint.port, config.is_tls)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("url", "headers", "expected"),
    [
        ("http://me%40x:se%2Fcret@c:1", "", "Basic bWVAeDpzZS9jcmV0"),
        ("http://me@c:1", "", "Basic bWU6"),
        ("http://me:secret@c:1", "Authorization=Bearer%20x", "Bearer x"),
        ("http://c:1", "", None),
    ],
)
def test_user_information_is_basic_authorization(url, headers, expected, protocol):
    """It is a header over either protocol, unless the headers already have one."""
    config = resolve(ENDPOINT=url, HEADERS=headers, PROTOCOL=protocol)

    assert expected == dict(config.headers).get("authorization")


def test_a_header_that_grpc_cannot_send_is_named_and_the_others_stay():
    """gRPC's names are narrower than HTTP's; a call with another name would fail as a whole."""
    config = resolve(ENDPOINT="http://c:4317", HEADERS="good=1,bad!=canary,x-bin=canary,grpc-x=canary")

    assert (("good", "1"),) == config.headers
    assert (
        "OTEL_EXPORTER_OTLP_HEADERS: bad!, x-bin, grpc-x: not a name that gRPC can send; the others are sent",
    ) == config.warnings


def test_a_malformed_endpoint_is_not_replaced():
    """Without an endpoint nothing is sent, rather than to the default, which may be another's collector."""
    config = resolve(ENDPOINT="canary")

    assert config.endpoint is None
    assert not config.is_tls
    assert ["OTEL_EXPORTER_OTLP_ENDPOINT"] == [warning.partition(":")[0] for warning in config.warnings]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://c:4318", "http://c:4318/v1/logs"),
        ("https://me:canary@c/v1/logs?canary#canary", "https://c:443/…"),
        ("https://c/canary", "https://c:443/…"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/logs"),
        ("http://c:4317", "http://c:4317"),
    ],
)
def test_an_endpoint_is_shown_without_its_secrets(url, shown):
    """User information, query and a path other than OTLP's can hold a token."""
    assert shown == resolve(ENDPOINT=url).endpoint.to_text()


def test_the_signal_can_be_chosen():
    """`preview --signal` shows a signal that is not the one that is set."""
    environ = {"LOGS_ENDPOINT": "http://logs:1/in", "TRACES_ENDPOINT": "http://traces:1/in"}

    assert "logs" == resolve(**environ).endpoint.host
    assert "traces" == resolve(signal="span", **environ).endpoint.host
