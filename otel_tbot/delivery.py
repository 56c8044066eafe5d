"""Sends events to the collector, each by a hard deadline; delivery never raises.

Imports nothing of OpenTelemetry until consent was checked.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from otel_tbot.consent import FROM_ENVIRONMENT, is_granted
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from otel_tbot.otlp.client import OtlpClient
    from otel_tbot.otlp.config import OtlpConfig

Batch = Sequence[tuple[TbotStart, int]]
"""Events that are sent together, each with its time in nanoseconds since the epoch by our own clock."""

_JOIN_SECONDS = 0.5
"""How long `close` waits for a worker; an idle one ends in a millisecond."""

logger = logging.getLogger("otel_tbot")


def emit(event: TbotStart, *, deadline_seconds: float | None = None) -> Outcome:
    """Sends *event* to the collector that this process's environment names, and returns what became of it.

    Waits *deadline_seconds* at most (default: OTEL_TBOT_TIMEOUT), whatever the collector does: imports, name
    resolution, connection and response all count. Uses neither the global providers nor the current context, and sets
    neither. With telemetry off (see `otel_tbot.enabled`) it returns OFF at once.

    Never raises for delivery. Writes one warning to the logger `otel_tbot` for each malformed setting.
    """
    if not is_granted(os.environ):
        return Outcome.OFF
    time_ns = time.time_ns()
    began = time.monotonic()
    try:
        sender = EventSender(os.environ, origin=FROM_ENVIRONMENT, is_local=True)
    except ImportError:
        # In a __del__ at the interpreter's very end, when nothing can be imported any more.
        logger.warning("the event could not be sent: the interpreter is ending")
        return Outcome.UNREACHABLE
    for warning in sender.config.warnings:
        logger.warning(warning)
    deadline = began + (sender.config.timeout_seconds if deadline_seconds is None else deadline_seconds)
    try:
        return sender.send([(event, time_ns)], deadline=deadline)
    finally:
        sender.close()


class EventSender:
    """Sends batches in one worker thread, one after the other over one connection, to the collector of *environ*.

    *origin* is whose consent the events have, checked again in *environ* before each batch leaves. *is_local* says that
    tbot runs on this machine, so that operating system and architecture are part of the resource. `config` holds the
    settings, which are read once, here.

    The worker starts with `start` or the first batch, imports what sending needs, and ends with `close` or
    `abandon`. It does not keep the process from ending.
    """

    def __init__(self, environ: Mapping[str, str], *, origin: str, is_local: bool) -> None:
        from otel_tbot.otlp.config import resolve_config

        self.config: OtlpConfig = resolve_config(environ)
        self._origin = origin
        self._is_local = is_local
        self._environ = environ
        self._worker: _Worker | None = None

    def check(self) -> None:
        """Returns if events can be sent as far as this machine is concerned; connects to nothing.

        Raises:
            OtelTbotError: the endpoint is malformed, or a certificate file cannot be used.
        """
        if self.config.endpoint is None:
            raise OtelTbotError("; ".join(self.config.warnings))
        if self.config.is_tls:
            from otel_tbot.otlp.tls import build_context

            build_context(self.config)

    def load(self) -> None:
        """Imports what sending needs, in this thread; raises what `send` would only log."""
        worker = _Worker(self.config, is_local=self._is_local)
        worker.load()
        worker.close()

    def start(self) -> None:
        """Starts the worker, which imports what sending needs before the first batch is there.

        Raises:
            RuntimeError: no thread can be started: the interpreter is ending, or a limit is reached.
        """
        self._started()

    def submit(self, batch: Batch, *, deadline: float, on_outcome: Callable[[Outcome], None]) -> None:
        """Sends *batch* by *deadline*, in the time of time.monotonic, and calls *on_outcome* once, in the worker.

        Returns at once. Looking up a host name can take longer than *deadline*: a caller that must not wait for that
        keeps the deadline too, and calls `abandon`.

        Raises:
            RuntimeError: as `start`.
        """
        self._started().jobs.put(_Job(batch, deadline, on_outcome, self._has_consent))

    def send(self, batch: Batch, *, deadline: float) -> Outcome:
        """Sends *batch* and returns what became of it, TIMED_OUT at *deadline*, whatever the collector does."""
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        try:
            # Asked first: while the interpreter ends, Thread.start() waits for ever on Python 3.11.
            if sys.is_finalizing():
                raise RuntimeError  # as Python 3.12 does
            self.submit(batch, deadline=deadline, on_outcome=outcomes.put)
        except RuntimeError:
            # Sent here and now, since late is better than lost; the transports keep the deadline by themselves.
            worker = _Worker(self.config, is_local=self._is_local)
            try:
                return worker.send(_Job(batch, deadline, outcomes.put, self._has_consent))
            finally:
                worker.close()
        try:
            return outcomes.get(timeout=max(deadline - time.monotonic(), 0))
        except Empty:
            self.abandon()
            return Outcome.TIMED_OUT

    def abandon(self) -> None:
        """Ends the batch that is being sent: its connection is shut down, so that its thread ends soon.

        The next batch gets another worker and another connection. *on_outcome* of the abandoned batch is still called.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.abandon()

    def close(self) -> None:
        """Closes the connection once the batches that were submitted are sent."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def _started(self) -> "_Worker":
        worker = self._worker
        if worker is None:
            worker = _Worker(self.config, is_local=self._is_local)
            worker.start()
            self._worker = worker
        return worker

    def _has_consent(self) -> bool:
        return is_granted(self._environ, self._origin)


class _Job:
    """One batch to be sent."""

    def __init__(
        self, batch: Batch, deadline: float, on_outcome: Callable[[Outcome], None], has_consent: Callable[[], bool]
    ) -> None:
        self.batch = batch
        self.deadline = deadline
        self.on_outcome = on_outcome
        self.has_consent = has_consent


class _Worker:
    """One thread with its client; it sends until it gets None, or is abandoned."""

    def __init__(self, config: "OtlpConfig", *, is_local: bool) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._config = config
        self._is_local = is_local
        self._client: OtlpClient | None = None
        self._is_abandoned = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; raises RuntimeError if there can be none."""
        self._thread = threading.Thread(target=self._run, name="otel-tbot", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends the thread once it has sent what was submitted; waits for that a short time."""
        self.jobs.put(None)
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def abandon(self) -> None:
        """Ends what is being sent, and then the thread."""
        self._is_abandoned = True
        self.jobs.put(None)
        if self._client is not None:
            self._client.abandon()

    def send(self, job: _Job) -> Outcome:
        """Sends one batch in this thread; never raises."""
        try:
            return self._send(job)
        except Exception as error:  # noqa: BLE001  # one request: whatever it is, the events did not leave
            reason = str(error) if isinstance(error, OtelTbotError) else type(error).__name__
            logger.warning("the event could not be sent: %s", reason)
            return Outcome.UNREACHABLE

    def close(self) -> None:
        """Closes the connection; in the thread that sends."""
        if self._client is not None:
            self._client.close()

    def _run(self) -> None:
        try:
            self.load()
        except Exception as error:  # noqa: BLE001  # the first batch says what is missing
            logger.debug("what sending needs could not be loaded: %s", type(error).__name__)
        while (job := self.jobs.get()) is not None:
            job.on_outcome(self.send(job))
        self.close()

    def load(self) -> "OtlpClient":
        """Imports what sending needs; returns the client."""
        from otel_tbot.otlp.client import OtlpClient
        from otel_tbot.otlp.encoding import encode_request

        if self._client is None:
            encode_request((), signal=self._config.signal, is_local=self._is_local)
            self._client = OtlpClient(self._config, has_threads=self._thread is not None)
        return self._client

    def _send(self, job: _Job) -> Outcome:
        if self._config.endpoint is None:
            return Outcome.UNREACHABLE
        client = self.load()
        from otel_tbot.otlp.encoding import encode_request

        request = encode_request(job.batch, signal=self._config.signal, is_local=self._is_local)
        if self._is_abandoned or time.monotonic() >= job.deadline:
            return Outcome.TIMED_OUT
        if not job.has_consent():
            return Outcome.OFF
        return client.send(request.SerializeToString(), deadline=job.deadline).outcome
