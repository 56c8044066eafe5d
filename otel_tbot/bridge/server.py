"""Runs `otel-tbot bridge`: listens on an address and serves the bridge, within limits, until SIGTERM."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import resource
import signal
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from otel_tbot.bridge.batching import DRAIN_SECONDS
from otel_tbot.bridge.certificates import load_tls_context, read_expiry, shrink_tls_buffers
from otel_tbot.bridge.connection import READ_SECONDS, STOPPING_SECONDS, Connection
from otel_tbot.bridge.warning_log import WarningLog
from otel_tbot.errors import OtelTbotError

if TYPE_CHECKING:
    from otel_tbot.bridge.application import Bridge

MAX_CONNECTIONS: Final = 2048
"""Above it, the connection that has been silent longest is closed."""

MAX_TLS_CONNECTIONS: Final = 1024
"""The same with TLS, which takes more memory for each."""

MAX_LARGE_TLS_CONNECTIONS: Final = 384
"""The same with TLS if asyncio's buffers cannot be made small, see `shrink_tls_buffers`."""

SEND_BUFFER_BYTES: Final = 8 * 1024
"""The system's buffer for the responses of one connection. Without it, a client that does not read fills some MiB.

It counts towards the container's memory. The system still fills a packet of 64 KiB.
"""

RECEIVE_BUFFER_BYTES: Final = 16 * 1024
"""The same for requests."""

IDLE_SECONDS: Final = 620
"""How long a connection may be idle after a response.

Longer than load balancers keep theirs, or a report could be sent into a connection that is being closed: Google Cloud
keeps them for 600 s, Azure for 120 s, Heroku for 90 s.
"""

ACCEPT_PAUSE_SECONDS: Final = 0.2
"""How long the bridge waits after an error of accept. Without it, an error that stays would keep a processor busy."""

EXPIRY_WARNING: Final = timedelta(days=14)
"""How long before a certificate ends the bridge starts to warn, once a day."""

