"""The reliability page names tests that exist, and every test of a fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text()

NAMED = set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE))


def list_tests(path: Path) -> set[str]:
    """Return the tests of a file as `path::name`."""
    functions = [node for node in ast.parse(path.read_text()).body if hasattr(node, "name")]
    names = [node.name for node in functions if node.name.startswith("test_")]
    return {f"{path.relative_to(REPOSITORY)}::{name}" for name in names}


def test_every_test_that_the_page_names_exists() -> None:
    files = {name.partition("::")[0] for name in NAMED}
    existing = set[str]().union(*(list_tests(REPOSITORY / file) for file in files))
    assert sorted(NAMED - existing) == []


def test_the_page_names_every_test_of_a_fault() -> None:
    paths = (REPOSITORY / "tests" / "faults").glob("test_*.py")
    faults = set[str]().union(*(list_tests(path) for path in paths))
    assert sorted(faults - NAMED) == []
