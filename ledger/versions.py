"""Versions: what is in them, and committing the next one under the fence (see `planning`).

A version is its parent's edit set with some edits added and some removed. Its number is given at
commit, under the model's lease, so numbers have no gaps; each commit uses the lease's fence up, so
one fence makes one version and a stale holder makes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import audit, leases, ranges, rows, transitions
from ledger.db import text
from ledger.errors import BatchChanged, NoSuchVersion, StaleParent, VersionCollected, WrongState
from ledger.models import get as get_model
from ledger.previous import previous
from ledger.queue import end_edits
from ledger.records import Committed, Lease, SetMember, Version, VersionDraft
from ledger.states import EditState, GateOutcome
from ledger.transitions import move, requeue

_LINE = """
    WITH RECURSIVE line AS (
        SELECT id, parent_id, number FROM versions WHERE id = :version
        UNION ALL
        SELECT parent.id, parent.parent_id, parent.number
          FROM versions AS parent JOIN line ON parent.id = line.parent_id
    )"""


# -- reading --------------------------------------------------------------------------------------


def get(conn: Connection, version_id: int, *, lock: bool = False) -> Version:
    """One version; `lock` keeps others from judging it until commit.

    Raises:
        NoSuchVersion: None of this id.
    """
    how = "FOR UPDATE OF v" if lock else ""
    row = conn.execute(
        text(f"{rows.VERSION_SELECT} WHERE v.id = :version {how}"), {"version": version_id}
    ).one_or_none()
    if row is None:
        raise NoSuchVersion(f"no version with id {version_id}")
    return rows.version(row)


def descends(conn: Connection, version_id: int, from_id: int) -> bool:
    """Whether a version is another or was built on it, directly or over versions between."""
    return bool(
        conn.execute(
            text(
                """
                WITH RECURSIVE line AS (
                    SELECT id, parent_id FROM versions WHERE id = :version
                    UNION ALL
                    SELECT parent.id, parent.parent_id
                      FROM versions AS parent JOIN line ON parent.id = line.parent_id
                     WHERE parent.number >= (SELECT number FROM versions WHERE id = :from)
                )
                SELECT EXISTS (SELECT FROM line WHERE id = :from)
                """
            ),
            {"version": version_id, "from": from_id},
        ).scalar_one()
    )


def demand_files(version: Version) -> None:
    """Refuse a version whose files are gone.

    Raises:
        VersionCollected: They are.
    """
    if version.collected_at is not None:
        raise VersionCollected(
            f"the files of version {version.number} were collected at "
            f"{version.collected_at:%Y-%m-%d %H:%M} UTC: choose a kept version (mend versions)"
        )


def find(conn: Connection, model_id: int, name: str | int) -> Version:
    """A version by number, alias, "previous" (before production), "base" or digest prefix.

    Raises:
        NoSuchVersion: None, or several begin so.
    """
    words = str(name)
    if words == "base":
        words = "0"
    if words.isdecimal():
        where, value = "v.model_id = :model AND v.number = :value", int(words[:9])
    elif words == "previous":
        return get(conn, previous(conn, model_id))
    else:
        alias = conn.execute(
            text("SELECT version_id FROM aliases WHERE model_id = :model AND name = :name"),
            {"model": model_id, "name": words},
        ).scalar_one_or_none()
        if alias is not None:
            return get(conn, int(alias))
        where = "v.model_id = :model AND starts_with(v.digest, :value)"
        value = "sha256:" + words.removeprefix("sha256:")  # type: ignore[assignment]  # str here
    found = conn.execute(
        text(f"{rows.VERSION_SELECT} WHERE {where} ORDER BY v.number DESC"),
        {"model": model_id, "value": value},
    ).all()
    if len({row.digest for row in found}) != 1:
        last = conn.execute(
            text("SELECT max(number) FROM versions WHERE model_id = :model"), {"model": model_id}
        ).scalar_one()
        why = "no version" if not found else f"{len(found)} versions are called"
        raise NoSuchVersion(
            f"{why} {name!r}; there are versions 0 to {last}, and aliases: see 'mend versions'"
        )
    return rows.version(found[0])


def list_versions(
    conn: Connection, model_id: int, *, limit: int = 1_000, before: int | None = None
) -> list[Version]:
    """Versions of a model, newest first."""
    found = conn.execute(
        text(
            f"{rows.VERSION_SELECT} WHERE v.model_id = :model "
            "AND (CAST(:before AS integer) IS NULL OR v.number < :before) "
            "ORDER BY v.number DESC LIMIT :limit"
        ),
        {"model": model_id, "limit": limit, "before": before},
    )
    return [rows.version(row) for row in found]


def bringing(conn: Connection, edit_ids: Sequence[int]) -> dict[int, list[Version]]:
    """Versions that brought each of these edits in, oldest first, whatever became of them."""
    found = conn.execute(
        text(
            "SELECT edit_id, version_id FROM version_edits "
            "WHERE op = 'add' AND edit_id = ANY(:ids) ORDER BY version_id"
        ),
        {"ids": list(edit_ids)},
    ).all()
    known = {one: get(conn, one) for one in {int(row.version_id) for row in found}}
    brought: dict[int, list[Version]] = {}
    for row in found:
        brought.setdefault(int(row.edit_id), []).append(known[int(row.version_id)])
    return brought


def pending(conn: Connection, model_id: int) -> list[Version]:
    """Committed versions whose gate has not spoken yet, oldest first."""
    found = conn.execute(
        text(
            f"{rows.VERSION_SELECT} WHERE v.model_id = :model AND v.gate = 'pending' "
            "ORDER BY v.number"
        ),
        {"model": model_id},
    )
    return [rows.version(row) for row in found]


def live_set(conn: Connection, version_id: int) -> list[SetMember]:
    """The edit set of a version with each edit's factor, in edit order."""
    found = conn.execute(
        text("SELECT edit_id, factor_digest FROM live_set(:version) ORDER BY edit_id"),
        {"version": version_id},
    )
    return [SetMember(int(row.edit_id), row.factor_digest) for row in found]


