"""The words of the project: docs/glossary.md names one word for one thing."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

DENIED = re.compile(
    r"\b(mend(s|ed|ing)?|of no (use|avail)|is there already|are there already|in vain|come again"
    r"|asks again|look(s|ed)? into|stands? beside|Raises"
    r"|(?<!there )(is|are|be) no (?!longer|more|less|other)"
    r"|pictures?|pieces?|whatever|who(ever)? has|lets? go of|makes? of it"
    r"|what (is|was|are|were) made|the one before|a look at|of use)\b"
    r"|\b(Error|Missing|Damaged|Rejected|Invalid|Overloaded|Unauthorized|Unknown) where\b"
    r'|"""(Of|What|Those) '
)
"""Phrases of an older English of ours, and second words for one thing."""

DENIED_NAMES = {"found", "of", "at", "there", "made", "mine", "again"}
"""Bindings that do not say what they hold."""


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--", *patterns]
    files = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / file for file in files.stdout.split() if "test_words" not in file]


def test_no_denied_phrase_is_used() -> None:
    lines = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for file in tracked("*.py", "*.md", "*.toml", "*.yaml", "*.sh", "*.html", "*.js", "*.j2")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if DENIED.search(line)
    ]
    assert not lines, "\n".join(lines)


def test_no_binding_has_a_denied_name() -> None:
    names = [
        f"{file.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}: {name}"
        for file in tracked("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in [getattr(node, "arg", None) or getattr(node, "id", None)]
        if name in DENIED_NAMES and not isinstance(getattr(node, "ctx", None), ast.Load)
    ]
    assert not names, "\n".join(names)
