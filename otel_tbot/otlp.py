"""The way out: anonymous records or spans go in, an `Outcome` comes out.

Around OpenTelemetry's own OTLP exporters, so that success means the collector's acceptance: those report success for
a redirect, for a web page with status 200 and for a request of which everything was rejected.
Source: OTLP specification 1.x, "OTLP/HTTP Response", "OTLP/gRPC Response", "Partial Success".
"""

import base64
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from google.protobuf.json_format import MessageToDict
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    attach,
    detach,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from otel_tbot import settings
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    import grpc
    import requests

Request = ExportLogsServiceRequest | ExportTraceServiceRequest
Response = ExportLogsServiceResponse | ExportTraceServiceResponse

_RESPONSES: Final[dict[str, type[Response]]] = {"log": ExportLogsServiceResponse, "span": ExportTraceServiceResponse}
_MAX_RESPONSE_BYTES: Final = 64 * 1024

# Source: OTLP specification, "OTLP/HTTP Response" (retryable response codes), "OTLP/gRPC Response" (retryable codes).
_RETRYABLE_STATUSES: Final = frozenset((429, 502, 503, 504))
_RETRYABLE_CODES: Final = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)

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
    """Hides the application's trace and baggage meanwhile, and from instrumentation of requests and grpc what is sent.

    The SDK's processors hide the one and not the other.
    """
    token = attach(Context({_SUPPRESS_INSTRUMENTATION_KEY: True, _SUPPRESS_HTTP_INSTRUMENTATION_KEY: True}))
    try:
        yield
    finally:
        detach(token)


