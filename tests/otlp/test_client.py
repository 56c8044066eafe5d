import platform
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.version import __version__ as sdk_version

from otel_tbot import __version__
from otel_tbot.errors import OtelTbotError
from otel_tbot.event import TbotStart
from otel_tbot.otlp.client import OtlpClient
from otel_tbot.otlp.config import resolve_config
from otel_tbot.otlp.encoding import encode_request, parse_log_request
from otel_tbot.otlp.tls import TlsError
from otel_tbot.outcome import Outcome
from tests.support.polling import poll_until
from tests.support.servers import (
    Answer,
    OtlpGrpcServer,
    OtlpHttpServer,
    closing_server,
    cutting_server,
    garbage_server,
    raw_server,
    refusing_port,
    silent_server,
    trickling_server,
)

SECOND_NS = 1_000_000_000
PATIENT_SECONDS = 60.0


def environ_of(url: str, signal: str = "log", protocol: str = "http/protobuf", **more: str) -> dict[str, str]:
    """The settings that send *signal* over *protocol* to *url*."""
    return {
        "OTEL_TBOT_SIGNAL": signal,
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        **{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in more.items()},
    }


def to_body(signal: str, event: TbotStart) -> bytes:
    """The body of the request that carries *event*."""
    return encode_request([(event, 7 * SECOND_NS)], signal=signal, is_local=True).SerializeToString()


def send(
    environ: dict[str, str], event: TbotStart | None = None, *, deadline_seconds: float = PATIENT_SECONDS
) -> Outcome:
    """Sends one event by a new client."""
    body = to_body(environ["OTEL_TBOT_SIGNAL"], event or TbotStart(run_mode="daemon"))
    client = OtlpClient(resolve_config(environ))
    try:
        return client.send(body, deadline=time.monotonic() + deadline_seconds).outcome
    finally:
        client.close()


def patient_sender(url: str, protocol: str = "http/protobuf"):
    """A client and what sends one body by it, with time enough."""
    client = OtlpClient(resolve_config(environ_of(url, "log", protocol)))
    return client, lambda body: client.send(body, deadline=time.monotonic() + PATIENT_SECONDS).outcome


def server_of(protocol: str) -> OtlpGrpcServer | OtlpHttpServer:
    """A receiver that speaks *protocol*."""
    return OtlpGrpcServer() if protocol == "grpc" else OtlpHttpServer()


def test_no_two_clients_share_a_connection():
    """gRPC would keep it for the next client of the same process and target, and so join two starts."""
    with OtlpGrpcServer() as server:
        for _ in range(30):
            assert Outcome.ACCEPTED is send(environ_of(server.url, protocol="grpc"))

    assert 30 == len(set(server.peers))


@pytest.mark.parametrize("signal", ["log", "span"])
def test_the_remaining_time_is_not_sent(signal):
    """gRPC would send how much of the deadline is left, which tells how fast this machine is."""
    with OtlpGrpcServer() as server:
        assert Outcome.ACCEPTED is send(environ_of(server.url, signal, "grpc"))

    # Without a deadline, gRPC reports a time far in the future.
    assert [True] == [remaining > 10**9 for remaining in server.deadlines]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_a_batch_is_one_request(protocol, signal, compression):
    """Over either protocol, in any compression, one request holds the record, and is ACCEPTED."""
    event = TbotStart(run_mode="one-shot", version="18.4.1")
    with server_of(protocol) as server:
        outcome = send(environ_of(server.url, signal, protocol, COMPRESSION=compression), event)
    (request,) = server.requests
    resource_name, scope_name, record_name = {
        "log": ("resource_logs", "scope_logs", "log_records"),
        "span": ("resource_spans", "scope_spans", "spans"),
    }[signal]
    (resource_part,) = getattr(request.message, resource_name)
    (scope_part,) = getattr(resource_part, scope_name)
    (record,) = getattr(scope_part, record_name)

    assert Outcome.ACCEPTED is outcome
    paths = {"log": ("/v1/logs", "logs"), "span": ("/v1/traces", "traces")}[signal]
    assert paths[protocol == "grpc"] == request.path
    assert {"service.name": "tbot", "telemetry.sdk.version": sdk_version}.items() <= {
        a.key: a.value.string_value for a in resource_part.resource.attributes
    }.items()
    assert ("otel_tbot", __version__) == (scope_part.scope.name, scope_part.scope.version)
    assert list(event.attributes()) == [a.key for a in record.attributes]


