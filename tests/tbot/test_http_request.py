import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tbot.event import TbotStart
from otel_tbot.tbot.connect import ConnectCall
from otel_tbot.tbot.http_request import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_REQUEST_BYTES,
    RequestParser,
    Response,
    to_bytes,
)
from otel_tbot.tbot.report import PROCEDURE, to_report

BODY = to_report(TbotStart(run_mode="daemon", version="18.4.1")).SerializeToString()
HEAD = f"POST {PROCEDURE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\n".encode()
OTHER = b"POST /other HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
REPORT = HEAD + LENGTH + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
BYTEWISE = b"".join(b"1\r\n%c\r\n" % byte for byte in b"\x0a" * MAX_REQUEST_BYTES)
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"


def open_call(method, path, headers):
    """Takes reports without a prefix; /known is answered."""
    return Response(204) if path == "/known" else ConnectCall(method, path, headers, path_prefix="")


def read(data, *, sizes=(), max_requests=8):
    """Feeds *data* in pieces of *sizes*, the last repeated; returns what each request gets, and whether it is last."""
    parser = RequestParser(open_call, max_requests=max_requests)
    sizes = list(sizes) or [len(data)]
    while data:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        parser.feed(data[:size])
        data = data[size:]
    return [
        ("event" if request.event else request.response.status, request.is_last, request.is_complete)
        for request in parser.requests
    ]


EVENT, LAST_EVENT = ("event", False, True), ("event", True, True)
REQUESTS = {
    "with a length": (REPORT, [EVENT]),
    "chunked": (CHUNKED, [EVENT]),
    "with a trailer": (CHUNKED[:-2] + b"X: x\r\n\r\n", [EVENT]),
    "one after the other": (REPORT + CHUNKED + REPORT, [EVENT] * 3),
    "with empty lines in front": (b"\r\n\r\n" + REPORT, [EVENT]),
    "the whole URL, as to a proxy": (REPORT.replace(b" /", b" http://bridge:8080/", 1), [EVENT]),
    "a query": (REPORT.replace(b" HTTP", b"?x=/y HTTP", 1), [EVENT]),
    "HTTP/1.0": (REPORT.replace(b"HTTP/1.1", b"HTTP/1.0"), [LAST_EVENT]),
    "the client's last": (HEAD + b"Connection: close\r\n" + LENGTH + BODY + REPORT, [LAST_EVENT]),
    "Upgrade: h2c is ignored": (HEAD + UPGRADE + LENGTH + BODY, [LAST_EVENT]),
    "Upgrade: h2c, chunked": (CHUNKED.replace(b"Host: x\r\n", UPGRADE), [LAST_EVENT]),
    "Upgrade: h2c, unwanted": (OTHER + UPGRADE + LENGTH + BODY, [(404, True, True)]),
    "a WebSocket": (
        b"GET /known HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        [(204, True, True)],
    ),
    "a tunnel": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + REPORT, [(405, True, False)]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [(400, True, False)]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [(400, True, False)]),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", [(400, True, False)]),
    "a length and chunks": (HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + BODY, [(400, True, False)]),
    "a chunk of negative length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx", [(400, True, False)]),
    "a broken report": (HEAD + b"Content-Length: 1\r\n\r\n\xff" + REPORT, [(400, False, True), EVENT]),
    "another path": (OTHER + LENGTH + BODY + REPORT, [(404, False, True), EVENT]),
    "another path, unwanted body": (OTHER + b"Expect: 100-continue\r\n" + LENGTH, [(404, True, False)]),
}


