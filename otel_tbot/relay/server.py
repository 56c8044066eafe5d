"""The relay's work: accepted connections go in, one report of them goes on, and its answer tells what became of it.

The bridge's service for one report, read from the socket itself: a thread a connection, one request each. No event loop
and no server's framework, whose imports (asyncio, uvicorn: 90 ms of processor time) take longer than all of this.
The time limits count from when a connection was accepted.
"""

import os
import socket
import threading
import time
from queue import SimpleQueue
from typing import Final

import httptools

from otel_tbot import settings
from otel_tbot.consent import FROM_REPORT
from otel_tbot.delivery import EventSender
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from otel_tbot.relay.process import REFUSAL, Door
from otel_tbot.tbot.connect import (
    MAX_REQUEST_BYTES,
    ConnectCall,
    ConnectError,
    Response,
    to_error_response,
    to_response,
)

_LINGER_SECONDS: Final = 1.0
"""How long a client may take to fetch its answer, or to leave after one that came before it had sent all."""

_PIECE_BYTES: Final = 16 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HTTP: Final = Response(400)
_BUSY: Final = to_error_response("resource_exhausted", "this relay has taken the one report it is for")
# As if it had left already, which it is about to.
_DONE: Final = to_error_response("unavailable", "this relay has sent the one report it is for")


def serve(door: Door, *, path_prefix: str, timeout_seconds: float) -> None:
    """Serves what comes through *door* until that ends the process, or until one report was answered, which does too.

    A report on *path_prefix* is answered within *timeout_seconds* of its connection, a daemon's within 10 s; a
    connection that brings none in *timeout_seconds* is refused.
    """
    relay = _Relay(door, path_prefix, timeout_seconds)
    taken: SimpleQueue[tuple[socket.socket, float]] = SimpleQueue()
    # By this thread and not by the door's: where a thread dies at its start, for want of memory, the one that starts it
    # waits for good, and it is the door that then ends what hangs.
    door.open_to(lambda connection, accepted_at: taken.put((connection, accepted_at)))
    try:
        # The report is seldom there already, and importing what sends it is what would take most of its time.
        relay.sender.start()
    except RuntimeError:
        pass  # there can be no more threads; sending imports what it needs
    while True:
        relay.take(*taken.get())


class _Relay:
    """One report's way: the connection it came on, its sending, its answer."""

    def __init__(self, door: Door, path_prefix: str, timeout_seconds: float) -> None:
        self._door = door
        self._path_prefix = path_prefix
        self._timeout_seconds = timeout_seconds
        self.sender = EventSender(os.environ, origin=FROM_REPORT, is_local=True)
        self._lock = threading.Lock()
        self._has_report = False
        self._is_sent = False

    def take(self, connection: socket.socket, accepted_at: float) -> None:
        """Serves *connection* in a thread of its own; closes it where there can be none."""
        try:
            threading.Thread(target=self._serve, args=(connection, accepted_at), daemon=True).start()
        except RuntimeError:  # a limit of processes, or of memory
            self._door.watch_no_more(connection)
            connection.close()
            self._door.release()

    def _serve(self, connection: socket.socket, accepted_at: float) -> None:
        request = _Request(connection, accepted_at + self._timeout_seconds, self._path_prefix, self._door)
        is_reporter = False
        try:
            with connection:
                event = request.read()
                if event is None:
                    return
                is_reporter = self._claim()
                if is_reporter:
                    outcome = self._send(event, connection, accepted_at)
                    self._is_sent = True
                    request.answer(to_response(outcome, is_json=request.is_json))
                else:
                    request.answer(_DONE if self._is_sent else _BUSY)
        except OSError:
            pass  # nobody is there any more
        finally:
            if is_reporter:
                # The report was sent and its connection has the answer; whoever else is connected.
                os._exit(0)
            self._door.watch_no_more(connection)
            self._door.release()

    def _claim(self) -> bool:
        """Whether the report at hand is the one that this relay is for."""
        with self._lock:
            is_first = not self._has_report
            self._has_report = True
        return is_first

    def _send(self, event: TbotStart, connection: socket.socket, accepted_at: float) -> Outcome:
        time_ns = time.time_ns()
        is_daemon = event.run_mode == "daemon"
        deadline = accepted_at + (settings.DAEMON_TIMEOUT_MS / 1000 if is_daemon else self._timeout_seconds)
        self._door.watch(connection, deadline)
        self._door.close()
        return self.sender.send([(event, time_ns)], deadline=deadline)


