"""What became of an event that was to be sent."""

from enum import Enum


class Outcome(Enum):
    """How the sending of one event ended.

    Only ACCEPTED says that the collector has the event. After REFUSED, UNREACHABLE and TIMED_OUT it does not,
    except that a collector which answered too late may have taken it all the same.
    """

    OFF = "off"
    """Telemetry is off: nothing was made, opened or sent."""
    ACCEPTED = "accepted"
    """The collector answered in OTLP that it took the event and rejected nothing."""
    REFUSED = "refused"
    """Something answered, but not with an acceptance: an error, a redirect, a partial success, no OTLP at all."""
    UNREACHABLE = "unreachable"
    """Nothing answered: no such host, no connection, broken off, TLS that failed, an endpoint that is no URL."""
    TIMED_OUT = "timed out"
    """The deadline passed first."""
