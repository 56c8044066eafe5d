"""Asks the dashboards' queries as Grafana and its data source plugins do, and sends the events they count."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import requests
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub

from otel_tbot._version import __version__
from otel_tbot.event import EVENT_NAME, TbotStart
from tests.support.backends import Loki, VictoriaLogs
from tools.dashboards import STORES, list_panels, read_dashboards
from tools.panels import EVENTS, REMOTE

_VARIABLE = re.compile(r"\$\{(\w+):(\w+)\}")
_HOUR_SECONDS = 3600
ALL_VALUES = {store.name: store.to_all_value() for store in STORES}


def send_events(url: str, events: Sequence[tuple[Mapping[str, Any], bool]]) -> None:
    """Sends each event, as (fields, whether it was made on tbot's machine), to a collector.

    It is sent over OTLP/HTTP if *url* is a URL, and over gRPC if it is an address.
    """
    for body in (_to_request(fields, is_local=is_local) for fields, is_local in events):
        if url.startswith("http"):
            requests.post(f"{url}/v1/logs", json=body, timeout=60).raise_for_status()
        else:
            with grpc.insecure_channel(url) as channel:
                LogsServiceStub(channel).Export(ParseDict(body, ExportLogsServiceRequest()), timeout=60)


def _to_request(fields: Mapping[str, Any], *, is_local: bool) -> dict[str, Any]:
    attributes = TbotStart(**fields).attributes()
    platform = {"os.type": "linux", "host.arch": "amd64"} if is_local else {}
    record = {
        "timeUnixNano": f"{int(time.time())}000000000",
        "severityNumber": 9,
        "severityText": "INFO",
        "eventName": EVENT_NAME,
        "body": {"stringValue": EVENT_NAME},
        "attributes": _to_attributes(attributes),
    }
    scope = {"scope": {"name": "otel_tbot", "version": __version__}, "logRecords": [record]}
    resource = {"attributes": _to_attributes({"service.name": "tbot", **platform})}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}


def list_known_events() -> list[tuple[dict[str, Any], bool]]:
    """Returns the known events, each with whether it was made on tbot's machine."""
    return [(dict(fields), number < len(EVENTS) - REMOTE) for number, fields in enumerate(EVENTS)]


def _to_attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
    ]


def to_sent(expression: str, chosen: Mapping[str, Sequence[str]], all_value: str) -> str:
    """Returns *expression* with its variables replaced: *chosen* has the values of those that are not at "All"."""

    def replace(found: re.Match[str]) -> str:
        name, form = found.groups()
        values = chosen.get(name)
        if not values:
            return all_value
        if form == "doublequote":
            return ",".join(f'"{value}"' for value in values)
        if form == "regex":
            escaped = [re.sub(r"([\\^$*+?.()|\[\]{}/])", r"\\\1", value) for value in values]
            return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        assert form == "raw", form
        return values[0]

    sent = _VARIABLE.sub(replace, expression)
    return sent.replace("$__range", "3600s").replace("$__interval", "3600s").replace("$__rate_interval", "60s")


def read_panels(backend: VictoriaLogs | Loki, **chosen: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns what each panel of events shows of the last hour, in the form of `tools.panels.EXPECTED`."""
    name = "VictoriaLogs" if isinstance(backend, VictoriaLogs) else "Loki"
    ask = _ask_victorialogs if isinstance(backend, VictoriaLogs) else _ask_loki
    shown: dict[str, dict[str, float]] = {}
    for panel in list_panels(read_dashboards()[name]):
        if panel["datasource"]["uid"] != "${events}":
            continue
        values: dict[str, float] = {}
        for target in panel["targets"]:
            for key, value in ask(backend, target, to_sent(target["expr"], chosen, ALL_VALUES[name])):
                values[key] = round(values.get(key, 0) + value, 6)
        shown[panel["title"]] = values
    return shown


def _ask_victorialogs(backend: VictoriaLogs, target: dict[str, Any], query: str) -> list[tuple[str, float]]:
    # Source: the data source plugin 0.34, pkg/plugin/query.go: one path for each type of query.
    now = int(time.time()) + 1
    start = now - _HOUR_SECONDS
    if target["queryType"] == "instant":
        lines = backend.query_logs(query, start=start, end=now, limit=target["maxLines"])
        return [(line["_msg"], 1) for line in lines]
    if target["queryType"] == "statsRange":
        found = backend.get("/select/logsql/stats_query_range", query=query, start=start, end=now, step="60s")
    else:
        found = backend.get("/select/logsql/stats_query", query=f"_time:[{start}, {now}] {query}", time=now)
    return _to_series(target, found["data"]["result"])


def _ask_loki(backend: Loki, target: dict[str, Any], query: str) -> list[tuple[str, float]]:
    now = int(time.time()) + 1
    if query.startswith("{"):
        found = backend.get("/loki/api/v1/query_range", query=query, since="1h", limit=target["maxLines"])
        return [(line, 1) for stream in found["data"]["result"] for _, line in stream["values"]]
    return _to_series(target, backend.query(query, time=now))


def _to_series(target: dict[str, Any], result: list[dict[str, Any]]) -> list[tuple[str, float]]:
    series = []
    for one in result:
        legend = re.sub(
            r"\{\{(.+?)\}\}", lambda found, one=one: one["metric"].get(found.group(1), ""), target["legendFormat"]
        )
        values = one.get("values") or [one["value"]]
        series += [(legend, float(value)) for _, value in values]
    return series
