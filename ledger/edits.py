"""Edit requests: submit, look at, cancel, approve, reject, redrive, erase.

One function per transition; each writes its audit event in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors as pg
from sqlalchemy import Connection, Engine

from ledger import audit, rows
from ledger.bulk import submit_many
from ledger.db import alone, raw, text
from ledger.errors import (
    DatabaseDown,
    KeyReused,
    NoSuchEdit,
    NoSuchModel,
    RequestInvalid,
    WrongState,
)
from ledger.records import AuditEvent, Edit, Submitted
from ledger.requests import EditRequest
from ledger.states import EDIT_MOVES, EditState
from ledger.transitions import Moved, lock_submissions, move

__all__ = [
    "accept",
    "approve",
    "cancel",
    "counts",
    "erase",
    "get",
    "get_many",
    "history",
    "list_edits",
    "redrive",
    "redrive_all",
    "reject",
    "submit",
    "submit_many",
]

_S = EditState


def accept(engine: Engine, model_id: int, request: EditRequest, *, actor: str) -> Submitted:
    """`submit` and commit in one round trip: the quick way for one request and nothing else.

    One with an idempotency key is sent again where the connection was lost, for it cannot be added
    twice.

    Raises:
        NoSuchModel: No model of this id.
        RequestInvalid: `expires_at` is past (database clock).
        DatabaseDown: The server does not answer. Without a key, the request may or may not have
            been accepted.
    """
    try:
        with alone(engine) as driver:
            return _submit(driver, model_id, request, actor)
    except DatabaseDown:
        if request.idempotency_key is None:
            raise
    with alone(engine) as driver:
        return _submit(driver, model_id, request, actor)


def submit(
    conn: Connection,
    model_id: int,
    request: EditRequest,
    *,
    actor: str,
    edit_id: int | None = None,
) -> Submitted:
    """Accept one request in one round trip.

    * The idempotency key was seen before, or the newest edit of the fact asks for just the same and
      waits, is in work, live, set aside or rejected: nothing is added; that edit is returned,
      `duplicate`.
    * A waiting edit of the same fact is superseded.
    * An edit of the same fact with another target by somebody else, or from another named source
      (not the command line or a file), or a model that asks for approval: the new one waits for a
      person.

    Args:
        conn: The transaction.
        model_id: The model.
        request: What is asked for.
        actor: Who asks.
        edit_id: A reserved id for it; None draws one.

    Raises:
        KeyReused: The idempotency key was used for other content.
        NoSuchModel: No model of this id.
        RequestInvalid: `expires_at` is past (database clock).
    """
    return _submit(raw(conn), model_id, request, actor, edit_id)


def _submit(
    driver: psycopg.Connection[Any],
    model_id: int,
    request: EditRequest,
    actor: str,
    edit_id: int | None = None,
) -> Submitted:
    salt, digest = request.sealed()
    cursor = driver.cursor()
    try:
        cursor.execute(
            "SELECT * FROM submit_edit(%s::bigint, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb,"
            " %s::jsonb, %s, %s, %s, %s, %s::bytea, %s, %s::smallint, %s, %s, %s)",
            (
                model_id,
                actor,
                request.prompt,
                request.target,
                request.subject,
                request.relation,
                *request.json_lists,
                request.reason,
                request.source,
                request.idempotency_key,
                request.fact_key,
                salt,
                digest,
                request.priority,
                request.not_before,
                request.expires_at,
                edit_id,
            ),
        )
    except pg.DatabaseError as error:
        if error.sqlstate == "MD404":
            raise NoSuchModel(f"no model {model_id}: see 'mend model list'") from None
        if error.sqlstate == "MD400":
            raise RequestInvalid(
                "is already past; expected a time to come", field="expires_at"
            ) from None
        if error.sqlstate == "MD409":
            raise KeyReused(
                f"{error.diag.message_primary}: a key names one request; give the new one a key of "
                "its own, or none"
            ) from None
        raise
    row = cursor.fetchone()
    assert row is not None
    return Submitted(
        edit_id=row[0],
        duplicate=row[1],
        state=EditState(row[2]),
        superseded=tuple(row[3]),
        contradicts=row[4],
    )


def get(conn: Connection, edit_id: int) -> Edit:
    """One edit.

    Raises:
        NoSuchEdit: None of this id.
    """
    found = get_many(conn, [edit_id])
    if not found:
        raise NoSuchEdit(f"no edit {edit_id}: see 'mend edits'")
    return found[0]


def get_many(conn: Connection, edit_ids: Sequence[int]) -> list[Edit]:
    """Edits by id, in id order; unknown ids are left out."""
    found = conn.execute(
        text(
            f"SELECT {rows.EDIT_COLUMNS} FROM edits AS e WHERE e.id = ANY(:ids) ORDER BY e.id"  # noqa: S608 - our words
        ),
        {"ids": list(edit_ids)},
    )
    return [rows.edit(row) for row in found]


def list_edits(
    conn: Connection,
    model_id: int | None = None,
    *,
    states: Sequence[EditState | str] | None = None,
    source: str | None = None,
    search: str | None = None,
    limit: int = 100,
    before_id: int | None = None,
) -> list[Edit]:
    """Edits, newest first; `before_id` pages on."""
    found = conn.execute(
        text(
            f"""
            SELECT {rows.EDIT_COLUMNS} FROM edits AS e
             WHERE (CAST(:model AS bigint) IS NULL OR e.model_id = :model)
               AND (CAST(:states AS edit_state[]) IS NULL
                    OR e.state = ANY(CAST(:states AS edit_state[])))
               AND (CAST(:source AS text) IS NULL OR e.source = :source)
               AND (CAST(:search AS text) IS NULL
                    OR strpos(lower(e.prompt || ' ' || e.target), lower(:search)) > 0)
               AND (CAST(:before AS bigint) IS NULL OR e.id < :before)
             ORDER BY e.id DESC LIMIT :limit
            """  # noqa: S608 - our words
        ),
        {
            "model": model_id,
            "states": [EditState(one).value for one in states] if states is not None else None,
            "source": source,
            "search": search,
            "before": before_id,
            "limit": limit,
        },
    )
    return [rows.edit(row) for row in found]


def live_of_same_facts(conn: Connection, edit_ids: Sequence[int]) -> list[Edit]:
    """Live edits of the facts that some edits are about, of the same models."""
    found = conn.execute(
        text(
            f"""
            SELECT DISTINCT ON (e.id) {rows.EDIT_COLUMNS} FROM edits AS e
              JOIN edits AS o ON o.model_id = e.model_id AND o.fact_key = e.fact_key
             WHERE o.id = ANY(:ids) AND e.state = 'live' ORDER BY e.id
            """  # noqa: S608 - our words
        ),
        {"ids": list(edit_ids)},
    )
    return [rows.edit(row) for row in found]


def of_facts(
    conn: Connection, model_id: int, fact_keys: Sequence[str], *, states: Sequence[EditState]
) -> list[Edit]:
    """A model's edits of some facts that are in some states, oldest first."""
    found = conn.execute(
        text(
            f"""
            SELECT {rows.EDIT_COLUMNS} FROM edits AS e
             WHERE e.model_id = :model AND e.fact_key = ANY(CAST(:keys AS uuid[]))
               AND e.state = ANY(CAST(:states AS edit_state[])) ORDER BY e.id
            """  # noqa: S608 - our words
        ),
        {
            "model": model_id,
            "keys": list(fact_keys),
            "states": [state.value for state in states],
        },
    )
    return [rows.edit(row) for row in found]


