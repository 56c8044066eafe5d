"""The command line: arguments go in, an exit status comes out. Each command imports its own module."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from otel_tbot import settings
from otel_tbot._version import __version__
from otel_tbot.cli.extras import RELAY_REMEDY, find_missing
from otel_tbot.cli.terminal import build_painter
from otel_tbot.consent import enabled
from otel_tbot.errors import OtelTbotError
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from otel_tbot.event import TbotStart
    from otel_tbot.tbot.config import StartFlags

_DESCRIPTION: Final = """\
Brings the anonymous start event of Teleport's tbot into any OpenTelemetry
pipeline, only where TELEPORT_ANONYMOUS_TELEMETRY=1 says so."""

_EXAMPLE: Final = """\
example:
  export TELEPORT_ANONYMOUS_TELEMETRY=1
  export OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.example:4318
  otel-tbot run -- tbot start -c /etc/tbot.yaml

exit status: 0 done, or off; 1 not delivered or not healthy; 2 wrong usage."""

_RUN: Final = """\
Executes COMMAND in this process. Opted in (TELEPORT_ANONYMOUS_TELEMETRY=1), a
relay beside it takes tbot's report and sends it on to the collector that
OpenTelemetry's variables name (OTEL_EXPORTER_OTLP_ENDPOINT, by default
http://localhost:4318). Otherwise nothing else happens. The relay takes one
report, so put `run` directly before tbot."""

_RUN_EXAMPLE: Final = """\
example:
  TELEPORT_ANONYMOUS_TELEMETRY=1 otel-tbot run -- tbot start -c /etc/tbot.yaml

exit status: the command's own; 127 not found, 126 cannot be executed, 2 wrong
usage."""

_DEMO: Final = """\
Runs COMMAND behind `run`, once opted in and once not, with a receiver on this
machine for a collector, and shows what arrived. Without a COMMAND, a stand-in
for tbot is run, a third time with no collector there."""

_DEMO_EXAMPLE: Final = """\
example:
  otel-tbot demo -- tbot start --oneshot -c /etc/tbot.yaml

exit status: 0 when one record and then nothing arrived, otherwise 1."""

_BRIDGE: Final = """\
Serves tbot's protocol for many tbots, which need nothing but two variables,
and sends their events on to the collector. A report is answered with success
only after the collector accepted its event. There is no TLS: keep it where
only tbots reach it, or serve `otel_tbot.bridge:app` by a server of your own."""

_BRIDGE_EXAMPLE: Final = """\
example:
  otel-tbot bridge --listen 127.0.0.1:8080 --path-prefix-file /run/prefix
  and for each tbot:
    TELEPORT_ANONYMOUS_TELEMETRY=1
    TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS=http://127.0.0.1:8080/PREFIX

exit status: 0 ended by SIGTERM; 1 cannot listen; 2 bad input, or off."""

_EMIT: Final = """\
Sends one event for a start of tbot, as its configuration and flags describe
it: run mode, join method, destinations. For helpers that start tbot where
`run` cannot stand in front."""

_EMIT_EXAMPLE: Final = """\
example:
  otel-tbot emit -c tbot.yaml --tbot-version 18.4.1 --helper acme:deploy
  otel-tbot emit --tbot-version 18.4.1 -- tbot start database --oneshot

exit status: 0 accepted by the collector, or off; 1 not delivered; 2 bad input."""

_PREVIEW: Final = """\
Prints the request that `emit` would send, as OTLP/JSON, and sends nothing.
Where it would go is said on stderr. Works with telemetry off."""

_PREVIEW_EXAMPLE: Final = """\
example:
  otel-tbot preview -c tbot.yaml --oneshot --tbot-version 18.4.1

exit status: 0; 2 bad input."""

_DOCTOR: Final = """\
Says what is on, where events would go, whether that answers, and what is
wrong, with remedies. Shows no secrets. With telemetry off it connects to
nothing."""

_DOCTOR_EXAMPLE: Final = """\
example:
  otel-tbot doctor --json

