"""What every command needs: the database, the model it is about, and who is asking."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from gateway.errors import NotRunning, UserError
from gateway.rundir import RunDir, make_home
from ledger import db, migrate, models, versions
from ledger.errors import NoSuchModel
from ledger.home import normalise_url
from ledger.records import Model, Version

POOL_SIZE = 2


def actor() -> str:
    """Names who is asking, for the audit trail: MEND_ACTOR, else the login name."""
    named = os.environ.get("MEND_ACTOR", "").strip()
    if named:
        return named
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return f"uid-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Session:
    """An open door to the ledger.

    Attributes:
        engine: Connections to Postgres.
        url: Where it is.
        home: The home folder of this command.
    """

    engine: Engine
    url: str
    home: Path

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Opens one transaction; everything in it happens or nothing does."""
        with db.transaction(self.engine) as connection:
            yield connection


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


def find_model(connection: Connection, name: str | None) -> Model:
    """Returns the named model, or the only one there is.

    Raises:
        NoSuchModel: It is not registered; the message lists what is.
        UserError: No name was given and there are several models, or none.
    """
    known = models.list_all(connection)
    names = ", ".join(model.name for model in known) or "none"
    if name is not None:
        for model in known:
            if name in (model.name, str(model.id)):
                return model
        raise NoSuchModel(
            f"no model is called {name!r}; registered: {names}; add one with `mend model register`"
        )
    if len(known) == 1:
        return known[0]
    if not known:
        raise UserError(
            "no model is registered yet; add one with "
            "`mend model register NAME --source smollm2 --editor FILE`"
        )
    raise UserError(f"there are several models: say which with --model ({names})")


def find_version(connection: Connection, model: Model, name: str) -> Version:
    """Returns a version by number, alias, `previous` or digest prefix."""
    return versions.find(connection, model.id, name)
