"""Accepts connections in one poll loop that keeps every deadline, and sends the event of the one report.

The worker, a thread, imports what reads a request and what sends an event. Even while it imports, the loop accepts
connections and answers them in time. This uses neither asyncio nor a server framework, because importing one takes
longer than everything that the relay does.
"""

import _thread
import errno
import math
import os
import select
import socket
import sys
import time

from otel_tbot import settings
from otel_tbot.consent import FROM_REPORT
from otel_tbot.errors import OtelTbotError
from otel_tbot.launcher import QUEUE_LENGTH

TYPE_CHECKING = False  # see process
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from otel_tbot.delivery import EventSender
    from otel_tbot.outcome import Outcome
    from otel_tbot.relay.http_request import HttpRequest

LIFETIME_SECONDS: "Final" = 60.0
"""How long the relay waits for a report. tbot reports while it joins."""

MAX_CONNECTIONS: "Final" = 64
"""How many connections are open at once. Above it, the oldest that has not sent the secret path gets `unavailable`."""

LINGER_SECONDS: "Final" = 1.0
"""How long a client may take to disconnect after a response that came before the end of its request."""

_READ_BYTES: "Final" = 16 * 1024
_MAX_UNREAD_BYTES: "Final" = 64 * 1024
"""How much of a request is kept while the worker imports what reads it."""

_NO_THREAD: "Final" = "the relay cannot start a thread; raise the limit of tasks"

_GRPC_THREADS: "Final" = 8
"""How many threads gRPC starts (measured). If it cannot start one, it hangs with the interpreter's lock, or aborts."""

_ACCEPT_PAUSE_SECONDS: "Final" = 0.05
_ACCEPT_PATIENCE_SECONDS: "Final" = 1.0
_CLIENT_ERRORS: "Final" = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EINTR))
_RESOURCE_ERRORS: "Final" = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

# Source: linux/tcp.h, struct tcp_info: eight bytes of flags, then 32-bit numbers; tcpi_last_data_recv is the twelfth.
_TCP_INFO_BYTES: "Final" = 56
_LAST_DATA_RECEIVED: "Final" = slice(52, 56)


class _Connection:
    """One client's connection: what it sent so far, and when it must be answered, by time.monotonic."""

    def __init__(self, connection: socket.socket, *, connected_at: float, timeout_seconds: float) -> None:
        self.socket = connection
        self.connected_at = connected_at
        self.deadline = connected_at + timeout_seconds
        self.received_ns = 0
        self.unread = b""
        self.request: "HttpRequest | None" = None
        self.has_ended = False
        self.is_answered = False
        self.has_address = False

    def is_readable(self) -> bool:
        """Whether more of the request can be read now."""
        return not self.has_ended and len(self.unread) < _MAX_UNREAD_BYTES


