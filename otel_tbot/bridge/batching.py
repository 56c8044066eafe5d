"""Collects events into batches, sends one batch at a time, and returns the outcome to each event's caller.

A batch holds what arrived while the last one was in flight: its size follows the load, and no event waits for a timer.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome

MAX_PENDING: Final = 2048
"""Events that may wait for their outcome; one more is rejected at once."""

MAX_BATCH: Final = 512
"""Events in one batch. They take less than MAX_BATCH_BYTES, because every field of an event is bounded."""

MAX_BATCH_BYTES: Final = 512 * 1024


class Sender(Protocol):
    """Sends batches, in a thread, one at a time."""

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        """Sends *events*, each with its time in nanoseconds, within *deadline_seconds* or so; never raises."""

    def give_up(self) -> None:
        """Abandons the call that has not returned; no caller waits for it any more."""


class FullError(Exception):
    """Says that as many events wait as may wait."""


@dataclass(slots=True)
class _Pending:
    event: TbotStart
    time_ns: int
    deadline: float
    outcome: asyncio.Future[Outcome]


class BatchSender:
    """Sends what gathers by *sender*; to be made, and used, within a running event loop."""

    def __init__(self, sender: Sender, *, max_pending: int = MAX_PENDING, max_batch: int = MAX_BATCH) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._gathered: deque[_Pending] = deque()
        self._unanswered: set[asyncio.Future[Outcome]] = set()
        self._has_come = asyncio.Event()
        self._ends_at = float("inf")
        self._thread = _Thread()
        self._work = self._loop.create_task(self._send_batches())

    @property
    def waiting(self) -> int:
        """How many events wait for their outcome."""
        return len(self._unanswered)

    async def deliver(self, event: TbotStart, *, time_ns: int, limit_seconds: float) -> Outcome:
        """What became of *event*, TIMED_OUT after *limit_seconds*; it may then still be on its way.

        A caller that is cancelled leaves its event in the batch: the start did happen.

        Raises:
            FullError: nothing was taken.
        """
        if len(self._unanswered) >= self._max_pending:
            raise FullError
        deadline = min(self._loop.time() + limit_seconds, self._ends_at)
        pending = _Pending(event, time_ns, deadline, self._loop.create_future())
        timer = self._loop.call_at(deadline, _set_result, pending.outcome, Outcome.TIMED_OUT)
        self._unanswered.add(pending.outcome)
        pending.outcome.add_done_callback(self._unanswered.discard)
        pending.outcome.add_done_callback(lambda _: timer.cancel())
        self._gathered.append(pending)
        self._has_come.set()
        return await asyncio.shield(pending.outcome)

    async def drain(self, limit_seconds: float) -> None:
        """Waits until every event has its outcome; after *limit_seconds* it is TIMED_OUT. Ends the work."""
        self._ends_at = self._loop.time() + limit_seconds
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=limit_seconds)
        for outcome in tuple(self._unanswered):
            _set_result(outcome, Outcome.TIMED_OUT)
        self._work.cancel()
        self._thread.end()

    async def _send_batches(self) -> None:
        while True:
            await self._has_come.wait()
            batch = self._take_batch()
            if not batch:
                self._has_come.clear()
                continue
            deadline = min(max(pending.deadline for pending in batch), self._ends_at)
            outcome = await self._send([(pending.event, pending.time_ns) for pending in batch], deadline)
            for pending in batch:
                _set_result(pending.outcome, outcome)

    async def _send(self, events: Sequence[tuple[TbotStart, int]], deadline: float) -> Outcome:
        sent: asyncio.Future[Outcome] = self._loop.create_future()
        remaining_seconds = deadline - self._loop.time()

        def work() -> None:
            outcome = self._sender.send(events, deadline_seconds=remaining_seconds)
            try:
                self._loop.call_soon_threadsafe(_set_result, sent, outcome)
            except RuntimeError:
                pass  # the loop has ended meanwhile, and nobody waits

        self._thread.do(work)
        try:
            async with asyncio.timeout_at(deadline):
                return await sent
        except TimeoutError:
            # A peer that will not have a deadline keeps the thread; the next batch gets another.
            self._sender.give_up()
            self._thread.end()
            self._thread = _Thread()
            return Outcome.TIMED_OUT

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        while self._gathered and len(batch) < self._max_batch:
            pending = self._gathered.popleft()
            # One that was answered already, since it had to wait too long, is not sent after all.
            if not pending.outcome.done():
                batch.append(pending)
        return batch


class _Thread:
    """A thread that does one thing after the other, and does not keep the process from ending."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="otel-tbot-batch", daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def end(self) -> None:
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _set_result(outcome: asyncio.Future[Outcome], value: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(value)
