import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml

from tests.bridge.test_bridge import environ_of, post
from tests.repository.test_packaging import PROJECT
from tests.support.bridge_process import BridgeProcess
from tests.support.checkout import ROOT, skip_or_fail
from tests.support.processes import LAUNCHER
from tests.support.servers import OtlpHttpServer

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def run(*command, **options):
    """Runs a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.compose-spec", "deploy/compose.yaml"),
        ("vendor.compose-spec", "collector-config/compose.yaml"),
        ("vendor.github-workflows", "deploy/github-actions.yml"),
    ],
)
def test_files_keep_to_their_schemas(schema, name):
    """Compose and GitHub Actions files follow the published schemas, which refuse an unknown key."""
    finished = run(BIN / "check-jsonschema", "--builtin-schema", schema, ROOT / name)

    assert 0 == finished.returncode, finished.stdout


def test_the_unit_is_right_and_sandboxed(tmp_path):
    """`systemd-analyze verify` finds nothing, and `security` an exposure of less than 2 of 10."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "otel-tbot-bridge.service"
    text = (DEPLOY / unit.name).read_text()
    unit.write_text(text.replace("/opt/otel-tbot/bin/otel-tbot", "/bin/true"))
    verified = run("systemd-analyze", "verify", unit)
    secured = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)

    assert (0, "") == (verified.returncode, verified.stdout + verified.stderr)
    assert 0 == secured.returncode, secured.stdout


def test_a_bridge_runs_as_another_user_on_a_file_system_that_cannot_be_written_to():
    """As the image, the unit and the manifests run it: it starts, serves and ends."""
    if os.geteuid() or not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("needs root, unshare and setpriv")
    # The one capability that stays lets it read this checkout, which may be in a folder of root's.
    rights = "-all,+dac_read_search"
    read_only = "mount --make-rprivate / && mount -o remount,ro,bind / / && ! touch /tmp/x 2>/dev/null && exec"
    other = f"setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set {rights} --inh-caps {rights}"
    wrapped = ["unshare", "--mount", "sh", "-c", f'{read_only} {other} --ambient-caps {rights} "$@"', "sh"]
    if run(*wrapped, "true").returncode:
        skip_or_fail("this user may not mount anything here")
    with OtlpHttpServer() as server:
        process = BridgeProcess(environ_of(server), program=[*wrapped, LAUNCHER[0]], is_measured=False)
        with process as bridge:
            user = Path(f"/proc/{bridge.pid}/status").read_text().split("Uid:")[1].split()[0]
            assert 200 == post(bridge).status_code
            assert 200 == requests.get(f"{bridge.url}/readyz", timeout=60).status_code
            assert 0 == bridge.end()

    assert "65534" == user
    assert "" == bridge.written
    assert 1 == len(server.requests)


def test_what_the_workflow_runs_starts_a_bridge(tmp_path):
    """The shell lines of the GitHub Actions job, with this environment for the installed one, leave its address."""
    workflow = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())
    script = workflow["jobs"]["deploy"]["steps"][0]["run"]
    (tmp_path / "otel-tbot").mkdir()
    (tmp_path / "otel-tbot" / "bin").symlink_to(BIN)
    lines = [line for line in script.splitlines() if "venv" not in line and "pip" not in line]
    lines = [*lines, "bridge=$!", ". ./env", 'echo "$TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"', 'kill "$bridge"; wait']
    environ = {"PATH": "/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path), "GITHUB_ENV": str(tmp_path / "env")}
    finished = run("bash", "-e", "-c", "\n".join(lines), env=environ, cwd=tmp_path)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert finished.stdout.startswith("http://127.0.0.1:")
    assert 2 == len(script.splitlines()) - len(lines) + 4


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexit 2\n"], ids=["not installed", "cannot listen"])
def test_a_workflow_whose_bridge_does_not_start_goes_on_without_it(program, tmp_path):
    """The step fails without an address in the environment of the job, and its failure does not end the job."""
    (step, *_) = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())["jobs"]["deploy"]["steps"]
    lines = [line for line in step["run"].splitlines() if "venv" not in line and "pip" not in line]
    path = tmp_path / "otel-tbot" / "bin" / "otel-tbot"
    path.parent.mkdir(parents=True)
    if program:
        path.write_text(program)
        path.chmod(0o755)
    environ = {"PATH": "/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path), "GITHUB_ENV": str(tmp_path / "env")}
    finished = run("bash", "-e", "-c", "\n".join(lines), env=environ, cwd=tmp_path)

    assert 0 != finished.returncode
    assert not (tmp_path / "env").exists()
    assert step["continue-on-error"]
    assert 0 < step["timeout-minutes"]


def test_the_image_is_built_from_what_the_containerfile_copies(tmp_path):
    """What it copies is all that the ignore file lets through, and the package builds and runs from it alone."""
    text = (DEPLOY / "Containerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(allowed) == sorted(copied)
    for name in copied:
        target = tmp_path / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    installed = run(sys.executable, "-m", "pip", "install", *options, "--target", tmp_path / "out", tmp_path / "src")
    assert 0 == installed.returncode, installed.stderr
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "out")}
    finished = run(
        sys.executable, tmp_path / "out" / "bin" / "otel-tbot", "bridge", "--help", env=environ, cwd=tmp_path
    )

    assert 0 == finished.returncode, finished.stderr
    assert "--path-prefix-file" in finished.stdout


def test_the_image_runs_as_a_user_without_rights():
    """The image ends with a numeric user that is not root; one FROM, which Dependabot reads, names its base."""
    text = (DEPLOY / "Containerfile").read_text()

    assert "\nUSER 65532:65532\n" in text
    assert ":latest" not in text
    assert '"/opt/otel-tbot/bin/otel-tbot"' in text
    base, *stages = re.findall(r"^FROM (.+)$", text, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim AS python", base)
    assert ["python AS build", "python"] == stages


def test_every_extra_that_is_installed_exists():
    """Each extra that the files install with pip is an extra of the package."""
    texts = [path.read_text() for path in DEPLOY.iterdir() if path.is_file()]
    extras = set(re.findall(r"otel-tbot\[(\w+)\]", "".join(texts)))

    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])


def test_every_file_is_in_the_list():
    """deploy/README.md names each file, and each once."""
    text = (DEPLOY / "README.md").read_text()

    assert not [
        path.name
        for path in DEPLOY.iterdir()
        if path.name != "README.md" and len(re.findall(rf"\]\({path.name}[)/]", text)) != 1
    ]