class OtlpSender:
    """One OTLP exporter of the SDK, configured by *environ*, that says what the collector really did.

    Sends each batch once: tbot gets its answer at once, and a second try could make two events of one.
    Raises what the SDK raises where it cannot be built (a certificate file that is none, say).
    """

    def __init__(self, environ: Mapping[str, str], *, signal: str, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        endpoint = settings.resolve_endpoint(environ, signal)
        self._answers: _HttpAnswers | _GrpcAnswers
        with _quiet_sdk():
            if settings.resolve_protocol(environ, signal) == "grpc":
                self._exporter, self._answers = _build_grpc(signal, endpoint, environ, deadline_seconds)
            else:
                self._exporter, self._answers = _build_http(signal, endpoint, environ, deadline_seconds)

    @property
    def answer(self) -> Answer:
        """What came back for the last batch."""
        return self._answers.answer

    def send(
        self, batch: Sequence[ReadableLogRecord | ReadableSpan], *, deadline_seconds: float | None = None
    ) -> Outcome:
        """Sends *batch* and waits for its answer; bounded by the deadline for a peer that is merely slow.

        The deadline is *deadline_seconds* or, if that is less, the sender's own. A peer that is hostile, or a resolver
        that hangs, can take longer: whoever must not wait asks from a thread.
        """
        if deadline_seconds is None or deadline_seconds > self._deadline_seconds:
            deadline_seconds = self._deadline_seconds
        self._answers.begin(self._exporter, time.monotonic() + deadline_seconds)
        # The SDK catches our exception since 1.44; until then it comes back to us.
        with no_context(), _quiet_sdk(), suppress(NotAcceptedError):
            self._exporter.export(batch)  # type: ignore[arg-type]  # the signal decides which of the two it is
        return self._answers.answer.outcome

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
        self.answer = _NOTHING

    def build_session(self) -> "requests.Session":
        import requests
        from requests.cookies import RequestsCookieJar

        answers = self

        class AcceptanceSession(requests.Session):
            def request(self, *arguments: object, **named: object) -> "requests.Response":
                remaining_seconds = max(answers.remaining_seconds(), 0.001)
                named |= {"stream": True, "allow_redirects": False, "timeout": remaining_seconds}
                try:
                    with super().request(*arguments, **named) as response:  # type: ignore[arg-type]  # passed through
                        answers.answer = answers.judge(response)
                except requests.Timeout:
                    answers.answer = _TOO_LATE
                except (requests.RequestException, OSError) as error:
                    # A certificate does not mend itself; a file that is none is a plain OSError.
                    is_passing = isinstance(error, requests.ConnectionError) and not isinstance(
                        error, requests.exceptions.SSLError
                    )
                    answers.answer = _NOTHING if is_passing else _UNUSABLE
                if answers.answer.outcome is not Outcome.ACCEPTED:
                    raise NotAcceptedError(answers.answer.outcome)
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

    def remaining_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def judge(self, response: "requests.Response") -> Answer:
        status = f"HTTP status {response.status_code}"
        if response.status_code // 100 != 2:  # noqa: PLR2004  # as HTTP has it
            retry_after = response.headers.get("Retry-After", "")
            return Answer(
                outcome=Outcome.REFUSED,
                status=status,
                is_retryable=response.status_code in _RETRYABLE_STATUSES,
                retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0,
            )
        body = bytearray()
        # Byte by byte, so that a body that trickles cannot hold the thread beyond the deadline; there are few.
        while chunk := response.raw.read(1):
            body += chunk
            if self.remaining_seconds() < 0:
                return _TOO_LATE
            if len(body) > _MAX_RESPONSE_BYTES:
                return Answer(outcome=Outcome.REFUSED, status=f"{status} with more than an answer of OTLP")
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/x-protobuf" and (body or content_type):
            return Answer(outcome=Outcome.REFUSED, status=f"{status} with something that is no OTLP")
        return Answer(outcome=_judge_body(self._response_type, bytes(body)), status=status)


class _GrpcAnswers:
    """Stands in front of the stub of the SDK's OTLP/gRPC exporter, which drops the answers it gets."""

    def __init__(self) -> None:
        self.answer = _NOTHING
        self.deadline = 0.0

    def begin(self, exporter: object, deadline: float) -> None:
        self.answer = _NOTHING
        self.deadline = deadline
        # The exporter makes a new stub when it reconnects. It has no public way to see an answer; if `_client` went
        # away, no event would ever count as accepted, and tests/test_otlp.py would say so.
        stub = exporter._client  # type: ignore[attr-defined]  # noqa: SLF001  # see above
        if not isinstance(stub, _GrpcStub):
            exporter._client = _GrpcStub(self, stub)  # type: ignore[attr-defined]  # noqa: SLF001  # see above


class _GrpcStub:
    def __init__(self, answers: _GrpcAnswers, stub: object) -> None:
        self._answers = answers
        self._export = stub.Export  # type: ignore[attr-defined]

    def Export(self, **arguments: object) -> Response:  # noqa: N802  # the stub's own name
        import grpc

        arguments["timeout"] = max(self._answers.deadline - time.monotonic(), 0.001)
        try:
            response = cast("Response", self._export(**arguments))
        except grpc.RpcError as error:
            code = error.code()
            outcomes = {
                grpc.StatusCode.UNAVAILABLE: Outcome.UNREACHABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.TIMED_OUT,
            }
            self._answers.answer = Answer(
                outcome=outcomes.get(code, Outcome.REFUSED),
                status=f"gRPC status {code.name}",
                is_retryable=code.name in _RETRYABLE_CODES,
            )
            raise
        self._answers.answer = Answer(outcome=_judge_response(response), status="gRPC status OK")
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


def to_request(signal: str, record: ReadableLogRecord | ReadableSpan) -> Request:
    """The OTLP request that sends *record*, made by the encoder that the SDK's exporters use. Pure."""
    if signal == "span":
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        return encode_spans([cast("ReadableSpan", record)])
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

    return encode_logs([cast("ReadableLogRecord", record)])


def to_json(request: Request) -> dict[str, Any]:
    """*request* as OTLP/JSON: enums as numbers, ids in hexadecimal. Pure.

    Source: OTLP specification, "JSON Protobuf Encoding".
    """
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
    return to_json(ExportLogsServiceRequest.FromString(body))


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
    signal: str, endpoint: str, environ: Mapping[str, str], deadline_seconds: float
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
    signal: str, endpoint: str, environ: Mapping[str, str], deadline_seconds: float
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
    """What the exporter of *signal* checks the collector's certificate with, for a look at it without an export.

    Raises OSError (ssl.SSLError included) where a certificate file is none.
    """
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    certificates = settings.CERTIFICATE.resolve(environ, signal) or DEFAULT_CA_BUNDLE_PATH
    context = ssl.create_default_context(cafile=certificates)
    if certificate := settings.CLIENT_CERTIFICATE.resolve(environ, signal):
        context.load_cert_chain(certificate, settings.CLIENT_KEY.resolve(environ, signal) or None)
    if settings.resolve_protocol(environ, signal) == "grpc":
        context.set_alpn_protocols(["h2"])
    return context


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
