"""The commands that pages show, read from their indented blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
PROGRAMS = ("mend", "make", "docker", "python", "source", "pip", "git")


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    words: tuple[str, ...]

    @property
    def text(self):
        return " ".join(self.words)


def commands(page):
    """Every command of a page's indented blocks, in order."""
    found = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    fenced, number = False, 0
    while number < len(lines):
        line = lines[number]
        fenced ^= line.startswith("```")
        start = number
        number += 1
        if fenced or not re.match(rf"    ({'|'.join(PROGRAMS)})\b", line):
            continue
        while line.endswith("\\"):
            line = line[:-1] + lines[number]
            number += 1
        words = shlex.split(line, comments=True)
        found += [Command(page, start + 1, tuple(part)) for part in _parted(words)]
    return found


def _parted(words):
    """Commands of one line, divided by a semicolon."""
    part = []
    for word in words:
        part.append(word.removesuffix(";"))
        if word.endswith(";"):
            yield part
            part = []
    yield part
