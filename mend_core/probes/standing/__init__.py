"""The standing suite: what every model is asked with every version, whatever was edited.

Everyday questions and statements in many kinds, short texts for perplexity and KL, and openings for
free text, all of our own writing. No answers are kept here: what counts is whether a version still
answers as its base does, right or wrong.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from mend_core.probes.suites import STANDING, ProbeItem, ProbeKind, ProbeSuite

HEALTH_TOKENS = 16
"""Tokens of free text generated for each opening: enough to see it loop."""

ANSWER_TOKENS = 3
"""Tokens of each everyday answer that are compared."""


def _lines(name: str) -> list[str]:
    text = (resources.files(__name__) / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def questions() -> dict[str, tuple[str, ...]]:
    """Kind → its everyday questions and statements."""
    found: dict[str, list[str]] = {}
    kind = ""
    for line in _lines("questions.txt"):
        if line.startswith("["):
            kind = line.strip("[]")
            found[kind] = []
        else:
            found[kind].append(line.replace("\\n", "\n"))
    return {kind: tuple(lines) for kind, lines in found.items()}


@cache
def texts() -> tuple[str, ...]:
    """Short texts, a sentence each."""
    return tuple(_lines("texts.txt"))


@cache
def openings() -> tuple[str, ...]:
    """Beginnings of free text."""
    return tuple(_lines("openings.txt"))


@cache
def standing_suite() -> ProbeSuite:
    """All of it, in slices named ``standing/KIND``, ``standing/text`` and ``standing/health``."""
    items = [
        ProbeItem(
            f"standing:{kind}:{n:02}",
            ProbeKind.LOCALITY,
            prompt,
            slice=f"{STANDING}/{kind}",
            max_new_tokens=ANSWER_TOKENS,
            compare="lead",
        )
        for kind, prompts in questions().items()
        for n, prompt in enumerate(prompts)
    ]
    items += [
        ProbeItem(f"standing:text:{n:02}", ProbeKind.PERPLEXITY, text, slice=f"{STANDING}/text")
        for n, text in enumerate(texts())
    ]
    items += [
        ProbeItem(
            f"standing:health:{n:02}",
            ProbeKind.HEALTH,
            text,
            slice=f"{STANDING}/health",
            max_new_tokens=HEALTH_TOKENS,
        )
        for n, text in enumerate(openings())
    ]
    return ProbeSuite(tuple(items))