_PREFIX_FORM: Final = re.compile(r"/?([A-Za-z0-9._~/-]{16,256})")
_TICK_SECONDS: Final = 1.0
_DAY_SECONDS: Final = 86_400.0
# The client's connection failed before it was accepted. Source: accept(2), "Error handling".
_CLIENT_ERRORS: Final = frozenset(
    (
        *(errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
    )
)
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_NOT_ACCEPTED: Final = "connections could not be accepted yet, and wait"
_EXHAUSTED_REMEDY: Final = "raise the limit of open files or of memory"
_OTHER_FILES: Final = 256
_BACKLOG: Final = 1024

logger = logging.getLogger("otel_tbot")


class ListenError(OtelTbotError):
    """Says that the address cannot be listened on, which is not a usage error."""

    exit_status = 1


def parse_address(text: str) -> tuple[str, int]:
    """Returns host and port of "HOST:PORT", or of "[ADDRESS]:PORT" for IPv6. Pure.

    Raises:
        OtelTbotError: it has another form.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise OtelTbotError("--listen: must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return host, int(port)


def read_path_prefix(path: str) -> str:
    """Returns the path prefix in the file at *path*, with a leading slash.

    Raises:
        OtelTbotError: the file cannot be read, or does not contain one.
    """
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(4096)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise OtelTbotError(f"--path-prefix-file: cannot be read ({reason}); check path and rights") from None
    found = _PREFIX_FORM.fullmatch(text.strip())
    if found is None:
        rule = "must contain one line of 16 to 256 of A-Za-z0-9._~/-; for example from `openssl rand -hex 16`"
        raise OtelTbotError(f"--path-prefix-file: {path} {rule}")
    return f"/{found.group(1).strip('/')}"


def serve(
    bridge: "Bridge",
    host: str,
    port: int,
    *,
    path_prefix_file: str = "",
    tls_cert: str = "",
    tls_key: str = "",
    idle_timeout_seconds: float = IDLE_SECONDS,
) -> None:
    """Serves *bridge* on *host* and *port* (0: any) until SIGTERM or SIGINT; prints the address when ready.

    Raises:
        OtelTbotError: a setting or a file is invalid, or the address cannot be listened on.
    """
    if bool(tls_cert) != bool(tls_key):
        raise OtelTbotError("--tls-cert, --tls-key: need each other; give both, or none for HTTP")
    files = _Files(bridge, path_prefix_file, tls_cert, tls_key)
    files.load()
    with _listen(host, port) as listener:
        asyncio.run(_Server(bridge, files, listener, idle_timeout_seconds).run())


def _listen(host: str, port: int) -> socket.socket:
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            listener = socket.create_server((host, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        else:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ListenError(f"cannot listen on {host}:{port}: {reason}; choose another with --listen") from None
    # Accepted connections inherit both.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listener


class _Files:
    """The files that are read again when they change: the path prefix, and the certificate with its key."""

    def __init__(self, bridge: "Bridge", path_prefix_file: str, tls_cert: str, tls_key: str) -> None:
        self.tls: ssl.SSLContext | None = None
        self._bridge = bridge
        self._path_prefix_file = path_prefix_file
        self._tls_cert = tls_cert
        self._tls_key = tls_key
        self._versions = self._read_versions()
        self._warned_at = float("-inf")

    def load(self) -> None:
        """Reads the files. If one is invalid, nothing changes.

        Raises:
            OtelTbotError: a file cannot be read or used.
        """
        path_prefix = read_path_prefix(self._path_prefix_file) if self._path_prefix_file else ""
        if self._tls_cert:
            self.tls = load_tls_context(self._tls_cert, self._tls_key)
        self._bridge.path_prefix = path_prefix

    def reload(self) -> None:
        """Reads the files again, and keeps the old contents if one is invalid."""
        self._versions = self._read_versions()
        try:
            self.load()
        except OtelTbotError as error:
            logger.warning("%s; the bridge continues with the old contents", error)
        else:
            logger.info("read the path prefix and the certificate again")
        self._warned_at = float("-inf")

    def check(self) -> None:
        """Reads the files again if they have changed, and warns, once a day, of certificates that end soon."""
        if self._versions != self._read_versions():
            self.reload()
        if time.monotonic() - self._warned_at > _DAY_SECONDS:
            self._warned_at = time.monotonic()
            _warn_of_end("--tls-cert", self._tls_cert)
            _warn_of_end(*self._bridge.client_certificate)

    def _read_versions(self) -> list[tuple[int, int, int]]:
        """Returns what changes when a file is written, replaced, made readable, or reached by another symbolic link."""
        versions = []
        for path in filter(None, (self._path_prefix_file, self._tls_cert, self._tls_key)):
            try:
                status = os.stat(path)
            except OSError:
                versions.append((0, 0, 0))
            else:
                # Not mtime, which `cp -p` keeps, and which no change of owner or rights changes.
                versions.append((status.st_ino, status.st_ctime_ns, status.st_size))
        return versions


def _warn_of_end(name: str, path: str) -> None:
    """Warns if the certificate in the file *path* ends soon; *name* is the setting, and *path* "" if it is not set."""
    try:
        left = read_expiry(path) - datetime.now(UTC)
    except (OSError, ValueError):
        return
    if left < EXPIRY_WARNING:
        state = f"ends in {left.days} days" if left > timedelta() else "has ended"
        logger.warning("%s: the certificate %s; replace the file, the bridge reads it again", name, state)


class _Server:
    """Accepts connections, closes those whose clients take too long, and stops in bounded time."""

    def __init__(self, bridge: "Bridge", files: _Files, listener: socket.socket, idle_seconds: float) -> None:
        self._bridge = bridge
        self._files = files
        self._listener = listener
        self._idle_seconds = idle_seconds
        most = MAX_CONNECTIONS
        if files.tls:
            most = MAX_TLS_CONNECTIONS if shrink_tls_buffers() else MAX_LARGE_TLS_CONNECTIONS
        self._max_connections = min(most, _raise_open_files())
        self._warnings = WarningLog()
        self._connections: dict[Connection, asyncio.Task[None] | None] = {}
        # Those that wait for their client, in the order in which they began to.
        self._waiting: dict[Connection, None] = {}
        self._accepts_again: asyncio.TimerHandle | None = None
        self._is_stopping = asyncio.Event()
        self._is_empty = asyncio.Event()

    async def run(self) -> None:
        """Serves until a signal asks it to stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_class)
        self._bridge.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._files.reload)
        self._files.check()
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        ticking = loop.create_task(self._tick())
        host, port = self._listener.getsockname()[:2]
        scheme = "https" if self._files.tls else "http"
        print(f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}", flush=True)  # noqa: T201  # the result
        await self._is_stopping.wait()
        self._stop_accepting()
        await self._stop()
        ticking.cancel()
        self._warnings.flush()
        # Asked again from here on, when asyncio no longer handles signals, the process would not end with status 0.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    def _accept(self) -> None:
        """Accepts the client that has connected.

        Not by `loop.sock_accept`: cancelled just when a client connects, it still uses the closed listener.
        """
        try:
            self._add_next()
        except BlockingIOError:
            pass  # the client has gone again
        except OSError as error:
            self._recover(error.errno or 0)

    def _stop_accepting(self) -> None:
        """Closes the listener, after the clients that have connected: the system would reset their connections."""
        if self._accepts_again is not None:
            self._accepts_again.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        try:
            for _ in range(_BACKLOG):
                self._add_next()
        except OSError:
            pass  # there are no more, or no more can be accepted
        self._listener.close()

    def _add_next(self) -> None:
        """Accepts the next client; raises the OSError of accept."""
        client, _ = self._listener.accept()
        client.setblocking(False)
        if len(self._connections) >= self._max_connections and not self._make_room():
            client.close()
            return
        connection = Connection(
            self._bridge, idle_seconds=self._idle_seconds, on_change=self._order, on_lost=self._forget
        )
        self._waiting[connection] = None
        self._connections[connection] = asyncio.get_running_loop().create_task(self._connect(connection, client))

    def _recover(self, number: int) -> None:
        """Handles the error *number* of accept. The connections that wait for it are not lost."""
        if number in _CLIENT_ERRORS:
            return
        name = errno.errorcode.get(number, "unknown error")
        problem = f"{_NOT_ACCEPTED} ({name})"
        if number in _EXHAUSTED:
            problem = f"{problem}; {_EXHAUSTED_REMEDY}"
            self._make_room()
        self._warnings.add(problem)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._accepts_again = loop.call_later(ACCEPT_PAUSE_SECONDS, loop.add_reader, self._listener, self._accept)

    async def _connect(self, connection: Connection, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if self._files.tls is not None:
            tls = {"ssl": self._files.tls, "ssl_handshake_timeout": READ_SECONDS, "ssl_shutdown_timeout": 1.0}
        try:
            await loop.connect_accepted_socket(lambda: connection, client, **tls)
            if connection in self._connections:
                self._connections[connection] = None
        except OSError:
            # The handshake failed, was too slow, or was aborted to make room.
            self._forget(connection)
        except asyncio.CancelledError:
            self._forget(connection)
            raise

    def _make_room(self) -> bool:
        """Closes the connection whose client has been silent longest; returns whether there is one."""
        connection = next(iter(self._waiting), None)
        if connection is None:
            return False
        self._abort(connection)
        self._forget(connection)
        return True

    def _abort(self, connection: Connection) -> None:
        task = self._connections.get(connection)
        if task is not None:
            task.cancel()
        connection.abort()

    def _order(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        if connection in self._connections and not connection.is_answering:
            self._waiting[connection] = None

    def _forget(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self._connections.pop(connection, None)
        if not self._connections:
            self._is_empty.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for connection in tuple(self._connections):
                if connection.is_late(now):
                    self._abort(connection)
            self._files.check()

    async def _stop(self) -> None:
        """Answers what has been reported or is just being reported, and closes every connection."""
        self._bridge.is_ready = False
        for connection in tuple(self._connections):
            connection.stop()
        await self._wait_until_closed(DRAIN_SECONDS)
        # What still waits is answered `unavailable`, and its client may take a moment to read that.
        await self._bridge.stop(0)
        await self._wait_until_closed(STOPPING_SECONDS)
        for connection in tuple(self._connections):
            self._abort(connection)

    async def _wait_until_closed(self, timeout_seconds: float) -> None:
        if self._connections:
            self._is_empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_empty.wait(), timeout_seconds)


def _log_class(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an error of the event loop without its text, which could contain something of a client."""
    logger.warning("the bridge's server: %s", type(context.get("exception")).__name__)


def _raise_open_files() -> int:
    """Raises the limit of open files as far as possible; returns how many connections it allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(files - _OTHER_FILES, 16)
