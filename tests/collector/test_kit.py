import re
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack
from functools import partial

import pytest
import requests
import trustme
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.collector.test_bridge import session_ids_of
from tests.collector.test_guard import an_event, record_of
from tests.support.dns_server import DnsServer
from tests.support.otelcol import CONFIG, Collector, KitCollector, find_free_port, is_up, post, send_over_http
from tests.support.polling import poll_until

FILES = sorted(
    path for path in CONFIG.glob("*.yaml") if path.name not in ("builder.yaml", "compose.yaml", "guard.yaml")
)
COMMANDS = sorted(
    {line for path in FILES for line in re.findall(r"^#   otelcol (.*?)(?:  .*)?$", path.read_text(), re.MULTILINE)}
)
GUARD = ["filter/tbot_start", "transform/tbot_start", "groupbyattrs/tbot_start"]
EVENTS, EVENTS_A_REQUEST = 20_000, 20


def head_of(path):
    """Returns the comment at the beginning of a file."""
    return re.match(r"(?:#.*\n)+", path.read_text()).group()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_a_file_s_first_comment_is_valid(command, otelcol):
    """The real collector accepts the command lines that each file names, with the defaults."""
    finished = subprocess.run(
        [otelcol, "validate", *command.split()], cwd=CONFIG, capture_output=True, text=True, check=False, timeout=120
    )

    assert 0 == finished.returncode, finished.stderr