def test_the_headers_of_an_http_request_identify_no_client():
    """The whole set of headers is fixed, except for the collector's address and the body's length."""
    with OtlpHttpServer() as server:
        send(environ_of(server.url))
    headers = server.requests[0].headers

    assert server.url.removeprefix("http://") == headers.pop("host")
    assert headers.pop("content-length").isdigit()
    assert {
        "user-agent": f"OTel-OTLP-Exporter-Python/{sdk_version}",
        "accept-encoding": "identity",
        "accept": "*/*",
        "connection": "keep-alive",
        "content-type": "application/x-protobuf",
    } == headers


def test_the_metadata_of_a_grpc_request_identifies_no_client():
    """gRPC's metadata holds versions, and the operating system's name."""
    with OtlpGrpcServer() as server:
        send(environ_of(server.url, protocol="grpc"))
    (user_agent,) = server.requests[0].headers.values()

    assert {"user-agent"} == set(server.requests[0].headers)
    expected = (
        rf"OTel-OTLP-Exporter-Python/{re.escape(sdk_version)} grpc-python/[0-9.]+ grpc-c/[0-9.]+ \((\w+); chttp2\)"
    )
    assert re.fullmatch(expected, user_agent).group(1) in {platform.system().lower(), "osx"}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_headers_that_are_set_travel(protocol):
    """OTEL_EXPORTER_OTLP_HEADERS reach the collector."""
    with server_of(protocol) as server:
        assert Outcome.ACCEPTED is send(environ_of(server.url, "log", protocol, HEADERS="x-token=a%20b,x-more=1"))

    assert {"x-token": "a b", "x-more": "1"}.items() <= server.requests[0].headers.items()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_application_s_trace_and_baggage_do_not_travel(protocol):
    """An active span, baggage and a provider of the application add no header."""
    with server_of(protocol) as server:
        token = context.attach(baggage.set_baggage("canary", "canary"))
        try:
            with TracerProvider().get_tracer("canary").start_as_current_span("canary"):
                send(environ_of(server.url, "log", protocol))
        finally:
            context.detach(token)

    assert not {"traceparent", "tracestate", "baggage", "b3"} & set(server.requests[0].headers)
    assert "canary" not in str(server.requests[0])


