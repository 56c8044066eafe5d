"""Runs the unit part of the tests on each supported CPython that is installed: `python -m tools.matrix [--others]`.

Interpreters are looked for on PATH and among pyenv's versions. Each gets its own virtual environment, .venv-VERSION.
The collector, the back ends and the programs in Go run on one Python only, by `make test`. `--others` leaves out the
version that runs this module: `.ci/run` has run all tests on it already.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools import ROOT

VERSIONS: Final = ("3.11", "3.12", "3.13")


def main() -> int:
    """Prints which versions were found and what became of their tests; returns 1 if one failed, otherwise 0."""
    found = {version: path for version in VERSIONS if (path := find_interpreter(version))}
    print("matrix: found: " + (", ".join(found) or "none"), flush=True)
    print(
        "matrix: not installed, so not tested: " + (", ".join(sorted(set(VERSIONS) - set(found))) or "none"), flush=True
    )
    if not found:
        return 1
    if "--others" in sys.argv[1:]:
        tested = f"{sys.version_info.major}.{sys.version_info.minor}"
        found.pop(tested, None)
        print(f"matrix: {tested} is left out, because `make test` runs all tests on it", flush=True)
    failed = [version for version, path in found.items() if not run_tests(version, path)]
    print("matrix: failed: " + (", ".join(failed) or "none"), flush=True)
    return 1 if failed else 0


def find_interpreter(version: str) -> str:
    """Returns the path of a CPython of *version*, "" if it is not installed."""
    for path in list_candidates(version):
        command = [path, "-c", "import sys; print(sys.implementation.name, *sys.version_info[:2], sep='.')"]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            continue
        # pyenv's shims are on PATH even for versions that they do not run.
        if finished.stdout.strip() == f"cpython.{version}":
            return path
    return ""


def list_candidates(version: str) -> Iterator[str]:
    """Yields the paths at which *version* may be installed."""
    if path := shutil.which(f"python{version}"):
        yield path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(folder / "bin" / "python") for folder in sorted(pyenv.glob(f"versions/{version}.*")))


def run_tests(version: str, path: str) -> bool:
    """Returns whether the unit part passes on the interpreter at *path*."""
    print(f"matrix: CPython {version}", flush=True)
    command = ["make", "--no-print-directory", "test-unit", f"PYTHON={path}", f"VENV=.venv-{version}"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