def members(conn: Connection, version_id: int, edit_ids: Sequence[int]) -> list[SetMember]:
    """Which of `edit_ids` are in a version's set; does not read the whole set."""
    found = conn.execute(
        text(
            f"""{_LINE}, newest AS (
                SELECT DISTINCT ON (c.edit_id) c.edit_id, c.op, c.factor_digest
                  FROM version_edits AS c JOIN line ON line.id = c.version_id
                 WHERE c.edit_id = ANY(:ids) ORDER BY c.edit_id, line.number DESC)
            SELECT edit_id, factor_digest FROM newest WHERE op = 'add' ORDER BY edit_id"""  # noqa: S608 - our words
        ),
        {"version": version_id, "ids": list(edit_ids)},
    )
    return [SetMember(int(row.edit_id), row.factor_digest) for row in found]


def lineage(conn: Connection, version_id: int) -> list[Version]:
    """A version and its ancestors, newest first."""
    get(conn, version_id)
    found = conn.execute(
        text(f"{_LINE} {rows.VERSION_SELECT} JOIN line ON line.id = v.id ORDER BY v.number DESC"),
        {"version": version_id},
    )
    return [rows.version(row) for row in found]


def changes(
    conn: Connection, version_id: int
) -> tuple[tuple[SetMember, ...], tuple[SetMember, ...]]:
    """What a version added to and removed from its parent's set."""
    found = conn.execute(
        text(
            "SELECT edit_id, op, factor_digest FROM version_edits "
            "WHERE version_id = :version ORDER BY edit_id"
        ),
        {"version": version_id},
    ).all()
    adds = tuple(SetMember(int(r.edit_id), r.factor_digest) for r in found if r.op == "add")
    removes = tuple(SetMember(int(r.edit_id), r.factor_digest) for r in found if r.op == "remove")
    return adds, removes


def diff(conn: Connection, a_id: int, b_id: int) -> tuple[list[SetMember], list[SetMember]]:
    """Members only in the first version's set, and only in the second's."""
    a, b = set(live_set(conn, a_id)), set(live_set(conn, b_id))
    return (
        sorted(a - b, key=lambda one: one.edit_id),
        sorted(b - a, key=lambda one: one.edit_id),
    )


# -- building -------------------------------------------------------------------------------------


def parent_of_next(conn: Connection, model_id: int) -> Version:
    """The version the next one builds on: candidate, else production, else the base."""
    row = conn.execute(
        text(
            f"""{rows.VERSION_SELECT}
              JOIN aliases AS a ON a.version_id = v.id
             WHERE a.model_id = :model AND a.name IN ('candidate', 'production')
             ORDER BY a.name LIMIT 1"""  # "candidate" sorts first
        ),
        {"model": model_id},
    ).one_or_none()
    return find(conn, model_id, 0) if row is None else rows.version(row)


