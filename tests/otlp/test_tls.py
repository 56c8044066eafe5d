import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import trustme

from otel_tbot.otlp.client import OtlpClient
from otel_tbot.otlp.config import resolve_config
from otel_tbot.otlp.tls import TlsError, build_context
from otel_tbot.outcome import Outcome
from tests.support.tls import environ_of, tls_server

PATIENT_SECONDS = 60.0
PROTOCOLS = ("http/protobuf", "grpc")
EMIT = "import otel_tbot as o; print(o.emit(o.TbotStart(run_mode='daemon')).value)"


def send(client):
    """One empty request by *client*."""
    return client.send(b"", deadline=time.monotonic() + PATIENT_SECONDS).outcome


def emit(environ):
    """The outcome of `emit` in a process with *environ* and nothing else."""
    on = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}
    command = [sys.executable, "-c", EMIT]
    finished = subprocess.run(command, env={**on, **environ}, capture_output=True, text=True, check=True, timeout=120)
    return finished.stdout.strip()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_operating_system_s_certificates_are_trusted(protocol, tmp_path):
    """A company's authority in the system's certificates, here by SSL_CERT_FILE or SSL_CERT_DIR, is trusted."""
    authority = trustme.CA()
    bundle = tmp_path / "system.pem"
    authority.cert_pem.write_to_path(bundle)
    folder = tmp_path / "certs"
    folder.mkdir()
    shutil.copy(bundle, folder / "company.pem")
    subprocess.run(["openssl", "rehash", folder], check=True)
    with tls_server(protocol, authority) as server:
        environ = environ_of(server, protocol)

        assert "accepted" == emit({**environ, "SSL_CERT_FILE": str(bundle)})
        assert "accepted" == emit({**environ, "SSL_CERT_FILE": str(tmp_path / "missing"), "SSL_CERT_DIR": str(folder)})
        assert "unreachable" == emit(environ)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_grpc_s_and_other_programs_certificates_are_not_trusted(protocol, tmp_path):
    """Only the settings and the system decide, not variables of gRPC, requests or curl."""
    authority = trustme.CA()
    bundle = tmp_path / "other.pem"
    authority.cert_pem.write_to_path(bundle)
    names = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    with tls_server(protocol, authority) as server:
        environ = environ_of(server, protocol)

        assert "unreachable" == emit({**environ, **dict.fromkeys(names, str(bundle))})
        assert "accepted" == emit({**environ, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(bundle)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_secrets_of_a_connection_are_not_written(protocol, tmp_path):
    """SSLKEYLOGFILE names a file that Python's default context opens, and `emit` does not."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    variable = {"SSLKEYLOGFILE": str(tmp_path / "secrets")}
    with tls_server(protocol, authority) as server:
        assert "accepted" == emit(environ_of(server, protocol, CERTIFICATE=tmp_path / "authority.pem") | variable)

    assert not (tmp_path / "secrets").exists()
    subprocess.run([sys.executable, "-c", "import ssl; ssl.create_default_context()"], env=variable, check=True)
    assert (tmp_path / "secrets").exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_intermediate_certificate_is_an_anchor(protocol, tmp_path):
    """A file with an intermediate authority and without its root is enough."""
    root = trustme.CA()
    intermediate = root.create_child_ca()
    anchor = tmp_path / "intermediate.pem"
    intermediate.cert_pem.write_to_path(anchor)
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    with tls_server(protocol, intermediate) as server:
        for file, outcome in ((anchor, Outcome.ACCEPTED), (stranger, Outcome.UNREACHABLE)):
            client = OtlpClient(resolve_config(environ_of(server, protocol, CERTIFICATE=file)))

            assert outcome is send(client)
            client.close()


def test_a_name_with_the_root_s_dot_is_the_certificate_s_name(tmp_path, monkeypatch):
    """In Kubernetes a name that ends in a dot is looked up once; its certificate is issued without the dot."""
    resolve = socket.getaddrinfo
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **o: resolve(host.removesuffix("."), *rest, **o))
    with tls_server("http/protobuf", authority) as server:
        for host, outcome in (("localhost.", Outcome.ACCEPTED), ("127.0.0.1", Outcome.UNREACHABLE)):
            environ = environ_of(server, "http/protobuf", CERTIFICATE=tmp_path / "ca.pem")
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = server.url.replace("localhost", host)
            client = OtlpClient(resolve_config(environ))

            assert outcome is send(client)
            client.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_replaced_certificate_file_is_read_again(protocol, tmp_path):
    """A client that failed with yesterday's authority sends with today's once the file is replaced."""
    yesterday, today = trustme.CA(), trustme.CA()
    file = tmp_path / "ca.pem"
    yesterday.cert_pem.write_to_path(file)
    with tls_server(protocol, today) as server:
        client = OtlpClient(resolve_config(environ_of(server, protocol, CERTIFICATE=file)))
        assert Outcome.UNREACHABLE is send(client)
        replacement = tmp_path / "new.pem"
        today.cert_pem.write_to_path(replacement)
        os.replace(replacement, file)

        assert Outcome.ACCEPTED is send(client)
        client.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client_s_certificate_is_shown(protocol, tmp_path):
    """With mTLS the client's certificate and key are used; without them the collector refuses the connection."""
    authority, clients = trustme.CA(), trustme.CA()
    pair = clients.issue_cert("client.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    own = {"CLIENT_KEY": tmp_path / "key.pem", "CLIENT_CERTIFICATE": tmp_path / "cert.pem"}
    with tls_server(protocol, authority, client_authority=clients) as server:
        for files, outcome in ((own, Outcome.ACCEPTED), ({}, Outcome.UNREACHABLE)):
            client = OtlpClient(resolve_config(environ_of(server, protocol, CERTIFICATE=tmp_path / "ca.pem", **files)))

            assert outcome is send(client)
            client.close()


def encrypt(key, path):
    """Writes *key* to *path*, with a passphrase."""
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:canary", "-out", path]
    subprocess.run(command, input=key, capture_output=True, check=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_encrypted_key_is_one_error_and_never_a_prompt(protocol, tmp_path):
    """OpenSSL would ask for the passphrase on the terminal."""
    pair = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert("client.example", key_type=trustme.KeyType.RSA)
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    encrypt(pair.private_key_pem.bytes(), tmp_path / "key.pem")
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / "cert.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(tmp_path / "key.pem"),
    }
    with pytest.raises(TlsError) as raised:
        build_context(resolve_config(environ))

    assert "OTEL_EXPORTER_OTLP_CLIENT_KEY: is encrypted; use a key without a passphrase" == str(raised.value)
    # On a terminal, as a user has it: the error comes at once, without a prompt.
    on = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}
    script = f"import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', {EMIT!r}]) != 0)"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        env={**on, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert finished.stdout.splitlines()[-1] == "unreachable"
    assert "pass" not in finished.stdout.replace("without a passphrase", "").lower()


@pytest.mark.parametrize(
    ("files", "start"),
    [
        ({"CERTIFICATE": "missing"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: no such file or directory; name a readable PEM"),
        ({"CERTIFICATE": "text"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: "),
        ({"CLIENT_CERTIFICATE": "missing"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY: no"),
        ({"CLIENT_CERTIFICATE": "text"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY: "),
    ],
)
def test_an_unusable_file_is_an_error_without_its_path_or_content(files, start, tmp_path):
    """The error names the variable, the reason and the remedy."""
    (tmp_path / "text").write_text("canary")
    environ = {f"OTEL_EXPORTER_OTLP_{name}": str(tmp_path / file) for name, file in files.items()}
    with pytest.raises(TlsError) as raised:
        build_context(resolve_config({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example", **environ}))

    assert str(raised.value).startswith(start)
    assert "canary" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
