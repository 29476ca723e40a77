"""Two worker processes extracting the factors of one batch side by side, against one alone."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine

from benchmarks.queue.desk import Sizes
from benchmarks.queue.fleet import register, scalar, wait, worker
from ledger import batches, bulk, leases, queue
from ledger.db import transaction
from ledger.records import Lease
from ledger.requests import EditRequest
from mend_core.editors.shipped import shipped_editor
from mend_core.models.shipped import smollm2_folder

EDITOR = "smollm2-135m-mend"
LOOK_SECONDS = 0.25
"""Between two looks at a batch: often enough to see who takes each chunk, and no third worker."""
LEASE_SECONDS = 3_600.0
WARM_TURNS = 20
"""Small batches, seconds each, within which every worker must have taken part."""


def two_workers(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds from claiming a batch to its last factor, SmolLM2-135M, one torch thread a worker.

    The benchmark itself holds the lease, so that the workers do nothing but extract; the database's
    clock is read.
    """
    source, editor = smollm2_folder(), shipped_editor(EDITOR)
    taken: dict[int, list[float]] = {1: [], 2: []}
    shares: list[int] = []
    with tempfile.TemporaryDirectory(prefix="mend-bench-") as folder, contextlib.ExitStack() as up:
        lease = _lease(engine, register(engine, "side by side", source, editor))
        for workers in (1, 2):
            up.enter_context(worker(url, Path(folder), f"w{workers}"))
            _warm(engine, lease, workers)
            for turn in range(sizes.shared_turns):
                seconds, shares = _extract(engine, lease, sizes.shared_batch, f"{workers}.{turn}")
                taken[workers].append(seconds)
    one, two = statistics.median(taken[1]), statistics.median(taken[2])
    return {
        "shared_batch_edits": sizes.shared_batch,
        "one_worker_s": one,
        "two_workers_s": two,
        "smaller_share": min(shares) if len(shares) > 1 else 0,
        "two_workers_speedup": one / two,
    }


def _lease(engine: Engine, model_id: int) -> Lease:
    """The model's lease, held to the end: no worker is to do anything but help."""
    with transaction(engine) as conn:
        lease = leases.take(conn, model_id, uuid4(), ttl=LEASE_SECONDS)
    assert lease is not None
    return lease


def _warm(engine: Engine, lease: Lease, workers: int) -> None:
    """Extract small batches until every worker has loaded the model and taken part."""
    for turn in range(WARM_TURNS):
        _, shares = _extract(engine, lease, 64, f"warm {workers}.{turn}")
        if len(shares) == workers:
            return
    raise AssertionError(f"{workers} workers never shared a batch")


def _extract(engine: Engine, lease: Lease, size: int, name: str) -> tuple[float, list[int]]:
    """Seconds until the last factor of a fresh batch, and how many factors each worker made."""
    requests = [
        EditRequest(prompt=f"The mayor of town {name}.{i} is called", target=f"Anna Berg {i}")
        for i in range(size)
    ]
    with transaction(engine) as conn:
        bulk.submit_many(conn, lease.model_id, requests, actor="bench")
        claim = queue.claim(conn, lease, limit=size)
        assert claim is not None
    batch_id = claim.batch.id
    owners: dict[int, str] = {}

    def look() -> bool:
        with transaction(engine) as conn:
            found = conn.exec_driver_sql(
                "SELECT c.token, c.worker FROM batch_edits AS c WHERE c.batch_id = %s "
                "AND c.worker IS NOT NULL",
                (batch_id,),
            )
            owners.update({token: str(owner) for token, owner in found})
        return not scalar(
            engine,
            "SELECT count(*) FROM batch_edits WHERE batch_id = :batch AND factor_digest IS NULL",
            batch=batch_id,
        )

    wait(look, f"extracting {name}", every=LOOK_SECONDS)
    seconds = scalar(
        engine,
        """SELECT extract(epoch FROM max(f.created_at) - min(b.claimed_at))
             FROM batch_edits AS c JOIN factors AS f ON f.edit_id = c.edit_id
             JOIN batches AS b ON b.id = c.batch_id WHERE c.batch_id = :batch""",
        batch=batch_id,
    )
    made: dict[str, int] = {}
    with transaction(engine) as conn:
        for token, count in conn.exec_driver_sql(
            "SELECT token, count(*) FROM batch_edits WHERE batch_id = %s GROUP BY token",
            (batch_id,),
        ):
            owner = owners.get(token, "unseen")
            made[owner] = made.get(owner, 0) + count
        queue.quarantine(
            conn,
            lease,
            batch_id,
            {edit.id: {"reason": "measured"} for edit in claim.edits},
            actor="bench",
        )
        batches.finish(conn, lease, batch_id, actor="bench")
    return float(seconds), sorted(made.values())
