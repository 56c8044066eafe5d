import base64

import pytest

from otel_tbot.errors import TbotConfigError
from otel_tbot.tbot.config import StartFlags
from otel_tbot.tbot.flags import parse_start_line

CANARY = "canary-7d2c"
START = ("tbot", "start")

LINES = {
    "nothing but start": (START, StartFlags()),
    "a file": ((*START, "-c", "FILE"), StartFlags(config_path="FILE")),
    "a file before start": (("/opt/tbot", "-c", "FILE", "start"), StartFlags(config_path="FILE")),
    "short flags combined": ((*START, "-dc", "FILE"), StartFlags(config_path="FILE")),
    "a value in the short flag": ((*START, "-cFILE"), StartFlags(config_path="FILE")),
    "both": ((*START, "-dcFILE"), StartFlags(config_path="FILE")),
    "an equals sign after a short flag is part of the value": ((*START, "-c=FILE"), StartFlags(config_path="=FILE")),
    "a value after an equals sign": ((*START, "--config=FILE"), StartFlags(config_path="FILE")),
    "a value that is a dash": ((*START, "--config", "-"), StartFlags(config_path="-")),
    "an empty value": ((*START, "--token="), StartFlags()),
    "a configuration": ((*START, "--config-string", "eA=="), StartFlags(config_string="eA==")),
    "a join method": ((*START, "--join-method=gcp"), StartFlags(join_type="gcp")),
    "an unknown join method": ((*START, "--join-method", CANARY), StartFlags(join_type="_OTHER")),
    "a join URI": ((*START, "--join-uri", f"tbot+proxy+tpm://{CANARY}@x"), StartFlags(join_type="tpm")),
    "a token": ((*START, "--token", CANARY), StartFlags(has_token=True)),
    "a pin": ((*START, "--ca-pin", f"sha256:{CANARY}"), StartFlags(has_ca_pin=True)),
    "two pins": ((*START, "--ca-pin=a", "--ca-pin=b"), StartFlags(has_ca_pin=True)),
    "a folder": ((*START, f"--destination-dir=/{CANARY}"), StartFlags(has_destination_dir=True)),
    "one shot": ((*START, "--oneshot"), StartFlags(is_one_shot=True)),
    "not one shot": ((*START, "--no-oneshot"), StartFlags(is_one_shot=False)),
    "the last one counts": ((*START, "--oneshot", "--no-oneshot"), StartFlags(is_one_shot=False)),
    "a subcommand": ((*START, "kubernetes"), StartFlags(subcommand="kubernetes")),
    "a subcommand after a boolean flag": ((*START, "--insecure", "db"), StartFlags(subcommand="db")),
    "a subcommand after a short flag": ((*START, "-d", "db"), StartFlags(subcommand="db")),
    "a value that could be a subcommand": ((*START, "--storage", "db", "app"), StartFlags(subcommand="app")),
    "a server, in short": (("tbot", "-a", "start", "start"), StartFlags()),
    "a new subcommand": ((*START, "of-the-future"), StartFlags(subcommand="of-the-future")),
    "an at sign in a value": ((*START, "--storage=@x", "--", "@y"), StartFlags(subcommand="@y")),
    "words after a double dash": (("tbot", "--", "start", "app"), StartFlags(subcommand="app")),
}


@pytest.mark.parametrize(("line", "expected"), LINES.values(), ids=LINES)
def test_a_line_is_parsed_as_tbot_parses_it(line, expected):
    """Short flags combine, values stand after a space or an equals sign, and words are the subcommand."""
    parsed = parse_start_line(line)

    assert (expected, ()) == (parsed.flags, parsed.warnings)
    assert CANARY not in str(parsed)


