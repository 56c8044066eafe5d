"""The relay's process: a listening socket goes in, accepted connections with their times come out, until it must end.

Begins before the relay's imports, which take longer than a short time limit, so only what a thread needs to accept,
to refuse in time and to notice the command's end is imported here; `relay` does the rest.
"""

import errno
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque

from otel_tbot import settings
from otel_tbot.consent import ADDRESS_VARIABLE
from otel_tbot.launcher import COMMAND_FD, LISTENER_FD, WATCH_FD

TYPE_CHECKING = False  # importing typing would take a fifth of the time until connections are accepted
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

    Take = Callable[[socket.socket, float], None]

LIFETIME_SECONDS: "Final" = 60.0
"""How long the relay waits for a report: tbot reports while it joins."""

MAX_CONNECTIONS: "Final" = 64
"""More wait in the socket's queue."""

REFUSAL: "Final" = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 79\r\n"
    b"Connection: close\r\n\r\n"
    b'{"code":"unavailable","message":"no report was sent and answered in the limit"}'
)
"""What a connection gets that has no report or no answer in time; a Connect error, so tbot logs it as one."""

GRACE_SECONDS: "Final" = 0.1
"""By how much the end of a connection may be late before it is cut off: a client that is cut off does not wait."""

HANG_SECONDS: "Final" = 2.0
"""How long what serves a connection may take to notice that it was cut off, before it counts as hanging."""


def main(watch: str, command_pid: str) -> "NoReturn":
    """Is the relay, in the process that `launcher` made for it: LISTENER_FD listens, COMMAND_FD tells of the end.

    *watch* is WATCH_FD where COMMAND_FD is a pidfd of the command, else its end is asked for by *command_pid*.
    """
    try:
        path_prefix = "/" + os.environ.pop(ADDRESS_VARIABLE).rpartition("/")[2]
        _settle()
        timeout_seconds = settings.TIMEOUT.resolve(os.environ) / 1000
        door = Door(
            socket.socket(fileno=LISTENER_FD),
            timeout_seconds=timeout_seconds,
            report_start=f"POST {path_prefix}/".encode(),
        )
        # Should all threads hang, for want of memory, the kernel still ends this.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(LIFETIME_SECONDS + max(timeout_seconds, settings.DAEMON_TIMEOUT_MS / 1000)) + 2)
        threading.Thread(target=door.keep, daemon=True).start()
        threading.Thread(target=_watch_command, args=(door, watch, int(command_pid)), daemon=True).start()

        from otel_tbot.relay.server import serve

        serve(door, path_prefix=path_prefix, timeout_seconds=timeout_seconds)
    finally:
        # Whatever waits is closed by this, which tbot takes for `unavailable`.
        os._exit(1)


def _settle() -> None:
    """Leaves the caller's directory, and is the first to go where memory runs out, before tbot."""
    for setting in settings.FILE_SETTINGS:
        for variable in {*setting.variables("log"), *setting.variables("span")}:
            if os.environ.get(variable):
                os.environ[variable] = os.path.abspath(os.environ[variable])
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
    os.chdir("/")
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:  # pragma: no cover  # no Linux, or not allowed
        pass  # a wish, no need


def _watch_command(door: "Door", watch: str, command_pid: int) -> None:
    """Closes *door* at the command's end. Where the system cannot tell of it, the lifetime alone ends the relay."""
    if watch == WATCH_FD:
        poll = select.poll()
        poll.register(COMMAND_FD, select.POLLIN)
        poll.poll()
    elif sys.platform == "darwin":
        event = select.kevent(
            command_pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
        )
        try:
            select.kqueue().control([event], 1)
        except ProcessLookupError:
            pass  # it has ended already
    else:
        return
    door.close()


