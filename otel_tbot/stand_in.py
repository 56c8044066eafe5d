"""A stand-in for tbot, where none is installed: tbot's own variables go in, one report in tbot's protocol comes out.

`python -m otel_tbot.stand_in [--oneshot]`. Unlike tbot it never reports without an address, so never to Teleport.
"""

import os
import sys
from typing import Final

from connectrpc.errors import ConnectError

from otel_tbot.consent import is_granted
from otel_tbot.event import TbotStart
from otel_tbot.launcher import ADDRESS_VARIABLE
from otel_tbot.prehog.tbot_connect import TbotReportingServiceClientSync
from otel_tbot.report import to_report

VERSION: Final = "18.4.1"
HELPER_VARIABLE: Final = "_TBOT_TELEMETRY_HELPER"
HELPER_VERSION_VARIABLE: Final = "_TBOT_TELEMETRY_HELPER_VERSION"

_WAIT_MS: Final = 10_000


def main() -> int:
    """Reports one start, as tbot would with one database output; 0, whatever becomes of the report, as with tbot."""
    helper = os.environ.get(HELPER_VARIABLE, "")
    event = TbotStart(
        run_mode="one-shot" if "--oneshot" in sys.argv else "daemon",
        version=VERSION,
        join_type="token",
        helper=helper,
        helper_version=os.environ.get(HELPER_VERSION_VARIABLE, "") if helper else "",
        destinations_database=1,
    )
    if not is_granted({**os.environ, "OTEL_SDK_DISABLED": ""}):
        print("tbot (stand-in): telemetry is off")
    elif not os.environ.get(ADDRESS_VARIABLE):
        print("tbot (stand-in): telemetry is on, but there is no address; tbot would report to Teleport")
    else:
        print(f"tbot (stand-in): telemetry is on; {_report(event, os.environ[ADDRESS_VARIABLE])}")
    return 0


def _report(event: TbotStart, address: str) -> str:
    client = TbotReportingServiceClientSync(address, send_compression=None, timeout_ms=_WAIT_MS)
    try:
        client.submit_tbot_event(to_report(event))
    except ConnectError as error:
        return f"the report was answered with {error.code.value}: {error.message}"
    return "the report was accepted"


if __name__ == "__main__":
    sys.exit(main())
