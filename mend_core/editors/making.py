"""Making an editor that needs no training for any base: closed form, or optimised values."""

from __future__ import annotations

from collections.abc import Sequence

from mend_core.editors.base import FactorEditor
from mend_core.editors.calibration import sampled_texts
from mend_core.editors.subject import SubjectEditor
from mend_core.editors.ultra import UltraEditor
from mend_core.editors.wordings import Wordings
from mend_core.errors import EditorMismatch
from mend_core.models import Base
from mend_core.progress import Progress, part, unheard

MADE_KINDS = ("ultra", "subject")
"""Editors that can be made without training, the quicker first."""

SAMPLED = 5
"""Texts drawn from the base per opening, unless asked otherwise."""

DRAWN = 0.45
"""Share of the time of making a subject editor that drawing text takes."""


def make_editor(
    base: Base,
    kind: str,
    *,
    matrices: Sequence[str] | None = None,
    texts: Sequence[Sequence[str]] = (),
    wordings: Wordings | None = None,
    sampled: int = SAMPLED,
    seed: int = 0,
    progress: Progress = unheard,
) -> FactorEditor:
    """Make an editor from text of our own and of the base's; the same again on one machine.

    Args:
        base: The base it will edit.
        kind: One of `MADE_KINDS`.
        matrices: Name patterns; None for the kind's own.
        texts: subject: more kinds of text to protect.
        wordings: subject: how else statements are put; None knows none.
        sampled: subject: texts drawn from the base per opening.
        seed: subject: of that draw.
        progress: Called with a short text and a fraction in [0, 1].

    Raises:
        EditorMismatch: An unknown kind, or one that does not fit the base.
        NoSuchMatrix: A pattern matches nothing.
    """
    if kind == "ultra":
        return UltraEditor.create(base, matrices=matrices, progress=progress)
    if kind != "subject":
        raise EditorMismatch(
            f"an editor of kind {kind!r} cannot be made without training; "
            f"use one of {', '.join(MADE_KINDS)}"
        )
    SubjectEditor.check_kind(base)
    said = (
        sampled_texts(base, sampled, seed=seed, progress=part(progress, 0.0, DRAWN))
        if sampled
        else ()
    )
    return SubjectEditor.create(
        base,
        matrices=matrices,
        texts=texts,
        wordings=wordings,
        said=said,
        progress=part(progress, DRAWN, 1.0),
    )
