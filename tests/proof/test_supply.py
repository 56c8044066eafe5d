"""Promise 8: what is installed is what is said: one wheel from one source, quiet when imported, free to be used."""

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
# The command in front of all others, and the relay's process: what they do at import is what they are for.
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "otel_tbot.")
    if not name.endswith(("__main__", "fake"))
)


# Read before any test begins, which sees no variable of this kind.
WHEELS = os.environ.get("OTEL_TBOT_PROOF_WHEELS", "")


def list_wheels():
    """The two builds, in order."""
    return sorted(Path(WHEELS).glob("*/*.whl"))


@pytest.mark.promise("supply.installed")
def test_the_package_under_proof_is_the_installed_one():
    """`otel_tbot` comes from this environment's site-packages, and no other is on the path."""
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
    """Each file of the wheel is installed with the same bytes, and none of ours beside them."""
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
    """No test, no setting, no path of the machine that built it."""
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
    """Built from the checkout and from a copy with other times, modes and place, the wheel is one."""
    first, second = list_wheels()

    assert first.parent != second.parent
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


# Importing urllib3, requests asks whether the machine has IPv6: a socket bound to ::1, connected to nothing.
_ALLOWED = re.compile(r'socket\(AF_INET6, SOCK_STREAM|bind\(\d+, \{sa_family=AF_INET6, sin6_port=htons\(0\).*"::1"')


@pytest.mark.promise("supply.import")
@pytest.mark.parametrize("module", ["otel_tbot", *MODULES])
def test_importing_a_module_uses_no_network(module, tmp_path):
    """No connection, no look-up, nothing bound but urllib3's question for IPv6, and nothing written."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TELEPORT_ANONYMOUS_TELEMETRY": "1"}
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    done = trace([sys.executable, "-P", "-B", "-c", f"import {module}"], environ, tmp_path)

    assert 0 == done.finished.returncode, done.finished.stderr
    assert [] == [call for call in done.network() if not _ALLOWED.match(call)]
    assert set() == done.connected()
    assert [] == [call.text for call in done.calls if call.writes and "= -1" not in call.text]


@pytest.mark.promise("supply.import")
def test_importing_a_client_that_connects_is_seen(tmp_path):
    """A module that does connect when it is imported shows in the trace."""
    (tmp_path / "loud.py").write_text("import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))\n")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = trace([sys.executable, "-P", "-B", "-c", "import loud"], environ, tmp_path)

    assert done.connected()


# What may be depended on from Apache-2.0: by its own terms, unmodified. MPL-2.0 covers its own files alone.
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
# Words of older metadata, for the same.
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
    """Every distribution that the wheel with all its extras brings along, by name."""
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
    """The licences of *name* as its metadata says them: SPDX identifiers, or words of older metadata as such."""
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
def test_every_dependency_has_a_licence_that_is_compatible_and_is_listed(cases):
    """Each package that the wheel with its extras brings has a licence of the list, and docs/licences.md says which."""
    listed = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z0-9][a-z0-9-]*) \| ([^|]+) \|$", listed, re.MULTILINE))
    found = {name: find_licences(name) for name in list_dependencies()}

    assert {} == {name: licences for name, licences in found.items() if not licences or licences - COMPATIBLE}
    assert {name: ", ".join(sorted(licences)) for name, licences in found.items()} == rows
    cases.add(len(found))


@pytest.mark.promise("supply.licences")
def test_every_other_package_here_is_compatible_too(cases):
    """What the proof itself is run with is free to be used as well."""
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()} - {
        "otel-tbot",
        "pip",
    }
    found = {name: find_licences(name) for name in sorted(names)}

    assert importlib.util.find_spec("pytest")
    assert {} == {name: licences for name, licences in found.items() if not licences or licences - COMPATIBLE}
    cases.add(len(names))
