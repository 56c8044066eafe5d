"""Acts as a host with other names, and sends an event from it to a recorded receiver.

`python -m tests.proof.host` < PLAN. The plan (JSON) has the names of the host and its user, and says how an event is
sent. Run under `unshare --uts --net --mount`, so the kernel itself has these names; addresses and ports are the same on
every host. The outcome (JSON) on stdout holds the received bytes, the output, and the session ids.
"""

import fcntl
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests

from tests.proof.recording import RecordingProxy
from tests.support.application import ORDINARY, WAYS, run_application
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer

PORT = 4318
"""The port of the receiver on every host, for both protocols."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def main() -> None:
    """Becomes the host, sends, and prints the outcome."""
    plan = json.load(sys.stdin)
    become(plan)
    os.environ |= plan["environ"]
    os.chdir(plan["directory"])
    with ExitStack() as stack:
        server = stack.enter_context(OtlpGrpcServer() if plan["protocol"] == "grpc" else OtlpHttpServer())
        port = int(server.url.rpartition(":")[2])
        proxy = stack.enter_context(RecordingProxy(port, listen_port=PORT))
        url = f"http://{plan.get('endpoint_host', '127.0.0.1')}:{proxy.port}"
        finished = send(plan, url)
        if not server.requests:
            raise AssertionError(f"nothing arrived: {finished.returncode} {finished.stdout} {finished.stderr}")
        outcome = {
            "status": finished.returncode,
            "out": finished.stdout,
            "err": finished.stderr,
            "session_ids": [session_id for request in server.requests for session_id in request.session_ids],
            "connections": [connection.hex() for connection in proxy.recording.connections],
            "host_name": socket.gethostname(),
        }
    json.dump(outcome, sys.stdout)


def become(plan: Mapping[str, Any]) -> None:
    """Takes the names of *plan*, starts loopback and a network card, and mounts its files over the machine's."""
    socket.sethostname(plan["host_name"])
    Path("/proc/sys/kernel/domainname").write_text(plan["domain"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(struct.pack("16sH14s", b"lo", 0, b""))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("16sH", request)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags, b""))
    if plan["hardware_address"]:
        card = [
            "ip",
            "link",
            "add",
            "card0",
            "address",
            plan["hardware_address"],
            "type",
            "veth",
            "peer",
            "name",
            "card1",
        ]
        subprocess.run(card, capture_output=True, check=False)  # without virtual cards, loopback is enough
    for path, content in plan["files"].items():
        if os.path.exists(path):
            source = Path(plan["home"]) / f"over{path.replace('/', '_')}"
            source.write_text(content)
            subprocess.run(["mount", "--bind", source, path], check=True)


def send(plan: Mapping[str, Any], url: str) -> "subprocess.CompletedProcess[str]":
    """Sends one event as the plan says; returns the finished command."""
    way, signal, protocol = plan["way"], plan["signal"], plan["protocol"]
    more = {**plan["environ"], **plan["settings"], "OTEL_TBOT_TEST_LOG": "1"}
    environ = {
        **more,
        "TELEPORT_ANONYMOUS_TELEMETRY": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": plan["settings"].get("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_TBOT_SIGNAL": signal,
        "OTEL_TBOT_TIMEOUT": "60000",
    }
    if way in (*WAYS, ORDINARY):
        # The plan's variables replace those that the application sets for its resource.
        return run_application(
            way,
            signal=signal,
            protocol=protocol,
            url=url,
            session_id=plan["session_id"],
            folder=Path(plan["home"]),
            more=more,
        )
    if way == "bridge":
        return send_by_bridge(plan, {name: text for name, text in environ.items() if not name.startswith("TELEPORT_")})
    command = [sys.executable, "-P", "-m", "otel_tbot", *plan["arguments"]]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)


def send_by_bridge(plan: Mapping[str, Any], environ: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Reports to a bridge on this host, as a client that names itself in every header."""
    from otel_tbot.event import TbotStart
    from otel_tbot.tbot.report import to_report

    event = TbotStart(run_mode="one-shot", version="18.4.1", join_type="iam", session_id=plan["session_id"])
    headers = {"Content-Type": "application/proto", **plan["headers"]}
    with BridgeProcess(environ) as bridge, requests.Session() as session:
        session.trust_env = False
        response = session.post(
            bridge.url + PROCEDURE, data=to_report(event).SerializeToString(), headers=headers, timeout=60
        )
    status = 0 if response.status_code == 200 else 1
    return subprocess.CompletedProcess([], status, "", bridge.written + response.text)


def run(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the host of *plan* in new namespaces; returns its outcome."""
    # The path of the executable can name a host, too.
    namespaces = ("unshare", "--uts", "--net", "--mount", "--")
    command = [*namespaces, plan["python"], "-P", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); "]
    command[-1] += "from tests.proof.host import main; main()"
    suite = str(Path(__file__).parent.parent.parent)
    finished = subprocess.run(
        [*command, suite],
        input=json.dumps(plan),
        env={"PATH": os.environ["PATH"], "HOME": plan["home"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if finished.returncode:
        raise AssertionError(finished.stderr)
    outcome: dict[str, Any] = json.loads(finished.stdout)
    outcome["session_ids"] = list(dict.fromkeys(outcome["session_ids"]))
    return outcome


def new_session_id() -> str:
    """Returns a session id for a plan."""
    return str(uuid.uuid4())


if __name__ == "__main__":
    logging.captureWarnings(capture=True)
    main()