def commit(conn: Connection, lease: Lease, draft: VersionDraft, *, actor: str) -> Committed:
    """Make a built version real, in one transaction: the exactly-once effect.

    The batch's edits become applied, the lease's fence is used up. Use the returned lease from
    then on.

    Raises:
        StaleFence: The lease was lost or ran out.
        StaleParent: The candidate moved since the plan.
        BatchChanged: An edit to add was cancelled or returned since the plan.
        WrongState: The version would change nothing.
    """
    renewed = leases.advance(conn, lease)
    chosen = draft.plan
    if not chosen.adds and not chosen.removes and draft.footing is None:
        raise WrongState("the version would change nothing: there is no edit to add or remove")
    parent = chosen.parent
    present = _locked_parent(conn, lease.model_id)
    if parent.id != present:
        raise StaleParent(
            f"version {parent.number} was to be built on, but the candidate is now version "
            f"{get(conn, present).number}: plan again"
        )
    add_ids = [one.edit_id for one in chosen.adds]
    moved = _apply(conn, lease.model_id, draft.batch_id, add_ids)
    # What was claimed until now is in no set; only a rebase adds what is in the line already.
    standing = sorted(set(add_ids) - set(transitions.ids_of(moved)))
    again = members(conn, parent.id, standing) if standing else []
    model = draft.footing or get_model(conn, lease.model_id)
    row = conn.execute(
        text(
            f"""
            WITH version AS (
                INSERT INTO versions (model_id, number, parent_id, digest, base_digest,
                                      editor_digest, composition, batch_id, fence, path, bytes,
                                      weights_digest, platform, edit_count, created_by, meta)
                SELECT :model, max(number) + 1, :parent, :digest, :base, :editor, :composition,
                       :batch, :fence, :path, :bytes, :weights, :platform, :edits, :actor, :meta
                  FROM versions WHERE model_id = :model
                RETURNING *
            ), changes AS (
                INSERT INTO version_edits (version_id, edit_id, op, factor_digest)
                SELECT version.id, c.edit_id, CAST(c.op AS change_op), c.factor_digest
                  FROM version, unnest(CAST(:ids AS bigint[]), CAST(:ops AS text[]),
                                       CAST(:digests AS text[])) AS c(edit_id, op, factor_digest)
            )
            {rows.VERSION_COLUMNS} FROM version AS v LEFT JOIN versions AS parent
                ON parent.id = v.parent_id
            """  # noqa: S608 - our words
        ),
        {
            "model": lease.model_id,
            "parent": parent.id,
            "digest": draft.digest,
            "base": model.base_digest,
            "editor": model.editor.digest,
            "composition": Jsonb(dict(model.composition)),
            "batch": draft.batch_id,
            "fence": lease.fence,
            "path": draft.path,
            "bytes": draft.bytes,
            "weights": draft.weights_digest,
            "platform": draft.platform,
            "edits": parent.edit_count + len(add_ids) - len(again) - len(chosen.removes),
            "actor": actor,
            "meta": Jsonb(dict(draft.meta) | ({"source": model.source} if draft.footing else {})),
            "ids": [one.edit_id for one in (*chosen.adds, *chosen.removes)],
            "ops": ["add"] * len(chosen.adds) + ["remove"] * len(chosen.removes),
            "digests": [one.factor_digest for one in (*chosen.adds, *chosen.removes)],
        },
    ).one()
    _note_superseded(conn, add_ids, [one.edit_id for one in chosen.removes])
    audit.append(
        conn,
        "version.committed",
        actor=actor,
        model_id=lease.model_id,
        subject=f"version:{row.id}",
        data={
            "adds": ranges.to_text(add_ids),
            "batch": draft.batch_id,
            "digest": draft.digest,
            "fence": lease.fence,
            "moves": audit.as_moves(moved),
            "number": row.number,
            "parent": parent.number,
            "removes": ranges.to_text(one.edit_id for one in chosen.removes),
            "version": row.id,
            "weights_digest": draft.weights_digest,
        },
        edit_ids=[*add_ids, *(one.edit_id for one in chosen.removes)],
    )
    return Committed(rows.version(row), renewed)


