import json
import re

import pytest

from otel_tbot.event import ATTRIBUTES, TbotStart
from otel_tbot.otlp.encoding import describe_resource
from tests.support.backends import Jaeger
from tests.support.checkout import ROOT
from tests.support.otelcol import KitCollector, is_up, send_over_http
from tests.support.polling import poll_until

EVENTS = [
    {"run_mode": "one-shot", "version": "18.4.1", "join_type": "github", "helper": "gha:a/b", "helper_version": "v2"},
    {"run_mode": "daemon", "version": "18.4.1", "join_type": "kubernetes", "destinations_kubernetes": 3},
    {"run_mode": "daemon"},
]
# Tags that Jaeger makes of the scope and the span's kind.
OF_THE_SPAN = {"otel.scope.name", "otel.scope.version", "span.kind"}


@pytest.mark.backends
@pytest.mark.parametrize("name", ["jaeger", "grafana"])
def test_each_start_is_a_trace_of_one_span_that_lasts_a_microsecond(name, otelcol, tmp_path):
    """Jaeger's API returns each start by service and by tags, with the documented attributes and nothing of a host."""
    with Jaeger(tmp_path) as jaeger:
        folder = tmp_path / "collector"
        with KitCollector(otelcol, folder, "guard", name, environ=jaeger.environ()) as collector:
            sent = send_over_http(collector, "span", EVENTS)
            assert is_up(collector.health)
            assert is_up(collector.telemetry)

            def find(**more):
                return jaeger.get("/api/traces", service="tbot", limit=100, lookback="1h", **more)["data"] or []

            poll_until(lambda: len(find()) == len(EVENTS), waiting_for="the traces")
            traces = find()
            by_version = find(tags='{"tbot.version":"18.4.1"}')
    spans = [span for trace in traces for span in trace["spans"]]
    tags = [{tag["key"]: tag["value"] for tag in span["tags"]} for span in spans]
    processes = [process for trace in traces for process in trace["processes"].values()]

    assert sorted(sent) == sorted(found["session.id"] for found in tags)
    assert {("tbot.start", 1)} == {(span["operationName"], span["duration"]) for span in spans}
    for span, found in zip(spans, tags, strict=True):
        digits = found["session.id"].replace("-", "")
        assert (digits, digits[16:]) == (span["traceID"], span["spanID"])
        assert not span["references"]
    assert 2 == len(by_version)
    documented = {attribute.key for attribute in ATTRIBUTES} | OF_THE_SPAN
    assert {key for found in tags for key in found} <= documented
    full = TbotStart(**EVENTS[0]).attributes()
    assert any(full.items() <= {**found, "session.id": full["session.id"]}.items() for found in tags)
    resource = describe_resource(is_local=True)
    assert [{tag["key"]: tag["value"] for tag in process["tags"]} for process in processes] == [
        {key: value for key, value in resource.items() if key != "service.name"}
    ] * len(processes)
    assert {"tbot"} == {process["serviceName"] for process in processes}


SEARCHES = dict(
    re.findall(r"^\| (.+?) \| `(tbot\..+)` \|$", (ROOT / "docs" / "how-to" / "jaeger.md").read_text(), re.MULTILINE)
)
FLEET = [
    {"run_mode": "one-shot", "version": "18.4.1", "join_type": "github", "helper": "gha:teleport-actions/auth"},
    {"run_mode": "daemon", "version": "18.4.1", "join_type": "github", "destinations_database": 2},
    {"run_mode": "daemon", "version": "_OTHER", "destinations_database": 1},
    {"run_mode": "one-shot"},
]


@pytest.mark.backends
def test_the_searches_of_the_page_find_what_they_are_for(otelcol, tmp_path):
    """Each row of the how-to's table finds its starts and no others, and a part of a value finds nothing."""
    found = {}
    with Jaeger(tmp_path) as jaeger:
        with KitCollector(otelcol, tmp_path / "collector", "guard", "jaeger", environ=jaeger.environ()) as collector:
            sent = send_over_http(collector, "span", FLEET)

            def search(text):
                tags = {"tags": json.dumps(dict(pair.split("=") for pair in text.split()))} if text else {}
                traces = jaeger.get("/api/traces", service="tbot", limit=100, lookback="1h", **tags)["data"] or []
                ids = {tag["value"] for one in traces for tag in one["spans"][0]["tags"] if tag["key"] == "session.id"}
                return [number for number, session_id in enumerate(sent) if session_id in ids]

            poll_until(lambda: len(search("")) == len(FLEET), waiting_for="the traces")
            found = {what: search(text) for what, text in SEARCHES.items()}
            part = search("tbot.version=18.4")

    assert {
        "one version": [0, 1],
        "the starts of a helper": [0],
        "one-shots that joined with GitHub": [0],
        "values that the rules of the event do not allow": [2],
        "starts with exactly two destinations of the Database Service": [1],
    } == found
    assert [] == part
