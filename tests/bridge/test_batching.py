import asyncio
import threading
import time

import pytest

from otel_tbot.bridge.batching import MAX_BATCH, MAX_BATCH_BYTES, BatchSender, FullError
from otel_tbot.event import MAX_COUNT, TbotStart
from otel_tbot.otlp.encoding import encode_request
from otel_tbot.outcome import Outcome

LONG_SECONDS = 60.0


class Collector:
    """Answers each batch from a thread once `gate` is set, and keeps the sizes of batches."""

    def __init__(self, outcome=Outcome.ACCEPTED):
        self.outcome = outcome
        self.sizes = []
        self.has_begun = threading.Event()
        self.gate = threading.Event()
        self.abandoned = 0
        self.is_closed = False
        self.has_threads = True

    def submit(self, batch, *, deadline, on_outcome):
        if not self.has_threads:
            raise RuntimeError
        assert deadline <= time.monotonic() + LONG_SECONDS
        self.sizes.append(len(batch))
        threading.Thread(target=self._answer, args=(on_outcome,), daemon=True).start()

    def _answer(self, on_outcome):
        self.has_begun.set()
        self.gate.wait(LONG_SECONDS)
        on_outcome(self.outcome)

    def abandon(self):
        self.abandoned += 1
        self.gate.set()

    def close(self):
        self.is_closed = True


def submit(sender, *, limit_seconds=LONG_SECONDS):
    """Submits one start."""
    return sender.submit(TbotStart(run_mode="daemon"), time_ns=1, limit_seconds=limit_seconds)


async def start(sender, collector):
    """Submits one start, and waits until it is being sent; returns its outcome to wait for."""
    outcome = submit(sender)
    await asyncio.to_thread(collector.has_begun.wait, LONG_SECONDS)
    return outcome


def test_events_that_arrive_while_a_batch_is_in_flight_are_the_next_batch():
    """The first goes at once; those that arrive meanwhile go together; each gets the outcome of its batch."""

    async def run():
        collector = Collector()
        sender = BatchSender(collector)
        first = await start(sender, collector)
        others = [submit(sender) for _ in range(20)]
        assert 21 == sender.waiting
        collector.gate.set()
        outcomes = set(await asyncio.gather(first, *others))
        assert 0 == sender.waiting
        return collector.sizes, outcomes

    assert ([1, 20], {Outcome.ACCEPTED}) == asyncio.run(run())


def test_a_batch_is_bounded():
    """Events above the bound go in the next batches."""

    async def run():
        collector = Collector()
        collector.gate.set()
        sender = BatchSender(collector, max_batch=4)
        await asyncio.gather(*(submit(sender) for _ in range(10)))
        return collector.sizes

    assert [4, 4, 2] == asyncio.run(run())


@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_largest_batch_is_below_its_bound_in_bytes(signal):
    """A full batch of events, each as large as its rules allow, is below the bound in bytes."""
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
    batch = [(largest, 2**63 - 1)] * MAX_BATCH

    assert MAX_BATCH * 256 < encode_request(batch, signal=signal, is_local=False).ByteSize() < MAX_BATCH_BYTES


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_outcome_is_that_of_the_whole_batch(outcome):
    """If the collector rejects some events it does not say which, so all of the batch get that outcome."""
    exports = []

    async def run():
        collector = Collector(outcome)
        collector.gate.set()
        sender = BatchSender(collector, on_export=lambda _seconds, *export: exports.append(export))
        return await asyncio.gather(*(submit(sender) for _ in range(3)))

    assert [outcome] * 3 == asyncio.run(run())
    assert [(outcome, 3)] == exports


def test_too_many_events_are_rejected_at_once():
    """One more than may wait is rejected; after one has its outcome there is room again."""

    async def run():
        collector = Collector()
        sender = BatchSender(collector, max_pending=2)
        waiting = [await start(sender, collector), submit(sender)]
        for _ in range(2):
            with pytest.raises(FullError):
                submit(sender)
        collector.gate.set()
        await asyncio.gather(*waiting)

        assert Outcome.ACCEPTED is await submit(sender)

    asyncio.run(run())


def test_an_event_that_waited_too_long_is_not_sent():
    """It is TIMED_OUT at its limit, and the next batch is without it."""

    async def run():
        collector = Collector()
        sender = BatchSender(collector)
        first = await start(sender, collector)

        assert Outcome.TIMED_OUT is await submit(sender, limit_seconds=0.01)
        collector.gate.set()
        assert Outcome.ACCEPTED is await first
        assert Outcome.ACCEPTED is await submit(sender)
        assert [1, 1] == collector.sizes

    asyncio.run(run())


@pytest.mark.parametrize("is_answered", [True, False])
def test_drain_waits_for_outcomes_in_bounded_time(is_answered):
    """An event that is answered in time has its outcome, another is TIMED_OUT; nothing is sent afterwards."""

    async def run():
        collector = Collector()
        sender = BatchSender(collector)
        waiting = await start(sender, collector)
        if is_answered:
            collector.gate.set()
        await sender.drain(LONG_SECONDS if is_answered else 0.01)
        assert collector.is_closed
        assert Outcome.TIMED_OUT is await submit(sender)
        assert [1] == collector.sizes
        assert (0 if is_answered else 1) == collector.abandoned
        return await waiting

    assert (Outcome.ACCEPTED if is_answered else Outcome.TIMED_OUT) is asyncio.run(run())


def test_a_call_that_does_not_return_is_abandoned():
    """After the deadline of its batch; the next batch is sent, and the late outcome changes nothing."""

    async def run():
        collector = Collector()
        sender = BatchSender(collector)

        assert Outcome.TIMED_OUT is await submit(sender, limit_seconds=0.05)
        assert Outcome.ACCEPTED is await submit(sender)
        assert (1, [1, 1]) == (collector.abandoned, collector.sizes)

    asyncio.run(run())


def test_without_threads_events_are_unreachable_and_later_ones_are_sent():
    """At a limit of threads the outcome is UNREACHABLE; with a thread again, events are sent."""

    async def run():
        collector = Collector()
        collector.gate.set()
        sender = BatchSender(collector)
        collector.has_threads = False
        assert Outcome.UNREACHABLE is await submit(sender)
        collector.has_threads = True
        assert Outcome.ACCEPTED is await submit(sender)

    asyncio.run(run())
