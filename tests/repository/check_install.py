"""`make test-install`: the wheel in empty environments, with no extra and with each; not part of `make test`.

Run by its name: `python -m pytest tests/repository/check_install.py`, with the wheel in dist/.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from otel_tbot import __version__
from tests.support.checkout import ROOT
from tests.support.servers import OtlpHttpServer

EXTRAS = ("", "[relay]", "[config]")
RELAY_ALONE = ("httptools", "uvicorn", "yaml")
ON = {"TELEPORT_ANONYMOUS_TELEMETRY": "1", "OTEL_TBOT_TIMEOUT": "60000"}

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
    """A virtual environment with the wheel, its *extra*, and nothing of this checkout."""

    def __init__(self, folder: Path, extra: str) -> None:
        self._folder = folder
        (wheel,) = (ROOT / "dist").glob(f"otel_tbot-{__version__}-py3-none-any.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}{extra}")

    def run(self, program, *arguments, status=0, **environ):
        """A program of the environment, to its end; fails where its exit status is not *status*."""
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

    def has(self, module):
        """Whether *module* can be imported there."""
        return (
            "None" not in self.run("python", "-c", f"import importlib.util as u; print(u.find_spec({module!r}))").stdout
        )


@pytest.fixture(scope="module", params=EXTRAS, ids=["base", "relay", "config"])
def installed(request, tmp_path_factory):
    """The wheel, with each extra alone: (extra, environment)."""
    return request.param, Environment(tmp_path_factory.mktemp("install"), request.param)


def test_what_is_installed_fits_together(installed):
    """Pip finds nothing missing, and version and help are there."""
    _, environment = installed

    assert "No broken requirements found." in environment.run("python", "-m", "pip", "check").stdout
    assert f"otel-tbot {__version__}\n" == environment.run("otel-tbot", "--version").stdout
    assert "usage: otel-tbot" in environment.run("otel-tbot", "--help").stdout


def test_the_library_needs_no_extra(installed):
    """Off nothing is sent, on the event arrives, whatever the extra."""
    _, environment = installed
    with OtlpHttpServer() as server:
        off = environment.run("python", "-c", EMIT, OTEL_EXPORTER_OTLP_ENDPOINT=server.url)
        count_off = len(server.requests)
        on = environment.run("python", "-c", EMIT, OTEL_EXPORTER_OTLP_ENDPOINT=server.url, **ON)

    assert ("off\n", 0) == (off.stdout, count_off)
    assert ("accepted\n", 1) == (on.stdout, len(server.requests))


def test_run_starts_its_command_with_and_without_the_relay(installed):
    """Without the extra one line says how to get it; the command runs all the same."""
    extra, environment = installed
    finished = environment.run("otel-tbot", "run", "--", "sh", "-c", "exit 7", status=7, **ON)

    line = (
        "otel-tbot: run: no relay (it needs the extra `relay`: pip install 'otel-tbot[relay]'); the event is not sent\n"
    )
    assert ("" if extra == "[relay]" else line) == finished.stderr


@pytest.mark.parametrize("command", ["emit", "preview", "demo", "bridge"])
def test_commands_that_need_the_relay_say_so(installed, command):
    """Without it, status 2 and the remedy; with it, help and preview work."""
    extra, environment = installed
    if extra == "[relay]":
        assert all(environment.has(module) for module in RELAY_ALONE)
        assert f"usage: otel-tbot {command}" in environment.run("otel-tbot", command, "--help").stdout
        return
    finished = environment.run("otel-tbot", command, status=2, **ON)

    assert f"otel-tbot: {command}: needs the extra `relay`: pip install 'otel-tbot[relay]'\n" == finished.stderr
    assert not any(environment.has(module) for module in ("httptools", "uvicorn"))


def test_doctor_says_what_is_installed(installed):
    """A missing extra is a problem, and the plug-ins are registered."""
    extra, environment = installed
    findings = json.loads(environment.run("otel-tbot", "doctor", "--json").stdout)["findings"]
    levels = {finding["subject"]: finding["level"] for finding in findings}

    assert ("problem" if extra != "[relay]" else None) == levels.get("extra relay")
    assert "ok" == levels["opentelemetry_logs_exporter"] == levels["opentelemetry_traces_exporter"]


def test_demo_shows_the_whole_way(installed):
    """With the extra `relay`, the demo's first start brings one record and its second nothing."""
    extra, environment = installed
    status = 0 if extra == "[relay]" else 2
    shown = environment.run("otel-tbot", "demo", status=status).stdout

    assert (status == 0) == ("That is all that otel-tbot sends, and only when you say so." in shown)


def test_declarative_configuration_needs_its_extra(installed, tmp_path):
    """With the extra `config`, a file that names `tbot` brings the event out."""
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
