"""The errors that otel-tbot raises: what goes in is a broken rule, what comes out says where and what to do."""

from collections.abc import Iterable


class OtelTbotError(Exception):
    """Base of every error that otel-tbot raises. Delivery never raises: it returns an `Outcome`.

    `exit_status` is what a command ends with when the error reaches it: 2, wrong usage or bad input.
    """

    exit_status = 2


class EventError(OtelTbotError):
    """A `TbotStart` that breaks its rules: every broken field at once, none of their values.

    `faults` is a tuple of (field, rule) pairs, in the order of the fields.
    """

    def __init__(self, faults: Iterable[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{field}: {rule}" for field, rule in self.faults))
