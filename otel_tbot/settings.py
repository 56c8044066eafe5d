"""Reads every setting from an environment, with a warning for each malformed variable.

SETTINGS is the one table of variables, rules and defaults; the page docs/reference/settings.md is generated from it. A
malformed value never raises: its default is used and `find_warnings` names the variable and the rule, never the value.
Nothing is imported at the top, since `otel-tbot run` reads settings before tbot starts.

Source of the OTEL_EXPORTER_OTLP_* variables: OpenTelemetry specification, OTLP exporter configuration, which counts an
empty variable as unset.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Final, Literal

    Signal = Literal["log", "span"]
    Protocol = Literal["http/protobuf", "grpc"]

SIGNALS: "Final" = ("log", "span")
PROTOCOLS: "Final" = ("http/protobuf", "grpc")
COMPRESSIONS: "Final" = ("none", "gzip", "deflate")

DAEMON_TIMEOUT_MS: "Final" = 10_000
"""How long the relay and the bridge try for a daemon, which does not wait for them."""

_OTLP_NAMES = {"log": "LOGS", "span": "TRACES"}
_DEFAULT_PORTS = {"http/protobuf": 4318, "grpc": 4317}
_SCHEME_PORTS = {"http": 80, "https": 443}
_SIGNAL_PATHS = {"log": "/v1/logs", "span": "/v1/traces"}
_MAX_TIMEOUT_DIGITS = 6
_MAX_PORT = 65535
_HEADER_NAME_PUNCTUATION = "!#$%&'*+-.^_`|~"

# Set by the transport itself: a second value would break the request's framing.
_RESERVED_HEADERS = frozenset(
    (
        *("connection", "content-encoding", "content-length", "content-type", "expect", "host", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    )
)


class Endpoint:
    """An endpoint as a URL (RFC 3986): `scheme` ("" for HOST:PORT), `user`, `host`, `port`, `path` and `query`.

    `user` is the user information as it stands in the URL, percent-encoded. An IPv6 `host` has no brackets and keeps
    its zone, which never leaves this machine (`authority`). `port` is 0 if it is not given. A fragment is dropped.
    """

    __slots__ = ("host", "path", "port", "query", "scheme", "user")

    def __init__(self, *, scheme: str, user: str, host: str, port: int, path: str, query: str) -> None:
        self.scheme = scheme
        self.user = user
        self.host = host
        self.port = port
        self.path = path
        self.query = query

    @property
    def authority(self) -> str:
        """Host and port as a server is told them: an IPv6 zone is left out, since it names a network interface."""
        host = self.host.partition("%")[0]
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{self.port}" if self.port != _SCHEME_PORTS.get(self.scheme) else host

    @property
    def server_name(self) -> str:
        """The name that the server's certificate must have: without an IPv6 zone, and without the root's dot."""
        return self.host.partition("%")[0].removesuffix(".")

    def to_text(self) -> str:
        """Returns the endpoint as it may be shown. Pure.

        User information and query are left out, and so is a path other than OTLP's own: each may hold a token.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        path = self.path if self.path in ("", "/", *_SIGNAL_PATHS.values()) else "/…"
        return f"{self.scheme}{'://' if self.scheme else ''}{host}{port}{path}"


