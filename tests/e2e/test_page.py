"""The drawing page in a real browser: draw a digit, read the answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import CHROMIUM, open_page
from tests.support.servers import Server, started

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(str(tmp_path_factory.mktemp("root"))) as server:
        yield server


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    with open_page(server.url("/"), classes=3) as page:
        yield page


def test_a_drawn_stroke_gets_a_prediction(page: Page, server: Server) -> None:
    box = page.locator("#pad").bounding_box()
    assert box
    x = box["x"] + box["width"] * 0.9
    page.mouse.move(x, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] - 5, steps=10)
    page.mouse.up()
    expect(page.locator("#answer")).to_contain_text("%")
    expect(page.locator(".bars .best")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text(server.model.version)
    lit = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    lit += ".some((v, i) => i % 4 === 0 && v > 0)"
    assert page.locator("#seen").evaluate(lit)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answer")).to_have_text("Nothing drawn yet")


def test_the_keyboard_draws_a_stroke(page: Page) -> None:
    page.locator("#pad").focus()
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    expect(page.locator("#answer")).to_contain_text("%")
    page.keyboard.press("Delete")
    expect(page.locator("#answer")).to_have_text("Nothing drawn yet")


def test_the_page_fits_a_phone_screen(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
