"""Where everything of one installation lies, and which servers it uses.

`MEND_HOME` (default `$XDG_DATA_HOME/mend`, else `~/.local/share/mend`) holds the embedded
database, the version and factor stores, logs and the endpoint file that tells other processes of
the same user where the embedded server listens. `DATABASE_URL` and `BROKER_URL` switch to real
servers.
"""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ledger.errors import DatabaseDown

DRIVER = "postgresql+psycopg"


@dataclass(frozen=True, slots=True)
class Home:
    """Folders and servers of one installation.

    Attributes:
        root: MEND_HOME.
        database_url: DATABASE_URL as a SQLAlchemy URL, or None for the embedded server.
        broker_url: BROKER_URL, or None for pgmq in the database.
    """

    root: Path
    database_url: str | None = None
    broker_url: str | None = None

    @classmethod
    def from_env(cls) -> Self:
        """Read MEND_HOME, DATABASE_URL and BROKER_URL."""
        given = os.environ.get("MEND_HOME", "")
        root = Path(given).expanduser() if given else _data_home() / "mend"
        url = os.environ.get("DATABASE_URL", "")
        return cls(
            root=root.absolute(),
            database_url=normalise_url(url) if url else None,
            broker_url=os.environ.get("BROKER_URL") or None,
        )

    @property
    def pgdata(self) -> Path:
        """Data folder of the embedded server."""
        return self.root / "postgres" / "pgdata"

    @property
    def store(self) -> Path:
        """Root of the version and factor stores."""
        return self.root / "store"

    @property
    def versions(self) -> Path:
        """The version store."""
        return self.store / "versions"

    @property
    def factors(self) -> Path:
        """The factor store."""
        return self.store / "factors"

    @property
    def editors(self) -> Path:
        """Editor files made here."""
        return self.root / "editors"

    @property
    def logs(self) -> Path:
        """Log files of the processes."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Files that matter only while processes run."""
        return self.root / "run"

    @property
    def endpoint_path(self) -> Path:
        """File that says where the embedded server listens."""
        return self.run / "endpoint.json"

    def make(self) -> Self:
        """Create the folders (0700)."""
        for folder in (self.root, self.store, self.logs, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def write_endpoint(self, database_url: str) -> None:
        """Tell other processes where the embedded server listens."""
        self.make()
        unfinished = self.endpoint_path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(
            json.dumps({"database_url": database_url, "pid": os.getpid()}), encoding="utf-8"
        )
        unfinished.replace(self.endpoint_path)

    def clear_endpoint(self) -> None:
        """Forget the embedded server."""
        self.endpoint_path.unlink(missing_ok=True)

    def read_endpoint(self) -> str | None:
        """URL the embedded server was last said to have, or None. Whether it answers: connect."""
        try:
            found = json.loads(self.endpoint_path.read_text(encoding="utf-8"))
            return str(found["database_url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def resolve_database_url(self) -> str:
        """DATABASE_URL, else the running embedded server's.

        Raises:
            DatabaseDown: Neither is there.
        """
        url = self.database_url or self.read_endpoint()
        if url is None:
            raise DatabaseDown(
                f"no database: nothing runs for {self.root} and DATABASE_URL is not set; "
                "start the service with 'mend up' or set DATABASE_URL"
            )
        return url


def normalise_url(url: str) -> str:
    """A Postgres URL in any usual spelling, with our driver.

    Raises:
        DatabaseDown: Not a Postgres URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseDown(
            "DATABASE_URL is not a database URL: expected postgresql://user:password@host/database"
        ) from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise DatabaseDown(
            f"DATABASE_URL names {parsed.get_backend_name()!r}; only Postgres is supported: "
            "expected postgresql://user:password@host/database"
        )
    return parsed.set(drivername=DRIVER).render_as_string(hide_password=False)


def libpq(url: str) -> str:
    """A libpq connection string; pgmq loses `?host=` from URLs, so it must get this form."""
    parsed: URL = make_url(url)
    parts = {
        "host": parsed.host,
        "port": str(parsed.port) if parsed.port else None,
        "user": parsed.username,
        "password": parsed.password,
        "dbname": parsed.database,
    }
    for name, value in parsed.query.items():
        parts[name] = value if isinstance(value, str) else ",".join(value)
    return " ".join(f"{name}={_quoted(value)}" for name, value in parts.items() if value)


def _quoted(value: str) -> str:
    if value and not any(c in value for c in " '\\"):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _data_home() -> Path:
    given = os.environ.get("XDG_DATA_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given)
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            home = f"/tmp/mend-{os.geteuid()}"  # noqa: S108 - no HOME and no account: nowhere else to go
    return Path(home) / ".local" / "share"