class Setting:
    """One variable, or one family of OTLP variables: the general one, and one per signal, which comes first.

    `name` is the general variable. `parse` converts text to the value and raises ValueError for malformed text. `rule`
    says what `parse` accepts, `default` is used instead, `default_text` says so for people; `unset_text` is what holds
    if nothing is set, if that differs.
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
    ) -> None:
        self.name = name
        self.parse = parse
        self.default = default
        self.default_text = default_text
        self.rule = rule
        self.meaning = meaning
        self.unset_text = unset_text or default_text

    def variables(self, signal: str) -> tuple[str, ...]:
        """Returns the variables read for *signal*; the first that is set decides. Pure."""
        prefix = "OTEL_EXPORTER_OTLP_"
        if not self.name.startswith(prefix):
            return (self.name,)
        return f"{prefix}{_OTLP_NAMES[signal]}_{self.name.removeprefix(prefix)}", self.name

    def find(self, environ: "Mapping[str, str]", signal: str) -> tuple[str, str]:
        """Returns the variable that decides for *signal* and its text, both "" if none is set. Pure."""
        for variable in self.variables(signal):
            if text := environ.get(variable, "").strip():
                return variable, text
        return "", ""

    def read(self, text: str) -> "tuple[Any, str]":
        """Returns the value of *text*, and what is wrong with it ("" if nothing is). Pure; raises nothing."""
        try:
            return self.parse(text), ""
        except ValueError:
            return self.default, f"must be {self.rule}; using {self.default_text}"

    def resolve(self, environ: "Mapping[str, str]", signal: str = "log") -> "Any":
        """Returns the value in force: the default if the variable is unset or malformed. Pure; raises nothing."""
        _, text = self.find(environ, signal)
        return self.read(text)[0] if text else self.default

    def find_warning(self, environ: "Mapping[str, str]", signal: str = "log") -> str:
        """Returns what is wrong with the variable in force: its name, rule and remedy; "" if nothing is. Pure."""
        variable, text = self.find(environ, signal)
        problem = self.read(text)[1] if text else ""
        return f"{variable}: {problem}" if problem else ""


class _HeadersSetting(Setting):
    """Headers, of which the well-formed ones are used even if others are malformed."""

    def read(self, text: str) -> "tuple[Any, str]":
        headers, malformed = _parse_headers(text)
        if not malformed:
            return headers, ""
        numbers = ", ".join(map(str, malformed))
        rest = "the others are sent" if headers else "no header is sent"
        return headers, f"entry {numbers}: must be name=value, URL-encoded, and not set by otel-tbot itself; {rest}"


class _Choice:
    """Parses one of a closed set of texts."""

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def __call__(self, text: str) -> str:
        if text not in self._choices:
            raise ValueError
        return text


def _parse_timeout_ms(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_TIMEOUT_DIGITS and int(text) > 0):
        raise ValueError
    return int(text)


def _parse_boolean(text: str) -> bool:
    return _Choice("true", "false")(text.lower()) == "true"


def parse_endpoint(text: str) -> Endpoint:
    """Returns the endpoint that *text* names: an http or https URL, or HOST:PORT. Pure.

    Raises:
        ValueError: it is neither.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    scheme = scheme.lower()
    authority, path, query = _split_rest(rest)
    user, _, host_port = authority.rpartition("@")
    host, port = _split_host_port(host_port)
    if (
        scheme not in ("", *_SCHEME_PORTS)
        or not (host and text.isascii() and text.isprintable())
        or " " in text
        or (port and not (port.isdigit() and 0 < int(port) <= _MAX_PORT))
        or (not scheme and not port)
    ):
        raise ValueError
    return Endpoint(scheme=scheme, user=user, host=host, port=int(port or 0), path=path, query=query)


def _split_rest(rest: str) -> tuple[str, str, str]:
    """Returns authority, path and query of what follows a URL's "://", without the fragment. Pure."""
    rest = rest.partition("#")[0]
    before_query, _, query = rest.partition("?")
    authority, slash, path = before_query.partition("/")
    return authority, slash + path, query


def _split_host_port(host_port: str) -> tuple[str, str]:
    """Returns host and port text, "" for each that is missing or malformed. Pure."""
    if host_port.startswith("["):
        host, bracket, tail = host_port[1:].partition("]")
        # RFC 6874 writes the zone's "%" as "%25".
        host = host.replace("%25", "%")
        return (host, tail.removeprefix(":")) if bracket and ":" in host and tail[:1] in ("", ":") else ("", "")
    host, _, port = host_port.partition(":")
    return host, port


def _parse_headers(text: str) -> tuple[tuple[tuple[str, str], ...], list[int]]:
    """Returns the well-formed headers of *text*, and the positions of the other entries, counted from 1. Pure."""
    from urllib.parse import unquote

    headers = []
    malformed = []
    for position, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        name, separator, value = entry.partition("=")
        name, value = unquote(name).strip().lower(), unquote(value).strip()
        is_name = name.isascii() and all(c.isalnum() or c in _HEADER_NAME_PUNCTUATION for c in name)
        is_value = value.isascii() and (value.isprintable() or not value)
        if separator and name and is_name and is_value and name not in _RESERVED_HEADERS:
            headers.append((name, value))
        else:
            malformed.append(position)
    return tuple(headers), malformed


