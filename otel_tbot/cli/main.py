"""Defines the commands of `otel-tbot` and runs the one that the arguments name.

Each command imports its own modules. `run` with a command to execute bypasses all of this (see __main__).
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from otel_tbot import settings
from otel_tbot._version import __version__
from otel_tbot.cli import output
from otel_tbot.cli.usage import SafeUsageError, describe_usage_error, to_suggestion
from otel_tbot.consent import HELPER_VARIABLE, HELPER_VERSION_VARIABLE, enabled, find_mistake
from otel_tbot.errors import OtelTbotError
from otel_tbot.outcome import Outcome

if TYPE_CHECKING:
    from otel_tbot.event import TbotStart

PROGRAM: Final = "otel-tbot"
COMPLETE_VARIABLE: Final = "_OTEL_TBOT_COMPLETE"
"""click's variable, with which a shell asks for completions."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command in *arguments* and returns its exit status; docs/reference/commands.md lists them."""
    output.reserve_standard_streams()
    # Otherwise gRPC prints lines too, for example for each TLS handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    own, command = split_at_dashes(arguments)
    name = next((argument for argument in own if argument in cli.commands), "")
    try:
        if instruction := os.environ.get(COMPLETE_VARIABLE):
            from click.shell_completion import shell_complete

            return shell_complete(cli, {}, PROGRAM, COMPLETE_VARIABLE, instruction)
        with cli.make_context(PROGRAM, list(own), obj=command) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as end:  # after --help or --version
        return end.exit_code
    except click.UsageError as error:
        message = describe_usage_error(error, cli.commands.get(name, cli), own)
        hint = f"see `{' '.join(filter(None, (PROGRAM, name)))} --help`"
        output.print_message(name, f"{message} {hint.capitalize()}" if message.endswith("?") else f"{message}; {hint}")
        return 2
    except OtelTbotError as error:
        output.print_message(name, str(error))
        return error.exit_status
    except OSError as error:  # click could not print its help or a completion
        output.print_message(name, str(output.to_output_error(error)))
        return output.STATUS_NOT_WRITTEN


def split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments before the first "--", and those after it. Pure."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    end = own.index("--")
    return own[:end], own[end + 1 :]


class _Command(click.Command):
    """A command whose usage line is written by hand, and whose examples keep their line breaks."""

    def __init__(self, *, usage: str, epilog: str, **kwargs: Any) -> None:
        super().__init__(epilog=f"\b\n{epilog.strip()}", **kwargs)
        self._usage = usage

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, self._usage)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(self.epilog or "")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.obj and "--" not in self._usage:
            raise SafeUsageError("takes no command after --", ctx)
        return super().parse_args(ctx, args)


class _Group(click.Group):
    """The group of all commands; a mistyped command gets a suggestion, but is not repeated."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            raise SafeUsageError(f"unknown command{to_suggestion(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)  # as defined, not sorted

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(self.epilog or "")


_CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": output.MAX_WIDTH}

_HELP: Final = """Send the anonymous start event of Teleport's tbot to any OpenTelemetry pipeline, if
TELEPORT_ANONYMOUS_TELEMETRY=1 is set."""

_EPILOG: Final = """\b
Example:
  export TELEPORT_ANONYMOUS_TELEMETRY=1
  export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318
  otel-tbot run -- tbot start -c /etc/tbot.yaml

Exit status: 0 done, or off; 1 not delivered, or not healthy; 2 wrong usage or bad
input; 74 done, but the result could not be written."""


@click.group(
    cls=_Group,
    context_settings=_CONTEXT,
    invoke_without_command=True,
    help=_HELP,
    epilog=_EPILOG,
    options_metavar="[OPTION]",
    subcommand_metavar="COMMAND [ARG...]",
)
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Prints the help if there is no command."""
    if context.invoked_subcommand is None:
        if context.obj:
            # A success without a start of tbot would mislead a script.
            raise SafeUsageError("no command before --; did you mean run?", context)
        click.echo(context.get_help())


def _command(usage: str, brief: str, epilog: str) -> Callable[[Callable[..., int]], click.Command]:
    return cli.command(cls=_Command, usage=usage, short_help=brief, epilog=epilog)


@_command(
    "-- COMMAND [ARG...]",
    "Execute tbot with a relay next to it.",
    """
Example:
  otel-tbot run -- tbot start -c /etc/tbot.yaml

Exit status: the command's own; 127 not found; 126 not executable.
""",
)
@click.pass_context
def run(context: click.Context) -> int:
    """Execute tbot with a relay next to it.

    With TELEPORT_ANONYMOUS_TELEMETRY=1, the relay accepts tbot's report and sends the event to the collector that
    OTEL_EXPORTER_OTLP_ENDPOINT names (default: http://localhost:4318). Otherwise COMMAND is executed and nothing else
    happens. The relay accepts one report, so put `run` directly in front of tbot.
    """
    # A complete command line goes from __main__ to the launcher.
    if context.obj:
        raise OtelTbotError("needs Linux or macOS; on Windows, send the event with `otel_tbot.emit`")
    raise OtelTbotError("no command given; use `otel-tbot run -- COMMAND [ARG...]`")


