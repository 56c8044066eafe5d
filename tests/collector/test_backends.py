import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import requests

from otel_tbot.event import ATTRIBUTES, TbotStart
from otel_tbot.otlp.encoding import describe_resource, load_encoder
from tests.collector.test_kit import answers, post
from tests.support.backends import Jaeger, Prometheus
from tests.support.otelcol import KitCollector, find_free_port
from tests.support.polling import poll_until
from tools.panels import EVENTS

PATHS = {"log": "/v1/logs", "span": "/v1/traces"}
# Counted values go out at once, so that a test need not wait for the interval.
SOON = ["--config", "yaml:processors::interval/counted::interval: 200ms"]


def to_requests(signal, events):
    """An OTLP request for each event, of now, and their session ids."""
    sent = [TbotStart(**fields) for fields in events]
    encode = load_encoder(signal, is_local=True)
    return [encode([(event, time.time_ns())]) for event in sent], [event.session_id for event in sent]


def send_over_http(collector, signal, events):
    """Sends each event to a collector of the kit; their session ids."""
    prepared, ids = to_requests(signal, events)
    for request in prepared:
        assert post(collector.url, request.SerializeToString(), path=PATHS[signal])
    return ids


def test_counts_are_exact_though_many_send_at_once(otelcol, tmp_path):
    """2,000 starts of one kind within seconds, from eight senders: Prometheus has each of them, and no other number."""
    with ExitStack() as started:
        prometheus = started.enter_context(Prometheus(tmp_path))
        # There is no Loki here, so what is meant for it has to find room.
        more = [*SOON, "--config", "yaml:exporters::otlp_http/loki::sending_queue::queue_size: 10000"]
        environ = prometheus.environ()
        collector = KitCollector(otelcol, tmp_path / "one", "guard", "grafana", environ=environ, more=more)
        started.enter_context(collector)
        with ThreadPoolExecutor(8) as senders:
            list(senders.map(lambda events: send_over_http(collector, "log", events), [EVENTS[:1] * 250] * 8))

        def counted():
            return [float(series["value"][1]) for series in prometheus.query("sum(tbot_starts_total)")]

        poll_until(lambda: counted() == [2000.0], waiting_for="2000 starts")
        # A later one shows that the number had not gone beyond.
        send_over_http(collector, "log", EVENTS[:1])
        poll_until(lambda: counted() != [2000.0], waiting_for="one more")

        assert [2001.0] == counted()


class Names(threading.Thread):
    """A DNS server on loopback that knows *addresses* for every name, and nothing but addresses."""

    def __init__(self, addresses):
        super().__init__(daemon=True)
        self._addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self):
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), sender)

    def end(self):
        """Ends the thread."""
        self._socket.sendto(b"", self._socket.getsockname())
        self.join()
        self._socket.close()

    def _answer(self, query):
        # Source: RFC 1035, section 4: a header of 12 bytes, then the question: labels, type, class.
        question = query[12 : query.index(b"\0", 12) + 5]
        is_address = question[-4:] == b"\0\x01\0\x01"
        records = [b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(text) for text in self._addresses]
        records = records if is_address else []
        return query[:2] + b"\x85\x80\0\x01" + len(records).to_bytes(2) + b"\0\0\0\0" + question + b"".join(records)


@pytest.mark.skipif(sys.platform != "linux", reason="other loopback addresses than 127.0.0.1 are Linux's")
def test_an_agent_spreads_over_the_gateways_of_one_name(otelcol, tmp_path):
    """Two gateways behind one name both get events of one agent, and together all of them."""
    names = Names(["127.0.0.2", "127.0.0.3"])
    names.start()
    port = find_free_port()
    with ExitStack() as started:
        started.callback(names.end)
        prometheus = started.enter_context(Prometheus(tmp_path))
        for name, address in (("one", "127.0.0.2"), ("two", "127.0.0.3")):
            environ = {"TBOT_GATEWAY_LISTEN": f"{address}:{port}", "TBOT_INSTANCE": name, **prometheus.environ()}
            files = ("guard", "grafana", "gateway", "gateway-grafana")
            started.enter_context(KitCollector(otelcol, tmp_path / name, *files, environ=environ, more=SOON))
        target = {"TBOT_GATEWAY": f"dns://{names.address}/gateways.example:{port}"}
        agent = started.enter_context(KitCollector(otelcol, tmp_path / "agent", "guard", "agent", environ=target))
        sent = 0

        def has_counted(starts):
            series = prometheus.query("sum by (instance) (tbot_starts_total)")
            shares = {one["metric"]["instance"]: float(one["value"][1]) for one in series}
            return shares if sum(shares.values()) == starts else None

        shares = {}
        while len(shares) < 2:
            assert sent < 200, shares
            sent += len(send_over_http(agent, "log", EVENTS[:1]))
            shares = poll_until(partial(has_counted, sent), waiting_for=f"{sent} starts")

    assert {"one", "two"} == set(shares)
    assert sent == sum(shares.values())


@pytest.mark.parametrize("name", ["jaeger", "grafana"])
def test_spans_are_seen_in_jaeger(name, otelcol, tmp_path):
    """Each start is a trace of one span, with the documented attributes and nothing of a host."""
    with Jaeger(tmp_path) as jaeger:
        folder = tmp_path / "collector"
        with KitCollector(otelcol, folder, "guard", name, environ=jaeger.environ()) as collector:
            sent = send_over_http(collector, "span", EVENTS)
            assert answers(collector.health)
            assert "otelcol_" in requests.get(collector.telemetry, timeout=60).text

            def find():
                return jaeger.get("/api/traces", service="tbot", limit=100, lookback="1h")["data"] or []

            traces = poll_until(
                lambda: found if len(found := find()) == len(EVENTS) else None, waiting_for="the traces"
            )
    spans = [span for trace in traces for span in trace["spans"]]
    tags = [{tag["key"]: tag["value"] for tag in span["tags"]} for span in spans]
    processes = [process for trace in traces for process in trace["processes"].values()]

    assert sorted(sent) == sorted(found["session.id"] for found in tags)
    assert {"tbot.start"} == {span["operationName"] for span in spans}
    documented = {attribute.key for attribute in ATTRIBUTES} | {"otel.scope.name", "otel.scope.version", "span.kind"}
    assert {key for found in tags for key in found} <= documented
    resource = set(describe_resource(is_local=True)) - {"service.name"}
    assert {tag["key"] for process in processes for tag in process["tags"]} <= resource
