"""Finding, making and keeping the editors of an installation.

A registered editor is kept in the store under its digest, with its card. What people do with the
file they gave, or with the environment a shipped one came in, touches no model then.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mend_core.editors import FactorEditor, load_factor_editor
from mend_core.editors.card import made_card, read_card, write_card
from mend_core.editors.making import MADE_KINDS, make_editor
from mend_core.editors.shipped import shipped_editor, shipped_editor_for
from mend_core.errors import EditorCorrupt, EditorNotFound
from mend_core.files import write_atomic
from mend_core.models import Base
from mend_core.probes import Policy
from workers.jobs import JobInvalid
from workers.settings import Settings

log = logging.getLogger("mend.editors")

SHIPPED = "shipped"
"""Editor name that means: the shipped editor made for this base."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An editor in the store.

    Attributes:
        editor: Loaded.
        path: Its file in the store.
        card: How it was made and what it scored, where that is known.
    """

    editor: FactorEditor
    path: Path
    card: dict[str, Any]


def keep_for(config: Settings, which: str, base: Base) -> Kept:
    """Finds or makes an editor for a base and keeps it in the store.

    Args:
        config: The worker's settings.
        which: A path, "shipped:NAME", "shipped" for the best one made for the base, or a kind that
            needs no training ("ultra", "subject") to have one made.
        base: The base.

    Raises:
        JobInvalid: A relative path.
        EditorNotFound: There is none.
        EditorMismatch: It was not made for this base, or cannot be.
        EditorCorrupt: The file is damaged.
        StoreFull: No room left.
    """
    if which in MADE_KINDS:
        return _make(config, which, base)
    kept = keep(config, shipped_editor_for(base.digest) if which == SHIPPED else _file(which))
    kept.editor.check(base)
    return kept


def keep_file(config: Settings, which: str) -> Kept:
    """Keeps an editor that a path or "shipped:NAME" names; raises as `keep_for`."""
    return keep(config, _file(which))


def keep(config: Settings, file: Path) -> Kept:
    """Copies an editor's file and card into the store, unless it is there."""
    editor = load_factor_editor(file)
    path = _place(config, editor.digest)
    card = read_card(file, editor.digest)
    if path != file and not _whole(path, editor.digest):
        write_atomic(path, file.read_bytes())
        if card:
            write_card(path, card)
    return Kept(editor, path, card)


def below_policy(card: dict[str, Any], policy: Policy) -> list[str]:
    """What of an editor's held-out scores, by its card, does not reach a policy's targets.

    The scores are shares of tokens, teacher-forced, so whole answers come out lower still.
    """
    rows = [row for row in card.get("held_out") or () if isinstance(row, dict)]
    if not rows:
        return []
    best = min(rows, key=lambda row: float(row.get("edits", 0)))
    found = []
    for score, what, rule in (
        ("es", "edits' own prompts", policy.success),
        ("gs", "paraphrases", policy.generality),
    ):
        value = best.get(score)
        target = None if rule is None else rule.target
        if target is not None and isinstance(value, int | float) and value < target:
            found.append(
                f"the editor's card says {value:.2f} of the tokens of held-out {what} at "
                f"{best.get('edits', 0):.0f} edits together; policy {policy.name} wants "
                f"{target:.2f} of whole answers, so most versions will fail its gate: train "
                "the editor longer, or choose another editor or policy"
            )
    return found


def _file(which: str) -> Path:
    if which.startswith(f"{SHIPPED}:"):
        return shipped_editor(which.partition(":")[2])
    path = Path(which).expanduser()
    if not path.is_absolute():
        raise JobInvalid(
            f"field 'editor': {which!r} must be an absolute path, {SHIPPED}, {SHIPPED}:NAME, "
            f"{' or '.join(MADE_KINDS)}"
        )
    if not path.is_file():
        raise EditorNotFound(f"there is no editor file {path}")
    return path


def _make(config: Settings, kind: str, base: Base) -> Kept:
    stage = ""

    def tell(text: str, fraction: float) -> None:
        nonlocal stage
        if text != stage:
            log.info("making the %s editor: %.0f %%, %s", kind, 100 * fraction, text)
            stage = text

    editor = make_editor(base, kind, progress=tell)
    path, card = _place(config, editor.digest), made_card(base, editor)
    editor.save(path)
    write_card(path, card)
    return Kept(editor, path, card)


def _place(config: Settings, digest: str) -> Path:
    return config.editors / digest.removeprefix("sha256:") / "editor.safetensors"


def _whole(path: Path, digest: str) -> bool:
    """Whether the store holds the editor, undamaged."""
    with contextlib.suppress(EditorNotFound, EditorCorrupt):
        return load_factor_editor(path).digest == digest
    return False
