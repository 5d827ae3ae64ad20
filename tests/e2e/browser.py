"""The system's Chromium, which may reach this machine alone, and what a page must never do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)
LOCAL = ("data", "blob")
TIMEOUT_MILLISECONDS = 120_000


@contextmanager
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page and all it has complained of or asked for."""

    def __init__(self, context: BrowserContext, url: str):
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note)

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.url}/dashboard{path}")
        self.page.locator("h1").first.wait_for()
        return self.page

    def assert_quiet(self) -> None:
        """No error in the console, and nothing asked of another machine."""
        assert not self.complaints
        home = urlsplit(self.url).netloc
        elsewhere = [
            url for url in self.requests if urlsplit(url).scheme not in LOCAL and urlsplit(url).netloc != home
        ]
        assert not elsewhere

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)
