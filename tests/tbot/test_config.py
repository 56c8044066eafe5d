import base64
import re
import resource

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tbot import TbotConfigError
from otel_tbot.event import JOIN_METHODS
from otel_tbot.tbot.config import (
    MAX_CONFIG_BYTES,
    SERVICE_OF_TYPE,
    StartFlags,
    TbotConfig,
    apply_flags,
    parse_config,
    parse_join_uri,
    read_event,
)

CANARY = "canary-5b1e"
COUNTS = ("other", "database", "kubernetes", "application")

# One file of every kind, with what it counts: (run mode, join type, other, database, kubernetes, application).
FILES = {
    "v2, a certificate for ssh": (
        """
        version: v2
        proxy_server: canary.example:443
        onboarding: {join_method: token, token: canary}
        oneshot: false
        storage: {type: directory, path: /canary}
        outputs:
          - type: identity
            destination: {type: directory, path: /canary}
        """,
        ("daemon", "token", 1, 0, 0, 0),
    ),
    "v2, every service": (
        """
        version: v2
        onboarding:
          join_method: bound_keypair
          bound_keypair: {registration_secret: canary}
        oneshot: true
        outputs:
          - {type: database, service: canary, database: canary, username: canary}
          - {type: kubernetes, kubernetes_cluster: canary}
          - {type: kubernetes/v2, selectors: [{name: canary}, {labels: {canary: canary}}]}
          - {type: kubernetes/argo-cd, selectors: [{name: canary}]}
          - {type: application, app_name: canary}
          - {type: ssh_host, principals: [canary]}
          - {type: spiffe-svid, svid: {path: /canary}}
        services:
          - {type: database-tunnel, listen: "tcp://127.0.0.1:3306", service: canary}
          - {type: application-tunnel, listen: "tcp://127.0.0.1:80", app_name: canary}
          - {type: application-proxy, listen: "tcp://127.0.0.1:80"}
          - {type: spiffe-workload-api, listen: "unix:///canary"}
          - {type: ssh-multiplexer, destination: {type: directory, path: /canary}}
          - {type: workload-identity-x509, selector: {name: canary}}
          - {type: workload-identity-jwt, selector: {name: canary}, audiences: [canary]}
          - {type: workload-identity-api, selector: {name: canary}, listen: "unix:///canary"}
          - {type: workload-identity-aws-roles-anywhere, selector: {name: canary}, role_arn: canary}
          - {type: example, message: canary}
          - {type: noop}
          - {type: canary-of-the-next-release}
        """,
        ("one-shot", "bound_keypair", 11, 2, 3, 3),
    ),
    "v2, nothing but a version": ("version: v2", ("daemon", "", 0, 0, 0, 0)),
    "v2, nulls": (
        "{version: v2, outputs: null, services: ~, onboarding: , oneshot: null}",
        ("daemon", "", 0, 0, 0, 0),
    ),
    "v2, as JSON": (
        '{"version": "v2", "oneshot": true, "outputs": [{"type": "database"}]}',
        ("one-shot", "", 0, 1, 0, 0),
    ),
    "v2, an unknown join method": ("version: v2\nonboarding: {join_method: canary}", ("daemon", "_OTHER", 0, 0, 0, 0)),
    "v2, a join URI": (
        "version: v2\njoin_uri: tbot+proxy+azure-devops://canary:canary@canary.example:443",
        ("daemon", "azure_devops", 0, 0, 0, 0),
    ),
    "v2, an older spelling of yes": ("version: v2\noneshot: yes", ("one-shot", "", 0, 0, 0, 0)),
    "v2, anchors and merges": (
        """
        version: v2
        templates: &base {type: kubernetes/v2, selectors: [{name: canary}]}
        outputs: &outputs
          - *base
          - <<: *base
            name: canary
          - <<: [{type: database}, *base]
        services: *outputs
        """,
        ("daemon", "", 0, 2, 4, 0),
    ),
    "v2, a merge with its tag": (
        "base: &base {oneshot: true, onboarding: {join_method: gcp}}\n!!merge <<: *base\nversion: v2",
        ("one-shot", "gcp", 0, 0, 0, 0),
    ),
    "v2, with tags": (
        "{version: !!str v2, oneshot: !!bool 'true', outputs: !!seq [!!map {type: !!str app}], services: !!null ''}",
        ("one-shot", "", 1, 0, 0, 0),
    ),
    "v2, a merge key in quotes": ("version: v2\n'<<': {oneshot: true}", ("daemon", "", 0, 0, 0, 0)),
    "v2, a second document": ("version: v2\noneshot: true\n---\ncanary: [", ("one-shot", "", 0, 0, 0, 0)),
    "v2, with a byte order mark": ("\ufeffversion: v2\noneshot: true", ("one-shot", "", 0, 0, 0, 0)),
    "a document without content": ("---\n# canary\n", ("daemon", "", 0, 0, 0, 0)),
    "null": ("~", ("daemon", "", 0, 0, 0, 0)),
    "v1, every kind": (
        """
        auth_server: canary.example:443
        onboarding: {join_method: iam, token: canary}
        destinations:
          - {directory: /canary}
          - {directory: /canary, kubernetes_cluster: canary}
          - {directory: /canary, app: canary}
          - {directory: /canary, app: {app: canary}}
          - {directory: /canary, database: {service: canary}}
          - {directory: /canary, database: null, app: "", kubernetes_cluster: }
        """,
        ("daemon", "iam", 2, 1, 1, 2),
    ),
    "v1, said": ("version: v1\noneshot: true\ndestinations: []", ("one-shot", "", 0, 0, 0, 0)),
    "empty": ("", ("daemon", "", 0, 0, 0, 0)),
    "comments": ("# canary\n", ("daemon", "", 0, 0, 0, 0)),
}


