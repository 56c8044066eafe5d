"""Installs the wheel into empty environments, without an extra and with each extra alone, and uses it.

Not part of `make test`: run it by `make test-install`, or with the wheel in dist/ by
`python -m pytest tests/repository/check_install.py`.
"""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from otel_tbot import __version__
from tests.support.checkout import ROOT
from tests.support.servers import OtlpHttpServer

EXTRAS = ("", "[bridge]", "[config]")
ON = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}

IMPORT = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except ImportError:
    print(False)
else:
    print(True)
"""

EMIT = """
from otel_tbot import TbotStart, emit
print(emit(TbotStart(run_mode="one-shot", version="18.4.1")).value)
"""

CONFIGURE = """
import sys
from opentelemetry._logs import LogRecord, get_logger, get_logger_provider
from opentelemetry.configuration import configure_sdk, load_config_file
from otel_tbot import TbotStart
configure_sdk(load_config_file(sys.argv[1]))
event = TbotStart(run_mode="daemon")
get_logger("my.helper").emit(LogRecord(event_name="tbot.start", attributes=event.attributes()))
get_logger_provider().shutdown()
"""


class Environment:
    """Creates a virtual environment with the wheel and its *extra*, and without this checkout."""

    def __init__(self, folder: Path, extra: str) -> None:
        self._folder = folder
        (wheel,) = (ROOT / "dist").glob(f"otel_tbot-{__version__}-py3-none-any.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        # A package index may fail for a minute.
        options = ("--quiet", "--disable-pip-version-check", "--retries", "10")
        self.run("python", "-m", "pip", "install", *options, f"{wheel}{extra}")

    def run(self, program, *arguments, status=0, **environ):
        """Runs a program of the environment to its end; fails unless it ends with *status*."""
        finished = subprocess.run(
            [self._folder / "venv" / "bin" / program, *arguments],
            env={"PATH": f"{self._folder}/venv/bin:/usr/bin:/bin", "HOME": str(self._folder), **environ},
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert status == finished.returncode, finished.stdout + finished.stderr
        return finished

    @contextmanager
    def start_bridge(self, **environ):
        """Runs the bridge on a free port, and ends it; its address."""
        command = [self._folder / "venv" / "bin" / "otel-tbot", "bridge", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(command, env=environ, cwd=self._folder, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process.stdout.readline().split()[-1]
            finally:
                process.terminate()

    def has(self, module):
        """Returns whether *module* can be imported there."""
        return self.run("python", "-c", IMPORT, module).stdout == "True\n"


@pytest.fixture(scope="module", params=EXTRAS, ids=["base", "bridge", "config"])
def installed(request, tmp_path_factory):
    """Installs the wheel with each extra alone; (extra, environment)."""
    return request.param, Environment(tmp_path_factory.mktemp("install"), request.param)


def test_the_installed_packages_fit_together(installed):
    """pip finds no missing requirement, and version and help are printed."""
    _, environment = installed

    assert "No broken requirements found." in environment.run("python", "-m", "pip", "check").stdout
    assert f"otel-tbot {__version__}\n" == environment.run("otel-tbot", "--version").stdout
    assert "Usage: otel-tbot" in environment.run("otel-tbot", "--help").stdout


def test_the_library_needs_no_extra(installed):
    """With any extra, the event arrives if telemetry is on, and nothing is sent if it is off."""
    _, environment = installed
    with OtlpHttpServer() as server:
        off = environment.run("python", "-c", EMIT, OTEL_EXPORTER_OTLP_ENDPOINT=server.url)
        count_off = len(server.requests)
        on = environment.run("python", "-c", EMIT, OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **ON)

    assert ("off\n", 0) == (off.stdout, count_off)
    assert ("accepted\n", 1) == (on.stdout, len(server.requests))


REPORT = """
import os, urllib.request
from otel_tbot import TbotStart
from otel_tbot.tbot.report import to_report
url = os.environ["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"] + "/prehog.v1alpha.TbotReportingService/SubmitTbotEvent"
body = to_report(TbotStart(run_mode="one-shot")).SerializeToString()
request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/proto"})
print(urllib.request.urlopen(request).status)
"""


GET_STATUS = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1]).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_run_and_the_commands_need_no_extra(installed):
    """`run` delivers its command's report, `emit` delivers, and `preview` prints a request."""
    _, environment = installed
    with OtlpHttpServer() as server:
        on = {**ON, "OTEL_EXPORTER_OTLP_ENDPOINT": server.url}
        command = ("sh", "-c", 'python -c "$1"; exit 7', "sh", REPORT)
        reported = environment.run("otel-tbot", "run", "--", *command, status=7, **on)
        emitted = environment.run("otel-tbot", "emit", **on)

    assert ("200\n", "") == (reported.stdout, reported.stderr)
    assert ("the collector accepted the event\n", 2) == (emitted.stdout, len(server.requests))
    assert ["resourceLogs"] == list(json.loads(environment.run("otel-tbot", "preview").stdout))


def test_only_the_metrics_of_the_bridge_need_an_extra(installed):
    """The bridge delivers a report whatever the extra, its metrics need one, and no extra brings another server."""
    extra, environment = installed
    with OtlpHttpServer() as server, environment.start_bridge(OTEL_EXPORTER_OTLP_ENDPOINT=server.url) as url:
        reported = environment.run("python", "-c", REPORT, TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS=url)
        metrics = environment.run("python", "-c", GET_STATUS, f"{url}/metrics")

    assert ("200\n", 1) == (reported.stdout, len(server.requests))
    assert ("200\n" if extra == "[bridge]" else "404\n") == metrics.stdout
    assert (extra == "[bridge]") == environment.has("opentelemetry.exporter.prometheus")
    assert not environment.has("uvicorn")


def test_doctor_says_what_is_installed(installed):
    """A missing extra is a note, and the plug-ins are registered."""
    extra, environment = installed
    findings = json.loads(environment.run("otel-tbot", "doctor", "--json").stdout)["findings"]
    levels = {finding["subject"]: finding["level"] for finding in findings}

    assert ("note" if extra != "[bridge]" else None) == levels.get("extra `bridge`")
    assert "ok" == levels["exporter plug-ins"]


def test_demo_shows_the_whole_way(installed):
    """The demo's first start sends one record and its second nothing, whatever the extra."""
    _, environment = installed
    shown = environment.run("otel-tbot", "demo").stdout

    assert "This is all that otel-tbot sends, and only with your consent." in shown


def test_declarative_configuration_needs_its_extra(installed, tmp_path):
    """With the extra `config`, a file that names `tbot` exports the event."""
    extra, environment = installed
    if extra != "[config]":
        assert not environment.has("opentelemetry.configuration")
        return
    with OtlpHttpServer() as server:
        exporter = {"tbot": {"protocol": "http/protobuf", "endpoint": f"{server.url}/v1/logs"}}
        provider = {"processors": [{"batch": {"exporter": exporter}}]}
        path = tmp_path / "otel.yaml"
        path.write_text(json.dumps({"file_format": "1.0", "logger_provider": provider}))
        environment.run("python", "-c", CONFIGURE, str(path), OTEL_CONFIG_FILE=str(path), **ON)

    assert 1 == len(server.requests)
