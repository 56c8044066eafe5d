"""Opens the session with which OpenTelemetry's exporter sends over HTTP.

It adds nothing of this machine or its environment to a request, and trusts what the operating system trusts.
"""

from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from otel_tbot.otlp.tls import load_system_certificates, open_context


def open_session(*, is_tls: bool, trusts_system: bool) -> requests.Session:
    """Returns a session; with *is_tls*, *trusts_system* says whether no file of certificates is set."""
    session = requests.Session()
    session.trust_env = False  # no ~/.netrc and no proxy
    session.max_redirects = 0
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.headers["Accept-Encoding"] = "identity"  # requests names the compression libraries that are installed
    if is_tls:
        session.mount("https://", _TlsAdapter(trusts_system=trusts_system))
    return session


class _TlsAdapter(HTTPAdapter):
    """Connects with our TLS context, to which requests would add certifi's certificates."""

    def __init__(self, *, trusts_system: bool) -> None:
        self._context = open_context()
        if trusts_system:
            load_system_certificates(self._context)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, ssl_context=self._context, **options)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]  # requests' types lack it
        if verify is True:
            conn.ca_certs = None  # certifi's
