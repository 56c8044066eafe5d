"""Serves tbot's protocol and sends nothing, to measure what a server costs by itself."""

import asyncio

from otel_tbot.bridge.application import ReportingService
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome


def submit(_event: TbotStart, _timeout_seconds: float | None) -> asyncio.Future[Outcome]:
    """Accepts."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    outcome.set_result(Outcome.ACCEPTED)
    return outcome


app = ReportingService(submit)