ANSWERS = {
    "empty": (Answer(), Outcome.ACCEPTED),
    "an empty partial success, as the Collector sends": (Answer(body=b"\x0a\x00"), Outcome.ACCEPTED),
    "a warning that rejects nothing": (Answer(body=b"\x0a\x04\x12\x02hi"), Outcome.ACCEPTED),
    "with parameters of its type": (Answer(content_type="Application/X-Protobuf; x=y"), Outcome.ACCEPTED),
    "202": (Answer(status=202), Outcome.ACCEPTED),
    "empty, of no type": (Answer(status=204, content_type=None), Outcome.ACCEPTED),
    "one rejected": (Answer(body=b"\x0a\x02\x08\x01"), Outcome.REFUSED),
    "a web page": (Answer(content_type="text/html", body=b"<p>"), Outcome.REFUSED),
    "an empty web page": (Answer(content_type="text/html"), Outcome.REFUSED),
    "OTLP/JSON": (Answer(content_type="application/json", body=b"{}"), Outcome.ACCEPTED),
    "JSON of something else": (Answer(content_type="application/json", body=b'{"a": {}}'), Outcome.REFUSED),
    "200, empty, of another type": (Answer(content_type="text/plain"), Outcome.ACCEPTED),
    "201": (Answer(status=201), Outcome.REFUSED),
    "bytes of no type": (Answer(content_type=None, body=b"\x0a\x00"), Outcome.REFUSED),
    "broken protobuf": (Answer(body=b"\xff\xff"), Outcome.REFUSED),
    "too much": (Answer(body=b"\x7a\x80\x80\x08" + b"x" * 131_072), Outcome.REFUSED),
    "a redirect": (Answer(status=302, headers={"Location": "/elsewhere"}), Outcome.REFUSED),
    "a permanent redirect": (Answer(status=308, headers={"Location": "/elsewhere"}), Outcome.REFUSED),
    "bad request": (Answer(status=400), Outcome.REFUSED),
    "unauthorized": (Answer(status=401), Outcome.REFUSED),
    "too many": (Answer(status=429, headers={"Retry-After": "0"}), Outcome.REFUSED),
    "unavailable": (Answer(status=503, headers={"Retry-After": "0"}), Outcome.REFUSED),
}


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize(("answer", "outcome"), ANSWERS.values(), ids=ANSWERS)
def test_only_an_acceptance_is_accepted_over_http(answer, outcome, signal):
    """A response of OTLP that rejects nothing is ACCEPTED, anything else is REFUSED; nothing is sent twice."""
    with OtlpHttpServer(answer) as server:
        assert outcome is send(environ_of(server.url, signal))
        assert 1 == len(server.requests)


def test_a_redirect_is_not_followed():
    """The event is not sent to the address that a redirect names."""
    with OtlpHttpServer() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with OtlpHttpServer(Answer(status=status, headers={"Location": elsewhere.url + "/v1/logs"})) as server:
                assert Outcome.REFUSED is send(environ_of(server.url))
        assert not elsewhere.requests
        assert Outcome.ACCEPTED is send(environ_of(elsewhere.url))


@pytest.mark.parametrize("signal", ["log", "span"])
@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({}, Outcome.ACCEPTED),
        ({"rejected": 1}, Outcome.REFUSED),
        ({"code": grpc.StatusCode.UNAVAILABLE}, Outcome.UNREACHABLE),
        ({"code": grpc.StatusCode.DEADLINE_EXCEEDED}, Outcome.TIMED_OUT),
        ({"code": grpc.StatusCode.RESOURCE_EXHAUSTED}, Outcome.REFUSED),
        ({"code": grpc.StatusCode.UNAUTHENTICATED}, Outcome.REFUSED),
        ({"code": grpc.StatusCode.UNIMPLEMENTED}, Outcome.REFUSED),
        ({"code": grpc.StatusCode.INTERNAL}, Outcome.REFUSED),
    ],
    ids=str,
)
def test_only_an_acceptance_is_accepted_over_grpc(answer, outcome, signal):
    """A response that rejects nothing is ACCEPTED, a partial success is not; nothing is sent twice."""
    with OtlpGrpcServer(**answer) as server:
        assert outcome is send(environ_of(server.url, signal, "grpc"))
        assert 1 == len(server.requests)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_port_that_refuses_is_unreachable(protocol):
    """If no process listens, the outcome is UNREACHABLE."""
    with refusing_port() as url:
        assert Outcome.UNREACHABLE is send(environ_of(url, "log", protocol))


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("fault", [closing_server, cutting_server, garbage_server])
def test_a_peer_that_disconnects_is_unreachable(fault, protocol):
    """A peer that closes the connection, or speaks another protocol, has not accepted."""
    with fault() as server:
        assert Outcome.UNREACHABLE is send(environ_of(server.url, "log", protocol), deadline_seconds=20)