def counts(conn: Connection, model_id: int | None = None) -> dict[str, int]:
    """How many edits are in each state; every state is there."""
    found = conn.execute(
        text(
            "SELECT state, count(*) FROM edits "
            "WHERE CAST(:model AS bigint) IS NULL OR model_id = :model GROUP BY state"
        ),
        {"model": model_id},
    )
    return {state.value: 0 for state in EditState} | {str(s): int(n) for s, n in found}


def history(conn: Connection, edit_id: int) -> list[AuditEvent]:
    """Every audit event about an edit, oldest first.

    Raises:
        NoSuchEdit: None of this id.
    """
    get(conn, edit_id)
    return audit.events(conn, edit_id=edit_id, limit=10_000)


def cancel(conn: Connection, edit_id: int, *, actor: str, reason: str) -> Edit:
    """Withdraw an edit that no version holds yet; in an open batch it drops out of it.

    Raises:
        WrongState: It is applied (revert it instead) or already ended.
    """
    edit = _locked(conn, edit_id)
    if edit.state in {_S.APPLIED, _S.LIVE}:
        raise WrongState(
            f"edit {edit_id} is {edit.state}: it is part of a version; use 'mend revert {edit_id}'"
        )
    return _one(
        conn,
        edit,
        _S.CANCELLED,
        "edit.cancelled",
        actor=actor,
        reason=reason,
        sets="batch_id = NULL",
    )


