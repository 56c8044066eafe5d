import re
import subprocess
import uuid

import pytest
import requests

from tests.collector.test_run import RESOURCE, SCOPE, attributes_of, report
from tests.collector.test_ways import parts_of, request_of
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.otelcol import Collector, OtelcolProcess, find_free_port, to_values
from tests.support.polling import poll_until
from tests.support.processes import CONSENT

REPORTS = 50_000
KILLS = 5

# Stores accepted events in a queue on disk and sends them on to the collector behind it.
_DURABLE = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
extensions:
  file_storage/queue: {{directory: "{folder}", create_directory: true}}
exporters:
  otlp_grpc/behind:
    endpoint: "127.0.0.1:{behind}"
    tls: {{insecure: true}}
    retry_on_failure: {{max_elapsed_time: 0s, initial_interval: 100ms}}
    sending_queue: {{storage: file_storage/queue, queue_size: 1000000, block_on_overflow: true}}
service:
  telemetry: {{metrics: {{level: none}}}}
  extensions: [file_storage/queue]
  pipelines:
    logs: {{receivers: [otlp], exporters: [otlp_grpc/behind]}}
"""


@pytest.fixture
def collector(otelcol, tmp_path):
    """The real collector."""
    with Collector(otelcol, tmp_path) as running:
        yield running


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_report_is_one_record_without_the_bridge_s_platform(protocol, signal, collector, reporter):
    """A reporter that needs only tbot's two variables: its report is one record, without os.type and host.arch."""
    session_id = str(uuid.uuid4())
    helper = {"_TBOT_TELEMETRY_HELPER": "gha:teleport-actions/auth", "_TBOT_TELEMETRY_HELPER_VERSION": "v2.0.1"}
    with BridgeProcess(collector.environ(protocol, signal) | {"OTEL_TBOT_TIMEOUT": "10000"}) as bridge:
        environ = CONSENT | helper | {"TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": bridge.url}
        finished = subprocess.run(
            report(reporter, session_id), env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        resource, scope, record = parts_of(request_of(collector, session_id))

    assert (0, f"ok {session_id}\n") == (finished.returncode, finished.stdout)
    bridge_resource = {key: value for key, value in RESOURCE.items() if key not in ("os.type", "host.arch")}
    assert bridge_resource == to_values(resource["attributes"])
    assert SCOPE == scope
    assert attributes_of(session_id) == to_values(record["attributes"])
    assert "" == bridge.written


def test_a_report_in_json_is_the_same_record(collector):
    """A report as curl would post it, in JSON, is one record."""
    session_id = str(uuid.uuid4())
    body = {"distinctId": session_id, "start": {"runMode": "RUN_MODE_DAEMON", "version": "18.4.1", "joinType": "iam"}}
    with BridgeProcess(collector.environ("http/protobuf", "log")) as bridge:
        answer = requests.post(bridge.url + PROCEDURE, json=body, timeout=60)
        _, _, record = parts_of(request_of(collector, session_id))

    assert (200, {}) == (answer.status_code, answer.json())
    assert {"daemon", "18.4.1", "iam", session_id} == {
        value for kind, value in to_values(record["attributes"]).values() if kind == "stringValue"
    }


def test_every_accepted_report_arrives_although_the_collector_is_killed(otelcol, reporter, tmp_path):
    """Of 50,000 reports over 64 connections, none that got OK is lost by five SIGKILLs of the collector.

    A report that got an error may have arrived too, and one that was in flight at a kill can arrive twice.
    """
    (tmp_path / "behind").mkdir()
    with Collector(otelcol, tmp_path / "behind") as behind:
        port = find_free_port()
        configuration = _DURABLE.format(port=port, behind=behind.ports["grpc"], folder=tmp_path / "queue")
        (tmp_path / "durable.yaml").write_text(configuration)
        durable = OtelcolProcess(otelcol, ["--config", str(tmp_path / "durable.yaml")], tmp_path, {})
        assert durable.start(), durable.log()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        with BridgeProcess(environ, is_measured=False) as bridge:
            each_path, totals_path = tmp_path / "each", tmp_path / "totals"
            command = [reporter, "load", "-address", bridge.url, "-count", str(REPORTS), "-connections", "64"]
            # Into a file: a pipe would stay open if an assertion fails.
            with (
                totals_path.open("w") as totals,
                subprocess.Popen([*command, "-each", str(each_path)], stdout=totals),
            ):
                for number in range(1, KILLS + 1):
                    least = number * REPORTS // (KILLS + 1) // 3
                    poll_until(
                        lambda least=least: len(session_ids_of(behind)) >= least,
                        waiting_for=f"{least} events behind the collector",
                        deadline_seconds=300,
                    )
                    durable.kill()
                    assert durable.start(), durable.log()
        each = [line.split() for line in each_path.read_text().splitlines()]
        accepted = {words[1] for words in each if words[0] == "ok"}
        poll_until(
            lambda: accepted <= set(session_ids_of(behind)),
            waiting_for="every accepted event",
            deadline_seconds=300,
        )
        arrived = session_ids_of(behind)
        durable.stop()
    twice = len(arrived) - len(set(arrived))
    failed = {words[2] for words in each if words[0] == "error"}
    counted = f"arrived in spite of an error: {len(failed & set(arrived))}, twice: {twice}"
    print(totals_path.read_text(), counted)  # noqa: T201  # for the log of the run

    assert REPORTS == len(each)
    assert accepted <= set(arrived)
    # The kills did cause errors, and at most the reports in flight at a kill arrived twice.
    assert failed
    assert twice <= KILLS * 64
    assert set(arrived) <= accepted | failed


def session_ids_of(collector):
    """Returns the session ids in a collector's file, in order; the last line may be unfinished."""
    text = collector.path.read_text() if collector.path.exists() else ""
    return re.findall(r'"session\.id","value":\{"stringValue":"([0-9a-f-]+)"', text)