@pytest.mark.parametrize("fault", [silent_server, trickling_server])
def test_a_peer_that_does_not_end_its_response_times_out(fault):
    """If the peer is silent, or sends a byte now and then, the outcome is TIMED_OUT at the deadline."""
    with fault() as server:
        assert Outcome.TIMED_OUT is send(environ_of(server.url), deadline_seconds=0.5)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_response_after_the_deadline_does_not_count(protocol):
    """A collector that is late has not accepted in time."""
    gate = threading.Event()
    server = OtlpGrpcServer(gate=gate) if protocol == "grpc" else OtlpHttpServer(Answer(gate=gate))
    with server:
        assert Outcome.TIMED_OUT is send(environ_of(server.url, "log", protocol), deadline_seconds=0.5)
        gate.set()


def test_a_client_sends_again():
    """Each batch gets its own outcome, whatever became of the one before."""
    body = to_body("log", TbotStart(run_mode="daemon"))
    for protocol in ("http/protobuf", "grpc"):
        with server_of(protocol) as server:
            client, send_body = patient_sender(server.url, protocol)
            outcomes = [send_body(body) for _ in range(3)]
            client.close()

        assert [Outcome.ACCEPTED] * 3 == outcomes
        assert 3 == len(server.requests)


def test_no_cookie_links_one_event_to_the_next():
    """A later request repeats nothing that the collector tried to set."""
    answer = Answer(headers={"Set-Cookie": "canary=canary; Path=/", "ETag": "canary"})
    body = to_body("log", TbotStart(run_mode="daemon"))
    with OtlpHttpServer(answer) as server:
        client, send_body = patient_sender(server.url)
        for _ in range(2):
            assert Outcome.ACCEPTED is send_body(body)
        client.close()

    assert "canary" not in str(server.requests[1].headers)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_variables_and_files_of_other_programs_decide_nothing(protocol, tmp_path):
    """Proxies, ~/.netrc and certificate bundles that are set neither divert the event nor add to it."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    with server_of(protocol) as server, refusing_port() as refusing:
        environ = {
            "HOME": str(tmp_path),
            **dict.fromkeys(
                ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "grpc_proxy", "https_proxy"), refusing
            ),
            "REQUESTS_CA_BUNDLE": str(tmp_path / "missing"),
            "CURL_CA_BUNDLE": str(tmp_path / "missing"),
            "TELEPORT_ANONYMOUS_TELEMETRY": "1",
            "OTEL_TBOT_TIMEOUT": "60000",
            **environ_of(server.url, "log", protocol),
        }
        script = "import otel_tbot as o; print(o.emit(o.TbotStart(run_mode='daemon')).value)"
        finished = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
        )

    assert ("accepted\n", "") == (finished.stdout, finished.stderr)
    assert "authorization" not in server.requests[0].headers
    assert "canary" not in str(server.requests[0].headers)


@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_unusable_certificate_file_never_lets_an_event_out_unprotected(name, protocol, tmp_path):
    """With a missing file there is an error, or the event does not arrive; it is never sent without TLS."""
    with silent_server() as server:
        environ = environ_of(server.url.replace("http:", "https:"), "log", protocol, **{name: str(tmp_path / "no")})
        try:
            outcome = send(environ, deadline_seconds=2)
        except TlsError:
            outcome = Outcome.UNREACHABLE

    assert outcome in {Outcome.UNREACHABLE, Outcome.TIMED_OUT}


@pytest.mark.parametrize(("insecure", "outcome"), [("true", Outcome.ACCEPTED), ("false", Outcome.UNREACHABLE)])
def test_an_endpoint_without_a_scheme_is_insecure_only_if_that_is_set(insecure, outcome):
    """For grpc, HOST:PORT is spoken to with TLS unless OTEL_EXPORTER_OTLP_INSECURE says otherwise."""
    with OtlpGrpcServer() as server:
        endpoint = server.url.removeprefix("http://")

        assert outcome is send(environ_of(endpoint, "log", "grpc", INSECURE=insecure), deadline_seconds=20)


def test_a_gzipped_request_holds_no_time():
    """gzip's field for the sender's clock is empty."""
    with OtlpHttpServer() as server:
        send(environ_of(server.url, COMPRESSION="gzip"))

    assert b"\x1f\x8b" == server.requests[0].body[:2]
    assert bytes(4) == server.requests[0].body[4:8]


def test_a_name_and_password_in_the_endpoint_are_basic_authorization():
    """The user information of an endpoint becomes a header; path and query are sent as they were set."""
    with OtlpHttpServer() as server:
        url = server.url.replace("http://", "http://me%40x:se%2Fcret@") + "/in/v1/logs?tenant=a%20b"
        environ = environ_of("", "log") | {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": url}
        assert Outcome.ACCEPTED is send(environ)

    assert "/in/v1/logs?tenant=a%20b" == server.requests[0].path
    assert "Basic bWVAeDpzZS9jcmV0" == server.requests[0].headers["authorization"]
    assert server.url.removeprefix("http://") == server.requests[0].headers["host"]


def read_request(connection: socket.socket) -> bytes:
    """One whole request, b"" at the connection's end."""
    request = b""
    while piece := connection.recv(65536):
        request += piece
        head, separator, body = request.partition(b"\r\n\r\n")
        if separator and len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
            return request
    return b""


