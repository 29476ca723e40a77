"""The same request again adds nothing, a key names one content, and one may correct one's own."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SQL = Path(__file__).parent.parent / "sql"
ARGUMENTS = (
    "bigint, text, text, text, text, text, jsonb, jsonb, jsonb, text, text, text, text, bytea,"
    " text, smallint, timestamptz, timestamptz"
)


def _run(statements: str) -> None:
    op.get_bind().connection.driver_connection.execute(statements)


def upgrade() -> None:
    op.execute(f"DROP FUNCTION submit_edit({ARGUMENTS})")
    _run((SQL / "0004_submit_edit.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute(f"DROP FUNCTION submit_edit({ARGUMENTS}, bigint)")
    op.execute("DROP FUNCTION edit_content(edits)")
    first = (SQL / "0001_functions.sql").read_text(encoding="utf-8")
    start = first.index("CREATE FUNCTION submit_edit(")
    _run(first[start : first.index("END $$;", start) + len("END $$;")])
