"""The queue's share of a batch, from claim to promoted: time per edit, memory over very many.

The worker's own code runs, transaction by transaction; only the science is left out: an editor that
computes nothing, no files, no probes.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import Connection, Engine

from benchmarks.queue.desk import Sizes, fill, new_model, new_requests
from ledger import aliases, batches, bulk, gates, planning, queue, versions
from ledger import workers as registry
from ledger.db import engine_from_url, transaction
from ledger.records import Batch, Plan, SetMember, VersionDraft
from mend_core.datasets.edit import Edit
from mend_core.factors import GridRows
from workers.context import Context, Held
from workers.factoring import run_batch
from workers.runtime import WarmModel, WarmModels
from workers.settings import Settings

BATCH = 100
DRAIN_BATCH = 500


def overhead(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """All a worker asks of the ledger from lease to promoted and released, batches of 100."""
    model_id = new_model(engine, "overhead")
    with transaction(engine) as conn:
        bulk.submit_many(
            conn, model_id, new_requests(BATCH * sizes.rounds, "overhead"), actor="bench"
        )
    with _context(url, BATCH) as context:
        taken = [_round(context, model_id) for _ in range(sizes.rounds)]
    return {
        "overhead_batch": BATCH,
        "overhead_rounds": sizes.rounds,
        "overhead_ms_per_edit": 1e3 * statistics.median(taken) / BATCH,
        "overhead_last_ms_per_edit": 1e3 * statistics.median(taken[-3:]) / BATCH,
    }


def memory(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """Growth of a worker's process while it takes very many edits through the queue."""
    model_id = new_model(engine, "memory")
    fill(engine, model_id, sizes.drain)
    warm = max(2, sizes.drain // DRAIN_BATCH // 10)
    count = sizes.drain // DRAIN_BATCH - warm
    with _context(url, DRAIN_BATCH) as context:
        for _ in range(warm):
            _round(context, model_id, parts=False)
        gc.collect()
        before = _resident()
        began = time.perf_counter()
        for _ in range(count):
            _round(context, model_id, parts=False)
        taken = time.perf_counter() - began
        gc.collect()
        after = _resident()
    return {
        "memory_edits": sizes.drain,
        "memory_warm_mib": before,
        "memory_end_mib": after,
        "memory_growth_mib": max(0.0, after - before),
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "drained_edits_per_s": count * DRAIN_BATCH / taken,
        "drain_seconds": taken,
    }


def _round(context: Context, model_id: int, *, parts: bool = True) -> float:
    """One batch from lease to promoted, as `workers.pipeline` does it; its seconds.

    * `parts`: Look up the parent's set too, as a build does (it grows with every version).
    """
    began = time.perf_counter()
    held = Held.take(context, model_id)
    assert held is not None
    with held.keeper:
        assert context.transact(lambda conn: batches.current(conn, model_id)) is None
        claim = context.transact(
            lambda conn: queue.claim(conn, held.lease, limit=context.config.batch_edits)
        )
        assert claim is not None
        _build(context, held, claim.batch, parts=parts)
        held.release()
    return time.perf_counter() - began


def _build(context: Context, held: Held, batch: Batch, *, parts: bool) -> None:
    run_batch(context, held, _NOTHING, batch.id)

    def look(conn: Connection) -> tuple[Plan, list[SetMember]]:
        unjudged = versions.pending(conn, batch.model_id)
        assert not unjudged
        plan = planning.plan(conn, held.lease, batch_id=batch.id)
        return plan, list(versions.live_set(conn, plan.parent.id)) if parts else []

    plan, _ = context.transact(look)
    digest = f"sha256:{uuid4().hex}"
    draft = VersionDraft(plan, digest, f"versions/{digest}", batch_id=batch.id)
    version = held.commit(
        lambda conn, lease, draft: versions.commit(conn, lease, draft, actor=context.actor), draft
    ).version

    def conclude(conn: Connection) -> None:
        gates.record_probes(conn, version.id, "sha256:s", ())
        gates.record(
            conn,
            version.id,
            outcome="pass",
            policy_digest="sha256:p",
            suite_digest="sha256:s",
            checks=[],
            scores={},
            actor=context.actor,
        )
        with conn.begin_nested():
            aliases.promote(
                conn, batch.model_id, version.id, actor=context.actor, reason="its gate passed"
            )
        batches.finish(conn, held.lease, batch.id, actor=context.actor)

    context.transact(conclude)


# -- a worker without science ---------------------------------------------------------------------


def _factor(_base: object, edits: Sequence[Edit], *, prefix: object) -> list[GridRows]:  # noqa: ARG001 - an editor's signature
    return [GridRows(edit.id, "sha256:g", {}) for edit in edits]


_NOTHING = cast(
    "WarmModel",
    SimpleNamespace(
        base=None,
        prefix=None,
        editor=SimpleNamespace(factor=_factor, grid=SimpleNamespace(encode=lambda factor: factor)),
        factors=SimpleNamespace(put_many=lambda _factors: None),
    ),
)


@contextmanager
def _context(url: str, batch_edits: int) -> Iterator[Context]:
    """A worker's context: its settings, its connections, its instance in the registry."""
    config = Settings(url, "pgmq://", Path("/nowhere"), "bench", batch_edits=batch_edits)
    engine = engine_from_url(url, pool_size=4)
    with transaction(engine) as conn:
        row = registry.register(conn, name="bench", host="bench", pid=os.getpid(), info={})
    try:
        yield Context(config, engine, row.instance, WarmModels(config), threading.Event())
    finally:
        engine.dispose()


def _resident() -> float:
    """Resident memory of this process, MiB."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
