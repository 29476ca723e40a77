"""Factors of a batch, computed in chunks by whichever workers are free.

Factors are independent of one another, so a batch is cut into chunks that any worker may take; the
worker that holds the model's lease takes chunks like everybody else, waits for the last ones, and
composes. A factor is content-addressed: computing one twice gives the same digest (DESIGN 2.2).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import batches as batch_rows
from ledger import chunks as chunk_rows
from ledger import db, queue
from ledger import models as model_rows
from ledger.errors import LedgerError, StaleFence
from ledger.events import Listener
from ledger.records import BatchProgress, Chunk, FactorRecord
from ledger.states import EditState
from mend_core.datasets.edit import Edit
from mend_core.errors import EditError, NonFinite
from mend_core.factors import FactorRows, GridRows
from mend_core.probes.asking import unaskable
from mend_core.safepoints import safe_point
from workers import faults
from workers.context import Context, Held
from workers.runtime import WarmModel, core_edit

log = logging.getLogger("mend.factor")

WAIT_SECONDS = 0.5
"""How long the composing worker waits for news of others' chunks before it looks by itself."""


def _encode(warm: WarmModel, factor: FactorRows | EditError) -> GridRows | EditError:
    if isinstance(factor, EditError):
        return factor
    try:
        return warm.editor.grid.encode(factor)
    except NonFinite as error:
        return error


def compute(warm: WarmModel, edits: Sequence[Edit]) -> list[GridRows | EditError]:
    """Grid rows of every edit, in order; what is wrong with one edit is that edit's result.

    An error that names no edit is hunted by computing each edit alone: the one that still raises is
    the one at fault.
    """
    try:
        found = warm.editor.factor(warm.base, edits, prefix=warm.prefix)
    except (MemoryError, RuntimeError, ValueError, IndexError, KeyError) as error:
        if len(edits) == 1:
            return [EditError(edits[0].id, f"factor extraction failed: {error}")]
        log.warning("a chunk of %d edits failed (%s); trying each alone", len(edits), error)
        return [compute(warm, [edit])[0] for edit in edits]
    return [_encode(warm, factor) for factor in found]


def factor_record(factor: GridRows, **meta: object) -> FactorRecord:
    """What the ledger keeps of a stored factor, and anything worth noting beside it."""
    return FactorRecord(
        edit_id=int(factor.edit_id),
        digest=factor.digest,
        rows=sum(len(rows) for rows in factor.rows.values()),
        bytes=factor.nbytes,
        clipped=factor.clipped,
        meta=meta,
    )


NOT_FINITE = f"{NonFinite.__name__}: "
"""How the problem of an edit that gives NaN or Inf begins."""


def _problem(error: EditError) -> str:
    """An edit's error as the ledger keeps it; the class name tells what becomes of the edit."""
    return f"{type(error).__name__}: {error}"


def fail_unaskable(context: Context, held: Held, warm: WarmModel, batch_id: int) -> None:
    """Fail the edits of a batch whose paraphrases or locality prompts the model cannot be asked.

    One of them in a version, and that version could never be judged, nor anything after it.
    """

    def look(conn: Connection) -> list[Edit]:
        claimed = batch_rows.edits_of(conn, batch_id, states=[EditState.CLAIMED])
        return [core_edit(edit) for edit in claimed]

    found = unaskable(warm.base, context.transact(look))
    if found:
        errors = {int(i): f"its own probes cannot be asked: {why}" for i, why in found.items()}
        context.transact(
            lambda conn: queue.fail(conn, held.lease, batch_id, errors, actor=context.actor)
        )


def set_aside(context: Context, held: Held, batch_id: int) -> None:
    """Decide on the edits of a batch that have no factor.

    NaN or Inf is evidence worth a look: quarantine. The rest (too long, no tokens, its worker died)
    cannot be helped by trying again: the dead letters.
    """

    def write(conn: Connection) -> None:
        found = batch_rows.problems(conn, batch_id)
        strange = {i: {"reason": p} for i, p in found.items() if p.startswith(NOT_FINITE)}
        hopeless = {i: p for i, p in found.items() if i not in strange}
        if strange:
            queue.quarantine(conn, held.lease, batch_id, strange, actor=context.actor)
        if hopeless:
            queue.fail(conn, held.lease, batch_id, hopeless, actor=context.actor)

    context.transact(write)


