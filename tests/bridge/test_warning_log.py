"""Checks that a warning that repeats is logged at once, then at most once in an interval, with its count."""

import asyncio

import pytest

from otel_tbot.bridge.warning_log import INTERVAL_SECONDS, WarningLog


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is moved forward."""

    now_seconds = 0.0

    def time(self):
        """The clock, in seconds."""
        return self.now_seconds


async def pass_time(seconds):
    """Moves the clock forward, and lets the timers run that are due then."""
    asyncio.get_running_loop().now_seconds += seconds
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
def run(caplog):
    """Runs a coroutine function with a WarningLog; returns what it logged."""

    def run(use):
        async def main():
            await use(WarningLog())

        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(main())
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_repeated_problem_is_logged_at_once_and_then_after_each_interval(run):
    """Each message has the count since the last one; an interval without the problem has no message."""

    async def use(warnings):
        for _ in range(3):
            warnings.add("a")
        await pass_time(INTERVAL_SECONDS - 1)
        warnings.add("a")
        await pass_time(2)
        warnings.add("a", 7)
        await pass_time(INTERVAL_SECONDS + 1)
        await pass_time(INTERVAL_SECONDS + 1)
        warnings.add("a")

    assert ["a; count: 1", "a; count: 3", "a; count: 7", "a; count: 1"] == run(use)


def test_problems_are_counted_apart(run):
    """One kind does not keep another from being logged at once."""

    async def use(warnings):
        warnings.add("a")
        warnings.add("b", 2)
        warnings.add("a")
        await pass_time(INTERVAL_SECONDS + 1)

    assert ["a; count: 1", "b; count: 2", "a; count: 1"] == run(use)


def test_a_problem_can_need_to_happen_often(run):
    """Below *least* there is no message, not even at the end; once it is reached, as usual."""

    async def use(warnings):
        for _ in range(9):
            warnings.add("a", least=10)
            warnings.add("b", least=10)
        warnings.add("a", least=10)
        warnings.add("a", least=10)
        await pass_time(INTERVAL_SECONDS + 1)
        warnings.flush()

    assert ["a; count: 10", "a; count: 1"] == run(use)


def test_what_was_not_logged_yet_is_logged_at_the_end(run):
    """Once; later intervals add nothing."""

    async def use(warnings):
        warnings.add("a")
        warnings.add("a", 4)
        warnings.flush()
        warnings.flush()
        await pass_time(2 * INTERVAL_SECONDS)

    assert ["a; count: 1", "a; count: 4"] == run(use)
