"""Parallel factors: several workers compute the factors of one batch side by side.

Factors are independent of each other and of the model's lease, so a chunk has its own short lease.
An edit whose chunk ran out again and again is taken in smaller and smaller chunks and, once alone,
given up: one poisonous edit does not hold up its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import leases, rows
from ledger.db import text
from ledger.errors import StaleFence
from ledger.records import BatchProgress, Chunk, FactorRecord, Lease

CHUNK_LIMIT = 32
TTL_SECONDS = 60.0
LOSSES_ALONE = 3  # times an edit may lose its worker while alone in its chunk

# The edit that comes first says which batch and how large a chunk. A row without a token says that
# a batch is open whose edits have all left it.
_TAKE = f"""
    WITH first AS (
        SELECT c.batch_id, c.losses FROM batch_edits AS c JOIN batches AS b ON b.id = c.batch_id
         WHERE c.factor_digest IS NULL AND c.error IS NULL
           AND (c.until IS NULL OR c.until < clock_timestamp())
           AND b.state = 'open'
           AND (CAST(:batch AS bigint) IS NULL OR c.batch_id = :batch)
           AND (CAST(:models AS bigint[]) IS NULL OR b.model_id = ANY(:models))
         ORDER BY c.batch_id, c.losses, c.edit_id LIMIT 1 FOR UPDATE OF c SKIP LOCKED
    ), mine AS (
        SELECT c.batch_id, c.edit_id FROM first
          JOIN batch_edits AS c ON c.batch_id = first.batch_id AND c.losses = first.losses
          JOIN edits AS e ON e.id = c.edit_id AND e.batch_id = c.batch_id AND e.state = 'claimed'
         WHERE c.factor_digest IS NULL AND c.error IS NULL
           AND (c.until IS NULL OR c.until < clock_timestamp())
         ORDER BY c.edit_id LIMIT (SELECT greatest(1, CAST(:limit AS integer) >> losses) FROM first)
           FOR UPDATE OF c SKIP LOCKED
    ), name AS MATERIALIZED (
        SELECT nextval('chunk_tokens') AS token
    ), taken AS (
        UPDATE batch_edits AS c SET token = name.token, worker = :worker,
               losses = c.losses + (c.until IS NOT NULL)::integer,
               until = clock_timestamp() + make_interval(secs => :ttl)
          FROM mine, name WHERE c.batch_id = mine.batch_id AND c.edit_id = mine.edit_id
        RETURNING c.edit_id, c.token, c.until, c.losses
    )
    SELECT {rows.EDIT_COLUMNS}, first.batch_id AS of_batch, taken.token,
           taken.until AS taken_until, taken.losses AS taken_losses
      FROM first LEFT JOIN taken ON true LEFT JOIN edits AS e ON e.id = taken.edit_id
     ORDER BY e.id
