"""Sends encoded OTLP requests to one collector and says what became of each.

Own code and not OpenTelemetry's exporters, which report success for a redirect, for a web page with status 200 and for
a request of which everything was rejected, read credentials and proxies elsewhere, and cost twice the processor time
(benchmarks). The exporter plug-ins, for whom the SDK drops the result anyway, use those.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot.otlp.result import Result

if TYPE_CHECKING:
    from otel_tbot.otlp.config import OtlpConfig

_USER_AGENT: Final = f"OTel-OTLP-Exporter-Python/{sdk_version}"
"""That of OpenTelemetry's own exporters: it says of the sender what telemetry.sdk.* says in the request."""


class Transport(Protocol):
    """One connection, made when it is needed, over which requests go one after the other."""

    def send(self, body: bytes, deadline: float) -> Result:
        """Sends *body* once, and waits for the response until *deadline*, in the time of time.monotonic."""

    def abandon(self) -> None:
        """Ends a `send` that another thread is in."""

    def close(self) -> None:
        """Closes the connection."""


class OtlpClient:
    """Sends requests to the collector that *config* names, each once: a second try could make two events of one.

    *has_threads* is False if this process cannot start threads any more.

    Raises:
        OtelTbotError: *config* has no endpoint.
    """

    def __init__(self, config: "OtlpConfig", *, has_threads: bool = True) -> None:
        self._transport = _build_transport(config, has_threads=has_threads)

    def send(self, body: bytes, *, deadline: float) -> Result:
        """Sends the serialized request *body* and returns the result, by *deadline* in the time of time.monotonic.

        Only looking up a host name can take longer; a caller that must not wait for it calls from a thread and uses
        `abandon`.

        Raises:
            TlsError: a certificate file cannot be used.
        """
        with suppress_instrumentation():
            return self._transport.send(body, deadline)

    def abandon(self) -> None:
        """Ends a `send` that another thread is in, which returns soon; the client is not used again."""
        self._transport.abandon()

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Hides the application's trace and baggage, and what is sent from instrumentation of HTTP and gRPC.

    The SDK's processors hide the one and not the other. If nothing has loaded OpenTelemetry's context, there is neither
    trace nor instrumentation.
    """
    if "opentelemetry.context" not in sys.modules:
        yield
        return
    from opentelemetry.context import (
        _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
        _SUPPRESS_INSTRUMENTATION_KEY,
        Context,
        attach,
        detach,
    )

    token = attach(Context({_SUPPRESS_INSTRUMENTATION_KEY: True, _SUPPRESS_HTTP_INSTRUMENTATION_KEY: True}))
    try:
        yield
    finally:
        detach(token)


def _build_transport(config: "OtlpConfig", *, has_threads: bool) -> Transport:
    # Each is imported only if it is used: gRPC alone costs as much as everything else.
    if config.protocol == "grpc":
        from otel_tbot.otlp.grpc_transport import GrpcTransport

        return GrpcTransport(config, user_agent=_USER_AGENT, has_threads=has_threads)
    from otel_tbot.otlp.http_transport import HttpTransport

    return HttpTransport(config, user_agent=_USER_AGENT)
