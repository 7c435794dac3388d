"""Take the screenshot of the drawing page that the README shows.

    python -m tests.support.screenshot ROOT

ROOT holds a model mnist/production, as `python -m pipeline run --root ROOT` leaves it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import expect

from tests.support.browser import open_page
from tests.support.servers import serving

FILE = Path(__file__).parents[2] / "docs" / "images" / "drawing-page.png"

SEVEN = ((0.25, 0.22), (0.75, 0.22), (0.45, 0.85))
"""Corners of the stroke, as shares of the drawing pad's width and height."""


def main(root: str) -> None:
    command = serving("--root", root, "--model", "mnist/production", "--port", "0")
    with command.started() as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        with open_page(url, classes=10) as page:
            page.set_viewport_size({"width": 900, "height": 560})
            pad = page.locator("#pad").bounding_box()
            assert pad is not None
            points = [(pad["x"] + x * pad["width"], pad["y"] + y * pad["height"]) for x, y in SEVEN]
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=10)
            page.mouse.up()
            expect(page.locator("#answer")).to_contain_text("7,")
            FILE.parent.mkdir(exist_ok=True)
            page.screenshot(path=FILE)


if __name__ == "__main__":
    main(*sys.argv[1:])
