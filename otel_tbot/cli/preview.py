"""Converts a `TbotStart` to the request that would carry it, as a table or as OTLP/JSON, without sending anything."""

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_tbot.cli.output import style, to_paragraph, to_row
from otel_tbot.event import ATTRIBUTES, EVENT_NAME, TbotStart
from otel_tbot.otlp.config import OtlpConfig
from otel_tbot.otlp.encoding import encode_request, to_json
from otel_tbot.otlp.http_transport import COMPRESSIONS

if TYPE_CHECKING:
    from otel_tbot.settings import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A request: its `body` as OTLP/JSON, its `resource`, and its `destination` with protocol and size."""

    event: TbotStart
    signal: "Signal"
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
        lines += ["", to_paragraph(hint, width=width)]
        return "\n".join(lines)


def to_preview(event: TbotStart, config: OtlpConfig) -> Preview:
    """Returns the request that `emit` would send for *event* under *config*, whatever the consent."""
    request = encode_request([(event, time.time_ns())], signal=config.signal, is_local=True)
    message = to_json(request)
    (group,) = message.get("resourceLogs") or message["resourceSpans"]
    resource = tuple(
        (attribute["key"], next(iter(attribute["value"].values()))) for attribute in group["resource"]["attributes"]
    )
    return Preview(
        event=event,
        signal=config.signal,
        body=json.dumps(message, indent=2),
        resource=resource,
        destination=_describe_destination(request.SerializeToString(), config),
    )


def _describe_destination(body: bytes, config: OtlpConfig) -> str:
    if config.endpoint is None:
        return "to no endpoint: it is malformed; see `otel-tbot doctor`"
    size = f"{len(body)} bytes"
    if config.compression != "none":
        size += f", {len(COMPRESSIONS[config.compression](body))} with {config.compression}"
    return f"to {config.endpoint.to_text()} over {config.protocol}, {size}"
