"""Sends encoded OTLP requests to one collector and says what became of each.

Own code and not OpenTelemetry's exporters, which report success for a redirect, for a web page with status 200 and for
a request of which everything was rejected, read credentials and proxies elsewhere, and cost twice the processor time
(benchmarks). The exporter plug-ins, for whom the SDK drops the result anyway, use those.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot.errors import OtelTbotError
from otel_tbot.otlp.result import Result, parse_http_response, parse_protobuf
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    import ssl

    from otel_tbot.otlp.config import OtlpConfig
    from otel_tbot.settings import Endpoint

_USER_AGENT: Final = f"OTel-OTLP-Exporter-Python/{sdk_version}"
"""That of OpenTelemetry's own exporters: it says the same about the sender as telemetry.sdk.* in the request."""


class OtlpClient:
    """Sends requests to the collector that *config* names, each once: a second try could make two events of one.

    *has_threads* is False if this process cannot start threads any more.

    Raises:
        OtelTbotError: *config* has no endpoint.
    """

    def __init__(self, config: "OtlpConfig", *, has_threads: bool = True) -> None:
        if config.endpoint is None:
            raise OtelTbotError("; ".join(config.warnings))
        # Each transport is imported only if it is used: gRPC alone costs as much as everything else.
        build = _GrpcExchange if config.protocol == "grpc" else _HttpExchange
        self._exchange = build(config, config.endpoint, has_threads=has_threads)

    def send(self, body: bytes, *, deadline: float) -> Result:
        """Sends the serialized request *body* and returns the result, by *deadline* in the time of time.monotonic.

        Only looking up a host name can take longer; a caller that must not wait for it calls from a thread and uses
        `abandon`.

        Raises:
            TlsError: a certificate file cannot be used.
        """
        try:
            with suppress_instrumentation():
                return self._exchange.send(body, deadline)
        except TimeoutError as error:
            return Result(outcome=Outcome.TIMED_OUT, status=_to_status(error))
        except (OSError, UnicodeError) as error:
            return Result(outcome=Outcome.UNREACHABLE, status=_to_status(error))

    def abandon(self) -> None:
        """Ends a `send` that another thread is in, which returns soon; the client is not used again."""
        self._exchange.transport.abandon()

    def close(self) -> None:
        """Closes the connection."""
        self._exchange.transport.close()


class _HttpExchange:
    """Requests over HTTP, and what their responses mean."""

    def __init__(self, config: "OtlpConfig", endpoint: "Endpoint", *, has_threads: bool) -> None:
        from otel_tbot.otlp.http_transport import HttpTransport

        del has_threads  # waits in the thread that sends
        self._signal = config.signal
        self.transport: HttpTransport = HttpTransport(
            config, endpoint, user_agent=_USER_AGENT, build_context=_build_context
        )

    def send(self, body: bytes, deadline: float) -> Result:
        response = self.transport.send(body, deadline)
        result = parse_http_response(response.status, response.headers, response.body, signal=self._signal)
        if response.is_truncated:
            return Result(outcome=Outcome.REFUSED, status=f"{result.status} with more than OTLP's response")
        if result.outcome is not Outcome.ACCEPTED:
            self.transport.close()
        return result


class _GrpcExchange:
    """Requests over gRPC, and what their responses mean."""

    def __init__(self, config: "OtlpConfig", endpoint: "Endpoint", *, has_threads: bool) -> None:
        from otel_tbot.otlp.grpc_transport import GrpcStatusError, GrpcTransport

        self._status_error = GrpcStatusError
        self._signal = config.signal
        self.transport: GrpcTransport = GrpcTransport(
            config, endpoint, user_agent=_USER_AGENT, read_pem_files=_read_pem_files, has_threads=has_threads
        )

    def send(self, body: bytes, deadline: float) -> Result:
        try:
            response = self.transport.send(body, deadline)
        except self._status_error as error:
            return Result(outcome=Outcome.REFUSED, status=str(error))
        return Result(outcome=parse_protobuf(response, signal=self._signal), status="gRPC status OK")


def _build_context(config: "OtlpConfig") -> "ssl.SSLContext":
    # Imported only if TLS is used.
    from otel_tbot.otlp.tls import build_context

    return build_context(config)


def _read_pem_files(config: "OtlpConfig") -> tuple[bytes, bytes | None, bytes | None]:
    # As above: a relay over gRPC without TLS does not load the module ssl for it.
    from otel_tbot.otlp.tls import read_pem_files

    return read_pem_files(config)


def _to_status(error: Exception) -> str:
    """Returns gRPC's status, if *error* holds one; other texts can name hosts."""
    text = str(error)
    return text if text.startswith("gRPC status ") else ""


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