SIGNAL: "Final" = Setting(
    "OTEL_TBOT_SIGNAL",
    _Choice(*SIGNALS),
    default="log",
    default_text="log",
    rule="log or span",
    meaning="Send the event as a log record or as a span.",
)
TIMEOUT: "Final" = Setting(
    "OTEL_TBOT_TIMEOUT",
    _parse_timeout_ms,
    default=3000,
    default_text="3000",
    rule="a whole number of milliseconds from 1 to 999999",
    meaning="How many milliseconds a one-shot tbot, or a call of `emit`, waits for the collector at most.",
)
ENDPOINT: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    parse_endpoint,
    default=None,
    default_text="no endpoint, so nothing is sent",
    rule="an http:// or https:// URL (grpc: HOST:PORT too)",
    meaning="The collector's address. For http/protobuf, `/v1/logs` or `/v1/traces` is added to the general form only.",
    unset_text="http://localhost:4318, for grpc http://localhost:4317",
)
PROTOCOL: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    _Choice(*PROTOCOLS),
    default="",
    default_text="http/protobuf, or grpc if the endpoint's port is 4317",
    rule="http/protobuf or grpc",
    meaning="The transport.",
)
HEADERS: "Final" = _HeadersSetting(
    "OTEL_EXPORTER_OTLP_HEADERS",
    str.strip,
    default=(),
    default_text="no headers",
    rule="name=value pairs with commas between them, URL-encoded",
    meaning="Headers sent with the event, such as a token for the collector. They can identify who sends it.",
)
COMPRESSION: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    _Choice(*COMPRESSIONS),
    default="none",
    default_text="none",
    rule="none, gzip or deflate",
    meaning="Compression of the request.",
)
CERTIFICATE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    str.strip,
    default="",
    default_text="the operating system's",
    rule="a file",
    meaning="PEM file with the certificates that are trusted to have issued the collector's.",
)
CLIENT_KEY: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    str.strip,
    default="",
    default_text="none",
    rule="a file",
    meaning="PEM file with the client's private key (mTLS), without a passphrase.",
)
CLIENT_CERTIFICATE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    str.strip,
    default="",
    default_text="none",
    rule="a file",
    meaning="PEM file with the client's certificate (mTLS). It identifies the client that it was issued to.",
)
INSECURE: "Final" = Setting(
    "OTEL_EXPORTER_OTLP_INSECURE",
    _parse_boolean,
    default=False,
    default_text="false",
    rule="true or false",
    meaning="grpc only: whether an endpoint without a scheme is spoken to without TLS.",
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
)
FILE_SETTINGS: "Final" = (CERTIFICATE, CLIENT_KEY, CLIENT_CERTIFICATE)


def find_warnings(environ: "Mapping[str, str]", signal: str = "") -> "Iterator[str]":
    """Yields what is wrong with each malformed variable in force, one text a variable, never its value. Pure.

    For *signal*, or the one that is set.
    """
    signal = signal or SIGNAL.resolve(environ)
    for setting in SETTINGS:
        if warning := setting.find_warning(environ, signal):
            yield warning
    if not has_endpoint(environ, signal) and not ENDPOINT.find_warning(environ, signal):
        yield f"{ENDPOINT.find(environ, signal)[0]}: must begin with http:// or https://; using {ENDPOINT.default_text}"


def has_endpoint(environ: "Mapping[str, str]", signal: str) -> bool:
    """Returns whether there is an endpoint to send *signal* to: none is set, or a well-formed one is. Pure."""
    _, text = ENDPOINT.find(environ, signal)
    if not text:
        return True
    endpoint = ENDPOINT.resolve(environ, signal)
    return endpoint is not None and (endpoint.scheme != "" or resolve_protocol(environ, signal) == "grpc")


def resolve_protocol(environ: "Mapping[str, str]", signal: str) -> "Protocol":
    """Returns the transport: the one that is set, otherwise the one of the endpoint's port. Pure; raises nothing."""
    if chosen := PROTOCOL.resolve(environ, signal):
        return "grpc" if chosen == "grpc" else "http/protobuf"
    endpoint = ENDPOINT.resolve(environ, signal)
    return "grpc" if endpoint is not None and endpoint.port == _DEFAULT_PORTS["grpc"] else "http/protobuf"


def resolve_endpoint(environ: "Mapping[str, str]", signal: str) -> "Endpoint | None":
    """Returns where requests of *signal* go, with its port and OTLP's path; None if there is no endpoint. Pure.

    A URL without a port has its scheme's: 80 or 443, over grpc too. OTEL_EXPORTER_OTLP_INSECURE decides the scheme of
    a grpc endpoint that has none.
    """
    if not has_endpoint(environ, signal):
        return None
    protocol = resolve_protocol(environ, signal)
    variable, _ = ENDPOINT.find(environ, signal)
    given = ENDPOINT.resolve(environ, signal) or parse_endpoint(f"http://localhost:{_DEFAULT_PORTS[protocol]}")
    scheme = given.scheme or ("http" if INSECURE.resolve(environ, signal) else "https")
    path = given.path
    if protocol == "grpc":
        path = ""  # OpenTelemetry's own exporter ignores it too
    elif not variable or variable == ENDPOINT.name:
        path = given.path.rstrip("/") + _SIGNAL_PATHS[signal]
    return Endpoint(
        scheme=scheme,
        user=given.user,
        host=given.host,
        port=given.port or _SCHEME_PORTS[scheme],
        path=path,
        query="" if protocol == "grpc" else given.query,
    )