exit status: 0 healthy, or off; 1 there is a problem; 2 wrong usage."""

# Flags of `tbot start` that say nothing of the event and take no value.
_TBOT_SWITCHES: Final = frozenset(("-d", "--debug", "--insecure", "--fips", "--trace"))

_QUOTE: Final = "'"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help for a screen of 80 columns, whatever the terminal's width, with an option and its meaning on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=80)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # "-c, --config FILE", as Python has it since 3.13, so that all print the same.
        if not action.option_strings or action.nargs == 0 or not isinstance(action.metavar, str):
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {action.metavar}"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without repeating it: an argument in the wrong place may be a token."""

    def error(self, message: str) -> NoReturn:
        # argparse quotes what it was given behind the name of the argument, and in nothing else.
        if message.startswith("argument "):
            name, _, fault = message.partition(": ")
            head, choose, choices = fault.rpartition(" (choose from ")
            message = (
                f"{name}: {(head or choices).partition(_QUOTE)[0].rstrip(' :')}{choose}{choices if choose else ''}"
            )
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str]) -> int:
    """Runs the command in *arguments* and returns its exit status: 0 done, 1 not, 2 wrong usage or bad input."""
    parser = build_parser()
    own, command = _split(arguments)
    try:
        parsed, unknown = parser.parse_known_args(own)
        if unknown:
            flags = ", ".join(text.partition("=")[0] for text in unknown if text.startswith("-"))
            fault = flags or "an argument, where a command would stand behind --"
            parser.error(f"unknown: {fault}; see `{' '.join(filter(None, ('otel-tbot', parsed.command)))} --help`")
    except SystemExit as end:  # argparse has said what is wrong, or helped
        return int(end.code or 0)
    commands = {"run": _run, "demo": _demo, "emit": _emit, "preview": _preview, "doctor": _doctor, "bridge": _bridge}
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        return commands[parsed.command](parsed, command)
    except OtelTbotError as error:
        _say(parsed.command, str(error))
        return error.exit_status


