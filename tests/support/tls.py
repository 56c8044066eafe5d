"""Starts receivers that speak OTLP over TLS."""

import ssl
from os import PathLike

import grpc
import trustme

from tests.support.servers import OtlpGrpcServer, OtlpHttpServer


def tls_server(
    protocol: str, authority: trustme.CA, *, client_authority: trustme.CA | None = None
) -> OtlpGrpcServer | OtlpHttpServer:
    """A receiver on localhost with a certificate of *authority*; with *client_authority* it asks for the client's."""
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    if protocol == "grpc":
        roots = client_authority.cert_pem.bytes() if client_authority else None
        pair = (certificate.private_key_pem.bytes(), chain)
        credentials = grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
        return OtlpGrpcServer(credentials=credentials)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if client_authority:
        client_authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return OtlpHttpServer(tls=context)


def environ_of(server: OtlpGrpcServer | OtlpHttpServer, protocol: str, **files: str | PathLike[str]) -> dict[str, str]:
    """The settings that send to *server* with *files* (CERTIFICATE, CLIENT_KEY, …)."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        **{f"OTEL_EXPORTER_OTLP_{name}": str(path) for name, path in files.items()},
    }
