"""Builds the Grafana dashboard of the starts, once for VictoriaLogs and once for Loki.

`python -m tools.generate` writes the two files. Both have the same panels, which ask the same questions; each store
turns a question into its own query language. Counts come from the stored events themselves, so they stay right when a
collector restarts; Prometheus is asked for the health of bridges and collectors only.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import bargauge, common, logs, loki, piechart, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import piechart as piechart_models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    FieldColorModeId,
    GridPos,
    Panel,
    VariableModel,
    VariableOption,
    VariableRefresh,
)
from typing_extensions import override

from otel_tbot.event import ATTRIBUTES, OTHER
from tools import ROOT

FOLDER: Final = ROOT / "collector-config" / "dashboards"

UNKNOWN: Final = "unknown"
NO_HELPER: Final = "no helper"
"""Helpers have no spaces in their names, so this cannot be one."""

FILLED: Final = {
    "tbot.version": UNKNOWN,
    "tbot.join_type": UNKNOWN,
    "tbot.helper": NO_HELPER,
    "tbot.helper_version": UNKNOWN,
    "os.type": UNKNOWN,
    "host.arch": UNKNOWN,
}
"""Each fact that an event may lack, and what the panels show instead."""

FILTERS: Final = {
    "version": "tbot.version",
    "join_method": "tbot.join_type",
    "run_mode": "tbot.run_mode",
    "helper": "tbot.helper",
}
"""Each variable of the dashboard that filters events, and the attribute it filters by."""

SERVICES: Final = {
    "Database Service": "tbot.destinations_database",
    "Kubernetes Service": "tbot.destinations_kubernetes",
    "Application Service": "tbot.destinations_application",
    "other": "tbot.destinations_other",
}


def _list_filled(by: Sequence[str]) -> list[str]:
    """Returns the attributes that a query filters or groups by and that an event may lack."""
    return [attribute for attribute in FILLED if attribute in FILTERS.values() or attribute in by]


_METRICS: Final = DataSourceRef(type_val="prometheus", uid="${metrics}")
_MAX_SERIES: Final = 20
_MAX_EVENTS: Final = 500
_EVENTS_PANEL_ID: Final = 100
_NO_STARTS: Final = "No starts in this time range"
_OTHER_NOTE: Final = (
    f"`{OTHER}` stands for a value that the rules of the event do not allow: the start counts, the text is not sent."
)
_UNKNOWN_NOTE: Final = f"`{UNKNOWN}`: the start did not report it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one query asks of the stored events.

    It counts starts, or sums up *total_of*, or takes its *mean_of* over all starts; per combination of the attributes
    in *by*. The series are named by *legend*, or by the values of *by*.
    """

    by: tuple[str, ...] = ()
    total_of: str = ""
    mean_of: str = ""
    legend: str = ""
    is_over_time: bool = False
    reported_only: str = ""


class Store(ABC):
    """An event store: its data source, and its queries."""

    name: str
    plugin: str

    @property
    def source(self) -> DataSourceRef:
        """Returns a reference to the data source that the viewer chooses."""
        return DataSourceRef(type_val=self.plugin, uid="${events}")

    @property
    def file_name(self) -> str:
        """Returns the name of the dashboard's file."""
        return f"tbot-starts-{self.name.lower()}.json"

    @abstractmethod
    def to_label(self, attribute: str) -> str:
        """Returns the store's name of an attribute."""

    @abstractmethod
    def to_query(self, question: Question) -> str:
        """Returns the query that answers *question*."""

    @abstractmethod
    def to_events_query(self) -> str:
        """Returns the query that lists the events, one line each."""

    @abstractmethod
    def to_target(self, question: Question) -> Builder[Dataquery]:
        """Returns the query of a panel."""

    @abstractmethod
    def to_events_target(self) -> Builder[Dataquery]:
        """Returns the query of the panel that lists the events."""

    @abstractmethod
    def to_open_filter(self, variable: str, label: str, description: str) -> Builder[VariableModel]:
        """Returns the variable that filters by an attribute whose values are not known in advance."""

    @abstractmethod
    def to_all_value(self) -> str:
        """Returns what a filter is set to if it lets everything pass."""

    def to_legend(self, question: Question) -> str:
        """Returns the name of the series, with placeholders for their labels."""
        return question.legend or " ".join(f"{{{{{self.to_label(attribute)}}}}}" for attribute in question.by)


