"""The right to build a model's next version: one holder at a time, numbered by a fence.

Time is the database's. A lease that ran out may be taken by anyone; taking it first puts right
what its holder left (`ledger.recovery`). Each take and each committed version moves the fence on,
so a holder that slept through its lease finds every guarded statement refused.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection

from ledger import workers
from ledger.db import text
from ledger.errors import NoSuchModel, StaleFence
from ledger.records import Lease
from ledger.recovery import recover_model

TTL_SECONDS = 60.0


def take(
    conn: Connection, model_id: int, worker: UUID, *, ttl: float = TTL_SECONDS
) -> Lease | None:
    """Take a free, expired or already own lease; None where someone else holds it.

    A batch that the last holder left open is recovered in the same transaction.

    * `worker`: The worker's instance id (not its name: two workers may share a name).
    * `ttl`: Seconds until it runs out unless renewed.

    Raises:
        NoSuchModel: No model of this id.
    """
    row = conn.execute(
        text(
            """
            UPDATE leases SET worker = :worker, fence = fence + 1, ttl_seconds = :ttl,
                   until = clock_timestamp() + make_interval(secs => :ttl)
             WHERE model_id = (SELECT model_id FROM leases WHERE model_id = :model
                                  AND (worker IS NULL OR until < clock_timestamp()
                                       OR worker = :worker)
                                  FOR UPDATE SKIP LOCKED)
            RETURNING fence, until
            """
        ),
        {"model": model_id, "worker": worker, "ttl": ttl},
    ).one_or_none()
    if row is None:
        known = conn.execute(
            text("SELECT EXISTS (SELECT FROM leases WHERE model_id = :model)"), {"model": model_id}
        ).scalar_one()
        if not known:
            raise NoSuchModel(f"no model {model_id}: see 'mend model list'")
        return None
    lease = Lease(model_id, worker, int(row.fence), ttl, row.until)
    recover_model(conn, model_id, actor=workers.actor(conn, worker), adopt=lease)
    return lease


def renew(conn: Connection, lease: Lease) -> Lease:
    """Extend a lease by its ttl; to be called from a heart beside the work.

    The fence may have moved on by this holder's own commits; the returned lease has the present
    one.

    Raises:
        StaleFence: It was lost; stop working at once.
    """
    row = conn.execute(
        text(
            """
            UPDATE leases SET until = clock_timestamp() + make_interval(secs => :ttl)
             WHERE model_id = :model AND worker = :worker AND fence >= :fence
               AND until > clock_timestamp()
            RETURNING fence, until
            """
        ),
        params(lease) | {"ttl": lease.ttl_seconds},
    ).one_or_none()
    if row is None:
        raise lost(lease)
    return Lease(lease.model_id, lease.worker, int(row.fence), lease.ttl_seconds, row.until)


def release(conn: Connection, lease: Lease) -> bool:
    """Give a lease back; False where it was lost already (which is no error)."""
    return bool(
        conn.execute(
            text(
                """
                UPDATE leases SET worker = NULL, until = NULL
                 WHERE model_id = :model AND worker = :worker AND fence = :fence
                """
            ),
            params(lease),
        ).rowcount
    )


def check(conn: Connection, lease: Lease) -> None:
    """Lock the lease until commit, or refuse: the first statement of every guarded change.

    Raises:
        StaleFence: It was lost or ran out; nothing was changed.
    """
    held = conn.execute(
        text(
            """
            SELECT FROM leases
             WHERE model_id = :model AND worker = :worker AND fence = :fence
               AND until > clock_timestamp()
               FOR UPDATE
            """
        ),
        params(lease),
    ).one_or_none()
    if held is None:
        raise lost(lease)


def advance(conn: Connection, lease: Lease) -> Lease:
    """Check and lock the lease, as `check` does, and use up its fence: the same holder's next one.

    Raises:
        StaleFence: It was lost or ran out; nothing was changed.
    """
    row = conn.execute(
        text(
            """
            UPDATE leases SET fence = fence + 1
             WHERE model_id = :model AND worker = :worker AND fence = :fence
               AND until > clock_timestamp()
            RETURNING fence, until
            """
        ),
        params(lease),
    ).one_or_none()
    if row is None:
        raise lost(lease)
    return Lease(lease.model_id, lease.worker, int(row.fence), lease.ttl_seconds, row.until)


def params(lease: Lease) -> dict[str, object]:
    """What a guarded statement compares the lease's row with."""
    return {"model": lease.model_id, "worker": lease.worker, "fence": lease.fence}


def lost(lease: Lease) -> StaleFence:
    """What to raise where a guarded statement found the lease gone."""
    return StaleFence(
        f"the lease on model {lease.model_id} with fence {lease.fence} was lost or ran out: "
        "nothing was changed; another worker goes on"
    )
