"""Checks the bridge in operation: HTTPS, changed files, address families, errors of accept, metrics and warnings."""

import os
import resource
import signal
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta

import pytest
import requests
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from otel_tbot.bridge.certificates import read_expiry
from otel_tbot.bridge.server import ACCEPT_PAUSE_SECONDS
from tests.bridge.test_bridge import HEAD, PROTO, a_report, environ_of, is_closed, list_descriptors, post, run_bridge
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.polling import poll_until
from tests.support.processes import LAUNCHER
from tests.support.servers import Answer, OtlpHttpServer, refusing_port

SECRETS = ("0123456789abcdef", "fedcba9876543210")


class Authority:
    """Issues certificates for 127.0.0.1 into a folder."""

    def __init__(self, folder):
        self._authority = trustme.CA()
        self.path = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.path)
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"

    def issue(self, *, not_after=None):
        """Writes a certificate and its key; returns its serial number."""
        issued = self._authority.issue_cert("127.0.0.1", not_after=not_after)
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(issued.cert_chain_pems[0].bytes())
        return x509.load_pem_x509_certificate(self.cert.read_bytes()).serial_number

    @property
    def options(self):
        """The bridge's options."""
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))


@pytest.fixture
def authority(tmp_path):
    """An authority that has issued one certificate."""
    authority = Authority(tmp_path)
    authority.issue()
    return authority


def serial_number(bridge, authority):
    """The serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=authority.path)
    with context.wrap_socket(bridge.connect(), server_hostname="127.0.0.1") as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


def post_tls(bridge, authority, path=PROCEDURE):
    """Posts a report over HTTPS; returns the status."""
    url = bridge.url + path
    return requests.post(url, data=a_report()[0], headers=PROTO, timeout=60, verify=authority.path).status_code


def test_https_and_a_path_prefix_go_together(authority, tmp_path):
    """A report on the secret path over HTTPS is accepted; HTTP to the same port is not answered."""
    (tmp_path / "prefix").write_text(SECRETS[0])
    with OtlpHttpServer() as server:
        options = ("--path-prefix-file", str(tmp_path / "prefix"))
        with BridgeProcess(environ_of(server), *authority.options, *options) as bridge:
            assert bridge.url.startswith("https://")
            assert 200 == post_tls(bridge, authority, f"/{SECRETS[0]}{PROCEDURE}")
            assert 404 == post_tls(bridge, authority)
            with pytest.raises(requests.ConnectionError):
                requests.get(bridge.url.replace("https", "http"), timeout=60)
            assert 0 == bridge.end()

    assert 1 == len(server.requests)
    assert "" == bridge.written


@pytest.mark.parametrize("is_asked", [False, True], ids=["changed", "SIGHUP"])
def test_a_replaced_certificate_is_served(is_asked, authority):
    """New connections get the new certificate, without a restart."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), *authority.options) as bridge:
        serial_number(bridge, authority)
        renewed = authority.issue()
        if is_asked:
            os.kill(bridge.pid, signal.SIGHUP)
        poll_until(lambda: renewed == serial_number(bridge, authority), waiting_for="the new certificate")
        assert 200 == post_tls(bridge, authority)


def test_a_path_prefix_behind_symbolic_links_is_read_again(tmp_path):
    """As Kubernetes replaces a Secret: ..data points to another folder."""
    for number, secret in enumerate(SECRETS):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "prefix").write_text(secret)
    (tmp_path / "..data").symlink_to("0")
    (tmp_path / "prefix").symlink_to("..data/prefix")
    with OtlpHttpServer() as server:
        with BridgeProcess(environ_of(server), "--path-prefix-file", str(tmp_path / "prefix")) as bridge:
            assert 200 == post(bridge, path=f"/{SECRETS[0]}{PROCEDURE}").status_code
            (tmp_path / "..new").symlink_to("1")
            (tmp_path / "..new").rename(tmp_path / "..data")
            poll_until(
                lambda: post(bridge, path=f"/{SECRETS[1]}{PROCEDURE}").status_code == 200, waiting_for="the new prefix"
            )
            assert 404 == post(bridge, path=f"/{SECRETS[0]}{PROCEDURE}").status_code


def test_a_file_that_is_written_with_its_old_time_is_read_again(tmp_path):
    """As `cp -p` and `rsync --inplace` write it: same file, size and time; what `chown` does leaves these too."""
    file = tmp_path / "prefix"
    file.write_text(SECRETS[0])
    old = file.stat()
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), "--path-prefix-file", str(file)) as bridge:
        assert 200 == post(bridge, path=f"/{SECRETS[0]}{PROCEDURE}").status_code
        file.write_text(SECRETS[1])
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
        poll_until(
            lambda: post(bridge, path=f"/{SECRETS[1]}{PROCEDURE}").status_code == 200, waiting_for="the new prefix"
        )