def to_tuple(event):
    """Run mode, join type and the counts."""
    return (event.run_mode, event.join_type, *(getattr(event, f"destinations_{name}") for name in COUNTS))


@pytest.mark.parametrize(("text", "expected"), FILES.values(), ids=FILES)
def test_files_of_every_kind_are_counted_correctly(text, expected, tmp_path):
    """v1 and v2, every type that tbot has and an unknown one; as a file, and in TBOT_CONFIG."""
    path = tmp_path / "tbot.yaml"
    path.write_text(text)
    encoded = base64.encodebytes(text.encode()).decode()

    assert expected == to_tuple(read_event(StartFlags(config_path=str(path)), {}))
    assert expected == to_tuple(read_event(StartFlags(), {"TBOT_CONFIG_PATH": str(path)}))
    assert expected == to_tuple(read_event(StartFlags(), {"TBOT_CONFIG": encoded}))
    assert expected[2:] == tuple(
        parse_config(text.encode(), source="x").services.count(name)
        for name in ("_OTHER", "database", "kubernetes", "application")
    )


def test_the_event_holds_nothing_else_of_a_file():
    """The files are full of canaries, and the event has none of them."""
    for text, _ in FILES.values():
        assert "canary" not in str(parse_config(text.encode(), source="x"))


# Bad files, with the line, and what the error has to say.
BAD = {
    "invalid YAML": (f"version: v2\nonboarding: [{CANARY}\n", 3, "not valid YAML; fix this line"),
    "a tab": (f"version: v2\n\t{CANARY}: x", 2, "not valid YAML; fix this line"),
    "an unknown alias": (f"version: v2\nx: *{CANARY}", 2, "an alias of an unknown anchor"),
    "an alias of itself": ("version: v2\nx: &a\n  - *a", 3, "an alias of an unknown anchor, or of itself"),
    "a text": (CANARY, 1, "the file: must be a map"),
    "a list": (f"- {CANARY}", 1, "the file: must be a map"),
    "an unknown version": (f"oneshot: true\nversion: {CANARY}", 2, "version: unknown; use v1 or v2"),
    "a version that is a list": ("version: [v2]", 1, "version: must be a string"),
    "a v2 key in v1": (
        f"onboarding: {{}}\noutputs: [{{type: {CANARY}}}]",
        2,
        "outputs: not allowed in a v1 file; add `version: v2`",
    ),
    "services in v1": ("version: v1\nservices: []", 2, "services: not allowed in a v1 file; add `version: v2`"),
    "a v1 key in v2": ("version: v2\ndestinations: []", 2, "destinations: not allowed in a v2 file; use outputs"),
    "outputs that are a map": (f"version: v2\noutputs: {{{CANARY}: x}}", 2, "outputs: must be a list"),
    "outputs that are a text": (f"version: v2\noutputs: {CANARY}", 2, "outputs: must be a list"),
    "an output that is a list": (f"version: v2\noutputs:\n - [{CANARY}]", 3, "an entry of outputs: must be a map"),
    "an output that is null": ("version: v2\noutputs:\n -\n", 3, "an entry of outputs: must be a map"),
    "an output without a type": (
        f"version: v2\noutputs:\n - {{x: {CANARY}}}",
        3,
        "an entry of outputs: has no type; add one",
    ),
    "a type that is a map": (f"version: v2\nservices:\n - type: {{{CANARY}: 1}}", 3, "type: must be a string"),
    "onboarding that is a list": (f"version: v2\nonboarding: [{CANARY}]", 2, "onboarding: must be a map"),
    "a join method that is a list": (f"version: v2\nonboarding:\n  join_method: [{CANARY}]", 3, "join_method: must be"),
    "oneshot that is a text": (f"version: v2\noneshot: {CANARY}", 2, "oneshot: must be true or false"),
    "oneshot in quotes": ('version: v2\noneshot: "true"', 2, "oneshot: must be true or false"),
    "oneshot that is a number": ("version: v2\noneshot: 1", 2, "oneshot: must be true or false"),
    "a key twice": (f"version: v2\noneshot: true\noneshot: {CANARY}", 3, "duplicate key; remove one"),
    "two kinds in v1": (f"destinations:\n - {{app: {CANARY}, database: {{}}}}", 2, "must have at most one of"),
    "a merge of a text": (f"version: v2\n<<: {CANARY}", 2, "<<: must be a map"),
    "an invalid join URI": (f"version: v2\njoin_uri: https://{CANARY}", 2, "not a join URI"),
    "a control character": (f"version: v2\nx: {CANARY}\x07", 2, "control character"),
    "deep": ("version: v2\nx: " + "[" * 70 + CANARY, 2, "nested deeper than 64"),
    "very deep": ("{a: " * 100_000, 1, "nested deeper than 64"),
    "deep merges": ("version: v2\n<<: " + "{<<: " * 500, 2, "nested deeper than 64"),
}


