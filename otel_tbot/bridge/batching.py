"""Group commit: events go in one by one, are sent together, and each outcome comes out for the event that waits for it.

A group is what gathered while the last one was out, so its size follows the load, and nobody waits for a timer.
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

MAX_WAITING: Final = 2048
"""Events that wait for their outcome; one more is refused at once."""

MAX_GROUP: Final = 512
"""Events sent together: less than MAX_GROUP_BYTES, since every field of an event is bounded."""

MAX_GROUP_BYTES: Final = 512 * 1024


class Sender(Protocol):
    """What sends groups, in a thread, one group at a time."""

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        """Sends *events*, each with its time in nanoseconds, within *deadline_seconds* or so; never raises."""

    def give_up(self) -> None:
        """Is told that nobody waits for the last call any more, though it has not returned."""


class FullError(Exception):
    """As many events wait as may wait."""


@dataclass(slots=True)
class _Waiting:
    event: TbotStart
    time_ns: int
    deadline: float
    outcome: asyncio.Future[Outcome]


class GroupCommit:
    """Sends what gathers by *sender*; to be made, and used, within a running event loop."""

    def __init__(self, sender: Sender, *, max_waiting: int = MAX_WAITING, max_group: int = MAX_GROUP) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender = sender
        self._max_waiting = max_waiting
        self._max_group = max_group
        self._gathered: deque[_Waiting] = deque()
        self._unanswered: set[asyncio.Future[Outcome]] = set()
        self._has_come = asyncio.Event()
        self._ends_at = float("inf")
        self._thread = _Thread()
        self._work = self._loop.create_task(self._send_groups())

    @property
    def waiting(self) -> int:
        """How many events wait for their outcome."""
        return len(self._unanswered)

    async def deliver(self, event: TbotStart, *, time_ns: int, limit_seconds: float) -> Outcome:
        """What became of *event*, TIMED_OUT after *limit_seconds*; it may then still be on its way.

        A caller that is cancelled leaves its event in the group: the start did happen.

        Raises:
            FullError: nothing was taken.
        """
        if len(self._unanswered) >= self._max_waiting:
            raise FullError
        deadline = min(self._loop.time() + limit_seconds, self._ends_at)
        waiting = _Waiting(event, time_ns, deadline, self._loop.create_future())
        timer = self._loop.call_at(deadline, _settle, waiting.outcome, Outcome.TIMED_OUT)
        self._unanswered.add(waiting.outcome)
        waiting.outcome.add_done_callback(self._unanswered.discard)
        waiting.outcome.add_done_callback(lambda _: timer.cancel())
        self._gathered.append(waiting)
        self._has_come.set()
        return await asyncio.shield(waiting.outcome)

    async def drain(self, limit_seconds: float) -> None:
        """Waits until every event has its outcome; after *limit_seconds* it is TIMED_OUT. Ends the work."""
        self._ends_at = self._loop.time() + limit_seconds
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=limit_seconds)
        for outcome in tuple(self._unanswered):
            _settle(outcome, Outcome.TIMED_OUT)
        self._work.cancel()
        self._thread.end()

    async def _send_groups(self) -> None:
        while True:
            await self._has_come.wait()
            group = self._take_group()
            if not group:
                self._has_come.clear()
                continue
            deadline = min(max(waiting.deadline for waiting in group), self._ends_at)
            outcome = await self._send([(waiting.event, waiting.time_ns) for waiting in group], deadline)
            for waiting in group:
                _settle(waiting.outcome, outcome)

    async def _send(self, events: Sequence[tuple[TbotStart, int]], deadline: float) -> Outcome:
        sent: asyncio.Future[Outcome] = self._loop.create_future()
        remaining_seconds = deadline - self._loop.time()

        def work() -> None:
            outcome = self._sender.send(events, deadline_seconds=remaining_seconds)
            try:
                self._loop.call_soon_threadsafe(_settle, sent, outcome)
            except RuntimeError:
                pass  # the loop has ended meanwhile, and nobody waits

        self._thread.do(work)
        try:
            async with asyncio.timeout_at(deadline):
                return await sent
        except TimeoutError:
            # A peer that will not have a deadline keeps the thread; the next group gets another.
            self._sender.give_up()
            self._thread.end()
            self._thread = _Thread()
            return Outcome.TIMED_OUT

    def _take_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        while self._gathered and len(group) < self._max_group:
            waiting = self._gathered.popleft()
            # One that was answered already, since it had to wait too long, is not sent after all.
            if not waiting.outcome.done():
                group.append(waiting)
        return group


class _Thread:
    """A thread that does one thing after the other, and does not keep the process from ending."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="otel-tbot-group", daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def end(self) -> None:
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _settle(outcome: asyncio.Future[Outcome], value: Outcome) -> None:
    if not outcome.done():
        outcome.set_result(value)