def test_an_invalid_replacement_is_a_warning_and_the_old_contents_stay(tmp_path):
    """One line, and reports are still taken on the old path."""
    (tmp_path / "prefix").write_text(SECRETS[0])
    with OtlpHttpServer() as server:
        with BridgeProcess(environ_of(server), "--path-prefix-file", str(tmp_path / "prefix")) as bridge:
            (tmp_path / "prefix").write_text("short")
            os.kill(bridge.pid, signal.SIGHUP)
            assert 200 == post(bridge, path=f"/{SECRETS[0]}{PROCEDURE}").status_code
            bridge.end()

    assert "must contain one line of 16 to 256" in bridge.written
    assert "the bridge continues with the old contents" in bridge.written
    assert SECRETS[0] not in bridge.written


def test_a_certificate_that_ends_soon_is_a_warning(authority):
    """The warning says in how many days; one that ends later gives none."""
    authority.issue(not_after=datetime.now(UTC) + timedelta(days=3, hours=1))
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), *authority.options) as bridge:
        assert 200 == post_tls(bridge, authority)
        bridge.end()

    rule = "--tls-cert: the certificate ends in 3 days; replace the file, the bridge reads it again"
    assert [rule] == bridge.written.splitlines()


def test_the_certificate_for_the_collector_is_a_warning_too(authority):
    """It names the variable; without TLS to the collector the certificate is not used, and there is no warning."""
    authority.issue(not_after=datetime.now(UTC) - timedelta(days=1))
    files = {"CERTIFICATE": authority.path, "CLIENT_CERTIFICATE": str(authority.cert), "CLIENT_KEY": str(authority.key)}
    environ = {f"OTEL_EXPORTER_OTLP_{name}": path for name, path in files.items()}
    written = []
    for scheme in ("https", "http"):
        with BridgeProcess(environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{scheme}://127.0.0.1:9"}) as bridge:
            bridge.end()
        written.append(bridge.written)

    rule = (
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: the certificate has ended; replace the file, the bridge reads it again"
    )
    assert [f"{rule}\n", ""] == written


def test_the_end_of_a_certificate_is_read(authority):
    """The same as another library reads, also behind text that is not ASCII."""
    for not_after in (datetime(2049, 12, 31, tzinfo=UTC), datetime(2051, 1, 1, tzinfo=UTC)):
        authority.issue(not_after=not_after)
        authority.cert.write_bytes("friendlyName: Müller\n".encode() + authority.cert.read_bytes())
        assert not_after == read_expiry(str(authority.cert))


def test_an_encrypted_key_is_one_clear_error(authority):
    """No prompt: status 2, and a line that says what to do."""
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    authority.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    finished = run_bridge(*authority.options)

    assert (2, "") == (finished.returncode, finished.stdout)
    rule = f"otel-tbot: bridge: --tls-key: {authority.key} is encrypted; use a key without a passphrase\n"
    assert rule == finished.stderr


FAULTS = {
    "no key": (("--tls-cert", "cert.pem"), "--tls-cert, --tls-key: need each other"),
    "no file": (("--tls-cert", "/nonexistent", "--tls-key", "key.pem"), "--tls-cert: cannot be read"),
    "not a certificate": (("--tls-cert", "key.pem", "--tls-key", "cert.pem"), "--tls-cert, --tls-key: must be"),
}


@pytest.mark.parametrize(("options", "rule"), FAULTS.values(), ids=FAULTS)
def test_files_that_cannot_be_used_are_one_clear_error(options, rule, authority, tmp_path):
    """Status 2, and a line with place, rule and remedy."""
    assert authority.cert.exists()
    finished = run_bridge(*(str(tmp_path / word) if word.endswith(".pem") else word for word in options))

    assert (2, "", 1) == (finished.returncode, finished.stdout, finished.stderr.count("\n"))
    assert finished.stderr.startswith(f"otel-tbot: bridge: {rule}")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_both_address_families_are_served():
    """[::] takes connections over IPv4 too."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), "--listen", "[::]:0") as bridge:
        for host in ("127.0.0.1", "[::1]"):
            assert 200 == requests.get(f"http://{host}:{bridge.port}/healthz", timeout=60).status_code


ACCEPT_TRIES = 6


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EIO"])
def test_an_error_of_accept_neither_loses_a_report_nor_keeps_a_processor_busy(name, strace, tmp_path):
    """The kernel returns the error several times: the bridge pauses after each, says so, and accepts the report."""
    calls = tmp_path / "calls"
    inject = f"inject=accept4:error={name}:when=1..{ACCEPT_TRIES}"
    program = (strace, "-D", "-ttt", "-o", str(calls), "-e", "trace=accept4", "-e", inject, LAUNCHER[0])
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), program=program) as bridge:
        assert 200 == post(bridge).status_code
        assert 0 == bridge.end()
    failed = [float(line.split()[0]) for line in calls.read_text().splitlines() if "(INJECTED)" in line]
    first, *more = bridge.written.splitlines()

    assert ACCEPT_TRIES == len(failed)
    # A timer may fire early by the resolution of the clock.
    assert failed[-1] - failed[0] > (ACCEPT_TRIES - 1) * ACCEPT_PAUSE_SECONDS - 0.01
    rule = f"connections could not be accepted yet, and wait ({name})"
    if name not in {"EPERM", "EIO"}:
        rule += "; raise the limit of open files or of memory"
    assert f"{rule}; count: 1" == first
    assert [f"{rule}; count: {ACCEPT_TRIES - 1}"] == more
    assert 1 == len(server.requests)


@pytest.mark.parametrize("name", ["ECONNABORTED", "EPROTO", "EHOSTUNREACH"])
def test_a_client_whose_connection_failed_before_it_was_accepted_is_no_warning(name, strace, tmp_path):
    """The next connection is accepted, and nothing is written."""
    inject = f"inject=accept4:error={name}:when=1..{ACCEPT_TRIES}"
    program = (strace, "-D", "-o", str(tmp_path / "calls"), "-e", "trace=accept4", "-e", inject, LAUNCHER[0])
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), program=program) as bridge:
        assert 200 == post(bridge).status_code
        assert 0 == bridge.end()

    assert ACCEPT_TRIES == (tmp_path / "calls").read_text().count("(INJECTED)")
    assert "" == bridge.written


def test_without_descriptors_the_longest_silent_gives_way():
    """If something else takes the process's descriptors, an idle client is closed for the one that asks."""
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        held = []
        for _ in range(10):
            held.append(bridge.connect())
            held[-1].sendall(request)
            assert held[-1].recv(4096)
        used = list_descriptors(bridge.pid)
        _, most = resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), most))
        with bridge.connect() as honest:
            honest.sendall(request)
            assert honest.recv(4096).startswith(b"HTTP/1.1 200")
        assert b"" == held[0].recv(1)
        for connection in held:
            connection.close()
        bridge.end()

    assert "connections could not be accepted yet, and wait (EMFILE)" in bridge.written


