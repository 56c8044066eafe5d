"""Proves a part of promise 5: the bridge follows the Connect protocol's rules for requests and errors, case by case.

Source: Connect protocol reference, "Unary-Request", "Unary-Response", "Error Codes" (connectrpc.com/docs/protocol).
"""

import gzip

import pytest
import requests
from google.protobuf.json_format import MessageToJson

from otel_tbot.event import TbotStart
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventResponse
from otel_tbot.tbot.report import to_report
from tests.proof.test_hostile import HTTP_STATUS
from tests.support.bridge_process import PROCEDURE, BridgeProcess
from tests.support.servers import Answer, OtlpHttpServer, refusing_port, silent_server

PROTO = "application/proto"
JSON = "application/json"


def build_report(mode="daemon"):
    """Returns a valid report."""
    return to_report(TbotStart(run_mode=mode, version="18.4.1", join_type="iam"))


def to_proto():
    """Returns the bytes of a valid report."""
    return build_report().SerializeToString()


def to_json():
    """Returns a valid report in canonical JSON."""
    return MessageToJson(build_report()).encode()


def in_chunks():
    """Returns a valid report in two chunks."""
    body = to_proto()
    return iter([body[:7], body[7:]])


@pytest.fixture(scope="module")
def bridge():
    """A bridge whose collector accepts."""
    with OtlpHttpServer() as server:
        with BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "10000"}) as running:
            yield running
        assert "" == running.written


def post(bridge, to_body, *, method="POST", path=PROCEDURE, **headers):
    """Sends one request with these headers and no others except those of HTTP itself; returns the response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with requests.Session() as session:
        session.trust_env = False
        session.headers = {"Accept-Encoding": named.pop("Accept-Encoding", "identity")}
        return session.request(method, bridge.url + path, data=to_body(), headers=named, timeout=60)


# Rules that lead to success: the response has status 200, the request's content type, and an empty message.
GOOD = {
    "POST with application/proto": (to_proto, {"Content_Type": PROTO}),
    "POST with application/json": (to_json, {"Content_Type": JSON}),
    "a content type in capitals": (to_proto, {"Content_Type": "Application/Proto"}),
    "a content type with a parameter": (to_json, {"Content_Type": "application/json; charset=utf-8"}),
    "Connect-Protocol-Version: 1": (to_proto, {"Content_Type": PROTO, "Connect_Protocol_Version": "1"}),
    "without a version, which servers may allow": (to_proto, {"Content_Type": PROTO}),
    "a timeout of one digit": (to_proto, {"Content_Type": PROTO, "Connect_Timeout_Ms": "9000"}),
    "a timeout of ten digits": (to_proto, {"Content_Type": PROTO, "Connect_Timeout_Ms": "9999999999"}),
    "no Content-Encoding is identity": (to_proto, {"Content_Type": PROTO}),
    "Content-Encoding: identity": (to_proto, {"Content_Type": PROTO, "Content_Encoding": "identity"}),
    "Content-Encoding: gzip": (lambda: gzip.compress(to_proto()), {"Content_Type": PROTO, "Content_Encoding": "gzip"}),
    "Accept-Encoding that is not supported": (to_proto, {"Content_Type": PROTO, "Accept_Encoding": "br, zstd"}),
    "Accept-Encoding: gzip": (to_proto, {"Content_Type": PROTO, "Accept_Encoding": "gzip"}),
    "ASCII metadata": (to_proto, {"Content_Type": PROTO, "X_Shard": "42"}),
    "binary metadata, padded": (to_proto, {"Content_Type": PROTO, "X_Shard_Bin": "aGk="}),
    "binary metadata, unpadded": (to_proto, {"Content_Type": PROTO, "X_Shard_Bin": "aGk"}),
    "a body in chunks": (in_chunks, {"Content_Type": PROTO}),
    "JSON with names of the schema": (
        lambda: MessageToJson(build_report(), preserving_proto_field_name=True).encode(),
        {"Content_Type": JSON},
    ),
}


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("name", GOOD)
def test_a_request_that_follows_the_rules_is_accepted(name, bridge):
    """The response has status 200, the request's content type, an encoding that the client accepts, and no error."""
    to_body, headers = GOOD[name]
    response = post(bridge, to_body, **headers)

    assert 200 == response.status_code, response.text
    kind = headers["Content_Type"].partition(";")[0].lower()
    assert kind == response.headers["Content-Type"]
    assert response.headers.get("Content-Encoding", "identity") == "identity"
    assert (SubmitTbotEventResponse().SerializeToString() if kind == PROTO else b"{}") == response.content


