"""Proves promise 2: on is anonymous. No name of a host, a user or a cluster is in any byte that leaves."""

import os
import sys

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.proof import host
from tests.proof.canaries import Canaries, write_home
from tests.proof.recording import Recording, Request

WAYS = ("run", "emit", "doctor", "bridge", "library", "plug-in", "declarative")
PROTOCOLS = ("http/protobuf", "grpc")
SIGNALS = ("log", "span")
KINDS = {"log": ExportLogsServiceRequest, "span": ExportTraceServiceRequest}
HELPER = "acme:deploy"


def make_plan(folder, canaries, way, protocol, signal, reporter, *, compression=""):
    """Returns a plan for a host on which every name is a canary, and for one way to send from it."""
    word = canaries.make
    home = folder / word("home")
    home.mkdir(parents=True)
    write_home(home, canaries)
    directory = home / word("working directory")
    directory.mkdir()
    python = home / word("executable's path")
    python.symlink_to(sys.prefix)
    tbot = home / word("command's path")
    tbot.symlink_to(reporter)
    config = directory / f"{word('name of the file')}.yaml"
    config.write_text(canaries.to_tbot_yaml())
    name, domain, user = word("host name"), f"{word('domain')}.test", word("user")
    passwd = (
        f"{user}:x:{os.getuid()}:{os.getgid()}:{word('full name')}:{home}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    )
    session_id = host.new_session_id()
    hardware = word("hardware address")
    event = {
        "run": [
            *("run", "--", str(tbot), "-oneshot", "-join-type", "iam", "-distinct-id", session_id),
            *("-version", f"18.4.1+{word('build of the version')}", word("argument")),
        ],
        "emit": [
            *("emit", "-c", str(config), "--tbot-version", f"18.4.1-rc.1-{word('build of the version')}"),
            *("--join-method", word("unknown join method"), "--helper", f"no helper {word('invalid name')}"),
            *("--helper-version", word("invalid version"), "--destination-dir", f"/{word('destination')}"),
        ],
        "doctor": ["doctor"],
    }
    names = (
        "User-Agent",
        "Cookie",
        "Referer",
        "Forwarded",
        "X-Forwarded-For",
        "X-Real-Ip",
        "Traceparent",
        "Tracestate",
    )
    names += (
        "Baggage",
        "Authorization",
        "Via",
        "X-Request-Id",
        "Host",
        "From",
        "Origin",
        "If-None-Match",
        "X-Amzn-Trace-Id",
    )
    return {
        "way": way,
        "protocol": protocol,
        "signal": signal,
        "session_id": session_id,
        "arguments": event.get(way, []),
        "python": str(python / "bin" / "python"),
        "home": str(home),
        "directory": str(directory),
        "host_name": name,
        "domain": domain,
        "hardware_address": "02:" + ":".join(hardware[1 + 2 * i : 3 + 2 * i] for i in range(5)),
        "files": {
            "/etc/machine-id": f"{word('machine id')[1:].ljust(32, '0')}\n",
            "/var/lib/dbus/machine-id": f"{word('machine id of dbus')[1:].ljust(32, '0')}\n",
            "/etc/hostname": f"{name}\n",
            "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}.{domain} {name}\n",
            "/etc/passwd": passwd,
            "/etc/os-release": f'ID={word("ID of the system")}\nNAME="{word("name of the system")}"\n',
            "/etc/resolv.conf": f"search {domain}\nnameserver 127.0.0.1\n",
            "/proc/sys/kernel/random/boot_id": f"{word('boot id')}\n",
        },
        "headers": {name: word(f"client's {name}") for name in names},
        "environ": {
            **canaries.to_environ(),
            "HOME": str(home),
            "PWD": str(directory),
            "USER": user,
            "PATH": "/usr/bin:/bin",
        },
        "settings": {"OTEL_EXPORTER_OTLP_COMPRESSION": compression} if compression else {},
    }


def to_recording(outcome):
    """Returns the recording of the bytes that the host's receiver got."""
    return Recording([bytearray.fromhex(connection) for connection in outcome["connections"]])


def without_times_and_ids(request: Request, signal: str) -> bytes:
    """Returns the body of *request* with the event's times and ids, and nothing else, set to zeros."""
    body = request.body
    message = KINDS[signal].FromString(body)
    for part in message.resource_logs if signal == "log" else message.resource_spans:
        for scope in part.scope_logs if signal == "log" else part.scope_spans:
            for record in scope.log_records if signal == "log" else scope.spans:
                body = _blank(body, record)
    return body


def _blank(body: bytes, record: Message) -> bytes:
    names = [name for name in record.DESCRIPTOR.fields_by_name if name.endswith("unix_nano")]
    values = [getattr(record, name).to_bytes(8, "little") for name in names if getattr(record, name)]
    values += [getattr(record, name) for name in ("trace_id", "span_id") if getattr(record, name)]
    values += [a.value.string_value.encode() for a in record.attributes if a.key == "session.id"]
    assert len(values) >= 3
    for value in values:
        body = body.replace(value, b"0" * len(value))
    return body


def to_comparable_headers(request: Request, way: str):
    """Returns all headers, without the values that differ from event to event.

    The length of a compressed body depends on its ids. OpenTelemetry's own exporter, behind the plug-in, sends the
    time that it has left as `grpc-timeout`; docs/privacy.md says so.
    """
    varying = {"content-length"} if ("content-encoding", "gzip") in request.headers else set()
    if way in ("plug-in", "declarative"):
        varying.add("grpc-timeout")
    return [(name, "" if name in varying else value) for name, value in request.headers]


_ROWS = [(way, protocol, signal) for way in WAYS for protocol in PROTOCOLS for signal in SIGNALS]


@pytest.mark.promise("anonymous.canaries")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("way", "protocol", "signal"), _ROWS)
def test_two_hosts_with_different_names_send_the_same_bytes_and_no_canary(
    way, protocol, signal, reporter, tmp_path, cases
):
    """No canary is on the wire, in stderr or in the log; headers and bodies differ only in time and ids."""
    compression = "gzip" if (protocol == "grpc") == (signal == "log") else ""
    sent = []
    for number in range(2):
        canaries = Canaries()
        plan = make_plan(tmp_path / str(number), canaries, way, protocol, signal, reporter, compression=compression)
        outcome = host.run(plan)
        recording = to_recording(outcome)
        requests = recording.requests()

        assert plan["host_name"] == outcome["host_name"]
        assert 0 == outcome["status"], outcome["err"]
        assert 1 == len(requests)
        assert (0 if way == "doctor" else 1) == len(outcome["session_ids"])
        assert [] == canaries.find(*recording.texts())
        cases.add()
        assert [] == canaries.find(outcome["out"].encode(), outcome["err"].encode())
        assert "canary" not in outcome["out"] + outcome["err"]
        assert not any(b"canary" in text for text in recording.texts())
        cases.add(1, trial="anonymous.output")
        sent.append((to_comparable_headers(requests[0], way), without_times_and_ids(requests[0], signal)))

    assert sent[0] == sent[1]
    cases.add(1, trial="anonymous.same")


