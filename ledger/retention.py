"""What must be kept: holds, and which versions' files may be collected.

Version and edit rows are kept for ever; only files go. A version is needed while an alias names
it, it could be what production rolls back to, a hold protects it, its gate has not spoken, or it
is among the newest ones.
"""

from __future__ import annotations

from sqlalchemy import Connection

from ledger import audit, rows, versions
from ledger.db import text
from ledger.errors import RequestInvalid, WrongState
from ledger.records import Version

KEEP_LAST = 10
KEEP_MOVES = 5  # versions production was lately: one command back must work


def hold(conn: Connection, version_id: int, *, actor: str, reason: str) -> None:
    """Protect a version from collection; holding it again does nothing.

    Raises:
        RequestInvalid: No reason.
        NoSuchVersion: None of this id.
        VersionCollected: Its files are gone: a hold would promise what is not there.
    """
    if not reason.strip():
        raise RequestInvalid("is empty; a hold needs a reason", field="reason")
    versions.get(conn, version_id)
    made = conn.execute(
        text(
            """
            INSERT INTO holds (version_id, actor, reason) VALUES (:version, :actor, :reason)
            ON CONFLICT (version_id) WHERE released_at IS NULL DO NOTHING
            """
        ),
        {"version": version_id, "actor": actor, "reason": reason},
    ).rowcount
    # Looked at after the row, which keeps a collection out until commit.
    version = versions.get(conn, version_id)
    versions.demand_files(version)
    if made:
        _record(conn, "version.held", version, actor, reason)


def release_hold(conn: Connection, version_id: int, *, actor: str, reason: str) -> None:
    """Lift a hold.

    Raises:
        WrongState: There is none.
    """
    version = versions.get(conn, version_id)
    lifted = conn.execute(
        text(
            "UPDATE holds SET released_at = clock_timestamp() "
            "WHERE version_id = :version AND released_at IS NULL"
        ),
        {"version": version_id},
    ).rowcount
    if not lifted:
        raise WrongState(f"version {version.number} is not held")
    _record(conn, "version.released", version, actor, reason)


def collectable(
    conn: Connection, model_id: int, *, keep_last: int = KEEP_LAST, keep_moves: int = KEEP_MOVES
) -> list[Version]:
    """Versions of a model whose files nothing needs, oldest first.

    Several versions may share one folder (the same set gives the same digest): one is listed only
    where no needed version shares its files.
    """
    found = conn.execute(
        text(
            f"""
            WITH needed AS ({_NEEDED})
            {rows.VERSION_SELECT}
             WHERE v.model_id = :model AND v.number > 0 AND v.collected_at IS NULL
               AND NOT EXISTS (SELECT FROM needed AS n
                                WHERE n.id = v.id OR n.path = v.path)
             ORDER BY v.number
            """
        ),
        {"model": model_id, "keep_last": keep_last, "keep_moves": keep_moves},
    )
    return [rows.version(row) for row in found]


_NEEDED = """
    SELECT v.id, v.path FROM versions AS v
     WHERE v.model_id = :model AND v.collected_at IS NULL AND (
           v.number = 0 OR v.gate IN ('pending', 'inconclusive')
        OR EXISTS (SELECT FROM aliases AS a WHERE a.version_id = v.id)
        OR EXISTS (SELECT FROM holds AS h WHERE h.version_id = v.id AND h.released_at IS NULL)
        OR v.id IN (SELECT parent_id FROM versions AS child
                      JOIN aliases AS a ON a.version_id = child.id)
        OR v.id IN (SELECT id FROM versions WHERE model_id = :model
                     ORDER BY number DESC LIMIT :keep_last)
        OR v.id IN (SELECT m.to_version_id FROM alias_moves AS m
                     WHERE m.model_id = :model AND m.name = 'production'
                     ORDER BY m.id DESC LIMIT :keep_moves))"""


def mark_collected(conn: Connection, version_id: int, *, actor: str) -> None:
    """Note, before deleting them, that a version's files are gone.

    Raises:
        WrongState: Something needs the version.
    """
    conn.execute(
        text("SELECT FROM versions WHERE id = :version FOR UPDATE"), {"version": version_id}
    )
    version = versions.get(conn, version_id)
    needed = conn.execute(
        text(
            f"SELECT EXISTS (SELECT FROM ({_NEEDED}) AS n WHERE n.id = :version)"  # noqa: S608 - our words
        ),
        {"model": version.model_id, "keep_last": 0, "keep_moves": 1, "version": version_id},
    ).scalar_one()
    if needed:
        raise WrongState(
            f"version {version.number} is needed (alias, its parent, hold or unjudged)"
        )
    done = conn.execute(
        text(
            "UPDATE versions SET collected_at = clock_timestamp() "
            "WHERE id = :version AND collected_at IS NULL"
        ),
        {"version": version_id},
    ).rowcount
    if done:
        _record(conn, "version.collected", version, actor, "retention")


def needed_paths(conn: Connection) -> set[str]:
    """Folders of every version that is not collected: a sweeper may delete all others."""
    return set(
        conn.execute(
            text("SELECT path FROM versions WHERE collected_at IS NULL AND path IS NOT NULL")
        ).scalars()
    )


def needed_factors(conn: Connection) -> set[str]:
    """Factor digests that some kept version's set or an unfinished edit needs."""
    return set(
        conn.execute(
            text(
                """
                SELECT f.digest FROM factors AS f JOIN edits AS e ON e.id = f.edit_id
                 WHERE e.state NOT IN ('rejected', 'cancelled')
                UNION
                SELECT c.factor_digest FROM version_edits AS c
                """
            )
        ).scalars()
    )


def _record(conn: Connection, kind: str, version: Version, actor: str, reason: str) -> None:
    audit.append(
        conn,
        kind,
        actor=actor,
        model_id=version.model_id,
        subject=f"version:{version.id}",
        data={"number": version.number, "reason": reason},
    )