UNKNOWN = "a flag that otel-tbot does not know, so the event does not depend on it"
VALUE = f"{UNKNOWN}; the next argument is read as its value (if it is, write --FLAG=VALUE)"
BARE = f"{UNKNOWN}; it is read as a flag without a value"
UNKNOWN_FLAGS = {
    "at the end": ((*START, f"--{CANARY}"), StartFlags(), {2: UNKNOWN}),
    "with its value": ((*START, f"--x={CANARY}", "db"), StartFlags(subcommand="db"), {2: UNKNOWN}),
    "before a flag": ((*START, f"--{CANARY}", "--oneshot"), StartFlags(is_one_shot=True), {2: UNKNOWN}),
    "before a word": ((*START, "--x", CANARY, "db"), StartFlags(subcommand="db"), {2: VALUE}),
    "before a subcommand": ((*START, "--x", "db"), StartFlags(subcommand="db"), {2: BARE}),
    "before start": (("tbot", "--x", "start", "db"), StartFlags(subcommand="db"), {1: BARE}),
    "after a subcommand": ((*START, "db", "--x", CANARY), StartFlags(subcommand="db"), {3: UNKNOWN}),
    "short": ((*START, "-x", CANARY, "db"), StartFlags(subcommand="db"), {2: VALUE}),
    "short, with its value": ((*START, f"-x{CANARY}", "db"), StartFlags(subcommand="db"), {2: UNKNOWN}),
    "short, after a known one": ((*START, f"-dx{CANARY}"), StartFlags(), {2: UNKNOWN}),
    "two": ((*START, "--x", "--y"), StartFlags(), {2: UNKNOWN, 3: UNKNOWN}),
}


@pytest.mark.parametrize(("line", "flags", "warnings"), UNKNOWN_FLAGS.values(), ids=UNKNOWN_FLAGS)
def test_an_unknown_flag_never_changes_the_event_silently(line, flags, warnings):
    """Each unknown flag gets a warning that gives its position and how it was read, but does not repeat it."""
    parsed = parse_start_line(line)
    expected = tuple(f"the command after --, argument {position}: {text}" for position, text in warnings.items())

    assert flags == parsed.flags
    assert expected == parsed.warnings
    assert CANARY not in str(parsed)


INVALID = {
    "no arguments": (("tbot",), "the command after --: must be `tbot start` with its arguments"),
    "another command": (("tbot", CANARY, "start"), "the command after --: must be `tbot start` with its arguments"),
    "a missing value": ((*START, "--config"), "--config: needs a value; write --config=VALUE"),
    "a missing value, in short": ((*START, "-dc"), "--config: needs a value; write --config=VALUE"),
    "a flag as a value": ((*START, "--token", f"--{CANARY}"), "--token: needs a value; write --token=VALUE"),
    "a value of a boolean flag": (
        (*START, f"--oneshot={CANARY}"),
        "--oneshot: takes no value; use --oneshot or --no-oneshot",
    ),
    "a file of arguments": (
        (*START, f"@{CANARY}"),
        "the command after --, argument 2: must not be a file of arguments (@FILE); write the arguments out",
    ),
    "a file of arguments as a value": (
        (*START, "--storage", f"@{CANARY}"),
        "the command after --, argument 3: must not be a file of arguments (@FILE); write the arguments out",
    ),
    "an invalid join URI": (
        (*START, "--join-uri", CANARY),
        "--join-uri: not a join URI; write tbot+proxy+METHOD://TOKEN@HOST:PORT, or tbot+auth+…",
    ),
}


@pytest.mark.parametrize(("line", "message"), INVALID.values(), ids=INVALID)
def test_a_line_that_tbot_rejects_is_an_error_with_a_remedy(line, message):
    """The message names the flag or the position, and repeats no value."""
    with pytest.raises(TbotConfigError) as raised:
        parse_start_line(line)

    assert message == str(raised.value)


def test_a_configuration_in_a_flag_is_read(tmp_path):
    """--config-string is base64, like TBOT_CONFIG, and comes before it."""
    from otel_tbot.tbot.config import read_event

    encoded = base64.b64encode(b"version: v2\noneshot: true").decode()
    parsed = parse_start_line((*START, f"--config-string={encoded}"))
    other = base64.b64encode(b"version: v2").decode()

    assert "one-shot" == read_event(parsed.flags, {"TBOT_CONFIG": other}).run_mode
    with pytest.raises(TbotConfigError, match=r"^--config-string: set together with --config; remove one of them$"):
        read_event(StartFlags(config_string=encoded, config_path=str(tmp_path)), {})
    with pytest.raises(TbotConfigError, match=r"^--config-string: not base64; encode the file"):
        read_event(StartFlags(config_string=CANARY), {})
