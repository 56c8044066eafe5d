from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.backends import Prometheus
from tests.support.otelcol import KitCollector, send_over_grpc, send_over_http
from tests.support.polling import poll_until

pytestmark = pytest.mark.backends

START = {"run_mode": "daemon", "version": "18.4.1", "join_type": "kubernetes", "destinations_kubernetes": 3}
# Send counts at once, so that a test need not wait for the interval. There is no log store, so records need room.
SOON = [
    *("--config", "yaml:processors::interval/counted::interval: 200ms"),
    *("--config", "yaml:exporters::otlp_http/logs::sending_queue::queue_size: 10000"),
]


@pytest.mark.parametrize(
    ("files", "send"),
    [(("grafana",), send_over_http), (("grafana", "gateway", "gateway-grafana"), send_over_grpc)],
    ids=["collectors", "gateways"],
)
def test_two_collectors_count_under_their_own_names(files, send, otelcol, tmp_path):
    """Each count has the collector's name, run mode, join method and version as its labels, and no others."""
    with ExitStack() as started:
        prometheus = started.enter_context(Prometheus(tmp_path))
        for name, starts in (("one", 3), ("two", 4)):
            environ = {**prometheus.environ(), "TBOT_INSTANCE": name}
            collector = KitCollector(otelcol, tmp_path / name, "guard", *files, environ=environ, more=SOON)
            send(started.enter_context(collector), "log", [START] * starts)

        def list_counts():
            found = prometheus.query("tbot_starts_total")
            return sorted((one["metric"]["instance"], float(one["value"][1])) for one in found)

        poll_until(lambda: list_counts() == [("one", 3), ("two", 4)], waiting_for="seven starts")
        labels = [set(one["metric"]) for one in prometheus.query("tbot_starts_total")]
        with_kubernetes = prometheus.query("sum(tbot_starts_with_kubernetes_destinations_total)")

    assert [{"__name__", "instance", "job", "tbot_run_mode", "tbot_join_type", "tbot_version"}] * 2 == labels
    assert ["7"] == [one["value"][1] for one in with_kubernetes]


def test_counts_are_exact_although_many_send_at_once(otelcol, tmp_path):
    """Of 2,000 starts of one kind within seconds, from eight senders, Prometheus counts each once."""
    with (
        Prometheus(tmp_path) as prometheus,
        KitCollector(
            otelcol, tmp_path / "one", "guard", "grafana", environ=prometheus.environ(), more=SOON
        ) as collector,
    ):
        with ThreadPoolExecutor(8) as senders:
            list(senders.map(lambda events: send_over_http(collector, "log", events), [[START] * 250] * 8))

        def count():
            return [float(series["value"][1]) for series in prometheus.query("sum(tbot_starts_total)")]

        poll_until(lambda: count() == [2000.0], waiting_for="2000 starts")
        # A later start shows that the number did not rise further.
        send_over_http(collector, "log", [START])
        poll_until(lambda: count() != [2000.0], waiting_for="one more")

        assert [2001.0] == count()
