"""The tables, as SQLAlchemy Core metadata; `alembic check` keeps them equal to the migrations.

Rules live in the schema: enums, CHECKs, and partial unique indexes named for the rule they keep.
Functions and triggers (audit chain, allowed moves, submission) are in `migrations/sql`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, JSONB, UUID

from ledger.states import BatchState, ChangeOp, EditState, GateOutcome, JobState

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _enum(
    kind: type[EditState | BatchState | ChangeOp | GateOutcome | JobState], name: str
) -> Enum:
    return Enum(kind, name=name, metadata=metadata, values_callable=lambda e: [m.value for m in e])


edit_state = _enum(EditState, "edit_state")
batch_state = _enum(BatchState, "batch_state")
gate_outcome = _enum(GateOutcome, "gate_outcome")
job_state = _enum(JobState, "job_state")
change_op = _enum(ChangeOp, "change_op")


def _id() -> Column[int]:
    return Column("id", BigInteger, Identity(always=False), primary_key=True)


def _ref(name: str, target: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, ForeignKey(target), nullable=nullable)


def _moment(
    name: str, *, nullable: bool = True, now: bool = False, default: str | None = None
) -> Column[object]:
    chosen = "clock_timestamp()" if now else default
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable and not now,
        server_default=text(chosen) if chosen else None,
    )


def _json(name: str, default: str | None = "'{}'::jsonb") -> Column[object]:
    return Column(
        name,
        JSONB,
        nullable=default is None,
        server_default=text(default) if default else None,
    )


editors = Table(
    "editors",
    metadata,
    _id(),
    Column("digest", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    Column("path", Text, nullable=False),
    _json("meta"),
    _moment("created_at", now=True),
)

models = Table(
    "models",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("source", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    _ref("editor_id", "editors.id"),
    _json("composition"),
    _json("policy"),
    Column("policy_digest", Text, nullable=False),
    _json("settings"),
    Column("approval", Boolean, nullable=False, server_default=text("false")),
    Column("auto_promote", Boolean, nullable=False, server_default=text("true")),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("max_attempts", Integer, nullable=False, server_default=text("5")),
    _moment("created_at", now=True),
    Column("problem", Text),
    _moment("problem_at"),
    CheckConstraint("(problem IS NULL) = (problem_at IS NULL)", name="a_problem_has_a_time"),
    CheckConstraint("name <> '' AND length(name) <= 200", name="model_name_is_short"),
    CheckConstraint("max_attempts > 0", name="attempts_are_limited"),
)

workers = Table(
    "workers",
    metadata,
    Column("instance", UUID(as_uuid=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("state", Text, nullable=False),
    _json("info"),
    _moment("started_at", now=True),
    _moment("heartbeat_at", now=True),
    CheckConstraint(
        "state IN ('starting', 'idle', 'busy', 'stopping', 'stopped', 'lost')",
        name="worker_state_is_known",
    ),
)

leases = Table(
    "leases",
    metadata,
    Column("model_id", BigInteger, ForeignKey("models.id"), primary_key=True),
    Column("worker", UUID(as_uuid=True)),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("ttl_seconds", Double, nullable=False, server_default=text("60")),
    _moment("until"),
    CheckConstraint("(worker IS NULL) = (until IS NULL)", name="a_held_lease_runs_out"),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _ref("model_id", "models.id"),
    Column("state", batch_state, nullable=False, server_default=text("'open'")),
    Column("fence", BigInteger, nullable=False),
    Column("worker", UUID(as_uuid=True), nullable=False),
    Column("size", Integer, nullable=False),
    Column("cohort", BigInteger),
    _moment("claimed_at", now=True),
    _moment("finished_at"),
    Column("stage", Text),
    Column("stage_done", Integer),
    Column("stage_of", Integer),
    _moment("stage_began_at"),
    CheckConstraint(
        "stage IN ('factoring', 'composing', 'probing', 'bisecting')", name="stage_is_known"
    ),
    CheckConstraint("size > 0", name="a_batch_is_not_empty"),
    CheckConstraint("(state = 'open') = (finished_at IS NULL)", name="a_closed_batch_has_an_end"),
    Index(
        "one_open_batch_per_model",
        "model_id",
        unique=True,
        postgresql_where=text("state = 'open'"),
    ),
)

edits = Table(
    "edits",
    metadata,
    _id(),
    # What has one length and what indexes hold come first: entries are made without the texts.
    # No foreign key: submission checks the model under its lock, and a per-row check halves COPY.
    Column("model_id", BigInteger, nullable=False),
    # A digest of 128 bits: half the index, half the cost of an entry, that its text would be.
    Column("fact_key", UUID(as_uuid=True), nullable=False),
    Column("state", edit_state, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    # The transaction's time: a volatile default would take COPY's multi-row insertion away.
    _moment("created_at", nullable=False, default="now()"),
    _moment("updated_at", nullable=False, default="now()"),
    _moment("not_before"),
    _moment("expires_at"),
    Column("batch_id", BigInteger),
    Column("cohort", BigInteger),
    Column("superseded_by", BigInteger),
    Column("idempotency_key", Text(collation="C")),
    Column("prompt", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("subject", Text),
    Column("relation", Text),
    _json("paraphrases", "'[]'::jsonb"),
    _json("locality", "'[]'::jsonb"),
    _json("portability", "'[]'::jsonb"),
    Column("reason", Text),
    Column("source", Text, nullable=False),
    Column("submitted_by", Text, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("content_digest", Text, nullable=False),
    Column("error", Text),
    _json("evidence", None),
    CheckConstraint("prompt <> '' AND target <> ''", name="an_edit_has_prompt_and_target"),
    CheckConstraint(
        "state <> 'claimed' OR batch_id IS NOT NULL", name="a_claimed_edit_has_a_batch"
    ),
    CheckConstraint(
        "state <> 'quarantined' OR evidence IS NOT NULL", name="a_quarantine_keeps_its_evidence"
    ),
    CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="a_failure_says_why"),
    CheckConstraint(
        "state <> 'submitted' OR not_before IS NOT NULL", name="a_submitted_edit_waits_for_a_time"
    ),
    # Key first: one comparison a step, not two. (Facts, digests, would scatter a model's entries.)
    Index(
        "one_edit_per_idempotency_key",
        "idempotency_key",
        "model_id",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index(
        "one_waiting_edit_per_fact",
        "model_id",
        "fact_key",
        unique=True,
        postgresql_where=text("state IN ('submitted', 'queued')"),
    ),
    Index(
        "one_claimed_edit_per_fact",
        "model_id",
        "fact_key",
        unique=True,
        postgresql_where=text("state = 'claimed'"),
    ),
    Index(
        "one_live_edit_per_fact",
        "model_id",
        "fact_key",
        unique=True,
        postgresql_where=text("state = 'live'"),
    ),
    Index(
        "edits_to_claim",
        "model_id",
        text("priority DESC"),
        "id",
        postgresql_where=text("state = 'queued'"),
    ),
    Index("edits_due", "model_id", "not_before", postgresql_where=text("state = 'submitted'")),
    Index(
        "edits_expiring",
        "expires_at",
        postgresql_where=text(
            "expires_at IS NOT NULL AND state IN ('submitted', 'awaiting_approval', 'queued')"
        ),
    ),
    Index("edits_suspected", "cohort", postgresql_where=text("cohort IS NOT NULL")),
    Index("edits_of_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
    Index(
        "edits_holding_a_fact",
        "model_id",
        "fact_key",
        postgresql_where=text("state IN ('claimed', 'applied', 'live')"),
    ),
    Index(
        "edits_for_a_person",
        "model_id",
        "state",
        "id",
        postgresql_where=text(
            "state IN ('awaiting_approval', 'claimed', 'applied', 'quarantined', 'failed')"
        ),
    ),
)

factors = Table(
    "factors",
    metadata,
    Column("edit_id", BigInteger, ForeignKey("edits.id"), primary_key=True),
    Column("base_digest", Text, primary_key=True),
    Column("editor_digest", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("clipped", Integer, nullable=False),
    _json("meta"),
    _moment("created_at", now=True),
)

batch_edits = Table(
    "batch_edits",
    metadata,
    Column("batch_id", BigInteger, ForeignKey("batches.id"), primary_key=True),
    Column("edit_id", BigInteger, ForeignKey("edits.id"), primary_key=True),
    Column("factor_digest", Text),
    Column("error", Text),
    Column("token", BigInteger, nullable=False, server_default=text("0")),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("worker", UUID(as_uuid=True)),
    _moment("until"),
    CheckConstraint("(worker IS NULL) = (until IS NULL)", name="a_taken_chunk_runs_out"),
    Index("edits_in_batch_by_edit", "edit_id"),
    Index(
        "edits_without_factor",
        "batch_id",
        "edit_id",
        postgresql_where=text("factor_digest IS NULL AND error IS NULL"),
    ),
)

versions = Table(
    "versions",
    metadata,
    _id(),
    _ref("model_id", "models.id"),
    Column("number", Integer, nullable=False),
    _ref("parent_id", "versions.id", nullable=True),
    Column("digest", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    Column("editor_digest", Text, nullable=False),
    _json("composition"),
    _ref("batch_id", "batches.id", nullable=True),
    Column("fence", BigInteger),
    Column("path", Text),
    Column("bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("weights_digest", Text),
    Column("platform", Text),
    Column("edit_count", Integer, nullable=False),
    Column("gate", gate_outcome, nullable=False, server_default=text("'pending'")),
    Column("overridden_by", Text),
    _moment("collected_at"),
    Column("created_by", Text, nullable=False),
    _json("meta"),
    _moment("created_at", now=True),
    UniqueConstraint("model_id", "number", name="one_version_per_number"),
    UniqueConstraint("model_id", "fence", name="one_version_per_fence"),
    CheckConstraint("(number = 0) = (parent_id IS NULL)", name="only_the_base_has_no_parent"),
    CheckConstraint("number = 0 OR path IS NOT NULL", name="a_version_has_files"),
    CheckConstraint("number = 0 OR fence IS NOT NULL", name="a_version_has_a_fence"),
    CheckConstraint("number >= 0 AND edit_count >= 0", name="numbers_are_not_negative"),
    Index("versions_by_digest", "model_id", "digest"),
    Index("versions_by_parent", "parent_id"),
)

version_edits = Table(
    "version_edits",
    metadata,
    Column("version_id", BigInteger, ForeignKey("versions.id"), primary_key=True),
    Column("edit_id", BigInteger, ForeignKey("edits.id"), primary_key=True),
    Column("op", change_op, nullable=False),
    Column("factor_digest", Text, nullable=False),
    Index("versions_by_edit", "edit_id"),
)

probe_runs = Table(
    "probe_runs",
    metadata,
    _id(),
    _ref("version_id", "versions.id"),
    Column("suite_digest", Text, nullable=False),
    _json("summary"),
    _moment("created_at", now=True),
    Index("probe_runs_by_version", "version_id"),
)

probe_results = Table(
    "probe_results",
    metadata,
    Column("run_id", BigInteger, ForeignKey("probe_runs.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _json("result"),
)

gates = Table(
    "gates",
    metadata,
    _id(),
    _ref("version_id", "versions.id"),
    Column("outcome", gate_outcome, nullable=False),
    Column("policy_digest", Text, nullable=False),
    Column("suite_digest", Text, nullable=False),
    _json("checks", "'[]'::jsonb"),
    _json("scores"),
    Column("actor", Text, nullable=False),
    Column("override_reason", Text),
    _moment("created_at", now=True),
    Index("gates_by_version", "version_id"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model_id", BigInteger, ForeignKey("models.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    _ref("version_id", "versions.id"),
    Column("protected", Boolean, nullable=False, server_default=text("false")),
    _moment("moved_at", now=True),
    CheckConstraint(
        "name ~ '^[a-z][a-z0-9._-]{0,62}$' AND name NOT IN ('previous', 'base')",
        name="alias_name_is_plain",
    ),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    _id(),
    _ref("model_id", "models.id"),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    _ref("from_version_id", "versions.id", nullable=True),
    _ref("to_version_id", "versions.id"),
    Column("actor", Text, nullable=False),
    Column("approved_by", Text),
    Column("reason", Text, nullable=False),
    _moment("at", now=True),
    CheckConstraint("kind IN ('create', 'move', 'promote', 'rollback')", name="move_kind_is_known"),
    Index("alias_moves_in_order", "model_id", "name", "id"),
)

holds = Table(
    "holds",
    metadata,
    _id(),
    _ref("version_id", "versions.id"),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _moment("created_at", now=True),
    _moment("released_at"),
    Index(
        "one_hold_per_version",
        "version_id",
        unique=True,
        postgresql_where=text("released_at IS NULL"),
    ),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _ref("model_id", "models.id", nullable=True),
    Column("kind", Text, nullable=False),
    _json("payload"),
    Column("state", job_state, nullable=False, server_default=text("'queued'")),
    _json("result", None),
    Column("error", Text),
    Column("requested_by", Text, nullable=False),
    Column("worker", UUID(as_uuid=True)),
    Column("token", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("max_attempts", SmallInteger, nullable=False, server_default=text("3")),
    _moment("until"),
    _moment("created_at", now=True),
    _moment("finished_at"),
    CheckConstraint(
        "(state = 'running') = (until IS NOT NULL)", name="only_a_running_job_has_a_lease"
    ),
    CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="a_failed_job_says_why"),
    CheckConstraint(
        "(state IN ('queued', 'running')) = (finished_at IS NULL)", name="a_finished_job_has_an_end"
    ),
    Index("jobs_to_claim", "id", postgresql_where=text("state = 'queued'")),
    Index("jobs_running", "until", postgresql_where=text("state = 'running'")),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="there_is_one_head"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _moment("at", nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("model_id", BigInteger),
    Column("subject", Text),
    Column("edits", INT8MULTIRANGE),
    Column("body", Text, nullable=False),
    Column("prev", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("actor <> ''", name="someone_did_it"),
    Index("no_fork", "prev", unique=True),
    Index("audit_by_subject", "subject", "seq", postgresql_where=text("subject IS NOT NULL")),
    Index(
        "audit_by_edit",
        "edits",
        postgresql_using="gist",
        postgresql_where=text("edits IS NOT NULL"),
    ),
)
