"""Defines the errors that otel-tbot raises: each says where, which rule, and what to do, never the value."""

from collections.abc import Iterable


class OtelTbotError(Exception):
    """Is the base of every error that otel-tbot raises. Delivery never raises: it returns an `Outcome`.

    `exit_status` is the status of a command that this error ends: 2, wrong usage or bad input.
    """

    exit_status = 2


class _RulesError(OtelTbotError):
    """Every broken rule of one input, as (name, rule) pairs; never a value."""

    def __init__(self, faults: Iterable[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{name}: {rule}" for name, rule in self.faults))


class EventError(_RulesError):
    """Says which fields of a `TbotStart` break their rules: all at once, without their values.

    `faults` is a tuple of (field, rule) pairs, in the order of the fields.
    """


class ExporterError(_RulesError):
    """Says which arguments of an exporter plug-in break their rules: all at once, without their values.

    `faults` is a tuple of (argument, rule) pairs.
    """


class TbotConfigError(OtelTbotError):
    """Says where a configuration of tbot is invalid (source and line), which rule it breaks, and the remedy.

    `source` is a file's path or a variable's name. `line` counts from 1; it is 0 if the error has no line.
    """

    def __init__(self, source: str, rule: str, *, line: int = 0) -> None:
        self.source = source
        self.line = line
        self.rule = rule
        super().__init__(f"{source}:{line}: {rule}" if line else f"{source}: {rule}")
