import subprocess
from contextlib import ExitStack

import grpc
import pytest
import requests

from tests.support.backends import Loki, Prometheus, VictoriaLogs
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.grafana import list_known_events, read_panels, send_events
from tests.support.otelcol import KitCollector, find_free_port, send_over_http
from tests.support.polling import poll_until
from tests.support.processes import CONSENT
from tests.support.servers import OtlpGrpcServer
from tools.dashboards import HEALTH, NO_HELPER, STORES, UNKNOWN, list_panels, read_dashboards
from tools.panels import EXPECTED

BRIDGE_REPORTS = "Bridges: reports a second"
HEADERS = {"Content-Type": "application/proto", "Connect-Protocol-Version": "1"}
TWICE = {
    title: values if title == "Destinations per start" else {name: 2 * value for name, value in values.items()}
    for title, values in EXPECTED.items()
}


@pytest.fixture(params=[VictoriaLogs, Loki])
def store(request, tmp_path):
    """A running event store. Loki is not built here: LOKI=/path names a program to use."""
    with request.param(tmp_path) as backend:
        yield backend


@pytest.mark.parametrize(
    "files", [("grafana",), ("grafana", "gateway", "gateway-grafana")], ids=["collectors", "gateways"]
)
def test_every_panel_shows_the_exact_numbers_before_and_after_a_restart(files, store, otelcol, tmp_path):
    """Two collectors get half of the known events each; one restarts, both get them again: all numbers are exact."""
    halves = (list_known_events()[::2], list_known_events()[1::2])
    with ExitStack() as started:
        collectors = [
            started.enter_context(
                KitCollector(
                    otelcol, tmp_path / name, "guard", *files, environ={**store.environ(), "TBOT_INSTANCE": name}
                )
            )
            for name in ("one", "two")
        ]
        for expected in (EXPECTED, TWICE):
            for collector, half in zip(collectors, halves, strict=True):
                send_events(collector.environ["TBOT_GATEWAY_LISTEN"] if len(files) > 1 else collector.url, half)
            poll_until(lambda expected=expected: read_panels(store) == expected, waiting_for=f"{expected}")
            if expected is EXPECTED:
                collectors[0].stop()
                assert collectors[0].start(), collectors[0].log()

        assert TWICE == read_panels(store)


@pytest.mark.parametrize(
    ("chosen", "starts", "helpers"),
    [
        ({"version": ["18.4.1"]}, {"starts": 7}, {"gha:a/b v2": 4}),
        ({"version": [UNKNOWN]}, {"starts": 1}, {}),
        ({"version": ["_OTHER"]}, {"starts": 1}, {"wrapper unknown": 1}),
        ({"join_method": ["kubernetes", UNKNOWN]}, {"starts": 6}, {}),
        ({"run_mode": ["one-shot"]}, {"starts": 5}, {"gha:a/b v2": 4, "wrapper unknown": 1}),
        ({"helper": ["gha:a/b"]}, {"starts": 4}, {"gha:a/b v2": 4}),
        ({"helper": [NO_HELPER]}, {"starts": 6}, {}),
        ({"helper": ["gha:a/b"], "run_mode": ["daemon"]}, {"starts": 0}, {}),
    ],
)
def test_a_filter_leaves_the_starts_that_match(chosen, starts, helpers, filled):
    """The variables narrow every panel; a fact that was not reported can be chosen too."""
    shown = read_panels(filled, **chosen)

    assert (shown["Starts"] or {"starts": 0}) == starts
    assert helpers == shown["Helpers and their versions"]


@pytest.fixture(scope="module")
def filled(otelcol, tmp_path_factory):
    """VictoriaLogs with the known events."""
    folder = tmp_path_factory.mktemp("filled")
    with VictoriaLogs(folder) as backend:
        with KitCollector(otelcol, folder / "one", "guard", "grafana", environ=backend.environ()) as collector:
            send_events(collector.url, list_known_events())
            poll_until(lambda: read_panels(backend) == EXPECTED, waiting_for=f"{EXPECTED}")
        yield backend


def test_the_filters_offer_every_value_and_those_that_were_not_reported(filled):
    """The variables of VictoriaLogs list what there is to choose."""
    variables = read_dashboards()["VictoriaLogs"]["templating"]["list"]
    offered = {}
    for variable in variables:
        if variable["type"] == "query":
            query = variable["query"]
            found = filled.get("/select/logsql/field_values", query=query["query"], field=query["field"], limit=1000)
            offered[variable["name"]] = {value["value"] for value in found["values"]}

    assert {
        "version": {"18.4.1", "17.0.0", UNKNOWN, "_OTHER"},
        "helper": {"gha:a/b", "wrapper", NO_HELPER},
    } == offered


