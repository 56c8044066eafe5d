"""`python -m tests.check_coverage`: fails where a module's branch coverage, child processes included, is too low."""

import json
import subprocess
import sys
from pathlib import Path

WHOLE = {"consent", "event", "anonymity"}
LEAST_PERCENT = 95.0


def main() -> int:
    """Prints what is not covered; 1 where a module of WHOLE is not wholly, or another not enough covered."""
    subprocess.run([sys.executable, "-m", "coverage", "report"], check=True)
    measured = subprocess.run(
        [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"], check=True, capture_output=True
    )
    too_low = []
    for path, file in json.loads(measured.stdout)["files"].items():
        least = 100.0 if Path(path).stem in WHOLE else LEAST_PERCENT
        if file["summary"]["percent_covered"] < least:
            too_low.append(
                f"{path}: {file['summary']['percent_covered']:.1f} % of lines and branches, {least:g} % is asked"
            )
    print("\n".join(too_low) or "coverage: every module has what is asked")
    return 1 if too_low else 0


if __name__ == "__main__":
    sys.exit(main())
