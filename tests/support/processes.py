"""Starts commands behind `otel-tbot run`, as a user does, and finds the relays that outlive them."""

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from otel_tbot.relay.server import LIFETIME_SECONDS
from tests.support.polling import poll_until

LAUNCHER = (str(Path(sys.executable).with_name("otel-tbot")), "run", "--")
CONSENT = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}

# The variables with which coverage measures a child; empty if coverage is off.
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}

_MARK_VARIABLE = "OTEL_TBOT_TEST_MARK"


_started: "list[subprocess.Popen[str]]" = []


def end_started() -> None:
    """Kills the commands that `Launch.start` started and that still run, and closes the pipes of all of them."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # data that was never written; its reader has ended


class Launch:
    """One environment to start commands in, and a way to find their relays.

    `environ` has a mark that no other start has, and, if *is_measured*, what makes coverage measure children.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, is_measured: bool = True) -> None:
        self._mark = f"{_MARK_VARIABLE}={uuid.uuid4()}".encode()
        name, _, value = self._mark.decode().partition("=")
        self.environ = {**(environ or {}), name: value, **(MEASURED if is_measured else {})}

    def run(
        self, command: Sequence[str], *, launcher: Sequence[str] = LAUNCHER, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Runs *command* behind `run` to its end; returns its output as text."""
        return subprocess.run(  # noqa: PLW1510  # in the options  # type: ignore[call-overload, no-any-return]  # options are subprocess's own
            [*launcher, *command],
            **{"env": self.environ, "capture_output": True, "text": True, "check": False, "timeout": 120} | options,
        )

    def start(
        self, command: Sequence[str], *, launcher: Sequence[str] = LAUNCHER, **options: object
    ) -> "subprocess.Popen[str]":
        """Starts *command* behind `run`; `end_started` ends it, and closes its pipes."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # options are subprocess's own
            [*launcher, *command], **{"env": self.environ, "text": True, **pipes} | options
        )
        _started.append(process)
        return process

    def relays(self) -> list[int]:
        """Returns the process ids of the relays that still run."""
        return [pid for pid, arguments in self._processes() if b"otel_tbot.relay" in arguments]

    def wait_for_relay(self) -> int:
        """Waits until a relay runs; returns its process id."""
        return poll_until(self.relays, waiting_for="the relay")[0]

    def wait_for_no_relay(self) -> None:
        """Waits until no relay runs, less than a relay without a report does."""
        deadline_seconds = LIFETIME_SECONDS / 2
        poll_until(lambda: not self.relays(), waiting_for="the relay's end", deadline_seconds=deadline_seconds)

    def wait_for_end(self) -> None:
        """Waits until every process of this environment has ended."""
        poll_until(lambda: not self._processes(), waiting_for="the end of every process")

    def _processes(self) -> list[tuple[int, bytes]]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    environ = Path(f"/proc/{entry}/environ").read_bytes()
                    arguments = Path(f"/proc/{entry}/cmdline").read_bytes()
                except OSError:
                    continue  # it has ended, or belongs to another user
                if self._mark in environ.split(b"\0"):
                    found.append((int(entry), arguments))
        return found
