import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_tbot.errors import EventError
from otel_tbot.event import JOIN_METHODS, MAX_COUNT, OTHER, RUN_MODES, TbotStart
from otel_tbot.tbot.prehog.tbot_pb2 import SubmitTbotEventRequest, TbotStartEvent
from otel_tbot.tbot.report import parse_report, to_report

COUNT = st.integers(0, MAX_COUNT)
EVENTS = st.builds(
    TbotStart,
    run_mode=st.sampled_from(RUN_MODES),
    version=st.sampled_from(["", "18.4.1", "18.4.1-rc.1", "canary"]),
    join_type=st.sampled_from(["", *JOIN_METHODS, OTHER]),
    helper=st.sampled_from(["", "gha:x", "canary canary"]),
    helper_version=st.sampled_from(["", "v1.2"]),
    destinations_other=COUNT,
    destinations_database=COUNT,
    destinations_kubernetes=COUNT,
    destinations_application=COUNT,
    session_id=st.builds(lambda: str(uuid.uuid4())),
)


def a_report(**fields: object) -> SubmitTbotEventRequest:
    """A daemon's report with *fields*."""
    return SubmitTbotEventRequest(
        distinct_id=str(uuid.uuid4()), start=TbotStartEvent(**{"run_mode": TbotStartEvent.RUN_MODE_DAEMON, **fields})
    )


@given(event=EVENTS)
def test_a_report_of_an_event_is_that_event(event):
    """From an event to tbot's message, its bytes and back, nothing is lost."""
    report = SubmitTbotEventRequest.FromString(to_report(event).SerializeToString())

    assert event == parse_report(report)


def test_every_field_has_its_place():
    """Each field of the message is the event's field of that name; the distinct id is the session."""
    report = a_report(
        run_mode=TbotStartEvent.RUN_MODE_ONE_SHOT,
        version="18.4.1",
        join_type="iam",
        helper="h",
        helper_version="v1",
        destinations_other=1,
        destinations_database=2,
        destinations_kubernetes=3,
        destinations_application=4,
    )

    assert TbotStart(
        run_mode="one-shot",
        version="18.4.1",
        join_type="iam",
        helper="h",
        helper_version="v1",
        destinations_other=1,
        destinations_database=2,
        destinations_kubernetes=3,
        destinations_application=4,
        session_id=report.distinct_id,
    ) == parse_report(report)


@pytest.mark.parametrize("number", [0, 3, -1, 2**31 - 1])
def test_an_unknown_run_mode_is_rejected(number):
    """The unspecified mode and those of later versions are invalid."""
    with pytest.raises(EventError, match=r"^run_mode: must be one of one-shot, daemon$"):
        parse_report(a_report(run_mode=number))


def test_a_report_without_an_event_is_rejected():
    """A report without an event, or with one of a later version, is rejected."""
    for report in (SubmitTbotEventRequest(), SubmitTbotEventRequest.FromString(b"\x82\x01\x06canary")):
        with pytest.raises(EventError, match=r"^event: must be a start; no other event is known$"):
            parse_report(report)


def test_unknown_fields_are_ignored():
    """A field that a later tbot adds changes nothing, and is not sent."""
    known = a_report()
    grown = SubmitTbotEventRequest.FromString(known.SerializeToString() + b"\x7a\x06canary" + b"\x1a\x08\x7a\x06canary")

    assert parse_report(known) == parse_report(grown)


def test_the_report_s_own_time_is_not_read():
    """The error of a clock is a fingerprint of its machine."""
    report = a_report()
    timed = SubmitTbotEventRequest.FromString(report.SerializeToString())
    timed.timestamp.FromSeconds(1)

    assert parse_report(report) == parse_report(timed)
    assert not to_report(parse_report(timed)).HasField("timestamp")


def test_all_errors_of_a_report_are_named_without_values():
    """Every field that breaks its rule is named, and no value."""
    report = a_report(run_mode=7, destinations_database=-987)
    report.distinct_id = "canary"

    with pytest.raises(EventError) as raised:
        parse_report(report)

    assert ["run_mode", "destinations_database", "session_id"] == [field for field, _ in raised.value.faults]
    assert "canary" not in str(raised.value)
    assert "987" not in str(raised.value)
