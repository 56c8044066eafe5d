"""Logs each kind of warning at once and then at most once a minute, with how often it happened."""

import asyncio
import logging
from collections import Counter
from typing import Final

INTERVAL_SECONDS: Final = 60.0

_MESSAGE: Final = "%s; count: %d"

logger = logging.getLogger("otel_tbot")


class WarningLog:
    """Counts what goes wrong and logs it, for use in one running event loop."""

    def __init__(self, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval_seconds = interval_seconds
        self._counts: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, problem: str, count: int = 1, *, least: int = 1) -> None:
        """Counts *problem*. It is logged when it has happened *least* times, and then after each interval.

        The message is *problem*, which must not contain anything that a client sent, and its count since the last one.
        """
        self._counts[problem] += count
        if problem not in self._timers and self._counts[problem] >= least:
            self._log(problem)

    def flush(self) -> None:
        """Logs what has been counted since the last message of each kind that was logged before."""
        for problem, timer in self._timers.items():
            timer.cancel()
            if self._counts[problem]:
                logger.warning(_MESSAGE, problem, self._counts[problem])
        self._timers.clear()
        self._counts.clear()

    def _log(self, problem: str) -> None:
        logger.warning(_MESSAGE, problem, self._counts.pop(problem))
        loop = asyncio.get_running_loop()
        self._timers[problem] = loop.call_later(self._interval_seconds, self._continue, problem)

    def _continue(self, problem: str) -> None:
        del self._timers[problem]
        if self._counts[problem]:
            self._log(problem)