FEW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (276, 276))
from otel_tbot.__main__ import main
main()
"""
"""Runs the command with room for 20 connections."""


def test_a_connection_in_its_tls_handshake_gives_way(authority):
    """Handshakes that do not go on fill the room; an honest client is served, and no connection is left over."""
    beginnings = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    with OtlpHttpServer() as server:
        program = (sys.executable, "-c", FEW)
        with BridgeProcess(environ_of(server), *authority.options, program=program) as bridge:
            before = list_descriptors(bridge.pid)
            held = []
            for number in range(60):
                held.append(bridge.connect())
                held[-1].sendall(beginnings[number % len(beginnings)])
            for _ in range(3):
                assert 200 == post_tls(bridge, authority)
            assert is_closed(held[0])
            assert len(list_descriptors(bridge.pid)) <= len(before) + 20 + 2
            for connection in held:
                connection.close()
            poll_until(
                lambda: len(list_descriptors(bridge.pid)) <= len(before) + 1, waiting_for="every connection's end"
            )
            assert 0 == bridge.end()

    assert 3 == sum(len(request.session_ids) for request in server.requests)
    assert "" == bridge.written


def test_a_collector_that_does_not_accept_is_a_rate_limited_warning():
    """The first failure is logged at once, the rest with their count at the end; no client address."""
    with refusing_port() as url, BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": url}) as bridge:
        for _ in range(5):
            assert 503 == post(bridge).status_code
        bridge.end()

    rule = "reports were answered `unavailable`, because the collector did not accept their events (unreachable)"
    remedy = "run `otel-tbot doctor` with the same settings to see why"
    assert [f"{rule}; {remedy}; count: {count}" for count in (1, 4)] == bridge.written.splitlines()


def test_a_wrong_path_again_and_again_is_a_warning(tmp_path):
    """From ten on; requests to other paths, as scanners make, are not counted."""
    (tmp_path / "prefix").write_text(SECRETS[0])
    with OtlpHttpServer(Answer()) as server:
        with BridgeProcess(environ_of(server), "--path-prefix-file", str(tmp_path / "prefix")) as bridge:
            for _ in range(30):
                requests.get(f"{bridge.url}/admin", timeout=60)
            for _ in range(10):
                assert 404 == post(bridge).status_code
            bridge.end()

    (line,) = bridge.written.splitlines()
    assert line.startswith("reports came on a wrong path; check the path in the address")
    assert line.endswith("; count: 10")
    assert SECRETS[0] not in line


def test_an_upgrade_is_ignored_and_a_websocket_is_rejected():
    """A report with Upgrade: h2c is accepted over HTTP/1.1; a WebSocket handshake gets an error."""
    body, session_id = a_report()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    report = HEAD + upgrade + b"Content-Type: application/proto\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    handshake = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server)) as bridge:
        for request, status in ((report, b"200"), (handshake, b"404")):
            with bridge.connect() as connection:
                connection.sendall(request)
                assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)

    assert [session_id] == server.requests[0].session_ids


def test_an_idle_connection_is_closed_after_its_timeout():
    """--idle-timeout; meanwhile it serves further requests."""
    with OtlpHttpServer() as server, BridgeProcess(environ_of(server), "--idle-timeout", "5") as bridge:
        with bridge.connect() as connection:
            for _ in range(3):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            assert b"" == connection.recv(4096)
