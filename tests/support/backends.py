"""The real back ends, built from Go modules by `make backends`: Prometheus, Loki and Jaeger, on free loopback ports."""

import json
import os
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import pytest
import requests
import yaml

from tests.support.checkout import ROOT
from tests.support.otelcol import find_free_port
from tests.support.polling import poll_until

PROGRAMS = ROOT / "build" / "backends"


class Backend(ABC):
    """One back end; `urls` has what collectors and queries need, once it is ready."""

    name = ""
    ports = 1
    ready = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / self.name
        self._folder.mkdir()
        # LOKI=/path and the like use another program.
        self.program = Path(os.environ.get(self.name.upper(), PROGRAMS / self.name))
        if not self.program.exists():
            pytest.skip(f"{self.name} was not built: see `make backends`")

    def __enter__(self) -> Self:
        for _ in range(10):
            ports = [find_free_port() for _ in range(self.ports)]
            self.url = f"http://127.0.0.1:{ports[0]}"
            arguments = self.configure(ports)
            with (self._folder / "log").open("w") as log:
                self._process = subprocess.Popen(
                    [str(self.program), *arguments],
                    cwd=self._folder,
                    stdout=log,
                    stderr=log,
                    env={"HOME": "/nonexistent"},
                )
            poll_until(
                lambda: self._is_ready() or self._process.poll() is not None,
                waiting_for=f"{self.name} to be ready",
                deadline_seconds=180,
            )
            if self._process.poll() is None:
                return self
        raise AssertionError((self._folder / "log").read_text()[-4000:])

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @abstractmethod
    def configure(self, ports: list[int]) -> list[str]:
        """Writes what it needs into its folder; its arguments."""

    def write(self, configuration: object) -> str:
        """The path of a file with *configuration*."""
        path = self._folder / "configuration.yaml"
        path.write_text(yaml.safe_dump(configuration))
        return str(path)

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer to a query, as JSON."""
        answer = requests.get(self.url + path, params=parameters, timeout=60)
        if not answer.ok:
            raise AssertionError(f"{self.name} {path} {parameters}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def _is_ready(self) -> bool:
        try:
            return requests.get(self.url + self.ready, timeout=5).ok
        except requests.RequestException:
            return False


class Prometheus(Backend):
    """Prometheus, which takes metrics by OTLP."""

    name = "prometheus"
    ready = "/-/ready"

    def configure(self, ports: list[int]) -> list[str]:
        path = self.write({"global": {}})
        listen = f"--web.listen-address=127.0.0.1:{ports[0]}"
        storage = f"--storage.tsdb.path={self._folder / 'data'}"
        return [f"--config.file={path}", storage, listen, "--web.enable-otlp-receiver"]

    def environ(self) -> dict[str, str]:
        """What grafana.yaml needs."""
        return {"TBOT_PROMETHEUS": f"{self.url}/api/v1/otlp"}

    def query(self, expression: str, **parameters: Any) -> list[dict[str, Any]]:
        """The result of an instant query."""
        return list(self.get("/api/v1/query", query=expression, **parameters)["data"]["result"])


class Loki(Backend):
    """Loki, in one process, on a folder."""

    name = "loki"
    ports = 2
    ready = "/ready"

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
        """What grafana.yaml needs."""
        return {"TBOT_LOKI": f"{self.url}/otlp"}

    def query(self, expression: str, **parameters: Any) -> list[dict[str, Any]]:
        """The result of an instant query."""
        return list(self.get("/loki/api/v1/query", query=expression, **parameters)["data"]["result"])


class VictoriaLogs(Backend):
    """VictoriaLogs, which takes log records by OTLP and has a web page inside."""

    name = "victorialogs"
    ready = "/health"

    def configure(self, ports: list[int]) -> list[str]:
        folder = f"-storageDataPath={self._folder / 'data'}"
        return [
            f"-httpListenAddr=127.0.0.1:{ports[0]}",
            folder,
            "-retentionPeriod=100y",
            "-inmemoryDataFlushInterval=1s",
        ]

    def environ(self) -> dict[str, str]:
        """Returns what grafana.yaml needs."""
        return {"TBOT_LOKI": f"{self.url}/insert/opentelemetry"}

    def query_logs(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """Returns the events that *query* finds."""
        answer = requests.get(f"{self.url}/select/logsql/query", params={"query": query, **parameters}, timeout=60)
        if not answer.ok:
            raise AssertionError(f"{query}: {answer.status_code} {answer.text[:500]}")
        return [json.loads(line) for line in answer.text.splitlines()]


class Jaeger(Backend):
    """Jaeger, with its storage in memory."""

    name = "jaeger"
    ports = 3
    ready = "/api/services"

    def configure(self, ports: list[int]) -> list[str]:
        self.otlp = f"127.0.0.1:{ports[1]}"
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
                "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.otlp}}}},
                "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
            }
        )
        return ["--config", path]

    def environ(self) -> dict[str, str]:
        """What jaeger.yaml and grafana.yaml need."""
        return {"TBOT_TRACES": self.otlp}
