"""Claiming a batch with few edits queued and with very many."""

from __future__ import annotations

import statistics
import time
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, text

from benchmarks.queue.desk import Sizes, fill, new_model
from ledger import leases, queue
from ledger.db import transaction

CLAIM = 256


def claims(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """Claim of 256 with few rows queued and with very many, rolled back each time."""
    model_id = new_model(engine, "claims")
    fill(engine, model_id, sizes.few)
    few = _claim_seconds(engine, model_id)
    fill(engine, model_id, sizes.many - sizes.few)
    many = _claim_seconds(engine, model_id)
    return {
        "claim_few_queued": sizes.few,
        "claim_many_queued": sizes.many,
        "claim_few_ms": 1e3 * few,
        "claim_many_ms": 1e3 * many,
        "claim_ratio": many / few,
    }


def _claim_seconds(engine: Engine, model_id: int, times: int = 15) -> float:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM ANALYZE edits"))
    with transaction(engine) as conn:
        lease = leases.take(conn, model_id, uuid4(), ttl=600)
    assert lease is not None
    taken = []
    for _ in range(times):
        with engine.connect() as conn:
            began = time.perf_counter()
            claim = queue.claim(conn, lease, limit=CLAIM)
            taken.append(time.perf_counter() - began)
            assert claim is not None
            assert len(claim.edits) == CLAIM
            conn.rollback()
    with transaction(engine) as conn:
        leases.release(conn, lease)
    return statistics.median(taken)
