"""What every part of the queue's benchmark needs: a server, a model, requests, a full queue."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from ledger import migrate, models
from ledger.db import transaction
from ledger.embedded import EmbeddedPostgres
from ledger.home import libpq, normalise_url
from ledger.requests import EditRequest

_BASE, _EDITOR = "sha256:" + "b" * 64, "sha256:" + "e" * 64
_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    bulk: int = 20_000
    bulk_turns: int = 5
    single: int = 300
    few: int = 1_000
    many: int = 1_000_000
    rounds: int = 20
    wakes: int = 100
    drain: int = 100_000
    shared_batch: int = 192
    shared_turns: int = 3


QUICK = Sizes(
    bulk=5_000,
    bulk_turns=3,
    single=100,
    many=50_000,
    rounds=6,
    wakes=20,
    drain=5_000,
    shared_batch=64,
    shared_turns=1,
)


def new_requests(count: int, name: str) -> list[EditRequest]:
    """Validated requests of different facts."""
    return [
        EditRequest(
            prompt=f"The capital of {name} country {i} is",
            target=f"City {i}",
            subject=f"{name} country {i}",
            relation="capital",
            paraphrases=(f"What is the capital of {name} country {i}?",),
            locality=("What sports team does Messi play for?",),  # type: ignore[arg-type]  # a validator takes plain text
            idempotency_key=f"{name}-{i}",
            reason="benchmark",
        )
        for i in range(count)
    ]


def fill(engine: Engine, model_id: int, count: int) -> None:
    """Queue very many edits with one statement (their submission is not what is measured)."""
    with transaction(engine) as conn:
        conn.execute(
            text(
                """
                INSERT INTO edits (model_id, state, prompt, target, source, submitted_by, fact_key,
                                   salt, content_digest, priority)
                SELECT :model, 'queued', 'The capital of country ' || n || ' is', 'City ' || n,
                       'bench', 'bench', CAST(md5(:words || '-' || n || '-' || random()) AS uuid),
                       CAST('salt' AS bytea), md5(n::text), n % 5
                  FROM generate_series(1, :count) AS n
                """
            ),
            {"model": model_id, "words": str(model_id), "count": count},
        )


def new_model(engine: Engine, name: str) -> int:
    """Register a model that nothing is ever computed with; its id."""
    with transaction(engine) as conn:
        editor = models.register_editor(
            conn, digest=_EDITOR, kind="ultra", base_digest=_BASE, path="-", actor="bench"
        )
        model = models.register(
            conn,
            name=name,
            source="-",
            base_digest=_BASE,
            editor_id=editor.id,
            composition={},
            version_digest="sha256:0",
            policy={},
            policy_digest="sha256:p",
            actor="bench",
        )
    return model.id


def settle(engine: Engine) -> None:
    """Let the server write out what is behind it, and have its log's files ready for what comes.

    A server that has just begun makes and zeroes a new file for every 16 MiB of its log, in the
    middle of whatever is measured; one that has run for a while takes old ones.
    """
    with (
        contextlib.suppress(ProgrammingError),  # a server of somebody else's: not ours to say
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
    ):
        conn.execute(text("CHECKPOINT"))


def settings(engine: Engine) -> dict[str, str]:
    """The server's settings that a reader of the numbers asks for."""
    with transaction(engine) as conn:
        return {
            name: str(conn.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar())
            for name in _SETTINGS
        }


@contextlib.contextmanager
def server() -> Iterator[str]:
    """URL of a fresh migrated database."""
    given = os.environ.get("DATABASE_URL")
    name = f"mend_bench_{os.getpid()}"
    with contextlib.ExitStack() as stack:
        if given:
            admin = normalise_url(given)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mend-bench-"))
            postgres = EmbeddedPostgres(Path(folder) / "pg" / "pgdata")
            admin = stack.enter_context(postgres).url("mend")
        with psycopg.connect(libpq(admin), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_url(admin).set(database=name).render_as_string(hide_password=False)
        try:
            migrate.upgrade(url)
            yield url
        finally:
            with psycopg.connect(libpq(admin), autocommit=True) as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
