"""What every request needs: the database, and the model and version it is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from ledger import db, models, versions
from ledger.errors import NoSuchModel
from ledger.records import Model, Version
from service.errors import UserError


@dataclass(frozen=True, slots=True)
class Session:
    """An open door to the ledger.

    Attributes:
        engine: Connections to Postgres.
        url: Where it is.
        home: The home folder of this process.
    """

    engine: Engine
    url: str
    home: Path

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Opens one transaction; everything in it happens or nothing does."""
        with db.transaction(self.engine) as connection:
            yield connection


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
