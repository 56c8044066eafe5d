"""The relay's work: accepted connections go in, one report of them goes on, and its answer tells what became of it.

The same service as the bridge's, for one report. The time limits count from when a connection was accepted.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from otel_tbot import sending, service, settings
from otel_tbot.consent import FROM_REPORT
from otel_tbot.doorkeeper import REFUSAL, Door
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome

_LINGER_SECONDS: Final = 1.0
"""How long a client may take to fetch its answer."""


def serve(door: Door, *, path_prefix: str, timeout_seconds: float) -> None:
    """Serves what comes through *door* until that ends the process, or until one report was answered, which does too.

    A report on *path_prefix* is answered within *timeout_seconds* of its connection, a daemon's within 10 s; a
    connection that brings none in *timeout_seconds* is refused.
    """
    asyncio.run(_Relay(door, path_prefix, timeout_seconds).serve())


class _Relay:
    """One report's way: the connection it came on, its sending, its answer."""

    def __init__(self, door: Door, path_prefix: str, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._door = door
        self._application = service.build_application(self._deliver, path_prefix=path_prefix)
        self._config = Config(
            self._run,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            workers=1,  # or WEB_CONCURRENCY decides, and whatever it holds has to be a number
            h11_max_incomplete_event_size=service.MAX_REQUEST_BYTES,
        )
        self._server_state = ServerState()
        # A relay that has answered leaves; a client that kept its connection would find nobody there.
        self._server_state.default_headers = [(b"connection", b"close")]
        self._connection: ContextVar[_Connection] = ContextVar("connection")
        self._tasks: set[asyncio.Task[object]] = set()
        self._reporter: _Connection | None = None
        self._is_sent = False

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()

        def take(connection: socket.socket, accepted_at: float) -> None:
            loop.call_soon_threadsafe(self._take, connection, accepted_at)

        self._door.open_to(take)
        # The report is seldom there already, and importing OpenTelemetry is what would take most of its time.
        await asyncio.to_thread(sending.load, os.environ)
        await loop.create_future()

    def _take(self, connection: socket.socket, accepted_at: float) -> None:
        def build() -> _Connection:
            return _Connection(self, self._config, self._server_state, accepted_at=accepted_at)

        task = asyncio.get_running_loop().create_task(self._connect(connection, build))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket, build: "Callable[[], _Connection]") -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(build, connection)
        except OSError:
            connection.close()
            self._door.release()

    async def _run(self, scope: service.Scope, receive: service.Receive, send: service.Send) -> None:
        self._connection.set(scope["state"]["connection"])
        await self._application(scope, receive, send)

    async def _deliver(self, event: TbotStart) -> Outcome:
        if self._reporter is not None:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, "this relay has taken the one report it is for")
        time_ns = time.time_ns()
        self._reporter = connection = self._connection.get()
        is_daemon = event.run_mode == "daemon"
        limit_seconds = settings.DAEMON_DEADLINE_MS / 1000 if is_daemon else self.timeout_seconds
        deadline = connection.accepted_at + limit_seconds
        connection.limit(deadline + _LINGER_SECONDS)
        self._door.close()

        def send() -> Outcome:
            return sending.send(
                event,
                origin=FROM_REPORT,
                is_local=True,
                time_ns=time_ns,
                deadline_seconds=deadline - time.monotonic(),
            )

        self._door.hold()
        sent = asyncio.ensure_future(asyncio.to_thread(send))
        sent.add_done_callback(self._note_sent)
        # A client that leaves cancels this wait, not the sending: the event is on its way.
        return await asyncio.shield(sent)

    def _note_sent(self, sent: asyncio.Future[Outcome]) -> None:
        sent.exception()  # asked, so that none is reported as never retrieved; the waiting request reports it
        self._is_sent = True
        self._leave_if_done()
        self._door.release()

    def note_end(self) -> None:
        """Takes note that a connection is over."""
        self._leave_if_done()
        self._door.release()

    def _leave_if_done(self) -> None:
        """Ends the process when the report was sent and its connection has the answer, whoever else is connected."""
        if self._is_sent and self._reporter is not None and self._reporter.is_over:
            os._exit(0)


class _Connection(H11Protocol):
    """One connection, with the limit that uvicorn does not set: it never closes a silent client."""

    def __init__(self, relay: _Relay, config: Config, server_state: ServerState, *, accepted_at: float) -> None:
        super().__init__(config, server_state, {"connection": self})
        self.accepted_at = accepted_at
        self.is_over = False
        self._relay = relay
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.limit(self.accepted_at + self._relay.timeout_seconds)

    def limit(self, moment: float) -> None:
        """Sets when the connection is refused at the latest, in the time of time.monotonic, which is the loop's."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(moment, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self.is_over = True
        self._relay.note_end()

    def _give_up(self) -> None:
        has_begun = self.cycle is not None and self.cycle.response_started  # type: ignore[redundant-expr]  # is None at first
        if not has_begun and not self.transport.is_closing():
            self.transport.write(REFUSAL)
        self.transport.close()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
