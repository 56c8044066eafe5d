"""Starts the real back ends on free loopback ports: VictoriaLogs, Prometheus and Jaeger as built here, and Loki.

`make programs` and `make backends` build them. PROMETHEUS=/path and the like name another program to use. Loki is under
the AGPL, so this repository does not build it: its tests run only if LOKI names a program.
"""

import json
import os
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import pytest
import requests
import yaml

from tests.support.checkout import ROOT, skip_or_fail
from tests.support.otelcol import find_free_port
from tests.support.polling import poll_until


class Backend(ABC):
    """One back end; `url` is the address of its API, once it is ready."""

    name = ""
    ports = 1
    ready = ""

    def __init__(self, folder: Path) -> None:
        self._program = self.find_program()
        self._folder = folder / self.name
        self._folder.mkdir()

    def __enter__(self) -> Self:
        # Another process may take a free port before the back end binds it; then try others.
        for _ in range(10):
            ports = [find_free_port() for _ in range(self.ports)]
            self.url = f"http://127.0.0.1:{ports[0]}"
            arguments = self.configure(ports)
            with (self._folder / "log").open("w") as log:
                self._process = subprocess.Popen(
                    [str(self._program), *arguments],
                    cwd=self._folder,
                    stdout=log,
                    stderr=log,
                    env={"HOME": "/nonexistent"},
                )
            try:
                poll_until(
                    lambda: self._is_ready() or self._process.poll() is not None,
                    waiting_for=f"{self.name} to be ready",
                    deadline_seconds=180,
                )
            except BaseException:
                self.__exit__()
                raise
            if self._process.poll() is None:
                return self
        raise AssertionError((self._folder / "log").read_text()[-4000:])

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @classmethod
    def program_path(cls) -> Path:
        """Returns where the program is: what `make` built, or what a variable such as VICTORIALOGS names."""
        return Path(os.environ.get(cls.name.upper()) or ROOT / "build" / "backends" / cls.name)

    def find_program(self) -> Path:
        """Returns the path of the program; skips or fails the test if it was not built."""
        program = self.program_path()
        if not program.exists():
            skip_or_fail(f"{self.name} was not built: run `make programs backends`, which needs Go")
        return program

    @abstractmethod
    def configure(self, ports: list[int]) -> list[str]:
        """Writes the configuration into the back end's folder; returns the program's arguments."""

    @abstractmethod
    def environ(self) -> dict[str, str]:
        """Returns the variables that make a collector of the kit send here."""

    def write(self, configuration: object) -> str:
        """Returns the path of a file with *configuration*."""
        path = self._folder / "configuration.yaml"
        path.write_text(yaml.safe_dump(configuration))
        return str(path)

    def fetch(self, path: str, **parameters: Any) -> requests.Response:
        """Returns the response to a query; fails with what the back end says if it is an error."""
        response = requests.get(self.url + path, params=parameters, timeout=60)
        if not response.ok:
            raise AssertionError(f"{self.name} {path} {parameters}: {response.status_code} {response.text[:500]}")
        return response

    def get(self, path: str, **parameters: Any) -> Any:
        """Returns the JSON of the response to a query."""
        return self.fetch(path, **parameters).json()

    def _is_ready(self) -> bool:
        try:
            return requests.get(self.url + self.ready, timeout=5).ok
        except requests.RequestException:
            return False


