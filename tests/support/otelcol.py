"""Starts the real OpenTelemetry Collector on free loopback ports, sends events to it and reads what it wrote."""

import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from otel_tbot.event import TbotStart
from otel_tbot.otlp.encoding import encode_request
from tests.support.checkout import ROOT
from tests.support.polling import poll_until

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from otel_tbot.settings import Signal

CONFIG = ROOT / "collector-config"
PATHS = {"log": "/v1/logs", "span": "/v1/traces"}

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
    """One collector that can be started again after its end, with the same *arguments*; its log is in *folder*."""

    def __init__(self, program: str, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self._command = [program, *arguments]
        self._log_path = folder / "collector.log"
        self.environ = dict(environ)

    def start(self) -> bool:
        """Starts it and waits until it is ready; returns False if it ended instead, for example if a port is taken."""
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self.environ)
        try:
            poll_until(
                lambda: "Everything is ready" in self.log() or self._process.poll() is not None,
                waiting_for="the collector to be ready",
            )
        except BaseException:
            self.kill()
            raise
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it by SIGTERM, and waits for its end."""
        self._process.terminate()
        self._process.wait()

    def log(self) -> str:
        """Returns what it wrote to its log since its last start."""
        return self._log_path.read_text()


class KitCollector(OtelcolProcess):
    """A collector with the *files* of collector-config/ and *more* arguments.

    `environ` has a free loopback port for each address or port that the files take, unless *environ* gives one.
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
        # Another process may take a free port before the collector binds it; then try others.
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
        """Its address for OTLP over HTTP."""
        return f"http://{self.environ['TBOT_OTLP_HTTP']}"

    @property
    def health(self) -> str:
        """The address of its health check."""
        return f"http://{self.environ['TBOT_HEALTH']}/"

    @property
    def telemetry(self) -> str:
        """The address of the collector's metrics."""
        return f"http://127.0.0.1:{self.environ['TBOT_TELEMETRY_PORT']}/metrics"


class Collector:
    """A collector that writes what it accepts to a file, one OTLP/JSON request a line."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self.path = folder / "accepted.jsonl"

    def __enter__(self) -> Self:
        # Another process may take a free port before the collector binds it; then try others.
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
        """Returns the settings that send *signal* here over *protocol*."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports[protocol]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_TBOT_SIGNAL": signal,
        }

    def requests(self) -> list[dict[str, Any]]:
        """Returns every request that was accepted and written so far; the last line of the file may be unfinished."""
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_session(self, session_id: str) -> None:
        """Waits until the event of *session_id* is in the file, and with it every event that was accepted before."""
        poll_until(lambda: session_id in json.dumps(self.requests()), waiting_for=f"session {session_id} in the file")


def post(url: str, body: bytes, *, path: str = "/v1/logs") -> bool:
    """Posts a request to the collector at *url*; returns whether it was accepted."""
    try:
        headers = {"Content-Type": "application/x-protobuf"}
        return requests.post(url + path, data=body, headers=headers, timeout=60).ok
    except requests.RequestException:
        return False


def is_up(url: str) -> bool:
    """Returns whether a GET of *url* succeeds."""
    try:
        return requests.get(url, timeout=60).ok
    except requests.RequestException:
        return False


def send_over_http(collector: KitCollector, signal: "Signal", events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sends each event, now, to a collector of the kit as a sender does; returns their session ids."""
    prepared, ids = _to_requests(signal, events)
    for request in prepared:
        if not post(collector.url, request.SerializeToString(), path=PATHS[signal]):
            raise AssertionError(collector.log())
    return ids


def send_over_grpc(collector: KitCollector, signal: "Signal", events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sends each event, now, to a gateway as an agent does; returns their session ids."""
    prepared, ids = _to_requests(signal, events)
    with grpc.insecure_channel(collector.environ["TBOT_GATEWAY_LISTEN"]) as channel:
        stub = TraceServiceStub(channel) if signal == "span" else LogsServiceStub(channel)  # type: ignore[no-untyped-call]  # as generated
        for request in prepared:
            stub.Export(request, timeout=60)
    return ids


def _to_requests(signal: "Signal", events: Sequence[Mapping[str, Any]]) -> "tuple[list[Message], list[str]]":
    sent = [TbotStart(**fields) for fields in events]
    prepared = [encode_request([(event, time.time_ns())], signal=signal, is_local=True) for event in sent]
    return prepared, [event.session_id for event in sent]


# Enough for what one test starts; the sockets before these are closed.
_MAX_RESERVED = 100
_reserved: "deque[socket.socket]" = deque()


def find_free_port() -> int:
    """Returns a loopback port on which no process listens.

    On Linux, no other process gets the port while this one keeps it, not even if the program that listens on it ends
    and is started again: the kernel gives no process a port that a socket is bound to, but a server can still name it.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = int(reserved.getsockname()[1])
    if not sys.platform.startswith("linux"):
        # Elsewhere a server cannot listen on it then.
        reserved.close()
        return port
    _reserved.append(reserved)
    while len(_reserved) > _MAX_RESERVED:
        _reserved.popleft().close()
    return port


def to_values(attributes: list[dict[str, Any]]) -> Mapping[str, tuple[str, Any]]:
    """Returns OTLP/JSON attributes as {key: (type, value)}; fails if a key occurs twice."""
    values = {attribute["key"]: next(iter(attribute["value"].items())) for attribute in attributes}
    if len(values) != len(attributes):
        raise AssertionError(f"a key occurs twice: {[attribute['key'] for attribute in attributes]}")
    return values
