"""Collects events into batches, sends one batch at a time, and returns the outcome to each event's caller.

A batch holds what arrived while the last one was in flight: its size follows the load, and no event waits for a timer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome

MAX_PENDING: Final = 2048
"""Events that may wait for their outcome; one more is rejected at once."""

MAX_BATCH: Final = 512
"""Events in one batch. They take less than MAX_BATCH_BYTES, because every field of an event is bounded."""

MAX_BATCH_BYTES: Final = 512 * 1024

DRAIN_SECONDS: Final = 7.5
"""How long reports may still wait for their responses once the bridge is asked to stop."""

# The sender keeps the deadline itself. Only if it does not, its call is abandoned, so much later.
_GRACE_SECONDS: Final = 0.1


class Sender(Protocol):
    """Sends batches from a thread, one at a time."""

    def submit(
        self, batch: Sequence[tuple[TbotStart, int]], *, deadline: float, on_outcome: Callable[[Outcome], None]
    ) -> None:
        """Sends *batch*, events with their times in nanoseconds, by *deadline*; calls *on_outcome* in the thread.

        Raises:
            RuntimeError: no thread can be started.
        """

    def abandon(self) -> None:
        """Ends the call that has not returned; no caller waits for it any more."""

    def close(self) -> None:
        """Ends the thread after the batches that were submitted."""


class FullError(Exception):
    """Says that as many events wait as may wait."""


@dataclass(slots=True, eq=False)
class _Pending:
    event: TbotStart
    time_ns: int
    deadline: float
    outcome: asyncio.Future[Outcome]


class BatchSender:
    """Sends the submitted events with *sender*. Create it and use it in one running event loop.

    *on_export* is called after each batch with its seconds, its outcome and the number of its events.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        on_export: Callable[[float, Outcome, int], None] = lambda _seconds, _outcome, _count: None,
        max_pending: int = MAX_PENDING,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._on_export = on_export
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._gathered: deque[_Pending] = deque()
        self._unanswered: set[asyncio.Future[Outcome]] = set()
        self._in_flight: list[_Pending] = []
        self._started_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ends_at = float("inf")

    @property
    def waiting(self) -> int:
        """The number of events that wait for their outcome."""
        return len(self._unanswered)

    def submit(self, event: TbotStart, *, time_ns: int, limit_seconds: float) -> asyncio.Future[Outcome]:
        """Returns the outcome of *event*, which is TIMED_OUT after *limit_seconds*; it may still arrive later.

        An event that waited that long before its batch was sent is not sent.

        Raises:
            FullError: too many events wait already.
        """
        if len(self._unanswered) >= self._max_pending:
            raise FullError
        now = time.monotonic()
        deadline = min(now + limit_seconds, self._ends_at)
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        if deadline <= now:
            outcome.set_result(Outcome.TIMED_OUT)
            return outcome
        timer = self._loop.call_later(deadline - now, _set_result, outcome, Outcome.TIMED_OUT)
        self._unanswered.add(outcome)
        outcome.add_done_callback(partial(self._forget, timer))
        self._gathered.append(_Pending(event, time_ns, deadline, outcome))
        if not self._in_flight:
            # Not at once: what arrives in the same round of the event loop travels together.
            self._loop.call_soon(self._send_next)
        return outcome

    async def drain(self, limit_seconds: float) -> None:
        """Waits until every event has its outcome, TIMED_OUT after *limit_seconds*. Nothing is sent afterwards."""
        self._ends_at = time.monotonic() + limit_seconds
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=limit_seconds)
        self._ends_at = time.monotonic()
        for outcome in tuple(self._unanswered):
            _set_result(outcome, Outcome.TIMED_OUT)
        if self._in_flight:
            self._abandon()
        self._sender.close()

    def _forget(self, timer: asyncio.TimerHandle, outcome: asyncio.Future[Outcome]) -> None:
        timer.cancel()
        self._unanswered.discard(outcome)

    def _send_next(self) -> None:
        if self._in_flight:
            return
        batch = self._in_flight = self._take_batch()
        if not batch:
            return
        self._started_at = time.monotonic()
        deadline = min(max(pending.deadline for pending in batch), self._ends_at)
        self._timer = self._loop.call_later(deadline - self._started_at + _GRACE_SECONDS, self._abandon)
        events = [(pending.event, pending.time_ns) for pending in batch]
        try:
            self._sender.submit(events, deadline=deadline, on_outcome=partial(self._report, batch))
        except RuntimeError:
            # No thread can be started. The next batch tries again, in a later round of the event loop.
            self._loop.call_soon(self._finish, batch, Outcome.UNREACHABLE)

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        while self._gathered and len(batch) < self._max_batch:
            pending = self._gathered.popleft()
            if not pending.outcome.done():
                batch.append(pending)
        return batch

    def _report(self, batch: list[_Pending], outcome: Outcome) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish, batch, outcome)
        except RuntimeError:
            pass  # the event loop has been closed; no caller waits

    def _finish(self, batch: list[_Pending], outcome: Outcome) -> None:
        if batch is not self._in_flight:
            return  # it was abandoned
        self._in_flight = []
        if self._timer is not None:
            self._timer.cancel()
        self._on_export(time.monotonic() - self._started_at, outcome, len(batch))
        for pending in batch:
            _set_result(pending.outcome, outcome)
        self._send_next()

    def _abandon(self) -> None:
        batch = self._in_flight
        self._sender.abandon()
        self._finish(batch, Outcome.TIMED_OUT)


def _set_result(outcome: asyncio.Future[Outcome], value: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(value)