def test_without_events_every_panel_is_empty(tmp_path):
    """No panel shows a number that is not one: Grafana then shows the panel's text for nothing."""
    with VictoriaLogs(tmp_path) as backend:
        shown = read_panels(backend)

    assert set(EXPECTED) == set(shown)
    assert not [title for title, values in shown.items() if any(values.values())]


class ScrapingPrometheus(Prometheus):
    """Prometheus that scrapes *targets*, each an address, every second."""

    targets = ()

    def configure(self, ports):
        arguments = super().configure(ports)
        scrape = {"job_name": "test", "scrape_interval": "1s", "static_configs": [{"targets": self.targets}]}
        self.write({"scrape_configs": [scrape]})
        return arguments


def list_queries(about):
    """Returns the queries of the health row about bridges or collectors, by panel and series."""
    return {
        (health.title, legend): expression.replace("$__rate_interval", "10s")
        for health in HEALTH
        for legend, expression in health.queries.items()
        if health.title.startswith(about)
    }


@pytest.mark.backends
def test_the_health_row_shows_the_bridges(otelcol, reporter, tmp_path):
    """A real Prometheus that has the metrics of a real bridge answers every query about bridges."""
    queries = list_queries("Bridges")
    with ExitStack() as started:
        prometheus = started.enter_context(Prometheus(tmp_path))
        collector = started.enter_context(
            KitCollector(
                otelcol, tmp_path / "one", "guard", "local", environ={"TBOT_EVENTS_FILE": str(tmp_path / "events")}
            )
        )
        bridge = started.enter_context(
            BridgeProcess(
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                    "OTEL_METRICS_EXPORTER": "otlp",
                    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{prometheus.url}/api/v1/otlp/v1/metrics",
                    "OTEL_METRIC_EXPORT_INTERVAL": "500",
                }
            )
        )
        environ = {**CONSENT, "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": bridge.url}

        def list_empty():
            subprocess.run([reporter], env=environ, stdout=subprocess.DEVNULL, check=True)
            requests.post(bridge.url + PROCEDURE, data=b"no report", headers=HEADERS, timeout=60)
            return [key for key, query in queries.items() if not prometheus.query(query)]

        poll_until(lambda: not list_empty(), waiting_for="every query to find something")
        reasons = [one["metric"]["reason"] for one in prometheus.query(queries[BRIDGE_REPORTS, "rejected: {{reason}}"])]

    assert 5 == len(queries)
    assert ["invalid_argument"] == reasons


@pytest.mark.backends
def test_the_health_row_shows_the_collectors(otelcol, tmp_path):
    """A real Prometheus that scrapes a real collector answers every query about collectors, failed sends included."""
    queries = list_queries("Collectors")
    port = find_free_port()
    prometheus = ScrapingPrometheus(tmp_path)
    prometheus.targets = [f"127.0.0.1:{port}"]
    with prometheus, OtlpGrpcServer(code=grpc.StatusCode.INVALID_ARGUMENT) as traces:
        # Their answers, 404 and this code, are final, so the exporters give the events up.
        environ = {
            "TBOT_LOGS": f"{prometheus.url}/nothing",
            "TBOT_TRACES": traces.url.removeprefix("http://"),
            "TBOT_TELEMETRY_PORT": str(port),
        }
        with KitCollector(otelcol, tmp_path / "one", "guard", "grafana", environ=environ) as collector:

            def list_empty():
                send_events(collector.url, list_known_events()[:1])
                send_over_http(collector, "span", [{"run_mode": "daemon"}])
                return [key for key, query in queries.items() if not prometheus.query(query)]

            poll_until(lambda: not list_empty(), waiting_for="every query to find something")

    assert 7 == len(queries)


@pytest.mark.backends
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_each_health_query_is_valid(store, tmp_path):
    """Prometheus parses the queries of the health row as the dashboard has them."""
    panels = [
        panel for panel in list_panels(read_dashboards()[store.name]) if panel["datasource"]["type"] == "prometheus"
    ]
    with Prometheus(tmp_path) as prometheus:
        for panel in panels:
            for target in panel["targets"]:
                prometheus.query(target["expr"].replace("$__rate_interval", "60s"))

    assert len(HEALTH) == len(panels)
