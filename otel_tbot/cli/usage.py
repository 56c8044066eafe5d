"""Describes usage errors of click without repeating an argument, because an argument may be a token."""

import difflib
from collections.abc import Iterable, Sequence

import click


class SafeUsageError(click.UsageError):
    """A usage error with a message of our own, which repeats no argument."""


def to_suggestion(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …?" with the name in *known* that is most like *name*, or "". Pure."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def describe_usage_error(error: click.UsageError, command: click.Command, arguments: Sequence[str]) -> str:
    """Returns the message for *error*, which parsing *arguments* for *command* raised. Pure.

    Names options of our own, and positions for everything else.
    """
    if isinstance(error, SafeUsageError):
        return error.message
    if isinstance(error, click.NoSuchOption):
        suggestion = to_suggestion(error.option_name, _list_options(command))
        return f"argument {_find_position(error.option_name, arguments)}: unknown option{suggestion}"
    if isinstance(error, click.BadOptionUsage):
        flags = [name for p in command.params if getattr(p, "is_flag", False) for name in (*p.opts, *p.secondary_opts)]
        is_flag = error.option_name in (*flags, "-h", "--help")
        return f"{error.option_name}: {'takes no value' if is_flag else 'needs a value'}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = error.param.opts[0]
        if isinstance(error.param.type, click.Choice):
            return f"{name}: must be one of {', '.join(error.param.type.choices)}"
        if isinstance(error.param.type, click.IntRange):
            return f"{name}: must be a whole number of at least {error.param.type.min}"
        return f"{name}: invalid value"
    return "unexpected argument; only options may stand here, and a command after --"


def _find_position(option: str, arguments: Sequence[str]) -> int:
    """Returns where *option*, a long one or a letter of short ones, first stands in *arguments*, counted from 1."""
    for position, argument in enumerate(arguments, start=1):
        is_long = argument.partition("=")[0] == option
        is_short = argument[:1] == "-" and argument[:2] != "--" and option[:2] != "--" and option[1:] in argument[1:]
        if is_long or is_short:
            return position
    return len(arguments)


def _list_options(command: click.Command) -> list[str]:
    return ["--help", *(option for param in command.params for option in (*param.opts, *param.secondary_opts))]
