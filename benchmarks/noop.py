"""Serves tbot's protocol and sends nothing, to measure what a server costs by itself."""

from otel_tbot.bridge.application import ReportingService
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome


async def deliver(_event: TbotStart) -> Outcome:
    """Accepts."""
    return Outcome.ACCEPTED


app = ReportingService(deliver)
