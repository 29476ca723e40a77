"""The closed vocabularies of the ledger: every enum that Postgres enforces."""

from __future__ import annotations

from enum import StrEnum


class EditState(StrEnum):
    """Where an edit stands; the moves between states are `EDIT_MOVES`."""

    SUBMITTED = "submitted"  # accepted, waiting for its time (not_before, or a retry's back-off)
    AWAITING_APPROVAL = "awaiting_approval"  # a person must approve or reject it
    QUEUED = "queued"  # due: the next claim may take it
    CLAIMED = "claimed"  # in an open batch
    APPLIED = "applied"  # in a committed version that is not in production
    LIVE = "live"  # in production's set
    REJECTED = "rejected"  # a person said no
    QUARANTINED = "quarantined"  # broke a gate or has a bad factor; the evidence is kept
    SUPERSEDED = "superseded"  # a newer edit of the same fact took its place
    REVERTED = "reverted"  # was applied or live, is in no current version
    CANCELLED = "cancelled"  # withdrawn or expired before it was applied
    FAILED = "failed"  # attempts used up (the dead-letter state); redrive brings it back


class BatchState(StrEnum):
    """Where a batch stands."""

    OPEN = "open"  # its edits are claimed (or applied in a version still being judged)
    DONE = "done"  # everything in it was decided
    RETURNED = "returned"  # given back in good order
    LOST = "lost"  # its worker vanished; its edits were re-queued, split in two


class GateOutcome(StrEnum):
    """What the gate said of a version."""

    PENDING = "pending"
    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ChangeOp(StrEnum):
    """What a version does with an edit relative to its parent."""

    ADD = "add"
    REMOVE = "remove"


_S = EditState

EDIT_MOVES: dict[EditState | None, frozenset[EditState]] = {
    None: frozenset({_S.SUBMITTED, _S.AWAITING_APPROVAL, _S.QUEUED}),
    _S.SUBMITTED: frozenset({_S.QUEUED, _S.SUPERSEDED, _S.CANCELLED}),
    _S.AWAITING_APPROVAL: frozenset({_S.SUBMITTED, _S.QUEUED, _S.REJECTED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.CLAIMED, _S.SUPERSEDED, _S.CANCELLED}),
    _S.CLAIMED: frozenset(
        {
            _S.APPLIED,
            _S.QUEUED,
            _S.SUBMITTED,
            _S.SUPERSEDED,
            _S.QUARANTINED,
            _S.FAILED,
            _S.CANCELLED,
        }
    ),
    _S.APPLIED: frozenset(
        {_S.LIVE, _S.CLAIMED, _S.QUEUED, _S.QUARANTINED, _S.SUPERSEDED, _S.REVERTED}
    ),
    _S.LIVE: frozenset({_S.APPLIED, _S.SUPERSEDED, _S.REVERTED}),
    _S.SUPERSEDED: frozenset({_S.LIVE, _S.APPLIED, _S.REVERTED}),
    _S.REVERTED: frozenset({_S.LIVE, _S.APPLIED, _S.QUEUED, _S.SUPERSEDED}),
    _S.QUARANTINED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.FAILED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLED: frozenset(),
    _S.REJECTED: frozenset(),
}
"""Allowed moves (None: not there yet); the trigger `edits_move_is_allowed` keeps to them."""
