"""Checks what a hosting service reads: workflows, forms, owners, updates of dependencies, and the hooks for commits.

`make check` runs actionlint, zizmor and check-jsonschema on the same files; the rules here are those they do not have.
"""

import copy
import re
import tomllib

import pytest
import yaml

from tests.support.checkout import ROOT
from tools.matrix import VERSIONS

HOSTING = ROOT / ".github"
WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in sorted((HOSTING / "workflows").iterdir())}
# BaseLoader leaves `on` a string, and versions as they are written.
PARSED = {name: yaml.load(text, yaml.BaseLoader) for name, text in WORKFLOWS.items()}  # noqa: S506  # builds strings only
JOBS = {f"{name}: {job}": body for name, workflow in PARSED.items() for job, body in workflow["jobs"].items()}
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

# What a job may do beyond reading the code.
PERMISSIONS = {
    "release.yml: publish": {"id-token": "write"},
    "release.yml: image": {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"},
}
# The Makefile needs a POSIX shell.
WITHOUT_MAKE = {"tests.yml: windows": ["python -m pip install .", "python tests/repository/check_platform.py"]}


def find_uses(text):
    """Returns each action of a workflow with its pin and the comment that names the pin's version."""
    return re.findall(r"uses: *([^@\s]+)@(\S+)(?: +# (\S+))?$", text, re.MULTILINE)


def find_errors(name, text):
    """Returns what is wrong with the workflow *name*: permissions, pins, credentials, commands, limits of time."""
    workflow = yaml.load(text, yaml.BaseLoader)  # noqa: S506  # builds strings only
    uses = find_uses(text)
    errors = [] if workflow.get("permissions") == {} else ["permissions"]
    errors += [] if "group" in workflow.get("concurrency", {}) else ["concurrency"]
    errors += [] if len(uses) == text.count("uses:") else ["an action that cannot be read"]
    errors += [
        f"pin of {action}"
        for action, pin, version in uses
        if not re.fullmatch("[0-9a-f]{40}", pin) or not re.fullmatch(r"v\d+\.\d+\.\d+", version)
    ]
    for job, body in workflow["jobs"].items():
        errors += [f"{error} of {name}: {job}" for error in find_errors_of_job(f"{name}: {job}", body)]
    return errors


def find_errors_of_job(place, job):
    """Yields what is wrong with one job."""
    permissions = job.get("permissions")
    if permissions != PERMISSIONS.get(place, {"contents": "read"}):
        yield "permissions"
    if "id-token" in permissions and "environment" not in job:
        yield "environment"
    if "timeout-minutes" not in job:
        yield "timeout"
    for step in job["steps"]:
        is_checkout = step.get("uses", "").startswith("actions/checkout@")
        if is_checkout and step.get("with", {}).get("persist-credentials") != "false":
            yield "credentials"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    if commands != WITHOUT_MAKE.get(place, commands) or (
        place not in WITHOUT_MAKE and not all(map(calls_make, commands))
    ):
        yield "commands"


def calls_make(command):
    """Returns whether *command* is one call of make with a target that the Makefile has."""
    options = r'(?: [A-Z]+=\S+)*(?: >> "\$GITHUB_OUTPUT")?'
    form = r'(?:sudo (?:env PATH="\$PATH" )?)?make (?:--silent )?([a-z-]+)' + options
    found = re.fullmatch(form, command)
    return found is not None and found.group(1) in TARGETS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_little_and_calls_make(name):
    """No permission but those listed above, actions pinned by commit, no kept credentials, and commands of make."""
    assert not find_errors(name, WORKFLOWS[name])


ERRORS = {
    "permissions: {}": ("permissions: read-all", "permissions"),
    "concurrency:": ("env:", "concurrency"),
    "      contents: read  # to check out the code": ("      contents: write", "permissions of release.yml: build"),
    "    timeout-minutes: 30": ("    name: build", "timeout of release.yml: build"),
    "          persist-credentials: false": ("          fetch-depth: 0", "credentials of release.yml: build"),
    "a309ff8b426b58ec0e2a45f0f869d46889d02405  # v6.2.0": ("v6  # v6.2.0", "pin of actions/setup-python"),
    "59d89421af93a897026c735860bf21b6eb4f7b26  # v4.1.0": (
        "59d89421af93a897026c735860bf21b6eb4f7b26",
        "pin of actions/attest",
    ),
    'make release-check TAG="$GITHUB_REF_NAME"': ("pip install build", "commands of release.yml: build"),
    "make --silent image-push": ("make no-such-target", "commands of release.yml: image"),
    "    environment:\n      name: image\n": ("", "environment of release.yml: image"),
}


@pytest.mark.parametrize("before", ERRORS)
def test_each_error_in_a_workflow_is_found(before):
    """Breaking each rule once in the workflow that publishes is reported."""
    after, error = ERRORS[before]
    assert before in WORKFLOWS["release.yml"]

    assert error in find_errors("release.yml", WORKFLOWS["release.yml"].replace(before, after))


def test_an_action_has_the_same_pin_everywhere():
    """No workflow keeps an older pin than another."""
    pins = {(action, pin, version) for text in WORKFLOWS.values() for action, pin, version in find_uses(text)}

    assert len(pins) == len({action for action, _, _ in pins})


def test_a_job_that_can_publish_waits_for_the_checks():
    """The package is what `make release-check` made of the tag, and the image follows the package."""
    jobs = PARSED["release.yml"]["jobs"]

    assert {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}} == PARSED["release.yml"]["on"]
    assert (["build"], ["publish"]) == (jobs["publish"]["needs"], jobs["image"]["needs"])
    assert not [step for step in jobs["publish"]["steps"] if "run" in step]
    assert "true" == jobs["publish"]["steps"][-1]["with"]["attestations"]
    assert [["actions/download-artifact"], ["pypa/gh-action-pypi-publish"]] == [
        re.findall(r"^([^@]+)@", step["uses"]) for step in jobs["publish"]["steps"]
    ]


