"""Builds OpenTelemetry's own OTLP exporter, from its variables or from the keys of declarative configuration.

Source: OpenTelemetry specification, Configuration ("otlp_http", "otlp_grpc"); opentelemetry-exporter-otlp.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypedDict
from urllib.parse import unquote

from otel_tbot import settings
from otel_tbot.errors import ExporterError

Headers = Mapping[str, str] | Sequence[Mapping[str, str | None]]


class OtlpArguments(TypedDict, total=False):
    """How to reach the collector, by the keys of declarative configuration's own OTLP exporters.

    `protocol` is http/protobuf or grpc. `endpoint` is the whole URL over http/protobuf. `headers` is a mapping, or a
    list of name and value; `headers_list` is "name=value,…", URL-encoded. `timeout` is in milliseconds, retries
    included (0: ten minutes). `tls` has ca_file, key_file, cert_file and insecure (grpc only). `encoding` is protobuf.
    OpenTelemetry's exporter takes what is not given from OTEL_EXPORTER_OTLP_*.
    """

    protocol: str | None
    endpoint: str | None
    headers: Headers | None
    headers_list: str | None
    timeout: int | None
    compression: str | None
    tls: Mapping[str, object] | None
    encoding: str | None


_MAX_TIMEOUT_MS: Final = 600_000
_CHOICES: Final = {
    "protocol": settings.PROTOCOLS,
    "compression": settings.COMPRESSIONS,
    "encoding": ("protobuf",),
}
_FILES: Final = {
    "ca_file": "certificate_file",
    "key_file": "client_key_file",
    "cert_file": "client_certificate_file",
}
_TLS_RULES: Final = {**dict.fromkeys(_FILES, str), "insecure": bool}
_HEADER_RULES: Final = {
    "headers": "a map, or a list of name and value, of header names and printable ASCII values",
    "headers_list": settings.HEADERS.rule,
}
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")

_EXPORTERS: Final = {"log": ("_log_exporter", "OTLPLogExporter"), "span": ("trace_exporter", "OTLPSpanExporter")}
_COMPRESSIONS: Final = {"none": "NoCompression", "gzip": "Gzip", "deflate": "Deflate"}
# Each names an entry point, from which OpenTelemetry's gRPC exporter takes credentials.
_CREDENTIAL_PROVIDERS: Final = (
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_LOGS_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER",
)

# No proxy, and no connection that another channel of this process uses: it would join the event to that channel's data.
_GRPC_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
    ("grpc.use_local_subchannel_pool", 1),
)


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Returns if *arguments* keep the rules of `OtlpArguments`. Pure.

    Raises:
        ExporterError: naming every argument that breaks its rule, without its value.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if errors := [(name, f"must be {rule}") for name, rule in _find_errors(given)]:
        raise ExporterError(errors)


def build_exporter(signal: str, arguments: Mapping[str, object], environ: Mapping[str, str]) -> Any:
    """Returns OpenTelemetry's OTLP exporter; what *arguments*, already checked, leave out it takes from its variables.

    *environ* decides the protocol and the compression if *arguments* do not.

    Raises whatever that exporter raises for a malformed variable, or OSError for a file that cannot be read.
    """
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    options: dict[str, Any] = {"endpoint": given.get("endpoint"), "headers": _to_headers(given) or None}
    if "timeout" in given:
        # 0 is no limit in the schema, and not a limit that the exporter can keep.
        options["timeout"] = (given["timeout"] or _MAX_TIMEOUT_MS) / 1000
    if "endpoint" in given:
        environ = {**environ, settings.ENDPOINT.variables(signal)[0]: given["endpoint"]}
    tls = given.get("tls", {})
    endpoint: settings.Endpoint | None = settings.ENDPOINT.resolve(environ, signal)
    is_tls = endpoint is None or endpoint.scheme != "http"
    if given.get("protocol", settings.resolve_protocol(environ, signal)) == "grpc":
        package, compressions = "grpc", import_module("grpc").Compression
        options |= {"insecure": tls.get("insecure"), "channel_options": _to_channel_options(endpoint)}
        if is_tls and not tls.get("insecure"):
            options |= _read_credentials(tls, environ, signal)
    else:
        from otel_tbot.exporters.http_session import open_session

        package, compressions = "http", import_module("opentelemetry.exporter.otlp.proto.http").Compression
        trusts_system = not (tls.get("ca_file") or settings.CERTIFICATE.resolve(environ, signal))
        options |= {option: tls.get(name) for name, option in _FILES.items()}
        options["session"] = open_session(is_tls=is_tls, trusts_system=trusts_system)
    # Not left to the variable: OpenTelemetry's gRPC exporter raises for its value `none`.
    compression = given.get("compression", settings.COMPRESSION.resolve(environ, signal))
    options["compression"] = compressions[_COMPRESSIONS[compression]]
    module, name = _EXPORTERS[signal]
    return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), name)(**options)


def _to_channel_options(endpoint: "settings.Endpoint | None") -> tuple[tuple[str, object], ...]:
    if endpoint is not None and "%" in endpoint.host:
        # An IPv6 zone, which names a network interface, would be in :authority.
        return (*_GRPC_OPTIONS, ("grpc.default_authority", endpoint.authority))
    return _GRPC_OPTIONS


def _read_credentials(tls: Mapping[str, Any], environ: Mapping[str, str], signal: str) -> dict[str, Any]:
    """Returns the option `credentials`; none if OpenTelemetry's exporter reads them from variables itself.

    It does not if no file of trusted certificates is set: then it would trust gRPC's own, and show no client's.
    """
    import grpc

    from otel_tbot.otlp.tls import read_system_pem

    files = [tls.get(name) for name in _FILES]
    if not any(files):
        is_provided = any(environ.get(name) for name in _CREDENTIAL_PROVIDERS)
        if is_provided or settings.CERTIFICATE.resolve(environ, signal):
            return {}
        files[1:] = [setting.resolve(environ, signal) for setting in (settings.CLIENT_KEY, settings.CLIENT_CERTIFICATE)]
    trusted, key, chain = (Path(file).read_bytes() if file else None for file in files)
    return {"credentials": grpc.ssl_channel_credentials(trusted or read_system_pem(), key, chain)}


def _find_errors(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the name and the rule of every argument that breaks its rule."""
    known = OtlpArguments.__annotations__
    yield from ((name, f"one of {', '.join(known)}") for name in given if name not in known)
    for name, choices in _CHOICES.items():
        if name in given and given[name] not in choices:
            yield name, " or ".join(choices)
    try:
        settings.ENDPOINT.parse(given.get("endpoint", "http://localhost"))
    except (AttributeError, TypeError, ValueError):  # the first two for anything but a string
        yield "endpoint", settings.ENDPOINT.rule
    timeout = given.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= _MAX_TIMEOUT_MS:
        yield "timeout", f"a whole number of milliseconds from 0 to {_MAX_TIMEOUT_MS}"
    for name, rule in _HEADER_RULES.items():
        try:
            headers = _to_headers({name: given.get(name)})
        except (AttributeError, KeyError, TypeError, ValueError):  # what Python raises for another shape
            headers = {"": ""}
        if not all(_HEADER_NAME.fullmatch(key) and _HEADER_VALUE.fullmatch(value) for key, value in headers.items()):
            yield name, rule
    yield from _find_tls_errors(given.get("tls", {}))


def _find_tls_errors(tls: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(tls, Mapping) or tls.keys() - _TLS_RULES.keys():
        yield "tls", f"a map of {', '.join(_TLS_RULES)}"
        return
    for key, value in tls.items():
        if not isinstance(value, _TLS_RULES[key] | None):
            yield f"tls.{key}", "true or false" if key == "insecure" else "a file"


def _to_headers(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Returns both forms of headers as one mapping, with names in lower case as gRPC needs them. Pure.

    `headers` wins over `headers_list`. Another shape raises whatever Python raises for it.
    """
    pairs = [entry.split("=", 1) for entry in (arguments.get("headers_list") or "").split(",") if entry.strip()]
    headers = {unquote(name).strip().lower(): unquote(value).strip() for name, value in pairs}
    given = arguments.get("headers") or {}
    if not isinstance(given, Mapping):
        given = {header["name"]: header.get("value") for header in given}
    return headers | {name.lower(): "" if value is None else value.strip() for name, value in given.items()}
