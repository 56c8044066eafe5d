"""Every setting: an environment goes in, values and the faults of malformed variables come out.

SETTINGS is the one table of variables, rules and defaults; the README's table is tested against it. Malformed values
never raise: the default takes their place and `find_faults` says so, without the value. Part of the start path of
`otel-tbot run`, so nothing is imported here.

Source of the OTEL_EXPORTER_OTLP_* variables: OpenTelemetry specification, OTLP exporter configuration. An empty
variable counts as unset there, and so it does here.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import Any, Final

SIGNALS: "Final" = ("log", "span")
PROTOCOLS: "Final" = ("http/protobuf", "grpc")
COMPRESSIONS: "Final" = ("none", "gzip", "deflate")

COMMANDS: "Final" = "commands"
PLUGINS: "Final" = "plug-ins"
USERS: "Final" = (COMMANDS, PLUGINS)

DAEMON_DEADLINE_MS: "Final" = 10_000
"""How long the relay tries for a daemon, which does not wait for it."""

MAX_EXPORT_TIMEOUT_SECONDS: "Final" = 600

_OTLP_NAMES = {"log": "LOGS", "span": "TRACES"}
_DEFAULT_PORTS = {"http/protobuf": 4318, "grpc": 4317}
_DEFAULT_PATHS = {"log": "v1/logs", "span": "v1/traces"}
_MAX_TIMEOUT_DIGITS = 6
_MAX_PORT = 65535
_HEADER_NAME_PUNCTUATION = "!#$%&'*+-.^_`|~"


class Setting:
    """One variable, or one family of OTLP variables (general, and per signal, which comes first).

    `name` is the general variable; `parse` takes the text to the value and raises ValueError for a malformed one;
    `rule` says what `parse` accepts, `default` what holds instead, `default_text` the same for people, `unset_text`
    what holds where nothing is set, if that is something else; `used_by` says whether commands and `emit`, or the
    exporter plug-ins, or both read it.
    """

    def __init__(
        self,
        name: str,
        parse: "Callable[[str], Any]",
        *,
        default: "Any",
        default_text: str,
        rule: str,
        meaning: str,
        unset_text: str = "",
        used_by: "Collection[str]" = USERS,
    ) -> None:
        self.name = name
        self.parse = parse
        self.default = default
        self.default_text = default_text
        self.rule = rule
        self.meaning = meaning
        self.unset_text = unset_text or default_text
        self.used_by = used_by

    def variables(self, signal: str) -> tuple[str, ...]:
        """The variables read for *signal*, the first that is set wins. Pure."""
        prefix = "OTEL_EXPORTER_OTLP_"
        if not self.name.startswith(prefix):
            return (self.name,)
        return f"{prefix}{_OTLP_NAMES[signal]}_{self.name.removeprefix(prefix)}", self.name

    def find(self, environ: "Mapping[str, str]", signal: str) -> tuple[str, str]:
        """The variable that decides for *signal* and its text, both "" where none is set. Pure."""
        for variable in self.variables(signal):
            if text := environ.get(variable, "").strip():
                return variable, text
        return "", ""

    def resolve(self, environ: "Mapping[str, str]", signal: str = "log") -> "Any":
        """The value in force, the default where the variable is unset or malformed. Pure; raises nothing."""
        _, text = self.find(environ, signal)
        if text:
            try:
                return self.parse(text)
            except ValueError:
                pass
        return self.default

    def find_fault(self, environ: "Mapping[str, str]", signal: str = "log") -> str:
        """What is wrong with the variable in force: its name, rule and remedy; "" for nothing. Pure."""
        variable, text = self.find(environ, signal)
        if text:
            try:
                self.parse(text)
            except ValueError:
                return f"{variable}: must be {self.rule}; using {self.default_text}"
        return ""


def _parse_choice(*choices: str) -> "Callable[[str], str]":
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _parse_timeout_ms(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_TIMEOUT_DIGITS and int(text) > 0):
        raise ValueError
    return int(text)


def _parse_export_timeout_seconds(text: str) -> float:
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and 0 < float(text) <= MAX_EXPORT_TIMEOUT_SECONDS):
        raise ValueError
    return float(text)


def _parse_boolean(text: str) -> bool:
    return _parse_choice("true", "false")(text.lower()) == "true"


def _parse_endpoint(text: str) -> tuple[str, str, int]:
    """(scheme, the rest after "://", port); scheme "" and port 0 where *text* has none."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    scheme = scheme.lower()
    host, port = split_host_port(rest)
    if (
        scheme not in ("", "http", "https")
        or not (host and text.isascii() and text.isprintable())
        or " " in text
        or (port and not (port.isdigit() and 0 < int(port) <= _MAX_PORT))
        or (not scheme and not port)
    ):
        raise ValueError
    return scheme, rest, int(port or 0)


