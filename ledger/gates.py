"""Probe results and gate decisions: kept for ever, with the digests of suite and policy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import aliases, audit, versions
from ledger.db import raw, text
from ledger.errors import RequestInvalid, StaleParent, WrongState
from ledger.records import SetMember, Version
from ledger.states import EditState, GateOutcome
from ledger.transitions import move, requeue


def record_probes(
    conn: Connection,
    version_id: int,
    suite_digest: str,
    results: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any] | None = None,
) -> int:
    """Store the results of one probe run (`ProbeResult.to_dict()` each); returns the run's id."""
    run_id = int(
        conn.execute(
            text(
                "INSERT INTO probe_runs (version_id, suite_digest, summary) "
                "VALUES (:version, :suite, :summary) RETURNING id"
            ),
            {"version": version_id, "suite": suite_digest, "summary": Jsonb(dict(summary or {}))},
        ).scalar_one()
    )
    with (
        raw(conn).cursor() as cursor,
        cursor.copy("COPY probe_results (run_id, position, result) FROM STDIN") as copy,
    ):
        for position, result in enumerate(results):
            copy.write_row((run_id, position, _clean(result)))
    return run_id


def probes(conn: Connection, version_id: int) -> list[dict[str, Any]]:
    """Results of the newest probe run of a version, in suite order; empty where none ran."""
    return list(
        conn.execute(
            text(
                """
                SELECT result FROM probe_results WHERE run_id = (
                    SELECT max(id) FROM probe_runs WHERE version_id = :version)
                 ORDER BY position
                """
            ),
            {"version": version_id},
        ).scalars()
    )


def record(
    conn: Connection,
    version_id: int,
    *,
    outcome: str | GateOutcome,
    policy_digest: str,
    suite_digest: str,
    checks: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    actor: str,
) -> Version:
    """Record what the gate said; a version that passes becomes the candidate.

    A version is judged once; a judgement of "inconclusive" may be followed by another (more
    probes). Where the candidate moved on meanwhile (a rollback), the version passes but does not
    become it, and its edits are queued again.

    Raises:
        WrongState: The version was judged already.
    """
    said = GateOutcome(outcome)
    version = _judgeable(conn, version_id)
    _insert(conn, version_id, said, policy_digest, suite_digest, checks, scores, actor, None)
    audit.append(
        conn,
        "gate.recorded",
        actor=actor,
        model_id=version.model_id,
        subject=f"version:{version_id}",
        data={
            "digest": version.digest,
            "failed": [str(one.get("name")) for one in checks if one.get("outcome") == "fail"],
            "number": version.number,
            "outcome": said.value,
            "policy_digest": policy_digest,
            "suite_digest": suite_digest,
        },
    )
    judged = replace(version, gate=said)
    if said is GateOutcome.PASS:
        _becomes_candidate(conn, judged, actor, "gate passed")
    return judged


def override(conn: Connection, version_id: int, *, actor: str, reason: str) -> Version:
    """An approver lets a failed or inconclusive version through; the reason is kept.

    Raises:
        RequestInvalid: No reason.
        WrongState: The gate passed or has not spoken, or what the version brings is the actor's
            own: who asked for a change is not who says that it may skip its gate.
    """
    if not reason.strip():
        raise RequestInvalid("is empty; an override needs a reason", field="reason")
    version = _locked(conn, version_id)
    if version.gate not in {GateOutcome.FAIL, GateOutcome.INCONCLUSIVE}:
        raise WrongState(f"version {version.number} has gate {version.gate}: nothing to override")
    if version.overridden_by is not None:
        raise WrongState(f"version {version.number} was overridden by {version.overridden_by}")
    standing = conn.execute(
        text(
            """
            SELECT count(*) = 0 FROM version_edits AS c JOIN edits AS e ON e.id = c.edit_id
             WHERE c.version_id = :version AND c.op = 'add' AND e.state NOT IN ('applied', 'live')
            """
        ),
        {"version": version_id},
    ).scalar_one()
    if _asked_for_by(conn, version, actor):
        raise WrongState(
            f"version {version.number} holds what {actor!r} asked for: someone else must override "
            "its gate"
        )
    if not standing:
        raise WrongState(
            f"edits of version {version.number} were taken out and built again elsewhere: "
            "redrive the quarantined ones instead"
        )
    last = decisions(conn, version_id)[0]
    conn.execute(
        text("UPDATE versions SET overridden_by = :actor WHERE id = :version"),
        {"actor": actor, "version": version_id},
    )
    _insert(
        conn,
        version_id,
        version.gate,
        last["policy_digest"],
        last["suite_digest"],
        last["checks"],
        last["scores"],
        actor,
        reason,
    )
    audit.append(
        conn,
        "gate.overridden",
        actor=actor,
        model_id=version.model_id,
        subject=f"version:{version_id}",
        data={"number": version.number, "outcome": version.gate.value, "reason": reason},
    )
    overridden = replace(version, overridden_by=actor)
    _becomes_candidate(conn, overridden, actor, f"override: {reason}")
    return overridden


