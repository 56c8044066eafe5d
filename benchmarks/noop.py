"""Serves tbot's protocol and sends nothing, to measure the cost of a server.

`app` is for any ASGI server; `python -m benchmarks.noop` runs the bridge's own.
"""

import asyncio

from otel_tbot.bridge.application import Bridge
from otel_tbot.bridge.server import serve
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome


class Noop(Bridge):
    """A bridge that accepts every report at once."""

    def start(self) -> None:
        """Prepares nothing."""
        self.is_ready = True

    def submit(self, _event: TbotStart, _timeout_seconds: float | None) -> asyncio.Future[Outcome]:
        """Accepts."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result(Outcome.ACCEPTED)
        return outcome


app = Noop({})

if __name__ == "__main__":
    serve(app, "127.0.0.1", 0)
