"""The way out: anonymous records or spans go in, an `Outcome` comes out.

Around OpenTelemetry's own OTLP exporters, so that success means the collector's acceptance: those report success for
a redirect, for a web page with status 200 and for a request of which everything was rejected.
Source: OTLP specification 1.x, "OTLP/HTTP Response", "OTLP/gRPC Response", "Partial Success".
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from google.protobuf.json_format import MessageToDict
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    attach,
    detach,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from otel_tbot import settings
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    import grpc
    import requests

Signal = Literal["log", "span"]
Response = ExportLogsServiceResponse | ExportTraceServiceResponse

_RESPONSES: Final[dict[str, type[Response]]] = {"log": ExportLogsServiceResponse, "span": ExportTraceServiceResponse}
_MAX_RESPONSE_BYTES: Final = 64 * 1024

# Where the SDK's exporters write of failures, in part with the values of variables. The outcome says what there is to
# say, so they are silent in the thread that exports for us, and only there.
_SDK_LOGGERS: Final = (
    "opentelemetry.util.re",
    "opentelemetry.attributes",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)

logger = logging.getLogger("otel_tbot")


class NotAcceptedError(Exception):
    """Ends an export whose answer is no acceptance; of no class that the SDK's exporters would retry."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome


class OtlpSender:
    """One OTLP exporter of the SDK, configured by *environ*, that says what the collector really did.

    Sends each batch once: tbot gets its answer at once, and a second try could make two events of one.
    Raises what the SDK raises where it cannot be built (a certificate file that is none, say).
    """

    def __init__(self, environ: Mapping[str, str], *, deadline_seconds: float) -> None:
        self._signal: Signal = settings.SIGNAL.resolve(environ)
        self._deadline_seconds = deadline_seconds
        endpoint = settings.resolve_endpoint(environ, self._signal)
        self._answers: _HttpAnswers | _GrpcAnswers
        with _quiet_sdk():
            if settings.resolve_protocol(environ, self._signal) == "grpc":
                self._exporter, self._answers = _build_grpc(self._signal, endpoint, environ, deadline_seconds)
            else:
                self._exporter, self._answers = _build_http(self._signal, endpoint, environ, deadline_seconds)

    def send(self, batch: Sequence[ReadableLogRecord | ReadableSpan]) -> Outcome:
        """Sends *batch* and waits for its answer; bounded by *deadline_seconds* for a peer that is merely slow.

        A peer that is hostile, or a resolver that hangs, can take longer: whoever must not wait asks from a thread.
        """
        self._answers.begin(self._exporter, time.monotonic() + self._deadline_seconds)
        # Without this, instrumented requests or grpc would send the application's trace and baggage along.
        token = attach(Context({_SUPPRESS_INSTRUMENTATION_KEY: True, _SUPPRESS_HTTP_INSTRUMENTATION_KEY: True}))
        try:
            # The SDK catches our exception since 1.44; until then it comes back to us.
            with _quiet_sdk(), suppress(NotAcceptedError):
                self._exporter.export(batch)  # type: ignore[arg-type]  # the signal decides which of the two it is
        finally:
            detach(token)
        return self._answers.outcome

    def close(self) -> None:
        """Gives up the connection."""
        with _quiet_sdk():
            self._exporter.shutdown()


class _HttpAnswers:
    """The transport under the SDK's OTLP/HTTP exporter: passes on acceptances, and ends all else."""

    def __init__(self, response_type: type[Response]) -> None:
        self._response_type = response_type
        self.begin(None, 0.0)

    def begin(self, _exporter: object, deadline: float) -> None:
        self._deadline = deadline
        self.outcome = Outcome.UNREACHABLE

    def build_session(self) -> "requests.Session":
        import requests
        from requests.cookies import RequestsCookieJar

        answers = self

        class AcceptanceSession(requests.Session):
            def request(self, *arguments: object, **named: object) -> "requests.Response":
                named |= {"stream": True, "allow_redirects": False}
                try:
                    with super().request(*arguments, **named) as response:  # type: ignore[arg-type]  # passed through
                        answers.outcome = answers.judge(response)
                except requests.Timeout:
                    answers.outcome = Outcome.TIMED_OUT
                except (requests.RequestException, OSError):
                    answers.outcome = Outcome.UNREACHABLE
                if answers.outcome is not Outcome.ACCEPTED:
                    raise NotAcceptedError(answers.outcome)
                return response

        class NoCookies(RequestsCookieJar):
            def extract_cookies(self, *_arguments: object) -> None:
                """Keeps nothing: a cookie would link one event to the next."""

        session = AcceptanceSession()
        session.cookies = NoCookies()
        # No proxy, no ~/.netrc and no certificates from variables of other programs: the endpoint is what is set.
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"
        return session

    def judge(self, response: "requests.Response") -> Outcome:
        if response.status_code // 100 != 2:  # noqa: PLR2004  # as HTTP has it
            return Outcome.REFUSED
        body = bytearray()
        # Byte by byte, so that a body that trickles cannot hold the thread beyond the deadline; there are few.
        while chunk := response.raw.read(1):
            body += chunk
            if time.monotonic() > self._deadline:
                return Outcome.TIMED_OUT
            if len(body) > _MAX_RESPONSE_BYTES:
                return Outcome.REFUSED
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/x-protobuf" and (body or content_type):
            return Outcome.REFUSED
        return _judge_body(self._response_type, bytes(body))