@dataclass(kw_only=True)
class _Target(Dataquery, Builder[Dataquery]):
    """A query of a data source that the SDK does not know: its JSON, as Grafana stores it."""

    ref_id: str = ""
    body: dict[str, object]

    @override
    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        """Returns what the SDK's encoder writes."""
        return {"refId": self.ref_id, **self.body}


class VictoriaLogs(Store):
    """VictoriaLogs, asked in LogsQL through its data source plugin."""

    name = "VictoriaLogs"
    plugin = "victoriametrics-logs-datasource"

    @override
    def to_label(self, attribute: str) -> str:
        return attribute

    def _to_events(self, by: Sequence[str] = ()) -> str:
        filled = " | ".join(
            f'format if ({attribute}:="") "{FILLED[attribute]}" as {attribute}' for attribute in _list_filled(by)
        )
        filters = " ".join(f"{attribute}:in(${{{name}:doublequote}})" for name, attribute in FILTERS.items())
        return f'event_name:="tbot.start" | {filled} | filter {filters}'

    @override
    def to_query(self, question: Question) -> str:
        query = self._to_events(question.by)
        if question.reported_only:
            query += f' {question.reported_only}:!="{FILLED[question.reported_only]}"'
        by = f"by ({', '.join(question.by)}) " if question.by else ""
        if question.total_of or question.mean_of:
            function = f"sum({question.total_of})" if question.total_of else f"avg({question.mean_of})"
            # Without any event the sum is NaN: then there is nothing to show.
            return f'{query} | stats {by}{function} as destinations | filter destinations:!="NaN"'
        query += f" | stats {by}count() as starts"
        if question.by and not question.is_over_time:
            query += f" | sort by (starts desc) limit {_MAX_SERIES}"
        return query

    @override
    def to_events_query(self) -> str:
        line = (
            "<tbot.run_mode> tbot <tbot.version>, join method <tbot.join_type>, helper <tbot.helper>"
            f' | replace ("helper {NO_HELPER}", "{NO_HELPER}") at _msg'
        )
        text, _, rest = line.partition(" | ")
        return f'{self._to_events()} | format "{text}" as _msg | {rest} | sort by (_time desc)'

    @override
    def to_target(self, question: Question) -> Builder[Dataquery]:
        return _Target(
            body={
                "datasource": self.source,
                "editorMode": "code",
                "expr": self.to_query(question),
                "legendFormat": self.to_legend(question),
                "queryType": "statsRange" if question.is_over_time else "stats",
            }
        )

    @override
    def to_events_target(self) -> Builder[Dataquery]:
        body = {"datasource": self.source, "editorMode": "code", "expr": self.to_events_query()}
        return _Target(body={**body, "maxLines": _MAX_EVENTS, "queryType": "instant"})

    @override
    def to_open_filter(self, variable: str, label: str, description: str) -> Builder[VariableModel]:
        attribute = FILTERS[variable]
        query: dict[str, object] = {
            "field": attribute,
            "limit": 1000,
            "query": f'event_name:="tbot.start" | format if ({attribute}:="") "{FILLED[attribute]}" as {attribute}',
            "refId": variable,
            "type": "fieldValue",
        }
        return (
            builders.QueryVariable(variable)
            .label(label)
            .description(description)
            .datasource(self.source)
            .query(query)
            .multi(True)
            .include_all(True)
            .all_value(self.to_all_value())
            .current(_ALL)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )

    @override
    def to_all_value(self) -> str:
        return "*"


