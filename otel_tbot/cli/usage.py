"""Describes usage errors of click without repeating an argument, because an argument may be a token."""

import difflib
from collections.abc import Iterable, Sequence

import click


class SafeUsageError(click.UsageError):
    """A usage error with a message of our own, which repeats no argument."""


def to_suggestion(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean …?" with the names in *known* that are like *name*, or "". Pure."""
    matches = difflib.get_close_matches(name, list(known))
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def describe_usage_error(error: click.UsageError, arguments: Sequence[str]) -> str:
    """Returns the message for *error*, which parsing *arguments* raised. Pure.

    Names options of our own, and positions for everything else.
    """
    if isinstance(error, SafeUsageError):
        return error.message
    if isinstance(error, click.NoSuchOption):
        suggestion = to_suggestion(error.option_name, _list_options(error.ctx))
        return f"argument {_find_position(error.option_name, arguments)}: unknown option{suggestion}"
    if isinstance(error, click.BadOptionUsage):
        is_flag = any(error.option_name in p.opts and getattr(p, "is_flag", False) for p in _list_parameters(error.ctx))
        return f"{error.option_name}: {'takes no value' if is_flag else 'needs a value'}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = error.param.opts[0]
        if isinstance(error.param.type, click.Choice):
            return f"{name}: must be one of {', '.join(error.param.type.choices)}"
        if isinstance(error.param.type, click.IntRange):
            return f"{name}: must be a whole number from {error.param.type.min} to {error.param.type.max}"
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


def _list_options(context: click.Context | None) -> list[str]:
    return [
        option
        for parameter in _list_parameters(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if not getattr(parameter, "hidden", False)
    ]


def _list_parameters(context: click.Context | None) -> list[click.Parameter]:
    return [] if context is None else context.command.get_params(context)
