"""Reads the certificates that a collector is checked against, and the client's own."""

import os
import ssl
from typing import TYPE_CHECKING, Final

from otel_tbot.errors import OtelTbotError

if TYPE_CHECKING:
    from otel_tbot.otlp.config import OtlpConfig

# Where operating systems keep their certificates, for a Python whose OpenSSL was built to look elsewhere.
# Source: Go, crypto/x509, root_linux.go and root_bsd.go; macOS writes the last one.
_SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class TlsError(OtelTbotError):
    """A certificate or key file that cannot be used: which variable, and what to do; never a path or its content."""


def build_context(config: "OtlpConfig") -> ssl.SSLContext:
    """Returns what checks the collector's certificate and shows the client's own; reads the files again at each call.

    Without a certificate file the operating system's are trusted (SSL_CERT_FILE and SSL_CERT_DIR included), certifi's
    only if it has none. An intermediate certificate in the file is trusted as it is.

    Raises:
        TlsError: a file cannot be used.
    """
    context = open_context()
    context.set_alpn_protocols(["h2" if config.protocol == "grpc" else "http/1.1"])
    try:
        if config.certificate_file:
            context.load_verify_locations(config.certificate_file)
        else:
            load_system_certificates(context)
    except (OSError, ValueError) as error:
        raise TlsError(f"OTEL_EXPORTER_OTLP_CERTIFICATE: {_to_reason(error)}; name a readable PEM file") from None
    if config.client_certificate_file:
        _load_client_certificate(context, config)
    return context


def read_pem_files(config: "OtlpConfig") -> tuple[bytes, bytes | None, bytes | None]:
    """Returns what `build_context` reads, as PEM for gRPC: trusted certificates, client's key, client's certificate.

    Raises:
        TlsError: as `build_context`.
    """
    context = build_context(config)
    trusted = _read(config.certificate_file) if config.certificate_file else _to_pem(context)
    if not config.client_certificate_file:
        return trusted, None, None
    key_file = config.client_key_file or config.client_certificate_file
    return trusted, _read(key_file), _read(config.client_certificate_file)


def read_system_pem() -> bytes:
    """Returns the operating system's certificates as PEM, for gRPC."""
    context = open_context()
    load_system_certificates(context)
    return _to_pem(context)


def open_context() -> ssl.SSLContext:
    """Returns a context that trusts no certificate yet, takes an intermediate one as an anchor, and logs no secrets."""
    # Not create_default_context, which opens the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False
    return context


def load_system_certificates(context: ssl.SSLContext) -> None:
    """Trusts the operating system's certificates (SSL_CERT_FILE and SSL_CERT_DIR), certifi's if it has none."""
    context.load_default_certs()
    if context.cert_store_stats()["x509_ca"] or _list_directory():
        return
    for path in _SYSTEM_FILES:
        if os.path.exists(path):
            context.load_verify_locations(path)
            return
    import certifi

    context.load_verify_locations(certifi.where())


def _list_directory() -> list[str]:
    """Returns the files of OpenSSL's directory of certificates, which it reads only when it looks one up."""
    directory = ssl.get_default_verify_paths().capath
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory)] if directory else []
    except OSError:
        return []


def _load_directory(context: ssl.SSLContext) -> None:
    """Loads the directory's files if the system has no single file of certificates, because gRPC takes a string."""
    if context.cert_store_stats()["x509_ca"]:
        return
    for path in _list_directory():
        try:
            context.load_verify_locations(path)
        except (OSError, ValueError):
            pass  # a directory of certificates holds other files, too


def _to_pem(context: ssl.SSLContext) -> bytes:
    _load_directory(context)
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True))).encode()


def _load_client_certificate(context: ssl.SSLContext, config: "OtlpConfig") -> None:
    was_asked = []

    def refuse_to_ask() -> str:
        # Without it, OpenSSL would ask for the passphrase on the terminal.
        was_asked.append(True)
        return ""

    try:
        context.load_cert_chain(config.client_certificate_file, config.client_key_file or None, refuse_to_ask)
    except (OSError, ValueError) as error:
        if was_asked:
            raise TlsError("OTEL_EXPORTER_OTLP_CLIENT_KEY: is encrypted; use a key without a passphrase") from None
        raise TlsError(
            f"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY: {_to_reason(error)}; "
            "name readable PEM files that belong together"
        ) from None


def _to_reason(error: Exception) -> str:
    """Returns why a file cannot be used, without its name or content. Pure."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "malformed"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