@_command(
    "[OPTION...]",
    "Serve many tbots that only have an address set.",
    """
Example:
  otel-tbot bridge --listen 0.0.0.0:8080
  and for each tbot:
    TELEPORT_ANONYMOUS_TELEMETRY=1
    TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS=http://HOST:8080

Exit status: 0 ended by SIGTERM; 1 cannot listen; 2 bad input, or off.
""",
)
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="The address.")
@click.option("--path-prefix-file", metavar="FILE", type=click.Path(), help="Serve only paths behind this secret.")
@click.option("--tls-cert", metavar="FILE", type=click.Path(), help="Serve HTTPS with this certificate.")
@click.option("--tls-key", metavar="FILE", type=click.Path(), help="The certificate's key.")
@click.option(
    *("--idle-timeout", "idle_timeout_seconds"),
    metavar="SECONDS",
    type=click.IntRange(1),
    default=620,
    show_default=True,
    help="How long a connection may be idle.",
)
def bridge(
    listen: str, path_prefix_file: str | None, tls_cert: str | None, tls_key: str | None, idle_timeout_seconds: int
) -> int:
    """Serve tbot's protocol for many tbots, and send their events to the collector.

    A tbot needs only two variables. A report is acknowledged after the collector accepted its event.
    """
    from otel_tbot.bridge.application import Bridge, check_consent
    from otel_tbot.bridge.server import parse_address, serve

    check_consent(os.environ)
    host, port = parse_address(listen)
    serve(
        Bridge(os.environ),
        host,
        port,
        path_prefix_file=path_prefix_file or "",
        tls_cert=tls_cert or "",
        tls_key=tls_key or "",
        idle_timeout_seconds=idle_timeout_seconds,
    )
    return 0


_EVENT_OPTIONS: Final = (
    click.option("-c", "--config", metavar="FILE", type=click.Path(), help="The configuration of tbot."),
    click.option("--config-string", metavar="BASE64", hidden=True),
    click.option("--oneshot/--no-oneshot", default=None, help="Whether tbot runs once."),
    click.option("--join-method", metavar="METHOD", help="The join method."),
    click.option("--join-uri", metavar="URI", hidden=True),
    click.option("--token", metavar="TOKEN", hidden=True),
    click.option("--ca-pin", metavar="PIN", multiple=True, hidden=True),
    click.option("--destination-dir", metavar="DIR", type=click.Path(), hidden=True),
    click.option("--tbot-version", metavar="VERSION", help="A version, or the line of `tbot version`."),
    click.option("--helper", metavar="NAME", help="The program that starts tbot, such as acme:deploy."),
    click.option("--helper-version", metavar="VERSION", help="The version of the helper."),
)


def _event_options(function: Callable[..., int]) -> Callable[..., int]:
    for option in reversed(_EVENT_OPTIONS):
        function = option(function)
    return function


@_command(
    "[OPTION...] [-- tbot start [ARG...]]",
    "Send one event for a start of tbot.",
    """
Example:
  otel-tbot emit -c tbot.yaml --tbot-version 18.4.1
  otel-tbot emit --helper acme:ci -- tbot start --oneshot

Exit status: 0 accepted by the collector, or off; 1 not delivered; 2 bad
input; 74 accepted, but the result could not be written.
""",
)
@_event_options
@click.pass_context
def emit(context: click.Context, /, **options: Any) -> int:
    """Send one event for a start of tbot.

    For helpers that start tbot where `run` cannot stand in front of it. Facts come from tbot's configuration and from
    tbot's own flags, given as options or after --.
    """
    if mistake := find_mistake(os.environ):
        output.print_message("emit", f"warning: {mistake}")
    if not enabled():
        output.print_result("telemetry is off: nothing was sent")
        return 0
    logging.getLogger("otel_tbot").addHandler(_MessageHandler("emit"))
    event = _read_event("emit", options, context.obj)
    from otel_tbot.delivery import emit as send_event

    outcome = send_event(event)
    if outcome is not Outcome.ACCEPTED:
        output.print_message("emit", f"the event was not delivered: {outcome.value}; run `otel-tbot doctor` to see why")
        return 1
    try:
        output.print_result("the collector accepted the event")
    except output.OutputError as error:
        raise output.OutputError(f"the collector accepted the event, but {error}") from None
    return 0


