"""Proves promise 8: the installed package is one wheel from one source, quiet when imported, and free to use."""

import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import otel_tbot
from tests.proof.tracing import trace
from tests.support.checkout import ROOT

PACKAGE = Path(otel_tbot.__file__).parent
# `python -m otel_tbot` and the fake tbot are programs: importing them runs them.
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "otel_tbot.")
    if not name.endswith(("__main__", "fake"))
)


# Read at import, because a fixture removes such variables before each test.
WHEELS = os.environ.get("OTEL_TBOT_PROOF_WHEELS", "")


def list_wheels():
    """Returns the two builds, in order."""
    return sorted(Path(WHEELS).glob("*/*.whl"))


@pytest.mark.promise("supply.installed")
def test_the_tested_package_is_the_installed_one():
    """`otel_tbot` is imported from this environment's site-packages, and no other copy is on the path."""
    site_packages = Path(sysconfig.get_paths()["purelib"])
    others = [
        entry for entry in sys.path if entry and Path(entry) != site_packages and (Path(entry) / "otel_tbot").exists()
    ]

    assert site_packages / "otel_tbot" == PACKAGE
    assert site_packages.is_relative_to(sys.prefix)
    assert [] == others
    assert not (Path.cwd() / "otel_tbot").exists()
    assert sys.prefix != sys.base_prefix


@pytest.mark.promise("supply.installed")
def test_the_installed_files_are_those_of_the_wheel():
    """Each file of the wheel is installed with the same bytes, and the package has no other file."""
    with zipfile.ZipFile(list_wheels()[0]) as wheel:
        ours = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("otel_tbot/")}
    installed = {
        str(path.relative_to(PACKAGE.parent)): path.read_bytes()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert ours
    assert ours == installed


@pytest.mark.promise("supply.installed")
def test_the_wheel_holds_the_package_its_command_and_its_licence_and_nothing_else():
    """It has no test, no setting, and no path of the machine that built it."""
    (wheel, _) = list_wheels()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    others = [name for name in names if not re.match(r"otel_tbot/|otel_tbot-[^/]*\.(dist-info|data)/", name)]

    assert [] == others
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert str(ROOT.parent.parent.parent).encode() not in content


@pytest.mark.promise("supply.wheel")
def test_two_builds_in_two_places_are_the_same_bytes():
    """The wheel from the checkout equals the one from a copy with other times, modes and place."""
    first, second = list_wheels()

    assert first.parent != second.parent
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


# When urllib3 is imported, it tries whether the machine has IPv6 with a socket that is bound to ::1, not connected.
_ALLOWED = re.compile(r'socket\(AF_INET6, SOCK_STREAM|bind\(\d+, \{sa_family=AF_INET6, sin6_port=htons\(0\).*"::1"')


@pytest.mark.promise("supply.import")
@pytest.mark.parametrize("module", ["otel_tbot", *MODULES])
def test_importing_a_module_uses_no_network(module, tmp_path):
    """It makes no connection and no look-up, binds only urllib3's socket that tries IPv6, and writes nothing."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TELEPORT_ANONYMOUS_TELEMETRY": "1"}
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    done = trace([sys.executable, "-P", "-B", "-c", f"import {module}"], environ, tmp_path)

    assert 0 == done.finished.returncode, done.finished.stderr
    assert [] == [call for call in done.network() if not _ALLOWED.match(call)]
    assert set() == done.connected()
    assert [] == [call.text for call in done.calls if call.writes and "= -1" not in call.text]


@pytest.mark.promise("supply.import")
def test_importing_a_client_that_connects_is_seen(tmp_path):
    """The trace shows a module that connects when it is imported."""
    (tmp_path / "loud.py").write_text("import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))\n")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = trace([sys.executable, "-P", "-B", "-c", "import loud"], environ, tmp_path)

    assert done.connected()


# Licences that an Apache-2.0 project may depend on. MPL-2.0 covers only its own files, which are not modified.
COMPATIBLE = {
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
    "0BSD",
}
# The same licences as older metadata names them.
_WORDS = {
    "apache software license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "mit license": "MIT",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


def list_dependencies():
    """Returns the name of every distribution that the wheel with all its extras requires."""
    found = {}
    waiting = [("otel-tbot", frozenset(("bridge", "config")))]
    while waiting:
        name, extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if extras <= found.get(key, frozenset()) and key in found:
            continue
        found[key] = found.get(key, frozenset()) | extras
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            environments = [{"extra": extra} for extra in extras or ("",)]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    del found["otel-tbot"]
    return sorted(found)


def find_licences(name):
    """Returns the licences in the metadata of *name*: SPDX identifiers, or older names as they are."""
    metadata = importlib.metadata.metadata(name)
    if expression := metadata.get("License-Expression"):
        return set(re.split(r"\s+(?:AND|OR|and|or)\s+", expression.strip("()")))
    words = [
        text.rpartition("::")[2].strip()
        for text in metadata.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    words = [text for text in words if text != "OSI Approved"] or [(metadata.get("License") or "").partition("\n")[0]]
    return {_WORDS.get(text.strip().lower(), text.strip()) for text in words}


@pytest.mark.promise("supply.licences")
def test_every_dependency_has_a_compatible_licence_that_is_listed(cases):
    """Each package that the wheel and its extras require has a compatible licence, which docs/licences.md names."""
    listed = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z0-9][a-z0-9-]*) \| ([^|]+) \|$", listed, re.MULTILINE))
    found = {name: find_licences(name) for name in list_dependencies()}

    assert {} == {name: licences for name, licences in found.items() if not licences or licences - COMPATIBLE}
    assert {name: ", ".join(sorted(licences)) for name, licences in found.items()} == rows
    cases.add(len(found))


@pytest.mark.promise("supply.licences")
def test_every_other_package_here_is_compatible_too(cases):
    """The packages that the proof itself needs have compatible licences too."""
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()} - {
        "otel-tbot",
        "pip",
    }
    found = {name: find_licences(name) for name in sorted(names)}

    assert importlib.util.find_spec("pytest")
    assert {} == {name: licences for name, licences in found.items() if not licences or licences - COMPATIBLE}
    cases.add(len(names))
