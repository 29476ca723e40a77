"""Postgres no longer writes the canonical JSON of events: before version 16 it lost small numbers.

`10::numeric ^ -28` is 0 there, so numbers below 1e-17 were written ten times too large. The ledger
hands over the text of an event's data instead.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CANONICAL_JSON = Path(__file__).parent.parent / "sql" / "0001_canonical_json.sql"


def upgrade() -> None:
    op.execute("DROP FUNCTION audit_append(text, text, bigint, text, jsonb, int8multirange)")
    op.execute("DROP FUNCTION jcs(jsonb)")
    op.execute("DROP FUNCTION jcs_number(numeric)")


def downgrade() -> None:
    statements = CANONICAL_JSON.read_text(encoding="utf-8")
    op.get_bind().connection.driver_connection.execute(statements)
