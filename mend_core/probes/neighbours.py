"""Neighbours of an edit, made by rule: what lies near its fact and should not move with it.

Two rings, because an editor can fail in either alone:

* **same relation, other subject**: the edit's own statement about other subjects of its kind
  ("The capital of Spain is" for an edit of "The capital of France is");
* **same subject, other relation**: other statements about the edit's subject ("The currency of
  France is").

Nobody has to write them, so an edit that came without locality prompts is judged like one that came
with many. They are made from a lexicon (`lexicon`), the same ones every time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from mend_core.datasets.edit import Edit
from mend_core.probes.lexicon import SUBJECT, bare, kind_of, kinds, member_in
from mend_core.probes.suites import (
    RELATION_SLICE,
    SUBJECT_SLICE,
    ProbeItem,
    ProbeKind,
    normalise,
)

EACH = 24
"""Neighbours of each ring made for an edit that comes alone."""

BUDGET = 96
"""Neighbours of each ring made for all edits of a version together; at least one an edit."""

ANSWER_TOKENS = 4
"""Tokens of each neighbour's answer that are compared."""

_PART = r"(?:[A-Z][\w'\u2019.-]*|\d+)"
_NAME = re.compile(rf"{_PART}(?:\s+(?:of|the|de|da|van|von|and|{_PART}))*")
"""A proper name: capitalised words and numbers, with small words between them."""

_SMALL = frozenset(["of", "the", "de", "da", "van", "von", "and"])
_WORD = re.compile(r"\w{3,}")
_COMMON = frozenset(["the", "was", "are", "has", "have", "who", "what", "which", "that", "this"])


def subject_of(edit: Edit) -> str | None:
    """The edit's subject: as given, else a known name in the prompt, else its last proper name."""
    if edit.subject and edit.subject in edit.prompt:
        return edit.subject
    known = member_in(edit.prompt)
    if known is not None:
        return known
    # The first word of a prompt is capitalised in any case; a name there has two words or more.
    names = [
        match.group()
        for match in _NAME.finditer(edit.prompt)
        if match.start() > 0 or " " in match.group()
    ]
    if not names:
        return None
    words = _without_role(names[-1]).split()
    while words and words[-1].casefold() in _SMALL:
        words.pop()
    return " ".join(words) or None


def _without_role(name: str) -> str:
    """The subject in a name: Initech in "The CEO of Initech", all of "University of Oxford"."""
    name = re.sub(r"^The\s+", "", name)
    head, of, tail = name.partition(" of ")
    role = f"{head.casefold()} of"
    return tail if of and any(role in kind.cues for kind in kinds().values()) else name


def neighbours(edits: Sequence[Edit]) -> list[ProbeItem]:
    """The neighbours of a version's new edits; both rings, sorted by edit.

    An edit in which no subject is found has none.
    """
    each = max(1, min(EACH, BUDGET // max(len(edits), 1)))
    return [item for edit in edits for item in _of(edit, each)]


def _of(edit: Edit, each: int) -> list[ProbeItem]:
    subject = subject_of(edit)
    if subject is None:
        return []
    # An article goes with the subject: other members bring their own, or none.
    shown = next((s for s in (f"the {subject}", f"The {subject}") if s in edit.prompt), subject)
    template = edit.prompt.replace(shown, SUBJECT)
    kind = kind_of(subject, template)
    others = [member for member in kind.members if bare(member) != bare(subject)]
    relation = [
        _capital(template.replace(SUBJECT, name)) for name in _chosen(others, each, edit.prompt)
    ]
    mine = _words(template)
    statements = [statement for statement in kind.statements if not mine & _words(statement)]
    inside = shown[0].lower() + shown[1:] if shown != subject else subject
    same = [
        _capital(statement.replace(SUBJECT, inside))
        for statement in _chosen(statements, each, edit.prompt)
    ]
    asked = {normalise(edit.prompt), *map(normalise, edit.paraphrases)}
    return [
        ProbeItem(
            f"neighbour:{ring}:{edit.id}:{n:02}",
            ProbeKind.LOCALITY,
            prompt,
            slice=name,
            edit_id=edit.id,
            max_new_tokens=ANSWER_TOKENS,
            compare="lead",
        )
        for ring, name, prompts in (
            ("relation", RELATION_SLICE, relation),
            ("subject", SUBJECT_SLICE, same),
        )
        for n, prompt in enumerate(prompts)
        if normalise(prompt) not in asked
    ]


def _capital(prompt: str) -> str:
    return prompt[:1].upper() + prompt[1:]


def _words(statement: str) -> set[str]:
    """Words that carry a statement's relation."""
    return set(_WORD.findall(statement.replace(SUBJECT, " ").casefold())) - _COMMON


def _chosen(names: Sequence[str], count: int, seed: str) -> list[str]:
    """`count` of the names, drawn by hash: the same for the same edit, others for another."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\x00{name}".encode()).digest()

    return sorted(names, key=key)[:count]
