import re

import pytest

from otel_tbot.anonymity import to_resource
from otel_tbot.consent import CONSENT_VARIABLE
from otel_tbot.event import ATTRIBUTES
from otel_tbot.settings import SETTINGS
from tests import tables
from tests.conftest import ROOT
from tests.launching import LAUNCHER, Launch
from tests.servers import OtlpHttpServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_tables_are_what_the_code_says():
    """README's tables of attributes and settings are made from the code's."""
    assert tables.renew(README) == README


def test_every_key_is_in_readme_and_changelog():
    """Each attribute of event and resource is documented, and named in the changelog's Telemetry part."""
    keys = [attribute.key for attribute in ATTRIBUTES] + list(to_resource(is_local=True).attributes)
    telemetry = CHANGELOG.partition("### Telemetry")[2].partition("\n### ")[0]

    assert not [key for key in keys if f"`{key}`" not in README]
    assert not [key for key in keys if f"`{key}`" not in telemetry]


def test_no_variable_is_documented_that_the_code_does_not_know():
    """Each variable that README names is one of the code's, or one that it says is not used."""
    known = {setting.name for setting in SETTINGS}
    known |= {CONSENT_VARIABLE, "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS", "OTEL_SDK_DISABLED"}
    not_used = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"}
    named = set(re.findall(r"\b(?:OTEL|TELEPORT)_[A-Z_]+\b", README))

    assert known | not_used == named - {"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_TRACES_"}


def test_every_make_target_that_is_documented_is_there():
    """`make x` in README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))

    assert {"demo", "test", "check"} <= named <= targets


def test_links_lead_somewhere():
    """Each relative link of README and CHANGELOG is a file of the repository."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README + CHANGELOG)

    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_shell_example_runs(tmp_path):
    """The commands of README's shell example start tbot and bring its event to the collector."""
    (example,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    tbot = tmp_path / "tbot"
    tbot.write_text(f'#!/bin/sh\nexec {LAUNCHER[0].rpartition("/")[0]}/python -m otel_tbot.stand_in "$@"\n')
    tbot.chmod(0o755)
    with OtlpHttpServer() as server:
        script = example.replace("http://collector.example:4318", server.url)
        path = f"{tmp_path}:{LAUNCHER[0].rpartition('/')[0]}:/usr/bin:/bin"
        launch = Launch({"PATH": path, "HOME": "/nonexistent", "OTEL_TBOT_TIMEOUT": "60000"})
        finished = launch.run(["sh", "-e", "-c", script], launcher=())
        launch.wait_for_end()

    assert script != example
    assert (0, "tbot (stand-in): telemetry is on; the report was accepted\n", "") == (
        finished.returncode,
        finished.stdout,
        finished.stderr,
    )
    assert 1 == len(server.requests)


@pytest.mark.parametrize("consent", [None, "1"])
def test_the_python_example_runs(consent, monkeypatch, capsys):
    """README's Python example says what became of the event."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with OtlpHttpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_TBOT_TIMEOUT", "60000")
        if consent:
            monkeypatch.setenv(CONSENT_VARIABLE, consent)
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102  # our own README

    assert ("the collector has it\n" if consent else "off\n") == capsys.readouterr().out
    assert (1 if consent else 0) == len(server.requests)