def approve(conn: Connection, edit_id: int, *, actor: str, reason: str) -> Edit:
    """Let a waiting edit into the queue; it supersedes a waiting edit of the same fact.

    Raises:
        WrongState: It does not wait for approval, or its submitter approves it.
    """
    edit = _locked(conn, edit_id)
    if edit.state is not _S.AWAITING_APPROVAL:
        raise WrongState(f"edit {edit_id} is {edit.state}: only an awaiting edit can be approved")
    if edit.submitted_by == actor:
        raise WrongState(f"edit {edit_id} was submitted by {actor!r}: someone else must approve it")
    lock_submissions(conn, edit.model_id)
    moved = move(
        conn,
        _S.SUPERSEDED,
        "e.model_id = :model AND e.fact_key = CAST(:fact AS uuid) "
        "AND e.state IN ('submitted', 'queued')",
        {"model": edit.model_id, "fact": edit.fact_key, "by": edit_id},
        sets="superseded_by = :by",
    )
    later = conn.execute(
        text("SELECT CAST(:moment AS timestamptz) > clock_timestamp()"), {"moment": edit.not_before}
    ).scalar_one()
    moved += move(conn, _S.SUBMITTED if later else _S.QUEUED, "e.id = :edit", {"edit": edit_id})
    _record(conn, "edit.approved", edit, moved, actor=actor, reason=reason)
    return get(conn, edit_id)


def reject(conn: Connection, edit_id: int, *, actor: str, reason: str) -> Edit:
    """Refuse a waiting edit for good.

    Raises:
        WrongState: It does not wait for approval.
    """
    edit = _locked(conn, edit_id)
    return _one(conn, edit, _S.REJECTED, "edit.rejected", actor=actor, reason=reason)


def redrive(conn: Connection, edit_id: int, *, actor: str, reason: str) -> Edit:
    """Give a failed, quarantined or reverted edit a fresh start.

    Raises:
        WrongState: Another state, or a newer edit of the same fact waits.
    """
    edit = _locked(conn, edit_id)
    if edit.state not in {_S.FAILED, _S.QUARANTINED, _S.REVERTED}:
        raise WrongState(
            f"edit {edit_id} is {edit.state}: only failed, quarantined or reverted "
            "edits are redriven"
        )
    lock_submissions(conn, edit.model_id)
    newer = conn.execute(
        text(
            "SELECT max(id) FROM edits WHERE model_id = :model AND fact_key = CAST(:fact AS uuid) "
            "AND state IN ('submitted', 'queued')"
        ),
        {"model": edit.model_id, "fact": edit.fact_key},
    ).scalar_one()
    if newer is not None:
        raise WrongState(f"edit {newer} of the same fact waits already: cancel one of them")
    moved = move(conn, _S.QUEUED, "e.id = :edit", {"edit": edit_id}, sets=_FRESH)
    _record(conn, "edit.redriven", edit, moved, actor=actor, reason=reason)
    return get(conn, edit_id)


