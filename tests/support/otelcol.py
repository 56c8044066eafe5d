"""The real OpenTelemetry Collector on free loopback ports, and what it wrote."""

import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.checkout import ROOT
from tests.support.polling import poll_until

CONFIG = ROOT / "collector-config"

_CONFIGURATION = """
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{http_port}"}}
      grpc: {{endpoint: "127.0.0.1:{grpc_port}"}}
exporters:
  file: {{path: "{path}", flush_interval: 10ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [otlp], exporters: [file]}}
    traces: {{receivers: [otlp], exporters: [file]}}
"""


class OtelcolProcess:
    """One collector, to be started, killed and started again with the same *arguments*; its log is in *folder*."""

    def __init__(self, program: str, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._command = [program, *arguments]
        self._log_path = folder / "collector.log"
        self.environ = dict(environ)

    def start(self) -> bool:
        """Starts it and waits until it is ready; False where it ended instead, because a port was taken, say."""
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self.environ)
        poll_until(
            lambda: "Everything is ready" in self.log() or self._process.poll() is not None,
            waiting_for="the collector to be ready",
        )
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self._process.terminate()
        self._process.wait()

    def log(self) -> str:
        """What it wrote since its last start."""
        return self._log_path.read_text()


class KitCollector(OtelcolProcess):
    """A collector with the *files* of collector-config/, and *more* arguments, on free loopback ports.

    Each variable of the files that holds an address or a port gets a free one in `environ`, unless *environ* has it.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        *files: str,
        environ: Mapping[str, str] | None = None,
        more: Sequence[str] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._given = {"TBOT_QUEUE": str(folder / "queue"), **(environ or {})}
        arguments = [word for file in files for word in ("--config", str(CONFIG / f"{file}.yaml"))]
        super().__init__(program, [*arguments, *more], folder, {})

    def __enter__(self) -> Self:
        # A port found free may be taken by the time the collector binds it: then other ones are tried.
        for _ in range(10):
            addresses = ("TBOT_OTLP_HTTP", "TBOT_OTLP_GRPC", "TBOT_GATEWAY_LISTEN", "TBOT_HEALTH")
            self.environ = {
                **{name: f"127.0.0.1:{find_free_port()}" for name in addresses},
                "TBOT_TELEMETRY_PORT": str(find_free_port()),
                **self._given,
            }
            if self.start():
                return self
        raise AssertionError(self.log())

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it takes OTLP over HTTP."""
        return f"http://{self.environ['TBOT_OTLP_HTTP']}"

    @property
    def health(self) -> str:
        """Its health check."""
        return f"http://{self.environ['TBOT_HEALTH']}/"

    @property
    def telemetry(self) -> str:
        """Its own metrics."""
        return f"http://127.0.0.1:{self.environ['TBOT_TELEMETRY_PORT']}/metrics"


class Collector:
    """A collector that writes what it accepts to a file, one OTLP/JSON request a line."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self.path = folder / "accepted.jsonl"

    def __enter__(self) -> Self:
        # A port found free may be taken by the time the collector binds it: then other ones are tried.
        for _ in range(10):
            self.ports = {"http/protobuf": find_free_port(), "grpc": find_free_port()}
            configuration = _CONFIGURATION.format(
                http_port=self.ports["http/protobuf"], grpc_port=self.ports["grpc"], path=self.path
            )
            (self._folder / "collector.yaml").write_text(configuration)
            arguments = ["--config", str(self._folder / "collector.yaml")]
            self._process = OtelcolProcess(self._program, arguments, self._folder, {})
            if self._process.start():
                return self
        raise AssertionError(self._process.log())

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def environ(self, protocol: str, signal: str) -> dict[str, str]:
        """The settings that send *signal* here over *protocol*."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports[protocol]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_TBOT_SIGNAL": signal,
        }

    def requests(self) -> list[dict[str, Any]]:
        """All that was accepted and written so far; the file is written line by line, the last may be unfinished."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_session(self, session_id: str) -> None:
        """Waits until the event of *session_id* is in the file; all that was accepted before it is there by then."""
        poll_until(lambda: session_id in json.dumps(self.requests()), waiting_for=f"session {session_id} in the file")


def find_free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def to_values(attributes: list[dict[str, Any]]) -> Mapping[str, tuple[str, Any]]:
    """OTLP/JSON attributes as key to (type, value); a key that occurs twice fails."""
    values = {attribute["key"]: next(iter(attribute["value"].items())) for attribute in attributes}
    if len(values) != len(attributes):
        raise AssertionError(f"a key occurs twice: {[attribute['key'] for attribute in attributes]}")
    return values