def split_host_port(rest: str) -> tuple[str, str]:
    """Host and port text of what stands behind a URL's "://", "" for each that is missing. Pure."""
    for end in "/?#":
        rest = rest.partition(end)[0]
    authority = rest.rpartition("@")[2]
    if authority.startswith("["):
        host, _, tail = authority[1:].partition("]")
        return host, tail.removeprefix(":")
    host, _, port = authority.partition(":")
    return host, port


def redact_url(url: str) -> str:
    """*url* as it may be shown: without user info, query and fragment, which hold secrets now and then. Pure."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    for end in "?#":
        rest = rest.partition(end)[0]
    authority, slash, path = rest.partition("/")
    return scheme + separator + authority.rpartition("@")[2] + slash + path


def _parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    from urllib.parse import unquote

    headers = []
    for entry in text.split(","):
        if not entry.strip():
            continue
        name, separator, value = entry.partition("=")
        name, value = unquote(name).strip().lower(), unquote(value).strip()
        is_name = name.isascii() and all(c.isalnum() or c in _HEADER_NAME_PUNCTUATION for c in name)
        if not (separator and name and is_name and value.isascii() and (value.isprintable() or not value)):
            raise ValueError
        headers.append((name, value))
    return tuple(headers)


SIGNAL: "Final" = Setting(
    "OTEL_TBOT_SIGNAL",
    _parse_choice(*SIGNALS),
    default="log",
    default_text="log",
    rule="log or span",
    meaning="Send the event as a log record or as a span.",
    used_by=(COMMANDS,),
)
TIMEOUT: "Final" = Setting(
    "OTEL_TBOT_TIMEOUT",
    _parse_timeout_ms,
    default=1000,
    default_text="1000",
    rule="a whole number of milliseconds from 1 to 999999",
    meaning="How long, in milliseconds, a one-shot tbot or a call of `emit` may be kept waiting for the collector.",
    used_by=(COMMANDS,),
)
ENDPOINT: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    _parse_endpoint,
    default=None,
    default_text="no endpoint, so nothing is sent",
    rule="an http:// or https:// URL (grpc: HOST:PORT too)",
    meaning="Where the collector is. For http/protobuf, `/v1/logs` or `/v1/traces` is added to the general form only.",
    unset_text="http://localhost:4318, for grpc http://localhost:4317",
)
PROTOCOL: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    _parse_choice(*PROTOCOLS),
    default="",
    default_text="http/protobuf, or grpc where the endpoint's port is 4317",
    rule="http/protobuf or grpc",
    meaning="The transport.",
)
HEADERS: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_HEADERS",
    _parse_headers,
    default=(),
    default_text="no headers",
    rule="name=value pairs with commas between them, URL-encoded",
    meaning="Headers sent with the event, such as a token for the collector. They identify whoever they identify.",
)
COMPRESSION: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    _parse_choice(*COMPRESSIONS),
    default="none",
    default_text="none",
    rule="none, gzip or deflate",
    meaning="Compression of the request.",
)
CERTIFICATE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    str.strip,
    default="",
    default_text="the system's",
    rule="a file",
    meaning="PEM file with the certificates that the collector's is checked against.",
)
CLIENT_KEY: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    str.strip,
    default="",
    default_text="none",
    rule="a file",
    meaning="PEM file with the client's private key (mTLS).",
)
CLIENT_CERTIFICATE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    str.strip,
    default="",
    default_text="none",
    rule="a file",
    meaning="PEM file with the client's certificate (mTLS). It identifies whoever it was issued to.",
)
INSECURE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_INSECURE",
    _parse_boolean,
    default=False,
    default_text="false",
    rule="true or false",
    meaning="grpc only: whether an endpoint without a scheme is spoken to without TLS.",
)
EXPORT_TIMEOUT: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    _parse_export_timeout_seconds,
    default=10.0,
    default_text="10",
    rule="a number of seconds above 0 and up to 600",
    meaning="Plug-ins only: how long one export may take, tries included. OpenTelemetry Python reads seconds.",
    used_by=(PLUGINS,),
)

SETTINGS: "Final[tuple[Setting, ...]]" = (
    SIGNAL,
    TIMEOUT,
    ENDPOINT,
    PROTOCOL,
    HEADERS,
    COMPRESSION,
    CERTIFICATE,
    CLIENT_KEY,
    CLIENT_CERTIFICATE,
    INSECURE,
    EXPORT_TIMEOUT,
)
FILE_SETTINGS: "Final" = (CERTIFICATE, CLIENT_KEY, CLIENT_CERTIFICATE)


def find_faults(environ: "Mapping[str, str]", *, plugin_signal: str = "") -> "Iterator[str]":
    """What is wrong with each malformed variable in force, one text a variable, never its value. Pure.

    For the plug-in of *plugin_signal*, or, without one, for commands and `emit`.
    """
    user = PLUGINS if plugin_signal else COMMANDS
    signal = plugin_signal or SIGNAL.resolve(environ)
    for setting in SETTINGS:
        if user in setting.used_by and (fault := setting.find_fault(environ, signal)):
            yield fault
    if not has_endpoint(environ, signal) and not ENDPOINT.find_fault(environ, signal):
        yield f"{ENDPOINT.find(environ, signal)[0]}: must begin with http:// or https://; using {ENDPOINT.default_text}"


def has_endpoint(environ: "Mapping[str, str]", signal: str) -> bool:
    """Whether *environ* leaves an endpoint to send *signal* to: none is named, or a well-formed one is. Pure."""
    _, text = ENDPOINT.find(environ, signal)
    if not text:
        return True
    parsed = ENDPOINT.resolve(environ, signal)
    return parsed is not None and (parsed[0] != "" or resolve_protocol(environ, signal) == "grpc")


def resolve_protocol(environ: "Mapping[str, str]", signal: str) -> str:
    """The transport, http/protobuf or grpc: what is set, else what the endpoint's port says. Pure; raises nothing."""
    if chosen := PROTOCOL.resolve(environ, signal):
        return str(chosen)
    parsed = ENDPOINT.resolve(environ, signal)
    return "grpc" if parsed is not None and parsed[2] == _DEFAULT_PORTS["grpc"] else "http/protobuf"


def resolve_endpoint(environ: "Mapping[str, str]", signal: str) -> str:
    """The full URL to post to (http/protobuf), or the grpc target, "" where `has_endpoint` is false. Pure."""
    protocol = resolve_protocol(environ, signal)
    variable, text = ENDPOINT.find(environ, signal)
    if not has_endpoint(environ, signal):
        return ""
    base = text or f"http://localhost:{_DEFAULT_PORTS[protocol]}"
    if protocol == "grpc" or (variable and variable != ENDPOINT.name):
        return base
    return f"{base.rstrip('/')}/{_DEFAULT_PATHS[signal]}"
