"""The way out: a request of OTLP goes in, an `Outcome` comes out.

Over http.client or grpc as they are, and not by OpenTelemetry's own exporters: those report success for a redirect, for
a web page with status 200 and for a request of which everything was rejected, take endpoints, headers and credentials
from variables and entry points of their own, and importing them, and requests, costs more than all else that a relay
does (benchmarks).
Source: OTLP specification 1.x, "OTLP/HTTP Request", "OTLP/HTTP Response", "OTLP/gRPC Response", "Partial Success".
"""

import base64
import http.client
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, unquote, urlsplit

from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot import settings
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    import grpc
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    from otel_tbot.otlp.encoding import Request

    Response = ExportLogsServiceResponse | ExportTraceServiceResponse

_MAX_RESPONSE_BYTES: Final = 64 * 1024
_RESPONSE_CHUNK_BYTES: Final = 4096

_USER_AGENT: Final = f"OTel-OTLP-Exporter-Python/{sdk_version}"
"""That of OpenTelemetry's own exporters: what it says of the sender is what telemetry.sdk.* says in the request."""

# Source: OTLP specification, "OTLP/HTTP Response" (retryable response codes), "OTLP/gRPC Response" (retryable codes).
_RETRYABLE_STATUSES: Final = frozenset((429, 502, 503, 504))
_RETRYABLE_CODES: Final = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)