@pytest.mark.parametrize(("text", "line", "rule"), BAD.values(), ids=BAD)
def test_a_bad_file_is_an_error_with_file_line_and_remedy(text, line, rule):
    """The message is one line with file, line, rule and remedy, and nothing of the content."""
    with pytest.raises(TbotConfigError) as raised:
        parse_config(text.encode(), source="tbot.yaml")
    message = str(raised.value)

    assert message.startswith(f"tbot.yaml:{line}: ")
    assert rule in message
    assert CANARY not in message
    assert "\n" not in message
    assert (2, line, "tbot.yaml") == (raised.value.exit_status, raised.value.line, raised.value.source)


def test_aliases_that_explode_are_rejected_at_once():
    """A billion laughs is an error of one line, and takes next to no memory."""
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TbotConfigError, match=r"^x:\d+: more than 100000 nodes, aliases written out"):
        parse_config(f"a0: &a0 [{', '.join(['x'] * 10)}]\n{levels}".encode(), source="x")

    assert 64 * 1024 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_text_that_is_not_utf_8_is_rejected_with_its_line():
    """The line of the first bad byte is named."""
    with pytest.raises(TbotConfigError, match=r"^x:3: not UTF-8; save it as UTF-8$"):
        parse_config(b"version: v2\n\nx: \xff\n", source="x")


def test_a_file_of_100_mb_is_rejected_without_reading_it(tmp_path):
    """The limit is reached after 1 MiB; a file just within it is read."""
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    within = b"version: v2\n#".ljust(MAX_CONFIG_BYTES, b"x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TbotConfigError, match="longer than 1048576 bytes"):
        read_event(StartFlags(config_path=str(path)), {})

    assert 64 * 1024 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert TbotConfig() == parse_config(within, source="x")


def test_a_file_that_cannot_be_read_is_an_error_with_the_reason(tmp_path):
    """Missing, a folder, an invalid name: the setting is named, and not its value, which may be a configuration."""
    for path, reason in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (f"token: {CANARY}\n", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "invalid file name"),
    ):
        for flags, environ, name in (
            (StartFlags(config_path=str(path)), {}, "--config"),
            (StartFlags(), {"TBOT_CONFIG_PATH": str(path)}, "TBOT_CONFIG_PATH"),
        ):
            with pytest.raises(TbotConfigError) as raised:
                read_event(flags, environ)

            assert f"{name}: cannot be read ({reason}); check path and rights" == str(raised.value)


