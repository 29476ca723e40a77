"""Other wordings of a statement, remembered from training edits.

A value found for one prompt alone answers that prompt: on CounterFact it answers fewer than half of
the paraphrases, even where it is put in place exactly. Found for a few wordings in turn, it stands
for the fact. An edit brings one prompt, so the wordings come from edits seen in training: a prompt
with its subject taken out is a *template*, and a template is remembered with the templates that
said the same thing. A prompt of a template not seen takes those of the nearest one by words, if it
is near; otherwise there are none.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mend_core.datasets.edit import Edit
from mend_core.errors import EditorCorrupt

SUBJECT = "{}"
"""Stands for the subject in a template."""

KEEP = 8
"""Wordings kept of one template, the most frequent first."""

SEEN = 3
"""Training edits that must use a wording; what fewer use mostly begins with a random sentence."""

NEAR = 0.6
"""Cosine of word weights from which templates say the same. Of CounterFact's templates with such
a neighbour, 88 % share a wording with it."""


class Wordings:
    """Templates and how else their statements are put.

    Args:
        known: Template → wordings, each holding `SUBJECT` once, best first.

    Raises:
        EditorCorrupt: A template or wording has no place for the subject, or more than one.
    """

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        self._known = {template: tuple(others) for template, others in sorted(known.items())}
        for template in [*self._known, *(w for ws in self._known.values() for w in ws)]:
            if template.count(SUBJECT) != 1:
                raise EditorCorrupt(
                    f"the wording {template!r} must hold {SUBJECT} exactly once, for the subject"
                )
        documents = Counter(w for template in self._known for w in set(_words(template)))
        self._weight = {w: _rarity(n, len(self._known)) for w, n in documents.items()}
        self._unseen = _rarity(0, len(self._known))
        self._vectors = {template: self._vector(template) for template in self._known}

    @classmethod
    def learn(cls, edits: Iterable[Edit], *, keep: int = KEEP, seen: int = SEEN) -> Wordings:
        """From edits that name their subject and have paraphrases; the others teach nothing.

        Args:
            edits: Training edits; their order does not matter.
            keep: Wordings kept of one template.
            seen: Edits that must use a wording.
        """
        counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for edit in edits:
            template = _template(edit.prompt, edit.subject)
            for paraphrase in edit.paraphrases:
                other = _template(paraphrase, edit.subject)
                if template and other and other != template:
                    counted[template][other] += 1
        known = {}
        for template, others in counted.items():
            frequent = sorted((-n, other) for other, n in others.items() if n >= seen)
            if frequent:
                known[template] = [other for _, other in frequent[:keep]]
        return cls(known)

    def __len__(self) -> int:
        """Number of templates."""
        return len(self._known)

    def of(self, edit: Edit, count: int) -> list[str]:
        """At most `count` prompts that ask what the edit's prompt asks, about its subject."""
        template = _template(edit.prompt, edit.subject)
        if template is None or edit.subject is None:
            return []
        found = template if template in self._known else self._nearest(template)
        if found is None:
            return []
        others = [w for w in self._known[found] if w != template]
        return [w.replace(SUBJECT, edit.subject) for w in others[:count]]

    def to_dict(self) -> dict[str, list[str]]:
        """JSON for an editor file."""
        return {template: list(others) for template, others in self._known.items()}

    def _nearest(self, template: str) -> str | None:
        mine = self._vector(template)
        best, found = NEAR, None
        for other, vector in self._vectors.items():
            if (near := _cosine(mine, vector)) >= best and (found is None or near > best):
                best, found = near, other
        return found

    def _vector(self, template: str) -> dict[str, float]:
        counts = Counter(_words(template))
        return {w: n * self._weight.get(w, self._unseen) for w, n in counts.items()}


def _template(prompt: str, subject: str | None) -> str | None:
    """The prompt with its subject taken out; None where it is not in there once."""
    if not subject or prompt.count(subject) != 1 or SUBJECT in prompt:
        return None
    return prompt.replace(subject, SUBJECT)


def _words(template: str) -> list[str]:
    return re.findall(r"\w{2,}", template.lower())


def _rarity(documents: int, total: int) -> float:
    """Inverse document frequency, smoothed so that no weight is negative."""
    return math.log((total + 1) / (documents + 0.5))


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    dot = sum(weight * other.get(word, 0.0) for word, weight in one.items())
    lengths = math.hypot(*one.values()) * math.hypot(*other.values())
    return dot / lengths if lengths else 0.0
