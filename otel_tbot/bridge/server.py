"""`otel-tbot bridge`: an address goes in, a server with limits comes out that serves the bridge until SIGTERM.

uvicorn with httptools: measured beside granian and uvloop (benchmarks), half the processor time a report of h11, that
of granian, and two thirds of granian's memory. It never closes a silent client, counts no headers and waits for clients
at its end; `_BoundedProtocol` does.
"""

import asyncio
import contextlib
import logging
import re
import resource
import signal
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from otel_tbot.bridge.application import DRAIN_SECONDS, Bridge
from otel_tbot.errors import OtelTbotError

MAX_CONNECTIONS: Final = 4096
"""Above it, the connection that has been silent longest gives way."""

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64
MAX_BODY_BYTES: Final = 64 * 1024
"""Of a request, also of one that has its answer already; a report above 16 KiB is refused by the service itself."""

READ_SECONDS: Final = 10.0
"""How long a client may take for one request, from its first byte, or its connection, to its last."""

IDLE_SECONDS: Final = 75
"""How long a connection may idle after an answer: longer than load balancers keep theirs, which would lose a report."""

_CLOSING_SECONDS: Final = 1.0
_PREFIX_FORM: Final = re.compile(r"/?([A-Za-z0-9._~/-]{16,256})")

logger = logging.getLogger("otel_tbot")


class ServingError(OtelTbotError):
    """The address cannot be listened on: not healthy rather than wrong."""

    exit_status = 1


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT", or of "[ADDRESS]:PORT" for IPv6. Pure.

    Raises:
        OtelTbotError: it has no such form.
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
    """The path prefix that the file at *path* holds, with its leading slash.

    Raises:
        OtelTbotError: it cannot be read, or does not hold one.
    """
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(4096)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise OtelTbotError(f"--path-prefix-file: {path} cannot be read ({reason}); check path and rights") from None
    found = _PREFIX_FORM.fullmatch(text.strip())
    if found is None:
        rule = "must hold one line of 16 to 256 of A-Za-z0-9._~/-; for example from `openssl rand -hex 16`"
        raise OtelTbotError(f"--path-prefix-file: {path} {rule}")
    return f"/{found.group(1).strip('/')}"


def serve(host: str, port: int, *, path_prefix: str, environ: Mapping[str, str]) -> None:
    """Serves the bridge on *host* and *port* (0: any) until SIGTERM or SIGINT; prints the address when ready.

    Raises:
        OtelTbotError: the bridge must not run, or the address cannot be listened on.
    """
    # It warns of every request that is no HTTP, which anybody who can connect could fill a disk with.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    bridge = Bridge(environ, path_prefix=path_prefix)
    listener = _listen(host, port)
    with listener:
        asyncio.run(_Server(bridge, listener).serve_until_asked())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(
            address[4][:2], family=address[0] if family == socket.AF_INET else family, backlog=1024
        )
    except OSError as error:
        raise ServingError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen") from None


class _Server(Server):
    """uvicorn's server, for one bridge and one listener, with an end that does not wait for clients."""

    def __init__(self, bridge: Bridge, listener: socket.socket) -> None:
        self._bridge = bridge
        self._listener = listener
        self._limits = _Limits(_raise_open_files())

        def build(**named: Any) -> "_BoundedProtocol":
            return _BoundedProtocol(self._limits, **named)

        super().__init__(
            Config(
                bridge,
                http=build,  # type: ignore[arg-type]  # called as a class would be
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                workers=1,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=int(DRAIN_SECONDS) + 1,
            )
        )

    async def serve_until_asked(self) -> None:
        self._bridge.start()
        sweep = asyncio.create_task(self._limits.keep())
        await self.serve(sockets=[self._listener])
        sweep.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without raising the signals again at the end, as uvicorn does: asked to end, this ends with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)  # noqa: T201  # the result

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._limits.begin_end()
        drain = asyncio.create_task(self._bridge.stop())
        await super().shutdown(sockets)
        self._limits.close_all()
        await drain


class _Limits:
    """The connections of a server, in the order in which they began to be waited for, and when that is too long."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._is_ending = False
        # Which connections the server waits for, since when: what is being handled is not among them.
        self._waited_for: dict[_BoundedProtocol, float] = {}
        self._connections: set[_BoundedProtocol] = set()

    def add(self, connection: "_BoundedProtocol") -> None:
        if len(self._connections) >= self._max_connections:
            oldest = next(iter(self._waited_for), connection)
            oldest.abort()
            self.discard(oldest)
            if oldest is connection:
                return
        self._connections.add(connection)
        self.wait_for(connection)

    def wait_for(self, connection: "_BoundedProtocol") -> None:
        self._waited_for.pop(connection, None)
        self._waited_for[connection] = connection.loop.time()

    def wait_no_more(self, connection: "_BoundedProtocol") -> None:
        self._waited_for.pop(connection, None)

    def discard(self, connection: "_BoundedProtocol") -> None:
        self._connections.discard(connection)
        self._waited_for.pop(connection, None)

    def begin_end(self) -> None:
        self._is_ending = True

    def close_all(self) -> None:
        for connection in tuple(self._connections):
            connection.abort()

    async def keep(self) -> None:
        """Closes, every second, what has been waited for too long."""
        while True:
            await asyncio.sleep(1)
            limit_seconds = _CLOSING_SECONDS if self._is_ending else READ_SECONDS
            late = asyncio.get_running_loop().time() - limit_seconds
            for connection, since in list(self._waited_for.items()):
                if since > late:
                    break
                if connection.is_reading or self._is_ending:
                    connection.abort()


class _BoundedProtocol(HttpToolsProtocol):
    """One connection, with the limits that uvicorn does not set."""

    def __init__(self, limits: _Limits, **named: Any) -> None:
        super().__init__(**named)
        self._limits = limits
        self.is_reading = True
        self._is_in_head = True
        self._head_bytes = 0
        self._named_bytes = 0
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._limits.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._begin_to_read()
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # What httptools still holds of an unfinished head, it holds without a bound.
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.abort()

    def _begin_to_read(self) -> None:
        if not self.is_reading:
            self.is_reading = True
            self._limits.wait_for(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # The next request may come behind the last one at once.
        self._begin_to_read()
        self._is_in_head = True
        self._named_bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._named_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or len(self.url) + self._named_bytes > MAX_HEAD_BYTES:
            self.abort()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_head = True
        self.is_reading = False
        self._limits.wait_no_more(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Idle now: uvicorn closes it by its own timer, and it is the first to give way.
        if not self.is_reading:
            self._limits.wait_for(self)

    def shutdown(self) -> None:
        # A report that is just coming still comes; otherwise it is closed in a second.
        if not self.is_reading:
            super().shutdown()

    def abort(self) -> None:
        """Closes the connection without a word."""
        self.transport.abort()


def _raise_open_files() -> int:
    """Raises the limit of open files as far as it goes; how many connections it allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 256
    files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(files - 256, 16)
