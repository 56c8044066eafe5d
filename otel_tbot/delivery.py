"""Sending on a deadline: a `TbotStart` goes in, its `Outcome` comes out, and nothing ever raises for delivery.

Imports nothing of OpenTelemetry until consent was asked.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from otel_tbot import settings
from otel_tbot.consent import FROM_ENVIRONMENT, FROM_REPORT, is_granted
from otel_tbot.deadline import run_within
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from otel_tbot.otlp import client as otlp

logger = logging.getLogger("otel_tbot")


def emit(event: TbotStart, *, deadline_seconds: float | None = None) -> Outcome:
    """Sends *event* to the collector that this process's environment names, and says how that ended.

    Waits *deadline_seconds* at most (default: OTEL_TBOT_TIMEOUT), whatever the other side does: imports, name
    resolution, connection and answer all count. Uses neither the global providers nor the current context, and sets
    neither. Off (see `otel_tbot.enabled`), it returns OFF at once.

    Never raises for delivery. Writes one warning to the logger `otel_tbot` for each malformed setting.
    """
    if not is_granted(os.environ):
        return Outcome.OFF
    for fault in settings.find_faults(os.environ):
        logger.warning(fault)
    if deadline_seconds is None:
        deadline_seconds = settings.TIMEOUT.resolve(os.environ) / 1000
    return send(
        event, origin=FROM_ENVIRONMENT, is_local=True, time_ns=time.time_ns(), deadline_seconds=deadline_seconds
    )


def send(
    event: TbotStart,
    *,
    origin: str,
    is_local: bool,
    time_ns: int,
    deadline_seconds: float,
    environ: Mapping[str, str] = os.environ,
) -> Outcome:
    """Sends *event*, of *time_ns* by our own clock and with the consent of *origin*, within *deadline_seconds*.

    *is_local* says that tbot runs on this machine, so that operating system and architecture may go with it.
    """
    if not settings.has_endpoint(environ, settings.SIGNAL.resolve(environ)):
        return Outcome.UNREACHABLE
    deadline = time.monotonic() + deadline_seconds

    def work() -> Outcome:
        try:
            return _send_now(event, environ, origin=origin, is_local=is_local, time_ns=time_ns, deadline=deadline)
        except Exception as error:  # noqa: BLE001  # one exporter call: whatever it is, the event did not leave
            logger.warning("the event could not be sent: %s", type(error).__name__)
            return Outcome.UNREACHABLE

    return run_within(deadline_seconds, work) or Outcome.TIMED_OUT


class GroupSender:
    """Sends groups of events, one after the other over one connection, to the collector that *environ* names.

    For the bridge: without operating system and architecture, which would be its own. Imports OpenTelemetry.

    Raises:
        OtelTbotError: no event could ever be sent: the endpoint is malformed, or a certificate file is none.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        from otel_tbot.otlp import client as otlp
        from otel_tbot.otlp import encoding as wire

        self._environ = environ
        self._signal: str = settings.SIGNAL.resolve(environ)
        faults = list(settings.find_faults(environ))
        if not settings.has_endpoint(environ, self._signal):
            raise OtelTbotError("; ".join(faults))
        for fault in faults:
            logger.warning(fault)
        self._encode = wire.load_encoder(self._signal, is_local=False)
        self._build = otlp.OtlpSender
        try:
            otlp.build_tls_context(environ, self._signal)
            self._sender: otlp.OtlpSender | None = self._build_sender()
        except (OSError, ValueError) as error:
            raise OtelTbotError(f"the certificates for the collector cannot be used: {type(error).__name__}") from None

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        """Sends *events*, each with its time in nanoseconds; one call at a time.

        Keeps *deadline_seconds* where the peer is merely slow: whoever must not wait longer asks from a thread, and
        tells `give_up`.
        """
        if not is_granted(self._environ, FROM_REPORT):
            return Outcome.OFF
        try:
            sender = self._sender = self._sender or self._build_sender()
            return sender.send(self._encode(events).SerializeToString(), deadline_seconds=deadline_seconds)
        except Exception as error:  # noqa: BLE001  # one exporter call: whatever it is, the events did not leave
            logger.warning("events could not be sent: %s", type(error).__name__)
            return Outcome.UNREACHABLE

    def give_up(self) -> None:
        """Leaves the connection to the call that still waits for its answer; the next one makes its own."""
        self._sender = None

    def _build_sender(self) -> "otlp.OtlpSender":
        return self._build(self._environ, signal=self._signal, deadline_seconds=settings.DAEMON_DEADLINE_MS / 1000)


def load(environ: Mapping[str, str]) -> None:
    """Imports what `send` is going to need, so that it need not then. Raises nothing: `send` says what is missing."""
    try:
        from otel_tbot.otlp import client as otlp
        from otel_tbot.otlp import encoding as wire

        signal = settings.SIGNAL.resolve(environ)
        wire.load_encoder(signal, is_local=True)
        otlp.load_transport(settings.resolve_protocol(environ, signal))
    except Exception as error:  # noqa: BLE001  # see above
        logger.debug("OpenTelemetry could not be loaded: %s", type(error).__name__)


def _send_now(
    event: TbotStart, environ: Mapping[str, str], *, origin: str, is_local: bool, time_ns: int, deadline: float
) -> Outcome:
    from otel_tbot.otlp import client as otlp
    from otel_tbot.otlp import encoding as wire

    signal = settings.SIGNAL.resolve(environ)
    body = wire.load_encoder(signal, is_local=is_local)([(event, time_ns)]).SerializeToString()
    remaining_seconds = deadline - time.monotonic()
    if remaining_seconds <= 0:
        return Outcome.TIMED_OUT
    sender = otlp.OtlpSender(environ, signal=signal, deadline_seconds=remaining_seconds)
    try:
        if not is_granted(environ, origin):
            return Outcome.OFF
        return sender.send(body)
    finally:
        sender.close()