@contextmanager
def answering(*answers: bytes):
    """A server that reads one request a connection, sends the next of *answers*, and ends the connection."""
    left = list(answers)

    def serve(connection) -> None:
        read_request(connection)
        connection.sendall(left.pop(0))
        connection.shutdown(socket.SHUT_RDWR)

    with raw_server(serve) as server:
        yield server


ACCEPTANCE = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n"
TRUNCATED = {
    "in its body": ACCEPTANCE % 2 + b"\x0a",
    "after its first line": b"HTTP/1.1 200 OK\r\n",
    "in its headers": ACCEPTANCE[:40],
    "in a chunk": ACCEPTANCE.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"5\r\n\x0a",
}


@pytest.mark.parametrize("answer", TRUNCATED.values(), ids=TRUNCATED)
def test_a_truncated_response_is_not_an_acceptance(answer):
    """Truncated, the response is UNREACHABLE; whole, it is ACCEPTED."""
    with answering(answer) as server:
        assert Outcome.UNREACHABLE is send(environ_of(server.url))
    with answering(ACCEPTANCE % 2 + b"\x0a\x00") as server:
        assert Outcome.ACCEPTED is send(environ_of(server.url))


def test_a_connection_that_the_collector_closed_is_replaced():
    """A connection that ended between two requests, as servers end idle ones, costs no event."""
    body = to_body("log", TbotStart(run_mode="daemon"))
    with answering(ACCEPTANCE % 0, ACCEPTANCE % 0) as server:
        client, send_body = patient_sender(server.url)
        first = send_body(body)
        poll_until(lambda: is_ended(server.connections[0]), waiting_for="the connection's end")
        outcomes = [first, send_body(body)]
        client.close()

        assert [Outcome.ACCEPTED] * 2 == outcomes
        assert 2 == len(server.connections)


def test_a_connection_is_kept_for_the_next_request():
    """If the collector keeps the connection, as the OpenTelemetry Collector does, the next request goes over it."""
    body = to_body("log", TbotStart(run_mode="daemon"))

    def serve(connection: socket.socket) -> None:
        while read_request(connection):
            connection.sendall(ACCEPTANCE % 2 + b"\x0a\x00")

    with raw_server(serve) as server:
        client, send_body = patient_sender(server.url)
        outcomes = [send_body(body) for _ in range(3)]
        client.close()

        assert [Outcome.ACCEPTED] * 3 == outcomes
        assert 1 == len(server.connections)


