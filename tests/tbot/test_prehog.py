import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, skip_or_fail

GENERATED = ("otel_tbot/tbot/prehog/tbot_pb2.py", "otel_tbot/tbot/prehog/tbot_pb2.pyi")
GENERATED_IN_GO = (
    "go/reporter/prehog/tbot.pb.go",
    "go/reporter/prehog/prehogconnect/tbot.connect.go",
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """A folder with what `make proto` makes."""
    python = Path(sys.prefix) / "proto" / "bin" / "python"
    if not python.exists():
        skip_or_fail("the generator is not installed: `make test` and `make proto` install it")
    folder = tmp_path_factory.mktemp("generated")
    subprocess.run([ROOT / "tools" / "generate_protocol.sh", python, folder], check=True)
    return folder


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_code_is_what_make_proto_makes(name, generated):
    """The package's generated code is that of the committed protocol file, byte for byte."""
    assert (generated / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("name", GENERATED_IN_GO)
def test_the_reporter_s_code_is_what_make_proto_makes(name, generated):
    """The reporter speaks the protocol of the committed file, byte for byte."""
    if shutil.which("go") is None:
        skip_or_fail("Go is not installed")

    assert (generated / name).read_bytes() == (ROOT / name).read_bytes()