class Door:
    """Accepts connections, keeps them until somebody takes them, and ends the process when nothing is left to do.

    A connection that nobody takes within *timeout_seconds* is refused; if it begins with *report_start*, that was the
    report, and there is nothing to wait for any more. One that was taken is watched: should it outlast its moment, it
    is cut off, and where that is not noticed, what serves it hangs, and the process ends. Times are those of
    time.monotonic.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        timeout_seconds: float,
        report_start: bytes,
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._timeout_seconds = timeout_seconds
        self._report_start = report_start
        self._closes_at = time.monotonic() + lifetime_seconds
        # The last resort, where a thread hangs: beyond the longest that a connection accepted at the end may last.
        self._ends_at = self._closes_at + max(timeout_seconds, settings.DAEMON_TIMEOUT_MS / 1000) + 1
        self._lock = threading.Lock()
        self._waiting: deque[tuple[socket.socket, float]] = deque()
        self._take: "Take | None" = None
        self._watched: dict[socket.socket, float] = {}
        self._cut_off: set[socket.socket] = set()
        self._held = 0
        self._is_closed = False
        self._is_out_of_files = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)

    def open_to(self, take: "Take") -> None:
        """From now on *take* gets each connection and the time it was accepted at.

        At a connection's end it calls `watch_no_more` and `release`.
        """
        with self._lock:
            self._take = take
        self._wake()

    def watch(self, connection: socket.socket, moment: float) -> None:
        """Cuts *connection* off where it is still watched GRACE_SECONDS after *moment*; replaces an earlier one."""
        with self._lock:
            self._watched[connection] = moment + GRACE_SECONDS
        self._wake()

    def watch_no_more(self, connection: socket.socket) -> None:
        """Takes note that *connection* is over."""
        with self._lock:
            self._watched.pop(connection, None)
            self._cut_off.discard(connection)

    def hold(self) -> None:
        """Keeps the process from ending until `release`."""
        with self._lock:
            self._held += 1

    def release(self) -> None:
        """Ends what an accepted connection or `hold` began."""
        with self._lock:
            self._held -= 1
            self._is_out_of_files = False
        self._wake()

    def close(self) -> None:
        """Accepts what has come until now and nothing later; the process ends when nothing is held any more."""
        with self._lock:
            self._is_closed = True
        self._wake()

    def keep(self) -> None:
        """Keeps the door, in a thread of its own. Ends the process, also where this itself fails."""
        try:
            while not self._is_over():
                poll = select.poll()
                poll.register(self._wake_reader, select.POLLIN)
                if self._has_room():
                    poll.register(self._listener, select.POLLIN)
                poll.poll(math.ceil(max(self._next_moment() - time.monotonic(), 0) * 1000))
                self._accept()
                self._hand_over()
                self._refuse_late()
                self._cut_off_late()
            os._exit(0)
        finally:
            os._exit(1)

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b".")
        except BlockingIOError:  # pragma: no cover  # the pipe is full: nothing has read from it for long
            pass  # it is being woken

    def _is_over(self) -> bool:
        now = time.monotonic()
        with self._lock:
            hangs = any(now >= self._watched[connection] + HANG_SECONDS for connection in self._cut_off)
            return now >= self._ends_at or hangs or ((self._is_closed or now >= self._closes_at) and not self._held)

    def _has_room(self) -> bool:
        with self._lock:
            return self._held < MAX_CONNECTIONS and not self._is_out_of_files and not self._is_closed

    def _next_moment(self) -> float:
        with self._lock:
            moments = [self._closes_at if time.monotonic() < self._closes_at else self._ends_at]
            if self._waiting and self._take is None:
                moments.append(self._waiting[0][1] + self._timeout_seconds)
            watched = self._watched.items()
            return min(moments + [at + HANG_SECONDS * (connection in self._cut_off) for connection, at in watched])

    def _accept(self) -> None:
        if select.select([self._wake_reader], [], [], 0)[0]:
            os.read(self._wake_reader, 4096)
        with self._lock:
            is_last_time = self._is_closed
        self._accept_all()
        if is_last_time:
            # What comes now is refused by the system, which tbot is told at once.
            self._listener.close()

    def _accept_all(self) -> None:
        while self._held < MAX_CONNECTIONS and self._listener.fileno() >= 0:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # The rest wait until a connection ends; a connection that broke off in the queue is no reason to.
                self._is_out_of_files = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
                return
            connection.setblocking(False)
            self._waiting.append((connection, time.monotonic()))
            self.hold()

    def _hand_over(self) -> None:
        with self._lock:
            take = self._take
        while take is not None and self._waiting:
            connection, accepted_at = self._waiting.popleft()
            self.watch(connection, accepted_at + self._timeout_seconds)
            take(connection, accepted_at)

    def _refuse_late(self) -> None:
        late = time.monotonic() - self._timeout_seconds
        while self._waiting and self._waiting[0][1] <= late:
            connection, _ = self._waiting.popleft()
            if refuse(connection).startswith(self._report_start):
                self.close()
            self.release()

    def _cut_off_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, moment in self._watched.items() if now >= moment]
            late = [connection for connection in late if connection not in self._cut_off]
            self._cut_off.update(late)
        for connection in late:
            try:
                # Behind an answer that has gone out already nobody reads it, since each one is the last.
                connection.send(REFUSAL)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already


def refuse(connection: socket.socket) -> bytes:
    """Answers *connection*, of which nothing was read, that the event does not reach the collector, and closes it.

    Returns what it had sent.
    """
    sent = b""
    with connection:
        try:
            # What is left unread would turn the close into a reset, and the answer could be lost.
            sent = connection.recv(64 * 1024)
        except OSError:
            pass  # nothing has come, or it broke off
        try:
            connection.send(REFUSAL)
        except OSError:
            pass  # nobody is there any more
    return sent
