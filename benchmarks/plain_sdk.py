"""Sends one log record through OpenTelemetry's SDK, as people would without otel-tbot."""

import sys

from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

ATTRIBUTES = {
    "tbot.run_mode": "one-shot",
    "tbot.version": "18.4.1",
    "tbot.join_type": "token",
    "tbot.destinations_other": 0,
    "tbot.destinations_database": 1,
    "tbot.destinations_kubernetes": 0,
    "tbot.destinations_application": 0,
    "session.id": "6d0b2c7e-93c4-4c7b-9d2a-0f2b8a1c5e11",
}


def send(protocol: str) -> None:
    """Builds the pipeline, sends one record and shuts it down."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    else:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # type: ignore[assignment]
    provider = LoggerProvider(Resource.create({"service.name": "tbot"}), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    provider.get_logger("plain").emit(LogRecord(event_name="tbot.start", body="tbot.start", attributes=ATTRIBUTES))
    provider.shutdown()


if __name__ == "__main__":
    send(sys.argv[1])
