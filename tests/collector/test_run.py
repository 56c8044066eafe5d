import os
import platform
import time
import uuid

import pytest
from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot import __version__
from tests.support.otelcol import Collector, to_values
from tests.support.processes import CONSENT, Launch

BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
# Long, because a shared machine can be slow: these tests assert what arrives, not when.
PATIENT = {"OTEL_TBOT_TIMEOUT": "60000"}
HELPER = {"_TBOT_TELEMETRY_HELPER": "gha:teleport-actions/auth", "_TBOT_TELEMETRY_HELPER_VERSION": "v2.0.1"}

RESOURCE = {
    "service.name": ("stringValue", "tbot"),
    "telemetry.sdk.language": ("stringValue", "python"),
    "telemetry.sdk.name": ("stringValue", "opentelemetry"),
    "telemetry.sdk.version": ("stringValue", sdk_version),
    "os.type": ("stringValue", {"Linux": "linux", "Darwin": "darwin"}[platform.system()]),
    "host.arch": ("stringValue", {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]),
}
SCOPE = {"name": "otel_tbot", "version": __version__}


@pytest.fixture(scope="module")
def collector(otelcol, tmp_path_factory):
    """The real collector, shared by the tests of this file."""
    with Collector(otelcol, tmp_path_factory.mktemp("collector")) as running:
        yield running


def attributes_of(session_id: str) -> dict[str, tuple[str, str]]:
    """Returns all attributes of the start that `report` reports; OTLP/JSON writes 64-bit integers as strings."""
    return {
        "tbot.run_mode": ("stringValue", "one-shot"),
        "tbot.version": ("stringValue", "18.4.1-rc.2"),
        "tbot.join_type": ("stringValue", "kubernetes"),
        "tbot.helper": ("stringValue", "gha:teleport-actions/auth"),
        "tbot.helper_version": ("stringValue", "v2.0.1"),
        "tbot.destinations_other": ("intValue", "0"),
        "tbot.destinations_database": ("intValue", "2"),
        "tbot.destinations_kubernetes": ("intValue", "3"),
        "tbot.destinations_application": ("intValue", "2147483647"),
        "session.id": ("stringValue", session_id),
    }


def report(reporter: str, session_id: str, *more: str) -> list[str]:
    """Returns the command line of a start with every field set."""
    return [
        *(reporter, "start", "--oneshot", "--distinct-id", session_id, "--wait", "60s"),
        *("--version", "18.4.1-rc.2+canary", "--join-type", "kubernetes", "--destinations-database", "2"),
        *("--destinations-kubernetes", "3", "--destinations-application", "2147483647"),
        *more,
    ]


def check_time(time_ns: str, began: float) -> None:
    """Fails unless *time_ns* is a whole second between *began* and now."""
    seconds, rest = divmod(int(time_ns), 1_000_000_000)

    assert 0 == rest
    assert int(began) <= seconds <= time.time()


