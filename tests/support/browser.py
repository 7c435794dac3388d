"""The drawing page in a real browser, the size of a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_page(url: str, *, classes: int) -> Iterator[Page]:
    """Open the page, and yield it when it shows so many classes.

    Fail if a script or a request of the page fails before it is closed.
    """
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 390, "height": 780})
        errors = list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.goto(url)
        expect(page.locator(".bars li")).to_have_count(classes)
        yield page
        assert errors == []
        browser.close()
