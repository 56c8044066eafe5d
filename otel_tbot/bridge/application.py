"""The bridge: many tbots' reports go in, their events go to the collector together, each is answered after its export.

Stateless, so that any number of them can run behind a load balancer.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from otel_tbot import delivery as sending
from otel_tbot import settings
from otel_tbot.bridge.batching import FullError, GroupCommit
from otel_tbot.consent import CONSENT_VARIABLE, FROM_REPORT, SDK_DISABLED_VARIABLE, is_granted, is_sdk_disabled
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import FULL, Receive, RefusedError, Response, Scope, Send, build_application, send_response

DRAIN_SECONDS: Final = 7.5
"""How long what waits may wait for its answer once the end was asked for."""

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"


@dataclass(slots=True)
class Counts:
    """What the bridge did since it started, for its own metrics.

    `refused` counts by reason: a Connect code, or what became of an event that the collector did not accept.
    `on_export` is called with the seconds and the outcome of each export.
    """

    received: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    on_export: Callable[[float, Outcome], None] = lambda _seconds, _outcome: None


class BridgeError(OtelTbotError):
    """A bridge that must not, or cannot, be started: which setting, and what to do."""


class Bridge:
    """The bridge as an ASGI application: many reports, sent together, each answered after its export.

    Reads *environ* when it starts, which is at the lifespan's startup or, in a server without one, at the first
    request. Above the bounds of `GroupCommit` a report gets `resource_exhausted` at once.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, path_prefix: str = "") -> None:
        self.counts = Counts()
        self._environ = environ
        self._application = build_application(self._deliver, path_prefix=path_prefix, note=self._note)
        self._group: GroupCommit | None = None
        self._is_draining = False
        self._stop_metrics: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> int:
        """How many reports wait for their export."""
        return self._group.waiting if self._group is not None else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"] in (HEALTH_PATH, READY_PATH):
            is_ready = self._group is not None and not self._is_draining
            await send_response(send, Response(200 if is_ready or scope["path"] == HEALTH_PATH else 503))
        else:
            if self._group is None:
                self.start()
            await self._application(scope, receive, send)

    def start(self) -> None:
        """Gets ready to send; within a running event loop.

        Raises:
            BridgeError: telemetry is off, or there is no endpoint to send to, or a certificate is none.
        """
        check_consent(self._environ)
        self._group = GroupCommit(_TimedSender(self._environ, self.counts))
        self._stop_metrics = _start_metrics(self, self._environ)

    async def stop(self, limit_seconds: float = DRAIN_SECONDS) -> None:
        """Answers what waits, within *limit_seconds*, and is not ready any more."""
        if self._group is not None and not self._is_draining:
            self._is_draining = True
            await self._group.drain(limit_seconds)
            await asyncio.to_thread(self._stop_metrics)

    async def _deliver(self, event: TbotStart) -> Outcome:
        group = cast("GroupCommit", self._group)  # started before any request
        timeout_ms = settings.DAEMON_DEADLINE_MS
        if event.run_mode != "daemon":
            timeout_ms = min(timeout_ms, settings.TIMEOUT.resolve(self._environ))
        try:
            return await group.deliver(event, time_ns=time.time_ns(), limit_seconds=timeout_ms / 1000)
        except FullError:
            raise RefusedError(FULL) from None

    def _note(self, reason: str) -> None:
        self.counts.received += 1
        if reason:
            self.counts.refused[reason] += 1
        else:
            self.counts.accepted += 1

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


class _TimedSender(sending.GroupSender):
    """Sends groups, and tells the counts how long each took."""

    def __init__(self, environ: Mapping[str, str], counts: Counts) -> None:
        super().__init__(environ)
        self._counts = counts

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        began = time.monotonic()
        outcome = super().send(events, deadline_seconds=deadline_seconds)
        self._counts.on_export(time.monotonic() - began, outcome)
        return outcome


def check_consent(environ: Mapping[str, str]) -> None:
    """Returns where a bridge may run under *environ*: consent is in the reports, unless it is taken back here. Pure.

    Raises:
        BridgeError: it was taken back.
    """
    if is_sdk_disabled(environ):
        raise BridgeError(f"{SDK_DISABLED_VARIABLE}: telemetry is off; unset it, or start no bridge")
    if not is_granted(environ, FROM_REPORT):
        raise BridgeError(f"{CONSENT_VARIABLE}: set, but not to a yes; unset it, or start no bridge")


def _start_metrics(bridge: Bridge, environ: Mapping[str, str]) -> Callable[[], None]:
    """Starts the bridge's own metrics where OTEL_METRICS_EXPORTER asks for them; what ends them again."""
    if environ.get("OTEL_METRICS_EXPORTER", "").strip() in ("", "none"):
        return lambda: None
    from otel_tbot.bridge.metrics import start

    return start(bridge, environ)
