"""The anonymous, opt-in start event of Teleport's tbot, over OpenTelemetry.

Names are loaded on first use: `import otel_tbot` alone loads neither OpenTelemetry nor anything else of weight.
"""

TYPE_CHECKING = False  # type checkers take it as true; importing typing would double the start of `run`
if TYPE_CHECKING:
    from otel_tbot._version import __version__ as __version__
    from otel_tbot.consent import enabled as enabled
    from otel_tbot.delivery import emit as emit
    from otel_tbot.errors import EventError as EventError
    from otel_tbot.errors import ExporterError as ExporterError
    from otel_tbot.errors import OtelTbotError as OtelTbotError
    from otel_tbot.errors import TbotConfigError as TbotConfigError
    from otel_tbot.event import TbotStart as TbotStart
    from otel_tbot.exporters import TbotLogRecordExporter as TbotLogRecordExporter
    from otel_tbot.exporters import TbotSpanExporter as TbotSpanExporter
    from otel_tbot.outcome import Outcome as Outcome

_HOMES = {
    "__version__": "otel_tbot._version",
    "EventError": "otel_tbot.errors",
    "ExporterError": "otel_tbot.errors",
    "OtelTbotError": "otel_tbot.errors",
    "Outcome": "otel_tbot.outcome",
    "TbotConfigError": "otel_tbot.errors",
    "TbotLogRecordExporter": "otel_tbot.exporters",
    "TbotSpanExporter": "otel_tbot.exporters",
    "TbotStart": "otel_tbot.event",
    "emit": "otel_tbot.delivery",
    "enabled": "otel_tbot.consent",
}

__all__ = [
    "EventError",
    "ExporterError",
    "OtelTbotError",
    "Outcome",
    "TbotConfigError",
    "TbotLogRecordExporter",
    "TbotSpanExporter",
    "TbotStart",
    "emit",
    "enabled",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
