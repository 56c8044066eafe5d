"""Answers DNS queries on loopback with fixed addresses."""

import socket
import threading
from collections.abc import Sequence
from typing import Self


class DnsServer:
    """A DNS server that has *addresses* for every name, and no other kind of record."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._to_response(query), sender)

    def _to_response(self, query: bytes) -> bytes:
        # Source: RFC 1035, section 4: a header of 12 bytes, then the question: labels, type, class.
        question = query[12 : query.index(b"\0", 12) + 5]
        is_address = question[-4:] == b"\0\x01\0\x01"
        records = [b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(text) for text in self._addresses]
        records = records if is_address else []
        return query[:2] + b"\x85\x80\0\x01" + len(records).to_bytes(2) + b"\0\0\0\0" + question + b"".join(records)
