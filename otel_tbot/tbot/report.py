"""tbot's report: a message of tbot's protocol goes in, a `TbotStart` comes out, and back.

Source: tbot's protocol, prehog.v1alpha (prehog/tbot.proto).
"""

from typing import Final

from otel_tbot.errors import EventError
from otel_tbot.event import TbotStart
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, TbotStartEvent

PROCEDURE: Final = "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
"""Where a report is posted, behind the address that tbot was given."""

_RUN_MODES: Final = {
    TbotStartEvent.RUN_MODE_ONE_SHOT: "one-shot",
    TbotStartEvent.RUN_MODE_DAEMON: "daemon",
}


def parse_report(report: SubmitTbotEventRequest) -> TbotStart:
    """The event that *report* tells of. Pure.

    The report's own time is not read: by how much a clock is wrong tells one machine from another.

    Raises:
        EventError: there is no event in it or one that this version does not know, or a field breaks its rule.
    """
    if report.WhichOneof("event") != "start":
        raise EventError([("event", "must be a start; no other event is known")])
    start = report.start
    return TbotStart(
        # An unknown mode becomes a text that is no mode, so that it is refused with the event's own faults.
        run_mode=_RUN_MODES.get(start.run_mode, ""),
        version=start.version,
        join_type=start.join_type,
        helper=start.helper,
        helper_version=start.helper_version,
        destinations_other=start.destinations_other,
        destinations_database=start.destinations_database,
        destinations_kubernetes=start.destinations_kubernetes,
        destinations_application=start.destinations_application,
        session_id=report.distinct_id,
    )


def to_report(event: TbotStart) -> SubmitTbotEventRequest:
    """The report with which tbot would tell of *event*, without a time. Pure."""
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
