"""Runs the installed command in an environment that holds little else, with pipes or on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import termios

from tests.support.processes import LAUNCHER, MEASURED

BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
ON = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"}


def run_command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, with *environ* and little else in its environment."""
    return subprocess.run(
        [LAUNCHER[0], *arguments],
        env=BASIC | MEASURED | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run_in_shell(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs *script*, in which $OTEL_TBOT is the command, in bash."""
    return subprocess.run(
        ["bash", "-c", script],
        env=BASIC | MEASURED | {"OTEL_TBOT": LAUNCHER[0]} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run_on_terminal(*arguments: str, columns: int = 80, **environ: str) -> tuple[int, str]:
    """Runs the command on a terminal that is *columns* wide; returns its status and what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [LAUNCHER[0], *arguments],
        env=BASIC | MEASURED | {"TERM": "xterm"} | environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # Linux raises it when the other side is closed
    os.close(ours)
    return process.wait(timeout=120), shown.decode().replace("\r\n", "\n")