class Relay:
    """Receives one report at *path_prefix* and sends its event.

    A report is answered within *timeout_seconds* of its connection, a daemon's report within 10 s. A connection without
    a report gets `unavailable` at *timeout_seconds*. A probe (see HttpRequest) is answered once an event could be sent.
    Either ends the relay. *command_end* is a descriptor that is readable once the command has ended. The worker calls
    *load* for the class that reads requests.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        load: "Callable[[], type[HttpRequest]]",
        path_prefix: str,
        timeout_seconds: float,
        command_end: int | None = None,
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._load_class = load
        self._path_prefix = path_prefix
        self._starts = (f"POST {path_prefix}/".encode(), f"GET {path_prefix} ".encode())
        self._timeout_seconds = timeout_seconds
        self._command_end = command_end
        self._ends_at = time.monotonic() + lifetime_seconds
        self._connections: dict[int, _Connection] = {}
        self._accept_again_at = 0.0
        self._failing_since = 0.0
        # The connection of the one report or probe.
        self._reporter: _Connection | None = None
        self._is_submitted = False
        self._is_done = False
        self._wake_reader, self._wake_writer = os.pipe()
        # The worker sets these and then wakes the loop.
        self._request_class: "type[HttpRequest] | None" = None
        self._sender: "EventSender | None" = None
        self._problem = ""
        self._outcome: "Outcome | None" = None

    def run(self) -> None:
        """Serves until the report is answered, or until the command or the lifetime has ended and no client waits."""
        self._start_worker()
        while not self._is_done and (self._is_listening() or self._connections):
            self._wait()
            if time.monotonic() >= self._ends_at:
                self._stop_listening()
            self._accept()
            for connection in list(self._connections.values()):
                self._advance(connection)

    # The loop.

    def _wait(self) -> None:
        """Waits for a client, the worker, the command's end or the next deadline, and reads what clients sent."""
        now = time.monotonic()
        deadlines = [connection.deadline for connection in self._connections.values()]
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if self._is_listening():
            deadlines.append(self._ends_at)
            if self._command_end is not None:
                poll.register(self._command_end, select.POLLIN)
            if self._accept_again_at > now:
                deadlines.append(self._accept_again_at)
            elif self._has_room():
                poll.register(self._listener, select.POLLIN)
        for fd, connection in self._connections.items():
            if connection is not self._reporter and connection.is_readable():
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(math.ceil(max(min(deadlines) - now, 0) * 1000))}
        if self._wake_reader in ready:
            os.read(self._wake_reader, _READ_BYTES)
        for fd in ready & self._connections.keys():
            self._receive(self._connections[fd])
        if self._command_end in ready:
            self._stop_listening()

    def _advance(self, connection: _Connection) -> None:
        """Answers *connection* if it can be answered or has reached its deadline."""
        if connection.is_answered:
            if time.monotonic() >= connection.deadline:
                self._close(connection)
        elif connection is self._reporter and connection.request is not None:
            self._serve_reporter(connection, connection.request)
        elif self._request_class is None:
            self._answer_unparsed(connection)
        else:
            self._read_request(connection, self._request_class)
        is_waiting = connection.socket.fileno() >= 0 and not connection.is_answered
        if is_waiting and time.monotonic() >= connection.deadline:
            self._answer(connection, TIMEOUT_RESPONSE)

    def _is_listening(self) -> bool:
        return self._listener.fileno() >= 0

    def _stop_listening(self) -> None:
        """Accepts the clients that are connected already. The system refuses later ones, so they do not wait."""
        self._accept_again_at = 0.0
        self._accept()
        self._listener.close()

    def _accept(self) -> None:
        # Then deadlines are looked at, also if clients connect without a pause.
        for _ in range(QUEUE_LENGTH):
            now = time.monotonic()
            if not (self._is_listening() and self._has_room()) or now < self._accept_again_at:
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                self._failing_since = 0.0
                return
            except OSError as error:
                self._handle_accept_error(error, now)
                return
            self._failing_since = 0.0
            accepted.setblocking(False)
            connected_at = now - _read_idle_seconds(accepted)
            connection = _Connection(accepted, connected_at=connected_at, timeout_seconds=self._timeout_seconds)
            self._connections[accepted.fileno()] = connection
            # Read before a deadline that may have passed already: whether this is the report matters then too.
            self._receive(connection)
            if len(self._connections) > MAX_CONNECTIONS:
                self._evict_oldest()

    def _evict_oldest(self) -> None:
        oldest = self._find_evictable()[0]
        if not oldest.is_answered:
            self._answer(oldest, TIMEOUT_RESPONSE)
        self._close(oldest)

    def _has_room(self) -> bool:
        return len(self._connections) < MAX_CONNECTIONS or bool(self._find_evictable())

    def _find_evictable(self) -> list[_Connection]:
        """Returns the connections, oldest first, that need not be tbot's: it sends the secret path at once."""
        return [c for c in self._connections.values() if not (c.has_address or c is self._reporter)]

    def _handle_accept_error(self, error: OSError, now: float) -> None:
        """Pauses, or refuses every client if the error is permanent or nothing can end it."""
        self._failing_since = self._failing_since or now
        self._accept_again_at = now + _ACCEPT_PAUSE_SECONDS
        if error.errno in _RESOURCE_ERRORS and self._connections:
            return  # a connection that ends frees what the next one needs
        is_permanent = error.errno not in _RESOURCE_ERRORS | _CLIENT_ERRORS
        if is_permanent or now - self._failing_since >= _ACCEPT_PATIENCE_SECONDS:
            self._listener.close()

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        connection.has_ended = not data
        if not connection.is_answered:
            connection.unread += data
            connection.has_address = connection.has_address or connection.unread.startswith(self._starts)
        elif not data:
            self._close(connection)

    # Requests.

    def _answer_unparsed(self, connection: _Connection) -> None:
        """Answers with the reason why nothing can read requests, if there is one."""
        if self._problem and (b"\r\n\r\n" in connection.unread or not connection.is_readable()):
            self._answer(connection, to_unavailable_response(self._problem))

    def _read_request(self, connection: _Connection, request_class: "type[HttpRequest]") -> None:
        request = connection.request = connection.request or request_class(path_prefix=self._path_prefix)
        data, connection.unread = connection.unread, b""
        if data and (interim := request.feed(data)):
            try:
                connection.socket.send(interim)
            except OSError:
                self._close(connection)
                return
        if request.event is not None or request.is_probe:
            if self._reporter is None:
                self._take(connection, request)
            else:
                self._answer(connection, request.to_response(None))
        elif request.response is not None:
            self._answer(connection, request.response)
        elif connection.has_ended:
            self._close(connection)

    def _take(self, connection: _Connection, request: "HttpRequest") -> None:
        """Keeps *connection* as the one with the report or probe."""
        self._reporter = connection
        connection.received_ns = time.time_ns()
        if request.event is not None and request.event.run_mode == "daemon":
            connection.deadline = connection.connected_at + settings.DAEMON_TIMEOUT_MS / 1000
        self._stop_listening()
        self._serve_reporter(connection, request)

    def _serve_reporter(self, connection: _Connection, request: "HttpRequest") -> None:
        """Sends the report's event once that is possible, and answers once its outcome is known."""
        if self._problem:
            self._answer(connection, to_unavailable_response(self._problem))
        elif self._outcome is not None:
            self._answer(connection, request.to_response(self._outcome))
        elif self._sender is not None and request.is_probe:
            self._answer(connection, PROBE_RESPONSE)
        elif self._sender is not None and request.event is not None and not self._is_submitted:
            self._is_submitted = True
            batch = [(request.event, connection.received_ns)]
            self._sender.submit(batch, deadline=connection.deadline, on_outcome=self._set_outcome)

    def _answer(self, connection: _Connection, response: bytes) -> None:
        """Sends *response*, the last on *connection*, and closes it once the client has read it.

        After a report or a probe there is nothing to wait for: the relay is done.
        """
        is_complete = connection.request is not None and connection.request.is_complete
        is_report = connection.unread.startswith(self._starts)
        connection.is_answered = True
        connection.deadline = time.monotonic() + LINGER_SECONDS
        connection.unread = b""
        try:
            connection.socket.send(response)
            # Closing with data unread would reset the connection, and the client could lose the response.
            connection.socket.shutdown(socket.SHUT_WR)
            if is_complete:
                connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            pass  # nothing is unread
        except OSError:
            is_complete = True
        if connection is self._reporter:
            self._is_done = True
        elif is_report:
            self._stop_listening()
        elif is_complete:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        connection.socket.close()
        self._accept_again_at = 0.0

    # The worker.

    def _start_worker(self) -> None:
        try:
            # Not threading.Thread: its start() waits for the thread, and for ever if memory has run out.
            _thread.start_new_thread(self._work, ())
        except RuntimeError:
            self._problem = _NO_THREAD

    def _work(self) -> None:
        """Imports what reads a request, and then what sends an event."""
        try:
            self._request_class = self._load_class()
            self._wake()
            from otel_tbot.delivery import EventSender

            sender = EventSender(os.environ, origin=FROM_REPORT, is_local=True)
            if sender.config.protocol == "grpc" and not can_start_threads(_GRPC_THREADS):
                self._problem = _NO_THREAD
                self._wake()
                return
            sender.load()
            self._start_sender(sender)
        except BaseException as error:  # noqa: BLE001  # an edge: the client is told what is missing
            self._problem = f"the relay cannot load what it needs: {describe_import_error(error)}"
        self._wake()

    def _start_sender(self, sender: "EventSender") -> None:
        try:
            sender.start()
            self._sender = sender
        except RuntimeError:
            self._problem = _NO_THREAD

    def _set_outcome(self, outcome: "Outcome") -> None:
        self._outcome = outcome
        self._wake()

    def _wake(self) -> None:
        os.write(self._wake_writer, b".")


