import json
import re
import shutil
import subprocess

import pytest
import yaml

from otel_tbot.bridge.metrics import METRICS
from otel_tbot.event import ATTRIBUTES
from tests.support.checkout import ROOT, skip_or_fail
from tests.support.grafana import ALL_VALUES, to_sent
from tools.dashboards import FILTERS, HEALTH, STORES, list_panels, read_dashboards, to_text
from tools.panels import EXPECTED

CONFIG = ROOT / "collector-config"
DASHBOARDS = read_dashboards()
PANELS = [
    pytest.param(dashboard, panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in list_panels(dashboard)
]
EACH_PANEL = [pytest.param(one.values[1], id=one.id) for one in PANELS]
GRAMMAR = ROOT / "build" / "logql"


def walk(value):
    """Yields every object inside *value*."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


def list_variables(dashboard):
    """Returns the names of the dashboard's variables."""
    return {variable["name"] for variable in dashboard["templating"]["list"]}


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_no_data_source_is_fixed(dashboard):
    """Every data source is a variable, so that the dashboard shows something in any Grafana it is imported into."""
    sources = [value["datasource"] for value in walk(dashboard) if "datasource" in value]
    variables = {v["name"]: v["query"] for v in dashboard["templating"]["list"] if v["type"] == "datasource"}

    assert sources
    assert {(f"${{{name}}}", plugin) for name, plugin in variables.items()} == {(s["uid"], s["type"]) for s in sources}
    chosen = [v["current"]["value"] for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert ["", ""] == chosen
    assert "uid" not in dashboard
    assert not dashboard.get("id")


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_every_panel_explains_itself(panel):
    """A panel has a title, a description, a unit, and a text for "nothing to show"."""
    defaults = panel["fieldConfig"]["defaults"]

    assert panel["title"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert re.search(r"^No ", defaults["noValue"])
    assert all(target["legendFormat"] for target in panel["targets"] if panel["type"] != "logs")
    assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_a_panel_says_what_other_and_unknown_mean(panel):
    """Panels by version, join method or helper can show _OTHER and "unknown", and explain both."""
    shows_free_values = any(
        re.search(r"tbot.(?:version|join_type|helper)", target.get("legendFormat", "")) for target in panel["targets"]
    )

    assert not shows_free_values or ("`_OTHER`" in panel["description"] and "`unknown`" in panel["description"])


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_a_panel_says_that_it_shows_the_most_frequent_only(panel):
    """A query with a limit leaves values out, so the description says so; a chart over time has all."""
    has_limit = any(re.search(r"limit 20$|topk\(20,", target["expr"]) for target in panel["targets"])

    assert has_limit == ("At most 20 are shown" in panel["description"])


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_every_variable_of_a_query_exists(dashboard, panel):
    """Each query of events has the four filters, and each variable that a query or link names exists."""
    texts = [target["expr"] for target in panel["targets"]]
    texts += [link["url"] for link in panel["fieldConfig"]["defaults"].get("links", ())]
    named = {name for text in texts for name in re.findall(r"\$\{(\w+)[:}]", text)} - {"__url_time_range"}

    assert named <= list_variables(dashboard)
    if panel["datasource"]["uid"] == "${events}":
        assert all(set(FILTERS) <= set(re.findall(r"\$\{(\w+):", target["expr"])) for target in panel["targets"])


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_links_to_its_events(dashboard, panel):
    """A click on a value opens the event stream, with the value as its filter and the other filters kept."""
    if panel["datasource"]["uid"] != "${events}" or panel["type"] == "logs":
        assert "links" not in panel["fieldConfig"]["defaults"]
        return
    (events,) = [other for other in list_panels(dashboard) if other["type"] == "logs"]
    (link,) = panel["fieldConfig"]["defaults"]["links"]
    legend = set(re.findall(r"\{\{(.+?)\}\}", panel["targets"][0]["legendFormat"]))

    assert link["url"].endswith(f"&viewPanel=panel-{events['id']}")
    for name, attribute in FILTERS.items():
        labels = {attribute, attribute.replace(".", "_")} & legend
        wanted = f'var-{name}=${{__field.labels["{labels.pop()}"]}}' if labels else f"${{{name}:queryparam}}"
        assert wanted in link["url"].split("&")


def test_both_dashboards_have_the_same_panels():
    """Both event stores have the same panels, and for each panel of events the numbers are known."""
    shapes = [[(p["type"], p["title"], p["gridPos"]) for p in list_panels(d)] for d in DASHBOARDS.values()]

    assert shapes[0] == shapes[1]
    assert set(EXPECTED) | {health.title for health in HEALTH} == {title for _, title, _ in shapes[0]}


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_nothing_else_than_the_event_is_asked_for(dashboard):
    """Every attribute that a query names is one of the documented attributes, or of the documented resource."""
    known = {attribute.key for attribute in ATTRIBUTES} | {"os.type", "host.arch", "service.name", "tbot.start"}
    spelled = known | {key.replace(".", "_") for key in known}
    expressions = [target["expr"] for panel in list_panels(dashboard) for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"\b(?:tbot|os|host|service|session)[._]\w+", text)}

    assert named
    assert named <= spelled


def test_no_panel_overlaps_another():
    """Grafana lays the panels out as they are meant."""
    for dashboard in DASHBOARDS.values():
        cells = [
            (x, y)
            for panel in dashboard["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]

        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) == 23
        assert len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]})


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_the_files_are_what_the_definition_writes(store):
    """The same definition always writes the same bytes: `make docs-check` compares them."""
    assert to_text(store) == (CONFIG / "dashboards" / store.file_name).read_text(encoding="utf-8")


