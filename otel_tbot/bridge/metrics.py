"""The bridge's own health: its counts go in, OpenTelemetry metrics come out, on a resource of the bridge's own.

Only where OTEL_METRICS_EXPORTER asks for them. They never hold anything of a report, a client or a collector.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_tbot._version import __version__
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from otel_tbot.bridge.application import Bridge

EXPORTER_VARIABLE: Final = "OTEL_METRICS_EXPORTER"
PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

RECEIVED: Final = "otel_tbot.bridge.reports.received"
ACCEPTED: Final = "otel_tbot.bridge.reports.accepted"
REJECTED: Final = "otel_tbot.bridge.reports.rejected"
WAITING: Final = "otel_tbot.bridge.reports.waiting"
EXPORT_DURATION: Final = "otel_tbot.bridge.export.duration"
METRICS: Final = {
    RECEIVED: "Reports that reached the service, whatever became of them.",
    ACCEPTED: "Reports whose event the collector accepted.",
    REJECTED: "Reports that were answered with an error, by `reason`.",
    WAITING: "Reports that wait for their export.",
    EXPORT_DURATION: "Seconds that the export of a group took, by `outcome`.",
}

logger = logging.getLogger("otel_tbot")


def start(bridge: "Bridge", environ: Mapping[str, str]) -> Callable[[], None]:
    """Starts the metrics of *bridge*; what ends them, with a last export. An exporter that is none is a warning."""
    readers = [reader for name in environ[EXPORTER_VARIABLE].split(",") if (reader := _build_reader(name, environ))]
    if not readers:
        return lambda: None
    resource = Resource.create({"service.name": "otel-tbot-bridge", "service.version": __version__})
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    meter = provider.get_meter("otel_tbot", __version__)
    counts = bridge.counts

    def observe(count: Callable[[], int]) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        return [lambda _options: [Observation(count())]]

    def observe_rejected(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"reason": reason}) for reason, count in counts.rejected.items()]

    meter.create_observable_counter(RECEIVED, observe(lambda: counts.received), "{report}", METRICS[RECEIVED])
    meter.create_observable_counter(ACCEPTED, observe(lambda: counts.accepted), "{report}", METRICS[ACCEPTED])
    meter.create_observable_counter(REJECTED, [observe_rejected], "{report}", METRICS[REJECTED])
    meter.create_observable_gauge(WAITING, observe(lambda: bridge.waiting), "{report}", METRICS[WAITING])
    duration = meter.create_histogram(EXPORT_DURATION, "s", METRICS[EXPORT_DURATION])

    def note_export(seconds: float, outcome: Outcome) -> None:
        duration.record(seconds, {"outcome": outcome.value})

    counts.on_export = note_export
    return lambda: provider.shutdown(timeout_millis=1000)


def _build_reader(name: str, environ: Mapping[str, str]) -> MetricReader | None:
    """The reader of one exporter that OTEL_METRICS_EXPORTER names, None where there is none of the name."""
    name = name.strip()
    if name in ("", "none"):
        return None
    if name == "otlp":
        protocol = next(
            (environ[variable] for variable in PROTOCOL_VARIABLES if environ.get(variable)), "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = importlib.metadata.entry_points(group="opentelemetry_metrics_exporter", name=name)
    try:
        exporter = next(iter(found)).load()()
        return exporter if isinstance(exporter, MetricReader) else PeriodicExportingMetricReader(exporter)
    except Exception as error:  # noqa: BLE001  # one exporter of somebody's: events do not wait for it
        logger.warning("%s: an exporter cannot be used: %s", EXPORTER_VARIABLE, type(error).__name__)
        return None
