"""Runs the examples of one page in order, as a reader would: in one folder, next to what the page started before.

A comment before a block says how it is run: `<!-- run: KIND [NAME] [events=N] [status=N] [until=TEXT] -->`.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import yaml

from otel_tbot.consent import FROM_REPORT
from otel_tbot.delivery import EventSender
from otel_tbot.event import TbotStart
from otel_tbot.outcome import Outcome
from tests.support.checkout import HELM, ROOT
from tests.support.otelcol import Collector
from tests.support.polling import poll_until
from tests.support.processes import MEASURED
from tools.pages import Example, Page

BIN = Path(sys.executable).parent
SETUP = re.compile(r"\b(venv|pip)\b")
"""Lines of a job that install packages. They need a package registry, and the packages are installed here already."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Walkthrough:
    """Runs a page's examples.

    PATH has this environment's programs, `helm`, `otelcol` (the real collector), and fakes of `tbot` and `tini`. The
    addresses in a page are replaced by free ports of this machine, and /etc/tbot.yaml by a file in the folder. A
    collector listens where pages send, unless the page starts one itself.
    """

    def __init__(self, page: Page, folder: Path, otelcol: str) -> None:
        self._page_name = page.path.name
        # Coverage opens files in each process, and such a page shows that none is opened.
        is_traced = any("strace" in example.text for example in page.examples())
        self._measured = {} if is_traced else MEASURED
        self._folder = folder
        self._shown = ""
        self._said = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._programs = folder / "programs"
        self._programs.mkdir()
        version = '[ "$1" = version ] && exec echo "Teleport v18.4.1 git:v18.4.1 go1.24"'
        self._write_program("tbot", f'{version}\nexec "{sys.executable}" -P -m otel_tbot.tbot.fake "$@"')
        self._write_program("tini", 'shift; exec "$@"')
        (self._programs / "otelcol").symlink_to(otelcol)
        (self._programs / "otel-tbot").symlink_to(BIN / "otel-tbot")
        if HELM.exists():
            (self._programs / "helm").symlink_to(HELM)
        for name in ("collector-config", "deploy"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "tbot.yaml").write_text("version: v2\nonboarding: {join_method: github}\noutputs: []\n")
        started = [example.text for example in page.examples() if example.run[:1] == ("background",)]
        self._starts_collector = any("otelcol --config" in text for text in started)
        self._collector = Collector(otelcol, folder)

    def __enter__(self) -> Self:
        self._bridge_port = _find_port()
        if self._starts_collector:
            self._collector.ports = {"http/protobuf": _find_port(), "grpc": _find_port()}
            self._collector.path = self._folder / "tbot-events.jsonl"
        else:
            self._collector.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for process in self._processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=60)
        finally:
            if not self._starts_collector:
                self._collector.__exit__(*error)

    def run(self, example: Example) -> None:
        """Runs *example* as its comment says, and fails if that fails."""
        kind, *words = example.run
        options = dict(word.split("=", 1) for word in words if "=" in word)
        names = [word for word in words if "=" not in word]
        count = len(self.events())
        getattr(self, f"_run_{kind}")(self._localise(example.text), names, options)
        awaited = count + int(options.get("events", 0))
        poll_until(lambda: len(self.events()) >= awaited, waiting_for=f"{awaited} events after {example.place}")
        assert awaited == len(self.events()), example.place

    def check_end(self) -> None:
        """Fails if more events arrived than the page says; one more event, sent last, marks the end."""
        if self._starts_collector and not self._collector.path.exists():
            return  # the page's own collector forwards events to an address without a server
        before = len(self.events())
        event = TbotStart(run_mode="daemon", session_id=str(uuid.uuid4()))
        sender = EventSender(self._collector.environ("http/protobuf", "log"), origin=FROM_REPORT, is_local=True)
        assert Outcome.ACCEPTED is sender.send([(event, 1)], deadline=time.monotonic() + 60)
        sender.close()
        self._collector.wait_for_session(event.session_id)
        assert before + 1 == len(self.events())

    def events(self) -> list[str]:
        """Returns the session ids that the collector has received."""
        text = json.dumps(self._collector.requests())
        return re.findall(r'"session\.id", "value": {"stringValue": "([^"]+)"', text)

    def _localise(self, text: str) -> str:
        http, grpc = (self._collector.ports[protocol] for protocol in ("http/protobuf", "grpc"))
        for named, here in {
            "collector.example:4318": f"127.0.0.1:{http}",
            "collector.example:4317": f"127.0.0.1:{grpc}",
            "127.0.0.1:4318": f"127.0.0.1:{http}",
            "127.0.0.1:8080": f"127.0.0.1:{self._bridge_port}",
            "/etc/tbot.yaml": f"{self._folder}/tbot.yaml",
            "/usr/local/bin/": f"{self._programs}/",
        }.items():
            text = text.replace(named, here)
        return text

    def _write_program(self, name: str, line: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def _environ(self) -> dict[str, str]:
        http, grpc = (self._collector.ports[protocol] for protocol in ("http/protobuf", "grpc"))
        return {
            "PATH": f"{self._programs}:{BIN}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._folder),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{http}",  # for pages that use the default
            "OTEL_TBOT_TIMEOUT": "60000",
            "TBOT_OTLP_HTTP": f"127.0.0.1:{http}",
            "TBOT_OTLP_GRPC": f"127.0.0.1:{grpc}",
            **self._measured,
        }

    def _execute(
        self, command: list[str], *, status: int = 0, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        finished = subprocess.run(
            command,
            env=self._environ() | dict(environ or {}),
            cwd=cwd or self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        self._shown = finished.stdout
        assert status == finished.returncode, self._shown

    def _run_shell(self, text: str, _names: list[str], options: dict[str, str]) -> None:
        """Runs lines of a shell; variables that they export are set for the page's later blocks."""
        exports = self._folder / "exports.sh"
        exports.touch()
        script = f'. "{exports}"\n{text}\nexport -p >"{exports}"\n'
        self._execute(["sh", "-e", "-c", script], status=int(options.get("status", 0)))

    def _run_root(self, text: str, _names: list[str], _options: dict[str, str]) -> None:
        """Runs lines in the checkout itself, with this environment for make."""
        self._execute(
            ["sh", "-e", "-c", text], environ={"MAKEFLAGS": f"VENV={os.path.relpath(sys.prefix, ROOT)}"}, cwd=ROOT
        )

    def _run_background(self, text: str, _names: list[str], options: dict[str, str]) -> None:
        """Starts a command that runs until the page's end, and waits for the text that says it is ready."""
        path = self._folder / f"background-{len(self._processes)}.txt"
        exports = self._folder / "exports.sh"
        exports.touch()
        with path.open("w") as file:
            script = f'. "{exports}"\nexec {text}'
            process = subprocess.Popen(
                ["sh", "-c", script],
                env=self._environ(),
                cwd=self._folder,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._processes.append(process)
        poll_until(
            lambda: options["until"] in path.read_text() or process.poll() is not None, waiting_for=options["until"]
        )
        self._shown = path.read_text()
        assert process.poll() is None, self._shown

    def _run_validate(self, text: str, _names: list[str], _options: dict[str, str]) -> None:
        """Lets the collector validate the configuration that it would run."""
        self._execute(["sh", "-e", "-c", text.replace("otelcol --config", "otelcol validate --config")])

    def _run_elsewhere(self, _text: str, names: list[str], _options: dict[str, str]) -> None:
        """Skips the block, which the named test file runs; that file must name the page."""
        assert self._page_name in (ROOT / names[0]).read_text(encoding="utf-8")

    def _run_file(self, text: str, names: list[str], _options: dict[str, str]) -> None:
        """Writes the block to a file for the later blocks."""
        (self._folder / names[0]).write_text(text)

    def _run_python(self, text: str, _names: list[str], _options: dict[str, str]) -> None:
        """Runs a Python program with the variables that were exported before."""
        self._run_file(text, ["example.py"], {})
        self._run_shell("python example.py", [], {})

    def _run_output(self, text: str, _names: list[str], _options: dict[str, str]) -> None:
        """Finds each line in the last command's output, in order; numbers and ids may differ, … matches anything."""
        shown = [_normalise(line) for line in self._shown.splitlines()]
        for line in text.splitlines():
            if line.strip() in ("", "…"):
                continue
            assert _normalise(line) in shown, f"{line!r} is not in\n{self._shown}"
            shown = shown[shown.index(_normalise(line)) + 1 :]

    def _run_unit(self, text: str, names: list[str], _options: dict[str, str]) -> None:
        """Checks a systemd drop-in, and runs its command with the variables that it sets."""
        drop_in = self._folder / f"{names[0]}.d"
        drop_in.mkdir()
        (drop_in / "override.conf").write_text(text)
        (self._folder / names[0]).write_text(f"[Service]\nExecStart={self._programs}/tbot start\n")
        if shutil.which("systemd-analyze"):
            self._execute(["systemd-analyze", "verify", str(self._folder / names[0])])
            assert not self._shown
        environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
        *_, command = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
        self._execute(command.split(), environ=environ)

    def _run_image(self, text: str, _names: list[str], _options: dict[str, str]) -> None:
        """Runs an image's entry point with the variables that it sets; its other lines need a container engine."""
        environ = dict(re.findall(r"^ENV (?!PATH)(\w+)=(.*)$", text, re.MULTILINE))
        (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
        self._execute(["sh", "-c", 'exec "$@"', "sh", *json.loads(entrypoint)], environ=environ)

    def _run_job(self, text: str, names: list[str], _options: dict[str, str]) -> None:
        """Checks a CI job by its published schema, and runs its shell lines except those that install."""
        path = self._folder / "job.yml"
        path.write_text(text)
        self._execute([str(BIN / "check-jsonschema"), "--builtin-schema", names[0], str(path)])
        (self._folder / "otel-tbot" / "bin").mkdir(parents=True)
        (self._folder / "otel-tbot" / "bin" / "otel-tbot").symlink_to(BIN / "otel-tbot")
        environ, lines = _read_job(yaml.safe_load(text))
        lines = [line for line in lines if not SETUP.search(line)]
        assert lines
        environ |= {"RUNNER_TEMP": str(self._folder)}
        resolved = {name: value for name, value in environ.items() if "${{" not in value}
        self._execute(["bash", "-e", "-c", "\n".join(lines)], environ=resolved)


def _find_port() -> int:
    """Returns a free loopback port below the range from which the kernel picks ports."""
    for port in random.sample(range(15000, 30000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("a hundred ports are in use")


def _read_job(document: dict) -> tuple[dict[str, str], list[str]]:  # type: ignore[type-arg]  # of GitHub or GitLab
    """Returns the variables and the shell lines of the one job in a GitHub or GitLab file."""
    if "jobs" in document:
        (job,) = document["jobs"].values()
        steps = [step for step in job["steps"] if "run" in step]
        environ = {name: value for step in steps for name, value in step.get("env", {}).items()}
        return environ, [line for step in steps for line in step["run"].splitlines()]
    (job,) = (job for job in document.values() if isinstance(job, dict) and "script" in job)
    return job["variables"], job["script"]


def _normalise(line: str) -> str:
    """Returns *line* without the parts that differ from run to run: ids, numbers, the width of gaps. Pure."""
    return re.sub(r"\s+", " ", re.sub(r"[0-9]+", "0", _UUID.sub("ID", line))).strip()
