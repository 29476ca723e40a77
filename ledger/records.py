"""What the ledger's functions return: frozen views of rows, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from ledger.states import BatchState, EditState, GateOutcome, JobState


@dataclass(frozen=True, slots=True)
class Editor:
    """A registered editor file.

    Attributes:
        id: Row id.
        digest: Content digest of the editor ("sha256:…").
        kind: mend, malmen, ultra, ft, …
        base_digest: Digest of the base it was made for.
        path: Where the file lies.
        meta: Training command, seed, data digest, held-out scores.
    """

    id: int
    digest: str
    kind: str
    base_digest: str
    path: str
    meta: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model: base + editor + policy.

    Attributes:
        source: What `load_base` takes ("smollm2", a folder, a hub id).
        composition: Canonical composition settings (`Composition.to_dict()`).
        policy: The gate policy in full; `policy_digest` names it.
        settings: Free settings of the model (dtype, batch size, hooks, …).
        approval: True where every edit waits for a person.
        auto_promote: True where a version that passes its gate goes to production by itself.
        paused: True while nothing of this model is claimed.
        max_attempts: Tries of one edit before it fails.
        problem: Why no worker can work on it now, since `problem_at`; None where one can.
    """

    id: int
    name: str
    source: str
    base_digest: str
    editor: Editor
    composition: Mapping[str, Any]
    policy: Mapping[str, Any]
    policy_digest: str
    settings: Mapping[str, Any]
    approval: bool
    auto_promote: bool
    paused: bool
    max_attempts: int
    created_at: datetime
    problem: str | None = None
    problem_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit request with its state.

    Attributes:
        locality: Prompts that must not change: tuple of (prompt, answer or None).
        portability: Prompts whose answers follow: tuple of (prompt, answer).
        fact_key: Digest naming the fact; at most one live edit per model and key.
        content_digest: sha256 over salt + canonical content, as chained in the audit trail.
        attempts: Tries so far that ended in an error or a crash of its own.
        error: Last error, or the evidence of a quarantine (`evidence`).
    """

    id: int
    model_id: int
    state: EditState
    prompt: str
    target: str
    subject: str | None
    relation: str | None
    paraphrases: tuple[str, ...]
    locality: tuple[tuple[str, str | None], ...]
    portability: tuple[tuple[str, str | None], ...]
    reason: str | None
    source: str
    submitted_by: str
    idempotency_key: str | None
    fact_key: str
    content_digest: str
    priority: int
    not_before: datetime | None
    expires_at: datetime | None
    attempts: int
    batch_id: int | None
    cohort: int | None
    superseded_by: int | None
    error: str | None
    evidence: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of one submitted request.

    Attributes:
        edit_id: The edit's id; the first one's where `duplicate`.
        duplicate: True where the idempotency key was seen before (nothing was added).
        state: State the edit now has.
        superseded: Waiting edits of the same fact that this one replaced.
        contradicts: Edit of the same fact from another source that made this one wait, or None.
    """

    edit_id: int
    duplicate: bool
    state: EditState
    superseded: tuple[int, ...] = ()
    contradicts: int | None = None


@dataclass(frozen=True, slots=True)
class SubmittedMany:
    """What became of a bulk submission: counts, and the ids in file order."""

    edit_ids: tuple[int, ...]
    accepted: int
    duplicates: int
    superseded: int
    awaiting_approval: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to build a model's next version.

    Attributes:
        fence: Monotonic number; each committed version uses one up.
        until: When it runs out (database clock) unless renewed.
    """

    model_id: int
    worker: UUID
    fence: int
    ttl_seconds: float
    until: datetime


@dataclass(frozen=True, slots=True)
class Batch:
    """The edits claimed together under one lease.

    Attributes:
        stage: What its worker is at: factoring, composing, probing or bisecting.
        stage_done: Units of the stage that are done: edits, probe items or probe runs.
        stage_of: Units there are; None where nobody knows.
    """

    id: int
    model_id: int
    state: BatchState
    fence: int
    worker: UUID
    size: int
    claimed_at: datetime
    finished_at: datetime | None
    stage: str | None = None
    stage_done: int | None = None
    stage_of: int | None = None
    stage_began_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch with its edits."""

    batch: Batch
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a batch whose factors one worker computes.

    Attributes:
        token: Names this take; `record_factors` with an older token changes nothing.
    """

    token: int
    batch_id: int
    model_id: int
    worker: UUID
    edits: tuple[Edit, ...]
    until: datetime


@dataclass(frozen=True, slots=True)
class FactorRecord:
    """A stored factor of one edit, as the worker reports it.

    Attributes:
        digest: Content digest in the factor store.
        rows: Number of rows over all matrices.
        bytes: Size in the store.
        clipped: Values clipped by the grid.
        meta: Anything worth keeping (loss before, seconds).
    """

    edit_id: int
    digest: str
    rows: int = 0
    bytes: int = 0
    clipped: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far the factors of a batch are."""

    total: int
    factored: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True)
