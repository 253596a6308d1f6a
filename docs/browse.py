"""Open every page of the built site in a headless browser, light and dark, on a phone's and a desktop's width.

    make docs && python -m docs.browse [--pictures runs/pictures] [--only how-to]

A message of the browser's console, a request that fails, or a page wider than its window is an error. `--pictures`
writes a picture of each page. It needs Playwright (`pip install playwright`) and Chromium, as the system installs it.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

SITE = Path("runs/site")
WIDTHS = {"phone": 390, "desktop": 1280}
SCHEMES = ("light", "dark")
#: The widest that anything on a page reaches, in pixels of the window.
WIDEST = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line of log for each."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder on the loopback interface."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def look(browser: Browser, address: str, *, scheme: str, width: int, picture: Path | None) -> list[str]:
    """What is wrong with one page."""
    wrong: list[str] = []
    page: Page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))
    page.goto(address, wait_until="networkidle")
    widest = page.evaluate(WIDEST)
    if widest > width:
        wrong.append(f"{widest} pixels wide")
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture, full_page=True)
    page.close()
    return wrong


def main() -> int:
    """Look at all pages; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    parser.add_argument("--only", default="", help="only pages whose path contains this")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    arguments = parser.parse_args()
    pages = sorted(path.parent.relative_to(SITE) for path in SITE.rglob("index.html"))
    pages = [page for page in pages if arguments.only in str(page)]
    found = 0
    with served(SITE) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for page in pages:
            for scheme in SCHEMES:
                for device, width in WIDTHS.items():
                    picture = None
                    if arguments.pictures:
                        picture = arguments.pictures / f"{str(page).replace('/', '_')}-{device}-{scheme}.png"
                    for message in look(browser, f"{address}{page}/", scheme=scheme, width=width, picture=picture):
                        print(f"{page} ({device}, {scheme}): {message}")
                        found += 1
        browser.close()
    print(f"{len(pages)} pages, {len(SCHEMES)} schemes, {len(WIDTHS)} widths: {found} messages")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