class _Request:
    """The request of one connection, read until *limit*, in the time of time.monotonic, and its answer.

    *door* watches the connection meanwhile.
    """

    def __init__(self, connection: socket.socket, limit: float, path_prefix: str, door: Door) -> None:
        self.is_json = False
        self._connection = connection
        self._limit = limit
        self._path_prefix = path_prefix
        self._door = door
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._call: ConnectCall | None = None
        self._refused: Response | None = None
        self._is_complete = False

    def read(self) -> TbotStart | None:
        """The event that the request reports; None where it reports none, and has its answer, or has gone."""
        head_bytes = 0
        try:
            while not self._is_complete:
                piece = _receive(self._connection, self._limit)
                if piece is None:
                    self._write(REFUSAL)
                if not piece:
                    return None
                self._parser.feed_data(piece)
                if self._refused is not None:
                    raise ConnectError(self._refused)
                head_bytes += len(piece)
                if self._call is None and head_bytes > MAX_REQUEST_BYTES:
                    raise ConnectError(_NO_HTTP)
            return self._call.finish()  # type: ignore[union-attr]  # a complete request has a head
        except httptools.HttpParserError:
            self.answer(_NO_HTTP)
        except ConnectError as refused:
            self.answer(refused.response)
        return None

    def answer(self, response: Response) -> None:
        """Sends *response*; the connection ends with it."""
        fields = (
            *response.headers,
            (b"content-length", b"%d" % len(response.body)),
            # A relay that has answered leaves; a client that kept its connection would find nobody there.
            (b"connection", b"close"),
        )
        head = b"".join(b"%s: %s\r\n" % field for field in fields)
        self._write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (response.status, head, response.body))

    def _write(self, text: bytes) -> None:
        self._door.watch(self._connection, time.monotonic() + 2 * _LINGER_SECONDS)
        self._connection.settimeout(_LINGER_SECONDS)
        self._connection.sendall(text)
        if not self._is_complete:
            # What is left unread would turn the close into a reset, and the answer could be lost.
            self._connection.shutdown(socket.SHUT_WR)
            limit = time.monotonic() + _LINGER_SECONDS
            while _receive(self._connection, limit):
                pass

    # What the parser calls. It wraps what these raise, so a refusal is kept for the one who feeds it.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_complete:
            return  # a request behind the one that is answered: the connection ends before it
        path = self._url.partition(b"?")[0].decode("ascii", "surrogateescape")
        method = self._parser.get_method().decode()
        try:
            self._call = ConnectCall(method, path, self._headers, path_prefix=self._path_prefix)
        except ConnectError as refused:
            self._refused = refused.response
            return
        self.is_json = self._call.is_json
        if (b"expect", b"100-continue") in self._headers:
            self._connection.sendall(_CONTINUE)

    def on_body(self, piece: bytes) -> None:
        try:
            if self._call is not None and not self._is_complete:
                self._call.add(piece)
        except ConnectError as refused:
            self._refused = self._refused or refused.response

    def on_message_complete(self) -> None:
        self._is_complete = True


def _receive(connection: socket.socket, limit: float) -> bytes | None:
    """What comes next from *connection*, b"" for its end, None where *limit* has passed first."""
    remaining_seconds = limit - time.monotonic()
    if remaining_seconds <= 0:
        return None
    connection.settimeout(remaining_seconds)
    try:
        return connection.recv(_PIECE_BYTES)
    except TimeoutError:
        return None
