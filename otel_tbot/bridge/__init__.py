"""Serves tbot's reporting protocol for many tbots: `otel-tbot bridge`, and an ASGI application for any server.

`app` is for other servers: `uvicorn otel_tbot.bridge:app`.
"""

from typing import Final

from otel_tbot.bridge.application import Bridge as Bridge
from otel_tbot.bridge.application import BridgeError as BridgeError

app: Final = Bridge()
"""The bridge under this process's environment, without a path prefix."""
