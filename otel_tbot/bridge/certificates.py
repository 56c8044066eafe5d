"""Reads the bridge's own certificate and key, and when the certificate ends."""

import ssl
from asyncio.sslproto import SSLProtocol
from datetime import UTC, datetime
from typing import Final

from otel_tbot.errors import OtelTbotError

_BUFFER_BYTES: Final = 16 * 1024
_UTC_TIME: Final = 0x17
_VERSION: Final = 0xA0
_LONG_LENGTH: Final = 0x80


class _EncryptedKeyError(Exception):
    """Says that a key has a passphrase."""


def shrink_tls_buffers() -> bool:
    """Makes asyncio's buffers for TLS connections small, for this process; returns whether that has an effect.

    asyncio gives each TLS connection a buffer of 256 KiB before the client has sent anything: 1,024 silent clients took
    280 MiB. Reports are small, and so is a TLS record. The size is an attribute that asyncio does not document. In a
    Python without it, or whose buffer does not have that size, the caller must allow fewer connections.
    """
    create = getattr(SSLProtocol.__init__, "__code__", None)
    if not hasattr(SSLProtocol, "max_size") or create is None or not {"max_size", "bytearray"} <= set(create.co_names):
        return False
    SSLProtocol.max_size = _BUFFER_BYTES
    return True


def load_tls_context(cert_path: str, key_path: str) -> ssl.SSLContext:
    """Returns the context for TLS connections to the bridge.

    Raises:
        OtelTbotError: a file cannot be read or used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # tbot connects once: nothing is kept for a second connection.
    context.num_tickets = 0
    for option, path in (("--tls-cert", cert_path), ("--tls-key", key_path)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise OtelTbotError(f"{option}: cannot be read ({error.strerror}); check path and rights") from None
    try:
        context.load_cert_chain(cert_path, key_path, password=_reject_passphrase)
    except _EncryptedKeyError:
        raise OtelTbotError(f"--tls-key: {key_path} is encrypted; use a key without a passphrase") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", "") or type(error).__name__
        rule = "must be a certificate and its key in PEM format"
        raise OtelTbotError(f"--tls-cert, --tls-key: {rule} ({reason})") from None
    return context


def read_expiry(cert_path: str) -> datetime:
    """Returns when the first certificate in a PEM file ends.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not contain a certificate.
    """
    # The text around the certificates can be in any encoding.
    with open(cert_path, encoding="latin-1") as file:
        text = file.read()
    begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
    return to_expiry(ssl.PEM_cert_to_DER_cert(f"{text[begin:end]}-----END CERTIFICATE-----"))


def to_expiry(der: bytes) -> datetime:
    """Returns the notAfter of a certificate. Pure. Source: RFC 5280, 4.1."""
    try:
        _, certificate, _ = _read_element(der)
        _, fields, _ = _read_element(certificate)
        tag, _, rest = _read_element(fields)
        if tag == _VERSION:
            _, _, rest = _read_element(rest)  # the serial number
        _, _, rest = _read_element(rest)  # the signature's algorithm
        _, _, rest = _read_element(rest)  # the issuer
        _, validity, _ = _read_element(rest)
        _, _, rest = _read_element(validity)  # notBefore
        tag, not_after, _ = _read_element(rest)
    except IndexError:
        raise ValueError("not a certificate") from None
    text = not_after.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _read_element(data: bytes) -> tuple[int, bytes, bytes]:
    """Returns the tag and the content of the first DER element, and what follows it."""
    tag, size, start = data[0], data[1], 2
    if size >= _LONG_LENGTH:
        start += size - _LONG_LENGTH
        size = int.from_bytes(data[2:start])
    return tag, data[start : start + size], data[start + size :]


def _reject_passphrase() -> str:
    raise _EncryptedKeyError
