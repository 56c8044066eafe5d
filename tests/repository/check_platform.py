"""Uses the installed library as a helper would, on any platform: `python tests/repository/check_platform.py`.

It needs the package and the standard library only, so that it also runs where the tests do not: on Windows.
"""

import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

REQUESTS: list[tuple[str, bytes]] = []
EMIT = "from otel_tbot import TbotStart, emit; print(emit(TbotStart(run_mode='one-shot', version='18.4.1')).value)"
COMMAND = [sys.executable, "-m", "otel_tbot"]


class Collector(BaseHTTPRequestHandler):
    """Accepts every request, as a collector does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Keeps the request, and answers that everything was accepted."""
        REQUESTS.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def run(arguments: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this Python to its end, with the machine's environment and *environ*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TELEPORT_", "_TBOT_"))}
    # In another folder than the checkout, or its package would be imported instead of the installed one.
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            arguments,
            env={**kept, **environ},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            encoding="utf-8",
        )


def check(name: str, expected: object, actual: object) -> bool:
    """Prints whether *actual* is what was expected."""
    print(f"{'ok' if expected == actual else 'FAILED'}: {name}", flush=True)
    if expected != actual:
        print(f"  expected {expected!r}, got {actual!r}", flush=True)
    return expected == actual


def main() -> int:
    """Returns 0 if everything worked, otherwise 1."""
    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    on = {**endpoint, "TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}
    library = [sys.executable, "-c", EMIT]
    results = [
        check("the library sends nothing if telemetry is off", "off\n", run(library, **endpoint).stdout),
        check("no request arrived", [], REQUESTS),
        check("the library delivers if telemetry is on", "accepted\n", run(library, **on).stdout),
        check("`emit` delivers", 0, run([*COMMAND, "emit"], **on).returncode),
        check("two requests arrived", ["/v1/logs"] * 2, [path for path, _ in REQUESTS]),
        check("they hold the event", [True] * 2, [b"tbot.start" in body for _, body in REQUESTS]),
        check("`preview` prints a request", True, "resourceLogs" in run([*COMMAND, "preview", "--json"]).stdout),
    ]
    if sys.platform == "win32":
        refused = run([*COMMAND, "run", "--", sys.executable, "--version"])
        results += [
            check("`run` says what it needs", (2, True), (refused.returncode, "needs Linux or macOS" in refused.stderr))
        ]
    server.shutdown()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
