"""Alembic's entry point: migrates the connection or URL that `ledger.migrate` hands over."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine

from ledger.home import Home, normalise_url
from ledger.tables import metadata


def _ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
    """Leave alone what SQL files own and what other tools keep in the same database."""
    return not (kind == "table" and name == "alembic_version")


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=_ours,
        compare_type=True,
        compare_server_default=False,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Use the connection in the config, else DATABASE_URL or the running embedded server."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    url = context.config.get_main_option("sqlalchemy.url") or Home.from_env().resolve_database_url()
    engine = create_engine(normalise_url(url))
    with engine.connect() as connection:
        _run(connection)
    engine.dispose()


main()
