"""Checks which certificates the exporter plug-ins trust: as for `emit`, the operating system's if none are set."""

import subprocess
import sys

import pytest
import trustme

from tests.support.processes import MEASURED
from tests.support.tls import environ_of, tls_server

APPLICATION = """
import sys
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_tbot.exporters import TbotLogRecordExporter, TbotSpanExporter

attributes = {"tbot.run_mode": "daemon"}
if sys.argv[1] == "log":
    exporter, memory, provider = TbotLogRecordExporter(), InMemoryLogRecordExporter(), LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    provider.get_logger("x").emit(LogRecord(event_name="tbot.start", attributes=attributes))
    batch = memory.get_finished_logs()
else:
    exporter, memory, provider = TbotSpanExporter(), InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.get_tracer("x").start_span("tbot.start", attributes=attributes).end()
    batch = memory.get_finished_spans()
print(exporter.export(batch).name)
exporter.shutdown()
"""
"""Exports one event, and prints the result."""


def export(signal, environ):
    """Returns the result of an export in a process with *environ* and nothing else."""
    # An export that fails tries again until its timeout.
    environ = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_EXPORTER_OTLP_TIMEOUT": "60", **MEASURED, **environ}
    command = [sys.executable, "-c", APPLICATION, signal]
    finished = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120)
    return finished.stdout.strip()


@pytest.fixture
def authority(tmp_path):
    """Returns a company's authority, whose certificate is in the file company.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "company.pem")
    return authority


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_operating_system_s_certificates_are_trusted(protocol, signal, authority, tmp_path):
    """A company's authority in the system's certificates, here by SSL_CERT_FILE, is trusted."""
    with tls_server(protocol, authority) as server:
        environ = environ_of(server, protocol) | {"SSL_CERT_FILE": str(tmp_path / "company.pem")}

        assert "SUCCESS" == export(signal, environ)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_other_programs_certificates_are_not_trusted(protocol, authority, tmp_path):
    """Only the settings and the system decide, not variables of gRPC, requests or curl."""
    names = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    with tls_server(protocol, authority) as server:
        environ = environ_of(server, protocol) | dict.fromkeys(names, str(tmp_path / "company.pem"))

        assert "FAILURE" == export("log", environ | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"})


@pytest.mark.parametrize("trusted", ["variable", "system"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_client_s_certificate_is_shown(protocol, trusted, authority, tmp_path):
    """A receiver that asks for it gets it, whether a file is set for the receiver's authority or the system has it."""
    client = authority.issue_cert("client")
    client.private_key_pem.write_to_path(tmp_path / "key")
    client.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    name = {"variable": "OTEL_EXPORTER_OTLP_CERTIFICATE", "system": "SSL_CERT_FILE"}[trusted]
    with tls_server(protocol, authority, client_authority=authority) as server:
        environ = environ_of(server, protocol, CLIENT_KEY=tmp_path / "key", CLIENT_CERTIFICATE=tmp_path / "cert")

        assert "SUCCESS" == export("log", environ | {name: str(tmp_path / "company.pem")})


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_intermediate_certificate_is_an_anchor(protocol, authority, tmp_path):
    """A file with an intermediate authority and without its root is enough."""
    intermediate = authority.create_child_ca()
    intermediate.cert_pem.write_to_path(tmp_path / "intermediate.pem")
    with tls_server(protocol, intermediate) as server:
        environ = environ_of(server, protocol, CERTIFICATE=tmp_path / "intermediate.pem")

        assert "SUCCESS" == export("log", environ)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_secrets_of_a_connection_are_not_written(protocol, authority, tmp_path):
    """SSLKEYLOGFILE names a file that urllib3's own contexts open; requests 2.32.3 makes one when it is imported."""
    written = tmp_path / "secrets"
    written.touch()
    with tls_server(protocol, authority) as server:
        environ = environ_of(server, protocol, CERTIFICATE=tmp_path / "company.pem")

        assert "SUCCESS" == export("log", environ | {"SSLKEYLOGFILE": str(written)})
    assert [] == [line for line in written.read_text().splitlines() if not line.startswith("#")]