# Rules that lead to an error: its HTTP status, and its Connect code, "" for an error without a body.
BAD = {
    "an unsupported codec: 415": (415, "", to_proto, {"Content_Type": "application/xml"}),
    "a streaming content type: 415": (415, "", to_proto, {"Content_Type": "application/connect+proto"}),
    "no content type: 415": (415, "", to_proto, {}),
    "gRPC: 415": (415, "", to_proto, {"Content_Type": "application/grpc"}),
    "gRPC-Web: 415": (415, "", to_proto, {"Content_Type": "application/grpc-web+proto"}),
    "another version: 400": (
        *(400, "invalid_argument", to_proto, {"Content_Type": PROTO, "Connect_Protocol_Version": "2"}),
    ),
    "a timeout of eleven digits": (
        *(400, "invalid_argument", to_proto, {"Content_Type": PROTO, "Connect_Timeout_Ms": "10000000000"}),
    ),
    "a timeout below zero": (400, "invalid_argument", to_proto, {"Content_Type": PROTO, "Connect_Timeout_Ms": "-1"}),
    "a timeout that is not a number": (
        400,
        "invalid_argument",
        to_proto,
        {"Content_Type": PROTO, "Connect_Timeout_Ms": "1s"},
    ),
    "Content-Encoding that is not supported": (
        *(501, "unimplemented", to_proto, {"Content_Type": PROTO, "Content_Encoding": "br"}),
    ),
    "invalid gzip": (400, "invalid_argument", to_proto, {"Content_Type": PROTO, "Content_Encoding": "gzip"}),
    "an empty body is an empty message, not invalid gzip": (
        *(400, "invalid_argument", bytes, {"Content_Type": PROTO, "Content_Encoding": "gzip"}),
    ),
    "a message that does not parse": (400, "invalid_argument", lambda: b"\xff\xff", {"Content_Type": PROTO}),
    "JSON that does not parse": (400, "invalid_argument", lambda: b"{", {"Content_Type": JSON}),
    "JSON of another type": (400, "invalid_argument", lambda: b"[]", {"Content_Type": JSON}),
    "JSON instead of protobuf": (400, "invalid_argument", to_json, {"Content_Type": PROTO}),
    "protobuf instead of JSON": (400, "invalid_argument", to_proto, {"Content_Type": JSON}),
    "an unknown event": (400, "invalid_argument", lambda: b"\x22\x00", {"Content_Type": PROTO}),
    "a message that is too large": (
        429,
        "resource_exhausted",
        lambda: b"\x0a\x80\x80\x01" + b"x" * 16_384,
        {"Content_Type": PROTO},
    ),
    "a small body that is too large decompressed": (
        *(
            429,
            "resource_exhausted",
            lambda: gzip.compress(b"x" * 10**6),
            {"Content_Type": PROTO, "Content_Encoding": "gzip"},
        ),
    ),
}


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("name", BAD)
def test_a_request_that_breaks_a_rule_gets_its_error(name, bridge):
    """The response has the status of its code, and a code and a message as JSON, or, for a 415, no body."""
    status, code, to_body, headers = BAD[name]
    response = post(bridge, to_body, **headers)

    assert status == response.status_code, response.text
    if not code:
        assert b"" == response.content
        assert "application/proto, application/json" == response.headers["Accept-Post"]
        return
    assert HTTP_STATUS[code] == status
    assert JSON == response.headers["Content-Type"]
    error = response.json()
    assert {"code", "message"} == set(error)
    assert code == error["code"]
    assert isinstance(error["message"], str)
    if code == "unimplemented":
        assert "gzip" in error["message"]


METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
PATHS = (
    "/",
    "/prehog.v1alpha.TbotReportingService",
    PROCEDURE.lower(),
    PROCEDURE + "/",
    "/x" + PROCEDURE,
    PROCEDURE[:-1],
)


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("method", METHODS)
def test_another_method_is_405(method, bridge):
    """The procedure has side effects, so only POST is allowed, and the response says so."""
    response = post(bridge, lambda: b"", method=method, Content_Type=PROTO)

    assert (405, "POST") == (response.status_code, response.headers["Allow"])


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("path", PATHS)
def test_another_path_is_404(path, bridge):
    """Paths are case-sensitive, and a prefix is only accepted if it is set."""
    assert 404 == post(bridge, to_proto, path=path, Content_Type=PROTO).status_code


@pytest.mark.promise("hostile.connect")
def test_a_timeout_that_passes_is_deadline_exceeded():
    """Connect-Timeout-Ms ends the request with deadline_exceeded and status 504."""
    with silent_server() as server, BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}) as bridge:
        response = post(bridge, to_proto, Content_Type=PROTO, Connect_Timeout_Ms="50")

    assert (504, "deadline_exceeded") == (response.status_code, response.json()["code"])


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("kind", [PROTO, JSON])
@pytest.mark.parametrize("fault", ["refusing connections", "rejecting events"])
def test_an_event_that_is_not_delivered_is_unavailable_in_json(fault, kind):
    """An error is JSON, also if the request was protobuf."""
    with refusing_port() as url, OtlpHttpServer(Answer(status=403)) as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url if fault == "refusing connections" else server.url}
        with BridgeProcess(environ) as bridge:
            response = post(bridge, to_proto if kind == PROTO else to_json, Content_Type=kind)

    assert (503, JSON) == (response.status_code, response.headers["Content-Type"])
    assert "unavailable" == response.json()["code"]