"""  # noqa: S608 - our words


def take(
    conn: Connection,
    worker: UUID,
    *,
    limit: int = CHUNK_LIMIT,
    ttl: float = TTL_SECONDS,
    batch_id: int | None = None,
    model_ids: Sequence[int] | None = None,
) -> Chunk | None:
    """Take up to `limit` edits of an open batch that have no factor yet; None where there are none.

    * `batch_id`: Only this batch; else any open one (of `model_ids`), oldest first.
    * `ttl`: Seconds until others may take them too, unless renewed.
    """
    rows_found = conn.execute(
        text(_TAKE),
        {
            "batch": batch_id,
            "models": list(model_ids) if model_ids is not None else None,
            "limit": limit,
            "worker": worker,
            "ttl": ttl,
        },
    ).all()
    if not rows_found:
        return None
    first = rows_found[0]
    taken = [row for row in rows_found if row.token is not None]
    if not taken:
        # The edits left the batch (cancelled): they need no factor, do not meet them again.
        conn.execute(
            text(
                """
                UPDATE batch_edits AS c SET error = 'left the batch', worker = NULL, until = NULL
                  FROM edits AS e
                 WHERE c.batch_id = :batch AND e.id = c.edit_id AND c.factor_digest IS NULL
                   AND c.error IS NULL
                   AND (e.batch_id IS DISTINCT FROM c.batch_id OR e.state <> 'claimed')
                """
            ),
            {"batch": first.of_batch},
        )
        return None
    worn = [int(row.id) for row in taken if row.taken_losses >= _worn_out(limit)]
    if worn:
        conn.execute(
            text(
                "UPDATE batch_edits SET worker = NULL, until = NULL, "
                "error = 'its worker died while computing its factor, ' || losses || ' times' "
                "WHERE batch_id = :batch AND edit_id = ANY(:ids)"
            ),
            {"batch": first.of_batch, "ids": worn},
        )
        taken = [row for row in taken if row.id not in worn]
        if not taken:
            return take(conn, worker, limit=limit, ttl=ttl, batch_id=batch_id, model_ids=model_ids)
    edits = tuple(rows.edit(row) for row in taken)
    return Chunk(
        token=int(taken[0].token),
        batch_id=int(first.of_batch),
        model_id=edits[0].model_id,
        worker=worker,
        edits=edits,
        until=taken[0].taken_until,
    )


def _worn_out(limit: int) -> int:
    """Losses after which an edit has been alone `LOSSES_ALONE` times."""
    return limit.bit_length() - 1 + LOSSES_ALONE


def record(conn: Connection, chunk: Chunk, factors: Iterable[FactorRecord]) -> int:
    """Store which factors were computed; returns how many counted.

    The rows of a chunk that was taken over meanwhile are left alone (the factor itself is content
    addressed, so nothing is wrong with it).

    Raises:
        StaleFence: None counted: the chunk was taken over as a whole.
    """
    records = list(factors)
    if not records:
        return 0
    counted = conn.execute(
        text(
            """
            WITH mine AS (
                UPDATE batch_edits AS c
                   SET factor_digest = f.digest, worker = NULL, until = NULL, error = NULL
                  FROM jsonb_to_recordset(CAST(:factors AS jsonb)) AS f(edit_id bigint, digest text)
                  JOIN edits AS e ON e.id = f.edit_id AND e.batch_id = :batch
                 WHERE c.batch_id = :batch AND c.edit_id = f.edit_id AND c.token = :token
                RETURNING c.edit_id
            ), kept AS (
                INSERT INTO factors (edit_id, base_digest, editor_digest, digest, rows, bytes,
                clipped,
                                     meta)
                SELECT f.edit_id, m.base_digest, d.digest, f.digest, f.rows, f.bytes, f.clipped,
                       f.meta
                  FROM jsonb_to_recordset(CAST(:factors AS jsonb))
                       AS f(edit_id bigint, digest text, rows integer, bytes bigint, clipped
                       integer,
                            meta jsonb)
                  JOIN mine ON mine.edit_id = f.edit_id
                  JOIN models AS m ON m.id = :model JOIN editors AS d ON d.id = m.editor_id
                ON CONFLICT (edit_id, base_digest, editor_digest) DO UPDATE
                   SET digest = excluded.digest, rows = excluded.rows, bytes = excluded.bytes,
                       clipped = excluded.clipped, meta = excluded.meta
            )
            SELECT count(*), pg_notify('mend_events', :words) FROM mine
            """
        ),
        {
            "factors": Jsonb(
                [
                    {
                        "edit_id": one.edit_id,
                        "digest": one.digest,
                        "rows": one.rows,
                        "bytes": one.bytes,
                        "clipped": one.clipped,
                        "meta": dict(one.meta),
                    }
                    for one in records
                ]
            ),
            "batch": chunk.batch_id,
            "token": chunk.token,
            "model": chunk.model_id,
            "words": f'{{"kind":"chunk.done","model":{chunk.model_id},'
            f'"subject":"batch:{chunk.batch_id}"}}',
        },
    ).scalar_one()
    if not counted:
        raise _lost(chunk)
    return int(counted)


def renew(conn: Connection, chunk: Chunk, *, ttl: float = TTL_SECONDS) -> None:
    """Keep a chunk: the heart beside the work.

    Raises:
        StaleFence: It was taken over or is finished.
    """
    kept = conn.execute(
        text(
            """
            UPDATE batch_edits SET until = clock_timestamp() + make_interval(secs => :ttl)
             WHERE batch_id = :batch AND token = :token AND worker = :worker
               AND until > clock_timestamp()
            """
        ),
        {"ttl": ttl, "batch": chunk.batch_id, "token": chunk.token, "worker": chunk.worker},
    ).rowcount
    if not kept:
        raise _lost(chunk)


def give_back(conn: Connection, chunk: Chunk) -> int:
    """Give back what of a chunk is not recorded; nothing is counted against its edits."""
    return conn.execute(
        text(
            "UPDATE batch_edits SET worker = NULL, until = NULL "
            "WHERE batch_id = :batch AND token = :token AND worker = :worker"
        ),
        {"batch": chunk.batch_id, "token": chunk.token, "worker": chunk.worker},
    ).rowcount


def fail_edits(conn: Connection, chunk: Chunk, problems: Mapping[int, str]) -> int:
    """Note edits whose factor cannot be computed; the lease holder decides what becomes of them.

    `batches.problems` lists them; the holder then calls `queue.retry`, `queue.fail` or
    `queue.quarantine`.
    """
    return conn.execute(
        text(
            """
            UPDATE batch_edits AS c SET error = CAST(:problems AS jsonb) ->> c.edit_id::text,
                   worker = NULL, until = NULL
             WHERE c.batch_id = :batch AND c.token = :token AND c.edit_id = ANY(:ids)
            """
        ),
        {
            "problems": Jsonb({str(one): problem for one, problem in problems.items()}),
            "batch": chunk.batch_id,
            "token": chunk.token,
            "ids": list(problems),
        },
    ).rowcount


def progress(conn: Connection, batch_id: int) -> BatchProgress:
    """How far the factors of a batch's claimed edits are."""
    row = conn.execute(
        text(
            """
            SELECT count(*) AS total,
                   count(*) FILTER (WHERE c.factor_digest IS NOT NULL) AS factored,
                   count(*) FILTER (WHERE c.factor_digest IS NULL
                                      AND c.error IS NOT NULL) AS failed,
                   count(*) FILTER (WHERE c.factor_digest IS NULL AND c.error IS NULL) AS pending
              FROM batch_edits AS c JOIN edits AS e ON e.id = c.edit_id
             WHERE c.batch_id = :batch AND e.batch_id = c.batch_id AND e.state = 'claimed'
            """
        ),
        {"batch": batch_id},
    ).one()
    return BatchProgress(row.total, row.factored, row.failed, row.pending)


