"""Starts a real relay and measures how long it takes until it could send an event; nothing is sent."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from otel_tbot.launcher import NoRelayError, start_relay

_RESPONSE_BYTES: Final = 4096
_NO_CONTENT: Final = b"HTTP/1.1 204 "


def probe_relay(environ: Mapping[str, str] = os.environ, *, timeout_seconds: float = 60.0) -> float | str:
    """Starts the relay that `run` would start with *environ*, and asks it whether it could send an event.

    Returns the seconds until it answered that it could, or the reason why there is no such relay, as a sentence without
    its end. The relay ends with the probe. It imports and checks all that a report needs, and connects to nothing.
    """
    started_at = time.monotonic()
    # A probe that waits for its imports is answered at the relay's own limit.
    environ = {**environ, "OTEL_TBOT_TIMEOUT": str(int(timeout_seconds * 1000))}
    try:
        url = urlsplit(start_relay(environ))
        with socket.create_connection((url.hostname, url.port or 0), timeout=timeout_seconds) as connection:
            connection.sendall(f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
            response = b"".join(iter(lambda: connection.recv(_RESPONSE_BYTES), b""))
    except NoRelayError as error:
        return str(error)
    except OSError as error:
        return f"the relay does not answer ({type(error).__name__})"
    if response.startswith(_NO_CONTENT):
        return time.monotonic() - started_at
    _, _, message = response.partition(b'"message":"')
    return message.removesuffix(b'"}').decode("ascii", "replace") or "the relay ended without a response"
