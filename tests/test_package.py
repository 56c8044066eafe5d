import importlib.metadata
import subprocess
import sys

import pytest

import otel_tbot


def test_every_public_name_is_there():
    """All promised names are found, and dir() lists them."""
    promised = {"Outcome", "TbotStart", "emit", "enabled", "TbotLogRecordExporter", "TbotSpanExporter"}
    promised |= {"OtelTbotError", "EventError", "ExporterError", "TbotConfigError"}

    assert sorted(promised) == otel_tbot.__all__
    assert all(getattr(otel_tbot, name).__name__ == name for name in otel_tbot.__all__)
    assert set(otel_tbot.__all__) <= set(dir(otel_tbot))


def test_another_name_is_an_attribute_error():
    """A name that is not promised is not there."""
    with pytest.raises(AttributeError, match="module 'otel_tbot' has no attribute 'canary'"):
        otel_tbot.canary  # noqa: B018  # the access is what is tested


def test_the_version_comes_from_one_place():
    """The installed package has the version that the module says."""
    assert importlib.metadata.version("otel-tbot") == otel_tbot.__version__


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import otel_tbot", {"otel_tbot"}),
        ("import otel_tbot; otel_tbot.enabled", {"otel_tbot", "otel_tbot.consent"}),
    ],
)
def test_importing_loads_nothing_of_weight(statement, loaded):
    """`import otel_tbot` loads itself alone, and asking for consent one module more."""
    script = f"import sys, importlib; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert loaded == set(finished.stdout.split())