class Loki(Store):
    """Loki, asked in LogQL. It keeps the attributes as structured metadata, with _ for each dot."""

    name = "Loki"
    plugin = "loki"

    @override
    def to_label(self, attribute: str) -> str:
        return attribute.replace(".", "_")

    def _to_events(self, by: Sequence[str] = ()) -> str:
        filled = ", ".join(
            f'{self.to_label(attribute)}=`{{{{ or .{self.to_label(attribute)} "{FILLED[attribute]}" }}}}`'
            for attribute in _list_filled(by)
        )
        # The open filters hold a regular expression, which goes into the query as it is; the others hold values.
        formats = {name: "raw" if name in ("version", "helper") else "regex" for name in FILTERS}
        filters = " | ".join(
            f"{self.to_label(attribute)}=~`${{{name}:{formats[name]}}}`" for name, attribute in FILTERS.items()
        )
        return f'{{service_name="tbot"}} |= "tbot.start" | label_format {filled} | {filters}'

    @override
    def to_query(self, question: Question) -> str:
        events = self._to_events(question.by)
        if question.reported_only:
            events += f' | {self.to_label(question.reported_only)} != "{FILLED[question.reported_only]}"'
        by = ", ".join(self.to_label(attribute) for attribute in question.by)
        total = f"sum by ({by}) " if by else "sum"
        window = "$__interval" if question.is_over_time else "$__range"
        count = f"{total}(count_over_time({events} [{window}]))"
        if attribute := question.total_of or question.mean_of:
            destinations = f"{total}(sum_over_time({events} | unwrap {self.to_label(attribute)} [{window}]))"
            return destinations if question.total_of else f"{destinations} / {count}"
        return f"topk({_MAX_SERIES}, {count})" if question.by and not question.is_over_time else count

    @override
    def to_events_query(self) -> str:
        line = (
            "{{.tbot_run_mode}} tbot {{.tbot_version}}, join method {{.tbot_join_type}}, "
            f'{{{{ if eq .tbot_helper "{NO_HELPER}" }}}}{NO_HELPER}'
            "{{ else }}helper {{.tbot_helper}}{{ end }}"
        )
        return f"{self._to_events()} | line_format `{line}`"

    @override
    def to_target(self, question: Question) -> Builder[Dataquery]:
        return (
            loki.Dataquery()
            .datasource(self.source)
            .expr(self.to_query(question))
            .legend_format(self.to_legend(question))
            .query_type("range" if question.is_over_time else "instant")
        )

    @override
    def to_events_target(self) -> Builder[Dataquery]:
        target = loki.Dataquery().datasource(self.source).expr(self.to_events_query())
        return target.max_lines(_MAX_EVENTS).query_type("range")

    @override
    def to_open_filter(self, variable: str, label: str, description: str) -> Builder[VariableModel]:
        # Grafana can list the values of Loki's index labels only, and these are structured metadata.
        return (
            builders.TextBoxVariable(variable)
            .label(label)
            .description(f"{description} A regular expression over the whole value.")
            .default_value(self.to_all_value())
            .current(VariableOption(text=self.to_all_value(), value=self.to_all_value()))
        )

    @override
    def to_all_value(self) -> str:
        return ".+"


STORES: Final[tuple[Store, ...]] = (VictoriaLogs(), Loki())

_ALL: Final = VariableOption(selected=True, text="All", value="$__all")


def to_dashboard(store: Store) -> dict[str, Any]:
    """Returns the dashboard for *store*, as Grafana imports it."""
    built = (
        builders.Dashboard(f"tbot starts ({store.name})")
        .description("Starts of tbot, reported anonymously through otel-tbot: versions, join methods, destinations.")
        .tags(["otel-tbot", "teleport", "tbot"])
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-7d", "now")
        .refresh("1m")
        .timezone("browser")
        .variables(_build_variables(store))
        .with_row(builders.Row("Starts"))
    )
    for panel in (
        _build_total(store),
        _build_sparkline(store),
        _build_starts_over_time(store).grid_pos(GridPos(x=4, y=1, w=20, h=8)),
        _build_versions(store),
        _build_shares(store),
    ):
        built.with_panel(panel)
    built.with_row(builders.Row("How tbot is started, and what for"))
    for panel in (
        _build_join_methods(store),
        _build_helpers(store),
        _build_platforms(store),
        _build_means(store),
        _build_totals(store),
    ):
        built.with_panel(panel)
    built.with_row(builders.Row("Events"))
    built.with_panel(_build_events(store))
    built.with_row(builders.Row("Health of bridges and collectors (Prometheus)"))
    for health in HEALTH:
        built.with_panel(_build_health(health))
    finished = built.build()
    # Grafana assigns the numbers otherwise, and the links name one.
    for number, panel in enumerate(finished.panels or [], 1):
        panel.id_val = panel.id_val or number
        if isinstance(panel, Panel):
            for letter, target in zip("ABCDEFGH", panel.targets or [], strict=False):
                target.ref_id = letter  # type: ignore[attr-defined]  # each data source's query has it
    document: dict[str, Any] = json.loads(json.dumps(finished, cls=JSONEncoder))
    document["annotations"] = {"list": []}
    return document


