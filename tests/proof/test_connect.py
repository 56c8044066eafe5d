"""Promise 5, the protocol's part: requests and errors as the Connect protocol's specification has them, case by case.

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


def a_report(mode="daemon"):
    """A report."""
    return to_report(TbotStart(run_mode=mode, version="18.4.1", join_type="iam"))


def to_proto():
    """A good report's bytes."""
    return a_report().SerializeToString()


def to_json():
    """A good report in canonical JSON."""
    return MessageToJson(a_report()).encode()


def in_chunks():
    """A good report in two chunks."""
    body = to_proto()
    return iter([body[:7], body[7:]])


@pytest.fixture(scope="module")
def bridge():
    """A bridge before a collector that accepts."""
    with OtlpHttpServer() as server:
        with BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_TBOT_TIMEOUT": "10000"}) as running:
            yield running
        assert "" == running.written


def post(bridge, to_body, *, method="POST", path=PROCEDURE, **headers):
    """One request with exactly these headers, beside those of HTTP itself."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with requests.Session() as session:
        session.trust_env = False
        session.headers = {"Accept-Encoding": named.pop("Accept-Encoding", "identity")}
        return session.request(method, bridge.url + path, data=to_body(), headers=named, timeout=60)


# Rules whose answer is a success: the response is 200, of the request's own content type, and the message is empty.
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
        lambda: MessageToJson(a_report(), preserving_proto_field_name=True).encode(),
        {"Content_Type": JSON},
    ),
}


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("name", GOOD)
def test_a_request_within_the_rules_is_answered_as_they_say(name, bridge):
    """200, the request's own content type, a message in an encoding that the client takes, no error body."""
    to_body, headers = GOOD[name]
    answer = post(bridge, to_body, **headers)

    assert 200 == answer.status_code, answer.text
    kind = headers["Content_Type"].partition(";")[0].lower()
    assert kind == answer.headers["Content-Type"]
    assert answer.headers.get("Content-Encoding", "identity") == "identity"
    assert (SubmitTbotEventResponse().SerializeToString() if kind == PROTO else b"{}") == answer.content


# Rules whose answer is an error: its HTTP status, and its Connect code where it has a body ("" where it has none).
BAD = {
    "a codec that is not supported: 415": (415, "", to_proto, {"Content_Type": "application/xml"}),
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
    "a timeout that is no number": (
        400,
        "invalid_argument",
        to_proto,
        {"Content_Type": PROTO, "Connect_Timeout_Ms": "1s"},
    ),
    "Content-Encoding that is not supported": (
        *(501, "unimplemented", to_proto, {"Content_Type": PROTO, "Content_Encoding": "br"}),
    ),
    "gzip that is none": (400, "invalid_argument", to_proto, {"Content_Type": PROTO, "Content_Encoding": "gzip"}),
    "an empty body is not decompressed, but an empty message": (
        *(400, "invalid_argument", bytes, {"Content_Type": PROTO, "Content_Encoding": "gzip"}),
    ),
    "a message that does not parse": (400, "invalid_argument", lambda: b"\xff\xff", {"Content_Type": PROTO}),
    "JSON that does not parse": (400, "invalid_argument", lambda: b"{", {"Content_Type": JSON}),
    "JSON of another type": (400, "invalid_argument", lambda: b"[]", {"Content_Type": JSON}),
    "JSON in the place of protobuf": (400, "invalid_argument", to_json, {"Content_Type": PROTO}),
    "protobuf in the place of JSON": (400, "invalid_argument", to_proto, {"Content_Type": JSON}),
    "an event that nobody knows": (400, "invalid_argument", lambda: b"\x22\x00", {"Content_Type": PROTO}),
    "more than is read": (
        429,
        "resource_exhausted",
        lambda: b"\x0a\x80\x80\x01" + b"x" * 16_384,
        {"Content_Type": PROTO},
    ),
    "a little that unpacks to more than is read": (
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
def test_a_request_outside_the_rules_is_answered_as_they_say(name, bridge):
    """The status of the code's row; application/json with a code and a message, or, for a 415, no body at all."""
    status, code, to_body, headers = BAD[name]
    answer = post(bridge, to_body, **headers)

    assert status == answer.status_code, answer.text
    if not code:
        assert b"" == answer.content
        assert "application/proto, application/json" == answer.headers["Accept-Post"]
        return
    assert HTTP_STATUS[code] == status
    assert JSON == answer.headers["Content-Type"]
    error = answer.json()
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
    """The procedure has side effects, so that only POST is allowed, and the answer says so."""
    answer = post(bridge, lambda: b"", method=method, Content_Type=PROTO)

    assert (405, "POST") == (answer.status_code, answer.headers["Allow"])


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("path", PATHS)
def test_another_path_is_404(path, bridge):
    """Paths are case-sensitive, and a routing prefix is one only where it is set."""
    assert 404 == post(bridge, to_proto, path=path, Content_Type=PROTO).status_code


@pytest.mark.promise("hostile.connect")
def test_a_timeout_that_passes_is_deadline_exceeded():
    """Connect-Timeout-Ms ends the client's wait with its own code, 504."""
    with silent_server() as server, BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": server.url}) as bridge:
        answer = post(bridge, to_proto, Content_Type=PROTO, Connect_Timeout_Ms="50")

    assert (504, "deadline_exceeded") == (answer.status_code, answer.json()["code"])


@pytest.mark.promise("hostile.connect")
@pytest.mark.parametrize("kind", [PROTO, JSON])
@pytest.mark.parametrize("fault", ["refusing", "there, but not accepting"])
def test_what_is_not_delivered_is_unavailable_in_json_whatever_was_sent(fault, kind):
    """An error is application/json, though the request was protobuf."""
    with refusing_port() as url, OtlpHttpServer(Answer(status=403)) as server:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url if fault == "refusing" else server.url}
        with BridgeProcess(environ) as bridge:
            answer = post(bridge, to_proto if kind == PROTO else to_json, Content_Type=kind)

    assert (503, JSON) == (answer.status_code, answer.headers["Content-Type"])
    assert "unavailable" == answer.json()["code"]
