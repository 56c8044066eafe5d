"""The service that bridge and relay share, around nothing: what a server costs by itself."""

from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.tbot.connect import build_application


async def deliver(_event: TbotStart) -> Outcome:
    """Accepts."""
    return Outcome.ACCEPTED


app = build_application(deliver)
