"""Starts the bridge as a user does, in another process."""

import os
import resource
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

import pytest

from tests.support.polling import poll_until
from tests.support.processes import LAUNCHER, MEASURED

PROCEDURE = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files to *count*, for its ends of many connections; skips if it may not."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < count:
        pytest.skip(f"needs {count} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, now), most))


class BridgeProcess:
    """`otel-tbot bridge` on a free port; what it wrote is in `written` once it has ended.

    *program* is executed instead of `otel-tbot`, with the same arguments.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *arguments: str,
        program: Sequence[str] = (LAUNCHER[0],),
        is_measured: bool = True,
    ) -> None:
        self._command = [*program, "bridge", "--listen", "127.0.0.1:0", *arguments]
        self._environ = {"PATH": os.environ["PATH"], **(MEASURED if is_measured else {}), **environ}
        self._began = self.written = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in self._process.stdout:
            if line.startswith("listening on http"):
                self.url = line.split()[-1]
                break
            self._began += line
        else:
            self._process.stdout.close()
            raise AssertionError(f"the bridge ended with {self._process.wait()}: {self._began}")
        self.port = int(self.url.rpartition(":")[2])
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()
        self._process.stdout.close()

    def ask_to_end(self) -> None:
        """Sends SIGTERM."""
        self._process.terminate()

    def end(self) -> int:
        """Sends SIGTERM and waits; the exit status."""
        self.ask_to_end()
        # Not by `communicate`, which loses what has been read ahead together with the first lines.
        self.written = self._began + self._process.stdout.read()
        return self._process.wait(timeout=120)

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory_kib(self) -> int:
        """Resident memory."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            return int(file.read().split("VmRSS:")[1].split()[0])

    def wait_for_refusal(self) -> None:
        """Waits until no connection is accepted any more."""

        def is_refused() -> bool:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                return False  # the listener was closed while we connected
            return False

        poll_until(is_refused, waiting_for="the listener's end")
