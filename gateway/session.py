"""What every command needs: the way to the database, and who is asking."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path

from gateway.rundir import RunDir, make_home
from ledger import db, migrate
from ledger.home import normalise_url
from service.errors import NotRunning
from service.session import Session

POOL_SIZE = 2


def actor() -> str:
    """Names who is asking, for the audit trail: MEND_ACTOR, else the login name."""
    named = os.environ.get("MEND_ACTOR", "").strip()
    if named:
        return named
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return f"uid-{os.getuid()}"


def database_url(home: Path) -> str:
    """Finds the ledger: DATABASE_URL, else the service running in this home.

    Raises:
        NotRunning: Neither is there.
    """
    given = os.environ.get("DATABASE_URL", "").strip()
    if given:
        return normalise_url(given)
    info = RunDir(home).read()
    if info is None:
        raise NotRunning(
            f"no service is running in {home}; start it with `mend up`, or set DATABASE_URL to "
            "your server"
        )
    return info.database_url


@contextlib.contextmanager
def open_session() -> Iterator[Session]:
    """Connects to the ledger and checks that its schema is the one this code needs.

    Raises:
        NotRunning: There is nothing to connect to.
        DatabaseDown: Postgres does not answer.
        SchemaError: The schema is missing, older or newer.
    """
    home = make_home(None)
    url = database_url(home)
    engine = db.engine_from_url(url, pool_size=POOL_SIZE, application_name="mend-cli")
    try:
        migrate.check(engine)
        yield Session(engine, url, home)
    finally:
        engine.dispose()