def factors(
    conn: Connection,
    edit_ids: Sequence[int],
    *,
    editor_digest: str | None = None,
    base_digest: str | None = None,
) -> dict[int, FactorRecord]:
    """Known factors of edits; of several, the newest."""
    found = conn.execute(
        text(
            """
            SELECT DISTINCT ON (edit_id) edit_id, digest, rows, bytes, clipped, meta FROM factors
             WHERE edit_id = ANY(:ids)
               AND (CAST(:editor AS text) IS NULL OR editor_digest = :editor)
               AND (CAST(:base AS text) IS NULL OR base_digest = :base)
             ORDER BY edit_id, created_at DESC
            """
        ),
        {"ids": list(edit_ids), "editor": editor_digest, "base": base_digest},
    )
    return {int(row.edit_id): FactorRecord(**row._mapping) for row in found}  # noqa: SLF001 - SQLAlchemy's public name


def made(conn: Connection, batch_id: int) -> dict[str, int]:
    """Factors that the claimed edits of a batch have: digest → edit."""
    found = conn.execute(
        text(
            """
            SELECT c.factor_digest, c.edit_id FROM batch_edits AS c JOIN edits AS e
                ON e.id = c.edit_id AND e.batch_id = c.batch_id AND e.state = 'claimed'
             WHERE c.batch_id = :batch AND c.factor_digest IS NOT NULL
            """
        ),
        {"batch": batch_id},
    )
    return {str(digest): int(edit_id) for digest, edit_id in found}


def forget(conn: Connection, digests: Sequence[str]) -> int:
    """Forget factors whose files are missing or broken, so that they are computed again."""
    conn.execute(
        text(
            """
            UPDATE batch_edits AS c SET factor_digest = NULL FROM batches AS b
             WHERE b.id = c.batch_id AND b.state = 'open' AND c.factor_digest = ANY(:digests)
            """
        ),
        {"digests": list(digests)},
    )
    return conn.execute(
        text("DELETE FROM factors WHERE digest = ANY(:digests)"), {"digests": list(digests)}
    ).rowcount


def replace(
    conn: Connection, lease: Lease, batch_id: int, factors: Iterable[FactorRecord]
) -> list[int]:
    """Put other factors in place of those of claimed edits: a stronger step after a failed gate.

    Only edits that are claimed in the lease's batch change; returns them.

    Raises:
        StaleFence: The lease was lost.
    """
    leases.check(conn, lease)
    changed: list[int] = []
    for one in factors:
        edit_id = conn.execute(
            text(
                """
                UPDATE batch_edits AS c SET factor_digest = :digest FROM edits AS e
                 WHERE c.batch_id = :batch AND c.edit_id = :edit AND e.id = c.edit_id
                   AND e.batch_id = c.batch_id AND e.state = 'claimed'
                RETURNING c.edit_id
                """
            ),
            {"digest": one.digest, "batch": batch_id, "edit": one.edit_id},
        ).scalar_one_or_none()
        if edit_id is None:
            continue
        conn.execute(
            text(
                """
                UPDATE factors AS f SET digest = :digest, rows = :rows, bytes = :bytes,
                       clipped = :clipped, meta = :meta
                  FROM models AS m JOIN editors AS d ON d.id = m.editor_id
                 WHERE m.id = :model AND f.edit_id = :edit AND f.base_digest = m.base_digest
                   AND f.editor_digest = d.digest
                """
            ),
            {
                "digest": one.digest,
                "rows": one.rows,
                "bytes": one.bytes,
                "clipped": one.clipped,
                "meta": Jsonb(dict(one.meta)),
                "model": lease.model_id,
                "edit": one.edit_id,
            },
        )
        changed.append(int(edit_id))
    return changed


def _lost(chunk: Chunk) -> StaleFence:
    return StaleFence(
        f"chunk {chunk.token} of batch {chunk.batch_id} was taken over or closed: "
        "nothing was changed"
    )
