"""Writes what is made from the Helm chart, and the parts of the chart that are made from other files."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tools import ROOT
from tools.pages import to_table

CHART: Final = ROOT / "deploy" / "helm" / "otel-tbot"
MANIFESTS: Final = ROOT / "deploy" / "kubernetes.yaml"
HELM: Final = ROOT / "build" / "helm"

COPIES: Final = {CHART / "files" / name: ROOT / "collector-config" / name for name in ("guard.yaml", "agent.yaml")}
"""The files of the collector kit that the chart holds too, because Helm reads no file outside of a chart."""

_COMMENT: Final = re.compile(r" *# (?:-- )?(.+)")
_KEY: Final = re.compile(r"( *)([A-Za-z]+):")


def render(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` for a release named otel-tbot; returns its exit status, stdout and stderr."""
    command = [str(HELM), "template", "otel-tbot", str(CHART), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def render_manifests(_manifests: str) -> str:
    """Returns the manifests of the default values; raises CalledProcessError if Helm refuses the chart."""
    rendered = render("--namespace", "otel-tbot")
    rendered.check_returncode()
    return rendered.stdout


def read_source(source: Path, _copy: str) -> str:
    """Returns what a copy of *source* holds."""
    return source.read_text(encoding="utf-8")


def to_values_table() -> str:
    """Returns the table of the chart's values: name, default, meaning."""
    rows = [(f"`{name}`", f"`{default}`", meaning) for name, default, meaning in read_values()]
    return to_table(("Value", "Default", "Meaning"), rows)


def read_values() -> Iterator[tuple[str, str, str]]:
    """Yields (name, default as JSON, meaning) for each value that a "# --" comment of values.yaml describes."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    parents: list[tuple[int, str]] = []
    meaning: list[str] = []
    for line in text.splitlines():
        comment = _COMMENT.fullmatch(line)
        if comment:
            if meaning or "# -- " in line:
                meaning.append(comment.group(1))
            continue
        found = _KEY.match(line)
        if not found:
            meaning = []
            continue
        indent, key = len(found.group(1)), found.group(2)
        parents = [parent for parent in parents if parent[0] < indent] + [(indent, key)]
        if meaning:
            name = ".".join(name for _, name in parents)
            yield name, json.dumps(get_value(values, name)), " ".join(meaning)
        meaning = []


def get_value(values: Any, name: str) -> Any:
    """Returns the value that the dotted *name* leads to. Pure."""
    for key in name.split("."):
        values = values[key]
    return values