@pytest.mark.parametrize("encoded", [CANARY, "====", "dmVyc2lvbjogdjI", "ü"])
def test_a_variable_that_is_not_base64_is_rejected(encoded):
    """TBOT_CONFIG is named, its value is not."""
    with pytest.raises(TbotConfigError) as raised:
        read_event(StartFlags(), {"TBOT_CONFIG": encoded})

    assert "TBOT_CONFIG: not base64; encode the file, for example with `base64`" == str(raised.value)


def test_two_configurations_at_once_are_rejected():
    """A file and TBOT_CONFIG: otel-tbot does not guess which one tbot reads."""
    with pytest.raises(TbotConfigError, match=r"^TBOT_CONFIG: set together with --config; remove one"):
        read_event(StartFlags(config_path="x"), {"TBOT_CONFIG": "eA=="})


BASE = TbotConfig(is_one_shot=False, join_type="iam", services=("database",))
FLAGS = {
    "none": (StartFlags(), BASE),
    "oneshot": (StartFlags(is_one_shot=True), TbotConfig(is_one_shot=True, join_type="iam", services=("database",))),
    "a join method": (StartFlags(join_type="gcp"), TbotConfig(join_type="gcp", services=("database",))),
    "a token": (StartFlags(has_token=True), TbotConfig(join_type="", services=("database",))),
    "a pin": (StartFlags(has_ca_pin=True), TbotConfig(join_type="", services=("database",))),
    "a folder": (StartFlags(has_destination_dir=True), TbotConfig(join_type="iam", services=("_OTHER",))),
    "legacy": (StartFlags(subcommand="legacy"), BASE),
    "noop": (StartFlags(subcommand="noop"), BASE),
    "identity": (StartFlags(subcommand="identity"), TbotConfig(join_type="iam", services=("database", "_OTHER"))),
    "db": (StartFlags(subcommand="db"), TbotConfig(join_type="iam", services=("database", "database"))),
    "k8s/v2": (StartFlags(subcommand="k8s/v2"), TbotConfig(join_type="iam", services=("database", "kubernetes"))),
    "app-proxy": (
        StartFlags(subcommand="app-proxy"),
        TbotConfig(join_type="iam", services=("database", "application")),
    ),
}


@pytest.mark.parametrize(("flags", "expected"), FLAGS.values(), ids=FLAGS)
def test_flags_change_the_event_as_they_change_tbot(flags, expected):
    """--oneshot, --join-method, --token, --destination-dir and subcommands, over a file."""
    assert expected == apply_flags(BASE, flags)


def test_no_oneshot_comes_before_the_file():
    """tbot has --no-oneshot too."""
    assert not apply_flags(TbotConfig(is_one_shot=True), StartFlags(is_one_shot=False)).is_one_shot


@pytest.mark.parametrize("kind", SERVICE_OF_TYPE)
def test_a_subcommand_counts_as_its_type_does(kind):
    """`tbot start TYPE` and a service of the type in a file are classified the same."""
    from_file = parse_config(f"version: v2\nservices: [{{type: {kind}}}]".encode(), source="x")

    assert from_file == apply_flags(TbotConfig(), StartFlags(subcommand=kind))


def test_a_token_in_the_environment_replaces_the_onboarding_section():
    """TELEPORT_BOT_TOKEN is --token: the join method of the file is gone, and is left out."""
    config = base64.b64encode(b"version: v2\nonboarding: {join_method: iam}").decode()
    environ = {"TBOT_CONFIG": config, "TELEPORT_BOT_TOKEN": CANARY}

    assert "" == read_event(StartFlags(), environ).join_type
    assert "gcp" == read_event(StartFlags(join_type="gcp"), environ).join_type