def redrive_all(
    conn: Connection, model_id: int, *, actor: str, reason: str, states: Sequence[str] = ("failed",)
) -> list[int]:
    """Redrive every failed (or quarantined) edit of a model whose fact has no newer one waiting."""
    chosen = [EditState(one) for one in states]
    if not set(chosen) <= {_S.FAILED, _S.QUARANTINED}:
        raise WrongState("only failed and quarantined edits are redriven together")
    lock_submissions(conn, model_id)
    moved = move(
        conn,
        _S.QUEUED,
        """e.model_id = :model AND e.state = ANY(CAST(:states AS edit_state[]))
           AND NOT EXISTS (
               SELECT FROM edits AS n WHERE n.model_id = e.model_id AND n.fact_key = e.fact_key
                  AND n.id <> e.id AND (n.state IN ('submitted', 'queued')
                       OR (n.id > e.id AND n.state = ANY(CAST(:states AS edit_state[])))))""",
        {"model": model_id, "states": [one.value for one in chosen]},
        sets=_FRESH,
    )
    audit.moved(
        conn, "edit.redriven", moved, actor=actor, model_id=model_id, data={"reason": reason}
    )
    return [one for one, _, _ in moved]


_FRESH = (
    "attempts = 0, batch_id = NULL, cohort = NULL, not_before = NULL, error = NULL, evidence = NULL"
)


def erase(conn: Connection, edit_id: int, *, actor: str, reason: str) -> None:
    """Blank the texts and the salt of an edit that is in no current version (right to erasure).

    The trail keeps its salted digest, from which nothing can be guessed any more.

    Raises:
        WrongState: The edit waits or is part of a version.
    """
    edit = _locked(conn, edit_id)
    ended = {_S.REJECTED, _S.CANCELLED, _S.SUPERSEDED, _S.REVERTED, _S.FAILED, _S.QUARANTINED}
    if edit.state not in ended:
        raise WrongState(f"edit {edit_id} is {edit.state}: cancel or revert it before erasing it")
    conn.execute(
        text(
            r"""
            UPDATE edits SET prompt = '(erased)', target = '(erased)', subject = NULL,
                   relation = NULL, paraphrases = '[]', locality = '[]', portability = '[]',
                   reason = NULL, salt = CAST('\x' AS bytea), error = left(error, 0)
             WHERE id = :edit
            """
        ),
        {"edit": edit_id},
    )
    audit.append(
        conn,
        "edit.erased",
        actor=actor,
        model_id=edit.model_id,
        subject=f"edit:{edit_id}",
        data={"reason": reason},
        edit_ids=[edit_id],
    )


def _locked(conn: Connection, edit_id: int) -> Edit:
    row = conn.execute(
        text(f"SELECT {rows.EDIT_COLUMNS} FROM edits AS e WHERE e.id = :edit FOR UPDATE"),  # noqa: S608 - our words
        {"edit": edit_id},
    ).one_or_none()
    if row is None:
        raise NoSuchEdit(f"no edit {edit_id}: see 'mend edits'")
    return rows.edit(row)


def _one(
    conn: Connection,
    edit: Edit,
    to: EditState,
    kind: str,
    *,
    actor: str,
    reason: str,
    sets: str = "",
) -> Edit:
    if to not in EDIT_MOVES[edit.state]:
        raise WrongState(f"edit {edit.id} is {edit.state}: it cannot become {to}")
    moved = move(conn, to, "e.id = :edit", {"edit": edit.id}, sets=sets)
    _record(conn, kind, edit, moved, actor=actor, reason=reason)
    return get(conn, edit.id)


def _record(
    conn: Connection, kind: str, edit: Edit, moved: list[Moved], *, actor: str, reason: str
) -> None:
    audit.moved(
        conn,
        kind,
        moved,
        actor=actor,
        model_id=edit.model_id,
        subject=f"edit:{edit.id}",
        data={"reason": reason},
    )
