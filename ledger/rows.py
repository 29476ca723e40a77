"""Rows to records, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from ledger.records import Batch, Edit, Editor, Job, Model, Version, Worker
from ledger.states import BatchState, EditState, GateOutcome, JobState

EDIT_COLUMNS = """e.id, e.model_id, e.state, e.prompt, e.target, e.subject, e.relation,
    e.paraphrases, e.locality, e.portability, e.reason, e.source, e.submitted_by,
    e.idempotency_key, e.fact_key,
    e.content_digest, e.priority, e.not_before, e.expires_at, e.attempts, e.batch_id, e.cohort,
    e.superseded_by, e.error, e.evidence, e.created_at, e.updated_at"""

EDIT_WIDTH = EDIT_COLUMNS.count(",") + 1

BATCH_COLUMNS = """b.id, b.model_id, b.state, b.fence, b.worker, b.size, b.claimed_at,
    b.finished_at, b.stage, b.stage_done, b.stage_of, b.stage_began_at"""

VERSION_COLUMNS = """
    SELECT v.id, v.model_id, v.number, v.parent_id, parent.number AS parent_number, v.digest,
           v.base_digest, v.editor_digest, v.composition, v.batch_id, v.fence, v.path, v.bytes,
           v.weights_digest, v.platform, v.edit_count, v.gate, v.overridden_by, v.collected_at,
           v.created_by, v.created_at, v.meta,
           EXISTS (SELECT FROM holds h
                    WHERE h.version_id = v.id AND h.released_at IS NULL) AS held"""

VERSION_SELECT = f"""{VERSION_COLUMNS}
      FROM versions AS v LEFT JOIN versions AS parent ON parent.id = v.parent_id"""

EDITOR_COLUMNS = "d.id, d.digest, d.kind, d.base_digest, d.path, d.meta, d.created_at"

JOB_COLUMNS = """j.id, j.model_id, j.kind, j.payload, j.state, j.result, j.error, j.requested_by,
    j.worker, j.attempts, j.token, j.created_at, j.finished_at"""


def edit(row: Sequence[Any]) -> Edit:
    """An `EDIT_COLUMNS` row (first, where a statement selects more): they are `Edit`'s fields."""
    one, model, state, prompt, target, subject, relation, paraphrases, locality, portability = row[
        :10
    ]
    reason, source, by, key, fact_key = row[10:15]
    return Edit(
        one,
        model,
        EditState(state),
        prompt,
        target,
        subject,
        relation,
        tuple(paraphrases),
        tuple([(p, a) for p, a in locality]),
        tuple([(p, a) for p, a in portability]),
        reason,
        source,
        by,
        key,
        fact_key.hex,
        *row[15:EDIT_WIDTH],
    )


def batch(row: Sequence[Any]) -> Batch:
    """A `BATCH_COLUMNS` row: they are `Batch`'s fields."""
    one, model, state, *rest = row
    return Batch(one, model, BatchState(state), *rest)


def version(row: Row[Any]) -> Version:
    """A `VERSION_SELECT` row."""
    values = dict(row._mapping)  # noqa: SLF001 - as above
    values["gate"] = GateOutcome(values["gate"])
    return Version(**values)


def editor(row: Row[Any]) -> Editor:
    """An `EDITOR_COLUMNS` row."""
    return Editor(**row._mapping)  # noqa: SLF001 - as above


def model(row: Row[Any], its_editor: Editor) -> Model:
    """A `models` row with its editor."""
    return Model(
        id=row.id,
        name=row.name,
        source=row.source,
        base_digest=row.base_digest,
        editor=its_editor,
        composition=row.composition,
        policy=row.policy,
        policy_digest=row.policy_digest,
        settings=row.settings,
        approval=row.approval,
        auto_promote=row.auto_promote,
        paused=row.paused,
        max_attempts=row.max_attempts,
        created_at=row.created_at,
        problem=row.problem,
        problem_at=row.problem_at,
    )


def job(row: Row[Any]) -> Job:
    """A `JOB_COLUMNS` row."""
    values = dict(row._mapping)  # noqa: SLF001 - as above
    values["state"] = JobState(values["state"])
    return Job(**values)


def worker(row: Row[Any]) -> Worker:
    """A `workers` row with `alive`."""
    return Worker(**row._mapping)  # noqa: SLF001 - as above