@_command(
    "[OPTION...] [-- tbot start [ARG...]]",
    "Print what `emit` would send.",
    """
Example:
  otel-tbot preview -c tbot.yaml --tbot-version 18.4.1

Exit status: 0; 2 bad input; 74 the result could not be written.
""",
)
@_event_options
@click.option("--signal", type=click.Choice(settings.SIGNALS), help="Default: OTEL_TBOT_SIGNAL, or log.")
@click.option("--json", "is_json", is_flag=True, help="Print the exact OTLP/JSON, as into a pipe.")
@click.pass_context
def preview(context: click.Context, /, signal: "settings.Signal | None", *, is_json: bool, **options: Any) -> int:
    """Print the event that `emit` would send, and send nothing.

    On a terminal it is a table, otherwise the exact request as OTLP/JSON. Works with telemetry off.
    """
    if mistake := find_mistake(os.environ):
        output.print_message("preview", f"warning: {mistake}")
    event = _read_event("preview", options, context.obj)
    from otel_tbot.cli.preview import to_preview
    from otel_tbot.otlp.config import resolve_config

    config = resolve_config(os.environ, signal=signal)
    for warning in config.warnings:
        output.print_message("preview", f"warning: {warning}")
    shown = to_preview(event, config)
    if output.is_terminal() and not is_json:
        output.print_result(shown.to_text(is_on=enabled(), width=output.get_width()))
        return 0
    output.print_result(shown.body)
    output.print_message("preview", shown.describe(is_on=enabled()))
    return 0


@_command(
    "[OPTION]",
    "Find out what is on and whether it works.",
    """
Example:
  otel-tbot doctor --json

Exit status: 0 healthy, or off; 1 a problem; 2 wrong usage; 74 the result could
not be written.
""",
)
@click.option("--json", "is_json", is_flag=True, help="Print the findings as JSON.")
def doctor(*, is_json: bool) -> int:
    """Find out what is on, where events go, whether that works, and what to do.

    Tries the relay and the collector, or the address that tbot would report to, but sends no event. Shows no secrets.
    With telemetry off, it connects to nothing and starts nothing.
    """
    from otel_tbot.cli import doctor as doctor_module

    findings = doctor_module.examine(os.environ)
    if is_json:
        output.print_result(doctor_module.to_json(findings, is_on=enabled()))
    else:
        output.print_result(doctor_module.to_text(findings, width=output.get_width()))
    return 0 if doctor_module.is_healthy(findings) or not enabled() else 1


@_command(
    "[-- COMMAND [ARG...]]",
    "Show everything on this machine.",
    """
Example:
  otel-tbot demo -- tbot start --oneshot -c /etc/tbot.yaml

Exit status: 0 one event arrived, and then none; otherwise 1.
""",
)
@click.pass_context
def demo(context: click.Context) -> int:
    """Show everything on this machine, with telemetry on and off.

    Runs COMMAND behind `run` twice, with a collector in this process, and shows the requests that arrive. Without a
    COMMAND it runs a fake tbot, and runs it a third time without a collector.
    """
    from otel_tbot.cli.demo import show_demo

    return show_demo(context.obj)


def _read_event(command_name: str, options: dict[str, Any], command: Sequence[str]) -> "TbotStart":
    """Returns the event of *options* and *command*; prints a warning for each value that becomes `_OTHER`."""
    from otel_tbot.event import OTHER, to_join_type
    from otel_tbot.tbot.config import StartFlags, parse_join_uri, read_event
    from otel_tbot.tbot.flags import parse_start_line

    join_type = to_join_type(options["join_method"] or "")
    if options["join_uri"]:
        join_type = parse_join_uri(options["join_uri"], source="--join-uri")
    flags = StartFlags(
        config_path=options["config"] or "",
        config_string=options["config_string"] or "",
        is_one_shot=options["oneshot"],
        join_type=join_type,
        has_token=bool(options["token"]),
        has_ca_pin=bool(options["ca_pin"]),
        has_destination_dir=bool(options["destination_dir"]),
    )
    if command:
        if flags != StartFlags():
            raise OtelTbotError("tbot's flags are given both before and after --; give them on one side")
        line = parse_start_line(command)
        flags = line.flags
        for warning in line.warnings:
            output.print_message(command_name, f"warning: {warning}")
    version, helper, helper_version = (options[name] or "" for name in ("tbot_version", "helper", "helper_version"))
    event = read_event(flags, os.environ, version=version, helper=helper, helper_version=helper_version)
    join_source = "onboarding.join_method"
    if flags.join_type == OTHER:
        join_source = "--join-uri" if options["join_uri"] else "--join-method"
    for field, source, rule in (
        ("version", "--tbot-version", "not a version such as 18.4.1"),
        ("join_type", join_source, "not a join method that otel-tbot knows"),
        ("helper", "--helper" if helper else HELPER_VARIABLE, "not 1 to 64 of A-Za-z0-9._:/-"),
        ("helper_version", "--helper-version" if helper_version else HELPER_VERSION_VARIABLE, "not like v2.0.1"),
    ):
        if getattr(event, field) == OTHER:
            output.print_message(command_name, f"warning: {source}: {rule}; the event says {OTHER} instead")
    return event


class _MessageHandler(logging.Handler):
    """Prints the warnings of the library as messages of a command."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        output.print_message(self._command, f"warning: {record.getMessage()}")