def test_the_health_row_asks_for_metrics_that_the_bridge_has():
    """A renamed metric of the bridge fails here, not in an empty panel."""
    asked = {
        name
        for health in HEALTH
        for query in health.queries.values()
        for name in re.findall(r"otel_tbot_bridge_\w+", query)
    }
    # Source: the OpenTelemetry specification's rules for names in Prometheus.
    names = {name.replace(".", "_") for name in METRICS}

    assert asked
    assert asked <= {f"{name}{ending}" for name in names for ending in ("_total", "_seconds_bucket")}


@pytest.fixture(scope="module")
def parse_logql():
    """A function that returns what Grafana's own grammar cannot parse in each of some queries."""
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed, so the queries for Loki are not parsed")
    if not (GRAMMAR / "node_modules").is_dir():
        skip_or_fail("Grafana's grammar of LogQL was not installed: run `make logql`, which needs npm")

    def parse(queries):
        finished = subprocess.run(
            [node, "parse.js"], input=json.dumps(queries), cwd=GRAMMAR, capture_output=True, text=True, check=True
        )
        return json.loads(finished.stdout)

    return parse


CHOICES = [
    {},
    {"version": ["18.4.1"], "join_method": ["github"], "run_mode": ["daemon"], "helper": ["gha:a/b"]},
    {"version": [r"1[78]\..+"], "join_method": ["bound_keypair", "unknown"], "helper": ["no helper"]},
]


@pytest.mark.parametrize("chosen", CHOICES, ids=["everything", "one value each", "several values"])
def test_grafana_s_grammar_parses_every_logql_query(chosen, parse_logql):
    """No query for Loki has a syntax error, whatever the filters are set to."""
    expressions = [
        target["expr"]
        for panel in list_panels(DASHBOARDS["Loki"])
        for target in panel["targets"]
        if panel["datasource"]["uid"] == "${events}"
    ]
    queries = [to_sent(expression, chosen, ALL_VALUES["Loki"]) for expression in expressions]

    assert [[]] * len(queries) == parse_logql(queries)
    assert queries
    assert not [query for query in queries if "$" in query]


@pytest.mark.parametrize(
    "query",
    ['sum(count_over_time({service_name="tbot"} |= [5m]))', '{service_name="tbot"} | label_format', "sum by ("],
)
def test_the_grammar_finds_errors(query, parse_logql):
    """The parser that finds no error above does find one here."""
    (found,) = parse_logql([query])

    assert found


def test_compose_starts_what_it_names():
    """Images are pinned, mounts exist, only loopback is reachable, and services wait until others are healthy."""
    services = yaml.safe_load((CONFIG / "compose.yaml").read_text())["services"]
    mounts = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", ())]

    assert {"collector", "prometheus", "jaeger", "victorialogs", "grafana", "loki"} == set(services)
    assert all(re.search(r":v?\d+\.\d+\.\d+$", service["image"]) for service in services.values())
    assert mounts
    assert not [mount for mount in mounts if not (CONFIG / mount).exists()]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))
    assert {"loki"} == {name for name, service in services.items() if "profiles" in service}
    # The images of these two have no program that could ask.
    assert set(services) - {"collector", "loki"} == {name for name, one in services.items() if "healthcheck" in one}
    waits = [(name, on, how) for name, one in services.items() for on, how in one.get("depends_on", {}).items()]
    assert {"service_healthy"} == {how["condition"] for _, _, how in waits}
    assert {"collector", "grafana"} == {name for name, _, _ in waits}
    assert all("healthcheck" in services[on] for _, on, _ in waits)
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert "tbot-starts-victorialogs.json" == home.rpartition("/")[2]


def test_compose_s_collector_takes_its_configuration(otelcol):
    """The real collector validates what compose.yaml starts it with."""
    collector = yaml.safe_load((CONFIG / "compose.yaml").read_text())["services"]["collector"]
    arguments = [argument.replace("/etc/otelcol/", f"{CONFIG}/") for argument in collector["command"]]
    environ = {name: value for name, value in collector["environment"].items() if "$" not in value}
    finished = subprocess.run(
        [otelcol, "validate", *arguments], env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    used = set(re.findall(r"\$\{env:(\w+)", (CONFIG / "grafana.yaml").read_text()))

    assert 0 == finished.returncode, finished.stderr
    assert set(collector["environment"]) <= used


def test_compose_provisions_each_data_source_that_the_dashboards_ask_for():
    """Grafana finds a data source for each variable, at the name of a service."""
    sources = yaml.safe_load((CONFIG / "grafana" / "datasources.yaml").read_text())["datasources"]
    services = yaml.safe_load((CONFIG / "compose.yaml").read_text())["services"]
    wanted = {v["query"] for d in DASHBOARDS.values() for v in d["templating"]["list"] if v["type"] == "datasource"}

    assert wanted | {"jaeger"} == {source["type"] for source in sources}
    assert {source["url"].split("/")[2].split(":")[0] for source in sources} <= set(services)
