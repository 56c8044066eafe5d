"""Makes hostile input from a seed: valid requests, files and settings, damaged or invented."""

import gzip
import json
import random
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.json_format import MessageToJson

from otel_tbot.event import TbotStart
from otel_tbot.tbot.report import to_report

CANARY = "canary-4d2a"

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, as it is sent."""

    method: str
    path: str
    headers: Headers
    body: bytes
    pieces: int = 1


class Mutator:
    """Makes hostile input from *seed*; the same seed makes the same input."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311  # reproducible

    def draw_bytes(self, most: int = 64) -> bytes:
        """Returns arbitrary bytes."""
        return self.random.randbytes(self.random.randrange(most))

    def draw_text(self) -> str:
        """Returns a string that some parser handles badly."""
        return self.random.choice((
            *("", " ", "\0", "\n", "\r\nX: y", "\t", "\x7f", "\x1b[31m", "\u202e", "\ufeff", "\U0001f600", "%"),
            *("%00", "%s"),
            *("{}", "${HOME}", "$(id)", "`id`", "../../etc/passwd", "//", "\\", "'", '"', "<!--", "NaN", "inf"),
            *("-0", "1e999"),
            *("9" * 400, "a" * 5000, "0x10", "1_000", "\u0661", "null", "true", "~", "*a", "&a"),
            *("!!python/object:os.system",),
            *(CANARY, f"http://{CANARY}", f"tbot+proxy+iam://{CANARY}@{CANARY}:1"),
        ))  # fmt: skip

    def damage(self, data: bytes) -> bytes:
        """Returns *data* with some bytes changed, inserted, removed, repeated or exchanged, or truncated."""
        damaged = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            place = self.random.randrange(len(damaged) + 1)
            end = min(len(damaged), place + self.random.randrange(1, 16))
            match self.random.randrange(8):
                case 0 if place < len(damaged):
                    damaged[place] ^= 1 << self.random.randrange(8)
                case 1:
                    damaged[place:place] = self.draw_bytes(16)
                case 2:
                    del damaged[place:end]
                case 3:
                    damaged[place:place] = damaged[place:end] * self.random.randrange(1, 5)
                case 4:
                    del damaged[place:]
                case 5:
                    damaged[place:end] = self.random.choice(
                        (b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\0" * 8, b"\x7f" * 4)
                    )
                case 6:
                    damaged[place:place] = self.draw_field()
                case _:
                    damaged[place:place] = self.draw_text().encode("utf-8", "surrogatepass")
        return bytes(damaged)

    def draw_field(self, depth: int = 0) -> bytes:
        """Returns a field in protobuf's wire format, known or unknown, of a right or wrong type, whole or not."""
        tag = self.random.choice((1, 2, 3, 4, 5, 9, 15, 16, 2047, 2**28, 2**29 - 1)) << 3 | self.random.randrange(8)
        head = to_varint(tag)
        match tag & 7:
            case 0:
                return head + to_varint(self.random.choice((0, 1, 127, 2**31 - 1, 2**31, 2**63, 2**64 - 1)))
            case 1:
                return head + self.random.randbytes(8)
            case 2:
                content = self.draw_field(depth + 1) if depth < 4 and self.random.randrange(2) else self.draw_bytes(40)
                length = self.random.choice((len(content), len(content), len(content) + 1, 2**31, 2**32 - 1))
                return head + to_varint(length) + content
            case 3:
                return head * self.random.choice((1, 2, 100))
            case _:
                return head + self.draw_bytes(8)

    def draw_request(self, procedure: str) -> Sent:
        """Returns a request to *procedure*; most are nearly valid, so that they pass the first checks."""
        report = to_report(
            TbotStart(run_mode=self.random.choice(("one-shot", "daemon")), version="18.4.1", helper="a:b")
        )
        sent = Sent(
            "POST",
            procedure,
            ((b"content-type", b"application/proto"), (b"connect-protocol-version", b"1")),
            report.SerializeToString(),
        )
        if self.random.randrange(3) == 0:
            sent = replace(
                sent,
                headers=((b"content-type", b"application/json"),),
                body=self.draw_json(json.loads(MessageToJson(report))),
            )
        elif self.random.randrange(4) == 0:
            sent = replace(sent, body=b"".join(self.draw_field() for _ in range(self.random.randrange(12))))
        for _ in range(self.random.choice((0, 1, 1, 2))):
            sent = self._change(sent)
        return replace(sent, pieces=self.random.choice((1, 1, 2, 7)))

    def _change(self, sent: Sent) -> Sent:
        match self.random.randrange(9):
            case 0 | 1 | 2:
                return replace(sent, body=self.damage(sent.body))
            case 3:
                return replace(sent, headers=(*sent.headers, self.draw_header()))
            case 4:
                return replace(sent, headers=self.draw_headers(sent.headers))
            case 5:
                pack = self.random.choice((gzip.compress, zlib.compress, bytes))
                encoding = self.random.choice(
                    (b"gzip", b"br", b"zstd", b"identity", b"deflate", b"GZIP", b"gzip, gzip", b"")
                )
                return replace(sent, body=pack(sent.body), headers=(*sent.headers, (b"content-encoding", encoding)))
            case 6:
                methods = ("GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "\u0130", "")
                return replace(sent, method=self.random.choice(methods))
            case 7:
                ends = ("/", "x", "?a=b", "/../x", "%2f", "//", ";v=1", "\udcff", "\0", "#", "é", CANARY)
                place = self.random.randrange(len(sent.path) + 1)
                paths = (
                    sent.path + self.random.choice(ends),
                    sent.path[:place],
                    sent.path.upper(),
                    "/" + sent.path,
                    "",
                )
                return replace(sent, path=self.random.choice(paths))
            case _:
                size = self.random.choice((16 * 1024, 16 * 1024 + 1, 64 * 1024, 0))
                return replace(sent, body=(sent.body or b"\x22")[:1] * size)

    def draw_header(self) -> tuple[bytes, bytes]:
        """Returns a header that some server interprets, with a value that is rarely valid."""
        name = self.random.choice((
            *(b"connect-timeout-ms", b"connect-protocol-version", b"content-encoding", b"accept-encoding"),
            *(b"content-type",),
            *(b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection", b"host", b"cookie"),
            *(b"traceparent", b"x-forwarded-for", b"x-bin", b"grpc-timeout", b"authorization", b"trailer", b"x"),
        ))  # fmt: skip
        value = self.random.choice((
            *(b"", b"0", b"1", b"2", b"-1", b"1.5", b"99999999999", b"9" * 5000, b"abc", b" 5", b"5 ", b"gzip"),
            *(b"identity", b"br"),
            *(b"*", b"gzip;q=0", b",", b"chunked", b"100-continue", b"h2c", b"websocket", b"close", b"\xff\xfe"),
            *(b"\xc3\x28",),
            *(b"application/grpc", b"application/connect+proto", b"text/plain"),
            *(b"application/proto; charset=utf-8", CANARY.encode()),
        ))  # fmt: skip
        return name, value

    def draw_headers(self, headers: Headers) -> Headers:
        """Returns *headers* with some removed, repeated or damaged."""
        drawn = []
        for name, value in headers:
            match self.random.randrange(4):
                case 0:
                    pass
                case 1:
                    drawn += [(name, value)] * 2
                case 2:
                    drawn.append((name, self.damage(value).replace(b"\r", b"").replace(b"\n", b"")))
                case _:
                    drawn.append((name, value))
        return tuple(drawn)

    def draw_json(self, fields: dict[str, object]) -> bytes:
        """Returns *fields* as JSON that is wrong in form or content."""
        values: Sequence[object] = (
            *(None, True, -1, 2**31, 2**63, 1e300, "", "1", CANARY, [], {}, [[]], {"start": {}}, "\ud800"),
            *("RUN_MODE_DAEMON",),
            *("99999999-9999-9999-9999-999999999999", str(uuid.uuid1()), "2026-01-01T00:00:00Z", "x" * 20_000),
        )  # fmt: skip
        match self.random.randrange(7):
            case 0:
                return json.dumps(fields).encode()
            case 1:
                fields[self.random.choice(("distinctId", "timestamp", "start", "event", CANARY))] = self.random.choice(
                    values
                )
            case 2:
                start = fields["start"]
                assert isinstance(start, dict)
                start[self.random.choice((*start, "run_mode", CANARY))] = self.random.choice(values)
            case 3:
                depth = self.random.choice((10, 101, 5000))
                opened, closed = self.random.choice((("[", "]"), ('{"start":', "}")))
                return (opened * depth + closed * depth).encode()
            case 4:
                return b'{"start": {"runMode": 1, "runMode": 2}, "distinctId": NaN, "distinctId": Infinity}'
            case 5:
                return self.damage(json.dumps(fields).encode())
            case _:
                return self.random.choice(
                    (b"", b"null", b"[]", b'""', b"0", b"{", b"\xef\xbb\xbf{}", b"{}\0", b"\xff\xfe{\0}\0")
                )
        return json.dumps(fields).encode()

    def draw_stream(self, sent: Sent) -> bytes:
        """Returns *sent* as bytes of HTTP/1.1, with a right or wrong length, in chunks, or broken otherwise."""
        path = sent.path.encode("utf-8", "surrogateescape") or b"/"
        lines = [sent.method.encode() + b" " + path + b" HTTP/1.1", b"Host: x"]
        lines += [name + b": " + value for name, value in sent.headers]
        if self.random.randrange(8):
            lines.append(b"Connection: close")
        match self.random.randrange(8):
            case 0:
                chunk = f"{len(sent.body):x}\r\n".encode() + sent.body + b"\r\n" if sent.body else b""
                body = chunk + b"0\r\n\r\n"
                lines.append(b"Transfer-Encoding: chunked")
            case 1:
                lengths = (len(sent.body) + 5, 0, 2**40, -1)
                lines.append(f"Content-Length: {self.random.choice(lengths)}".encode())
                body = sent.body
            case _:
                lines.append(f"Content-Length: {len(sent.body)}".encode())
                body = sent.body
        stream = b"\r\n".join(lines) + b"\r\n\r\n" + body
        match self.random.randrange(10):
            case 0:
                return self.damage(stream)
            case 1:
                return stream.replace(b"\r\n", b"\n")
            case 2:
                return stream.replace(
                    b"HTTP/1.1", self.random.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"\0")), 1
                )
            case 3:
                return stream + self.damage(stream)
            case 4:
                return stream[: self.random.randrange(len(stream))]
            case _:
                return stream

    def draw_file(self) -> bytes:
        """Returns a tbot.yaml: a valid one, damaged; one with wrong types; or bytes."""
        good = self.random.choice(_FILES)
        match self.random.randrange(8):
            case 0 | 1 | 2:
                return self.damage(good.encode())
            case 3:
                key = self.random.choice(
                    ("version", "outputs", "services", "onboarding", "oneshot", "destinations", "join_uri")
                )
                value = self.random.choice(_ODD_VALUES)
                return f"version: v2\n{key}: {value}\n".encode()
            case 4:
                return f"version: v2\nonboarding:\n  join_method: {json.dumps(self.draw_text())}\n".encode()
            case 5:
                depth = self.random.choice((3, 63, 64, 65, 2000))
                return b"version: v2\noutputs: " + b"[" * depth + b"]" * self.random.choice((depth, 0))
            case 6:
                lines = [
                    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, self.random.randrange(2, 9))
                ]
                return "\n".join(("a0: &a0 [x]", *lines, f"outputs: *a{len(lines)}")).encode()
            case _:
                return self.draw_bytes(400)

    def draw_setting(self) -> str:
        """Returns the value of a variable: a valid one, a damaged one, or an awkward one."""
        good = self.random.choice((
            *("http://127.0.0.1:4318", "https://[::1]:4317/v1/logs?a=b#c", "127.0.0.1:4317", "user:pw@host:1"),
            *("grpc", "http/json"),
            *("http/protobuf", "a=b,c=d", "authorization=Bearer%20x", "gzip", "none", "1000", "0.5", "log", "span"),
            *("true",),
        ))  # fmt: skip
        match self.random.randrange(4):
            case 0:
                text = good
            case 1:
                text = self.draw_text()
            case 2:
                text = good + self.draw_text()
            case _:
                text = self.damage(good.encode()).decode("utf-8", "surrogateescape")
        # An environment cannot hold NUL.
        return text.replace("\0", "")