@dataclass(frozen=True, slots=True)
class Taken:
    """A chunk, with the monotonic time from just before it was asked for."""

    chunk: Chunk
    at: float


def take(context: Context, conn: Connection, batch_id: int | None = None) -> Chunk | None:
    """The next chunk of a batch, or of any; None where there is none."""
    return chunk_rows.take(
        conn,
        context.worker,
        limit=context.config.chunk_edits,
        ttl=context.config.lease_seconds,
        batch_id=batch_id,
    )


def run_chunk(
    context: Context, warm: WarmModel, taken: Taken, *, next_of: int | None = None
) -> Taken | None:
    """Compute and record one chunk's factors.

    A chunk that was lost to somebody else counts for nothing; its factors are kept all the same.

    Args:
        context: The working process.
        warm: The chunk's model.
        taken: The chunk.
        next_of: Batch whose next chunk is taken in the transaction that records this one.

    Returns:
        The next chunk; None where none was asked for, there is none, or a stop was asked for.
    """
    chunk = taken.chunk
    edits = [core_edit(edit) for edit in chunk.edits]
    with context.keep(lambda conn: chunk_rows.renew(conn, chunk), taken.at):
        faults.point("mid-factor")
        found = compute(warm, edits)
        good = [factor for factor in found if isinstance(factor, GridRows)]
        warm.factors.put_many(good)
        faults.point("after-factor")
    records = [factor_record(factor) for factor in good]
    bad = {int(e.edit_id): _problem(e) for e in found if isinstance(e, EditError)}
    asked_at = time.monotonic()

    def record(conn: Connection) -> Chunk | None:
        db.recoverable(conn)
        chunk_rows.record(conn, chunk, records)
        if bad:
            chunk_rows.fail_edits(conn, chunk, bad)
        if next_of is None or context.stopping.is_set():
            return None
        return take(context, conn, next_of)

    try:
        following = context.transact(record)
    except StaleFence:
        log.info("chunk of batch %d was taken over; its factors are kept", chunk.batch_id)
        return None
    return None if following is None else Taken(following, asked_at)


def help_any(context: Context) -> bool:
    """Take one chunk of any batch; False where there is none to take."""
    asked_at = time.monotonic()

    def ask(conn: Connection) -> Chunk | None:
        db.recoverable(conn)
        return take(context, conn)

    chunk = context.transact(ask)
    if chunk is None:
        return False
    try:
        model = context.transact(lambda conn: model_rows.get(conn, chunk.model_id))
        warm = context.models.get(model)
        run_chunk(context, warm, Taken(chunk, asked_at))
    except BaseException:
        # Whatever ends us, the chunk is somebody else's now rather than after its lease ran out.
        with suppress(LedgerError):
            context.transact(lambda conn: chunk_rows.give_back(conn, chunk))
        raise
    return True


def run_batch(context: Context, held: Held, warm: WarmModel, batch_id: int) -> None:
    """See every factor of a batch computed, here or elsewhere, and bad edits set aside.

    Raises:
        Stopping: A graceful stop was asked for between two chunks.
        StoreFull: No room for factors.
    """

    def look(conn: Connection) -> tuple[Chunk | None, BatchProgress | None]:
        db.recoverable(conn)
        chunk = take(context, conn, batch_id)
        return chunk, chunk_rows.progress(conn, batch_id) if chunk is None else None

    listener: Listener | None = None
    try:
        while True:
            context.check()
            safe_point()
            asked_at = time.monotonic()
            chunk, progress = context.transact(look)
            taken = None if chunk is None else Taken(chunk, asked_at)
            while taken is not None:
                taken = run_chunk(context, warm, taken, next_of=batch_id)
                context.check()
            if progress is None:
                continue
            if progress.pending == 0:
                if progress.failed:
                    set_aside(context, held, batch_id)
                return
            if listener is None:
                # Others are still at work: listen, and look again before waiting for news.
                listener = Listener(context.config.database_url)
                listener.__enter__()
            else:
                listener.wait(WAIT_SECONDS)
    finally:
        if listener is not None:
            listener.__exit__(None, None, None)