class _GrpcAnswers:
    """Stands in front of the stub of the SDK's OTLP/gRPC exporter, which drops the answers it gets."""

    def __init__(self) -> None:
        self.outcome = Outcome.UNREACHABLE

    def begin(self, exporter: object, _deadline: float) -> None:
        self.outcome = Outcome.UNREACHABLE
        # The exporter makes a new stub when it reconnects. It has no public way to see an answer; if `_client` went
        # away, no event would ever count as accepted, and tests/test_exporters.py would say so.
        stub = exporter._client  # type: ignore[attr-defined]  # noqa: SLF001  # see above
        if not isinstance(stub, _GrpcStub):
            exporter._client = _GrpcStub(self, stub)  # type: ignore[attr-defined]  # noqa: SLF001  # see above


class _GrpcStub:
    def __init__(self, answers: _GrpcAnswers, stub: object) -> None:
        self._answers = answers
        self._export = stub.Export  # type: ignore[attr-defined]

    def Export(self, **arguments: object) -> Response:  # noqa: N802  # the stub's own name
        import grpc

        try:
            response = cast("Response", self._export(**arguments))
        except grpc.RpcError as error:
            self._answers.outcome = {
                grpc.StatusCode.UNAVAILABLE: Outcome.UNREACHABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.TIMED_OUT,
            }.get(error.code(), Outcome.REFUSED)
            raise
        self._answers.outcome = _judge_response(response)
        return response


def _judge_body(response_type: type[Response], body: bytes) -> Outcome:
    from google.protobuf.message import DecodeError

    response = response_type()
    try:
        response.ParseFromString(body)
    except DecodeError:
        return Outcome.REFUSED
    return _judge_response(response)


def _judge_response(response: Response) -> Outcome:
    # An empty partial_success, which the Collector sends with each answer, rejects nothing.
    partial = response.partial_success
    rejected = (
        partial.rejected_log_records if isinstance(response, ExportLogsServiceResponse) else partial.rejected_spans  # type: ignore[union-attr]
    )
    return Outcome.REFUSED if rejected > 0 else Outcome.ACCEPTED


def parse_log_request(body: bytes) -> dict[str, Any]:
    """The OTLP/HTTP request *body*, which holds log records, as OTLP/JSON would have it. Pure.

    Raises google.protobuf's DecodeError where it is none.
    """
    return MessageToDict(ExportLogsServiceRequest.FromString(body))


def load_exporter(signal: str, protocol: str) -> Callable[..., LogRecordExporter | SpanExporter]:
    """The SDK's exporter for *signal* over *protocol*: what takes longest of all the imports."""
    match signal, protocol:
        case "log", "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs

            return HttpLogs
        case "span", "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans

            return HttpSpans
        case "log", _:
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs

            return GrpcLogs
        case _:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

            return GrpcSpans


def _build_http(
    signal: Signal, endpoint: str, environ: Mapping[str, str], deadline_seconds: float
) -> tuple[LogRecordExporter | SpanExporter, _HttpAnswers]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    answers = _HttpAnswers(_RESPONSES[signal])
    names = {"none": "NoCompression", "gzip": "Gzip", "deflate": "Deflate"}
    exporter = load_exporter(signal, "http/protobuf")(
        endpoint=endpoint,
        certificate_file=settings.CERTIFICATE.resolve(environ, signal) or None,
        client_key_file=settings.CLIENT_KEY.resolve(environ, signal) or None,
        client_certificate_file=settings.CLIENT_CERTIFICATE.resolve(environ, signal) or None,
        headers=dict(settings.HEADERS.resolve(environ, signal)),
        timeout=deadline_seconds,
        compression=Compression[names[settings.COMPRESSION.resolve(environ, signal)]],
        session=answers.build_session(),
    )
    return exporter, answers


def _build_grpc(
    signal: Signal, endpoint: str, environ: Mapping[str, str], deadline_seconds: float
) -> tuple[LogRecordExporter | SpanExporter, _GrpcAnswers]:
    import grpc

    names = {"none": "NoCompression", "gzip": "Gzip", "deflate": "Deflate"}
    exporter = load_exporter(signal, "grpc")(
        endpoint=endpoint,
        insecure=_is_insecure(endpoint, environ, signal),
        credentials=_read_credentials(environ, signal),
        headers=tuple(settings.HEADERS.resolve(environ, signal)),
        timeout=deadline_seconds,
        compression=grpc.Compression[names[settings.COMPRESSION.resolve(environ, signal)]],
        channel_options=(("grpc.enable_http_proxy", 0),),
        # Empty would mean the default; this code ends every call at its first answer.
        retryable_error_codes=(grpc.StatusCode.OK,),
    )
    return exporter, _GrpcAnswers()


def _is_insecure(endpoint: str, environ: Mapping[str, str], signal: Signal) -> bool:
    if "://" in endpoint:
        return endpoint.lower().startswith("http://")
    return bool(settings.INSECURE.resolve(environ, signal))


def _read_credentials(environ: Mapping[str, str], signal: Signal) -> "grpc.ChannelCredentials":
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


@contextmanager
def _quiet_sdk() -> Iterator[None]:
    """Drops what the SDK's exporters log from this thread meanwhile."""
    thread_id = threading.get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread_id

    loggers = [logging.getLogger(name) for name in _SDK_LOGGERS]
    for sdk_logger in loggers:
        sdk_logger.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        for sdk_logger in loggers:
            sdk_logger.removeFilter(is_of_another_thread)
