"""Rehearses a release: `make release-check`, or `make release-check TAG=vX.Y.Z` for the release itself.

`make build` has made the sdist, and the wheel from it, and twine has rendered the README as a package index does. This
compares version, changelog and the wheel's content, and uses the wheel in an empty environment on each Python found.
It needs the standard library only.
"""

import re
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from tools import ROOT
from tools.matrix import VERSIONS, find_interpreter

CONTENT: Final = ROOT / "tools" / "wheel_content.txt"
_PLACEHOLDER: Final = "unreleased"
_ABSOLUTE: Final = re.compile("https://|#")
# What a repository replaces before its first release, by file.
_PLACEHOLDERS: Final = {
    "pyproject.toml": "/OWNER/",
    ".github/CODE_OF_CONDUCT.md": "This address is a placeholder",
    ".github/CODEOWNERS": "are placeholders",
}
_SHOWN: Final = "This is all that otel-tbot sends, and only with your consent."


def main(arguments: list[str]) -> int:
    """Prints what was checked and every error; returns 1 if there is an error, otherwise 0."""
    tag = arguments[0] if arguments else ""
    version = read_version()
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    found = {name: path for name in VERSIONS if (path := find_interpreter(name))}
    print(f"release-check: version {version}, " + (f"tag {tag}" if tag else "no tag: a rehearsal"), flush=True)
    errors = find_version_errors(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), tag)
    errors += [
        f"{name}: replace the placeholder: {text}"
        for name, text in _PLACEHOLDERS.items()
        if tag and text in (ROOT / name).read_text(encoding="utf-8")
    ]
    if [f"otel_tbot-{version}-py3-none-any.whl"] == [wheel.name for wheel in wheels]:
        errors += find_content_errors(wheels[0], version) + find_relative_links(read_description(wheels[0]))
        for name, path in found.items():
            errors += find_errors_of_use(name, path, wheels[0], version)
    else:
        errors.append(f"dist: must hold one wheel of version {version}; run `make build`")
    missing = sorted(set(VERSIONS) - set(found))
    print(f"release-check: tried: {', '.join(found) or 'none'}; not installed: {', '.join(missing) or 'none'}")
    # A release is tried on every Python that the package declares.
    errors += [f"CPython {name}: not installed, so not tried" for name in missing if tag or not found]
    for error in errors:
        print(f"release-check: {error}", file=sys.stderr)
    print(f"release-check: {len(errors)} errors")
    return 1 if errors else 0


def read_version() -> str:
    """Returns the version of the package in this checkout."""
    return str(runpy.run_path(str(ROOT / "otel_tbot" / "_version.py"))["__version__"])


def find_version_errors(version: str, changelog: str, tag: str = "") -> list[str]:
    """Returns what keeps *version* from being released as *tag*, or from being rehearsed if *tag* is empty. Pure.

    The newest part of the changelog belongs to the version: `## 1.2.3 - unreleased`, with the date once it is released,
    or `## Unreleased` for a development version.
    """
    errors = []
    title, _, rest = changelog.partition("\n## ")[2].partition("\n")
    is_development = ".dev" in version
    dated = re.fullmatch(rf"{re.escape(version)} - (\d{{4}}-\d{{2}}-\d{{2}}|{_PLACEHOLDER})", title)
    if is_development and title != "Unreleased":
        errors.append("CHANGELOG.md: the first part must be `## Unreleased` for a development version")
    if not is_development and not dated:
        errors.append(f"CHANGELOG.md: the first part must be `## {version} - DATE` or `## {version} - {_PLACEHOLDER}`")
    if not rest.lstrip("\n").startswith("### Telemetry\n"):
        errors.append("CHANGELOG.md: the first part must begin with `### Telemetry`, which says what is newly sent")
    if tag and tag != f"v{version}":
        errors.append(f"{tag}: must be v{version}, the version in otel_tbot/_version.py")
    if tag and dated and dated.group(1) == _PLACEHOLDER:
        errors.append(f"CHANGELOG.md: write the date of the release instead of `{_PLACEHOLDER}`")
    return errors


def find_content_errors(wheel: Path, version: str) -> list[str]:
    """Returns every file that *wheel* holds and CONTENT does not list, and the other way round."""
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    listed = {
        line.replace("VERSION", version)
        for line in CONTENT.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    name = CONTENT.relative_to(ROOT)
    return [
        *(f"{name}: does not list {path}; add it if it belongs in the wheel" for path in sorted(held - listed)),
        *(f"{name}: lists {path}, which is not in the wheel" for path in sorted(listed - held)),
    ]


def read_description(wheel: Path) -> str:
    """Returns the README as *wheel* hands it to a package index."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode().partition("\n\n")[2]


def find_relative_links(description: str) -> list[str]:
    """Returns an error for each link and picture that works in the repository only: an index has no other files."""
    targets = re.findall(r"\]\(([^)\s]+)", description)
    return [
        f"README.md: {target}: must be an absolute link on a package index"
        for target in targets
        if not _ABSOLUTE.match(target)
    ]


def find_errors_of_use(name: str, python: str, wheel: Path, version: str) -> list[str]:
    """Installs *wheel* in an empty environment of the interpreter *python* and returns what does not work there."""
    print(f"release-check: CPython {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        environ = {"PATH": f"{folder}/venv/bin:/usr/bin:/bin", "HOME": folder}
        installer = f"{folder}/venv/bin/python"
        for command, shown in (
            ([python, "-m", "venv", f"{folder}/venv"], ""),
            ([installer, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)], ""),
            ([installer, "-m", "pip", "check", "--disable-pip-version-check"], "No broken requirements found."),
            ([f"{folder}/venv/bin/otel-tbot", "--version"], f"otel-tbot {version}"),
            ([f"{folder}/venv/bin/otel-tbot", "demo"], _SHOWN),
        ):
            # pip reads the index's settings from the caller's environment and home.
            given = environ if "otel-tbot" in command[0] else None
            finished = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
            if finished.returncode or shown not in finished.stdout:
                words = " ".join([Path(command[0]).name, *command[1:]])
                return [f"CPython {name}: `{words}`: status {finished.returncode}\n{finished.stdout}{finished.stderr}"]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
