"""Runs an application that records the event among others: `python -m tests.support.application WAY SIGNAL SESSION_ID`.

Its resource, scope, span, baggage, bodies and attributes all hold CANARY; `run_application` starts it in each way that
OpenTelemetry Python offers.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.processes import MEASURED

CANARY = "canary-8d1f"
WAYS = ("library", "plug-in", "declarative")
ORDINARY = "ordinary"
"""OpenTelemetry's own exporter, which shows what an application's pipeline sends without the plug-in."""

_REVEALING = f"host.name={CANARY},k8s.cluster.name={CANARY},k8s.pod.name={CANARY},service.instance.id={CANARY}"


def main(way: str, signal: str, session_id: str) -> None:
    """Records a `tbot.start` of *session_id* as *signal*, and other records, inside a span with baggage."""
    from opentelemetry import baggage, context, trace
    from opentelemetry._logs import LogRecord, get_logger
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
    from opentelemetry.instrumentation.requests import RequestsInstrumentor

    from otel_tbot import TbotStart, emit

    if os.environ.get("OTEL_TBOT_TEST_LOG") == "1":
        # Everything that otel-tbot logs, on stderr.
        logging.getLogger("otel_tbot").setLevel(logging.DEBUG)
        logging.getLogger("otel_tbot").addHandler(logging.StreamHandler())
    # Without instrumentation, which sends trace and baggage along, their absence would prove nothing.
    if not (
        RequestsInstrumentor().is_instrumented_by_opentelemetry
        and GrpcInstrumentorClient().is_instrumented_by_opentelemetry
    ):
        raise RuntimeError("requests or grpc is not instrumented")
    event = TbotStart(run_mode="one-shot", version="18.4.1", join_type="iam", session_id=session_id)
    attributes = {**event.attributes(), CANARY: CANARY}
    context.attach(baggage.set_baggage(CANARY, CANARY))
    tracer, logger = trace.get_tracer(CANARY), get_logger(CANARY)
    with tracer.start_as_current_span(CANARY):
        logger.emit(LogRecord(event_name=CANARY, body=CANARY))
        if way == "library":
            emit(event)
        elif signal == "log":
            logger.emit(LogRecord(event_name="tbot.start", body=CANARY, attributes=attributes))
        else:
            with tracer.start_as_current_span("tbot.start", attributes=attributes) as span:
                span.set_status(trace.StatusCode.ERROR, CANARY)
                span.add_event(CANARY)


def run_application(  # one row of a table
    way: str,
    *,
    signal: str,
    protocol: str,
    url: str,
    session_id: str,
    folder: Path,
    consent: str | None = "1",
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the application to its end, in an environment that reveals a host; it sends *signal* to *url*."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_RESOURCE_ATTRIBUTES": _REVEALING,
        "OTEL_SERVICE_NAME": CANARY,
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "host,process,os,otel",
        "OTEL_PROPAGATORS": "baggage,tracecontext",
        **MEASURED,
        **(more or {}),
    }
    if consent is not None:
        environ["TELEPORT_ANONYMOUS_TELEMETRY"] = consent
    if way == "declarative":
        path = folder / "otel.yaml"
        path.write_text(json.dumps(_to_configuration(signal, protocol, url)))
        environ["OTEL_CONFIG_FILE"] = str(path)
    else:
        exporters = {"plug-in": "tbot", ORDINARY: "otlp"}
        environ |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_TBOT_SIGNAL": signal,
            "OTEL_TBOT_TIMEOUT": "60000",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "OTEL_LOGS_EXPORTER": exporters.get(way, "none") if signal == "log" else "none",
            "OTEL_TRACES_EXPORTER": exporters.get(way, "none") if signal == "span" else "none",
        }
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    command = [instrument, sys.executable, "-m", "tests.support.application", way, signal, session_id]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=300)


def _to_configuration(signal: str, protocol: str, url: str) -> dict[str, object]:
    """Returns a file for declarative configuration; JSON is YAML."""
    path = {"log": "/v1/logs", "span": "/v1/traces"}[signal] if protocol == "http/protobuf" else ""
    exporter = {
        "tbot": {
            "protocol": protocol,
            "endpoint": url + path,
            "headers": [{"name": "x-token", "value": "a b"}],
            "headers_list": "x-more=1",
            "timeout": 60000,
            "compression": "gzip",
        }
    }
    provider = {"processors": [{"batch": {"exporter": exporter}}]}
    return {
        "file_format": "1.0",
        "resource": {
            "attributes": [{"name": "host.name", "value": CANARY}],
            "detection/development": {"detectors": [{"host": {}}, {"process": {}}]},
        },
        ("logger_provider" if signal == "log" else "tracer_provider"): provider,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