def to_text(store: Store) -> str:
    """Returns the dashboard's file for *store*."""
    return json.dumps(to_dashboard(store), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_dashboards() -> dict[str, dict[str, Any]]:
    """Reads the dashboards that are in the repository, by the name of their store."""
    return {store.name: json.loads((FOLDER / store.file_name).read_text(encoding="utf-8")) for store in STORES}


def list_files() -> list[tuple[Path, str]]:
    """Returns each file of a dashboard, and what it should hold."""
    return [(FOLDER / store.file_name, to_text(store)) for store in STORES]


def list_panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the panels of a dashboard without its rows. Pure."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def to_computation(query: str) -> str:
    """Returns what a LogsQL query does after its filters. Pure."""
    return query.partition(" | filter ")[2].partition(" | ")[2]


def _build_variables(store: Store) -> list[Builder[VariableModel]]:
    values = {attribute.key: attribute.values for attribute in ATTRIBUTES}
    return [
        # Nothing is chosen, so Grafana chooses the first data source of the type.
        builders.DatasourceVariable("events").label("Events").type(store.plugin).regex("").current(VariableOption()),
        builders.DatasourceVariable("metrics").label("Metrics").type("prometheus").regex("").current(VariableOption()),
        store.to_open_filter("version", "Version", "The version of tbot."),
        _build_closed_filter(store, "join_method", "Join method", (*values["tbot.join_type"], UNKNOWN, OTHER)),
        _build_closed_filter(store, "run_mode", "Run mode", values["tbot.run_mode"]),
        store.to_open_filter(
            "helper", "Helper", f"What started tbot, such as an action; `{NO_HELPER}` if nothing did."
        ),
    ]


def _build_closed_filter(store: Store, name: str, label: str, values: Sequence[str]) -> Builder[VariableModel]:
    return (
        builders.CustomVariable(name)
        .label(label)
        .values(",".join(values))
        .options([_ALL, *(VariableOption(selected=False, text=value, value=value) for value in values)])
        .multi(True)
        .include_all(True)
        .all_value(store.to_all_value())
        .current(_ALL)
    )


def _build_link(store: Store, filters: dict[str, str], time: str = "${__url_time_range}") -> Builder[Any]:
    """Returns a link to the events behind a value: the event panel at *time*, filtered by the series' labels."""
    kept = [
        f"var-{name}=${{__field.labels[{json.dumps(store.to_label(filters[name]))}]}}"
        if name in filters
        else f"${{{name}:queryparam}}"
        for name in ("events", "metrics", *FILTERS)
    ]
    url = "&".join([f"?{time}", *kept, f"viewPanel=panel-{_EVENTS_PANEL_ID}"])
    return builders.DashboardLink("Show these events").url(url)


def _finish(panel: Any, store: Store, title: str, description: str, questions: Sequence[Question]) -> Any:
    """Gives *panel* what every panel of events has."""
    by = {name: attribute for name, attribute in FILTERS.items() if any(attribute in q.by for q in questions)}
    if any(question.by and not question.is_over_time for question in questions):
        description += f" At most {_MAX_SERIES} are shown, the most frequent ones."
    panel.title(title).description(description).datasource(store.source).no_value(_NO_STARTS)
    panel.data_links([_build_link(store, by)])
    for question in questions:
        panel.with_target(store.to_target(question))
    return panel


def _build_total(store: Store) -> Any:
    panel = (
        stat.Panel()
        .unit("none")
        .decimals(0)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .grid_pos(GridPos(x=0, y=1, w=4, h=4))
    )
    question = Question(legend="starts")
    return _finish(panel, store, "Starts", "How often tbot started in the time range shown.", [question])


def _build_sparkline(store: Store) -> Any:
    # Without a number: Loki counts into windows that end at each point, so their sum is not the exact count above.
    panel = (
        stat.Panel()
        .unit("none")
        .decimals(0)
        .text_mode(common_models.BigValueTextMode.NONE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .max_data_points(60)
        .interval("1m")
        .grid_pos(GridPos(x=0, y=5, w=4, h=4))
    )
    text = "How the number above came together over the time range; the chart next to it has the scale."
    return _finish(panel, store, "Trend of starts", text, [Question(legend="starts", is_over_time=True)])


def _build_bars(store: Store, title: str, description: str, question: Question, *, span: int) -> Any:
    panel = (
        timeseries.Panel()
        .unit("none")
        .decimals(0)
        .min(0)
        .draw_style(common_models.GraphDrawStyle.BARS)
        .fill_opacity(80)
        .line_width(0)
        .stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .max_data_points(60)
        .interval("1m")
        .height(8)
        .span(span)
    )
    return _finish(panel, store, title, description, [question])


def _build_starts_over_time(store: Store) -> Any:
    text = (
        "Starts in each interval. A one-shot tbot fetches its credentials once and ends; a daemon keeps running, and "
        "counts only when it starts."
    )
    question = Question(by=("tbot.run_mode",), is_over_time=True)
    return _build_bars(store, "Starts over time", text, question, span=20)


def _build_versions(store: Store) -> Any:
    text = f"Starts of each version of tbot in each interval: an upgrade shows here. {_UNKNOWN_NOTE} {_OTHER_NOTE}"
    question = Question(by=("tbot.version",), is_over_time=True)
    return _build_bars(store, "Versions over time", text, question, span=16)


def _build_shares(store: Store) -> Any:
    text = (
        "The share of each version in the starts of the last 24 hours, whatever the time range. These are starts, not "
        f"running tbots: a daemon counts on the day it starts. {_UNKNOWN_NOTE} {_OTHER_NOTE}"
    )
    panel = (
        piechart.Panel()
        .unit("none")
        .decimals(0)
        .pie_type(piechart_models.PieChartType.DONUT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .legend(
            piechart.PieChartLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.RIGHT)
            .values([piechart_models.PieChartLegendValues.PERCENT, piechart_models.PieChartLegendValues.VALUE])
        )
        .time_from("24h")
        .height(8)
        .span(8)
    )
    panel = _finish(panel, store, "Versions in the last 24 hours", text, [Question(by=("tbot.version",))])
    return panel.data_links([_build_link(store, {"version": "tbot.version"}, "from=now-24h&to=now")])


def _build_gauge(
    store: Store,
    title: str,
    description: str,
    questions: Sequence[Question],
    *,
    span: int,
    decimals: int = 0,
) -> Any:
    panel = (
        bargauge.Panel()
        .unit("none")
        .decimals(decimals)
        .min(0)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .color_scheme(builders.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .height(9)
        .span(span)
    )
    return _finish(panel, store, title, description, questions)


def _build_join_methods(store: Store) -> Any:
    text = f"Starts by the method with which tbot joined its cluster. {_UNKNOWN_NOTE} {_OTHER_NOTE}"
    return _build_gauge(store, "Join methods", text, [Question(by=("tbot.join_type",))], span=8)


def _build_helpers(store: Store) -> Any:
    text = (
        "Starts that a helper made, such as a GitHub Action, by helper and its version; starts without a helper are "
        f"left out. {_UNKNOWN_NOTE} {_OTHER_NOTE}"
    )
    question = Question(by=("tbot.helper", "tbot.helper_version"), reported_only="tbot.helper")
    return _build_gauge(store, "Helpers and their versions", text, [question], span=8)


def _build_platforms(store: Store) -> Any:
    text = (
        "Starts by operating system and processor architecture. They are known only if the event was made on tbot's "
        f"machine, by `run` or `emit`; for a report that reached a bridge they are `{UNKNOWN}`."
    )
    return _build_gauge(store, "Operating systems", text, [Question(by=("os.type", "host.arch"))], span=8)


def _build_means(store: Store) -> Any:
    text = (
        "How many destinations a start has on average, by the Teleport service they belong to; `other` are all that "
        "belong to none of the three, such as an identity file."
    )
    questions = [Question(mean_of=attribute, legend=service) for service, attribute in SERVICES.items()]
    return _build_gauge(store, "Destinations per start", text, questions, span=12, decimals=2)


def _build_totals(store: Store) -> Any:
    text = (
        "The destinations of all starts added up, by the Teleport service they belong to; `other` are all that belong "
        "to none of the three."
    )
    questions = [Question(total_of=attribute, legend=service) for service, attribute in SERVICES.items()]
    return _build_gauge(store, "Destinations in all", text, questions, span=12)


def _build_events(store: Store) -> Any:
    text = (
        f"The newest {_MAX_EVENTS} events of the time range, one line each; open a line to see its attributes. "
        f"{_UNKNOWN_NOTE} {_OTHER_NOTE}"
    )
    panel = (
        logs.Panel()
        .id(_EVENTS_PANEL_ID)
        .unit("none")
        .show_time(True)
        .enable_log_details(True)
        .wrap_log_message(False)
        .sort_order(common_models.LogsSortOrder.DESCENDING)
        .dedup_strategy(common_models.LogsDedupStrategy.NONE)
        .height(10)
        .span(24)
    )
    panel.title("Events").description(text).datasource(store.source).no_value(_NO_STARTS)
    return panel.with_target(store.to_events_target())


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A panel about bridges or collectors: its queries, each under the name of its series."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    empty: str


def _to_rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}[$__rate_interval]))"


