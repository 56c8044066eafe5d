import re

import pytest

from otel_tbot.anonymity import to_resource
from otel_tbot.bridge_metrics import METRICS
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
    assert tables.renew_readme(README) == README


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
    known |= {"OTEL_CONFIG_FILE", "OTEL_LOGS_EXPORTER", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"}
    not_used = {"OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"}
    named = set(re.findall(r"\b(?:OTEL|TELEPORT)_[A-Z_]+\b", README))

    assert known | not_used == named - {"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_TRACES_"}


def test_every_metric_of_the_bridge_is_documented_and_no_other():
    """README names the bridge's own metrics as the code does."""
    assert set(METRICS) == set(re.findall(r"`(otel_tbot\.bridge\.[a-z.]+\.[a-z]+)`", README))


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


def find_example(language, text):
    """The one example of README in *language* with *text* in it."""
    examples = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (example,) = [example for example in examples if text in example]
    return example


def write_program(folder, name, command):
    """A program in *folder* that executes *command* of this environment with its own arguments."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {LAUNCHER[0].rpartition("/")[0]}/{command} "$@"\n')
    path.chmod(0o755)


def run_script(script, folder, **environ):
    """Runs shell commands as a user with *folder* and our commands on PATH, to their end."""
    path = f"{folder}:{LAUNCHER[0].rpartition('/')[0]}:/usr/bin:/bin"
    launch = Launch({"PATH": path, "HOME": "/nonexistent", "OTEL_TBOT_TIMEOUT": "60000", **environ})
    finished = launch.run(["sh", "-e", "-c", script], launcher=(), cwd=folder)
    launch.wait_for_end()
    return finished


def test_the_shell_example_runs(tmp_path):
    """The commands of README's shell example start tbot and bring its event to the collector."""
    example = find_example("sh", "otel-tbot run --")
    write_program(tmp_path, "tbot", "python -m otel_tbot.stand_in")
    with OtlpHttpServer() as server:
        script = example.replace("http://collector.example:4318", server.url)
        finished = run_script(script, tmp_path)

    assert script != example
    assert (0, "tbot (stand-in): telemetry is on; the report was accepted\n", "") == (
        finished.returncode,
        finished.stdout,
        finished.stderr,
    )
    assert 1 == len(server.requests)


@pytest.mark.parametrize("consent", [None, "1"])
def test_the_example_of_emit_runs(consent, monkeypatch, capsys):
    """README's call of `emit` says what became of the event."""
    with OtlpHttpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_TBOT_TIMEOUT", "60000")
        if consent:
            monkeypatch.setenv(CONSENT_VARIABLE, consent)
        run_example(find_example("python", "outcome = emit("))

    assert ("the collector has it\n" if consent else "off\n") == capsys.readouterr().out
    assert (1 if consent else 0) == len(server.requests)


def run_example(example):
    """Runs an example of README here."""
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102  # our own README


@pytest.mark.parametrize("text", ["otel-tbot emit -c", "otel-tbot preview -c"])
def test_the_examples_of_the_commands_run(text, tmp_path):
    """README's lines with emit, preview and doctor do what the text says, opted in, with a file of tbot's."""
    (tmp_path / "tbot.yaml").write_text("version: v2\nonboarding: {join_method: github}\n")
    with OtlpHttpServer() as server:
        script = find_example("sh", text).replace("/etc/tbot.yaml", str(tmp_path / "tbot.yaml"))
        finished = run_script(
            script, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=server.url, TELEPORT_ANONYMOUS_TELEMETRY="1"
        )

    assert 0 == finished.returncode, finished.stdout + finished.stderr
    if "emit" in text:
        assert "the collector has accepted the event\n" * 2 == finished.stdout
        assert 2 == len([request for request in server.requests if request.session_ids])
    else:
        assert '"eventName": "tbot.start"' in finished.stdout
        assert "ok       collector: empty export: accepted" in finished.stdout
        assert not [request for request in server.requests if request.session_ids]


def test_the_example_of_the_variables_runs(tmp_path):
    """README's application, recorded by the API alone, started by README's lines: its event arrives, anonymous."""
    (tmp_path / "app.py").write_text(find_example("python", "destinations_kubernetes=2"))
    with OtlpHttpServer() as server:
        script = find_example("sh", "opentelemetry-instrument").replace("http://collector.example:4318", server.url)
        finished = run_script(script, tmp_path, OTEL_RESOURCE_ATTRIBUTES="host.name=canary")

    assert (0, "", "") == (finished.returncode, finished.stdout, finished.stderr)
    assert 1 == len(server.requests)
    assert "canary" not in str(server.requests)


def test_the_example_of_declarative_configuration_runs(tmp_path):
    """README's file for OTEL_CONFIG_FILE brings the same application's event to the collector."""
    (tmp_path / "app.py").write_text(find_example("python", "destinations_kubernetes=2"))
    with OtlpHttpServer() as server:
        file = find_example("yaml", "file_format").replace("http://collector.example:4318", server.url)
        (tmp_path / "otel.yaml").write_text(file)
        environ = {"OTEL_CONFIG_FILE": "otel.yaml", "TELEPORT_ANONYMOUS_TELEMETRY": "1"}
        finished = run_script("opentelemetry-instrument python app.py", tmp_path, **environ)

    assert 0 == finished.returncode, finished.stderr
    assert ["/v1/logs"] == [request.path for request in server.requests]


def test_the_example_in_code_runs(tmp_path):
    """README's exporter around another one shows the anonymous record."""
    (tmp_path / "app.py").write_text(find_example("python", "ConsoleLogRecordExporter"))
    environ = {CONSENT_VARIABLE: "1", "OTEL_RESOURCE_ATTRIBUTES": "host.name=canary"}
    finished = run_script("python app.py", tmp_path, **environ)

    assert '"event_name": "tbot.start"' in finished.stdout
    assert "canary" not in finished.stdout


def test_every_example_is_one_that_runs():
    """An example in README that no test here looks for is found by its absence from this list."""
    ran = {"sh": 4, "python": 3, "yaml": 1}
    shown = {language: len(re.findall(rf"```{language}\n", README)) for language in ran}

    assert ran == shown
