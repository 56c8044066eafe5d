"""Proves a part of promise 2: a secret in a setting or in an argument is never written by any command, nor logged."""

import subprocess
import sys

import pytest

from tests.proof.canaries import Canaries
from tests.support.bridge_process import BridgeProcess
from tests.support.commands import run_on_terminal
from tests.support.processes import CONSENT, LAUNCHER, Launch
from tests.support.servers import OtlpHttpServer

BASIC = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "OTEL_TBOT_TIMEOUT": "5000"}
# For OpenTelemetry's own exporter, which the plug-in uses: in seconds.
QUICK = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2"}

_LOG_ALL = (
    "import logging\n"
    "logger = logging.getLogger('otel_tbot'); logger.setLevel(logging.DEBUG)\n"
    "logger.addHandler(logging.StreamHandler()); logger.propagate = False\n"
    # OpenTelemetry's own exporter logs the URL of a failed request; docs/privacy.md says so.
    "logging.getLogger('opentelemetry').setLevel(logging.CRITICAL)\n"
)
LIBRARY = _LOG_ALL + "from otel_tbot import TbotStart, emit\nprint(emit(TbotStart(run_mode='daemon')).value)\n"
PLUG_IN = (
    _LOG_ALL
    + "from otel_tbot import TbotStart, TbotLogRecordExporter\n"
    + "from otel_tbot.exporters.records import to_log_record, to_resource\n"
    + "exporter = TbotLogRecordExporter()\n"
    + "resource = to_resource(is_local=True)\n"
    + "print(exporter.export([to_log_record(TbotStart(run_mode='daemon'), time_ns=0, resource=resource)]))\n"
    + "exporter.shutdown()\n"
)
OTLP = "OTEL_EXPORTER_OTLP_"


def to_key(word):
    """Returns the text of a private key that consists of *word*."""
    body = (word * 16)[:256]
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n"


# Variables of a row, by the secret and the collector's host and port; and where the secret reaches the collector, if it
# is meant to: the search for it would find it there.
FORMS = {
    "a token in the endpoint's path": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}/{word}"}, "path"),
    "a token in the endpoint's query": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}/x?token={word}"}, "path"),
    "a token in the log endpoint": (lambda word, at: {f"{OTLP}LOGS_ENDPOINT": f"http://{at}/v1/logs?t={word}"}, "path"),
    "a password in the endpoint": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://user:{word}@{at}"}, ""),
    "a token as the endpoint's user": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://{word}@{at}"}, ""),
    "a token in the endpoint's fragment": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}/#{word}"}, ""),
    "a malformed endpoint": (lambda word, _: {f"{OTLP}ENDPOINT": f"htps//{word}"}, ""),
    "a token in a port": (lambda word, _: {f"{OTLP}ENDPOINT": f"http://127.0.0.1:{word}/"}, ""),
    "a header": (lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}", f"{OTLP}HEADERS": f"x-token={word}"}, "header"),
    "a header of the signal": (
        lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}", f"{OTLP}LOGS_HEADERS": f"authorization=Bearer {word}"},
        "header",
    ),
    "a malformed header": (
        lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}", f"{OTLP}HEADERS": f"Bearer {word},a=b"},
        "",
    ),
    "a header that cannot be set": (
        lambda word, at: {f"{OTLP}ENDPOINT": f"http://{at}", f"{OTLP}HEADERS": f"host={word}"},
        "",
    ),
    "an address": (lambda word, at: {"TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": f"http://{at}/{word}"}, ""),
    "an address with a user": (lambda word, at: {"TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": f"http://u:{word}@{at}"}, ""),
    "proxies": (
        lambda word, at: {
            f"{OTLP}ENDPOINT": f"http://{at}",
            **dict.fromkeys(("HTTP_PROXY", "https_proxy", "grpc_proxy"), f"http://u:{word}@127.0.0.1:1"),
        },
        "",
    ),
    "tbot's token and configuration": (
        lambda word, at: {
            f"{OTLP}ENDPOINT": f"http://{at}",
            "TELEPORT_BOT_TOKEN": word,
            "TBOT_CONFIG": f"not base64 {word}",
        },
        "",
    ),
    **{
        f"a private key in {name}": (
            lambda word, at, name=name: {f"{OTLP}ENDPOINT": f"https://{at}", name: to_key(word)},
            "",
        )
        for name in (
            f"{OTLP}ENDPOINT",
            f"{OTLP}HEADERS",
            f"{OTLP}CLIENT_KEY",
            f"{OTLP}LOGS_CLIENT_KEY",
            f"{OTLP}CLIENT_CERTIFICATE",
            f"{OTLP}CERTIFICATE",
            f"{OTLP}PROTOCOL",
            f"{OTLP}COMPRESSION",
            f"{OTLP}INSECURE",
            f"{OTLP}TIMEOUT",
            "OTEL_TBOT_SIGNAL",
            "OTEL_TBOT_TIMEOUT",
            "TELEPORT_ANONYMOUS_TELEMETRY",
        )
    },
}


