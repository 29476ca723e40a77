"""The invariant checker: what must always hold, asked of the tables and of the trail.

`check` is what `mend doctor` prints and what every chaos test calls after its run. Shallow checks
cost little at any size; `deep` replays the whole trail and recomputes every version's digest.

Rules (a finding carries one of these names):
    trail-verifies, trail-replays, edit-lost, edit-in-two-places, edit-applied-twice, version-chain,
    version-count, version-digest, fence-order, promoted-unproven, proof-withdrawn, footing,
    alias-history, stranded, schema-rule
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection

from ledger import audit, ranges, versions
from ledger.db import text
from ledger.errors import AuditBroken
from ledger.records import Finding, SetMember, Version
from ledger.states import EDIT_MOVES, EditState

Recompute = Callable[[Version, list[SetMember]], str]
"""Digest of a version from its edit set (`mend_core`'s version_digest; no torch here)."""

GRACE_SECONDS = 30.0
_PAGE = 2_000
_KEPT_SETS = 8


def check(
    conn: Connection,
    *,
    deep: bool = False,
    recompute: Recompute | None = None,
    grace: float = GRACE_SECONDS,
) -> list[Finding]:
    """Everything that does not hold; an empty list is what you want.

    * `deep`: Also verify and replay the trail, and walk every version's set.
    * `recompute`: With it, `deep` also compares every version's digest.
    * `grace`: Seconds a lease may be over before its rows count as stranded (a sweep frees them).
    """
    conn.execute(text("SET LOCAL statement_timeout = 0"))
    found: list[Finding] = []
    for part in (_chain, _promoted, _standing, _alias_history, _places, _rules):
        found += part(conn)
    found += _stranded(conn, grace)
    if deep:
        found += _trail(conn)
        found += _replay(conn)
        found += _sets(conn, recompute)
    return found


def _query(
    conn: Connection, rule: str, statement: str, params: dict[str, Any] | None = None
) -> Iterator[Finding]:
    """Findings of a statement that selects (thing, problem)."""
    for thing, problem in conn.execute(text(statement), params or {}):
        yield Finding(rule, str(thing), str(problem))


def _chain(conn: Connection) -> Iterator[Finding]:
    """Numbers without gaps, parents that exist and are older, fences that only grow."""
    yield from _query(
        conn,
        "version-chain",
        """
        SELECT 'model ' || model_id,
               'has ' || count(*) || ' versions, the last is number ' || max(number)
          FROM versions GROUP BY model_id HAVING max(number) + 1 <> count(*) OR min(number) <> 0
        """,
    )
    yield from _query(
        conn,
        "version-chain",
        """
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'has parent ' || p.number || ' of model ' || p.model_id
          FROM versions AS v JOIN versions AS p ON p.id = v.parent_id
         WHERE p.number >= v.number OR p.model_id <> v.model_id
        """,
    )
    yield from _query(
        conn,
        "fence-order",
        """
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'has fence ' || v.fence || ', the one before it ' || v.before
          FROM (SELECT model_id, number, fence,
                       lag(fence) OVER (PARTITION BY model_id ORDER BY number) AS before
                  FROM versions WHERE number > 0) AS v
         WHERE v.fence <= v.before
        UNION ALL
        SELECT 'model ' || l.model_id,
               'its lease has fence ' || l.fence || ', a version already used ' || max(v.fence)
          FROM leases AS l JOIN versions AS v ON v.model_id = l.model_id
         GROUP BY l.model_id, l.fence HAVING max(v.fence) >= l.fence
        """,
    )


def _promoted(conn: Connection) -> Iterator[Finding]:
    """Whatever production or the candidate ever was had passed its gate, or was overridden."""
    yield from _query(
        conn,
        "promoted-unproven",
        """
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'was made ' || m.name || ' with gate ' || v.gate || ' and no override'
          FROM alias_moves AS m JOIN versions AS v ON v.id = m.to_version_id
         WHERE m.name IN ('production', 'candidate') AND v.gate <> 'pass'
           AND v.overridden_by IS NULL
        UNION
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'counts as passed, but no gate decision says so'
          FROM versions AS v
         WHERE v.number > 0 AND v.gate = 'pass'
           AND NOT EXISTS (SELECT FROM gates AS g WHERE g.version_id = v.id AND g.outcome = 'pass')
        UNION
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'counts as overridden, but no decision gives a reason'
          FROM versions AS v
         WHERE v.overridden_by IS NOT NULL
           AND NOT EXISTS (SELECT FROM gates AS g WHERE g.version_id = v.id
                              AND g.override_reason IS NOT NULL AND g.actor = v.overridden_by)
        """,
    )


def _standing(conn: Connection) -> Iterator[Finding]:
    """What production and the candidate rest on still holds, and models follow their candidate."""
    yield from _query(
        conn,
        "proof-withdrawn",
        """
        SELECT 'version ' || v.number || ' of model ' || v.model_id,
               'is ' || a.name || ', but its proof was withdrawn'
          FROM aliases AS a JOIN versions AS v ON v.id = a.version_id
         WHERE a.name IN ('production', 'candidate') AND v.meta ? 'withdrawn'
        """,
    )
    yield from _query(
        conn,
        "footing",
        """
        SELECT 'model ' || m.id, 'does not stand on the base, editor and composition of its '
               || 'candidate, version ' || v.number
          FROM models AS m JOIN editors AS d ON d.id = m.editor_id
          JOIN aliases AS a ON a.model_id = m.id AND a.name = 'candidate'
          JOIN versions AS v ON v.id = a.version_id
         WHERE v.base_digest <> m.base_digest
            OR (v.edit_count > 0
                AND (v.editor_digest <> d.digest OR v.composition <> m.composition))
        """,
    )


def _alias_history(conn: Connection) -> Iterator[Finding]:
    """Every alias is where its last move put it; each move starts where the one before ended."""
    yield from _query(
        conn,
        "alias-history",
        """
        SELECT 'alias ' || a.name || ' of model ' || a.model_id,
               'is not where its last recorded move put it'
          FROM aliases AS a
         WHERE a.version_id IS DISTINCT FROM (
               SELECT m.to_version_id FROM alias_moves AS m
                WHERE m.model_id = a.model_id AND m.name = a.name ORDER BY m.id DESC LIMIT 1)
        UNION ALL
        SELECT 'alias ' || m.name || ' of model ' || m.model_id,
               'move ' || m.id || ' does not start where the one before it ended'
          FROM (SELECT *, lag(to_version_id)
                       OVER (PARTITION BY model_id, name ORDER BY id) AS before
                  FROM alias_moves) AS m
         WHERE m.from_version_id IS DISTINCT FROM m.before
        """,
    )


def _places(conn: Connection) -> Iterator[Finding]:
    """An edit's state and the sets of production, candidate and unjudged versions agree."""
    yield from _query(
        conn,
        "edit-in-two-places",
        """
        WITH p AS (
            SELECT a.model_id, s.edit_id FROM aliases AS a, live_set(a.version_id) AS s
             WHERE a.name = 'production'
        ), c AS (
            SELECT a.model_id, s.edit_id FROM aliases AS a, live_set(a.version_id) AS s
             WHERE a.name = 'candidate'
        )
        SELECT 'edit ' || e.id, 'is in production but its state is ' || e.state
          FROM p JOIN edits AS e ON e.id = p.edit_id WHERE e.state <> 'live'
        UNION ALL
        SELECT 'edit ' || e.id, 'is live but not in production'
          FROM edits AS e
         WHERE e.state = 'live' AND NOT EXISTS (SELECT FROM p WHERE p.edit_id = e.id)
        UNION ALL
        SELECT 'edit ' || e.id, 'is in the candidate but its state is ' || e.state
          FROM c JOIN edits AS e ON e.id = c.edit_id WHERE e.state NOT IN ('live', 'applied')
        UNION ALL
        SELECT 'edit ' || e.id, 'is applied, but in no version that stands'
          FROM edits AS e
         WHERE e.state = 'applied' AND NOT EXISTS (SELECT FROM c WHERE c.edit_id = e.id)
           AND NOT EXISTS (
               SELECT FROM version_edits AS x JOIN versions AS v ON v.id = x.version_id
                WHERE x.edit_id = e.id AND x.op = 'add'
                  AND (v.gate IN ('pending', 'inconclusive')
                       OR (v.gate = 'fail' AND EXISTS (
                           SELECT FROM batches AS b WHERE b.id = e.batch_id AND b.state = 'open'))))
        UNION ALL
        SELECT 'edit ' || e.id, 'is in the sets of two models'
          FROM p JOIN edits AS e ON e.id = p.edit_id WHERE e.model_id <> p.model_id
        UNION ALL
        SELECT 'model ' || e.model_id,
               'has ' || count(*) || ' edits of one fact in production: ' || string_agg(e.id::text,
               ', ')
          FROM p JOIN edits AS e ON e.id = p.edit_id
         GROUP BY e.model_id, e.fact_key HAVING count(*) > 1
        """,
    )


def _stranded(conn: Connection, grace: float) -> Iterator[Finding]:
    """Nothing waits on a worker that is gone."""
    yield from _query(
        conn,
        "stranded",
        """
        SELECT 'model ' || model_id, 'its lease ran out at ' || until || ' and nobody freed it'
          FROM leases WHERE until < clock_timestamp() - make_interval(secs => :grace)
        UNION ALL
        SELECT 'job ' || id, 'its lease ran out at ' || until || ' and nobody took it over'
          FROM jobs
         WHERE state = 'running' AND until < clock_timestamp() - make_interval(secs => :grace)
        UNION ALL
        SELECT 'edit ' || e.id, 'is claimed in batch ' || e.batch_id || ', which is ' || b.state
          FROM edits AS e JOIN batches AS b ON b.id = e.batch_id
         WHERE e.state = 'claimed' AND b.state <> 'open'
        UNION ALL
        SELECT 'batch ' || b.id, 'is open with claimed edits, but nobody holds its model''s lease'
          FROM batches AS b JOIN leases AS l ON l.model_id = b.model_id
         WHERE b.state = 'open' AND l.worker IS NULL
           AND EXISTS (SELECT FROM edits AS e WHERE e.batch_id = b.id AND e.state = 'claimed')
        UNION ALL
        SELECT 'edit ' || id, 'is waiting for ' || not_before || ', which is past'
          FROM edits
         WHERE state = 'submitted'
           AND not_before < clock_timestamp() - make_interval(secs => :grace)
        """,
        {"grace": grace},
    )


def _rules(conn: Connection) -> Iterator[Finding]:
    """The rules in the schema are all there and switched on: nobody dropped or disabled one."""
    yield from _query(
        conn,
        "schema-rule",
        """
        SELECT 'trigger ' || t.tgname, 'is switched off on ' || t.tgrelid::regclass
          FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = current_schema() AND NOT t.tgisinternal AND t.tgenabled = 'D'
        UNION ALL
        SELECT 'trigger ' || wanted.name, 'is missing'
          FROM unnest(ARRAY['audit_rows_never_change', 'audit_is_never_emptied',
               'audit_head_advances', 'audit_head_is_never_removed', 'audit_head_is_never_emptied',
               'edits_move_is_allowed', 'edits_begin_well', 'edits_are_never_deleted',
               'edits_content_is_fixed', 'versions_are_immutable', 'versions_are_never_deleted',
               'version_sets_are_immutable', 'leases_fence_grows']) AS wanted(name)
         WHERE NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgname = wanted.name)
        UNION ALL
        SELECT 'index ' || wanted.name, 'is missing or invalid'
          FROM unnest(ARRAY['one_waiting_edit_per_fact', 'one_claimed_edit_per_fact',
               'one_live_edit_per_fact', 'one_edit_per_idempotency_key', 'one_open_batch_per_model',
               'no_fork', 'one_version_per_number', 'one_version_per_fence']) AS wanted(name)
         WHERE NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
                            WHERE c.relname = wanted.name AND i.indisvalid AND i.indisunique)
        """,
    )


def _trail(conn: Connection) -> Iterator[Finding]:
    try:
        audit.verify(conn)
    except AuditBroken as error:
        yield Finding("trail-verifies", "audit trail", str(error))


def _replay(conn: Connection) -> Iterator[Finding]:
    """Replay every move of every edit; the end must be the table, each step an allowed one."""
    states: dict[int, str] = {}
    committed: dict[int, str] = {}
    after = 0
    while page := conn.execute(
        text(
            "SELECT seq, kind, body FROM audit WHERE seq > :after AND (edits IS NOT NULL "
            "OR kind = 'version.committed') ORDER BY seq LIMIT :page"
        ),
        {"after": after, "page": _PAGE},
    ).all():
        for row in page:
            after = row.seq
            data = json.loads(row.body)["data"]
            if row.kind == "version.committed":
                committed[int(data["version"])] = str(data["digest"])
            yield from _step(row.seq, data, states)
    yield from _compare(conn, states, committed)


def _compare(
    conn: Connection, states: dict[int, str], committed: dict[int, str]
) -> Iterator[Finding]:
    """What the trail ends with against the tables."""
    for row in conn.execute(text("SELECT id, state FROM edits ORDER BY id")):
        said = states.pop(int(row.id), None)
        if said is None:
            yield Finding("trail-replays", f"edit {row.id}", "is in no event of the trail")
        elif said != row.state:
            yield Finding(
                "trail-replays", f"edit {row.id}", f"is {row.state}, the trail says {said}"
            )
    if states:
        yield Finding(
            "edit-lost",
            f"edits {ranges.to_text(states)}",
            "were accepted, as the trail says, and are not in the table",
        )
    for row in conn.execute(text("SELECT id, number, digest FROM versions WHERE number > 0")):
        if committed.pop(int(row.id), None) != row.digest:
            yield Finding(
                "trail-replays", f"version id {row.id}", "is not in the trail with this digest"
            )
    for version_id in committed:
        yield Finding("trail-replays", f"version id {version_id}", "is in the trail only")


def _step(seq: int, data: dict[str, Any], states: dict[int, str]) -> Iterator[Finding]:
    for one in data.get("moves", ()):
        before, to = one["from"], EditState(one["to"])
        allowed = EDIT_MOVES[None if before is None else EditState(before)]
        if to not in allowed:
            yield Finding("trail-replays", f"event {seq}", f"moves {before} to {to}: not allowed")
        for edit_id in ranges.from_text(one["edits"]):
            if states.get(edit_id) != before:
                yield Finding(
                    "trail-replays",
                    f"edit {edit_id}",
                    f"event {seq} moves it from {before}, it was {states.get(edit_id)}",
                )
            states[edit_id] = to.value


def _sets(conn: Connection, recompute: Recompute | None) -> Iterator[Finding]:
    """Each version is its parent's set plus its changes, none of them idle, and has its digest."""
    parents: dict[int, dict[int, str]] = {}  # the last few sets: parents are mostly recent
    for row in conn.execute(text("SELECT id FROM versions ORDER BY model_id, number")).all():
        version = versions.get(conn, int(row.id))
        members = versions.live_set(conn, version.id)
        present = {one.edit_id: one.factor_digest for one in members}
        thing = f"version {version.number} of model {version.model_id}"
        if len(members) != version.edit_count:
            yield Finding(
                "version-count", thing, f"says {version.edit_count} edits, has {len(members)}"
            )
        if version.parent_id is not None:
            before = parents.get(version.parent_id)
            if before is None:
                found = versions.live_set(conn, version.parent_id)
                before = {one.edit_id: one.factor_digest for one in found}
            yield from _idle_changes(conn, version, before)
        parents[version.id] = present
        if len(parents) > _KEPT_SETS:
            del parents[min(parents)]
        if recompute is not None:
            digest = recompute(version, members)
            if digest != version.digest:
                yield Finding(
                    "version-digest", thing, f"says {version.digest}, its set gives {digest}"
                )


def _idle_changes(conn: Connection, version: Version, before: dict[int, str]) -> Iterator[Finding]:
    """Changes that change nothing: an edit added twice, or removed where it is not."""
    thing = f"version {version.number} of model {version.model_id}"
    adds, removes = versions.changes(conn, version.id)
    for one in adds:
        if before.get(one.edit_id) == one.factor_digest:
            yield Finding("edit-applied-twice", f"edit {one.edit_id}", f"{thing} adds it again")
    for one in removes:
        if one.edit_id not in before:
            yield Finding(
                "edit-applied-twice", f"edit {one.edit_id}", f"{thing} removes what is not there"
            )
