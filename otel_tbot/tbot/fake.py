"""A stand-in for tbot, where none is installed: tbot's own variables go in, one report in tbot's protocol comes out.

`python -m otel_tbot.tbot.fake [--oneshot]`. Unlike tbot it never reports without an address, so never to Teleport.
"""

import http.client
import json
import os
import sys
from typing import Final
from urllib.parse import urlsplit

from otel_tbot.consent import ADDRESS_VARIABLE, is_granted
from otel_tbot.event import TbotStart
from otel_tbot.tbot.config import HELPER_VARIABLE, HELPER_VERSION_VARIABLE
from otel_tbot.tbot.report import PROCEDURE, to_report

VERSION: Final = "18.4.1"

_WAIT_SECONDS: Final = 10.0
_HEADERS: Final = {
    "Content-Type": "application/proto",
    "Connect-Protocol-Version": "1",
    "Accept-Encoding": "gzip",
    "Transfer-Encoding": "chunked",
}


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
    """Posts the report as tbot does, in chunks; what became of it."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_WAIT_SECONDS)
    body = iter([to_report(event).SerializeToString()])
    try:
        connection.request("POST", url.path + PROCEDURE, body, _HEADERS, encode_chunked=True)
        response = connection.getresponse()
        if response.status == http.client.OK:
            return "the report was accepted"
        error = json.load(response)
        return f"the report was answered with {error['code']}: {error['message']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        # In the words of a Connect client for a server that is not there.
        return f"the report was answered with unavailable: {type(error).__name__}"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
