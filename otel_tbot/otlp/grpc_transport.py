"""Sends OTLP over gRPC: one channel, one call after the other, each until a deadline.

Source: OTLP specification, "OTLP/gRPC"; opentelemetry-proto, logs_service.proto and trace_service.proto.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import grpc

if TYPE_CHECKING:
    from otel_tbot.otlp.config import OtlpConfig
    from otel_tbot.settings import Endpoint

_METHODS: Final = {
    "log": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "span": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
_COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
_CALL_TIMEOUT_SECONDS: Final = 10
"""The timeout on the call itself, if no thread of Python's can end it. A constant, since the collector is told it."""


class GrpcStatusError(Exception):
    """Says with which status, other than OK, the collector responded."""


class GrpcTransport:
    """One channel to one collector, made when it is needed.

    *read_pem_files* is called for each channel over TLS, so that certificates that were replaced on disk are used.
    Without *has_threads*, because the interpreter is ending, the call waits in this thread and ends by its own timeout.
    """

    def __init__(
        self,
        config: "OtlpConfig",
        endpoint: "Endpoint",
        *,
        user_agent: str,
        read_pem_files: "Callable[[OtlpConfig], tuple[bytes, bytes | None, bytes | None]]",
        has_threads: bool = True,
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._read_pem_files = read_pem_files
        self._user_agent = user_agent
        self._has_threads = has_threads and not _is_gevent()
        self._is_abandoned = False
        self._channel: grpc.Channel | None = None
        self._export: grpc.UnaryUnaryMultiCallable[bytes, bytes] | None = None

    def send(self, body: bytes, deadline: float) -> bytes:
        """Sends *body* and returns the response; *deadline* is in the time of time.monotonic.

        Raises:
            TimeoutError: the deadline passed, the collector said so, or the request was abandoned.
            ConnectionError: there is no connection, or no response.
            GrpcStatusError: the collector responded with another status than OK.
        """
        export = self._export = self._export or self._connect()
        try:
            return self._call(export, body, deadline)
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            raise TimeoutError from None
        except grpc.RpcError as error:
            code = error.code()
            if self._is_abandoned or code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"gRPC status {code.name}") from None
            if code is grpc.StatusCode.UNAVAILABLE:
                # A channel that lost its collector would wait before it tries again, with the certificates that it has.
                self.close()
                raise ConnectionError(f"gRPC status {code.name}") from None
            raise GrpcStatusError(f"gRPC status {code.name}") from None

    def _call(self, export: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", body: bytes, deadline: float) -> bytes:
        if not self._has_threads:
            return export(body, metadata=self._config.headers, timeout=_CALL_TIMEOUT_SECONDS)
        # The deadline is kept here and not sent: how much of it is left tells how fast this machine is.
        call = export.future(body, metadata=self._config.headers)
        try:
            return call.result(timeout=max(deadline - time.monotonic(), 0.001))
        except grpc.FutureTimeoutError:
            call.cancel()
            raise

    def abandon(self) -> None:
        """Ends a `send` that another thread is in: it returns soon. The transport is not used again."""
        self._is_abandoned = True
        self.close()

    def close(self) -> None:
        """Closes the channel; the next `send` makes another."""
        channel, self._channel, self._export = self._channel, None, None
        if channel is not None:
            channel.close()

    def _connect(self) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        options: dict[str, Any] = {
            "options": (
                ("grpc.primary_user_agent", self._user_agent),
                # Without it, an IPv6 zone, which names a network interface, would be in :authority.
                ("grpc.default_authority", self._endpoint.authority),
                ("grpc.enable_http_proxy", 0),
                # Overrides GRPC_ADDRESS_HTTP_PROXY, which the option above does not.
                ("grpc.address_http_proxy_enabled_addresses", ""),
                # No connection of another sender of this process, which would join two starts.
                ("grpc.use_local_subchannel_pool", 1),
            ),
            "compression": _COMPRESSIONS[self._config.compression],
        }
        # With the scheme, because gRPC reads "unix:4317", and other hosts that are named like a resolver, as URIs.
        target = f"dns:///{quote(host, safe='[]:')}:{self._endpoint.port}"
        if self._config.is_tls:
            # Given, so that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH decides nothing.
            self._channel = grpc.secure_channel(
                target, grpc.ssl_channel_credentials(*self._read_pem_files(self._config)), **options
            )
        else:
            self._channel = grpc.insecure_channel(target, **options)
        # Without serializers: requests and responses are bytes.
        return self._channel.unary_unary(_METHODS[self._config.signal])


def _is_gevent() -> bool:
    """Returns whether threads are gevent's, which do not run while gRPC waits."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