def test_a_connection_that_was_reset_is_replaced():
    """A connection that the collector reset between two requests costs no event."""
    body = to_body("log", TbotStart(run_mode="daemon"))
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(ACCEPTANCE % 0)
        if len(server.connections) == 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            first_answered.wait(PATIENT_SECONDS)
            connection.close()
            ended.set()

    first_answered = threading.Event()
    with raw_server(serve) as server:
        client, send_body = patient_sender(server.url)
        outcomes = [send_body(body)]
        first_answered.set()
        assert ended.wait(PATIENT_SECONDS)
        outcomes.append(send_body(body))
        client.close()

        assert [Outcome.ACCEPTED] * 2 == outcomes
        assert 2 == len(server.connections)


def is_ended(connection: socket.socket) -> bool:
    """Returns whether the server has closed its side."""
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False


def test_a_host_of_grpc_is_never_a_uri_of_its_own(tmp_path, monkeypatch):
    """A collector's host may be called like one of gRPC's schemes: unix:4317 is not the socket in the file 4317."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("4317")
        listener.listen()
        listener.setblocking(False)
        assert Outcome.UNREACHABLE is send(environ_of("http://unix:4317", protocol="grpc"), deadline_seconds=20)

        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_address_that_drops_packets_does_not_take_the_time_of_the_others(monkeypatch):
    """If the first address of a name neither accepts nor refuses, the next one is tried before the deadline."""
    resolve = socket.getaddrinfo
    with OtlpHttpServer() as server, socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        dead = resolve(*full.getsockname(), type=socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **options: dead + resolve(*address, **options))

        assert Outcome.ACCEPTED is send(environ_of(server.url), deadline_seconds=8)


@pytest.mark.parametrize("host", ["x" * 70, "a..b"])
def test_a_host_that_cannot_be_a_name_is_unreachable(host):
    """A label that is too long or empty raises nothing."""
    assert Outcome.UNREACHABLE is send(environ_of(f"http://{host}:1"))


def test_a_request_can_be_shown():
    """`parse_log_request` returns the request as OTLP/JSON."""
    event = TbotStart(run_mode="daemon")
    with OtlpHttpServer() as server:
        send(environ_of(server.url), event)
    shown = parse_log_request(server.requests[0].message.SerializeToString())

    assert "tbot.start" == shown["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["eventName"]


INTERIM = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


@pytest.mark.parametrize("interim", [INTERIM[:1], INTERIM[1:], INTERIM * 3])
def test_interim_responses_are_skipped(interim):
    """Any 1xx before the response is not the response."""
    with answering(b"".join(interim) + ACCEPTANCE % 2 + b"\x0a\x00") as server:
        assert Outcome.ACCEPTED is send(environ_of(server.url))
    with answering(b"".join(interim) + b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") as server:
        assert Outcome.REFUSED is send(environ_of(server.url))


@pytest.mark.parametrize("rest", [b"", ACCEPTANCE % 0])
def test_a_switch_to_another_protocol_is_not_an_acceptance(rest):
    """101 was not asked for: what follows is not HTTP, whatever it looks like."""
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with answering(switch + rest) as server:
        assert Outcome.UNREACHABLE is send(environ_of(server.url))


def test_a_whole_response_counts_whatever_is_behind_it():
    """Bytes that do not belong to the response change nothing, and are not taken for the next one."""
    body = to_body("log", TbotStart(run_mode="daemon"))
    with answering(ACCEPTANCE % 2 + b"\x0a\x00canary", ACCEPTANCE % 0 + ACCEPTANCE % 0, ACCEPTANCE % 0) as server:
        client, send_body = patient_sender(server.url)
        outcomes = [send_body(body) for _ in range(3)]
        client.close()

        assert [Outcome.ACCEPTED] * 3 == outcomes
        assert 3 == len(server.connections)


def test_endless_interim_responses_end():
    """A peer that sends nothing but interim responses neither keeps the thread nor the processor."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        while True:
            connection.sendall(INTERIM[0] * 10)

    with raw_server(serve) as server:
        assert Outcome.UNREACHABLE is send(environ_of(server.url))


