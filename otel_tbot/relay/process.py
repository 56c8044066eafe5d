"""Turns the process that the launcher started into the relay, and runs it.

Imports only what the relay needs to accept and answer a connection. Everything else takes longer to import than a short
timeout lasts, so the relay's worker does it.
"""

import math
import os
import select
import signal
import socket
import sys

from otel_tbot import settings
from otel_tbot.consent import ADDRESS_VARIABLE
from otel_tbot.launcher import COMMAND_FD, LISTENER_FD, WATCH_FD
from otel_tbot.relay.server import LIFETIME_SECONDS, LINGER_SECONDS, Relay

TYPE_CHECKING = False  # importing typing would take a fifth of the time until a connection is accepted
if TYPE_CHECKING:
    from typing import NoReturn

    from otel_tbot.relay.http_request import HttpRequest


def main(watch: str, command_pid: str) -> "NoReturn":
    """Runs the relay and ends this process. LISTENER_FD listens.

    If *watch* is WATCH_FD, COMMAND_FD is a pidfd of the command; otherwise *command_pid* is its process.
    """
    try:
        path_prefix = "/" + os.environ.pop(ADDRESS_VARIABLE).rpartition("/")[2]
        _prepare_process()
        timeout_seconds = settings.TIMEOUT.resolve(os.environ) / 1000
        # If the loop itself hangs, because memory ran out, the kernel still ends this process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        longest_seconds = max(timeout_seconds, settings.DAEMON_TIMEOUT_MS / 1000)
        signal.alarm(math.ceil(LIFETIME_SECONDS + longest_seconds + LINGER_SECONDS) + 2)
        relay = Relay(
            socket.socket(fileno=LISTENER_FD),
            load=load_request_class,
            path_prefix=path_prefix,
            timeout_seconds=timeout_seconds,
            command_end=_watch_command(watch, int(command_pid)),
        )
        relay.run()
        # Not sys.exit: the worker may still be importing or sending, and nothing waits for it.
        os._exit(0)
    finally:
        # Closes every connection, so no client waits.
        os._exit(1)


def load_request_class() -> "type[HttpRequest]":
    """Imports the reader of requests, with httptools and protobuf, and returns it."""
    from otel_tbot.relay.http_request import HttpRequest

    return HttpRequest


def _prepare_process() -> None:
    """Leaves the caller's directory, and offers this process before tbot if the system runs out of memory."""
    variables = {name for setting in settings.FILE_SETTINGS for name in setting.variables("log")}
    variables.update(name for setting in settings.FILE_SETTINGS for name in setting.variables("span"))
    for variable in variables & os.environ.keys():
        if os.environ[variable]:
            try:
                os.environ[variable] = os.path.abspath(os.environ[variable])
            except OSError:
                pass  # the caller's directory was removed
    # Selects a back end for other programs' protobuf; if this protobuf has no such back end, it cannot be imported.
    os.environ.pop("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", None)
    os.chdir("/")
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:  # pragma: no cover  # not Linux, or not allowed
        pass  # the relay works without it


def _watch_command(watch: str, command_pid: int) -> int | None:
    """Returns a descriptor that is readable once the command has ended; None if the system has no such thing."""
    if watch == WATCH_FD:
        return COMMAND_FD
    if sys.platform == "darwin":
        queue = select.kqueue()
        event = select.kevent(
            command_pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
        )
        try:
            queue.control([event], 0)
        except ProcessLookupError:  # it has ended already
            reader, writer = os.pipe()
            os.close(writer)
            return reader
        return os.dup(queue.fileno())
    return None
