import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from otel_tbot import __version__
from tests.support.checkout import ROOT
from tools.release_check import find_content_errors, find_relative_links, find_version_errors

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DECLARED = [
    Requirement(text)
    for text in (
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    )
]
NAME = f"otel_tbot-{__version__}"


def read_pins(name):
    """Returns the pinned versions of a file in requirements/, by package name in lower case."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith(("#", "-c "))]
    assert all(separator for _, separator, _ in pins), f"{name} holds lines that are not pins"
    return {package.lower(): Version(version) for package, _, version in pins}


def tracked(*paths):
    """Returns the files below *paths* that git tracks, or would track because it does not ignore them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in names if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the sdist, and the wheel from it; returns their folder."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == finished.returncode, finished.stdout + finished.stderr
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built):
    """The wheel holds the tracked files of otel_tbot/, the script, and their metadata."""
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        script = wheel.read(f"{NAME}.data/scripts/otel-tbot")
    described = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    others = {f"{NAME}.data/scripts/otel-tbot", *(f"{NAME}.dist-info/{name}" for name in described)}

    assert sorted(tracked("otel_tbot") | others) == sorted(names)
    kinds = {name.rpartition(".")[2] for name in names if name.startswith("otel_tbot/")}
    assert {"py", "pyi", "proto", "typed"} == kinds
    # An installer replaces this line by the interpreter's path, and writes no wrapper for a script.
    assert script.startswith(b"#!python\n")


def test_the_wheel_holds_what_the_list_says(built, tmp_path):
    """tools/wheel_content.txt lists every file of the wheel; a file too many and a file too few are errors."""
    wheel = built / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as held, zipfile.ZipFile(tmp_path / "other.whl", "w") as other:
        for name in held.namelist():
            if name != "otel_tbot/event.py":
                other.writestr(name, held.read(name))
        other.writestr("otel_tbot/secret.key", b"")

    assert not find_content_errors(wheel, __version__)
    assert [
        "tools/wheel_content.txt: does not list otel_tbot/secret.key; add it if it belongs in the wheel",
        "tools/wheel_content.txt: lists otel_tbot/event.py, which is not in the wheel",
    ] == find_content_errors(tmp_path / "other.whl", __version__)


def test_a_link_that_an_index_cannot_follow_is_found():
    """A link and a picture need an address; a heading of the same page does not."""
    text = "[a](https://docs.example/a) [b](#install) [c](docs/c.md) ![d](docs/d.svg)"

    assert [
        "README.md: docs/c.md: must be an absolute link on a package index",
        "README.md: docs/d.svg: must be an absolute link on a package index",
    ] == find_relative_links(text)


def test_the_changelog_has_the_version():
    """The newest part is that of the version, and begins with what is newly sent."""
    assert not find_version_errors(__version__, read("CHANGELOG.md"))


@pytest.mark.parametrize(
    ("version", "title", "tag", "error"),
    [
        ("1.2.3", "1.2.3 - unreleased", "", ""),
        ("1.2.3", "1.2.3 - 2027-01-31", "v1.2.3", ""),
        ("1.3.0.dev0", "Unreleased", "", ""),
        ("1.2.3", "1.2.3 - unreleased", "v1.2.3", "write the date of the release"),
        ("1.2.3", "1.2.3 - soon", "", "must be `## 1.2.3 - DATE`"),
        ("1.2.3", "1.2.2 - 2027-01-31", "", "must be `## 1.2.3 - DATE`"),
        ("1.2.3", "Unreleased", "", "must be `## 1.2.3 - DATE`"),
        ("1.3.0.dev0", "1.2.3 - 2027-01-31", "", "must be `## Unreleased`"),
        ("1.2.3", "1.2.3 - 2027-01-31", "v1.2.4", "v1.2.4: must be v1.2.3"),
        ("1.3.0.dev0", "Unreleased", "v1.3.0", "v1.3.0: must be v1.3.0.dev0"),
    ],
)
def test_a_release_needs_version_date_and_tag_that_agree(version, title, tag, error):
    """A rehearsal accepts the placeholder instead of the date, a release does not, and a tag names the version."""
    changelog = f"# Changelog\n\n## {title}\n\n### Telemetry\n\nNo change in what is sent.\n"
    errors = find_version_errors(version, changelog, tag)

    assert bool(error) == bool(errors)
    assert not error or error in errors[0]
    assert len(errors) + 1 == len(find_version_errors(version, changelog.replace("Telemetry", "Added"), tag))


