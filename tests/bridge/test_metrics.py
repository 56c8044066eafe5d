"""Checks the metrics of the bridge itself: on /metrics, over OTLP, and on the port of the exporter `prometheus`."""

import socket
import sys

import pytest
import requests

from tests.bridge.test_bridge import environ_of, post, read_count
from tests.support.bridge_process import BridgeProcess
from tests.support.otelcol import find_free_port
from tests.support.servers import OtlpHttpServer

PROMETHEUS = {"OTEL_METRICS_EXPORTER": "prometheus"}
METHODS = ("HEAD", "GET", "POST", "GET")
RECEIVED = "otel_tbot_bridge_reports_received_total"

WITHOUT_EXTRA = """
import sys
sys.modules["opentelemetry.exporter.prometheus"] = sys.modules["prometheus_client"] = None
from otel_tbot.__main__ import main
main()
"""
"""Runs the command as if the extra `bridge` were not installed."""


def test_prometheus_reads_the_metrics():
    """Counts are on /metrics of the same port, and contain nothing of a client."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        post(bridge)
        post(bridge, b"\xff")
        text = requests.get(f"{bridge.url}/metrics", timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("otel_tbot_bridge_reports_")]
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}

    assert 2 == values["otel_tbot_bridge_reports_received_total"]
    assert 1 == values["otel_tbot_bridge_reports_accepted_total"]
    assert any('reason="invalid_argument"' in line for line in lines)


def test_only_get_reads_the_metrics():
    """A body behind the response to HEAD would be taken for the response to the next request of the connection."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge, requests.Session() as session:
        statuses = [session.request(method, f"{bridge.url}/metrics", timeout=60).status_code for method in METHODS]

    assert [405, 200, 405, 200] == statuses


@pytest.mark.parametrize("host", ["localhost", ""])
def test_the_exporter_prometheus_opens_its_own_port_too(host):
    """The same metrics are on OpenTelemetry's port and on /metrics, and nothing is written."""
    port = find_free_port()
    settings = PROMETHEUS | {"OTEL_EXPORTER_PROMETHEUS_PORT": str(port), "OTEL_EXPORTER_PROMETHEUS_HOST": host}
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server) | settings) as bridge:
        assert 200 == post(bridge).status_code
        assert 1 == read_count(f"http://localhost:{port}/metrics", RECEIVED)
        assert 1 == read_count(f"{bridge.url}/metrics", RECEIVED)
        assert 0 == bridge.end()

    assert "" == bridge.written


@pytest.mark.parametrize("value", ["taken", "canary", "70000"])
def test_a_port_that_prometheus_cannot_open_is_one_clear_line(value):
    """Reports are still accepted, and /metrics has the metrics."""
    with OtlpHttpServer() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if value == "taken" else value
        settings = PROMETHEUS | {"OTEL_EXPORTER_PROMETHEUS_PORT": port, "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1"}
        with BridgeProcess(environ_of(server) | settings) as bridge:
            assert 200 == post(bridge).status_code
            assert 1 == read_count(f"{bridge.url}/metrics", RECEIVED)
            bridge.end()

    rule = "OTEL_METRICS_EXPORTER: prometheus cannot open its port"
    remedy = "check OTEL_EXPORTER_PROMETHEUS_HOST and OTEL_EXPORTER_PROMETHEUS_PORT, or use /metrics"
    assert f"{rule}; {remedy}\n" == bridge.written


@pytest.mark.parametrize("settings", [{}, PROMETHEUS], ids=["unset", "prometheus"])
def test_without_the_extra_there_are_no_metrics_and_reports_are_accepted(settings):
    """/metrics is not found; if the exporter was asked for, one line says what to install."""
    with OtlpHttpServer() as server:
        program = (sys.executable, "-c", WITHOUT_EXTRA)
        with BridgeProcess(environ_of(server) | settings, program=program) as bridge:
            assert 200 == post(bridge).status_code
            assert 404 == requests.get(f"{bridge.url}/metrics", timeout=60).status_code
            bridge.end()

    rule = "OTEL_METRICS_EXPORTER: prometheus is not installed; install the extra `bridge`\n"
    assert (rule if settings else "") == bridge.written
