"""Converts a `TbotStart` to the request that would carry it, as a table or as OTLP/JSON, without sending anything."""

import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from otel_tbot import settings
from otel_tbot.cli.output import style, to_row, to_shown_url
from otel_tbot.event import ATTRIBUTES, EVENT_NAME, TbotStart
from otel_tbot.otlp import client as otlp
from otel_tbot.otlp import encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A request: its `body` as OTLP/JSON, its `resource`, and its `destination` with protocol and size."""

    event: TbotStart
    signal: str
    body: str
    resource: tuple[tuple[str, str], ...]
    destination: str

    def describe(self, *, is_on: bool) -> str:
        """Returns one line: nothing was sent, and where `emit` would send this. Pure."""
        if is_on:
            return f"nothing was sent; `emit` would send this {self.destination}"
        return f"nothing was sent, and telemetry is off; if it were on, `emit` would send this {self.destination}"

    def to_text(self, *, is_on: bool, width: int) -> str:
        """Returns a table of the facts, the resource and the destination, *width* columns wide. Pure."""
        values = self.event.attributes()
        facts = [(a.key, str(values.get(a.key, "(not known, left out)"))) for a in ATTRIBUTES]
        column = max(len(key) for key, _ in (*facts, *self.resource))
        kind = {"log": "log record", "span": "span"}[self.signal]
        lines = [style(f"The event {EVENT_NAME}, as a {kind}", "strong")]
        lines += [to_row(key, value, column=column, width=width) for key, value in facts]
        lines += ["", style("Its resource, complete", "strong")]
        lines += [to_row(key, value, column=column, width=width) for key, value in self.resource]
        state = "on" if is_on else "off"
        lines += ["", style("Nothing was sent", "strong"), to_row("telemetry", state, column=column, width=width)]
        lines += [to_row("emit would send it", self.destination, column=column, width=width)]
        hint = "The session.id is random: each start of tbot has another one. --json shows the exact request."
        lines += ["", textwrap.fill(hint, width)]
        return "\n".join(lines)


def to_preview(event: TbotStart, environ: Mapping[str, str], *, signal: str) -> Preview:
    """Returns the request that `emit` would send for *event* as *signal* under *environ*, whatever the consent."""
    request = encoding.load_encoder(signal, is_local=True)([(event, time.time_ns())])
    message = otlp.to_json(request)
    (group,) = message.get("resourceLogs") or message["resourceSpans"]
    resource = tuple(
        (attribute["key"], next(iter(attribute["value"].values()))) for attribute in group["resource"]["attributes"]
    )
    return Preview(
        event=event,
        signal=signal,
        body=json.dumps(message, indent=2),
        resource=resource,
        destination=_describe_destination(request.SerializeToString(), environ, signal),
    )


def describe_settings(environ: Mapping[str, str]) -> Iterator[str]:
    """Yields what is wrong with each malformed setting, without its value. Pure."""
    yield from settings.find_faults(environ)


def _describe_destination(body: bytes, environ: Mapping[str, str], signal: str) -> str:
    endpoint = settings.resolve_endpoint(environ, signal)
    if not endpoint:
        return "to no endpoint: it is malformed; see `otel-tbot doctor`"
    protocol = settings.resolve_protocol(environ, signal)
    compression = settings.COMPRESSION.resolve(environ, signal)
    size = f"{len(body)} bytes"
    if compression != "none":
        size += f", {len(otlp.COMPRESSIONS[compression](body))} with {compression}"
    return f"to {to_shown_url(endpoint)} over {protocol}, {size}"