_FILES = (
    "version: v2\noneshot: true\nonboarding:\n  join_method: iam\noutputs:\n- type: identity\n- {type: database}\n",
    "version: v2\nservices:\n- {type: database-tunnel}\n- &s {type: application-proxy}\noutputs: [*s, <<: *s]\n",
    "destinations:\n- directory: /x\n  kubernetes_cluster: k\n- app: {name: a}\n- database: {service: d}\n",
    f"version: v1\nonboarding: {{token: {CANARY}, join_method: token}}\n",
    f"version: v2\njoin_uri: tbot+proxy+github://{CANARY}:x@{CANARY}.test:443\n",
)
_ODD_VALUES = (
    *("", "{}", "[]", "[{}]", "[[]]", "[null]", "'v2'", "3", "1e999", "~", "!!binary aGk=", "!!set {a}"),
    *("2026-01-01", "0x1"),
    *("!!python/object/apply:os.system ['id']", "&a [*a]", "*missing", "{<<: {a: b}}", "{<<: [1]}", "? [a] : b"),
    *("|\n  x", ">"),
    *("[{type: [x]}]", "[{type: {}}]", "[{type: ''}]", "[{type: null}]", "{join_method: [x]}", "{join_method: {a: b}}"),
    *("'tbot+proxy+://@'", "'tbot+auth+iam://'", "'://'", "yes", "'yes'", "\t", "\u2028", "---", "...", "%YAML 9.9"),
)  # fmt: skip


def to_varint(number: int) -> bytes:
    """Returns *number* as a protobuf varint. Pure."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def draw_seeds(count: int) -> list[int]:
    """Returns seeds that are the same in every run, so that a failure can be repeated. Pure."""
    return list(range(7000, 7000 + count))