def events_of(collector: Collector, session_id: str) -> list[dict]:
    """Returns the requests that hold the event of *session_id*."""
    return [request for request in collector.requests() if session_id in str(request)]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_start_is_exactly_one_log_record(protocol, collector, reporter):
    """One report is one request with one record, in which every part is documented and no part is missing."""
    launch = Launch(BASIC | CONSENT | PATIENT | HELPER | collector.environ(protocol, "log"))
    session_id = str(uuid.uuid4())
    began = time.time()

    finished = launch.run(report(reporter, session_id, "--exit-code", "9"))
    collector.wait_for_session(session_id)
    launch.wait_for_end()
    (request,) = events_of(collector, session_id)
    record = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    for time_ns in (record["timeUnixNano"], record["observedTimeUnixNano"]):
        check_time(time_ns, began)
    assert (9, f"ok {session_id}\n", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert RESOURCE == to_values(request["resourceLogs"][0]["resource"].pop("attributes"))
    assert attributes_of(session_id) == to_values(record.pop("attributes"))
    assert {
        "resourceLogs": [
            {
                "resource": {},
                "scopeLogs": [
                    {
                        "scope": SCOPE,
                        "logRecords": [
                            {
                                "timeUnixNano": record["timeUnixNano"],
                                "observedTimeUnixNano": record["timeUnixNano"],
                                "severityNumber": 9,
                                "severityText": "INFO",
                                "body": {"stringValue": "tbot.start"},
                                "eventName": "tbot.start",
                            }
                        ],
                    }
                ],
            }
        ]
    } == request


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_one_start_is_exactly_one_span(protocol, collector, reporter):
    """As a span, it is a root whose ids are made of session.id and that lasts one microsecond, as documented."""
    launch = Launch(BASIC | CONSENT | PATIENT | HELPER | collector.environ(protocol, "span"))
    session_id = str(uuid.uuid4())
    began = time.time()

    finished = launch.run(report(reporter, session_id))
    collector.wait_for_session(session_id)
    launch.wait_for_end()
    (request,) = events_of(collector, session_id)
    span = request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    check_time(span["startTimeUnixNano"], began)
    assert (0, f"ok {session_id}\n", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert RESOURCE == to_values(request["resourceSpans"][0]["resource"].pop("attributes"))
    assert attributes_of(session_id) == to_values(span.pop("attributes"))
    assert {
        "resourceSpans": [
            {
                "resource": {},
                "scopeSpans": [
                    {
                        "scope": SCOPE,
                        "spans": [
                            {
                                "traceId": session_id.replace("-", ""),
                                "spanId": session_id.replace("-", "")[16:],
                                "flags": 256,
                                "name": "tbot.start",
                                "kind": 1,
                                "startTimeUnixNano": span["startTimeUnixNano"],
                                "endTimeUnixNano": str(int(span["startTimeUnixNano"]) + 1000),
                                "status": {},
                            }
                        ],
                    }
                ],
            }
        ]
    } == request


@pytest.mark.parametrize("form", [["--gzip"], ["--json"], ["--sized"], ["--json", "--gzip", "--sized"]], ids=" ".join)
def test_every_encoding_of_a_report_is_understood(form, collector, reporter):
    """A report that is compressed, in JSON or sent with its length arrives as the same event."""
    launch = Launch(BASIC | CONSENT | PATIENT | HELPER | collector.environ("http/protobuf", "log"))
    session_id = str(uuid.uuid4())

    finished = launch.run(report(reporter, session_id, *form))
    collector.wait_for_session(session_id)
    (request,) = events_of(collector, session_id)

    record = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert f"ok {session_id}\n" == finished.stdout
    assert attributes_of(session_id) == to_values(record["attributes"])
    launch.wait_for_end()


def test_a_daemon_is_one_record_and_outlives_its_relay(collector, reporter):
    """A daemon's report arrives, and the relay ends while the daemon still runs."""
    launch = Launch(BASIC | CONSENT | PATIENT | collector.environ("http/protobuf", "log"))
    # The end of the block closes the daemon's pipes, its standard input included, so that it ends in any case.
    with launch.start([reporter, "start", "--until-stdin-closes"]) as process:
        status, session_id = process.stdout.readline().split()
        collector.wait_for_session(session_id)
        (request,) = events_of(collector, session_id)
        record = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]

        assert "ok" == status
        assert ("stringValue", "daemon") == to_values(record["attributes"])["tbot.run_mode"]
        assert "tbot.helper" not in to_values(record["attributes"])
        launch.wait_for_no_relay()
        assert process.poll() is None
    launch.wait_for_end()


def test_a_second_report_gets_an_error(collector, reporter):
    """The relay serves one start: a second report gets an error, which tbot logs, and is not an event."""
    launch = Launch(BASIC | CONSENT | PATIENT | collector.environ("http/protobuf", "log"))

    finished = launch.run([reporter, "start", "--oneshot", "--repeat", "2"])
    first, second = finished.stdout.splitlines()
    collector.wait_for_session(first.split()[1])

    assert "ok" == first.split()[0]
    assert ["error", "unavailable"] == second.split()[:2]
    assert not events_of(collector, second.split()[2])
    launch.wait_for_end()


@pytest.mark.parametrize("value", [None, "", "0", " 1", "yes", "1"])
def test_only_consent_lets_a_start_arrive(value, collector, reporter):
    """Without a true value, nothing arrives: the only request is that of a later start with consent."""
    environ = BASIC | PATIENT | collector.environ("http/protobuf", "log")
    launch = Launch(environ if value is None else environ | {"TELEPORT_ANONYMOUS_TELEMETRY": value})
    before = len(collector.requests())
    later = Launch(environ | CONSENT)

    finished = launch.run([reporter, "start", "--oneshot"])
    launch.wait_for_end()
    (sentinel,) = (line.split()[1] for line in later.run([reporter, "start", "--oneshot"]).stdout.splitlines())
    collector.wait_for_session(sentinel)

    # strconv.ParseBool rejects " 1", and so does the launcher.
    assert (0, "ok" if value == "1" else "off") == (finished.returncode, finished.stdout.split()[0])
    assert (2 if value == "1" else 1) == len(collector.requests()) - before
    later.wait_for_end()


def test_nothing_of_the_surroundings_arrives(collector, reporter, tmp_path):
    """No text planted in variables, arguments, directory, user and host is in what the collector wrote."""
    canary = f"canary{uuid.uuid4().hex}"
    folder = tmp_path / canary
    folder.mkdir()
    planted = {
        "OTEL_SERVICE_NAME": canary,
        "OTEL_RESOURCE_ATTRIBUTES": f"host.name={canary},k8s.cluster.name={canary}",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "host,os,process,otel",
        "OTEL_PROPAGATORS": "baggage,tracecontext",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "1",
        "HOSTNAME": canary,
        "USER": canary,
        "HOME": str(folder),
        "KUBERNETES_SERVICE_HOST": canary,
        "GITHUB_REPOSITORY": canary,
    }
    launch = Launch(BASIC | CONSENT | PATIENT | planted | collector.environ("http/protobuf", "log"))
    session_id = str(uuid.uuid4())

    finished = launch.run(report(reporter, session_id), cwd=folder)
    collector.wait_for_session(session_id)
    (request,) = events_of(collector, session_id)

    assert "" == finished.stderr
    assert 9 == len(request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["attributes"]) + 1
    assert canary not in str(request)
    assert os.uname().nodename not in str(request)
    launch.wait_for_end()
