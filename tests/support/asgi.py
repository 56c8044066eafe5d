"""Calls an ASGI application as a server does, and returns its response."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PROTO = ((b"content-type", b"application/proto"), (b"connect-protocol-version", b"1"))


@dataclass(slots=True)
class Answered:
    """A response: its status, headers in lower case, and body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def call(
    application: Any,
    body: bytes,
    *,
    path: str,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = PROTO,
    pieces: int = 1,
    query: bytes = b"",
    root_path: str = "",
) -> Answered:
    """Calls *application* with *body*, in that many *pieces*."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query,
        "root_path": root_path,
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    size = max(-(-len(body) // pieces), 1)
    parts = [body[first : first + size] for first in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    answered = Answered()

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()  # the client waits for the response
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            answered.body += message.get("body", b"")

    await application(scope, receive, send)
    return answered
