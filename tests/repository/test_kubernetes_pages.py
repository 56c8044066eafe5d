import json
import re
import subprocess
from pathlib import Path

import yaml

from otel_tbot import __version__
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.checkout import ROOT
from tests.support.servers import OtlpHttpServer, raw_server
from tools import chart, pages


def run(*command, **options):
    """Runs a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def test_every_value_is_described_and_in_the_schema():
    """Each leaf of values.yaml is below a described name, and the schema knows it and no others but Helm's own."""
    described = {name for name, _, _ in chart.read_values()}
    schema = json.loads((chart.CHART / "values.schema.json").read_text())

    def find_leaves(values, prefix=""):
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in described or not isinstance(value, dict):
                yield name
            else:
                yield from find_leaves(value, f"{name}.")

    def find_properties(node, prefix=""):
        for key, value in node["properties"].items():
            if "properties" in value:
                yield from find_properties(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    assert described == set(find_leaves(yaml.safe_load((chart.CHART / "values.yaml").read_text())))
    # A parent chart hands these two to each chart it depends on.
    assert described | {"global", "enabled"} == set(find_properties(schema))


def test_the_chart_has_the_version_of_the_package():
    """Both versions of Chart.yaml, the first as a semantic version."""
    metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    semantic = re.sub(r"\.?(a|b|rc|dev)(\d+)$", r"-\1.\2", __version__)

    assert (__version__, semantic) == (metadata["appVersion"], metadata["version"])


def read_blocks(name):
    """The YAML blocks of a how-to page that this file checks."""
    examples = pages.Page(ROOT / "docs" / name).examples()
    return [yaml.safe_load(example.text) for example in examples if example.run[:1] in (("elsewhere",), ("file",))]


def read_values_of_pages():
    """The values for our chart, and those for Teleport's, that the pages show; those in Applications of Argo CD too."""
    ours, teleports = [], []
    for name in ("how-to/kubernetes.md", "how-to/argo-cd.md", "how-to/alerts.md", "explanation/scale.md"):
        for block in read_blocks(name):
            if block.get("kind") == "Application":
                source = block["spec"]["source"]
                (teleports if source.get("chart") == "tbot" else ours).append(source["helm"]["valuesObject"])
            else:
                known = yaml.safe_load((chart.CHART / "values.yaml").read_text())
                (ours if set(block) <= set(known) else teleports).append(block)
    return ours, teleports


def test_values_for_teleports_chart_are_documented_there():
    """Each value that a page sets exists, by name; teleport_tbot_chart.txt lists them with their source."""
    lines = (Path(__file__).parent / "teleport_tbot_chart.txt").read_text().splitlines()
    documented = {line for line in lines if not line.startswith("#")}

    def find_unknown(values, prefix=""):
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in documented or f"{name}.*" in documented:
                continue
            if isinstance(value, dict) and any(other.startswith(f"{name}.") for other in documented):
                yield from find_unknown(value, f"{name}.")
            else:
                yield name

    _, teleports = read_values_of_pages()

    assert 4 == len(teleports)
    assert not [name for values in teleports for name in find_unknown(values)]
    assert ["anonymousTelemetri", "extraLabels.pods"] == list(
        find_unknown({"anonymousTelemetri": True, "extraLabels": {"pods": {}, "pod": {"a": "b"}}})
    )


def to_environ(values, secrets):
    """The variables of tbot's pod, as Teleport's chart and Kubernetes make them of *values* and of *secrets*."""
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1"} if values["anonymousTelemetry"] else {}
    for entry in values["extraEnv"]:
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            assert reference["optional"]
            if reference["name"] in secrets:
                environ[entry["name"]] = secrets[reference["name"]][reference["key"]]
        else:
            # A reference to a variable that is not defined before stays as it is.
            resolved = re.sub(r"\$\((\w+)\)", lambda found: environ.get(found[1], found[0]), entry["value"])
            environ[entry["name"]] = resolved
    return environ


def test_a_tbot_with_these_values_reports_and_without_the_secret_only_logs(reporter, tmp_path):
    """With the Secret one event leaves; without it tbot ends as usual, its report failed, and nothing leaves."""
    values = next(values for values in read_values_of_pages()[1] if "anonymousTelemetry" in values)
    prefix = "0123456789abcdef0123456789abcdef"
    (tmp_path / "prefix").write_text(prefix)
    with OtlpHttpServer() as server:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "10000"}
        with BridgeProcess(settings, "--path-prefix-file", str(tmp_path / "prefix")) as bridge:
            finished = []
            for secrets in ({"otel-tbot-prefix": {"prefix": prefix}}, {}):
                environ = to_environ(values, secrets)
                address = environ["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"]
                assert address.startswith("http://otel-tbot.otel-tbot.svc/")
                environ["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"] = address.replace(
                    "http://otel-tbot.otel-tbot.svc", bridge.url
                )
                finished.append(run(reporter, "start", "--oneshot", env=environ))
    lines = [process.stdout.splitlines() for process in finished]

    assert [0, 0] == [process.returncode for process in finished]
    assert [1, 1] == [len(found) for found in lines]
    assert lines[0][0].startswith("ok ")
    assert lines[1][0].startswith("error ")
    assert 1 == len(server.requests)


def test_a_proxy_sees_the_prefix_unless_no_proxy_names_the_cluster(reporter):
    """Without the page's NO_PROXY, HTTP_PROXY gets the whole address; with it, the report does not go there."""
    _, teleports = read_values_of_pages()
    (entry,) = [e for values in teleports for e in values["extraEnv"] if e["name"] == "NO_PROXY"]
    seen = []

    def reject(connection):
        seen.append(connection.makefile("rb").readline().decode())
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with raw_server(reject) as proxy:
        for no_proxy in ({}, {"NO_PROXY": entry["value"]}):
            environ = {
                "TELEPORT_ANONYMOUS_TELEMETRY": "1",
                "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": "http://otel-tbot.otel-tbot.svc/the-path-prefix",
                "HTTP_PROXY": proxy.url,
                **no_proxy,
            }
            assert 0 == run(reporter, "start", "--oneshot", env=environ).returncode

    assert [f"POST http://otel-tbot.otel-tbot.svc/the-path-prefix{PROCEDURE} HTTP/1.1\r\n"] == seen