def test_trailers_are_not_headers():
    """The content type counts that comes before the body, not the one behind it."""
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\x0a\x00\r\n0\r\n"
    with answering(chunked + b"Content-Type: application/x-protobuf\r\n\r\n") as server:
        assert Outcome.REFUSED is send(environ_of(server.url))


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("fault", [silent_server, trickling_server])
def test_an_abandoned_request_ends(fault, protocol, monkeypatch):
    """`abandon` makes a `send` in another thread return, and leaves no socket open."""
    with fault() as server:
        # The process has other descriptors that come and go: gRPC closes those of earlier tests seconds later.
        connected = record_connected_sockets(monkeypatch)
        client, send_body = patient_sender(server.url, protocol)
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(send_body(b"")))
        thread.start()
        poll_until(lambda: server.connections, waiting_for="a connection")
        client.abandon()
        thread.join(PATIENT_SECONDS)
        client.close()

        assert outcomes
        assert outcomes[0] in {Outcome.TIMED_OUT, Outcome.UNREACHABLE}
        # gRPC's sockets are not Python's.
        assert (0 if protocol == "grpc" else 1) == len(connected)
        assert [-1] * len(connected) == [connection.fileno() for connection in connected]


def record_connected_sockets(monkeypatch) -> list[socket.socket]:
    """A list that gets each socket that Python code connects from here on."""
    connected = []

    class RecordedSocket(socket.socket):
        def connect(self, address):
            connected.append(self)
            super().connect(address)

    monkeypatch.setattr(socket, "socket", RecordedSocket)
    return connected


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_ipv6_zone_is_not_sent(protocol):
    """The zone names a network interface, and its name can hold a MAC address."""
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback address")
    with server_of(protocol) as server, ipv6_forwarder(server.url) as (port, seen):
        index, _ = socket.if_nameindex()[0]
        assert Outcome.ACCEPTED is send(environ_of(f"http://[::1%25{index}]:{port}", "log", protocol))

    assert f"[::1]:{port}".encode() in seen
    assert b"%" not in seen.partition(b"POST")[2].partition(b"\r\n\r\n")[0]
    assert f"::1%{index}".encode() not in seen
    assert f"::1%25{index}".encode() not in seen


def has_ipv6_loopback() -> bool:
    """Returns whether ::1 can be listened on."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@contextmanager
def ipv6_forwarder(url: str):
    """Forwards one connection from ::1 to *url*; yields its port, and what the client has sent."""
    seen = bytearray()
    target = ("127.0.0.1", int(url.rpartition(":")[2]))
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)

    def copy(source: socket.socket, sink: socket.socket, copied: bytearray) -> None:
        try:
            while data := source.recv(65536):
                copied += data
                sink.sendall(data)
        except OSError:
            pass

    def serve() -> None:
        try:
            incoming, _ = listener.accept()
        except OSError:
            return  # closed before a client connected
        outgoing = socket.create_connection(target)
        back = threading.Thread(target=copy, args=(outgoing, incoming, bytearray()), daemon=True)
        back.start()
        copy(incoming, outgoing, seen)
        outgoing.close()
        back.join()
        incoming.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.close()


def test_user_information_is_sent_over_grpc_too():
    """A name and password in the endpoint are a header over gRPC as over HTTP."""
    with OtlpGrpcServer() as server:
        url = server.url.replace("http://", "http://me%40x:se%2Fcret@")
        assert Outcome.ACCEPTED is send(environ_of(url, "log", "grpc"))

    assert "Basic bWVAeDpzZS9jcmV0" == server.requests[0].headers["authorization"]


def test_a_client_needs_an_endpoint():
    """With a malformed endpoint there is no client; the error says which rule is broken."""
    with pytest.raises(OtelTbotError, match="OTEL_EXPORTER_OTLP_ENDPOINT: must be"):
        OtlpClient(resolve_config(environ_of("canary")))
