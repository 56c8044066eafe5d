"""Proves a part of promise 6: the relay works when it starts slowly, in other Pythons, and with new certificates."""

import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import trustme

from tests.otlp.test_tls import environ_of, tls_server
from tests.proof.test_faults import (
    ALLOWANCE_SECONDS,
    AT_THE_LIMIT,
    PATIENT,
    TIMED_OUT,
    TIMEOUT_SECONDS,
    TRIES,
    read_outcome,
    start_held,
)
from tests.relay.test_probe import LAUNCHERS, OLD_PROTOBUF, report_behind
from tests.support.bridge_process import BridgeProcess
from tests.support.polling import poll_until
from tests.support.processes import CONSENT, Launch
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer, silent_server


def endpoint(url, protocol="http/protobuf"):
    """Returns the settings that send to *url*."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}


@contextmanager
def limited(pid, share, period_seconds=0.1):
    """Gives the process *pid* only *share* of each period, as a limit of processor time does."""
    is_over = threading.Event()

    def pause():
        try:
            while not is_over.is_set():
                os.kill(pid, signal.SIGSTOP)
                is_over.wait(period_seconds * (1 - share))
                os.kill(pid, signal.SIGCONT)
                is_over.wait(period_seconds * share)
        except ProcessLookupError:
            pass  # the relay has ended

    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def stopped(pid, seconds):
    """Stops the process *pid* for *seconds* from now on."""
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def time_report(reporter, environ, slow):
    """Returns the seconds that a one-shot waits for its report while *slow* acts on the relay, and the outcome."""
    launch, process = start_held(reporter, environ)
    with slow(launch.wait_for_relay()):
        began = time.monotonic()
        out, err = process.communicate("\n", timeout=60)
        added = time.monotonic() - began
    launch.wait_for_no_relay()

    assert (7, "") == (process.returncode, err)
    return added, read_outcome(out)


SLOW = {
    "stopped for a fifth of the limit": lambda pid: stopped(pid, TIMEOUT_SECONDS * 0.2),
    "stopped for half of the limit": lambda pid: stopped(pid, TIMEOUT_SECONDS * 0.5),
    "stopped for nine tenths of the limit": lambda pid: stopped(pid, TIMEOUT_SECONDS * 0.9),
    "with half of a processor": lambda pid: limited(pid, 0.5),
    "with a fifth of a processor": lambda pid: limited(pid, 0.2),
    "with a tenth of a processor": lambda pid: limited(pid, 0.1),
}


@pytest.mark.promise("faults.slow")
@pytest.mark.parametrize("slow", SLOW)
def test_the_limit_counts_from_the_connection_however_slowly_the_relay_starts(slow, reporter):
    """With a silent collector tbot waits its limit plus 0.25 s at most, although the relay accepts it late."""
    tried = []
    with silent_server() as server:
        for _ in range(TRIES):
            added, outcome = time_report(reporter, endpoint(server.url), SLOW[slow])
            assert outcome.startswith("error unavailable ")
            assert outcome.endswith((TIMED_OUT, AT_THE_LIMIT))
            tried.append(round(added, 3))
            if added <= TIMEOUT_SECONDS + ALLOWANCE_SECONDS:
                return
    raise AssertionError(f"seconds, with a limit of {TIMEOUT_SECONDS} + {ALLOWANCE_SECONDS}: {tried}")


@pytest.mark.promise("faults.slow")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("slow", ["stopped for nine tenths of the limit", "with a tenth of a processor"])
def test_an_event_of_a_slow_relay_arrives_if_its_limit_allows_it(slow, protocol, reporter):
    """A slow start alone costs no event."""
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        _, outcome = time_report(reporter, PATIENT | endpoint(server.url, protocol), SLOW[slow])

        assert outcome.startswith("ok ")
        assert 1 == len(server.requests)


@pytest.mark.promise("faults.path")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("make", LAUNCHERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_an_event_arrives_however_sys_path_was_built(make, protocol, tmp_path):
    """A zipapp, a script, PYTHONPATH: the relay finds what the launcher finds, and nothing in the working directory."""
    launcher = make(tmp_path)
    for name in ("socket", "select", "httptools", "google", "opentelemetry", "grpc", "ssl"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('canary')\n")
    with OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer() as server:
        assert (200, "") == report_behind(launcher, tmp_path, endpoint(server.url, protocol))
        assert 1 == len(server.requests)


BROKEN = {
    "an older protobuf": OLD_PROTOBUF,
    "a broken httptools": {"httptools.py": "raise RuntimeError('canary')\n"},
    "httptools without a native part": {"httptools/__init__.py": "import httptools.missing\n"},
    "a broken google": {"google.py": "1 / 0\n"},
    "a broken opentelemetry": {"opentelemetry.py": "raise ValueError('canary')\n"},
    "a package that exits": {"httptools.py": "raise SystemExit(3)\n"},
}


@pytest.mark.promise("faults.path")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_on_pythonpath_costs_the_report_and_nothing_else(name, reporter, tmp_path):
    """tbot runs as it would alone, and its log says what the relay could not load."""
    for path, text in BROKEN[name].items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    with OtlpHttpServer() as server:
        environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(tmp_path)}
        launch = Launch({**environ, **CONSENT, **PATIENT, **endpoint(server.url)}, is_measured=False)
        finished = launch.run([reporter, "-oneshot", "-exit-code", "7"])
        launch.wait_for_end()

        assert (7, "") == (finished.returncode, finished.stderr)
        assert "the relay cannot load what it needs: " in read_outcome(finished.stdout)
        assert "canary" not in finished.stdout
        assert not server.requests


def replace_file(path, blob):
    """Replaces *path* in one step, as tools that renew certificates do."""
    new = path.with_suffix(".new")
    blob.write_to_path(new)
    os.replace(new, path)


class Files:
    """Certificates in *folder*: those of yesterday, which a collector does not accept, until `renew`.

    *kind* says which are renewed: the trusted "authority", or the "client" certificate and key.
    """

    def __init__(self, folder, kind):
        self._folder, self._kind = folder, kind
        self.server_authority, self.client_authority = trustme.CA(), trustme.CA()
        self._write(
            self.server_authority if kind == "client" else trustme.CA(),
            self.client_authority if kind == "authority" else trustme.CA(),
        )
        self.settings = {
            "CERTIFICATE": folder / "ca.pem",
            "CLIENT_KEY": folder / "key.pem",
            "CLIENT_CERTIFICATE": folder / "cert.pem",
        }

    def renew(self):
        """Replaces the files by those that the collector accepts."""
        self._write(self.server_authority, self.client_authority)

    def _write(self, trusted, own):
        pair = own.issue_cert("client.example")
        replace_file(self._folder / "ca.pem", trusted.cert_pem)
        replace_file(self._folder / "cert.pem", pair.cert_chain_pems[0])
        replace_file(self._folder / "key.pem", pair.private_key_pem)


@pytest.mark.promise("faults.certificates")
@pytest.mark.parametrize("kind", ["authority", "client"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_bridge_reads_replaced_certificates(protocol, kind, reporter, tmp_path):
    """A report that failed with yesterday's certificates is accepted once they are replaced, without a restart."""
    files = Files(tmp_path, kind)
    with ExitStack() as stack:
        server = stack.enter_context(
            tls_server(protocol, files.server_authority, client_authority=files.client_authority)
        )
        environ = PATIENT | environ_of(server, protocol, **files.settings)
        bridge = stack.enter_context(BridgeProcess(environ))

        def report():
            address = {**CONSENT, "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": bridge.url}
            command = [reporter, "-oneshot"]
            return subprocess.run(command, env=address, capture_output=True, text=True, check=False).stdout

        assert report().startswith("error unavailable ")
        files.renew()
        # gRPC waits before it connects again.
        assert poll_until(lambda: report().startswith("ok "), waiting_for="a report to be accepted")
        assert 1 == len(server.requests)


@pytest.mark.promise("faults.certificates")
@pytest.mark.parametrize("kind", ["authority", "client"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_relay_reads_certificates_that_are_replaced_before_the_report(protocol, kind, reporter, tmp_path):
    """The files are those of the report's time, not of the relay's start; unreplaced, the event is not sent."""
    for is_renewed in (False, True):
        folder = tmp_path / str(is_renewed)
        folder.mkdir()
        files = Files(folder, kind)
        with tls_server(protocol, files.server_authority, client_authority=files.client_authority) as server:
            launch, process = start_held(reporter, PATIENT | environ_of(server, protocol, **files.settings))
            launch.wait_for_relay()
            if is_renewed:
                files.renew()
            out, err = process.communicate("\n", timeout=120)
            launch.wait_for_no_relay()

        assert (7, "") == (process.returncode, err)
        assert read_outcome(out).startswith("ok " if is_renewed else "error unavailable ")
