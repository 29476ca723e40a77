"""What keeps a model from being worked on, and how far its open batch is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("problem", sa.Text(), nullable=True))
    op.add_column("models", sa.Column("problem_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        "a_problem_has_a_time", "models", "(problem IS NULL) = (problem_at IS NULL)"
    )
    op.add_column("batches", sa.Column("stage", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("stage_done", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("stage_of", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("stage_began_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        "stage_is_known",
        "batches",
        "stage IN ('factoring', 'composing', 'probing', 'bisecting')",
    )


def downgrade() -> None:
    op.drop_constraint("stage_is_known", "batches")
    for name in ("stage_began_at", "stage_of", "stage_done", "stage"):
        op.drop_column("batches", name)
    op.drop_constraint("a_problem_has_a_time", "models")
    for name in ("problem_at", "problem"):
        op.drop_column("models", name)