def decline(conn: Connection, version_id: int, *, actor: str, reason: str) -> Version:
    """A person says no to an inconclusive version: it counts as failed, its edits are quarantined.

    Raises:
        WrongState: Its gate is not inconclusive.
    """
    version = _locked(conn, version_id)
    if version.gate is not GateOutcome.INCONCLUSIVE or version.overridden_by is not None:
        raise WrongState(
            f"version {version.number} has gate {version.gate}: "
            "only an inconclusive one is declined"
        )
    last = decisions(conn, version_id)[0]
    _insert(
        conn,
        version_id,
        GateOutcome.FAIL,
        last["policy_digest"],
        last["suite_digest"],
        last["checks"],
        last["scores"],
        actor,
        reason,
    )
    adds = _brought(conn, version)
    evidence = {"reason": f"version {version.number} declined: {reason}", "by": actor}
    moved = move(
        conn,
        EditState.QUARANTINED,
        "e.id = ANY(:ids) AND e.state = 'applied'",
        {"ids": [one.edit_id for one in adds], "evidence": Jsonb(evidence)},
        sets="evidence = CAST(:evidence AS jsonb), batch_id = NULL",
    )
    audit.append(
        conn,
        "gate.declined",
        actor=actor,
        model_id=version.model_id,
        subject=f"version:{version_id}",
        data={"moves": audit.as_moves(moved), "number": version.number, "reason": reason},
        edit_ids=[one for one, _, _ in moved],
    )
    return versions.get(conn, version_id)


def withdraw(conn: Connection, version_id: int, *, actor: str, reason: str) -> Version:
    """Take a version's proof back: a person found that what let it through was wrong.

    It can never be promoted again, nor can a version that was judged against it.

    Raises:
        RequestInvalid: No reason.
        WrongState: It is not proven, or production or the candidate is it or builds on it: those
            must be rolled back first.
    """
    if not reason.strip():
        raise RequestInvalid("is empty; taking a proof back needs a reason", field="reason")
    version = _locked(conn, version_id)
    if not version.proven or version.number == 0:
        why = "is the base itself" if version.number == 0 else "has no proof to take back"
        raise WrongState(f"version {version.number} {why}")
    for alias in (aliases.PRODUCTION, aliases.CANDIDATE):
        there = aliases.get(conn, version.model_id, alias)
        if version_id in {one.id for one in versions.lineage(conn, there.version_id)}:
            raise WrongState(
                f"{alias} is version {there.number}, which is or builds on version "
                f"{version.number}: roll back to one before it first (mend rollback)"
            )
    conn.execute(
        text(
            "UPDATE versions SET meta = meta || jsonb_build_object('withdrawn', "
            "CAST(:note AS jsonb)) WHERE id = :version"
        ),
        {"note": Jsonb({"by": actor, "reason": reason}), "version": version_id},
    )
    audit.append(
        conn,
        "gate.withdrawn",
        actor=actor,
        model_id=version.model_id,
        subject=f"version:{version_id}",
        data={"number": version.number, "outcome": version.gate.value, "reason": reason},
    )
    return versions.get(conn, version_id)


