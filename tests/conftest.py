"""Fixtures every room shares: one Postgres per session, one fresh migrated database per test.

`DATABASE_URL` picks an existing server; else our embedded one is started. Databases are copies of a
migrated template, which takes a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from sqlalchemy.engine import make_url

from ledger import migrate
from ledger.db import engine_from_url
from ledger.embedded import EmbeddedPostgres
from ledger.home import libpq, normalise_url

_numbers = itertools.count(1)

# Two shared cores are slow at times, which is no finding; the same examples on every run.
settings.register_profile(
    "mend", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mend")


class Server:
    """A Postgres server that makes databases for tests."""

    def __init__(self, url):
        self.admin_url = url
        self._prefix = f"mendtest_{os.getpid()}"
        self._template = f"{self._prefix}_template"
        self._made = []
        self._ready = False

    def url(self, database):
        return make_url(self.admin_url).set(database=database).render_as_string(hide_password=False)

    def _admin(self):
        return psycopg.connect(libpq(self.admin_url), autocommit=True)

    def empty(self):
        """URL of a new database without tables."""
        name = f"{self._prefix}_{next(_numbers)}"
        with self._admin() as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._made.append(name)
        return self.url(name)

    def fresh(self):
        """URL of a new migrated database."""
        if not self._ready:
            with self._admin() as admin:
                admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._template)))
            self._made.append(self._template)
            migrate.upgrade(self.url(self._template))
            self._ready = True
        name = f"{self._prefix}_{next(_numbers)}"
        with self._admin() as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(self._template)
                )
            )
        self._made.append(name)
        return self.url(name)

    def drop(self, url):
        name = make_url(url).database
        with contextlib.suppress(psycopg.Error), self._admin() as admin:
            admin.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
        if name in self._made:
            self._made.remove(name)

    def close(self):
        for name in list(self._made):
            self.drop(self.url(name))


@pytest.fixture(scope="session")
def embedded_postgres():
    """Our own Postgres, started once for the session."""
    root = Path(tempfile.mkdtemp(prefix="mend-pg-"))
    root.chmod(0o711)  # as "nobody", the server must be able to reach its folder below
    server = EmbeddedPostgres(root / "pg" / "pgdata", databases=("mend",))
    server.start()
    yield server
    server.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(request):
    """Makes databases on DATABASE_URL's server, else on the embedded one."""
    given = os.environ.get("DATABASE_URL")
    if given:
        url = normalise_url(given)
    else:
        url = request.getfixturevalue("embedded_postgres").url("mend")
    server = Server(url)
    yield server
    server.close()


@pytest.fixture(scope="session")
def database_url(postgres_server):
    """URL of an administrative database on the server under test."""
    return postgres_server.admin_url


@pytest.fixture
def ledger_url(postgres_server):
    """URL of a fresh migrated database."""
    url = postgres_server.fresh()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def empty_url(postgres_server):
    """URL of a fresh database without tables."""
    url = postgres_server.empty()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def engine(ledger_url):
    """An engine on a fresh migrated database."""
    made = engine_from_url(ledger_url)
    yield made
    made.dispose()
