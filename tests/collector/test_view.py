import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import requests

from tests.support.backends import VictoriaLogs
from tests.support.checkout import ROOT, skip_or_fail
from tests.support.polling import poll_until
from tools.view import QUERIES, count_by_version, to_page

pytestmark = pytest.mark.backends

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EMPTY = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


@pytest.fixture
def page(tmp_path):
    """A page of headless Chromium with an empty user data folder."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: requirements/browser.txt"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "chromium",
            executable_path=chromium,
            args=list(FLAGS),
            viewport={"width": 1280, "height": 820},
        )
        yield context.new_page()
        context.close()


@pytest.fixture
def view(otelcol, reporter, tmp_path):  # noqa: ARG001  # both are what it runs
    """`make view`, ready, in a process group; its output so far."""
    if not VictoriaLogs.program_path().exists():
        skip_or_fail("victorialogs was not built: run `make programs`, which needs Go")
    environ = EMPTY | {name: value for name, value in os.environ.items() if name in ("OTELCOL", "VICTORIALOGS")}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.view"],
        cwd=ROOT,
        env={**environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        process.written = ""
        for line in process.stdout:
            process.written += line
            if line.startswith("Press Ctrl-C"):
                break
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def is_group_gone(group):
    """Whether no process of the process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_page_shows_how_often_each_version_started(view, page):
    """The address that `make view` prints opens a page with the known number of starts of each version."""
    (address,) = re.findall(r"^  (http://\S+)$", view.written, re.MULTILINE)
    page.goto(address)
    page.wait_for_function("document.body.innerText.includes('\"tbot.version\":')", timeout=60_000)
    text = page.inner_text("body")
    rows = dict(re.findall(r'\{"starts":"(\d+)","tbot.version":"(.+?)"\}', text))
    # VIEW_PICTURE=docs/pictures/view.png draws the picture of the docs again.
    if picture := os.environ.get("VIEW_PICTURE"):
        page.wait_for_timeout(2000)
        page.screenshot(path=picture)

    assert count_by_version() == {version: int(starts) for starts, version in rows.items()}
    assert all(f'starts {{tbot.version:"{version}"}}' in text for version in count_by_version())


def test_ctrl_c_ends_everything(view, tmp_path):
    """After SIGINT the command ends with status 0; no process and no file is left."""
    os.killpg(view.pid, signal.SIGINT)
    rest = view.stdout.read()

    assert 0 == view.wait(timeout=120), rest
    assert "Everything has ended" in rest
    assert "Traceback" not in rest
    poll_until(lambda: is_group_gone(view.pid), waiting_for="the end of the processes")
    assert [] == list(tmp_path.glob("otel-tbot-view-*"))


def test_every_query_that_is_printed_finds_something(view):
    """The queries worth trying are valid, and the known events answer each of them."""
    (url,) = re.findall(r"^  (http://[^/]+)", view.written, re.MULTILINE)
    found = {}
    for name, query in QUERIES.items():
        response = requests.get(f"{url}/select/logsql/query", params={"query": query}, timeout=60)
        assert response.ok, response.text
        found[name] = response.text.splitlines()

    assert all(found.values())
    assert sum(count_by_version().values()) == len(found["every event, whole"])
    assert all(f"{name}\n    {query}\n" in view.written for name, query in QUERIES.items())
    assert to_page(url, QUERIES["starts by version"]) in view.written


def test_without_the_programs_it_says_what_to_do(tmp_path):
    """A program that was not built is named, with the remedy."""
    environ = {**EMPTY, "OTELCOL": str(tmp_path / "none"), "VICTORIALOGS": str(tmp_path / "none")}
    finished = subprocess.run(
        [sys.executable, "-m", "tools.view"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )

    assert 1 == finished.returncode
    assert "the collector and" in finished.stderr
    assert "not built; run `make view`, which needs Go" in finished.stderr
    assert "" == finished.stdout
