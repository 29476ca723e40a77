"""Planning a model's next version: which edits come in, and which they replace."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from ledger import leases, ranges
from ledger.db import text
from ledger.errors import WrongState
from ledger.records import Lease, Plan, SetMember
from ledger.versions import live_set, members, parent_of_next


def plan(
    conn: Connection,
    lease: Lease,
    *,
    batch_id: int | None = None,
    remove_edits: Sequence[int] = (),
) -> Plan:
    """What the next version is: the batch's factored edits added, what they replace removed.

    * `batch_id`: Batch whose claimed, factored edits are added.
    * `remove_edits`: Edits to take out besides (revert).

    Raises:
        StaleFence: The lease was lost.
        WrongState: An edit to remove is not in the parent's set.
    """
    leases.check(conn, lease)
    parent = parent_of_next(conn, lease.model_id)
    adds: list[SetMember] = []
    replaced: list[SetMember] = []
    if batch_id is not None:
        found = conn.execute(
            text(
                """
                SELECT c.edit_id, c.factor_digest, e.fact_key FROM batch_edits AS c
                  JOIN edits AS e ON e.id = c.edit_id
                 WHERE c.batch_id = :batch AND c.factor_digest IS NOT NULL
                   AND e.batch_id = c.batch_id AND e.state = 'claimed' ORDER BY c.edit_id
                """
            ),
            {"batch": batch_id},
        ).all()
        adds = [SetMember(int(row.edit_id), row.factor_digest) for row in found]
        holders = (
            conn.execute(
                text(
                    """
                SELECT id FROM edits WHERE model_id = :model AND state IN ('applied', 'live')
                   AND fact_key = ANY(:facts) AND NOT id = ANY(:adds)
                """
                ),
                {
                    "model": lease.model_id,
                    "facts": [row.fact_key for row in found],
                    "adds": [one.edit_id for one in adds],
                },
            )
            .scalars()
            .all()
        )
        replaced = members(conn, parent.id, holders) if holders else []
    reverted = members(conn, parent.id, remove_edits) if remove_edits else []
    absent = set(remove_edits) - {one.edit_id for one in reverted}
    if absent:
        raise WrongState(
            f"edits {ranges.to_text(absent)} are not in version {parent.number}: nothing to revert"
        )
    removes = {one.edit_id: one for one in [*replaced, *reverted]}
    return Plan(parent, tuple(adds), tuple(removes[one] for one in sorted(removes)))


def plan_rebase(conn: Connection, lease: Lease, kept: Sequence[SetMember]) -> Plan:
    """What the next version is where every edit gets a factor of another base or editor.

    * `kept`: Edits of the parent's set that stay, with their new factors; all others leave.

    Raises:
        StaleFence: The lease was lost.
        WrongState: An edit to keep is not in the parent's set, or a batch is on its way.
    """
    leases.check(conn, lease)
    is_open = conn.execute(
        text("SELECT EXISTS (SELECT FROM batches WHERE model_id = :model AND state = 'open')"),
        {"model": lease.model_id},
    ).scalar_one()
    if is_open:
        raise WrongState("a batch of edits is on its way into a version: rebase after it")
    parent = parent_of_next(conn, lease.model_id)
    present = {one.edit_id: one for one in live_set(conn, parent.id)}
    absent = {one.edit_id for one in kept} - present.keys()
    if absent:
        raise WrongState(f"edits {ranges.to_text(absent)} are not in version {parent.number}")
    stay = {one.edit_id for one in kept}
    removes = tuple(one for edit_id, one in present.items() if edit_id not in stay)
    adds = tuple(one for one in kept if present[one.edit_id] != one)
    return Plan(parent, adds, removes)