def build_parser() -> argparse.ArgumentParser:
    """Every command and option, each with its help. Pure."""
    parser = _Parser(
        prog="otel-tbot",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    version = f"otel-tbot {__version__}"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands, each with a --help of its own")

    def add(name: str, brief: str, description: str, example: str, usage: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=brief,
            description=description,
            epilog=example,
            usage=f"otel-tbot {name} {usage}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    add("run", "execute tbot with a relay beside it", _RUN, _RUN_EXAMPLE, "-- COMMAND [ARG...]")
    add("demo", "show the whole way on this machine", _DEMO, _DEMO_EXAMPLE, "[-- COMMAND [ARG...]]")
    usage = "[--listen HOST:PORT] [--path-prefix-file FILE]"
    bridge = add("bridge", "serve many tbots that only have an address set", _BRIDGE, _BRIDGE_EXAMPLE, usage)
    bridge.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="default: %(default)s")
    bridge.add_argument("--path-prefix-file", metavar="FILE", help="serve only paths behind the secret in FILE")
    usage = "[OPTION...] [-- tbot start [ARG...]]"
    emit = add("emit", "send one event for a tbot configuration", _EMIT, _EMIT_EXAMPLE, usage)
    preview = add("preview", "print what emit would send", _PREVIEW, _PREVIEW_EXAMPLE, usage)
    for command in (emit, preview):
        _add_tbot_flags(command)
        command.add_argument("--tbot-version", metavar="V", default="", help="the version of tbot")
        command.add_argument("--helper", metavar="NAME", default="", help="what starts tbot, such as acme:deploy")
        command.add_argument("--helper-version", metavar="V", default="", help="its version")
    preview.add_argument("--signal", choices=settings.SIGNALS, help="log or span (default: OTEL_TBOT_SIGNAL)")
    doctor = add("doctor", "say what is on, where it goes and what is wrong", _DOCTOR, _DOCTOR_EXAMPLE, "[--json]")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add_tbot_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `tbot start` that change the event, as tbot spells them."""
    parser.add_argument("-c", "--config", metavar="FILE", default="", help="tbot's configuration")
    parser.add_argument("--oneshot", action=argparse.BooleanOptionalAction, help="tbot runs once")
    parser.add_argument("--join-method", metavar="M", default="", help="as for tbot")
    parser.add_argument("--join-uri", metavar="URI", default="", help="as for tbot; only its method is read")
    parser.add_argument("--token", metavar="T", default="", help="as for tbot; not read")
    parser.add_argument("--destination-dir", metavar="DIR", default="", help="as for tbot; not read")


def _read_event(parsed: argparse.Namespace, command: Sequence[str]) -> "TbotStart":
    _check_relay_extra()
    from otel_tbot.tbot.config import read_event

    flags = _to_start_flags(parsed)
    if command:
        if flags != _to_start_flags(_parse_tbot_flags([])[0]):
            raise OtelTbotError("tbot's flags stand either before or behind --, not on both sides")
        behind, rest = _parse_tbot_flags(command)
        if "start" not in rest:
            raise OtelTbotError("what stands behind -- must be a `tbot start` with its arguments")
        flags = replace(_to_start_flags(behind), subcommand=_find_subcommand(rest[rest.index("start") + 1 :]))
    return read_event(
        flags, os.environ, version=parsed.tbot_version, helper=parsed.helper, helper_version=parsed.helper_version
    )


def _parse_tbot_flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that change the event, and all other arguments of a command line of tbot."""
    parser = _Parser(prog="tbot", add_help=False, allow_abbrev=False, usage="tbot start [ARG...]")
    _add_tbot_flags(parser)
    try:
        return parser.parse_known_args(arguments)
    except SystemExit:
        raise OtelTbotError("what stands behind -- is no command line of tbot") from None


def _to_start_flags(parsed: argparse.Namespace) -> "StartFlags":
    from otel_tbot.event import to_join_type
    from otel_tbot.tbot.config import StartFlags, parse_join_uri

    join_type = to_join_type(parsed.join_method)
    if parsed.join_uri:
        join_type = parse_join_uri(parsed.join_uri, place="--join-uri")
    return StartFlags(
        config_path=parsed.config,
        is_one_shot=parsed.oneshot,
        join_type=join_type,
        has_token=bool(parsed.token),
        has_destination_dir=bool(parsed.destination_dir),
    )


def _find_subcommand(arguments: Sequence[str]) -> str:
    """The subcommand among *arguments*, which stand behind `tbot start`; "" for none. Pure."""
    is_value = False
    for argument in arguments:
        if argument.startswith("-"):
            is_value = "=" not in argument and argument not in _TBOT_SWITCHES and not argument.startswith("--no-")
        elif is_value:
            is_value = False
        else:
            return argument
    return ""


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before the first "--" and what is behind it. Pure."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    end = own.index("--")
    return own[:end], own[end + 1 :]


def _run(_parsed: argparse.Namespace, command: Sequence[str]) -> int:
    # A whole command line goes from __main__ to the launcher; what comes here has no command, or no POSIX.
    if command:
        _say("run", "needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`")
    else:
        _say("run", "no command given; usage: otel-tbot run -- COMMAND [ARG...]")
    return 2


def _demo(_parsed: argparse.Namespace, command: Sequence[str]) -> int:
    _check_relay_extra()
    from otel_tbot.cli.demo import demo

    return demo(command, build_painter(sys.stdout, os.environ))


def _bridge(parsed: argparse.Namespace, _command: Sequence[str]) -> int:
    _check_relay_extra()
    from otel_tbot.bridge.application import check_consent
    from otel_tbot.bridge.server import parse_address, read_path_prefix, serve

    check_consent(os.environ)
    host, port = parse_address(parsed.listen)
    path_prefix = read_path_prefix(parsed.path_prefix_file) if parsed.path_prefix_file else ""
    serve(host, port, path_prefix=path_prefix, environ=os.environ)
    return 0


def _emit(parsed: argparse.Namespace, command: Sequence[str]) -> int:
    if not enabled():
        print("telemetry is off: nothing was sent")
        return 0
    event = _read_event(parsed, command)
    from otel_tbot.delivery import emit

    outcome = emit(event)
    if outcome is Outcome.ACCEPTED:
        print("the collector has accepted the event")
        return 0
    _say("emit", f"the event was not delivered: {outcome.value}; `otel-tbot doctor` looks for the reason")
    return 1


def _preview(parsed: argparse.Namespace, command: Sequence[str]) -> int:
    event = _read_event(parsed, command)
    from otel_tbot.cli.preview import to_preview

    preview = to_preview(event, os.environ, signal=parsed.signal or settings.SIGNAL.resolve(os.environ))
    for fault in settings.find_faults(os.environ):
        _say("preview", fault)
    print(preview.body)
    if enabled():
        _say("preview", f"nothing was sent; `emit` would send this {preview.way}")
    else:
        _say("preview", f"nothing was sent, and telemetry is off; on, `emit` would send this {preview.way}")
    return 0


def _doctor(parsed: argparse.Namespace, _command: Sequence[str]) -> int:
    from otel_tbot.cli import doctor

    findings = doctor.examine(os.environ)
    if parsed.json:
        print(doctor.to_json(findings, is_on=enabled()))
    else:
        print(doctor.to_text(findings, build_painter(sys.stdout, os.environ)))
    return 0 if doctor.is_healthy(findings) or not enabled() else 1


def _check_relay_extra() -> None:
    if find_missing():
        raise OtelTbotError(f"needs the extra `relay`: {RELAY_REMEDY}")


def _say(command: str, text: str) -> None:
    print(f"otel-tbot: {command}: {text}", file=sys.stderr)