def test_the_helper_comes_from_the_flags_or_from_tbot_s_own_variables():
    """Version and helper are used if they are known, and left out otherwise."""
    environ = {"_TBOT_TELEMETRY_HELPER": "gha:x/y", "_TBOT_TELEMETRY_HELPER_VERSION": "v1"}

    event = read_event(StartFlags(), environ, version="18.4.1")
    assert ("18.4.1", "gha:x/y", "v1") == (event.version, event.helper, event.helper_version)
    event = read_event(StartFlags(), environ, helper="acme", helper_version="2")
    assert ("", "acme", "2") == (event.version, event.helper, event.helper_version)


@pytest.mark.parametrize("kind", ["proxy", "auth"])
@pytest.mark.parametrize("method", JOIN_METHODS)
def test_a_join_uri_carries_every_join_method(kind, method):
    """With - for _, with a parameter and without, in any case of the scheme."""
    scheme = f"tbot+{kind}+{method.replace('_', '-')}"

    assert method == parse_join_uri(f"{scheme}://canary@canary.example:443", source="x")
    assert method == parse_join_uri(f"{scheme.upper()}://canary:canary@canary.example:443", source="x")
    assert method == parse_join_uri(f"tbot+{kind}+{method}://canary@canary.example", source="x")


@pytest.mark.parametrize(
    "uri",
    [
        CANARY,
        f"https://{CANARY}@x",
        f"tbot+proxy://{CANARY}@x",
        f"tbot+{CANARY}+token://x@y",
        f"tbot+proxy+token://{CANARY}",
        f"tbot+proxy+://{CANARY}@x",
        f"tbot+proxy+token:{CANARY}@x",
    ],
)
def test_an_invalid_join_uri_is_rejected_without_repeating_it(uri):
    """The message gives the form and not the URI, which holds a token."""
    with pytest.raises(
        TbotConfigError, match=r"^x: not a join URI; write tbot\+proxy\+METHOD://TOKEN@HOST:PORT"
    ) as raised:
        parse_join_uri(uri, source="x")

    assert CANARY not in str(raised.value)


def test_an_unknown_method_in_a_join_uri_becomes_other():
    """A method of a later tbot is counted without its name; spellings that tbot accepts are known."""
    assert "_OTHER" == parse_join_uri(f"tbot+proxy+{CANARY}://x@y", source="x")
    assert "bound_keypair" == parse_join_uri("tbot+proxy+boundkeypair://x@y", source="x")


TYPES = [*SERVICE_OF_TYPE, "identity", "ssh_host", "noop", "spiffe-svid", "of-the-future"]
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)


@given(
    outputs=st.lists(st.sampled_from(TYPES), max_size=20),
    services=st.lists(st.sampled_from(TYPES), max_size=20),
    join_method=st.one_of(st.sampled_from(JOIN_METHODS), TEXTS),
    is_one_shot=st.booleans(),
    noise=TEXTS,
    is_flow=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_generated_files_count_as_an_independent_count_says(
    outputs, services, join_method, is_one_shot, noise, is_flow
):
    """The counts are those of the lists, whatever the other fields are and however the file is written."""
    file = {
        "version": "v2",
        "onboarding": {"join_method": join_method, "token": noise},
        "oneshot": is_one_shot,
        "outputs": [{"type": kind, "destination": {"path": noise}} for kind in outputs],
        "services": [{"listen": noise, "type": kind} for kind in services],
        "proxy_server": noise,
    }
    text = yaml.safe_dump(file, default_flow_style=is_flow, allow_unicode=True)
    config = parse_config(text.encode(), source="x")
    expected = {"database": 0, "kubernetes": 0, "application": 0, "_OTHER": 0}
    for kind in outputs + services:
        first = re.split("[-/]", kind)[0]
        expected[first if first in expected else "_OTHER"] += 1

    assert expected == {name: config.services.count(name) for name in expected}
    assert is_one_shot is config.is_one_shot
    assert (join_method if join_method in JOIN_METHODS else "_OTHER" if join_method else "") == config.join_type


@given(
    st.one_of(
        st.binary(max_size=300), TEXTS.map(str.encode), st.text("{}[]&*<:-, \n!|>v2\"'", max_size=80).map(str.encode)
    )
)
def test_any_bytes_are_a_configuration_or_an_error_of_one_line(data):
    """No other exception, and no line break in the message."""
    try:
        parse_config(data, source="x")
    except TbotConfigError as error:
        message = str(error)
    else:
        message = "x: read"

    assert re.fullmatch(r"x(:\d+)?: [^\n]+", message)