@pytest.mark.parametrize(("data", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_each_request_is_read_or_rejected(data, expected):
    """At once or one byte at a time, each request gets the same, and nothing is read after the last."""
    assert expected == read(data)
    assert expected == read(data, sizes=[1])


def length(size, head=HEAD):
    """A body of *size* bytes after *head*."""
    return head + b"Content-Length: %d\r\n\r\n" % size + b"\xff" * size


def padded(size):
    """A report whose target, names and values have *size* bytes together."""
    fixed = len(PROCEDURE) + len(b"HostxContent-Typeapplication/protoContent-Length") + len(str(len(BODY))) + len("X")
    return HEAD + b"X: " + b"x" * (size - fixed) + b"\r\n" + LENGTH + BODY


LIMITS = {
    "a body": (length(MAX_REQUEST_BYTES), length(MAX_REQUEST_BYTES + 1), (400, False, True), (429, True, False)),
    "a body on another path": (
        *(length(MAX_REQUEST_BYTES, OTHER), length(MAX_REQUEST_BYTES + 1, OTHER)),
        *((404, False, True), (404, True, False)),
    ),
    "headers": (
        HEAD + b"X: x\r\n" * (MAX_HEADERS - 3) + LENGTH + BODY,
        HEAD + b"X: x\r\n" * (MAX_HEADERS - 2) + LENGTH + BODY,
        *(EVENT, (431, True, False)),
    ),
    "bytes of headers": (padded(MAX_HEAD_BYTES), padded(MAX_HEAD_BYTES + 1), EVENT, (431, True, False)),
    "chunks of one byte": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BYTEWISE + b"0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BYTEWISE + b"1\r\nx\r\n0\r\n\r\n",
        *((400, False, True), (429, True, False)),
    ),
}


@pytest.mark.parametrize(("below", "above", "served", "rejected"), LIMITS.values(), ids=LIMITS)
def test_what_a_request_may_have_is_bounded(below, above, served, rejected):
    """At the limit it is served, above it is rejected, whatever the size of the pieces."""
    sizes = [len(below)] if served == EVENT else [1, 100, 4096]

    assert [served] == read(below, sizes=sizes)
    assert [rejected] == read(above)
    assert [rejected] == read(above, sizes=[1, 100, 4096])


ENDLESS = {
    "empty lines": (b"", b"\r\n", 431),
    "a target": (b"POST /", b"x", 431),
    "a header": (HEAD + b"X: ", b"x", 431),
    "a header's name": (HEAD, b"x", 431),
    "headers": (HEAD, b"X: x\r\n", 431),
    "an extension of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", 413),
    "an extension on another path": (OTHER + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", 404),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n", 431),
    "a trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x", 413),
    "leading zeros of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0", 413),
}


@pytest.mark.parametrize(("beginning", "repeated", "status"), ENDLESS.values(), ids=ENDLESS)
def test_a_request_without_end_is_rejected(beginning, repeated, status):
    """Input that httptools would collect or skip forever ends at a limit."""
    parser = RequestParser(open_call)
    parser.feed(beginning)
    fed = 0
    while not parser.is_finished:
        parser.feed(repeated * 1000)
        fed += len(repeated) * 1000

    assert status == parser.requests[-1].response.status
    assert fed <= 7 * MAX_REQUEST_BYTES + MAX_HEAD_BYTES


def test_only_so_many_requests_wait():
    """The last one says so, what follows is not read, and a request that was taken makes room."""
    assert [EVENT] * 7 + [LAST_EVENT] == read(REPORT * 1000)
    assert [LAST_EVENT] == read(REPORT * 2, max_requests=1)

    parser = RequestParser(open_call, max_requests=2)
    for _ in range(10):
        parser.feed(REPORT)
        assert not parser.requests.popleft().is_last


@pytest.mark.parametrize(("path", "is_wanted"), [(PROCEDURE, True), ("/other", False)])
def test_a_client_that_waits_for_permission_gets_it_only_if_its_body_is_wanted(path, is_wanted):
    """Expect: 100-continue; otherwise the response is final, and the body never comes."""
    parser = RequestParser(open_call)
    parser.feed(HEAD.replace(PROCEDURE.encode(), path.encode()) + b"Expect: 100-continue\r\n" + LENGTH)

    assert is_wanted == parser.wants_continue
    assert (not is_wanted) == bool(parser.requests)
    parser.feed(BODY)
    assert not parser.wants_continue
    assert is_wanted == (parser.requests[0].event is not None)


@pytest.mark.parametrize("value", [b"100-Continue", b"100-CONTINUE"])
def test_permission_can_be_asked_for_in_any_case(value):
    """The value of Expect has no case (RFC 9110, 10.1.1)."""
    parser = RequestParser(open_call)
    parser.feed(HEAD + b"Expect: " + value + b"\r\n" + LENGTH)

    assert parser.wants_continue


def test_after_an_error_no_client_gets_permission():
    """The final response is the last that a client gets, even if it asked for permission in the same packet."""
    parser = RequestParser(open_call)
    parser.feed(HEAD + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nx")

    assert 400 == parser.requests[0].response.status
    assert not parser.wants_continue


@given(st.binary(max_size=300), st.integers(1, 300))
def test_no_input_makes_it_fail(data, size):
    """Any bytes, also after a good beginning, cause no exception and at most one last request."""
    for beginning in (b"", REPORT, HEAD, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"):
        found = read(beginning + data, sizes=[size])
        assert all(not is_last for _, is_last, _ in found[:-1])


def test_a_response_is_http():
    """Status, headers, length, and Connection: close with the last."""
    response = Response(503, ((b"content-type", b"application/json"),), b"{}")

    assert (
        b"HTTP/1.1 503 \r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
        == to_bytes(response, is_last=True)
    )
    assert b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n" == to_bytes(Response(404), is_last=False)
