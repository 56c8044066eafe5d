"""Serves tbot's reports as an ASGI application: sends the events of many tbots together, and answers each report.

Stateless, so any number of bridges can run behind a load balancer. Client addresses are neither kept nor logged.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from otel_tbot import settings
from otel_tbot.bridge.batching import DRAIN_SECONDS, BatchSender, FullError
from otel_tbot.bridge.warning_log import WarningLog
from otel_tbot.consent import CONSENT_VARIABLE, FROM_REPORT, SDK_DISABLED_VARIABLE, is_granted, is_sdk_disabled
from otel_tbot.delivery import EventSender
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import WRONG_PREFIX, ConnectCall, to_error_response, to_response
from otel_tbot.tbot.http_request import Headers, RequestError, Response

if TYPE_CHECKING:
    from otel_tbot.bridge.metrics import Metrics

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"
METRICS_PATH: Final = "/metrics"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_METRICS_HEADERS: Final = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
# HEAD too: a body behind its response would be taken for the next response.
_METRICS_METHOD: Final = Response(405, ((b"allow", b"GET"),))
_FULL: Final = to_error_response("resource_exhausted", "too many reports wait for the collector")
_CLIENT_TIMEOUT: Final = to_error_response("deadline_exceeded", "the client's own timeout has passed")

_NOT_ACCEPTED: Final = "reports were answered `unavailable`, because the collector did not accept their events"
_NOT_ACCEPTED_REMEDY: Final = "run `otel-tbot doctor` with the same settings to see why"
_WRONG_PATH: Final = "reports came on a wrong path; check the path in the address that these tbots were given"
_MANY_WRONG_PATHS: Final = 10

logger = logging.getLogger("otel_tbot")


@dataclass(slots=True)
class Counts:
    """Counts what the bridge has done since it started, for its metrics.

    `rejected` counts by reason: a Connect code, the outcome of an event that the collector did not accept, or what is
    wrong with the request.
    """

    received: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


class BridgeError(OtelTbotError):
    """Says why a bridge must not or cannot start: which setting, and what to do."""


class ReportingService:
    """Answers requests to tbot's procedure with the outcome of *submit*, also as an ASGI application.

    *submit* takes an event and the seconds that the client waits, None if it does not say, and may raise FullError.
    `path_prefix` as for `ConnectCall`; it may be changed.
    """

    def __init__(
        self, submit: Callable[[TbotStart, float | None], asyncio.Future[Outcome]], *, path_prefix: str = ""
    ) -> None:
        self.path_prefix = path_prefix
        self.counts = Counts()
        self._submit = submit

    def open_call(self, method: str, path: str, headers: Headers) -> ConnectCall | Response:
        """Returns the call that a request begins, whose body is to be read, or the response if it begins none."""
        try:
            return ConnectCall(method, path, headers, path_prefix=self.path_prefix)
        except RequestError as error:
            return error.response

    def submit(self, event: TbotStart, timeout_seconds: float | None) -> asyncio.Future[Outcome] | Response:
        """Returns the outcome to wait for, or the response if the event cannot be sent."""
        try:
            return self._submit(event, timeout_seconds)
        except FullError:
            return _FULL
        except Exception as error:  # noqa: BLE001  # one request: whatever happened, the event was not accepted
            logger.warning("a report could not be handled: %s", type(error).__name__)
            return to_response(Outcome.UNREACHABLE)

    def to_response(self, outcome: Outcome, *, is_json: bool, timeout_seconds: float | None) -> Response:
        """Returns the response to a report whose event ended with *outcome*."""
        if outcome is Outcome.TIMED_OUT and timeout_seconds is not None:
            return _CLIENT_TIMEOUT
        return to_response(outcome, is_json=is_json)

    def count(self, response: Response) -> None:
        """Counts the request that gets *response*; call it once for each."""
        if not response.reason:
            return
        self.counts.received += 1
        if response.reason == Outcome.ACCEPTED.value:
            self.counts.accepted += 1
        else:
            self.counts.rejected[response.reason] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        call = self.open_call(scope["method"], _to_path(scope), scope["headers"])
        response = call if isinstance(call, Response) else await self._answer(call, receive)
        if response is not None:
            self.count(response)
            headers = [(b"content-length", b"%d" % len(response.body)), *response.headers]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, call: ConnectCall, receive: Receive) -> Response | None:
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None  # the client has disconnected
                call.add(message.get("body", b""))
                if not message.get("more_body"):
                    break
            outcome = self.submit(call.finish(), call.timeout_seconds)
        except RequestError as error:
            return error.response
        if isinstance(outcome, Response):
            return outcome
        # If the client disconnects, the event is still sent, because tbot did start.
        value = await asyncio.shield(outcome)
        return self.to_response(value, is_json=call.is_json, timeout_seconds=call.timeout_seconds)


class Bridge(ReportingService):
    """The bridge: sends the events of many reports together, and answers each report; also serves probes and metrics.

    Reads *environ* when it starts: at the lifespan's startup or, on a server without one, at the first request. More
    reports than `BatchSender` allows get `resource_exhausted` at once.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, path_prefix: str = "") -> None:
        super().__init__(self._submit_to_batch, path_prefix=path_prefix)
        self.is_ready = False
        self.client_certificate = ("", "")
        """The variable and the file of the certificate that the collector sees, both "" without one."""
        self._environ = environ
        self._batches: BatchSender | None = None
        self._metrics: "Metrics | None" = None
        self._one_shot_seconds = 0.0
        self._warnings = WarningLog()

    @property
    def waiting(self) -> int:
        """The number of reports that wait for their export."""
        return self._batches.waiting if self._batches is not None else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        if self._batches is None:
            self.start()
        await super().__call__(scope, receive, send)

    def open_call(self, method: str, path: str, headers: Headers) -> ConnectCall | Response:
        """Returns the call that a request begins, or the response; a probe gets its response here."""
        if path == HEALTH_PATH:
            return Response(200)
        if path == READY_PATH:
            return Response(200 if self.is_ready else 503)
        if path == METRICS_PATH and self._metrics is not None:
            if method != "GET":
                return _METRICS_METHOD
            text = self._metrics.read()
            return Response(200, _METRICS_HEADERS, text) if text else Response(404)
        return super().open_call(method, path, headers)

    def count(self, response: Response) -> None:
        """Counts the request that gets *response*, and warns of reports that come on a wrong path again and again."""
        super().count(response)
        if response.reason == WRONG_PREFIX:
            self._warnings.add(_WRONG_PATH, least=_MANY_WRONG_PATHS)

    def start(self) -> None:
        """Prepares to send. Call it within a running event loop.

        Raises:
            OtelTbotError: telemetry is off, the endpoint is invalid, or a certificate cannot be used.
        """
        check_consent(self._environ)
        sender = EventSender(self._environ, origin=FROM_REPORT, is_local=False)
        sender.check()
        for warning in sender.config.warnings:
            logger.warning(warning)
        if sender.config.is_tls:
            self.client_certificate = settings.CLIENT_CERTIFICATE.find(self._environ, sender.config.signal)
        self._one_shot_seconds = min(sender.config.timeout_seconds, settings.DAEMON_TIMEOUT_MS / 1000)
        self._batches = BatchSender(sender, on_export=self._on_export)
        # Here, because a process that never starts a bridge must not import OpenTelemetry's SDK.
        from otel_tbot.bridge.metrics import Metrics

        self._metrics = Metrics(self, self._environ)
        self.is_ready = True

    async def stop(self, limit_seconds: float = DRAIN_SECONDS) -> None:
        """Answers the reports that wait, within *limit_seconds*; from now on the bridge is not ready."""
        self.is_ready = False
        if self._batches is not None:
            await self._batches.drain(limit_seconds)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.stop)
        self._warnings.flush()

    def _submit_to_batch(self, event: TbotStart, timeout_seconds: float | None) -> asyncio.Future[Outcome]:
        batches = cast("BatchSender", self._batches)  # started before any request
        is_daemon = event.run_mode == "daemon"
        limit_seconds = settings.DAEMON_TIMEOUT_MS / 1000 if is_daemon else self._one_shot_seconds
        if timeout_seconds is not None:
            limit_seconds = min(limit_seconds, timeout_seconds)
        return batches.submit(event, time_ns=time.time_ns(), limit_seconds=limit_seconds)

    def _on_export(self, seconds: float, outcome: Outcome, count: int) -> None:
        if self._metrics is not None:
            self._metrics.record_export(seconds, outcome)
        if outcome is not Outcome.ACCEPTED:
            self._warnings.add(f"{_NOT_ACCEPTED} ({outcome.value}); {_NOT_ACCEPTED_REMEDY}", count)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
            try:
                self.start()
            except OtelTbotError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})


def check_consent(environ: Mapping[str, str]) -> None:
    """Returns if a bridge may run with *environ*: consent comes with each report, unless *environ* withholds it. Pure.

    Raises:
        BridgeError: *environ* withholds it.
    """
    if is_sdk_disabled(environ):
        raise BridgeError(f"{SDK_DISABLED_VARIABLE}: telemetry is off; unset it, or start no bridge")
    if not is_granted(environ, FROM_REPORT):
        raise BridgeError(f"{CONSENT_VARIABLE}: set, but not to a value that means on; unset it, or start no bridge")


def _to_path(scope: Scope) -> str:
    """Returns the path within the application, which may be mounted under a root path."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
