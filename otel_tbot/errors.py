"""The errors that otel-tbot raises: what goes in is a broken rule, what comes out says where and what to do."""

from collections.abc import Iterable


class OtelTbotError(Exception):
    """Base of every error that otel-tbot raises. Delivery never raises: it returns an `Outcome`.

    `exit_status` is what a command ends with when the error reaches it: 2, wrong usage or bad input.
    """

    exit_status = 2


class _FaultsError(OtelTbotError):
    """Several faults of one input at once, as (name, rule) pairs; never a value."""

    def __init__(self, faults: Iterable[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{name}: {rule}" for name, rule in self.faults))


class EventError(_FaultsError):
    """A `TbotStart` that breaks its rules: every broken field at once, none of their values.

    `faults` is a tuple of (field, rule) pairs, in the order of the fields.
    """


class ExporterError(_FaultsError):
    """Arguments of an exporter plug-in that break their rules: every one at once, none of their values.

    `faults` is a tuple of (argument, rule) pairs.
    """


class TbotConfigError(OtelTbotError):
    """A configuration of tbot that cannot be read: where (file and line), what is wrong, what to do; never a value.

    `line` counts from 1; it is 0 where there is none.
    """

    def __init__(self, place: str, rule: str, *, line: int = 0) -> None:
        self.place = place
        self.line = line
        self.rule = rule
        super().__init__(f"{place}:{line}: {rule}" if line else f"{place}: {rule}")
