"""MLflow's pages in a real browser: `eagleray ui` serves them, and a headless Chromium opens them.

    python tests/mlflow_pages.py FOLDER IMAGES

writes pictures of the pages about the newest sweep in FOLDER/mlflow.db into IMAGES, as `make screenshots` does.
"""

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# MLflow's assistant hides a third of the page at the first visit; a report's frame may store nothing.
NO_ASSISTANT = "if (window === top) localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Start `eagleray ui` in a folder, and yield the addresses that it prints, by name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "eagleray", "ui", "--port", str(port)]
    # Warnings are errors in our own part alone: MLflow's server warns of MLflow's own imports.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        links: dict[str, str] = {}
        while "all experiments" not in links and (line := process.stdout.readline()):
            if found := re.fullmatch(r"  (.+?)  +(http\S+)\n", line):
                links[found[1]] = found[2]
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield links
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _wait(url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


@contextmanager
def browser() -> Iterator["Page"]:
    """Start Chromium and yield an empty page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium refuses its sandbox to root, and what it opens here is our own server.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1500, "height": 900})
        page.set_default_timeout(60_000)
        page.add_init_script(NO_ASSISTANT)
        yield page
        chromium.close()


def open_charts(page: "Page", link: str) -> None:
    page.goto(f"{link}&compareRunsMode=CHART")
    page.wait_for_selector(".barlayer .bars path")
    page.locator(".parcoords text.label").last.wait_for()


def open_views(page: "Page") -> None:
    """Scroll the charts to the grid of images, which MLflow loads when they come into sight."""
    page.get_by_text("views of each run").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('img').length > 3")
    page.mouse.move(1000, 600)
    page.mouse.wheel(0, 300)


def open_report(page: "Page", link: str) -> None:
    """Follow the link to the report in the description of the experiment."""
    page.goto(link)
    address = page.get_by_role("link", name="report", exact=True).get_attribute("href")
    page.goto(link.partition("#")[0] + str(address))
    page.frame_locator("iframe").locator("body *").first.wait_for()


def photograph(page: "Page", path: Path) -> None:
    page.wait_for_timeout(3000)  # until nothing moves
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main(folder: Path, images: Path) -> None:
    with served(folder) as links, browser() as page:
        newest = next(iter(links.values()))
        page.goto(newest)
        page.wait_for_selector("[row-index='3']")
        photograph(page, images / "mlflow-runs.png")
        open_charts(page, newest)
        photograph(page, images / "mlflow-charts.png")
        open_views(page)
        photograph(page, images / "mlflow-views.png")
        open_report(page, newest)
        where = page.get_by_text("Path:").first  # of the file on this machine: it says nothing to a reader
        where.evaluate("node => node.style.visibility = 'hidden'")
        photograph(page, images / "mlflow-report.png")
        page.get_by_role("tab", name="Overview").click()
        photograph(page, images / "mlflow-finding.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
