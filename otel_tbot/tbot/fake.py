"""Plays tbot for demos and tests: reads tbot's variables and sends one report in tbot's protocol.

`python -m otel_tbot.tbot.fake start [--oneshot]`. Unlike tbot it never reports to Teleport: without an address it sends
nothing.
"""

import http.client
import json
import os
import signal
import sys
from typing import Final
from urllib.parse import urlsplit

from otel_tbot.consent import (
    ADDRESS_VARIABLE,
    HELPER_VARIABLE,
    HELPER_VERSION_VARIABLE,
    SDK_DISABLED_VARIABLE,
    is_granted,
)
from otel_tbot.event import TbotStart
from otel_tbot.tbot.report import PROCEDURE, to_report

VERSION: Final = "18.4.1"

_TIMEOUT_SECONDS: Final = 10.0
_HEADERS: Final = {
    "Content-Type": "application/proto",
    "Connect-Protocol-Version": "1",
    "Accept-Encoding": "gzip",
    "Transfer-Encoding": "chunked",
}


def main() -> int:
    """Reports one start with one database output; returns 0 even if the report fails, as tbot does."""
    # As in tbot, an interrupt ends it without a traceback; `otel-tbot demo` starts it with the signal blocked.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    helper = os.environ.get(HELPER_VARIABLE, "")
    event = TbotStart(
        run_mode="one-shot" if "--oneshot" in sys.argv else "daemon",
        version=VERSION,
        join_type="token",
        helper=helper,
        helper_version=os.environ.get(HELPER_VERSION_VARIABLE, "") if helper else "",
        destinations_database=1,
    )
    # tbot knows nothing of OpenTelemetry's variable, so only its own decides here.
    if not is_granted({**os.environ, SDK_DISABLED_VARIABLE: ""}):
        print("tbot (fake): telemetry is off")
    elif not os.environ.get(ADDRESS_VARIABLE):
        print("tbot (fake): telemetry is on, but no address is set; tbot would report to Teleport")
    else:
        print(f"tbot (fake): telemetry is on; {_send_report(event, os.environ[ADDRESS_VARIABLE])}")
    return 0


def _send_report(event: TbotStart, address: str) -> str:
    """Posts the report in chunks, as tbot does; returns the result in words."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_TIMEOUT_SECONDS)
    body = iter([to_report(event).SerializeToString()])
    try:
        connection.request("POST", url.path + PROCEDURE, body, _HEADERS, encode_chunked=True)
        response = connection.getresponse()
        if response.status == http.client.OK:
            return "the report was accepted"
        error = json.load(response)
        return f"the report failed: {error['code']}: {error['message']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        # "unavailable" is also what a Connect client reports if no server answers.
        return f"the report failed: unavailable: {type(error).__name__}"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
