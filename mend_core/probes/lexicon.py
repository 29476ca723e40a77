"""Kinds of subjects: who else is of a kind, and what is said about any of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

SUBJECT = "{}"
"""Stands for the subject in a statement."""

FALLBACK = "thing"
"""The kind of a subject that nothing is known of: it has statements and no other members."""

_ARTICLE = re.compile(r"^the\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of subject.

    Attributes:
        name: e.g. "country".
        members: Subjects everybody knows, as they stand in a sentence.
        cues: Words around a subject that tell its kind, lower case.
        statements: Beginnings of statements, each holding `SUBJECT` once.
    """

    name: str
    members: tuple[str, ...]
    cues: tuple[str, ...]
    statements: tuple[str, ...]


def bare(name: str) -> str:
    """A name for comparison: without article, case and doubled spaces."""
    return _ARTICLE.sub("", " ".join(name.split())).casefold()


@cache
def kinds() -> dict[str, Kind]:
    """All kinds by name, in the order of the file."""
    text = (resources.files("mend_core.probes") / "lexicon.txt").read_text(encoding="utf-8")
    found: dict[str, Kind] = {}
    for block in re.split(r"^\[", text, flags=re.MULTILINE)[1:]:
        name, _, body = block.partition("]")
        parts = re.match(
            r"\s*members:(?P<members>.*)\ncues:(?P<cues>.*)\nstatements:\n(?P<statements>(?:.+\n?)*)",
            body,
        )
        assert parts is not None, f"lexicon.txt: kind {name} is incomplete"
        found[name] = Kind(
            name,
            _listed(parts["members"]),
            tuple(cue.casefold() for cue in _listed(parts["cues"])),
            tuple(line for line in parts["statements"].splitlines() if line.strip()),
        )
    return found


def _listed(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(";") if one.strip())


@cache
def _known() -> dict[str, str]:
    return {bare(member): kind.name for kind in kinds().values() for member in kind.members}


def kind_of(subject: str, template: str) -> Kind:
    """The kind of a subject: as a member, else by the cues of the statement around it.

    Args:
        subject: e.g. "Freedonia".
        template: The statement with the subject taken out, e.g. "The capital of {} is".
    """
    known = _known().get(bare(subject))
    if known is not None:
        return kinds()[known]
    around = f" {template.casefold()} {subject.casefold()} "
    hits = {
        kind.name: max((len(cue) for cue in kind.cues if cue in around), default=0)
        for kind in kinds().values()
    }
    best = max(hits, key=lambda name: hits[name])
    return kinds()[best if hits[best] else FALLBACK]


def member_in(prompt: str) -> str | None:
    """The longest member that stands in a prompt, as it stands there; None where there is none."""
    folded = prompt.casefold()
    found = [
        name
        for name in _known()
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded) is not None
    ]
    if not found:
        return None
    name = max(found, key=lambda one: (len(one), one))
    at = folded.index(name)
    return prompt[at : at + len(name)]
