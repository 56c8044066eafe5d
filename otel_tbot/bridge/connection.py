"""Serves the HTTP/1.1 requests of one connection to the bridge, within limits of time and memory.

Our own asyncio protocol, because no server that we tried has these limits: uvicorn has no write timeout and reads
without bound what is pipelined; hypercorn takes 270 us of processor time per report, and never closes a silent client.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from otel_tbot.outcome import Outcome
from otel_tbot.tbot.http_request import CONTINUE, Request, RequestParser, Response, to_bytes

if TYPE_CHECKING:
    from otel_tbot.bridge.application import ReportingService

READ_SECONDS: Final = 10.0
"""How long a client may take for a TLS handshake, and for each request, from its first byte to its last."""

WRITE_SECONDS: Final = 10.0
"""How long a client may take to read a response."""

MAX_UNANSWERED: Final = 8
"""Requests of one connection that wait for their responses; after one more the connection is closed."""

STOPPING_SECONDS: Final = 1.0
"""How long a request that has begun may still take once the bridge is asked to stop."""

# How long, and how much, a client may still send after its last response, before its connection is aborted.
_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 256 * 1024


class Connection(asyncio.Protocol):
    """One connection. *on_change* is called when the bridge begins or ceases to wait for the client."""

    def __init__(
        self,
        service: "ReportingService",
        *,
        idle_seconds: float,
        on_change: "Callable[[Connection], None]",
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        self._service = service
        self._idle_seconds = idle_seconds
        self._on_change = on_change
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(service.open_call, max_requests=MAX_UNANSWERED)
        # For each of the parser's requests: the response, or the outcome to wait for.
        self._answers: deque[Response | asyncio.Future[Outcome]] = deque()
        self._is_stopping = False
        self._has_request = False
        self._is_in_request = False
        self._is_writable = True
        self._is_ending = False
        self._discarded_bytes = 0
        self._deadline = time.monotonic() + READ_SECONDS

    @property
    def is_answering(self) -> bool:
        """Whether the client waits for the bridge, not the bridge for the client."""
        return bool(self._answers) and self._is_writable

    def is_late(self, now: float) -> bool:
        """Whether the client has taken longer than it may."""
        return now > self._deadline

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def stop(self) -> None:
        """Closes the connection after the request that has begun, or that a new client is about to send."""
        self._is_stopping = True
        if self.is_answering:
            return
        self._deadline = min(self._deadline, time.monotonic() + STOPPING_SECONDS)
        is_idle = self._has_request and not self._answers and not self._parser.is_in_request
        if is_idle and self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio calls this, and the methods below."""
        self._transport = cast("asyncio.Transport", transport)
        # So that pause_writing says that the client does not read. With 0, asyncio's TLS pauses for an empty buffer.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._wait(READ_SECONDS)
        if self._is_stopping:
            self.stop()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forgets the connection. Events that it has reported are still sent."""
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Reads requests, and submits their events."""
        if self._is_ending:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _LINGER_BYTES:
                self.abort()
            return
        parser = self._parser
        parser.feed(data)
        if parser.is_in_request != self._is_in_request or len(parser.requests) > len(self._answers):
            self._is_in_request = parser.is_in_request
            for request in tuple(parser.requests)[len(self._answers) :]:
                self._has_request = True
                self._answers.append(self._submit(request))
            if self._is_in_request and not self._answers:
                self._wait(READ_SECONDS)
            self._write()
        self._write_continue()

    def eof_received(self) -> bool:
        """Returns whether to keep the connection, for the responses to a client that has ended its side of it."""
        self._parser.is_finished = True
        self._is_stopping = True
        return bool(self._answers) and self._transport.can_write_eof()  # type: ignore[union-attr]  # connected

    def pause_writing(self) -> None:
        """Starts to wait for the client to read."""
        self._is_writable = False
        self._wait(WRITE_SECONDS)

    def resume_writing(self) -> None:
        """Goes on with the next response."""
        self._is_writable = True
        self._write()

    def _submit(self, request: Request) -> Response | asyncio.Future[Outcome]:
        if request.event is None:
            return request.response or Response(400)
        answer = self._service.submit(request.event, request.timeout_seconds)
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(self._write)
        return answer

    def _write(self, _outcome: object = None) -> None:
        """Writes the responses that are ready, in the order of their requests, while the client reads them."""
        while self._answers and self._is_writable:
            answer = self._answers[0]
            if isinstance(answer, asyncio.Future) and not answer.done():
                self._deadline = float("inf")
                self._on_change(self)
                return
            self._answers.popleft()
            self._respond(self._parser.requests.popleft(), answer)
        if self._is_writable and not self._answers and not self._is_ending:
            self._wait(READ_SECONDS if self._is_in_request else self._idle_seconds)
            self._write_continue()

    def _write_continue(self) -> None:
        """Tells a client that waits for it to send its body, once the responses before it are written."""
        if self._parser.wants_continue and not self._answers:
            self._parser.wants_continue = False
            self._transport.write(CONTINUE)  # type: ignore[union-attr]  # connected

    def _respond(self, request: Request, answer: Response | asyncio.Future[Outcome]) -> None:
        if isinstance(answer, asyncio.Future):
            answer = self._service.to_response(
                answer.result(), is_json=request.is_json, timeout_seconds=request.timeout_seconds
            )
        self._service.count(answer)
        transport = self._transport
        if transport is None or transport.is_closing() or self._is_ending:
            return
        is_last = request.is_last or (self._is_stopping and not self._answers)
        transport.write(to_bytes(answer, is_last=is_last))
        if is_last:
            self._end(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        """Ends the connection so that the client can read the last response.

        To close a socket with unread input would reset the connection, and the response could be lost.
        """
        self._is_ending = True
        if not transport.can_write_eof():
            transport.close()
            return
        self._wait(_LINGER_SECONDS)
        try:
            transport.write_eof()
        except OSError:
            transport.abort()  # the client has reset the connection

    def _wait(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._on_change(self)
