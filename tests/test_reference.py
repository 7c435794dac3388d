"""The pages under docs/reference say what the code says."""

from __future__ import annotations

from pathlib import Path

from docs import generate

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_is_up_to_date() -> None:
    for file_name, page in generate.pages().items():
        written = (DOCS / "reference" / file_name).read_text()
        assert written == generate.NOTE + page, f"{file_name} is outdated: run make docs"


def test_every_flag_route_and_metric_has_a_meaning() -> None:
    for page in (DOCS / "reference").glob("*.md"):
        for line in page.read_text().splitlines():
            assert not line.endswith("|  |"), f"{page.name}: {line}"