def _to_collector_rate(metric: str, by: str = "") -> str:
    # Whether a collector's own counters end in _total depends on its settings and on the format of the scrape.
    return _to_rate(f'{{__name__=~"otelcol_{metric}(_total)?"}}', by)


HEALTH: Final = (
    Health(
        title="Bridges: reports a second",
        description="Reports of tbots that reached a bridge, those whose event the collector accepted, and those that "
        "were answered with an error, by reason. tbot does not repeat a report, so a rejected one is lost.",
        unit="reqps",
        queries={
            "received": _to_rate("otel_tbot_bridge_reports_received_total"),
            "accepted": _to_rate("otel_tbot_bridge_reports_accepted_total"),
            "rejected: {{reason}}": _to_rate("otel_tbot_bridge_reports_rejected_total", "reason"),
        },
        empty="No bridge is scraped",
    ),
    Health(
        title="Bridges: time of an export",
        description="How long the collector takes to accept a batch: the median, and what 99 of 100 batches stay "
        "below.",
        unit="s",
        queries={
            "99th percentile": "histogram_quantile(0.99, "
            f"{_to_rate('otel_tbot_bridge_export_duration_seconds_bucket', 'le')})",
            "median": f"histogram_quantile(0.5, {_to_rate('otel_tbot_bridge_export_duration_seconds_bucket', 'le')})",
        },
        empty="No bridge is scraped",
    ),
    Health(
        title="Collectors: events a second",
        description="Log records and spans that the collectors' receivers accepted and refused, before the guard.",
        unit="cps",
        queries={
            "accepted log records": _to_collector_rate("receiver_accepted_log_records"),
            "refused log records": _to_collector_rate("receiver_refused_log_records"),
            "accepted spans": _to_collector_rate("receiver_accepted_spans"),
            "refused spans": _to_collector_rate("receiver_refused_spans"),
        },
        empty="No collector is scraped",
    ),
    Health(
        title="Collectors: queues and failed sends",
        description="What waits in the queue of each exporter, and events a second that an exporter gave up. A queue "
        "that grows means that the store behind it is slow or away.",
        unit="short",
        queries={
            "waiting: {{exporter}}": "sum by (exporter) (otelcol_exporter_queue_size)",
            "failed log records a second: {{exporter}}": _to_collector_rate(
                "exporter_send_failed_log_records", "exporter"
            ),
            "failed spans a second: {{exporter}}": _to_collector_rate("exporter_send_failed_spans", "exporter"),
        },
        empty="No collector is scraped",
    ),
)


def _build_health(health: Health) -> Any:
    panel = (
        timeseries.Panel()
        .title(health.title)
        .description(health.description)
        .datasource(_METRICS)
        .unit(health.unit)
        .min(0)
        .no_value(health.empty)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .height(8)
        .span(12)
    )
    for legend, expression in health.queries.items():
        panel.with_target(prometheus.Dataquery().datasource(_METRICS).expr(expression).legend_format(legend).range())
    return panel