def can_start_threads(number: int) -> bool:
    """Returns whether *number* more threads can run at once; they end with this call."""
    held = _thread.allocate_lock()
    with held:
        try:
            for _ in range(number):
                _thread.start_new_thread(_wait_for, (held,))
        except RuntimeError:
            return False
    return True


def _wait_for(lock: "_thread.LockType") -> None:
    with lock:
        pass


def to_unavailable_response(message: str) -> bytes:
    """Returns a whole HTTP response with the Connect error `unavailable`. Pure."""
    text = message.replace("\\", "/").replace('"', "'")
    body = f'{{"code":"unavailable","message":"{text}"}}'
    return (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode("ascii", "replace")


TIMEOUT_RESPONSE: "Final" = to_unavailable_response("no report was received and answered within the limit")
PROBE_RESPONSE: "Final" = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def describe_import_error(error: BaseException) -> str:
    """Returns the class of *error* and the module that raised it, or that is missing, but no path. Pure.

    The text of our own errors is returned as it is, because it contains no value.
    """
    if isinstance(error, OtelTbotError):
        return str(error)
    module = error.name if isinstance(error, ImportError) else None
    traceback = error.__traceback__
    while traceback is not None and not isinstance(error, ImportError):
        module = traceback.tb_frame.f_globals.get("__name__", module)
        traceback = traceback.tb_next
    name = "".join(letter for letter in module or "" if letter.isascii() and (letter.isalnum() or letter in "._"))
    return f"{type(error).__name__} in {name}" if name else type(error).__name__


def _read_idle_seconds(connection: socket.socket) -> float:
    """Returns how long ago the client of a new connection sent data or connected, 0 if the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0.0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:  # a sandbox without it
        return 0.0
    seconds = int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder) / 1000
    return seconds if seconds < LIFETIME_SECONDS else 0.0
