"""Sends many starts from one host, one after the other, by `emit`.

`python -m tests.proof.starts URL SIGNAL PROTOCOL COUNT [CERTIFICATE]` prints, as JSON, the number of each outcome, and
every file that the interpreter opened for writing in that time.
"""

import json
import os
import sys
from collections import Counter

_written: list[str] = []


def _note_writing(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _written.append(str(arguments[0]))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "tempfile.mkstemp"):
        _written.append(event)


def main(url: str, signal: str, protocol: str, count: str, certificate: str = "") -> None:
    """Sends *count* events to *url*."""
    from otel_tbot import TbotStart, emit

    os.environ |= {
        "TELEPORT_ANONYMOUS_TELEMETRY": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_TBOT_SIGNAL": signal,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": certificate,
    }
    sys.addaudithook(_note_writing)
    outcomes = Counter(
        emit(TbotStart(run_mode="one-shot", version="18.4.1"), deadline_seconds=60).value for _ in range(int(count))
    )
    json.dump({"outcomes": outcomes, "written": _written}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
