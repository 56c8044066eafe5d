"""`otel-tbot preview`: a `TbotStart` goes in, the request that would carry it comes out, and nothing is sent."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from otel_tbot import settings
from otel_tbot.event import TbotStart
from otel_tbot.otlp import client as otlp
from otel_tbot.otlp import encoding as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The request: its `body` as OTLP/JSON, and `way`, one line with where it would go, how, and its size in bytes."""

    body: str
    way: str


def to_preview(event: TbotStart, environ: Mapping[str, str], *, signal: str) -> Preview:
    """The request that `emit` would send for *event* as *signal* under *environ*, consent aside."""
    request = wire.load_encoder(signal, is_local=True)([(event, time.time_ns())])
    return Preview(
        body=json.dumps(otlp.to_json(request), indent=2), way=_describe(request.SerializeToString(), environ, signal)
    )


def _describe(body: bytes, environ: Mapping[str, str], signal: str) -> str:
    endpoint = settings.redact_url(settings.resolve_endpoint(environ, signal))
    if not endpoint:
        return "to no endpoint: it is malformed; see `otel-tbot doctor`"
    protocol = settings.resolve_protocol(environ, signal)
    compression = settings.COMPRESSION.resolve(environ, signal)
    size = f"{len(body)} bytes"
    if compression != "none":
        size += f", {len(otlp.COMPRESSIONS[compression](body))} with {compression}"
    return f"to {endpoint} over {protocol}, {size}"
