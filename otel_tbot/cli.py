"""The command line: arguments go in, an exit status comes out. Each command imports its own module."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Final

from otel_tbot import __version__
from otel_tbot.errors import OtelTbotError

_DESCRIPTION: Final = """\
Brings the anonymous start event of Teleport's tbot into any OpenTelemetry pipeline,
only where TELEPORT_ANONYMOUS_TELEMETRY=1 says so."""

_RUN: Final = """\
Executes COMMAND in this process. Opted in (TELEPORT_ANONYMOUS_TELEMETRY=1), a relay
beside it takes tbot's report and sends it on to the collector that OpenTelemetry's
variables name (OTEL_EXPORTER_OTLP_ENDPOINT, default http://localhost:4318). Otherwise
nothing else happens. The relay takes one report, so put `run` directly before tbot."""

_RUN_EXAMPLE: Final = """\
example:
  TELEPORT_ANONYMOUS_TELEMETRY=1 otel-tbot run -- tbot start -c /etc/tbot.yaml

exit status: the command's own; 127 if it is not found, 126 if it cannot be executed."""

_DEMO: Final = """\
Runs COMMAND behind `run`, once opted in and once not, with a receiver on this machine
for a collector, and shows what arrived. Without a COMMAND, a stand-in for tbot is run."""

_DEMO_EXAMPLE: Final = """\
example:
  otel-tbot demo -- tbot start --oneshot -c /etc/tbot.yaml

exit status: 0 when one record and then nothing arrived, otherwise 1."""

_RELAY_EXTRA: Final = ("connectrpc", "uvicorn")


def main(arguments: Sequence[str]) -> int:
    """Runs the command in *arguments* and returns its exit status: 0 done, 1 not, 2 wrong usage or bad input."""
    parser = _build_parser()
    own, command = _split(arguments)
    try:
        parsed = parser.parse_args(own)
    except SystemExit as end:  # argparse has said what is wrong, or helped
        return int(end.code or 0)
    try:
        if parsed.command == "run":
            return _run(command)
        if parsed.command == "demo":
            return _demo(command)
    except OtelTbotError as error:
        _say(parsed.command, str(error))
        return error.exit_status
    parser.print_help()
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-tbot", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"otel-tbot {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, brief, description, epilog, usage in (
        ("run", "execute tbot with a relay beside it", _RUN, _RUN_EXAMPLE, "otel-tbot run -- COMMAND [ARG...]"),
        ("demo", "show the whole way on this machine", _DEMO, _DEMO_EXAMPLE, "otel-tbot demo [-- COMMAND [ARG...]]"),
    ):
        commands.add_parser(
            name,
            help=brief,
            description=description,
            epilog=epilog,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before the first "--" and what is behind it. Pure."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    end = own.index("--")
    return own[:end], own[end + 1 :]


def _run(command: Sequence[str]) -> int:
    # A whole command line goes from __main__ to the launcher; what comes here has no command, or no POSIX.
    if command:
        _say("run", "needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`")
    else:
        _say("run", "no command given; usage: otel-tbot run -- COMMAND [ARG...]")
    return 2


def _demo(command: Sequence[str]) -> int:
    from otel_tbot.demo import demo

    _check_relay_extra()

    return demo(command)


def _check_relay_extra() -> None:
    if not all(importlib.util.find_spec(name) for name in _RELAY_EXTRA):
        raise OtelTbotError("needs the extra `relay`: pip install 'otel-tbot[relay]'")


def _say(command: str, text: str) -> None:
    print(f"otel-tbot: {command}: {text}", file=sys.stderr)
