import re
import subprocess
import threading
import uuid
from contextlib import ExitStack

import pytest
import requests
import trustme
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.collector.test_bridge import session_ids_of
from tests.collector.test_guard import an_event, record_of
from tests.support.otelcol import CONFIG, Collector, KitCollector
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
    """The comment that a file begins with."""
    return re.match(r"(?:#.*\n)+", path.read_text()).group()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_a_file_s_head_is_valid(command, otelcol):
    """The real collector validates what each file says that it runs as, with the defaults."""
    finished = subprocess.run(
        [otelcol, "validate", *command.split()], cwd=CONFIG, capture_output=True, text=True, check=False, timeout=120
    )

    assert 0 == finished.returncode, finished.stderr


def test_every_file_is_in_a_command():
    """No file is left out of what is validated."""
    assert FILES
    assert not [path.name for path in FILES if not any(path.name in command for command in COMMANDS)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_is_listed_with_its_default(path):
    """What a file takes from the environment stands in its head with its default, and nothing else does."""
    text = path.read_text()
    used = set(re.findall(r"\$\{env:(\w+):-([^}]+)\}", text))
    listed = {(name, default) for name, default in re.findall(r"^#   (TBOT_\w+) +(\S+)", head_of(path), re.MULTILINE)}

    assert used == listed
    assert len(re.findall(r"\$\{env:", text)) == len(re.findall(r"\$\{env:\w+:-", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_guard_stands_last_in_every_pipeline(path):
    """No processor comes behind it."""
    pipelines = yaml.safe_load(path.read_text()).get("service", {}).get("pipelines", {})
    # What is counted is the collector's own, and holds no record.
    guarded = [pipeline for name, pipeline in pipelines.items() if not name.startswith("metrics")]

    assert all(GUARD == pipeline["processors"][-3:] for pipeline in guarded)
    assert guarded or "mtls" in path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_listens_beyond_loopback_without_tls(path):
    """Every address is one of loopback, or is that of a file that brings TLS."""
    text = path.read_text()

    assert "0.0.0.0" not in text or "client_ca_file" in text
    assert not re.search(r"^[^#]*endpoint: *\":\d", text, re.MULTILINE)


class Fleet:
    """An agent, a gateway and, behind them, a collector with a file."""

    def __init__(self, program, folder, *, overlays=(), environ=None):
        self._program, self._folder, self._overlays, self._more = program, folder, overlays, environ or {}

    def __enter__(self):
        with ExitStack() as started:
            (self._folder / "behind").mkdir()
            self.behind = started.enter_context(Collector(self._program, self._folder / "behind"))
            backend = f"http://127.0.0.1:{self.behind.ports['http/protobuf']}"
            self.gateway = started.enter_context(self._build("gateway", TBOT_BACKEND=backend))
            # By a name that the certificates hold.
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
    """A request with EVENTS_A_REQUEST honest events, and their session ids."""
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


def post(url, body, *, path="/v1/logs"):
    """Whether the collector at *url* accepted a request."""
    try:
        headers = {"Content-Type": "application/x-protobuf"}
        return requests.post(url + path, data=body, headers=headers, timeout=60).ok
    except requests.RequestException:
        return False


def answers(url):
    """Whether *url* answers with success."""
    try:
        return requests.get(url, timeout=60).ok
    except requests.RequestException:
        return False


def test_what_an_agent_accepted_arrives_though_each_is_killed(otelcol, tmp_path):
    """20,000 accepted events, agent and gateway each killed in turn: none is lost, twice at most what was under way.

    What is under way is a batch of the agent's queue (2,048 at most) or of the gateway's (8,192), a kill.
    """
    accepted, refused = set(), set()
    with Fleet(otelcol, tmp_path) as fleet:
        lock = threading.Lock()

        def send():
            while len(accepted) < EVENTS:
                body, ids = a_request_of_many()
                is_accepted = post(fleet.agent.url, body)
                with lock:
                    (accepted if is_accepted else refused).update(ids)
                if not is_accepted:
                    poll_until(lambda: answers(fleet.agent.health), waiting_for="the agent's return")

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
            waiting_for="every accepted event behind the gateway",
            deadline_seconds=300,
        )
        arrived = session_ids_of(fleet.behind)
    twice = len(arrived) - len(set(arrived))
    print(f"accepted {len(accepted)}, refused {len(refused)}, twice {twice}")  # noqa: T201  # what was counted

    assert EVENTS <= len(accepted)
    assert set(arrived) <= accepted | refused
    assert twice <= 2 * 2048 + 2 * 8192


def test_agent_and_gateway_meet_with_certificates_of_both(otelcol, tmp_path):
    """With the mTLS files layered on top an event goes through; health and own metrics answer on loopback."""
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


def test_an_agent_of_another_authority_is_turned_away(otelcol, tmp_path):
    """Without a certificate of the fleet's nothing gets into the gateway; it waits on the agent's disk."""
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
        poll_until(lambda: "Exporting failed" in fleet.agent.log(), waiting_for="the refusal")

        assert not session_ids_of(fleet.behind)