def reject(
    conn: Connection,
    lease: Lease,
    version_id: int,
    culprits: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    actor: str,
) -> list[int]:
    """After a failed gate: quarantine the culprits, claim the rest of the version again.

    The rest stays in the same open batch (a following `plan` takes it); where that batch is closed
    it goes back to the queue.

    Returns:
        Edits that can be built again.

    Raises:
        StaleFence: The lease was lost.
        WrongState: The version's gate did not fail.
    """
    leases.check(conn, lease)
    version = get(conn, version_id)
    if version.gate is not GateOutcome.FAIL or version.overridden_by is not None:
        raise WrongState(
            f"version {version.number} has gate {version.gate}: only a failed one can be rejected"
        )
    adds, _ = changes(conn, version_id)
    ids = [one.edit_id for one in adds]
    moved: list[transitions.Moved] = []
    if culprits:
        assert version.batch_id is not None
        moved += end_edits(conn, version.batch_id, EditState.QUARANTINED, culprits)
    # Where the candidate went to another base or editor meanwhile, the rest's factors are of no use
    # here: back to the queue.
    is_open = conn.execute(
        text(
            "SELECT EXISTS (SELECT FROM batches AS b JOIN models AS m ON m.id = b.model_id "
            "JOIN editors AS d ON d.id = m.editor_id WHERE b.id = :batch AND b.state = 'open' "
            "AND m.base_digest = :base AND d.digest = :editor)"
        ),
        {
            "batch": version.batch_id,
            "base": version.base_digest,
            "editor": version.editor_digest,
        },
    ).scalar_one()
    rest = """e.id = ANY(:ids) AND e.state = 'applied'
              AND e.id NOT IN (SELECT c.edit_id FROM version_edits AS c
                                 JOIN versions AS v ON v.id = c.version_id
                                WHERE c.edit_id = ANY(:ids) AND c.op = 'add' AND v.id <> :version
                                  AND (v.gate <> 'fail' OR v.overridden_by IS NOT NULL))"""
    params = {"ids": ids, "version": version_id}
    if is_open:
        again = move(conn, EditState.CLAIMED, f"{rest} AND e.batch_id IS NOT NULL", params)
    else:
        again = requeue(conn, lease.model_id, rest, params)
    audit.append(
        conn,
        "version.rejected",
        actor=actor,
        model_id=lease.model_id,
        subject=f"version:{version_id}",
        data={
            "culprits": ranges.to_text(culprits or ()),
            "moves": audit.as_moves(moved + again),
            "number": version.number,
        },
        edit_ids=transitions.ids_of(moved + again),
    )
    return transitions.ids_of(again)


def record_weights(conn: Connection, version_id: int, weights_digest: str, platform: str) -> None:
    """Note the digest of a version's materialised weights with the platform that made them."""
    conn.execute(
        text(
            "UPDATE versions SET weights_digest = :weights, platform = :platform "
            "WHERE id = :version"
        ),
        {"weights": weights_digest, "platform": platform, "version": version_id},
    )


def _locked_parent(conn: Connection, model_id: int) -> int:
    """What `parent_of_next` gives, while promotions and rollbacks are kept out until commit."""
    found = conn.execute(
        text(
            "SELECT name, version_id FROM aliases WHERE model_id = :model ORDER BY name FOR SHARE"
        ),
        {"model": model_id},
    )
    at = {row.name: int(row.version_id) for row in found}
    known = at.get("candidate", at.get("production"))
    return find(conn, model_id, 0).id if known is None else known


def _apply(
    conn: Connection, model_id: int, batch_id: int | None, add_ids: Sequence[int]
) -> list[transitions.Moved]:
    if not add_ids:
        return []
    moved = move(
        conn,
        EditState.APPLIED,
        "e.id = ANY(:ids) AND e.state = 'claimed' AND e.batch_id = :batch AND e.model_id = :model",
        {"ids": list(add_ids), "batch": batch_id, "model": model_id},
        sets="cohort = NULL, error = NULL",
    )
    left = set(add_ids) - set(transitions.ids_of(moved))
    if left:
        # A rebase adds edits that are in the line already, with factors for the new base.
        standing = conn.execute(
            text(
                "SELECT count(*) FROM edits WHERE id = ANY(:ids) AND model_id = :model "
                "AND state IN ('applied', 'live')"
            ),
            {"ids": list(left), "model": model_id},
        ).scalar_one()
        if standing != len(left) or batch_id is not None:
            raise BatchChanged(
                f"edits {ranges.to_text(left)} are not claimed in batch {batch_id} any more "
                "(cancelled or taken over): plan again"
            )
    return moved


def _note_superseded(conn: Connection, add_ids: Sequence[int], remove_ids: Sequence[int]) -> None:
    """Removed edits whose fact an added one holds now are superseded by it."""
    if add_ids and remove_ids:
        conn.execute(
            text(
                """
                UPDATE edits AS old SET superseded_by = new.id FROM edits AS new
                 WHERE old.id = ANY(:removes) AND new.id = ANY(:adds)
                   AND new.fact_key = old.fact_key AND new.model_id = old.model_id
                """
            ),
            {"removes": list(remove_ids), "adds": list(add_ids)},
        )
