"""Serves tbot's reports as an ASGI application: sends the events of many tbots together, and answers each report.

Stateless, so any number of bridges can run behind a load balancer. Client addresses are neither kept nor logged.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from otel_tbot import settings
from otel_tbot.bridge.batching import BatchSender, FullError
from otel_tbot.consent import CONSENT_VARIABLE, FROM_REPORT, SDK_DISABLED_VARIABLE, is_granted, is_sdk_disabled
from otel_tbot.delivery import EventSender
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import ConnectCall, ConnectError, Response, to_error_response, to_response

DRAIN_SECONDS: Final = 7.5
"""How long reports may still wait for their responses once the bridge is asked to stop."""

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_FULL: Final = to_error_response("resource_exhausted", "too many reports wait for the collector")
_CLIENT_TIMEOUT: Final = to_error_response("deadline_exceeded", "the client's own timeout has passed")

logger = logging.getLogger("otel_tbot")


@dataclass(slots=True)
class Counts:
    """Counts what the bridge has done since it started, for its metrics.

    `rejected` counts by reason: a Connect code, or the outcome of an event that the collector did not accept.
    `on_export` is called with the seconds and the outcome of each export.
    """

    received: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    on_export: Callable[[float, Outcome], None] = lambda _seconds, _outcome: None

    def add(self, reason: str) -> None:
        """Counts one report that was rejected for *reason*, or accepted if it is empty."""
        self.received += 1
        if reason:
            self.rejected[reason] += 1
        else:
            self.accepted += 1


class BridgeError(OtelTbotError):
    """Says why a bridge must not or cannot start: which setting, and what to do."""


class ReportingService:
    """The ASGI application for tbot's procedure alone: answers each report with the outcome of *deliver*.

    *path_prefix* as for `ConnectCall`. *deliver* may raise ConnectError. *on_report* is called once for each request
    whose body was complete, with the reason it was rejected for, "" if it was not.
    """

    def __init__(
        self,
        deliver: Callable[[TbotStart], Awaitable[Outcome]],
        *,
        path_prefix: str = "",
        on_report: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._deliver = deliver
        self._path_prefix = path_prefix
        self._on_report = on_report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        try:
            call = ConnectCall(scope["method"], scope["path"], scope["headers"], path_prefix=self._path_prefix)
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client has disconnected
                call.add(message.get("body", b""))
                if not message.get("more_body"):
                    break
        except ConnectError as error:
            response = error.response
        else:
            reason = "canceled"
            try:
                response = await self._handle(call)
                reason = response.reason
            finally:
                self._on_report(reason)
        await send_response(send, response)

    async def _handle(self, call: ConnectCall) -> Response:
        try:
            event = call.finish()
            async with asyncio.timeout(call.timeout_seconds):
                outcome = await self._deliver(event)
        except ConnectError as error:
            return error.response
        except TimeoutError:
            return _CLIENT_TIMEOUT
        except Exception as error:  # noqa: BLE001  # one request: whatever happened, the event was not accepted
            logger.warning("a report could not be handled: %s", type(error).__name__)
            outcome = Outcome.UNREACHABLE
        return to_response(outcome, is_json=call.is_json)


async def send_response(send: Send, response: Response) -> None:
    """Sends *response* to an ASGI server."""
    headers = [(b"content-length", b"%d" % len(response.body)), *response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


class Bridge:
    """The bridge as an ASGI application: sends the events of many reports together, and answers each report.

    Reads *environ* when it starts: at the lifespan's startup or, on a server without one, at the first request. More
    reports than `BatchSender` allows get `resource_exhausted` at once.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, path_prefix: str = "") -> None:
        self.counts = Counts()
        self._environ = environ
        self._service = ReportingService(self._deliver, path_prefix=path_prefix, on_report=self.counts.add)
        self._batches: BatchSender | None = None
        self._is_draining = False
        self._stop_metrics: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> int:
        """The number of reports that wait for their export."""
        return self._batches.waiting if self._batches is not None else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"] in (HEALTH_PATH, READY_PATH):
            is_ready = self._batches is not None and not self._is_draining
            await send_response(send, Response(200 if is_ready or scope["path"] == HEALTH_PATH else 503))
        else:
            if self._batches is None:
                self.start()
            await self._service(scope, receive, send)

    def start(self) -> None:
        """Prepares to send. Call it within a running event loop.

        Raises:
            BridgeError: telemetry is off, the endpoint is invalid, or a certificate cannot be used.
        """
        check_consent(self._environ)
        self._batches = BatchSender(_TimedSender(self._environ, self.counts))
        self._stop_metrics = _start_metrics(self, self._environ)

    async def stop(self, limit_seconds: float = DRAIN_SECONDS) -> None:
        """Answers the reports that wait, within *limit_seconds*; from now on the bridge is not ready."""
        if self._batches is not None and not self._is_draining:
            self._is_draining = True
            await self._batches.drain(limit_seconds)
            await asyncio.to_thread(self._stop_metrics)

    async def _deliver(self, event: TbotStart) -> Outcome:
        batches = cast("BatchSender", self._batches)  # started before any request
        timeout_ms = settings.DAEMON_TIMEOUT_MS
        if event.run_mode != "daemon":
            timeout_ms = min(timeout_ms, settings.TIMEOUT.resolve(self._environ))
        try:
            return await batches.deliver(event, time_ns=time.time_ns(), limit_seconds=timeout_ms / 1000)
        except FullError:
            raise ConnectError(_FULL) from None

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
            try:
                self.start()
            except BridgeError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})


class _TimedSender:
    """Sends batches, and reports to the counts how long each took."""

    def __init__(self, environ: Mapping[str, str], counts: Counts) -> None:
        self._sender = EventSender(environ, origin=FROM_REPORT, is_local=False)
        self._counts = counts
        self._sender.check()
        for warning in self._sender.config.warnings:
            logger.warning(warning)

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        began = time.monotonic()
        outcome = self._sender.send(events, deadline=began + deadline_seconds)
        self._counts.on_export(time.monotonic() - began, outcome)
        return outcome

    def give_up(self) -> None:
        self._sender.abandon()


def check_consent(environ: Mapping[str, str]) -> None:
    """Returns if a bridge may run with *environ*: consent comes with each report, unless *environ* withholds it. Pure.

    Raises:
        BridgeError: *environ* withholds it.
    """
    if is_sdk_disabled(environ):
        raise BridgeError(f"{SDK_DISABLED_VARIABLE}: telemetry is off; unset it, or start no bridge")
    if not is_granted(environ, FROM_REPORT):
        raise BridgeError(f"{CONSENT_VARIABLE}: set, but not to a value that means on; unset it, or start no bridge")


def _start_metrics(bridge: Bridge, environ: Mapping[str, str]) -> Callable[[], None]:
    """Starts the bridge's own metrics if OTEL_METRICS_EXPORTER asks for them; returns what stops them."""
    if environ.get("OTEL_METRICS_EXPORTER", "").strip() in ("", "none"):
        return lambda: None
    from otel_tbot.bridge.metrics import start

    return start(bridge, environ)