def test_every_file_is_in_a_command():
    """Every file is part of a command line that is validated."""
    assert FILES
    assert not [path.name for path in FILES if not any(path.name in command for command in COMMANDS)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_is_listed_with_its_default(path):
    """A file's first comment lists the variables that it reads, with their defaults, and no others."""
    text = path.read_text()
    used = set(re.findall(r"\$\{env:(\w+):-([^}]+)\}", text))
    listed = {(name, default) for name, default in re.findall(r"^#   (TBOT_\w+) +(\S+)", head_of(path), re.MULTILINE)}

    assert used == listed
    assert len(re.findall(r"\$\{env:", text)) == len(re.findall(r"\$\{env:\w+:-", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_guard_stands_last_in_every_pipeline(path):
    """In every pipeline of events, the guard's processors are the last three, in order."""
    pipelines = yaml.safe_load(path.read_text()).get("service", {}).get("pipelines", {})
    # The pipeline of metrics carries the collector's counts, not events.
    guarded = [pipeline for name, pipeline in pipelines.items() if not name.startswith("metrics")]

    assert all(GUARD == pipeline["processors"][-3:] for pipeline in guarded)
    assert guarded or "mtls" in path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_listens_beyond_loopback_without_tls(path):
    """Every address is on loopback, or in a file that requires a client certificate."""
    text = path.read_text()

    assert "0.0.0.0" not in text or "client_ca_file" in text
    assert not re.search(r"^[^#]*endpoint: *\":\d", text, re.MULTILINE)


class Fleet:
    """An agent, a gateway and, as the back end, a collector that writes to a file."""

    def __init__(self, program, folder, *, overlays=(), environ=None):
        self._program, self._folder, self._overlays, self._more = program, folder, overlays, environ or {}

    def __enter__(self):
        with ExitStack() as started:
            (self._folder / "behind").mkdir()
            self.behind = started.enter_context(Collector(self._program, self._folder / "behind"))
            backend = f"http://127.0.0.1:{self.behind.ports['http/protobuf']}"
            self.gateway = started.enter_context(self._build("gateway", TBOT_BACKEND=backend))
            # Use the name that is in the certificates.
            address = self.gateway.environ["TBOT_GATEWAY_LISTEN"].replace("127.0.0.1", "localhost")
            self.agent = started.enter_context(self._build("agent", TBOT_GATEWAY=address))
            self._started = started.pop_all()
        return self

    def __exit__(self, *_):
        self._started.close()

    def _build(self, name, **environ):
        files = ["guard", name, *(f"{name}-{overlay}" for overlay in self._overlays)]
        return KitCollector(self._program, self._folder / name, *files, environ=environ | self._more.get(name, {}))


def a_request_of_many():
    """Returns a request with EVENTS_A_REQUEST honest events, and their session ids."""
    request, _ = an_event("log")
    records = request.resource_logs[0].scope_logs[0].log_records
    first = ExportLogsServiceRequest()
    first.CopyFrom(request)
    del records[:]
    ids = [str(uuid.uuid4()) for _ in range(EVENTS_A_REQUEST)]
    for session_id in ids:
        record = records.add()
        record.CopyFrom(record_of(first))
        (attribute,) = [attribute for attribute in record.attributes if attribute.key == "session.id"]
        attribute.value.string_value = session_id
    return request.SerializeToString(), ids


def test_every_accepted_event_arrives_although_agent_and_gateway_are_killed(otelcol, tmp_path):
    """Of 20,000 accepted events, none is lost; at most the batches in flight at a kill arrive twice.

    Agent and gateway are each killed twice. A batch has at most 2,048 events at the agent and 8,192 at the gateway.
    """
    accepted, rejected = set(), set()
    with Fleet(otelcol, tmp_path) as fleet:
        lock = threading.Lock()

        def send():
            while len(accepted) < EVENTS:
                body, ids = a_request_of_many()
                is_accepted = post(fleet.agent.url, body)
                with lock:
                    (accepted if is_accepted else rejected).update(ids)
                if not is_accepted:
                    poll_until(lambda: is_up(fleet.agent.health), waiting_for="the agent to be up again")

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        for number, victim in enumerate([fleet.gateway, fleet.agent, fleet.gateway, fleet.agent], 1):
            least = number * EVENTS // 6
            poll_until(
                lambda least=least: len(accepted) >= least,
                waiting_for=f"{least} events to be accepted",
                deadline_seconds=300,
            )
            victim.kill()
            assert victim.start(), victim.log()
        for sender in senders:
            sender.join()
        poll_until(
            lambda: accepted <= set(session_ids_of(fleet.behind)),
            waiting_for="every accepted event at the back end",
            deadline_seconds=300,
        )
        arrived = session_ids_of(fleet.behind)
    twice = len(arrived) - len(set(arrived))
    print(f"accepted {len(accepted)}, rejected {len(rejected)}, twice {twice}")  # noqa: T201  # for the log of the run

    assert EVENTS <= len(accepted)
    assert set(arrived) <= accepted | rejected
    assert twice <= 2 * 2048 + 2 * 8192


def test_agent_and_gateway_check_each_other_s_certificate(otelcol, tmp_path):
    """With the files for mTLS, events arrive; health check and the collector's metrics answer on loopback."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    environ = {}
    for name in ("agent", "gateway"):
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        environ[name] = {
            "TBOT_TLS_CA": str(tmp_path / "ca.pem"),
            "TBOT_TLS_CERT": str(tmp_path / f"{name}.pem"),
            "TBOT_TLS_KEY": str(tmp_path / f"{name}.key"),
        }
    with Fleet(otelcol, tmp_path, overlays=("mtls",), environ=environ) as fleet:
        body, ids = a_request_of_many()
        assert post(fleet.agent.url, body)
        fleet.behind.wait_for_session(ids[-1])
        assert requests.get(fleet.agent.health, timeout=60).ok
        assert "otelcol_exporter_queue_size" in requests.get(fleet.agent.telemetry, timeout=60).text

    assert sorted(ids) == sorted(session_ids_of(fleet.behind))


def test_a_gateway_rejects_an_agent_of_another_authority(otelcol, tmp_path):
    """Without a certificate of the fleet's authority, no event reaches the back end; it stays on the agent's disk."""
    fleet_authority, other = trustme.CA(), trustme.CA()
    environ = {}
    for name, issuer, trusted in (("gateway", fleet_authority, fleet_authority), ("agent", other, fleet_authority)):
        certificate = issuer.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        trusted.cert_pem.write_to_path(tmp_path / f"{name}-ca.pem")
        environ[name] = {
            "TBOT_TLS_CA": str(tmp_path / f"{name}-ca.pem"),
            "TBOT_TLS_CERT": str(tmp_path / f"{name}.pem"),
            "TBOT_TLS_KEY": str(tmp_path / f"{name}.key"),
        }
    with Fleet(otelcol, tmp_path, overlays=("mtls",), environ=environ) as fleet:
        body, _ = a_request_of_many()
        assert post(fleet.agent.url, body)
        poll_until(lambda: "Exporting failed" in fleet.agent.log(), waiting_for="the rejection")

        assert not session_ids_of(fleet.behind)


def has_arrived(session_id, stores):
    """Returns whether the event of *session_id* is in one of *stores*."""
    return any(session_id in session_ids_of(store) for store in stores)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has loopback addresses other than 127.0.0.1")
def test_an_agent_spreads_events_over_the_gateways_of_one_name(otelcol, tmp_path):
    """Two gateways behind one name each get events of one agent, and together all of them, each once."""
    port = find_free_port()
    with ExitStack() as started:
        dns = started.enter_context(DnsServer(["127.0.0.2", "127.0.0.3"]))
        stores = []
        for name, address in (("one", "127.0.0.2"), ("two", "127.0.0.3")):
            folder = tmp_path / f"behind-{name}"
            folder.mkdir()
            stores.append(started.enter_context(Collector(otelcol, folder)))
            environ = {
                "TBOT_GATEWAY_LISTEN": f"{address}:{port}",
                "TBOT_BACKEND": f"http://127.0.0.1:{stores[-1].ports['http/protobuf']}",
            }
            started.enter_context(KitCollector(otelcol, tmp_path / name, "guard", "gateway", environ=environ))
        target = {"TBOT_GATEWAY": f"dns://{dns.address}/gateways.example:{port}"}
        agent = started.enter_context(KitCollector(otelcol, tmp_path / "agent", "guard", "agent", environ=target))
        sent, shares = [], []
        while not all(shares) or not shares:
            assert len(sent) < 200, shares
            sent += send_over_http(agent, "log", [{"run_mode": "daemon"}])
            poll_until(partial(has_arrived, sent[-1], stores), waiting_for="the last event")
            shares = [session_ids_of(store) for store in stores]

    assert sorted(sent) == sorted(shares[0] + shares[1])
