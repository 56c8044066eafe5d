import ast
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "otel_tbot"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

# Which modules of ours each module may import, at its top or inside a function: the direction of the data.
ALLOWED = {
    "__init__": {"consent", "errors", "event", "exporters", "outcome", "sending"},
    "__main__": {"cli", "launcher"},
    "errors": set(),
    "outcome": set(),
    "consent": set(),
    "settings": set(),
    "deadline": set(),
    "extras": set(),
    "terminal": set(),
    "event": {"errors"},
    "yaml_tree": {"errors"},
    "tbot_config": {"errors", "event", "yaml_tree"},
    "report": {"errors", "event", "prehog"},
    "wire": {"__init__", "event"},
    "anonymity": {"__init__", "event", "wire"},
    "otlp": {"outcome", "settings"},
    "exporters": {"anonymity", "consent", "deadline", "errors", "event", "otlp", "outcome", "settings", "wire"},
    "sending": {"consent", "deadline", "errors", "event", "otlp", "outcome", "settings", "wire"},
    "service": {"errors", "event", "outcome", "prehog", "report"},
    "grouping": {"event", "outcome"},
    "bridge": {
        *("bridge_metrics", "consent", "errors", "event", "grouping", "outcome", "sending", "service", "settings"),
    },
    "bridge_metrics": {"__init__", "outcome"},
    "serving": {"bridge", "errors"},
    "launcher": {"consent", "settings"},
    "doorkeeper": {"launcher", "relay", "settings"},
    "relay": {"service", "consent", "doorkeeper", "event", "outcome", "sending", "settings"},
    "stand_in": {"consent", "event", "launcher", "prehog", "report", "tbot_config"},
    "demo": {"consent", "event", "launcher", "otlp", "preview", "terminal"},
    "preview": {"event", "otlp", "settings", "wire"},
    "doctor": {"consent", "deadline", "extras", "launcher", "otlp", "outcome", "settings", "terminal"},
    "cli": {
        *("__init__", "consent", "demo", "doctor", "errors", "event", "outcome", "preview", "sending", "settings"),
        *("bridge", "extras", "serving", "tbot_config", "terminal"),
    },
}
KNOW_OPENTELEMETRY = {"anonymity", "bridge_metrics", "exporters", "otlp", "wire"}
KNOW_THE_PROTOCOL = {"service", "report", "stand_in"}
START_PATH = {"__init__": {"importlib"}, "__main__": {"sys", "_signal"}, "consent": {"os"}, "settings": {"urllib"}} | {
    "launcher": {"os", "sys", "_socket", "_signal"}
}


def imports_of(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours and the packages of others that *module* imports, but for those that only typing sees."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != "otel_tbot":
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module == "otel_tbot":
            ours |= {alias.name if alias.name in {*MODULES, "prehog"} else "__init__" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            ours.add(node.module.split(".")[1])
    return ours, others


def test_every_module_has_its_place():
    """The table of allowed imports names every module, and no other."""
    assert sorted(ALLOWED) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_along_the_data_s_way(module):
    """Each module imports only those before it on the way from source to OTLP."""
    ours, _ = imports_of(module)

    assert not ours - ALLOWED[module]


@pytest.mark.parametrize("module", MODULES)
def test_only_some_modules_know_opentelemetry(module):
    """OpenTelemetry is imported where records are made and sent, and for the bridge's own metrics, and nowhere else."""
    _, others = imports_of(module)

    assert not {"opentelemetry", "grpc", "requests"} & others or module in KNOW_OPENTELEMETRY


@pytest.mark.parametrize("module", MODULES)
def test_only_the_protocol_s_modules_know_the_protocol(module):
    """Generated code is used where reports are read and written, and nowhere else."""
    ours, _ = imports_of(module)

    assert "prehog" not in ours or module in KNOW_THE_PROTOCOL


@pytest.mark.parametrize(("module", "allowed"), START_PATH.items())
def test_the_start_path_imports_what_costs_nothing(module, allowed):
    """What stands in front of tbot's start imports only what the interpreter has loaded, or what on needs."""
    _, others = imports_of(module)

    assert not others - allowed


def test_no_module_imports_the_command_line():
    """The command line is at the end: only `python -m otel_tbot` imports it."""
    assert ["__main__"] == [module for module in MODULES if "cli" in imports_of(module)[0]]


def test_nothing_names_a_machine_or_a_registry():
    """No tracked kind of file holds a path of a machine or a package registry's address."""
    suspicious = ("/" + "root/", "/" + "home/", "/" + "work/", "pypi" + ".org/simple", "files.python" + "hosted")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).exists()]

    def read(path: Path) -> str:
        return path.read_text(errors="replace")

    assert len(files) > len(MODULES)
    assert not [(path.name, text) for path in files for text in suspicious if text in read(path)]
