"""Parses the command line of `tbot start` as tbot's own parser does.

Short flags combine, and the last of them may take the rest as its value (`-dc FILE`, `-cFILE`); a boolean flag takes no
value, but has a form with `--no-`; a value never begins with a dash. A flag that this version does not know is
reported, because it can change the event.
Source: Teleport, CLI reference of `tbot start`; kingpin, with which tbot parses its command line.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from otel_tbot.errors import TbotConfigError
from otel_tbot.event import to_join_type
from otel_tbot.tbot.config import KNOWN_SUBCOMMANDS, StartFlags, parse_join_uri

PLACE: Final = "the command after --"

_BOOLEAN_FLAGS: Final = {
    "debug", "disable-exec-plugin", "enable-resumption", "fips", "help", "include-federated-trust-bundles", "insecure",
    "oneshot", "specific-tls-extensions", "trace", "version",
}  # fmt: skip
_VALUE_FLAGS: Final = {
    "app", "app-name", "audience", "auth-server", "ca-path", "ca-pin", "certificate-ttl", "config", "config-string",
    "data-dir", "database", "destination", "destination-dir", "diag-addr", "diag-socket-for-updater", "dns-san",
    "format", "ip-san", "join-method", "join-uri", "kubernetes-cluster", "label-selector", "listen", "log-format",
    "name-selector", "pid-file", "profile-arn", "proxy-command", "proxy-server", "proxy-templates-path",
    "reader-group", "reader-user", "region", "registration-secret", "registration-secret-path", "renewal-interval",
    "role-arn", "service", "session-duration", "session-renewal-interval", "static-key-path", "storage", "svid-hint",
    "svid-path", "token", "trace-exporter", "trust-anchor-arn", "username",
}  # fmt: skip
_LONG_OF_SHORT: Final = {"a": "auth-server", "c": "config", "d": "debug"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLine:
    """A parsed command line: the flags that change the event, and warnings, which repeat no argument."""

    flags: StartFlags
    warnings: tuple[str, ...] = ()


def parse_start_line(command: Sequence[str]) -> StartLine:
    """Parses *command*, which is `tbot start` with its arguments; its first argument is the program's name. Pure.

    An unknown flag gets a warning. The word after it is taken as its value, unless that word is a subcommand.

    Raises:
        TbotConfigError: *command* does not start tbot, or tbot would not accept it.
    """
    parser = _Parser(command)
    parser.parse()
    if parser.words[:1] != ["start"]:
        raise TbotConfigError(PLACE, "must be `tbot start` with its arguments")
    values = parser.values
    join_type = to_join_type(values.get("join-method", ""))
    if uri := values.get("join-uri"):
        join_type = parse_join_uri(uri, source="--join-uri")
    flags = StartFlags(
        config_path=values.get("config", ""),
        config_string=values.get("config-string", ""),
        is_one_shot=parser.booleans.get("oneshot"),
        join_type=join_type,
        has_token=bool(values.get("token")),
        has_ca_pin="ca-pin" in values,
        has_destination_dir=bool(values.get("destination-dir")),
        subcommand="".join(parser.words[1:2]),
    )
    return StartLine(flags=flags, warnings=tuple(parser.warnings))


class _Parser:
    """One pass over a command line; collects the values of flags, the words between them, and warnings."""

    def __init__(self, command: Sequence[str]) -> None:
        self._arguments = list(command[1:])
        self._position = 0
        self.words: list[str] = []
        self.values: dict[str, str] = {}
        self.booleans: dict[str, bool] = {}
        self.warnings: list[str] = []

    def parse(self) -> None:
        """Reads all arguments; raises TbotConfigError for those that tbot rejects."""
        self._check_files()
        while self._position < len(self._arguments):
            argument = self._arguments[self._position]
            self._position += 1
            if argument == "--":
                self.words += self._arguments[self._position :]
                return
            if argument.startswith("--"):
                self._parse_long(argument[2:])
            elif argument.startswith("-") and argument != "-":
                self._parse_short(argument[1:])
            else:
                self.words.append(argument)

    def _check_files(self) -> None:
        """Rejects `@FILE`, even as a flag's value: tbot replaces it by the lines of the file, which may be flags."""
        for position, argument in enumerate(itertools.takewhile(lambda word: word != "--", self._arguments), start=1):
            if argument.startswith("@"):
                rule = "must not be a file of arguments (@FILE); write the arguments out"
                raise TbotConfigError(f"{PLACE}, argument {position}", rule)

    def _parse_long(self, text: str) -> None:
        name, separator, value = text.partition("=")
        positive = name.removeprefix("no-")
        if name in _VALUE_FLAGS:
            self.values[name] = value if separator else self._take_value(name)
        elif name in _BOOLEAN_FLAGS or positive in _BOOLEAN_FLAGS:
            if separator:
                raise TbotConfigError(f"--{name}", f"takes no value; use --{positive} or --no-{positive}")
            self.booleans[positive] = name == positive
        else:
            self._warn_of_unknown(has_value=bool(separator))

    def _parse_short(self, letters: str) -> None:
        for number, letter in enumerate(letters, start=1):
            name = _LONG_OF_SHORT.get(letter, "")
            if name in _VALUE_FLAGS:
                self.values[name] = letters[number:] or self._take_value(name)
                return
            if name:
                self.booleans[name] = True
            else:
                self._warn_of_unknown(has_value=number < len(letters))
                return

    def _take_value(self, name: str) -> str:
        value = self._peek()
        if value is None:
            raise TbotConfigError(f"--{name}", f"needs a value; write --{name}=VALUE")
        self._position += 1
        return value

    def _peek(self) -> str | None:
        """The next argument if it can be a value, as in tbot's parser; otherwise None."""
        value = next(iter(self._arguments[self._position : self._position + 1]), None)
        return None if value is None or (value.startswith("-") and value != "-") else value

    def _warn_of_unknown(self, *, has_value: bool) -> None:
        warning = f"{self._place()}: a flag that otel-tbot does not know, so the event does not depend on it"
        value = None if has_value else self._peek()
        if value is not None and len(self.words) < 2:  # noqa: PLR2004  # `start` or its subcommand is still to come
            if value == "start" or (self.words and value in KNOWN_SUBCOMMANDS):
                warning += "; it is read as a flag without a value"
            else:
                self._position += 1
                warning += "; the next argument is read as its value (if it is, write --FLAG=VALUE)"
        self.warnings.append(warning)

    def _place(self) -> str:
        return f"{PLACE}, argument {self._position}"