class VictoriaLogs(Backend):
    """VictoriaLogs, which receives log records over OTLP/HTTP and has a web page inside."""

    name = "victorialogs"
    ready = "/health"

    def configure(self, ports: list[int]) -> list[str]:
        return [
            f"-httpListenAddr=127.0.0.1:{ports[0]}",
            "-storageDataPath=data",
            # By default, it drops records that are older than a week, which some tests send.
            "-retentionPeriod=100y",
            "-inmemoryDataFlushInterval=1s",
        ]

    def environ(self) -> dict[str, str]:
        return {"TBOT_LOGS": f"{self.url}/insert/opentelemetry"}

    def query_logs(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """Returns the rows that *query*, in LogsQL, finds; VictoriaLogs writes each value as a string."""
        rows = self.fetch("/select/logsql/query", query=query, **parameters).text.splitlines()
        return [json.loads(row) for row in rows]


class Prometheus(Backend):
    """Prometheus, which receives metrics over OTLP/HTTP."""

    name = "prometheus"
    ready = "/-/ready"

    def configure(self, ports: list[int]) -> list[str]:
        path = self.write({"global": {}})
        listen = f"--web.listen-address=127.0.0.1:{ports[0]}"
        storage = f"--storage.tsdb.path={self._folder / 'data'}"
        return [f"--config.file={path}", storage, listen, "--web.enable-otlp-receiver"]

    def environ(self) -> dict[str, str]:
        return {"TBOT_PROMETHEUS": f"{self.url}/api/v1/otlp"}

    def query(self, expression: str, **parameters: Any) -> list[dict[str, Any]]:
        """Returns the result of an instant query."""
        return list(self.get("/api/v1/query", query=expression, **parameters)["data"]["result"])


class Loki(Backend):
    """Loki as one process that stores in a folder, if LOKI names its program."""

    name = "loki"
    ports = 2
    ready = "/ready"

    def find_program(self) -> Path:
        if not os.environ.get("LOKI"):
            pytest.skip("LOKI=/path/to/loki is not set; this repository does not build Loki, which is under the AGPL")
        return super().find_program()

    def configure(self, ports: list[int]) -> list[str]:
        folder = str(self._folder)
        path = self.write(
            {
                "auth_enabled": False,
                "server": {
                    "http_listen_address": "127.0.0.1",
                    "http_listen_port": ports[0],
                    "grpc_listen_address": "127.0.0.1",
                    "grpc_listen_port": ports[1],
                },
                "common": {
                    "path_prefix": folder,
                    "replication_factor": 1,
                    "instance_addr": "127.0.0.1",
                    "ring": {"instance_addr": "127.0.0.1", "kvstore": {"store": "inmemory"}},
                    "storage": {
                        "filesystem": {"chunks_directory": f"{folder}/chunks", "rules_directory": f"{folder}/rules"}
                    },
                },
                "ingester": {"lifecycler": {"min_ready_duration": "0s"}},
                "schema_config": {
                    "configs": [
                        {
                            "from": "2024-01-01",
                            "store": "tsdb",
                            "object_store": "filesystem",
                            "schema": "v13",
                            "index": {"prefix": "index_", "period": "24h"},
                        }
                    ]
                },
                "limits_config": {"allow_structured_metadata": True, "reject_old_samples": False},
                "analytics": {"reporting_enabled": False},
            }
        )
        return [f"-config.file={path}"]

    def environ(self) -> dict[str, str]:
        return {"TBOT_LOGS": f"{self.url}/otlp"}

    def query(self, expression: str, **parameters: Any) -> list[dict[str, Any]]:
        """Returns the result of an instant query."""
        return list(self.get("/loki/api/v1/query", query=expression, **parameters)["data"]["result"])


class Jaeger(Backend):
    """Jaeger 2, which stores traces in memory."""

    name = "jaeger"
    ports = 3
    ready = "/api/services"

    def configure(self, ports: list[int]) -> list[str]:
        self._otlp = f"127.0.0.1:{ports[1]}"
        path = self.write(
            {
                "service": {
                    "extensions": ["jaeger_storage", "jaeger_query"],
                    "telemetry": {"metrics": {"level": "none"}},
                    "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                },
                "extensions": {
                    "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10000}}}},
                    "jaeger_query": {
                        "storage": {"traces": "memory"},
                        "http": {"endpoint": f"127.0.0.1:{ports[0]}"},
                        "grpc": {"endpoint": f"127.0.0.1:{ports[2]}"},
                    },
                },
                "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self._otlp}}}},
                "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
            }
        )
        return ["--config", path]

    def environ(self) -> dict[str, str]:
        return {"TBOT_TRACES": self._otlp}
