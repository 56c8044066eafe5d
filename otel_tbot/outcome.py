"""Defines what can become of an event that was to be sent."""

from enum import Enum


class Outcome(Enum):
    """What became of one event.

    Only ACCEPTED says that the collector has the event. After REFUSED, UNREACHABLE and TIMED_OUT it does not have it,
    except that a collector whose response came too late may have taken it.
    """

    OFF = "off"
    """Telemetry is off: nothing was made, opened or sent."""
    ACCEPTED = "accepted"
    """The collector responded that it took the event and rejected nothing."""
    REFUSED = "refused"
    """There was a response, but not an acceptance: an error, a redirect, a partial success, a response not of OTLP."""
    UNREACHABLE = "unreachable"
    """There was no response: unknown host, no connection, a connection that was lost, failed TLS, a bad endpoint."""
    TIMED_OUT = "timed out"
    """The deadline passed first."""
