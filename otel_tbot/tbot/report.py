"""Converts a report, which is a message of tbot's protocol, to a `TbotStart` and back.

Source: tbot's protocol, prehog.v1alpha (prehog/tbot.proto).
"""

from typing import Final

from otel_tbot.errors import EventError
from otel_tbot.event import RunMode, TbotStart, to_join_type
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, TbotStartEvent

PROCEDURE: Final = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
"""The path of the procedure; tbot appends it to its address."""

_RUN_MODES: Final["dict[TbotStartEvent.RunMode, RunMode]"] = {
    TbotStartEvent.RUN_MODE_ONE_SHOT: "one-shot",
    TbotStartEvent.RUN_MODE_DAEMON: "daemon",
}


def parse_report(report: SubmitTbotEventRequest) -> TbotStart:
    """Returns the event in *report*. Pure.

    Ignores the report's own time: the error of a clock is a fingerprint of its machine.

    Raises:
        EventError: the report has no event, or an unknown one, or a field breaks its rule.
    """
    if report.WhichOneof("event") != "start":
        raise EventError([("event", "must be a start; no other event is known")])
    start = report.start
    return TbotStart(
        # An unknown mode becomes an invalid string, so that `TbotStart` reports it together with other broken fields.
        run_mode=_RUN_MODES.get(start.run_mode, ""),  # type: ignore[arg-type]  # see above
        version=start.version,
        join_type=to_join_type(start.join_type),
        helper=start.helper,
        helper_version=start.helper_version,
        destinations_other=start.destinations_other,
        destinations_database=start.destinations_database,
        destinations_kubernetes=start.destinations_kubernetes,
        destinations_application=start.destinations_application,
        session_id=report.distinct_id,
    )


def to_report(event: TbotStart) -> SubmitTbotEventRequest:
    """Returns the report that tbot would send for *event*, without a time. Pure."""
    modes = {name: number for number, name in _RUN_MODES.items()}
    start = TbotStartEvent(
        run_mode=modes[event.run_mode],
        version=event.version,
        join_type=event.join_type,
        helper=event.helper,
        helper_version=event.helper_version,
        destinations_other=event.destinations_other,
        destinations_database=event.destinations_database,
        destinations_kubernetes=event.destinations_kubernetes,
        destinations_application=event.destinations_application,
    )
    return SubmitTbotEventRequest(distinct_id=event.session_id, start=start)
