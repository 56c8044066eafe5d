"""Renders the Helm chart, and runs the commands of its pods on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.support.otelcol import OtelcolProcess, find_free_port
from tools import chart

VALUE_SETS: Final = tuple(
    sorted(path.name.removesuffix("-values.yaml") for path in (chart.CHART / "ci").glob("*-values.yaml"))
)

_SECRETS: Final = "/run/secrets"


class Release:
    """The objects that the chart renders for one of the VALUE_SETS, changed by *arguments* of Helm."""

    def __init__(self, value_set: str = "default", *arguments: str) -> None:
        values = chart.CHART / "ci" / f"{value_set}-values.yaml"
        rendered = chart.render("--namespace", "otel-tbot", "--values", str(values), *arguments)
        if rendered.returncode:
            raise AssertionError(rendered.stderr)
        self.text = rendered.stdout
        self.objects: list[dict[str, Any]] = [document for document in yaml.safe_load_all(self.text) if document]

    def find(self, kind: str) -> list[dict[str, Any]]:
        """The objects of *kind*; the bridge's come before the collector's."""
        return sorted((o for o in self.objects if o["kind"] == kind), key=lambda o: str(o["metadata"]["name"]))

    def pods(self) -> list[dict[str, Any]]:
        """The pod templates: that of the bridge, and that of the collector if it is enabled."""
        return [found["spec"]["template"] for kind in ("Deployment", "StatefulSet") for found in self.find(kind)]


def read_container(pod: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The arguments of a pod's one container, and those of its variables that are not from a Secret."""
    (container,) = pod["spec"]["containers"]
    return container["args"], {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def read_bridge(release: Release, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and variables of the bridge, with its Secrets in *folder* and any free port of its address."""
    arguments, environ = read_container(release.pods()[0])
    arguments = [argument.replace(_SECRETS, str(folder)) for argument in arguments]
    arguments[arguments.index("--listen") + 1] = arguments[arguments.index("--listen") + 1].rpartition(":")[0] + ":0"
    return arguments, {name: value.replace(_SECRETS, str(folder)) for name, value in environ.items()}


class ChartCollector(OtelcolProcess):
    """The chart's collector with the files, arguments and variables of its pod, on free ports.

    Its files, its queue and the Secrets of the pod are in *folder*; *environ* replaces variables.
    """

    def __init__(self, program: str, release: Release, folder: Path, environ: Mapping[str, str]) -> None:
        (files,) = release.find("ConfigMap")
        arguments, self._given = read_container(release.pods()[1])
        for name, text in files["data"].items():
            (folder / name).write_text(text.replace(_SECRETS, str(folder)))
        self._given |= {"TBOT_QUEUE": str(folder / "queue"), **environ}
        super().__init__(program, [argument.replace("/etc/otelcol", str(folder)) for argument in arguments], folder, {})

    def __enter__(self) -> Self:
        # Another process may take a free port before the collector binds it; then try others.
        for _ in range(10):
            self.ports = {name: find_free_port() for name in ("TBOT_OTLP_HTTP", "TBOT_OTLP_GRPC", "TBOT_HEALTH")}
            self.telemetry_port = find_free_port()
            addresses = {name: f"{self._given[name].rpartition(':')[0]}:{port}" for name, port in self.ports.items()}
            self.environ = {**self._given, **addresses, "TBOT_TELEMETRY_PORT": str(self.telemetry_port)}
            if self.start():
                return self
        raise AssertionError(self.log())

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, host: str = "127.0.0.1") -> str:
        """Where it accepts OTLP over HTTP."""
        return f"http://{host}:{self.ports['TBOT_OTLP_HTTP']}"
