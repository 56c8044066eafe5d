import asyncio
import threading
from collections.abc import Sequence

import pytest

from otel_tbot.bridge.batching import MAX_BATCH, MAX_BATCH_BYTES, BatchSender, FullError
from otel_tbot.event import MAX_COUNT, TbotStart
from otel_tbot.otlp.encoding import load_encoder
from otel_tbot.outcome import Outcome

PATIENT_SECONDS = 60.0


class Collector:
    """Takes groups, each after `gate` is set, and keeps their sizes."""

    def __init__(self, outcome: Outcome = Outcome.ACCEPTED) -> None:
        self.outcome = outcome
        self.groups: list[list[str]] = []
        self.has_begun = threading.Event()
        self.gate = threading.Event()
        self.given_up = 0

    def send(self, events: Sequence[tuple[TbotStart, int]], *, deadline_seconds: float) -> Outcome:
        assert deadline_seconds <= PATIENT_SECONDS
        self.groups.append([event.session_id for event, _ in events])
        self.has_begun.set()
        self.gate.wait(PATIENT_SECONDS)
        return self.outcome

    def give_up(self) -> None:
        self.given_up += 1
        self.gate.set()


def start() -> TbotStart:
    """A start."""
    return TbotStart(run_mode="daemon")


async def deliver(group: BatchSender, *, limit_seconds: float = PATIENT_SECONDS) -> Outcome:
    """Delivers one start."""
    return await group.deliver(start(), time_ns=1, limit_seconds=limit_seconds)


def test_what_gathers_while_a_group_is_out_is_the_next_group():
    """The first goes alone and at once; all that come meanwhile go together; each gets the outcome of its group."""

    async def run() -> tuple[list[int], set[Outcome]]:
        collector = Collector()
        group = BatchSender(collector)
        first = asyncio.create_task(deliver(group))
        await asyncio.to_thread(collector.has_begun.wait, PATIENT_SECONDS)
        others = [asyncio.create_task(deliver(group)) for _ in range(20)]
        await asyncio.sleep(0)
        assert 21 == group.waiting
        collector.gate.set()
        outcomes = {await task for task in (first, *others)}
        assert 0 == group.waiting
        await group.drain(1)
        return [len(sent) for sent in collector.groups], outcomes

    assert ([1, 20], {Outcome.ACCEPTED}) == asyncio.run(run())


def test_a_group_has_a_bound():
    """More than fit go in the groups after it."""

    async def run() -> list[int]:
        collector = Collector()
        collector.gate.set()
        group = BatchSender(collector, max_batch=4)
        await asyncio.gather(*(deliver(group) for _ in range(10)))
        await group.drain(1)
        return [len(sent) for sent in collector.groups]

    assert [4, 4, 2] == asyncio.run(run())


@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_largest_group_has_bounded_bytes(signal):
    """As many events as fit a group, each as large as its rules allow, are below the bound in bytes."""
    largest = TbotStart(
        run_mode="one-shot",
        version="1111.1111.1111-alpha.1111",
        join_type="terraform_cloud",
        helper="x" * 64,
        helper_version="v1111.1111.1111.1111-alpha.1111",
        destinations_other=MAX_COUNT,
        destinations_database=MAX_COUNT,
        destinations_kubernetes=MAX_COUNT,
        destinations_application=MAX_COUNT,
    )
    group = [(largest, 2**63 - 1)] * MAX_BATCH

    assert MAX_BATCH * 256 < load_encoder(signal, is_local=False)(group).ByteSize() < MAX_BATCH_BYTES


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_that_of_the_whole_group(outcome):
    """Refused or partly rejected, the answer does not say which: all of the group get it."""

    async def run() -> list[Outcome]:
        collector = Collector(outcome)
        collector.gate.set()
        group = BatchSender(collector)
        outcomes = await asyncio.gather(*(deliver(group) for _ in range(3)))
        await group.drain(1)
        return outcomes

    assert [outcome] * 3 == asyncio.run(run())


def test_a_caller_that_leaves_does_not_disturb_its_group():
    """Its event is sent, and the others of the group, and all after them, get their outcomes."""

    async def run() -> None:
        collector = Collector()
        group = BatchSender(collector)
        staying, leaving = asyncio.create_task(deliver(group)), asyncio.create_task(deliver(group))
        await asyncio.to_thread(collector.has_begun.wait, PATIENT_SECONDS)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        collector.gate.set()

        assert Outcome.ACCEPTED is await staying
        assert Outcome.ACCEPTED is await deliver(group)
        assert 3 == sum(map(len, collector.groups))
        await group.drain(1)

    asyncio.run(run())


def test_too_many_are_refused_at_once():
    """One more than may wait is refused, takes no place, and once one has its outcome there is room again."""

    async def run() -> None:
        collector = Collector()
        group = BatchSender(collector, max_pending=2)
        waiting = [asyncio.create_task(deliver(group)) for _ in range(2)]
        await asyncio.to_thread(collector.has_begun.wait, PATIENT_SECONDS)
        for _ in range(2):
            with pytest.raises(FullError):
                await deliver(group)
        collector.gate.set()
        await asyncio.gather(*waiting)

        assert Outcome.ACCEPTED is await deliver(group)
        await group.drain(1)

    asyncio.run(run())


def test_who_waited_too_long_is_told_so_and_is_not_sent_after_all():
    """Beside a silent collector, at its limit; one that was not under way yet is left out of the next group."""

    async def run() -> None:
        collector = Collector()
        group = BatchSender(collector)
        first = asyncio.create_task(deliver(group))
        await asyncio.to_thread(collector.has_begun.wait, PATIENT_SECONDS)

        assert Outcome.TIMED_OUT is await deliver(group, limit_seconds=0.01)
        collector.gate.set()
        assert Outcome.ACCEPTED is await first
        assert Outcome.ACCEPTED is await deliver(group)
        assert [1, 1] == [len(sent) for sent in collector.groups]
        await group.drain(1)

    asyncio.run(run())


def test_drain_waits_for_outcomes_and_no_longer_than_it_may():
    """What is answered in time has its outcome, the rest is TIMED_OUT."""

    async def run(*, is_answered: bool) -> Outcome:
        collector = Collector()
        group = BatchSender(collector)
        waiting = asyncio.create_task(deliver(group))
        await asyncio.to_thread(collector.has_begun.wait, PATIENT_SECONDS)
        if is_answered:
            collector.gate.set()
        await group.drain(PATIENT_SECONDS if is_answered else 0.01)
        collector.gate.set()
        return await waiting

    assert Outcome.ACCEPTED is asyncio.run(run(is_answered=True))
    assert Outcome.TIMED_OUT is asyncio.run(run(is_answered=False))


def test_a_sender_that_does_not_come_back_is_given_up():
    """At the deadline of its group another thread takes the next one."""

    async def run() -> None:
        collector = Collector()
        group = BatchSender(collector)

        assert Outcome.TIMED_OUT is await deliver(group, limit_seconds=0.05)
        assert Outcome.ACCEPTED is await deliver(group)
        assert (1, 2) == (collector.given_up, len(collector.groups))
        await group.drain(1)

    asyncio.run(run())
