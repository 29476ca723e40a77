"""The workers known to the ledger. Instances are told apart by uuid: names may repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import rows
from ledger.db import text
from ledger.records import Worker

STALE_SECONDS = 30.0

_SELECT = """
    SELECT w.instance, w.name, w.host, w.pid, w.state, w.info, w.started_at, w.heartbeat_at,
           w.state NOT IN ('stopped', 'lost')
               AND w.heartbeat_at > clock_timestamp() - make_interval(secs => :stale) AS alive
      FROM workers AS w"""


def register(
    conn: Connection,
    *,
    name: str,
    host: str,
    pid: int,
    info: Mapping[str, Any] | None = None,
    instance: UUID | None = None,
) -> Worker:
    """Make a worker known; its `instance` is what leases, chunks and jobs carry."""
    chosen = instance or uuid4()
    conn.execute(
        text(
            """
            INSERT INTO workers (instance, name, host, pid, state, info)
            VALUES (:instance, :name, :host, :pid, 'starting', :info)
            ON CONFLICT (instance) DO UPDATE SET name = excluded.name, host = excluded.host,
                pid = excluded.pid, state = 'starting', info = excluded.info,
                heartbeat_at = clock_timestamp()
            """
        ),
        {
            "instance": chosen,
            "name": name,
            "host": host,
            "pid": pid,
            "info": Jsonb(dict(info or {})),
        },
    )
    return get(conn, chosen)


def get(conn: Connection, instance: UUID, *, stale_after: float = STALE_SECONDS) -> Worker:
    """One worker."""
    row = conn.execute(
        text(f"{_SELECT} WHERE w.instance = :instance"),
        {"instance": instance, "stale": stale_after},
    ).one()
    return rows.worker(row)


def actor(conn: Connection, instance: UUID) -> str:
    """Who the audit trail names for a worker: its name, or its instance where none is known."""
    name = conn.execute(
        text("SELECT name FROM workers WHERE instance = :instance"), {"instance": instance}
    ).scalar_one_or_none()
    return f"worker:{name or instance}"


def heartbeat(
    conn: Connection, instance: UUID, state: str, info: Mapping[str, Any] | None = None
) -> bool:
    """Say that a worker lives; False where the ledger does not know it (register again).

    * `state`: starting, idle, busy or stopping.
    * `info`: Merged into what is known (model loaded, memory, …).
    """
    return bool(
        conn.execute(
            text(
                """
                UPDATE workers SET heartbeat_at = clock_timestamp(), state = :state,
                       info = info || :info
                 WHERE instance = :instance AND state <> 'stopped'
                """
            ),
            {"state": state, "info": Jsonb(dict(info or {})), "instance": instance},
        ).rowcount
    )


def stop(conn: Connection, instance: UUID) -> None:
    """Say that a worker stopped in good order."""
    conn.execute(
        text(
            "UPDATE workers SET state = 'stopped', heartbeat_at = clock_timestamp() "
            "WHERE instance = :instance"
        ),
        {"instance": instance},
    )


def mark_lost(conn: Connection, *, stale_after: float = STALE_SECONDS) -> int:
    """Mark workers whose heart stopped; one that beats again is simply alive again."""
    return conn.execute(
        text(
            """
            UPDATE workers SET state = 'lost' WHERE state NOT IN ('stopped', 'lost')
               AND heartbeat_at < clock_timestamp() - make_interval(secs => :stale)
            """
        ),
        {"stale": stale_after},
    ).rowcount


def list_workers(
    conn: Connection, *, stale_after: float = STALE_SECONDS, alive_only: bool = False
) -> list[Worker]:
    """Workers, newest first."""
    found = [
        rows.worker(row)
        for row in conn.execute(
            text(f"{_SELECT} ORDER BY w.started_at DESC LIMIT 1000"), {"stale": stale_after}
        )
    ]
    return [one for one in found if one.alive] if alive_only else found
