"""Pausing a model: nothing of it is claimed, accepting goes on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import edits, models
from ledger.records import Model
from ledger.states import EditState


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model's edits that are not decided yet.

    Attributes:
        queued: They are claimed as soon as the model is not paused and a worker is free.
        awaiting_approval: They wait for a person.
        in_work: They are in an open batch, which goes on to its end.
    """

    queued: int
    awaiting_approval: int
    in_work: int


def pause(conn: Connection, model: Model, *, actor: str, reason: str) -> Waiting:
    """Stop claiming a model's edits; what waits meanwhile."""
    models.pause(conn, model.id, actor=actor, reason=reason)
    return _waiting(conn, model)


def resume(conn: Connection, model: Model, *, actor: str, reason: str) -> Waiting:
    """Claim a paused model's edits again; what waited for it."""
    models.resume(conn, model.id, actor=actor, reason=reason)
    return _waiting(conn, model)


def _waiting(conn: Connection, model: Model) -> Waiting:
    counts = edits.counts(conn, model.id)
    return Waiting(
        queued=counts[EditState.SUBMITTED] + counts[EditState.QUEUED],
        awaiting_approval=counts[EditState.AWAITING_APPROVAL],
        in_work=counts[EditState.CLAIMED],
    )
