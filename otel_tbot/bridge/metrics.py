"""Measures the bridge itself with OpenTelemetry metrics, on the bridge's own resource.

Prometheus reads them from /metrics; OTEL_METRICS_EXPORTER adds other exporters. The metrics never contain anything
from a report, a client or a collector.
"""

import importlib.metadata
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_PROMETHEUS_HOST, OTEL_EXPORTER_PROMETHEUS_PORT
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
    RECEIVED: "Reports that were answered.",
    ACCEPTED: "Reports whose event the collector accepted.",
    REJECTED: "Reports that were answered with an error, by `reason`.",
    WAITING: "Reports that wait for their export.",
    EXPORT_DURATION: "Seconds that the export of a batch took, by `outcome`.",
}

# In seconds; the SDK's own are for milliseconds. Source: semantic conventions, "http.client.request.duration".
_DURATION_BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# Source: OpenTelemetry's environment variables, "Prometheus Exporter".
_PROMETHEUS_PORT: Final = 9464

# Prometheus asks every few seconds; other clients must not make the bridge spend its time on this.
_CACHE_SECONDS: Final = 1.0

logger = logging.getLogger("otel_tbot")


class Metrics:
    """The metrics of one bridge, from now until `stop`.

    An exporter that cannot be used is a warning: events do not wait for it.
    """

    def __init__(self, bridge: "Bridge", environ: Mapping[str, str]) -> None:
        self._bridge = bridge
        names = {name.strip() for name in environ.get(EXPORTER_VARIABLE, "").split(",")} - {"", "none"}
        readers = _build_prometheus_readers(environ, has_port="prometheus" in names)
        readers += [reader for name in sorted(names - {"prometheus"}) if (reader := _build_reader(name, environ))]
        self._provider = MeterProvider(
            readers,
            resource=Resource.create({"service.name": "otel-tbot-bridge", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._text = b""
        self._read_at = float("-inf")
        meter = self._provider.get_meter("otel_tbot", __version__)
        meter.create_observable_counter(RECEIVED, [self._observe_received], "{report}", METRICS[RECEIVED])
        meter.create_observable_counter(ACCEPTED, [self._observe_accepted], "{report}", METRICS[ACCEPTED])
        meter.create_observable_counter(REJECTED, [self._observe_rejected], "{report}", METRICS[REJECTED])
        meter.create_observable_gauge(WAITING, [self._observe_waiting], "{report}", METRICS[WAITING])
        self._duration = meter.create_histogram(
            EXPORT_DURATION, "s", METRICS[EXPORT_DURATION], explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES
        )

    def read(self) -> bytes:
        """Returns the metrics as Prometheus reads them, at most a second old; b"" without the extra `bridge`."""
        now = time.monotonic()
        if now - self._read_at > _CACHE_SECONDS:
            try:
                from prometheus_client import REGISTRY, generate_latest
            except ImportError:
                return b""
            self._text = generate_latest(REGISTRY)
            self._read_at = now
        return self._text

    def record_export(self, seconds: float, outcome: Outcome) -> None:
        """Records how long the export of a batch took, and its outcome."""
        self._duration.record(seconds, {"outcome": outcome.value})

    def stop(self) -> None:
        """Exports a last time."""
        self._provider.shutdown(timeout_millis=1000)

    def _observe_received(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(self._bridge.counts.received)]

    def _observe_accepted(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(self._bridge.counts.accepted)]

    def _observe_rejected(self, _options: CallbackOptions) -> Iterable[Observation]:
        # A copy: this runs in the exporter's thread.
        return [Observation(count, {"reason": reason}) for reason, count in dict(self._bridge.counts.rejected).items()]

    def _observe_waiting(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(self._bridge.waiting)]


def _build_prometheus_readers(environ: Mapping[str, str], *, has_port: bool) -> list[MetricReader]:
    """Returns the reader for /metrics, none if the extra `bridge` is not installed.

    If *has_port*, opens the port too that OTEL_METRICS_EXPORTER=prometheus means. Not by that exporter itself: if the
    port is taken, it stays registered and logs a warning for each scrape.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server
    except ImportError:
        if has_port:
            logger.warning("%s: prometheus is not installed; install the extra `bridge`", EXPORTER_VARIABLE)
        return []
    if has_port:
        try:
            port = int(environ.get(OTEL_EXPORTER_PROMETHEUS_PORT) or _PROMETHEUS_PORT)
            start_http_server(port, environ.get(OTEL_EXPORTER_PROMETHEUS_HOST) or "localhost")
        except (OSError, ValueError, OverflowError):
            remedy = f"check {OTEL_EXPORTER_PROMETHEUS_HOST} and {OTEL_EXPORTER_PROMETHEUS_PORT}, or use /metrics"
            logger.warning("%s: prometheus cannot open its port; %s", EXPORTER_VARIABLE, remedy)
    return [PrometheusMetricReader()]


def _build_reader(name: str, environ: Mapping[str, str]) -> MetricReader | None:
    """Returns the reader of the exporter *name*, as OTEL_METRICS_EXPORTER has it, None if it cannot be used."""
    entry_point = name
    if name == "otlp":
        protocol = next(
            (environ[variable] for variable in PROTOCOL_VARIABLES if environ.get(variable)), "http/protobuf"
        )
        entry_point = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(importlib.metadata.entry_points(group="opentelemetry_metrics_exporter", name=entry_point))
    if not found:
        rule = "no exporter of that name is installed; use otlp, prometheus or none"
        logger.warning("%s: %s", EXPORTER_VARIABLE, rule)
        return None
    try:
        exporter = found[0].load()()
        return exporter if isinstance(exporter, MetricReader) else PeriodicExportingMetricReader(exporter)
    except Exception as error:  # noqa: BLE001  # another package's code: events do not wait for it
        logger.warning("%s: an exporter cannot be used: %s", EXPORTER_VARIABLE, type(error).__name__)
        return None
