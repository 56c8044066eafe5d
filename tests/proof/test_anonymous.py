"""Promise 2: on is anonymous. What a host, a user or a cluster is called occurs in no byte that leaves."""

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


def make_plan(folder, canaries, way, protocol, signal, reporter, *, compression="none"):
    """A host whose every name is a canary, and one way of sending from it."""
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
            *("--join-method", word("unknown join method"), "--helper", f"no helper {word('name that is none')}"),
            *("--helper-version", word("version that is none"), "--destination-dir", f"/{word('destination')}"),
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
        # PATH finds the interpreter as it is called on this host.
        "environ": {
            **canaries.to_environ(),
            "HOME": str(home),
            "PWD": str(directory),
            "USER": user,
            "PATH": "/usr/bin:/bin",
        },
        "settings": {"OTEL_EXPORTER_OTLP_COMPRESSION": compression},
    }


def to_recording(told):
    """The bytes that the host's receiver got."""
    return Recording([bytearray.fromhex(connection) for connection in told["connections"]])


def without_moment(request: Request, signal: str) -> bytes:
    """A body with the event's own time and ids, and nothing else, set to zeros."""
    body = request.body
    message = KINDS[signal].FromString(body)
    for part in message.resource_logs if signal == "log" else message.resource_spans:
        for scope in part.scope_logs if signal == "log" else part.scope_spans:
            for record in scope.log_records if signal == "log" else scope.spans:
                body = _blank(body, record)
    return body


def _blank(body: bytes, record: Message) -> bytes:
    names = [name for name in record.DESCRIPTOR.fields_by_name if name.endswith("unix_nano")]
    moments = [getattr(record, name).to_bytes(8, "little") for name in names if getattr(record, name)]
    moments += [getattr(record, name) for name in ("trace_id", "span_id") if getattr(record, name)]
    moments += [a.value.string_value.encode() for a in record.attributes if a.key == "session.id"]
    assert len(moments) >= 3
    for moment in moments:
        body = body.replace(moment, b"0" * len(moment))
    return body


def to_comparable_headers(request: Request, way: str):
    """Returns all headers but the length of a compressed body, which depends on the ids in it.

    OpenTelemetry's exporter, behind the plug-in, adds what is left of its timeout over gRPC (docs/privacy.md).
    """
    varying = {"content-length"} if ("content-encoding", "gzip") in request.headers else set()
    if way in {"plug-in", "declarative"}:
        varying.add("grpc-timeout")
    return [(name, value) for name, value in request.headers if name not in varying]


_ROWS = [(way, protocol, signal) for way in WAYS for protocol in PROTOCOLS for signal in SIGNALS]


@pytest.mark.promise("anonymous.canaries")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("way", "protocol", "signal"), _ROWS)
def test_two_hosts_that_differ_in_all_send_the_same_bytes_and_no_canary(
    way, protocol, signal, reporter, tmp_path, cases
):
    """No canary is in a byte of the wire, of stderr or the log; headers and bodies differ in time and ids alone."""
    compression = "gzip" if (protocol == "grpc") == (signal == "log") else "none"
    sent = []
    for number in range(2):
        canaries = Canaries()
        plan = make_plan(tmp_path / str(number), canaries, way, protocol, signal, reporter, compression=compression)
        told = host.run(plan)
        recording = to_recording(told)
        requests = recording.requests()

        assert plan["host_name"] == told["host_name"]
        assert 0 == told["status"], told["err"]
        assert 1 == len(requests)
        assert (0 if way == "doctor" else 1) == len(told["session_ids"])
        assert [] == canaries.find(*recording.texts())
        cases.add()
        assert [] == canaries.find(told["out"].encode(), told["err"].encode())
        assert "canary" not in told["out"] + told["err"]
        assert not any(b"canary" in text for text in recording.texts())
        cases.add(1, trial="anonymous.output")
        sent.append((to_comparable_headers(requests[0], way), without_moment(requests[0], signal)))

    assert sent[0] == sent[1]
    cases.add(1, trial="anonymous.same")


@pytest.mark.promise("anonymous.canaries")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("protocol", "signal"), [("http/protobuf", "log"), ("grpc", "span")])
def test_the_sdk_s_own_exporter_sends_what_is_planted(protocol, signal, reporter, tmp_path):
    """The same host with OpenTelemetry's exporter instead of ours gives itself away: the search finds what is there."""
    canaries = Canaries()
    plan = make_plan(tmp_path, canaries, "ordinary", protocol, signal, reporter, compression="gzip")
    # It uses a proxy, and files that are not there, where it is told to; ours does not.
    unused = ("PROXY", "CA_BUNDLE", "ROOTS_FILE_PATH", "SSLKEYLOGFILE")
    plan["environ"] = {name: text for name, text in plan["environ"].items() if not name.upper().endswith(unused)}
    told = host.run(plan)
    found = canaries.find(*to_recording(told).texts())

    assert {f"OTEL_RESOURCE_ATTRIBUTES {key} as text" for key in ("host.name", "k8s.pod.name")} <= set(found)
    assert "OTEL_SERVICE_NAME as text" in found
    assert "working directory as text" in found or "executable's path as text" in found


ENDPOINT_HOST = "endpoint's host"
TRAVELLERS = {
    "OTEL_EXPORTER_OTLP_HEADERS": {"http/protobuf": "x-token", "grpc": "x-token"},
    ENDPOINT_HOST: {"http/protobuf": "host", "grpc": ":authority"},
    "endpoint's path": {"http/protobuf": ":line"},
    "helper's name": {"http/protobuf": "tbot.helper", "grpc": "tbot.helper"},
}
"""What is meant to travel, and the one place where it does: a header, or an attribute of the event."""


@pytest.mark.promise("anonymous.exceptions")
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(
    ("traveller", "protocol"), [(name, protocol) for name, places in TRAVELLERS.items() for protocol in places]
)
def test_what_is_meant_to_travel_is_in_its_place_and_nowhere_else(traveller, protocol, signal, reporter, tmp_path):
    """The endpoint's host and path, the headers that are set and a helper's name occur once each, where they belong."""
    canaries = Canaries()
    plan = make_plan(tmp_path, canaries, "run", protocol, signal, reporter)
    place = TRAVELLERS[traveller][protocol]
    word = canaries.make(traveller)
    if traveller == ENDPOINT_HOST:
        plan["endpoint_host"] = f"{word}.test"
        plan["files"]["/etc/hosts"] += f"127.0.0.1 {word}.test\n"
    elif traveller == "endpoint's path":
        plan["settings"]["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{host.PORT}/{word}"
    elif traveller == "helper's name":
        plan["settings"]["_TBOT_TELEMETRY_HELPER"] = word
    else:
        plan["settings"][traveller] = f"x-token={word}"
    told = host.run(plan)
    recording = to_recording(told)
    (request,) = recording.requests()
    headers = [name for name, value in request.headers if word in value]
    event = KINDS[signal].FromString(request.body)

    assert [] == canaries.find(*recording.texts(), but=(traveller,))
    assert [] == canaries.find(told["out"].encode(), told["err"].encode())
    if place == "tbot.helper":
        assert [] == headers
        assert 1 == request.body.count(word.encode())
        assert f'key: "{place}"\n        value {{\n          string_value: "{word}"' in str(event)
    else:
        assert [place] == headers
        assert 0 == request.body.count(word.encode())
