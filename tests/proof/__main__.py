"""Builds the wheel, installs it into an empty environment, and runs the proof against it.

`python -m tests.proof [ARG…]`. ARG goes to pytest: a file such as tests/proof/test_off.py, or -k, runs a part of the
proof. Everything is made below build/proof: two builds of the wheel, the environment, and a copy of tests/ that the
package is not next to, so `otel_tbot` can only be the installed one.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent
FOLDER = CHECKOUT / "build" / "proof"
ENVIRONMENT = FOLDER / "environment"
SUITE = FOLDER / "suite"
WHEELS = FOLDER / "wheels"

REUSE_VARIABLE = "OTEL_TBOT_PROOF_REUSE"
"""If this is 1, the last build and installation are used again, for work on the proof itself."""

_TOOLS = {
    "strace": "traces system calls; Debian: apt-get install strace",
    "unshare": "makes namespaces; Debian: apt-get install util-linux",
    "git": "lists the files of the package's source",
}
_SOURCE = ("otel_tbot", "scripts", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")


def main(arguments: Sequence[str]) -> int:
    """Builds, installs and runs; returns the exit status of the proof."""
    missing = [f"{tool} ({why})" for tool, why in _TOOLS.items() if shutil.which(tool) is None]
    if not (CHECKOUT / "build" / "reporter").exists():
        missing.append("build/reporter (make reporter; it needs Go)")
    if missing:
        print(f"the proof needs {'; '.join(missing)}", file=sys.stderr)
        return 2
    if os.environ.get(REUSE_VARIABLE) != "1" or not ENVIRONMENT.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        install(build())
    copy_suite()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE_"))}
    environ |= {
        "PATH": f"{ENVIRONMENT / 'bin'}:{environ['PATH']}",
        "OTEL_TBOT_REQUIRE_COLLECTOR": "1",
        "OTEL_TBOT_PROOF_WHEELS": str(WHEELS),
    }
    paths = [] if any(argument.startswith("tests/proof/") for argument in arguments) else ["tests/proof"]
    command = [ENVIRONMENT / "bin" / "python", "-P", "-m", "pytest", "-q", *paths, *arguments]
    return subprocess.run(command, cwd=SUITE, env=environ, check=False).returncode


def build() -> Path:
    """Builds the wheel twice, the second time in another place with other times and modes; returns the first."""
    copy = FOLDER / "copy"
    listed = subprocess.run(["git", "ls-files", "-z", *_SOURCE], cwd=CHECKOUT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (CHECKOUT / name).exists():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, target)
            os.utime(target, (0, 10**9))
            # Being executable is part of the source; the other permissions are not.
            target.chmod(0o700 if os.access(CHECKOUT / name, os.X_OK) else 0o600)
    for source, folder in ((CHECKOUT, WHEELS / "1"), (copy, WHEELS / "2")):
        _run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source])
    (wheel,) = (WHEELS / "1").glob("*.whl")
    return wheel


def install(wheel: Path) -> None:
    """Installs *wheel* with its extras, and the packages that the proof needs, into a new environment."""
    venv.create(ENVIRONMENT, with_pip=True)
    requirements = CHECKOUT / "requirements"
    _run([
        *(ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--requirement", requirements / "proof.txt", f"{wheel}[bridge,config]"),
    ])  # fmt: skip


def copy_suite() -> None:
    """Copies the tests, their options and the reporter to a folder that does not hold the package."""
    shutil.rmtree(SUITE, ignore_errors=True)
    shutil.copytree(CHECKOUT / "tests", SUITE / "tests", ignore=shutil.ignore_patterns("__pycache__", "broken"))
    shutil.copyfile(CHECKOUT / "pyproject.toml", SUITE / "pyproject.toml")
    for folder in ("docs", "semantic-conventions"):
        shutil.copytree(CHECKOUT / folder, SUITE / folder)
    (SUITE / "build").mkdir()
    shutil.copy(CHECKOUT / "build" / "reporter", SUITE / "build" / "reporter")


def _run(command: Sequence[str | Path]) -> None:
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode:
        print(finished.stdout, file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