def test_the_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(built):
    """The sdist holds the package, the script, the files that pyproject.toml names, and two that hatchling adds."""
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = [member.name.removeprefix(f"{NAME}/") for member in sdist.getmembers() if member.isfile()]
    always = {".gitignore", "PKG-INFO"}
    files = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "scripts/otel-tbot"}

    assert sorted(tracked("otel_tbot") | files | always) == sorted(names)


def test_the_metadata_agrees_with_pyproject(built):
    """Name, version, Python, licence, extras and every dependency are those of pyproject.toml and the module."""
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode().partition("\n\n")[0].splitlines()

    for line in (
        "Name: otel-tbot",
        f"Version: {__version__}",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
    ):
        assert line in metadata
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata
    assert {f"Provides-Extra: {extra}" for extra in PROJECT["optional-dependencies"]} <= set(metadata)
    required = [Requirement(line.partition(": ")[2]).name for line in metadata if line.startswith("Requires-Dist: ")]
    assert sorted(requirement.name for requirement in DECLARED) == sorted(required)


def test_the_readme_of_an_index_has_only_absolute_links(built):
    """Links and pictures work outside the repository, and nothing else of README.md changes."""
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        readme = wheel.read(f"{NAME}.dist-info/METADATA").decode().partition("\n\n")[2]
    original = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", readme)
    addresses = (
        r"https://github\.com/OWNER/otel-tbot/blob/v[^/]+/",
        r"https://raw\.githubusercontent\.com/OWNER/otel-tbot/v[^/]+/",
    )

    assert len(links) == len(re.findall(r"\]\(", original))
    assert all(re.match(addresses[bool(picture)], target) for picture, target in links)
    assert re.sub("|".join(addresses), "", readme) == re.sub(r"(?m)^<!-- .* -->\n", "", original)


def test_the_version_is_written_once():
    """pyproject.toml reads the version from the module, and no other file of the package repeats it."""
    assert ["readme", "version"] == PROJECT["dynamic"]
    assert "otel_tbot/_version.py" == PYPROJECT["tool"]["hatch"]["version"]["path"]
    assert ["otel_tbot/_version.py"] == [
        name
        for name in sorted(tracked("otel_tbot", "pyproject.toml", "scripts", "Makefile"))
        if __version__ in read(name)
    ]


def read(name):
    """Returns the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_both_ends_of_each_declared_range_are_tested(requirement):
    """lowest.txt pins the lower bound, run.txt or dev.txt a version in the range, and there is an upper bound."""
    (lower,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    name = requirement.name.lower()
    newest = (read_pins("run.txt") | read_pins("dev.txt"))[name]

    assert lower == read_pins("lowest.txt")[name]
    assert requirement.specifier.contains(newest, prereleases=True)
    # Versions of certifi are dates, so no number announces an incompatible change.
    assert (name != "certifi") == sum(s.operator == "<" for s in requirement.specifier)


def test_the_lowest_versions_are_no_newer_than_the_newest():
    """Each version in lowest.txt is at most the one in run.txt or dev.txt."""
    newest = read_pins("run.txt") | read_pins("dev.txt")

    assert not [name for name, version in read_pins("lowest.txt").items() if version > newest[name]]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_requirements_are_pins_without_addresses(path):
    """A file holds names and versions only: the package index is a setting of the installer."""
    assert read_pins(path.name)
    assert not re.search(r"://|--index|--extra|--find", path.read_text(encoding="utf-8"))


def test_each_tested_python_is_declared():
    """The oldest Python in the classifiers is the one that requires-python declares."""
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]

    assert named
    assert f">={min(named, key=Version)}" == PROJECT["requires-python"]
