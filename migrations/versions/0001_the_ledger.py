"""The ledger: every table, rule, function and trigger of the first release."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

edit_state = postgresql.ENUM(
    "submitted",
    "awaiting_approval",
    "queued",
    "claimed",
    "applied",
    "live",
    "rejected",
    "quarantined",
    "superseded",
    "reverted",
    "cancelled",
    "failed",
    name="edit_state",
    create_type=False,
)
batch_state = postgresql.ENUM(
    "open",
    "done",
    "returned",
    "lost",
    name="batch_state",
    create_type=False,
)
job_state = postgresql.ENUM(
    "queued",
    "running",
    "done",
    "failed",
    "cancelled",
    name="job_state",
    create_type=False,
)
gate_outcome = postgresql.ENUM(
    "pending",
    "pass",
    "fail",
    "inconclusive",
    name="gate_outcome",
    create_type=False,
)
change_op = postgresql.ENUM(
    "add",
    "remove",
    name="change_op",
    create_type=False,
)
ENUMS = (edit_state, batch_state, job_state, gate_outcome, change_op)
SQL = Path(__file__).parent.parent / "sql"


def _run(name: str) -> None:
    """Run a file of statements as it is (no parameters, no colon handling)."""
    op.get_bind().connection.driver_connection.execute((SQL / name).read_text(encoding="utf-8"))


def upgrade() -> None:
    for kind in ENUMS:
        kind.create(op.get_bind(), checkfirst=False)
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("edits", postgresql.INT8MULTIRANGE(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("prev", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("actor <> ''", name=op.f("someone_did_it")),
        sa.PrimaryKeyConstraint("seq", name=op.f("audit_pkey")),
    )
    op.create_index(
        "audit_by_edit",
        "audit",
        ["edits"],
        unique=False,
        postgresql_using="gist",
        postgresql_where=sa.text("edits IS NOT NULL"),
    )
    op.create_index(
        "audit_by_subject",
        "audit",
        ["subject", "seq"],
        unique=False,
        postgresql_where=sa.text("subject IS NOT NULL"),
    )
    op.create_index("no_fork", "audit", ["prev"], unique=True)
    op.create_table(
        "audit_head",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("there_is_one_head")),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_head_pkey")),
    )
    op.create_table(
        "editors",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column(
            "meta",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("editors_pkey")),
        sa.UniqueConstraint("digest", name=op.f("editors_digest_key")),
    )
    op.create_table(
        "edits",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("fact_key", sa.UUID(), nullable=False),
        sa.Column("state", edit_state, nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("cohort", sa.BigInteger(), nullable=True),
        sa.Column("superseded_by", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.Text(collation="C"), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("relation", sa.Text(), nullable=True),
        sa.Column(
            "paraphrases",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "locality",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "portability",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("content_digest", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint(
            "prompt <> '' AND target <> ''", name=op.f("an_edit_has_prompt_and_target")
        ),
        sa.CheckConstraint(
            "state <> 'claimed' OR batch_id IS NOT NULL", name=op.f("a_claimed_edit_has_a_batch")
        ),
        sa.CheckConstraint(
            "state <> 'failed' OR error IS NOT NULL", name=op.f("a_failure_says_why")
        ),
        sa.CheckConstraint(
            "state <> 'quarantined' OR evidence IS NOT NULL",
            name=op.f("a_quarantine_keeps_its_evidence"),
        ),
        sa.CheckConstraint(
            "state <> 'submitted' OR not_before IS NOT NULL",
            name=op.f("a_submitted_edit_waits_for_a_time"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("edits_pkey")),
    )
    op.create_index(
        "edits_due",
        "edits",
        ["model_id", "not_before"],
        unique=False,
        postgresql_where=sa.text("state = 'submitted'"),
    )
    op.create_index(
        "edits_expiring",
        "edits",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text(
            "expires_at IS NOT NULL AND state IN ('submitted', 'awaiting_approval', 'queued')"
        ),
    )
    op.create_index(
        "edits_for_a_person",
        "edits",
        ["model_id", "state", "id"],
        unique=False,
        postgresql_where=sa.text(
            "state IN ('awaiting_approval', 'claimed', 'applied', 'quarantined', 'failed')"
        ),
    )
    op.create_index(
        "edits_holding_a_fact",
        "edits",
        ["model_id", "fact_key"],
        unique=False,
        postgresql_where=sa.text("state IN ('claimed', 'applied', 'live')"),
    )
    op.create_index(
        "edits_of_batch",
        "edits",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "edits_suspected",
        "edits",
        ["cohort"],
        unique=False,
        postgresql_where=sa.text("cohort IS NOT NULL"),
    )
    op.create_index(
        "edits_to_claim",
        "edits",
        ["model_id", sa.literal_column("priority DESC"), "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "one_claimed_edit_per_fact",
        "edits",
        ["model_id", "fact_key"],
        unique=True,
        postgresql_where=sa.text("state = 'claimed'"),
    )
    op.create_index(
        "one_edit_per_idempotency_key",
        "edits",
        ["idempotency_key", "model_id"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "one_live_edit_per_fact",
        "edits",
        ["model_id", "fact_key"],
        unique=True,
        postgresql_where=sa.text("state = 'live'"),
    )
    op.create_index(
        "one_waiting_edit_per_fact",
        "edits",
        ["model_id", "fact_key"],
        unique=True,
        postgresql_where=sa.text("state IN ('submitted', 'queued')"),
    )
    op.create_table(
        "workers",
        sa.Column("instance", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "info",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "heartbeat_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "state IN ('starting', 'idle', 'busy', 'stopping', 'stopped', 'lost')",
            name=op.f("worker_state_is_known"),
        ),
        sa.PrimaryKeyConstraint("instance", name=op.f("workers_pkey")),
    )
    op.create_table(
        "factors",
        sa.Column("edit_id", sa.BigInteger(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("editor_digest", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("clipped", sa.Integer(), nullable=False),
        sa.Column(
            "meta",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("factors_edit_id_fkey")),
        sa.PrimaryKeyConstraint(
            "edit_id", "base_digest", "editor_digest", name=op.f("factors_pkey")
        ),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("editor_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "composition",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "policy",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column(
            "settings",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("approval", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("auto_promote", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("5"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("name <> '' AND length(name) <= 200", name=op.f("model_name_is_short")),
        sa.CheckConstraint("max_attempts > 0", name=op.f("attempts_are_limited")),
        sa.ForeignKeyConstraint(["editor_id"], ["editors.id"], name=op.f("models_editor_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("models_pkey")),
        sa.UniqueConstraint("name", name=op.f("models_name_key")),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("state", batch_state, server_default=sa.text("'open'"), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.UUID(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("cohort", sa.BigInteger(), nullable=True),
        sa.Column(
            "claimed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'open') = (finished_at IS NULL)", name=op.f("a_closed_batch_has_an_end")
        ),
        sa.CheckConstraint("size > 0", name=op.f("a_batch_is_not_empty")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("batches_model_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("batches_pkey")),
    )
    op.create_index(
        "one_open_batch_per_model",
        "batches",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("state", job_state, server_default=sa.text("'queued'"), nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("worker", sa.UUID(), nullable=True),
        sa.Column("token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), server_default=sa.text("3"), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (until IS NOT NULL)", name=op.f("only_a_running_job_has_a_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)",
            name=op.f("a_finished_job_has_an_end"),
        ),
        sa.CheckConstraint(
            "state <> 'failed' OR error IS NOT NULL", name=op.f("a_failed_job_says_why")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("jobs_model_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
    )
    op.create_index(
        "jobs_running",
        "jobs",
        ["until"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "jobs_to_claim", "jobs", ["id"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_table(
        "leases",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.UUID(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("ttl_seconds", sa.Double(), server_default=sa.text("60"), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(worker IS NULL) = (until IS NULL)", name=op.f("a_held_lease_runs_out")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("leases_model_id_fkey")),
        sa.PrimaryKeyConstraint("model_id", name=op.f("leases_pkey")),
    )
    op.create_table(
        "batch_edits",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("edit_id", sa.BigInteger(), nullable=False),
        sa.Column("factor_digest", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("losses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.UUID(), nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(worker IS NULL) = (until IS NULL)", name=op.f("a_taken_chunk_runs_out")
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("batch_edits_batch_id_fkey")
        ),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("batch_edits_edit_id_fkey")),
        sa.PrimaryKeyConstraint("batch_id", "edit_id", name=op.f("batch_edits_pkey")),
    )
    op.create_index("edits_in_batch_by_edit", "batch_edits", ["edit_id"], unique=False)
    op.create_index(
        "edits_without_factor",
        "batch_edits",
        ["batch_id", "edit_id"],
        unique=False,
        postgresql_where=sa.text("factor_digest IS NULL AND error IS NULL"),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("editor_digest", sa.Text(), nullable=False),
        sa.Column(
            "composition",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("weights_digest", sa.Text(), nullable=True),
        sa.Column("platform", sa.Text(), nullable=True),
        sa.Column("edit_count", sa.Integer(), nullable=False),
        sa.Column("gate", gate_outcome, server_default=sa.text("'pending'"), nullable=False),
        sa.Column("overridden_by", sa.Text(), nullable=True),
        sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column(
            "meta",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(number = 0) = (parent_id IS NULL)", name=op.f("only_the_base_has_no_parent")
        ),
        sa.CheckConstraint("number = 0 OR fence IS NOT NULL", name=op.f("a_version_has_a_fence")),
        sa.CheckConstraint("number = 0 OR path IS NOT NULL", name=op.f("a_version_has_files")),
        sa.CheckConstraint(
            "number >= 0 AND edit_count >= 0", name=op.f("numbers_are_not_negative")
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("versions_batch_id_fkey")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("versions_model_id_fkey")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["versions.id"], name=op.f("versions_parent_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("versions_pkey")),
        sa.UniqueConstraint("model_id", "fence", name="one_version_per_fence"),
        sa.UniqueConstraint("model_id", "number", name="one_version_per_number"),
    )
    op.create_index("versions_by_digest", "versions", ["model_id", "digest"], unique=False)
    op.create_index("versions_by_parent", "versions", ["parent_id"], unique=False)
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("from_version_id", sa.BigInteger(), nullable=True),
        sa.Column("to_version_id", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('create', 'move', 'promote', 'rollback')", name=op.f("move_kind_is_known")
        ),
        sa.ForeignKeyConstraint(
            ["from_version_id"], ["versions.id"], name=op.f("alias_moves_from_version_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("alias_moves_model_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["to_version_id"], ["versions.id"], name=op.f("alias_moves_to_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("alias_moves_pkey")),
    )
    op.create_index("alias_moves_in_order", "alias_moves", ["model_id", "name", "id"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("protected", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "moved_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "name ~ '^[a-z][a-z0-9._-]{0,62}$' AND name NOT IN ('previous', 'base')",
            name=op.f("alias_name_is_plain"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("aliases_model_id_fkey")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("aliases_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("aliases_pkey")),
    )
    op.create_table(
        "gates",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("outcome", gate_outcome, nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("suite_digest", sa.Text(), nullable=False),
        sa.Column(
            "checks",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "scores",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("override_reason", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("gates_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("gates_pkey")),
    )
    op.create_index("gates_by_version", "gates", ["version_id"], unique=False)
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("holds_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("holds_pkey")),
    )
    op.create_index(
        "one_hold_per_version",
        "holds",
        ["version_id"],
        unique=True,
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_table(
        "probe_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("suite_digest", sa.Text(), nullable=False),
        sa.Column(
            "summary",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("probe_runs_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("probe_runs_pkey")),
    )
    op.create_index("probe_runs_by_version", "probe_runs", ["version_id"], unique=False)
    op.create_table(
        "version_edits",
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("edit_id", sa.BigInteger(), nullable=False),
        sa.Column("op", change_op, nullable=False),
        sa.Column("factor_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["edit_id"], ["edits.id"], name=op.f("version_edits_edit_id_fkey")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("version_edits_version_id_fkey")
        ),
        sa.PrimaryKeyConstraint("version_id", "edit_id", name=op.f("version_edits_pkey")),
    )
    op.create_index("versions_by_edit", "version_edits", ["edit_id"], unique=False)
    op.create_table(
        "probe_results",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column(
            "result",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["probe_runs.id"], name=op.f("probe_results_run_id_fkey")
        ),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("probe_results_pkey")),
    )
    _run("0001_functions.sql")
    _run("0001_canonical_json.sql")


def downgrade() -> None:
    _run("0001_functions_down.sql")
    op.drop_table("probe_results")
    op.drop_table("version_edits")
    op.drop_table("probe_runs")
    op.drop_table("holds")
    op.drop_table("gates")
    op.drop_table("aliases")
    op.drop_table("alias_moves")
    op.drop_table("versions")
    op.drop_table("batch_edits")
    op.drop_table("leases")
    op.drop_table("jobs")
    op.drop_table("batches")
    op.drop_table("models")
    op.drop_table("factors")
    op.drop_table("workers")
    op.drop_index(
        "one_waiting_edit_per_fact",
        table_name="edits",
        postgresql_where=sa.text("state IN ('submitted', 'queued')"),
    )
    op.drop_index(
        "edits_holding_a_fact",
        table_name="edits",
        postgresql_where=sa.text("state IN ('claimed', 'applied', 'live')"),
    )
    op.drop_index(
        "edits_for_a_person",
        table_name="edits",
        postgresql_where=sa.text(
            "state IN ('awaiting_approval', 'claimed', 'applied', 'quarantined', 'failed')"
        ),
    )
    op.drop_index(
        "edits_expiring",
        table_name="edits",
        postgresql_where=sa.text(
            "expires_at IS NOT NULL AND state IN ('submitted', 'awaiting_approval', 'queued')"
        ),
    )
    op.drop_table("edits")
    op.drop_table("editors")
    op.drop_table("audit_head")
    op.drop_table("audit")
    for kind in ENUMS:
        kind.drop(op.get_bind(), checkfirst=False)