class Version:
    """One row of the version chain.

    Attributes:
        number: Contiguous per model; 0 is the base.
        digest: Identity: base + editor + composition + set of factor digests.
        path: Folder in the version store, or None for version 0.
        weights_digest: Digest of the materialised weights, with the `platform` that made them.
        gate: Outcome so far; `overridden_by` names who let it through in spite of it.
        edit_count: Size of the edit set.
        collected_at: When its files were collected, or None.
        held: True while a hold protects it.
    """

    id: int
    model_id: int
    number: int
    parent_id: int | None
    parent_number: int | None
    digest: str
    base_digest: str
    editor_digest: str
    composition: Mapping[str, Any]
    batch_id: int | None
    fence: int | None
    path: str | None
    bytes: int
    weights_digest: str | None
    platform: str | None
    edit_count: int
    gate: GateOutcome
    overridden_by: str | None
    held: bool
    collected_at: datetime | None
    created_by: str
    created_at: datetime
    meta: Mapping[str, Any]

    @property
    def proven(self) -> bool:
        """True where the gate passed or an approver overrode it, and nobody took that back."""
        told = self.gate is GateOutcome.PASS or self.overridden_by is not None
        return told and not self.withdrawn

    @property
    def withdrawn(self) -> bool:
        """True where a person took its proof back after the gate let it through."""
        return "withdrawn" in self.meta


@dataclass(frozen=True, slots=True)
class SetMember:
    """One edit of a version's set."""

    edit_id: int
    factor_digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next version of a model should be.

    Attributes:
        parent: Version to build on.
        adds: Edits to add, with their factors.
        removes: Edits of the parent's set to take out (superseded by `adds`, or reverted).
    """

    parent: Version
    adds: tuple[SetMember, ...]
    removes: tuple[SetMember, ...]


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A built version, ready to be committed.

    Attributes:
        plan: The plan it was built from.
        batch_id: The batch it came from, or None (revert, rebase).
        footing: The model with the base, editor and composition it was built with, where they are
            not the model's present ones (rebase).
    """

    plan: Plan
    digest: str
    path: str
    bytes: int = 0
    batch_id: int | None = None
    weights_digest: str | None = None
    platform: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    footing: Model | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed version, and the lease with its next fence."""

    version: Version
    lease: Lease


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One line of an alias' history (numbers, not ids)."""

    alias: str
    kind: str
    from_number: int | None
    to_number: int
    actor: str
    approved_by: str | None
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    """A moving name for a version."""

    model_id: int
    name: str
    version_id: int
    number: int
    protected: bool
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """Something a person asked a worker to do beside editing."""

    id: int
    model_id: int | None
    kind: str
    payload: Mapping[str, Any]
    state: JobState
    result: Mapping[str, Any] | None
    error: str | None
    requested_by: str
    worker: UUID | None
    attempts: int
    token: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process known to the ledger."""

    instance: UUID
    name: str
    host: str
    pid: int
    state: str
    info: Mapping[str, Any]
    started_at: datetime
    heartbeat_at: datetime
    alive: bool


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One link of the trail.

    Attributes:
        seq: Contiguous from 1.
        body: The canonical JSON that is hashed; holds seq, at, kind, actor, model, subject,
            data and prev.
        hash: sha256 of `body`, hex.
    """

    seq: int
    at: datetime
    kind: str
    actor: str
    model_id: int | None
    subject: str | None
    data: Mapping[str, Any]
    body: str
    prev: str
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant.

    Attributes:
        rule: Stable name of the invariant.
        thing: What breaks it ("edit 12", "version 3 of demo").
        problem: What is wrong, with what was expected.
    """

    rule: str
    thing: str
    problem: str
