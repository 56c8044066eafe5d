"""Draws `otel-tbot demo` on a terminal as docs/pictures/demo.svg; `make picture` runs it.

The picture ends after the resource, so that it fits on a screen. Port and session id are those of the run.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from tools import ROOT

PICTURE: Final = ROOT / "docs" / "pictures" / "demo.svg"
COMMAND: Final = "otel-tbot demo"
COLUMNS: Final = 80
LAST_LINE: Final = "host.arch"
"""What the last line of the output that is drawn contains."""


def main() -> int:
    """Runs the demo and writes the picture; returns the demo's exit status."""
    program = Path(sys.executable).with_name("otel-tbot")
    environ = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    environ.pop("NO_COLOR", None)
    finished = subprocess.run([program, "demo"], env=environ, capture_output=True, text=True, check=False)
    if finished.returncode:
        print(finished.stderr, file=sys.stderr)
        return finished.returncode
    PICTURE.write_text(to_svg(finished.stdout), encoding="utf-8")
    return 0


def to_svg(output: str) -> str:
    """Returns the picture of a terminal with COMMAND and *output*, which has the codes of a terminal, as SVG."""
    lines = output.splitlines()
    (last,) = (number for number, line in enumerate(lines) if LAST_LINE in line)
    text = Text.from_ansi("\n".join([f"$ {COMMAND}", *lines[: last + 1], "", "  …"]))
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(text, soft_wrap=True)
    svg = console.export_svg(title=COMMAND, theme=DIMMED_MONOKAI, unique_id="demo")
    # A picture loads nothing from elsewhere, so it uses the reader's own monospaced font.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    return "\n".join(line.rstrip() for line in svg.strip().splitlines()) + "\n"


if __name__ == "__main__":
    sys.exit(main())
