"""Moving production: what a promotion or a rollback would change, and the move itself.

What a move would change is found by making it and taking it back in the same transaction, so what
a person is told is what happens. The move that is then confirmed names where the aliases were: had
one moved meanwhile, the ledger refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import aliases, audit, edits, ranges
from ledger.records import AliasMove, Edit, Model, Version
from ledger.states import EditState

_ALIASES = (aliases.PRODUCTION, aliases.CANDIDATE)


@dataclass(frozen=True, slots=True)
class Change:
    """An edit whose state follows a move.

    Attributes:
        id: The edit.
        prompt: What is asked.
        target: What it answers.
        before: Its state now.
        after: Its state after the move.
        replaced_by: The edit of the same fact that comes in its place, or None.
    """

    id: int
    prompt: str
    target: str
    before: EditState
    after: EditState
    replaced_by: int | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a move of production would change.

    Attributes:
        move: The move.
        candidate: The candidate's move that comes with it, or None.
        comes: Edits that come into production.
        replaced: Edits that leave it because a newer one of the same fact comes.
        leaves: Edits that leave it and nothing takes their place.
        reverted: Edits that are not in production now and will be in no current version.
        seen: Alias → version id, as they are now.
    """

    move: AliasMove
    candidate: AliasMove | None
    comes: tuple[Change, ...]
    replaced: tuple[Change, ...]
    leaves: tuple[Change, ...]
    reverted: tuple[Change, ...]
    seen: Mapping[str, int]

    @property
    def asks(self) -> bool:
        """Whether a person should confirm it: facts go and nothing takes their place."""
        return bool(self.leaves or self.reverted)


Move = Callable[[Connection, Mapping[str, int]], AliasMove]
"""Moves production; given where the aliases were seen."""


def promotion(
    model: Model, version: Version, *, actor: str, reason: str, approved_by: str | None = None
) -> Move:
    """The move of production to a proven version; see `ledger.aliases.promote`."""
    return lambda conn, seen: aliases.promote(
        conn,
        model.id,
        version.id,
        actor=actor,
        reason=reason,
        approved_by=approved_by,
        seen=seen,
    )


def rollback(
    model: Model,
    version: Version | None,
    *,
    actor: str,
    reason: str,
    approved_by: str | None = None,
) -> Move:
    """The move of production back; None for what it was before. See `ledger.aliases.rollback`."""
    return lambda conn, seen: aliases.rollback(
        conn,
        model.id,
        to_version_id=None if version is None else version.id,
        actor=actor,
        reason=reason,
        approved_by=approved_by,
        seen=seen,
    )


def foresee(conn: Connection, model: Model, move: Move) -> Foreseen:
    """What a move would change; nothing is changed.

    Raises:
        LedgerError: The move is refused; the message says why.
    """
    seen = {name: aliases.get(conn, model.id, name).version_id for name in _ALIASES}
    last = audit.last(conn)
    trial = conn.begin_nested()
    try:
        made = move(conn, seen)
        events = audit.events(conn, after=last, model_id=model.id)
        candidate = aliases.history(conn, model.id, aliases.CANDIDATE, limit=1)
        moved = aliases.get(conn, model.id, aliases.CANDIDATE).version_id
    finally:
        trial.rollback()
    states: dict[int, tuple[EditState, EditState]] = {}
    for event in events:
        for step in event.data.get("moves", ()):
            for one in ranges.from_text(step["edits"]):
                before = states[one][0] if one in states else EditState(step["from"])
                states[one] = before, EditState(step["to"])
    found = edits.get_many(conn, [one for one, (a, b) in states.items() if a is not b])
    came = {e.fact_key: e.id for e in found if states[e.id][1] is EditState.LIVE}
    return Foreseen(
        move=made,
        candidate=candidate[0] if moved != seen[aliases.CANDIDATE] else None,
        seen=seen,
        **_sorted(_change(edit, *states[edit.id], came.get(edit.fact_key)) for edit in found),
    )


def _change(edit: Edit, before: EditState, after: EditState, came: int | None) -> Change:
    replaced_by = came if before is EditState.LIVE and came != edit.id else None
    return Change(edit.id, edit.prompt, edit.target, before, after, replaced_by)


def _sorted(changes: Iterable[Change]) -> dict[str, tuple[Change, ...]]:
    """Changes by what they mean for production; those that mean nothing for it are left out."""
    groups: dict[str, list[Change]] = {"comes": [], "replaced": [], "leaves": [], "reverted": []}
    for change in changes:
        if change.after is EditState.LIVE:
            groups["comes"].append(change)
        elif change.before is EditState.LIVE:
            groups["leaves" if change.replaced_by is None else "replaced"].append(change)
        elif change.after is EditState.REVERTED:
            groups["reverted"].append(change)
    return {name: tuple(found) for name, found in groups.items()}
