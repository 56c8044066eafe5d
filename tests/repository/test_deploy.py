import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml

from tests.bridge.test_bridge import environ_of, post
from tests.support.bridge_process import BridgeProcess
from tests.support.checkout import ROOT, skip_or_fail
from tests.support.servers import OtlpHttpServer

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def run(*command, **options):
    """A command, to its end."""
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
    """Compose and GitHub Actions, by the schemas that their makers publish; an unknown key would be found."""
    finished = run(BIN / "check-jsonschema", "--builtin-schema", schema, ROOT / name)

    assert 0 == finished.returncode, finished.stdout


def test_the_kubernetes_manifests_keep_to_their_schemas(tmp_path):
    """Strictly: an unknown field would be found, and is, in a copy that has one."""
    path = DEPLOY / "kubernetes.yaml"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text().replace("replicas: 2", "replica: 2"))

    assert 4 == run(BIN / "kubernetes-validate", "--strict", path).stdout.count(" passed ")
    assert 0 != run(BIN / "kubernetes-validate", "--strict", wrong).returncode


def test_the_manifests_belong_together():
    """Labels, ports, the secret and the namespace of Deployment, Service, budget, policy and tbot's patch agree."""
    deployment, service, budget, policy = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    patch = yaml.safe_load((DEPLOY / "tbot-patch.yaml").read_text())
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    labels = template["metadata"]["labels"]
    (ingress,) = policy["spec"]["ingress"]
    tbot = patch["spec"]["template"]
    variables = {variable["name"]: variable for variable in tbot["spec"]["containers"][0]["env"]}
    secret = template["spec"]["volumes"][0]["secret"]["secretName"]

    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert labels == budget["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"]
    assert container["ports"][0]["name"] == service["spec"]["ports"][0]["targetPort"] == ingress["ports"][0]["port"]
    assert 2 == deployment["spec"]["replicas"]
    assert tbot["metadata"]["labels"] == ingress["from"][0]["podSelector"]["matchLabels"]
    assert secret == variables["OTEL_TBOT_PREFIX"]["valueFrom"]["secretKeyRef"]["name"]
    host = f"http://{service['metadata']['name']}.{service['metadata']['namespace']}/"
    assert variables["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"]["value"] == f"{host}$(OTEL_TBOT_PREFIX)"
    assert "1" == variables["TELEPORT_ANONYMOUS_TELEMETRY"]["value"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]


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
        skip_or_fail("mounts of one's own are not allowed here")
    with OtlpHttpServer() as server:
        process = BridgeProcess(environ_of(server), is_measured=False)
        process._command = [*wrapped, *process._command]  # noqa: SLF001  # as a container would
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


def test_the_image_is_made_of_files_that_are_there():
    """What the Containerfile copies and runs exists, it ends as no root, and no tag floats."""
    text = (DEPLOY / "Containerfile").read_text()

    assert (ROOT / "requirements" / "run.txt").exists()
    assert "-r requirements/run.txt" in text
    assert "\nUSER 65532:65532\n" in text
    assert ":latest" not in text
    assert '"/opt/otel-tbot/bin/otel-tbot"' in text


def test_every_file_is_in_the_list():
    """deploy/README.md names each file, and each once."""
    text = (DEPLOY / "README.md").read_text()

    assert not [
        path.name for path in DEPLOY.iterdir() if path.name != "README.md" and text.count(f"]({path.name})") != 1
    ]