def list_outputs(environ, reporter):
    """Yields the name of each way of use, and everything that it wrote under *environ*."""
    launch = Launch(environ, is_measured=False)
    finished = launch.run([reporter, "-oneshot"])
    launch.wait_for_end()
    # The reporter, as tbot, shows the address that it reports to.
    address = environ.get("TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS", "")
    yield "run", "" if address else finished.stdout + finished.stderr
    commands = {
        "emit": [LAUNCHER[0], "emit", "--oneshot"],
        "preview": [LAUNCHER[0], "preview", "--oneshot"],
        "doctor": [LAUNCHER[0], "doctor"],
        "doctor --json": [LAUNCHER[0], "doctor", "--json"],
        "emit()": [sys.executable, "-P", "-c", LIBRARY],
        "the plug-in": [sys.executable, "-P", "-c", PLUG_IN],
    }
    for name, command in commands.items():
        ended = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
        )
        assert "Traceback" not in ended.stderr, (name, ended.stderr)
        yield name, ended.stdout + ended.stderr
    yield "preview on a terminal", run_on_terminal("preview", "--oneshot", **environ)[1]
    bridge = BridgeProcess({name: value for name, value in environ.items() if not name.startswith("TELEPORT_")})
    try:
        with bridge:
            address = {**CONSENT, "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": bridge.url}
            subprocess.run([reporter, "-oneshot"], env=address, capture_output=True, check=False, timeout=60)
        yield "bridge", bridge.written
    except AssertionError as error:  # the bridge does not start with such a setting, and says why
        yield "bridge", str(error)


@pytest.mark.promise("anonymous.secrets")
@pytest.mark.parametrize("name", FORMS)
def test_a_secret_in_a_setting_is_never_written(name, reporter, cases):
    """The secret is in no output of any command, nor in our log; the collector gets it if it is meant to."""
    canaries = Canaries()
    word = canaries.make(name)
    to_environ, place = FORMS[name]
    with OtlpHttpServer() as server:
        environ = {**BASIC, **QUICK, **CONSENT, **to_environ(word, server.url.removeprefix("http://"))}
        for way, output in list_outputs(environ, reporter):
            assert [] == canaries.find(output.encode()), (way, output)
            cases.add()
        sent = [text for request in server.requests for text in (request.path, *request.headers.values())]

    if place:
        assert any(word in text for text in sent)


ARGUMENTS = {
    "a mistyped option": ("emit", "--oken={}"),
    "a short option with a value": ("emit", "-t{}"),
    "an option that does not exist": ("doctor", "--token", "{}"),
    "a misplaced argument": ("preview", "{}"),
    "a mistyped command": ("{}",),
    "a join method": ("preview", "--join-method", "{}"),
    "a version": ("preview", "--tbot-version", "v18.4.1 {}"),
    "a helper": ("preview", "--helper", "no helper {}", "--helper-version", "{}"),
    "tbot's token": ("preview", "--", "tbot", "start", "--token", "{}", "--join-method", "iam"),
    "tbot's join URI": ("preview", "--", "tbot", "start", "--join-uri", "tbot+proxy+iam://{0}:{0}@{0}.test:443"),
    "tbot's malformed join URI": ("preview", "--", "tbot", "start", "--join-uri", "tbot+iam:/{}"),
    "tbot's unknown flag": ("preview", "--", "tbot", "start", "--oken={}"),
    "tbot's configuration": ("preview", "--", "tbot", "start", "--config-string", "{}"),
    "tbot's pin and registration secret": (
        *("preview", "--", "tbot", "start", "--ca-pin", "sha256:{}", "--registration-secret", "{}"),
    ),
}


@pytest.mark.promise("anonymous.secrets")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_secret_in_an_argument_is_never_repeated(name):
    """A mistyped or misplaced secret is in no output, and neither are the secrets that tbot's own flags hold."""
    canaries = Canaries()
    word = canaries.make(name)
    arguments = [text.format(word) for text in ARGUMENTS[name]]
    ended = subprocess.run(
        [LAUNCHER[0], *arguments],
        env=BASIC,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ended.returncode in (0, 2), ended.stderr
    assert [] == canaries.find(ended.stdout.encode(), ended.stderr.encode()), ended.stderr
    assert ended.stderr