def decisions(conn: Connection, version_id: int) -> list[dict[str, Any]]:
    """Every decision about a version, newest first."""
    found = conn.execute(
        text(
            """
            SELECT id, outcome, policy_digest, suite_digest, checks, scores, actor, override_reason,
                   created_at
              FROM gates WHERE version_id = :version ORDER BY id DESC
            """
        ),
        {"version": version_id},
    )
    return [dict(row._mapping) for row in found]  # noqa: SLF001 - SQLAlchemy's public name for it


def _insert(  # noqa: PLR0917 - one row, its columns in order
    conn: Connection,
    version_id: int,
    outcome: GateOutcome,
    policy_digest: str,
    suite_digest: str,
    checks: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any],
    actor: str,
    override_reason: str | None = None,
) -> None:
    """Write a decision; the version's gate says the same from now on."""
    conn.execute(
        text(
            """
            WITH judged AS (
                UPDATE versions SET gate = CAST(:outcome AS gate_outcome)
                 WHERE id = :version AND gate <> CAST(:outcome AS gate_outcome)
            )
            INSERT INTO gates (version_id, outcome, policy_digest, suite_digest, checks, scores,
                               actor, override_reason)
            VALUES (:version, CAST(:outcome AS gate_outcome), :policy, :suite, :checks, :scores,
                    :actor, :override_reason)
            """
        ),
        {
            "version": version_id,
            "outcome": outcome.value,
            "policy": policy_digest,
            "suite": suite_digest,
            "checks": _clean([dict(one) for one in checks]),
            "scores": _clean(dict(scores)),
            "actor": actor,
            "override_reason": override_reason,
        },
    )


def _becomes_candidate(conn: Connection, version: Version, actor: str, reason: str) -> None:
    try:
        aliases.advance_candidate(conn, version, actor=actor, reason=reason)
    except StaleParent:
        # The line went on without it: build its edits again on the present candidate.
        adds = _brought(conn, version)
        moved = requeue(
            conn,
            version.model_id,
            "e.id = ANY(:ids) AND e.state = 'applied'",
            {"ids": [one.edit_id for one in adds]},
        )
        audit.moved(
            conn,
            "version.overtaken",
            moved,
            actor=actor,
            model_id=version.model_id,
            subject=f"version:{version.id}",
            data={"number": version.number},
        )


def _brought(conn: Connection, version: Version) -> tuple[SetMember, ...]:
    """Edits a version brought in; a rebase only gave those of its parent other factors."""
    return versions.changes(conn, version.id)[0] if version.batch_id is not None else ()


def _asked_for_by(conn: Connection, version: Version, actor: str) -> bool:
    """Whether a person submitted an edit that a version brings in, or asked for its job."""
    return bool(
        conn.execute(
            text(
                """
                SELECT EXISTS (SELECT FROM edits
                                WHERE id = ANY(:brought) AND submitted_by = :actor)
                    OR EXISTS (SELECT FROM jobs
                                WHERE id = CAST(:job AS bigint) AND requested_by = :actor)
                """
            ),
            {
                "brought": [one.edit_id for one in _brought(conn, version)],
                "job": version.meta.get("job"),
                "actor": actor,
            },
        ).scalar_one()
    )


def _locked(conn: Connection, version_id: int) -> Version:
    return versions.get(conn, version_id, lock=True)


def _judgeable(conn: Connection, version_id: int) -> Version:
    version = _locked(conn, version_id)
    again = version.gate is GateOutcome.INCONCLUSIVE and version.overridden_by is None
    if version.gate is not GateOutcome.PENDING and not again:
        raise WrongState(f"version {version.number} was judged already: {version.gate}")
    return version


def _clean(value: Any) -> Jsonb:
    """JSON for Postgres: NaN and infinities, which JSON lacks, become their names as text."""

    def walk(one: Any) -> Any:
        if isinstance(one, float) and (one != one or one in {float("inf"), float("-inf")}):  # noqa: PLR0124 - NaN
            return str(one)
        if isinstance(one, str):
            return one.replace("\x00", "�")
        if isinstance(one, Mapping):
            return {str(key): walk(item) for key, item in one.items()}
        if isinstance(one, list | tuple):
            return [walk(item) for item in one]
        return one

    return Jsonb(walk(value), dumps=lambda found: json.dumps(found, default=str))
