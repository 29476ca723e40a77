"""Bring a database to the schema this code needs, and refuse to work on any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

import migrations
from ledger.db import engine_from_url, text, transaction
from ledger.errors import PostgresTooOld, SchemaMissing, SchemaNewer, SchemaOlder

SMALLEST_POSTGRES = 15
"""The oldest major version of Postgres that the ledger is tested on."""

_Action = Callable[[Config], None]
_UPGRADE_LOCK = 1296387649  # an arbitrary constant of ours: one upgrade at a time


def config() -> Config:
    """Alembic's configuration for the migrations that ship with the code."""
    made = Config()
    assert migrations.__file__ is not None
    made.set_main_option("script_location", str(Path(migrations.__file__).parent))
    made.set_main_option("path_separator", "os")
    return made


def head() -> str:
    """Revision this code needs."""
    found = ScriptDirectory.from_config(config()).get_current_head()
    assert found is not None
    return found


def current(engine: Engine) -> str | None:
    """Revision the database has, or None.

    Raises:
        PostgresTooOld: The server is older than `SMALLEST_POSTGRES`.
    """
    with transaction(engine) as connection:
        _refuse_old_server(connection)
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up; two at once wait for each other.

    Raises:
        PostgresTooOld: The server is older than `SMALLEST_POSTGRES`.
        SchemaNewer: The database is ahead of this code.
    """
    _run(url, lambda made: command.upgrade(made, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to `revision` ("base" drops everything)."""
    _run(url, lambda made: command.downgrade(made, revision))


def check(engine: Engine) -> None:
    """Refuse a schema that is not the one this code needs.

    Raises:
        PostgresTooOld: The server is older than `SMALLEST_POSTGRES`.
        SchemaMissing: No migration has run.
        SchemaOlder: The database is behind the code.
        SchemaNewer: The database is ahead of the code.
    """
    found, wanted = current(engine), head()
    if found == wanted:
        return
    name = engine.url.database
    if found is None:
        raise SchemaMissing(f"database {name!r} has no tables of ours yet: run 'mend up' once")
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if found in known:
        raise SchemaOlder(
            f"database {name!r} has schema {found}, this code needs {wanted}: "
            "stop the workers and run 'mend up' to migrate"
        )
    raise SchemaNewer(
        f"database {name!r} has schema {found}, which this code ({wanted}) does not know: "
        "install the newer release it was migrated with"
    )


def _run(url: str, action: _Action) -> None:
    engine = engine_from_url(url, pool_size=1, application_name="mend-migrate")
    try:
        with transaction(engine) as connection:
            _refuse_old_server(connection)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            _refuse_unknown(connection, engine)
            made = config()
            made.attributes["connection"] = connection
            action(made)
    finally:
        engine.dispose()


def _refuse_old_server(connection: Connection) -> None:
    found = connection.dialect.server_version_info
    assert found is not None, "every connected Postgres names its version"
    if int(found[0]) < SMALLEST_POSTGRES:
        raise PostgresTooOld(
            f"database {connection.engine.url.database!r} is on Postgres {found[0]}, the ledger "
            f"needs {SMALLEST_POSTGRES} or newer: upgrade the server or name another one in "
            "DATABASE_URL"
        )


def _refuse_unknown(connection: Connection, engine: Engine) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaNewer(
            f"database {engine.url.database!r} has schema {found}, which this code does not know: "
            "install the newer release it was migrated with"
        )
