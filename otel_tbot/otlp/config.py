"""Resolves the settings of OTLP once, into a frozen value that is handed on."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from otel_tbot import settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from otel_tbot.settings import Endpoint, Protocol, Signal

Headers = tuple[tuple[str, str], ...]

# Source: gRPC over HTTP/2, "Custom-Metadata". Names that end in -bin hold binary values, which no variable does.
_GRPC_NAME: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpConfig:
    """How and to which collector events are sent.

    `endpoint` is None if a malformed one is set, so that nothing can be sent; `warnings` says so, and names every other
    malformed variable. `headers` are (name in lower case, value). File names are "" if unset. `timeout_seconds` is how
    long a one-shot tbot or a call of `emit` waits at most.
    """

    signal: "Signal"
    protocol: "Protocol"
    endpoint: "Endpoint | None"
    headers: Headers = ()
    compression: str = "none"
    certificate_file: str = ""
    client_certificate_file: str = ""
    client_key_file: str = ""
    timeout_seconds: float = 3.0
    warnings: tuple[str, ...] = ()

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.endpoint is not None and self.endpoint.scheme == "https"


def resolve_config(environ: Mapping[str, str], *, signal: "Signal | None" = None) -> OtlpConfig:
    """Returns the settings in force under *environ*, for *signal* or the one that is set. Pure; raises nothing."""
    chosen: Signal = signal or settings.SIGNAL.resolve(environ)
    protocol = settings.resolve_protocol(environ, chosen)
    endpoint = settings.resolve_endpoint(environ, chosen)
    headers: Headers = settings.HEADERS.resolve(environ, chosen)
    warnings = list(settings.find_warnings(environ, chosen))
    if protocol == "grpc" and (unfit := [name for name, _ in headers if not _GRPC_NAME.fullmatch(name)]):
        variable, _ = settings.HEADERS.find(environ, chosen)
        warnings.append(f"{variable}: {', '.join(unfit)}: not a name that gRPC can send; the others are sent")
        headers = tuple(header for header in headers if header[0] not in unfit)
    if endpoint is not None and endpoint.user and "authorization" not in dict(headers):
        headers = (*headers, ("authorization", _to_basic(endpoint.user)))
    return OtlpConfig(
        signal=chosen,
        protocol=protocol,
        endpoint=endpoint,
        headers=headers,
        compression=settings.COMPRESSION.resolve(environ, chosen),
        certificate_file=settings.CERTIFICATE.resolve(environ, chosen),
        client_certificate_file=settings.CLIENT_CERTIFICATE.resolve(environ, chosen),
        client_key_file=settings.CLIENT_KEY.resolve(environ, chosen),
        timeout_seconds=settings.TIMEOUT.resolve(environ) / 1000,
        warnings=tuple(warnings),
    )


def _to_basic(user: str) -> str:
    """Returns the Authorization header for a URL's user information. Pure. Source: RFC 7617."""
    name, _, password = user.partition(":")
    return "Basic " + base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