@pytest.mark.promise("anonymous.canaries")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("protocol", "signal"), [("http/protobuf", "log"), ("grpc", "span")])
def test_the_sdk_s_own_exporter_sends_what_is_planted(protocol, signal, reporter, tmp_path):
    """The same host with OpenTelemetry's exporter alone reveals its names, so the search would find them."""
    canaries = Canaries()
    plan = make_plan(tmp_path, canaries, "ordinary", protocol, signal, reporter, compression="gzip")
    # It uses proxies and missing files if variables name them; ours does not.
    unused = ("PROXY", "CA_BUNDLE", "ROOTS_FILE_PATH", "SSLKEYLOGFILE")
    plan["environ"] = {name: text for name, text in plan["environ"].items() if not name.upper().endswith(unused)}
    outcome = host.run(plan)
    found = canaries.find(*to_recording(outcome).texts())

    assert {f"OTEL_RESOURCE_ATTRIBUTES {key} as text" for key in ("host.name", "k8s.pod.name")} <= set(found)
    assert "OTEL_SERVICE_NAME as text" in found
    assert "working directory as text" in found or "executable's path as text" in found


ENDPOINT_HOST = "endpoint's host"
INTENDED = {
    "OTEL_EXPORTER_OTLP_HEADERS": {"http/protobuf": "x-token", "grpc": "x-token"},
    ENDPOINT_HOST: {"http/protobuf": "host", "grpc": ":authority"},
    "endpoint's path": {"http/protobuf": ":line"},
    "helper's name": {"http/protobuf": "tbot.helper", "grpc": "tbot.helper"},
}
"""Text that is meant to leave, and its only place: a header, or an attribute of the event."""


@pytest.mark.promise("anonymous.exceptions")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(
    ("intended", "protocol"), [(name, protocol) for name, places in INTENDED.items() for protocol in places]
)
def test_text_that_is_meant_to_leave_is_only_in_its_own_place(intended, protocol, signal, reporter, tmp_path):
    """The endpoint's host and path, the headers that are set and a helper's name occur once, in their own place."""
    canaries = Canaries()
    plan = make_plan(tmp_path, canaries, "run", protocol, signal, reporter)
    place = INTENDED[intended][protocol]
    word = canaries.make(intended)
    if intended == ENDPOINT_HOST:
        plan["endpoint_host"] = f"{word}.test"
        plan["files"]["/etc/hosts"] += f"127.0.0.1 {word}.test\n"
    elif intended == "endpoint's path":
        plan["settings"]["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{host.PORT}/{word}"
    elif intended == "helper's name":
        plan["settings"]["_TBOT_TELEMETRY_HELPER"] = word
    else:
        plan["settings"][intended] = f"x-token={word}"
    outcome = host.run(plan)
    recording = to_recording(outcome)
    (request,) = recording.requests()
    headers = [name for name, value in request.headers if word in value]
    event = KINDS[signal].FromString(request.body)

    assert [] == canaries.find(*recording.texts(), but=(intended,))
    assert [] == canaries.find(outcome["out"].encode(), outcome["err"].encode())
    if place == "tbot.helper":
        assert [] == headers
        assert 1 == request.body.count(word.encode())
        assert f'key: "{place}"\n        value {{\n          string_value: "{word}"' in str(event)
    else:
        assert [place] == headers
        assert 0 == request.body.count(word.encode())