# Source: opentelemetry-proto, logs_service.proto and trace_service.proto.
_GRPC_METHODS: Final = {
    "log": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "span": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a collector answered: the outcome, the status for people ("HTTP status 503"), and whether to try again.

    `retry_after_seconds` is what the collector asked for, 0 where it did not.
    """

    outcome: Outcome
    status: str = ""
    is_retryable: bool = False
    retry_after_seconds: float = 0


_NOTHING: Final = Answer(outcome=Outcome.UNREACHABLE, is_retryable=True)
_UNUSABLE: Final = Answer(outcome=Outcome.UNREACHABLE)
_TOO_LATE: Final = Answer(outcome=Outcome.TIMED_OUT, is_retryable=True)


@contextmanager
def no_context() -> Iterator[None]:
    """Hides the application's trace and baggage meanwhile, and what is sent from instrumentation of HTTP and gRPC.

    The SDK's processors hide the one and not the other. Where nothing has loaded OpenTelemetry's context, there is
    neither trace nor instrumentation.
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


class _Transport(Protocol):
    """One connection, made when it is needed, over which requests go one after the other."""

    def exchange(self, body: bytes, deadline: float) -> Answer:
        """Sends *body*, once, and judges what comes back until *deadline*, in the time of time.monotonic."""

    def close(self) -> None:
        """Gives up the connection."""


class OtlpSender:
    """The way to one collector, configured by *environ*, for requests of *signal*.

    Sends each request once: tbot gets its answer at once, and a second try could make two events of one.

    Raises:
        OSError: a certificate file is none (ssl.SSLError included).
        ValueError: as OSError, where the file's content is at fault.
    """

    def __init__(self, environ: Mapping[str, str], *, signal: str, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        build = _GrpcTransport if settings.resolve_protocol(environ, signal) == "grpc" else _HttpTransport
        self._transport: _Transport = build(environ, signal)
        self.answer = _NOTHING
        """What came back for the last request."""

    def send(self, body: bytes, *, deadline_seconds: float | None = None) -> Outcome:
        """Sends the serialized request *body* and waits for its answer; bounded for a peer that is merely slow.

        The deadline is *deadline_seconds* or, if that is less, the sender's own. A peer that is hostile, or a resolver
        that hangs, can take longer: whoever must not wait asks from a thread.
        """
        if deadline_seconds is None or deadline_seconds > self._deadline_seconds:
            deadline_seconds = self._deadline_seconds
        with no_context():
            self.answer = self._transport.exchange(body, time.monotonic() + deadline_seconds)
        return self.answer.outcome

    def close(self) -> None:
        """Gives up the connection."""
        self._transport.close()


class _HttpTransport:
    """OTLP/HTTP. No proxy, no ~/.netrc, no cookies and no redirects: http.client knows none of them."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        url = urlsplit(settings.resolve_endpoint(environ, signal))
        self._judge = load_judge(signal)
        self._compress = COMPRESSIONS[settings.COMPRESSION.resolve(environ, signal)]
        self._target = quote(url.path or "/", safe=_TARGET_SAFE)
        if url.query:
            self._target += "?" + quote(url.query, safe=_TARGET_SAFE)
        self._headers = {
            "user-agent": _USER_AGENT,
            "accept-encoding": "identity",
            "accept": "*/*",
            "connection": "keep-alive",
            "content-type": "application/x-protobuf",
            **_to_authorization(url.username, url.password),
            **dict(settings.HEADERS.resolve(environ, signal)),
        }
        if (compression := settings.COMPRESSION.resolve(environ, signal)) != "none":
            self._headers["content-encoding"] = compression
        if url.scheme.lower() == "https":
            context = build_tls_context(environ, signal)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname or "", url.port, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(url.hostname or "", url.port)

    def exchange(self, body: bytes, deadline: float) -> Answer:
        connection = self._connection
        try:
            if connection.sock is not None and _is_dropped(connection.sock):
                connection.close()
            connection.timeout = max(deadline - time.monotonic(), 0.001)
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            connection.request("POST", self._target, self._compress(body), self._headers)
            with connection.getresponse() as response:
                answer = self._judge_response(response, deadline)
        except TimeoutError:
            answer = _TOO_LATE
        except (ssl.SSLError, UnicodeError, http.client.InvalidURL):
            # A certificate does not mend itself, and neither does a name that is none.
            answer = _UNUSABLE
        except (OSError, http.client.HTTPException):
            answer = _NOTHING
        if answer.outcome is not Outcome.ACCEPTED:
            # What is left of an answer must not be taken for that to the next request.
            connection.close()
        return answer

    def close(self) -> None:
        self._connection.close()

    def _judge_response(self, response: http.client.HTTPResponse, deadline: float) -> Answer:
        status = f"HTTP status {response.status}"
        if response.status // 100 != 2:  # noqa: PLR2004  # as HTTP has it
            retry_after = response.headers.get("Retry-After", "")
            return Answer(
                outcome=Outcome.REFUSED,
                status=status,
                is_retryable=response.status in _RETRYABLE_STATUSES,
                retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0,
            )
        body = bytearray()
        # By what has come, so that a body that trickles cannot hold the thread beyond the deadline.
        while chunk := response.read1(_RESPONSE_CHUNK_BYTES):
            body += chunk
            if time.monotonic() > deadline:
                return _TOO_LATE
            if len(body) > _MAX_RESPONSE_BYTES:
                return Answer(outcome=Outcome.REFUSED, status=f"{status} with more than an answer of OTLP")
        # It broke off in its body; or, where nothing says how long that is, perhaps in its head.
        is_unbounded = response.length is None and not response.chunked
        if response.length or (is_unbounded and not body):
            return _NOTHING
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/x-protobuf" and (body or content_type):
            return Answer(outcome=Outcome.REFUSED, status=f"{status} with something that is no OTLP")
        return Answer(outcome=self._judge(bytes(body)), status=status)


# What may stand in a URL as it is; the percent sign too, since what is encoded already stays so.
_TARGET_SAFE: Final = "!#$%&'()*+,/:;=?@[]~"


def _to_authorization(user: str | None, password: str | None) -> dict[str, str]:
    """The header for a name and password that stand in the endpoint itself."""
    if not user and not password:
        return {}
    text = f"{unquote(user or '')}:{unquote(password or '')}"
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def _is_dropped(connection: Any) -> bool:
    """Whether the other side has closed *connection*, or said something that nobody asked for."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        pass
    return True


def _compress_gzip(body: bytes) -> bytes:
    import gzip

    # Without the time, which would be this machine's own.
    return gzip.compress(body, mtime=0)


def _compress_deflate(body: bytes) -> bytes:
    import zlib

    return zlib.compress(body)


COMPRESSIONS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "none": bytes,
    "gzip": _compress_gzip,
    "deflate": _compress_deflate,
}
"""What a body becomes under each value of OTEL_EXPORTER_OTLP_COMPRESSION."""


class _GrpcTransport:
    """OTLP/gRPC."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        import grpc

        names = {"none": "NoCompression", "gzip": "Gzip", "deflate": "Deflate"}
        endpoint = settings.resolve_endpoint(environ, signal)
        # As OpenTelemetry's own exporter: of a URL, host and port count.
        self._target = urlsplit(endpoint).netloc if "://" in endpoint else endpoint
        self._method = _GRPC_METHODS[signal]
        self._metadata = tuple(settings.HEADERS.resolve(environ, signal))
        self._judge = load_judge(signal)
        self._credentials = None if _is_insecure(endpoint, environ, signal) else _read_credentials(environ, signal)
        self._options: dict[str, Any] = {
            "options": (
                ("grpc.primary_user_agent", _USER_AGENT),
                ("grpc.enable_http_proxy", 0),
                # No connection that another sender of this process has had, which would join two starts.
                ("grpc.use_local_subchannel_pool", 1),
            ),
            "compression": grpc.Compression[names[settings.COMPRESSION.resolve(environ, signal)]],
        }
        self._channel: grpc.Channel | None = None
        self._export: grpc.UnaryUnaryMultiCallable[bytes, bytes] | None = None

    def exchange(self, body: bytes, deadline: float) -> Answer:
        import grpc

        export = self._export = self._export or self._connect()
        # The deadline is kept here and not sent: how much of it is left tells how fast this machine is.
        call = export.future(body, metadata=self._metadata)
        try:
            response = call.result(timeout=max(deadline - time.monotonic(), 0.001))
        except grpc.FutureTimeoutError:
            call.cancel()
            return _TOO_LATE
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAVAILABLE:
                # A channel that has lost its peer would wait before it tries again.
                self.close()
            outcomes = {
                grpc.StatusCode.UNAVAILABLE: Outcome.UNREACHABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.TIMED_OUT,
            }
            return Answer(
                outcome=outcomes.get(code, Outcome.REFUSED),
                status=f"gRPC status {code.name}",
                is_retryable=code.name in _RETRYABLE_CODES,
            )
        return Answer(outcome=self._judge(response), status="gRPC status OK")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._export = None

    def _connect(self) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        import grpc

        if self._credentials is None:
            self._channel = grpc.insecure_channel(self._target, **self._options)
        else:
            self._channel = grpc.secure_channel(self._target, self._credentials, **self._options)
        # Without serializers: bytes go in, bytes come out.
        return self._channel.unary_unary(self._method)


def load_transport(protocol: str) -> None:
    """Imports what `OtlpSender` needs for *protocol* alone."""
    if protocol == "grpc":
        import grpc  # noqa: F401  # for the import alone


def load_judge(signal: str) -> Callable[[bytes], Outcome]:
    """What tells an acceptance, in the body of an answer to a request of *signal*, from all else."""
    from google.protobuf.message import DecodeError

    response_type: type[Response]
    if signal == "span":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        response_type, rejected = ExportTraceServiceResponse, "rejected_spans"
    else:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

        response_type, rejected = ExportLogsServiceResponse, "rejected_log_records"

    def judge(body: bytes) -> Outcome:
        try:
            response = response_type.FromString(body)
        except DecodeError:
            return Outcome.REFUSED
        # An empty partial_success, which the Collector sends with each answer, rejects nothing.
        return Outcome.REFUSED if getattr(response.partial_success, rejected) > 0 else Outcome.ACCEPTED

    return judge


def to_json(request: "Request") -> dict[str, Any]:
    """*request* as OTLP/JSON: enums as numbers, ids in hexadecimal. Pure.

    Source: OTLP specification, "JSON Protobuf Encoding".
    """
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in fields.get("resourceSpans", ()):
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                span |= {key: base64.b64decode(span[key]).hex() for key in ("traceId", "spanId")}
    return fields


def parse_log_request(body: bytes) -> dict[str, Any]:
    """The OTLP/HTTP request *body*, which holds log records, as OTLP/JSON has it. Pure.

    Raises google.protobuf's DecodeError where it is none.
    """
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return to_json(ExportLogsServiceRequest.FromString(body))


def _is_insecure(endpoint: str, environ: Mapping[str, str], signal: str) -> bool:
    if "://" in endpoint:
        return endpoint.lower().startswith("http://")
    return bool(settings.INSECURE.resolve(environ, signal))


def _read_credentials(environ: Mapping[str, str], signal: str) -> "grpc.ChannelCredentials":
    import grpc

    def read(setting: settings.Setting) -> bytes | None:
        path = setting.resolve(environ, signal)
        if not path:
            return None
        with open(path, "rb") as file:
            return file.read()

    return grpc.ssl_channel_credentials(
        root_certificates=read(settings.CERTIFICATE),
        private_key=read(settings.CLIENT_KEY),
        certificate_chain=read(settings.CLIENT_CERTIFICATE),
    )


def build_tls_context(environ: Mapping[str, str], signal: str) -> ssl.SSLContext:
    """What the collector's certificate is checked with for *signal*, and a client's own is shown by.

    Raises OSError (ssl.SSLError included) where a certificate file is none.
    """
    import certifi

    # Not create_default_context, which opens the file that SSLKEYLOGFILE names, there or not.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(settings.CERTIFICATE.resolve(environ, signal) or certifi.where())
    context.hostname_checks_common_name = False
    if certificate := settings.CLIENT_CERTIFICATE.resolve(environ, signal):
        context.load_cert_chain(certificate, settings.CLIENT_KEY.resolve(environ, signal) or None)
    is_grpc = settings.resolve_protocol(environ, signal) == "grpc"
    context.set_alpn_protocols(["h2" if is_grpc else "http/1.1"])
    return context
