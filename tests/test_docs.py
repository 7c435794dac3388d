"""The documentation: its size, links, paths and code blocks. Needs neither Ray nor a server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from pipeline.command_line import parse
from serving.config import ServerSettings

REPOSITORY = Path(__file__).parents[1]

README = REPOSITORY / "README.md"

MAX_WORDS, MAX_COLUMNS = 1000, 100

PAGES = [
    path
    for pattern in ("README.md", "docs/**/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
    for path in sorted(REPOSITORY.glob(pattern))
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")

CODE_PATH = re.compile(r"`((?:pipeline|serving|tests|infra|docs)/[\w./-]+)`")


COMMAND = re.compile(r"python -m (pipeline|serving) ([^\n|]*)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    slugs: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        text = LINK.sub(lambda link: link[0][1:].partition("]")[0], heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        repeats = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in slugs
        )
        slugs.append(f"{slug}-{repeats}" if repeats else slug)
    return set(slugs)


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        missing_anchor = anchor and target.is_file() and anchor not in anchors(target)
        if not target.exists() or missing_anchor:
            broken.append(link)
    return broken


def test_readme_is_short_and_its_lines_fit() -> None:
    text = README.read_text()
    assert len(text.split()) <= MAX_WORDS
    long_lines = [line for line in text.splitlines() if len(line) > MAX_COLUMNS]
    assert long_lines == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    assert broken_links(page) == []
    paths = CODE_PATH.findall(FENCE.sub("", page.read_text()))
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_examples_of_a_page_compile(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            compile(code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_of_a_page_have_flags_that_exist(page: Path) -> None:
    """Parse each command of the shell blocks, without running it."""
    for language, code in FENCE.findall(page.read_text()):
        if language not in ("sh", "bash"):
            continue
        for program, rest in COMMAND.findall(code.replace("\\\n", " ")):
            words = shlex.split(rest.replace("DIGEST", "0" * 64).rstrip(" &"), comments=True)
            args = [word.removesuffix(")") for word in words if word != "&"]
            if program == "pipeline":
                parse(args)
            else:
                tyro.cli(ServerSettings, args=args)


def test_every_page_is_in_the_index() -> None:
    index = REPOSITORY / "docs" / "index.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text())
    }
    pages = set(REPOSITORY.glob("docs/**/*.md")) - {index}
    assert sorted(pages - linked) == []
