"""Gives the bridge's tests a certificate."""

import ssl

import pytest
import trustme


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate and its key, and the context of a client that trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return folder, context