def test_ci_runs_each_declared_python():
    """The classifiers, `make matrix`, and the matrices of the workflows name the same versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrices = [job["strategy"]["matrix"]["python"] for job in JOBS.values() if "strategy" in job]

    assert set(VERSIONS) == named
    assert [list(VERSIONS)] * 2 == matrices
    assert {"ubuntu-24.04", "macos-15"} == set(JOBS["tests.yml: unit"]["strategy"]["matrix"]["os"])


def test_every_target_of_the_ci_script_has_a_job():
    """What .ci/run calls, a workflow calls too, and the other way round but for what is published."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    targets = set(re.search(r'^targets="([a-z -]+)"$', script, re.MULTILINE).group(1).split())
    called = set(re.findall(r"make (?:--silent )?([a-z-]+)", "\n".join(WORKFLOWS.values())))

    # `make matrix` runs `make test-unit` on each Python, which the jobs do with a matrix of their service.
    assert targets - {"matrix"} <= called
    assert {"test-unit", "image", "image-push", "system-packages"} >= called - targets


# Dependencies and hooks.


def test_dependabot_looks_at_every_place_with_dependencies():
    """Each go.mod, package.json, Containerfile, Compose and requirements file is in dependabot.yml, no other."""
    updates = {update["package-ecosystem"]: update for update in read_dependabot()["updates"]}
    modules = sorted(f"/{path.parent.relative_to(ROOT)}" for path in (ROOT / "go").rglob("go.mod"))
    compose = sorted(f"/{path.parent.relative_to(ROOT)}" for path in ROOT.glob("*/compose.yaml"))

    assert {"pip", "gomod", "github-actions", "docker", "docker-compose", "npm"} == set(updates)
    assert modules == updates["gomod"]["directories"]
    assert compose == updates["docker-compose"]["directories"]
    assert ("/requirements", "/", "/deploy", "/tests/logql") == tuple(
        updates[name]["directory"] for name in ("pip", "github-actions", "docker", "npm")
    )
    assert ["lowest.txt"] == updates["pip"]["exclude-paths"]


def read_dependabot():
    """Returns the settings of dependabot."""
    return yaml.safe_load((HOSTING / "dependabot.yml").read_text(encoding="utf-8"))


HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
# The package on PyPI that each repository of hooks installs.
PACKAGES = {
    "https://github.com/astral-sh/ruff-pre-commit": "ruff",
    "https://github.com/codespell-project/codespell": "codespell",
    "https://github.com/adrienverge/yamllint": "yamllint",
    "https://github.com/pre-commit/pre-commit-hooks": "pre_commit_hooks",
}


def find_stale_hooks(hooks):
    """Returns the repositories of *hooks* whose version requirements/dev.txt does not pin."""
    pins = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").splitlines()
    return [hook["repo"] for hook in hooks if f"{PACKAGES[hook['repo']]}=={hook['rev'].removeprefix('v')}" not in pins]


def test_hooks_have_the_versions_of_make_check():
    """A commit and `make check` are checked by the same versions of the same tools."""
    stale = copy.deepcopy(HOOKS)
    stale[0]["rev"] = "v0.0.1"

    assert set(PACKAGES) == {hook["repo"] for hook in HOOKS}
    assert not find_stale_hooks(HOOKS)
    assert ["https://github.com/astral-sh/ruff-pre-commit"] == find_stale_hooks(stale)


# People.


def test_every_path_with_an_owner_exists():
    """CODEOWNERS names files and folders of the repository."""
    lines = (HOSTING / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    paths = [line.split()[0] for line in lines if line and not line.startswith("#")]

    assert "*" == paths[0]
    assert not [path for path in paths[1:] if not (ROOT / path.strip("/")).exists()]


def test_forms_send_leaks_to_the_private_way():
    """No blank issue can be opened, and the form for errors says how to report a leak."""
    config = yaml.safe_load((HOSTING / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8"))
    bug = (HOSTING / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")

    assert config["blank_issues_enabled"] is False
    assert "SECURITY.md" in config["contact_links"][0]["about"]
    assert "SECURITY.md" in bug


def test_placeholders_say_that_they_are_placeholders():
    """An address or a team that does not exist is called a placeholder next to it."""
    conduct = (HOSTING / "CODE_OF_CONDUCT.md").read_text(encoding="utf-8")
    owners = (HOSTING / "CODEOWNERS").read_text(encoding="utf-8")

    assert re.search(r"<\S+@\S+\.example>\.\nThis address is a placeholder", conduct)
    assert set(re.findall(r"@otel-tbot/\w+", owners)) == set(re.findall(r"@otel-tbot/\w+", owners.splitlines()[0]))
    assert "placeholders" in owners.splitlines()[0]
