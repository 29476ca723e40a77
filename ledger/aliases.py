"""Aliases: moving names for versions, with their full history.

`production` is what the world uses, `candidate` what the next version builds on. Every move says
who, when, why, from and to. After each move of those two, edits follow: in production's set they
are live, in the candidate's applied, in neither reverted or superseded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlalchemy import Connection

from ledger import audit, footing, versions
from ledger.db import text
from ledger.errors import (
    AliasMoved,
    AliasProtected,
    NoSuchAlias,
    NoSuchVersion,
    RequestInvalid,
    StaleParent,
    Unproven,
    WrongState,
)
from ledger.previous import previous
from ledger.records import Alias, AliasMove, Version
from ledger.states import EditState
from ledger.transitions import Moved
from ledger.transitions import move as move_edits

PRODUCTION = "production"
CANDIDATE = "candidate"
_NAME = re.compile(r"^[a-z][a-z0-9._-]{0,62}$")
_RESERVED = {"previous", "base"}

_SELECT = """
    SELECT a.model_id, a.name, a.version_id, v.number, a.protected, a.moved_at
      FROM aliases AS a JOIN versions AS v ON v.id = a.version_id"""


def get(conn: Connection, model_id: int, name: str) -> Alias:
    """One alias.

    Raises:
        NoSuchAlias: None of this name.
    """
    row = conn.execute(
        text(f"{_SELECT} WHERE a.model_id = :model AND a.name = :name"),
        {"model": model_id, "name": name},
    ).one_or_none()
    if row is None:
        raise NoSuchAlias(f"model {model_id} has no alias {name!r}: see 'mend versions'")
    return Alias(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def list_aliases(conn: Connection, model_id: int) -> list[Alias]:
    """Every alias of a model, by name."""
    found = conn.execute(
        text(f"{_SELECT} WHERE a.model_id = :model ORDER BY a.name"), {"model": model_id}
    )
    return [Alias(**row._mapping) for row in found]  # noqa: SLF001 - as above


def history(
    conn: Connection, model_id: int, name: str | None = None, *, limit: int = 1_000
) -> list[AliasMove]:
    """Every move, newest first."""
    found = conn.execute(
        text(
            """
            SELECT m.name AS alias, m.kind, old.number AS from_number, new.number AS to_number,
                   m.actor, m.approved_by, m.reason, m.at
              FROM alias_moves AS m LEFT JOIN versions AS old ON old.id = m.from_version_id
              JOIN versions AS new ON new.id = m.to_version_id
             WHERE m.model_id = :model AND (CAST(:name AS text) IS NULL OR m.name = :name)
             ORDER BY m.id DESC LIMIT :limit
            """
        ),
        {"model": model_id, "name": name, "limit": limit},
    )
    return [AliasMove(**row._mapping) for row in found]  # noqa: SLF001 - as above


def promote(
    conn: Connection,
    model_id: int,
    version_id: int,
    *,
    actor: str,
    reason: str,
    approved_by: str | None = None,
    seen: Mapping[str, int] | None = None,
) -> AliasMove:
    """Move production to a proven version; a candidate it was built on comes along.

    Left behind by a rollback that is undone now, the candidate would make a next version without
    edits that are live.

    * `seen`: Alias → version id, where the caller saw them when it decided.

    Raises:
        AliasMoved: One of `seen` is elsewhere now.
        Unproven: Its gate has not passed and nobody overrode it.
        VersionCollected: Its files are gone.
        AliasProtected: production is protected and no second person approves.
        WrongState: It is in production already.
    """
    _lock(conn, model_id)
    _demand_seen(conn, model_id, seen or {})
    made = _move(conn, model_id, PRODUCTION, version_id, "promote", actor, reason, approved_by)
    behind = get(conn, model_id, CANDIDATE).version_id
    if behind != version_id and versions.descends(conn, version_id, behind):
        why = f"follows production: {reason}"
        _move(conn, model_id, CANDIDATE, version_id, "move", actor, why, approved_by)
    return made


def rollback(
    conn: Connection,
    model_id: int,
    *,
    to_version_id: int | None = None,
    actor: str,
    reason: str,
    approved_by: str | None = None,
    seen: Mapping[str, int] | None = None,
) -> AliasMove:
    """Move production, and candidate with it, back to an earlier version.

    * `to_version_id`: Where to; None for what production was before.
    * `seen`: See `promote`.

    Raises:
        AliasMoved: One of `seen` is elsewhere now.
        NoSuchVersion: Production was nothing else before.
        VersionCollected: The files of the version are gone.
        AliasProtected: production is protected and no second person approves.
    """
    _lock(conn, model_id)
    _demand_seen(conn, model_id, seen or {})
    target = previous(conn, model_id) if to_version_id is None else to_version_id
    made = _move(conn, model_id, PRODUCTION, target, "rollback", actor, reason, approved_by)
    if get(conn, model_id, CANDIDATE).version_id != target:
        _move(conn, model_id, CANDIDATE, target, "rollback", actor, reason, approved_by)
    return made


def move(
    conn: Connection,
    model_id: int,
    name: str,
    version_id: int,
    *,
    actor: str,
    reason: str,
    approved_by: str | None = None,
) -> AliasMove:
    """Point an alias of the user's own (made where it is new) or the candidate at a version.

    Raises:
        RequestInvalid: Not a name for an alias.
        Unproven: The candidate only ever is a proven version.
        AliasProtected: It is protected and no second person approves.
    """
    if name == PRODUCTION:
        return promote(
            conn, model_id, version_id, actor=actor, reason=reason, approved_by=approved_by
        )
    if not _NAME.match(name) or name in _RESERVED:
        raise RequestInvalid(
            f"{name!r} cannot be an alias; expected a lower-case name such as 'staging' "
            "(previous and base have a meaning already)",
            field="alias",
        )
    return _move(conn, model_id, name, version_id, "move", actor, reason, approved_by)


def advance_candidate(conn: Connection, version: Version, *, actor: str, reason: str) -> bool:
    """Make a just-proven version the candidate, where the candidate is still its parent.

    Raises:
        StaleParent: The candidate went elsewhere while the version was judged.
    """
    _lock(conn, version.model_id)
    present = conn.execute(
        text("SELECT version_id FROM aliases WHERE model_id = :model AND name = 'candidate'"),
        {"model": version.model_id},
    ).scalar_one()
    if present == version.id:
        return False
    if present != version.parent_id:
        raise StaleParent(
            f"version {version.number} was built on version {version.parent_number}, but the "
            f"candidate is version {versions.get(conn, present).number} now: its edits must be "
            "built again"
        )
    _moved(conn, version, CANDIDATE, "move", actor, reason, None)
    return True


def protect(
    conn: Connection,
    model_id: int,
    name: str,
    protected: bool,
    *,
    actor: str,
    reason: str,
    approved_by: str | None = None,
) -> Alias:
    """Protect an alias (its moves need a second person from now on) or lift that.

    Raises:
        AliasProtected: Lifting it needs a second person too: one alone could else lift it, move the
            alias, and protect it again.
    """
    before = get(conn, model_id, name)
    if before.protected and not protected and approved_by in {None, "", actor}:
        raise AliasProtected(
            f"alias {name!r} is protected: someone other than {actor!r} must approve that it is "
            "not any more"
        )
    if before.protected != protected:
        conn.execute(
            text(
                "UPDATE aliases SET protected = :protected WHERE model_id = :model AND name = :name"
            ),
            {"protected": protected, "model": model_id, "name": name},
        )
        audit.append(
            conn,
            "alias.protected" if protected else "alias.unprotected",
            actor=actor,
            model_id=model_id,
            subject=f"alias:{model_id}:{name}",
            data={"alias": name, "approved_by": approved_by, "reason": reason},
        )
    return get(conn, model_id, name)


def _lock(conn: Connection, model_id: int) -> None:
    conn.execute(
        text("SELECT FROM aliases WHERE model_id = :model ORDER BY name FOR UPDATE"),
        {"model": model_id},
    )


def _demand_seen(conn: Connection, model_id: int, seen: Mapping[str, int]) -> None:
    """Refuse a decision that was taken on another picture than the present one."""
    for name, version_id in seen.items():
        now = get(conn, model_id, name)
        if now.version_id != version_id:
            was = versions.get(conn, version_id).number
            raise AliasMoved(
                f"{name} moved from version {was} to version {now.number} meanwhile: nothing was "
                "changed; look at what the move would do now and decide again"
            )


def _move(  # noqa: PLR0917 - one row of the history, its columns in order
    conn: Connection,
    model_id: int,
    name: str,
    version_id: int,
    kind: str,
    actor: str,
    reason: str,
    approved_by: str | None,
) -> AliasMove:
    _lock(conn, model_id)
    version = versions.get(conn, version_id)
    if version.model_id != model_id:
        raise NoSuchVersion(f"version id {version_id} belongs to another model")
    return _moved(conn, version, name, kind, actor, reason, approved_by)


def _demand_proof(conn: Connection, version: Version, name: str) -> None:
    """Refuse a version that is not proven, or whose proof rests on one that no longer is.

    A gate compares a version with its parent, so its proof stands only as long as the parent's.
    What production or the candidate is stands (`gates.withdraw` sees to that): the walk ends there.
    """
    if not version.proven:
        why = "its proof was withdrawn" if version.withdrawn else f"gate {version.gate}"
        raise Unproven(
            f"version {version.number} is not proven ({why}): {name} only ever is a proven "
            f"version; see 'mend gate show {version.number}' or have an approver override it"
        )
    fallen = conn.execute(
        text(
            """
            WITH RECURSIVE standing AS (
                SELECT version_id FROM aliases
                 WHERE model_id = :model AND name IN ('production', 'candidate')
            ), line AS (
                SELECT id, parent_id, number, true AS proven FROM versions WHERE id = :version
                UNION ALL
                SELECT parent.id, parent.parent_id, parent.number,
                       (parent.gate = 'pass' OR parent.overridden_by IS NOT NULL)
                       AND NOT parent.meta ? 'withdrawn'
                  FROM versions AS parent JOIN line ON parent.id = line.parent_id
                 WHERE parent.id NOT IN (SELECT version_id FROM standing)
            )
            SELECT max(number) FROM line WHERE NOT proven
            """
        ),
        {"model": version.model_id, "version": version.id},
    ).scalar_one()
    if fallen is not None:
        raise Unproven(
            f"version {version.number} was built on version {fallen}, whose proof does not stand "
            f"any more: {name} cannot be it; submit its edits again"
        )


def _moved(  # noqa: PLR0917 - as above
    conn: Connection,
    version: Version,
    name: str,
    kind: str,
    actor: str,
    reason: str,
    approved_by: str | None,
) -> AliasMove:
    """Point an alias at a version that was read under the lock of the model's aliases."""
    if not reason.strip():
        raise RequestInvalid("is empty; every move needs a reason", field="reason")
    model_id, version_id = version.model_id, version.id
    if name in {PRODUCTION, CANDIDATE}:
        _demand_proof(conn, version, name)
    versions.demand_files(version)
    old = conn.execute(
        text("SELECT version_id, protected FROM aliases WHERE model_id = :model AND name = :name"),
        {"model": model_id, "name": name},
    ).one_or_none()
    if old is not None and old.version_id == version_id:
        raise WrongState(f"{name} is version {version.number} already")
    if old is not None and old.protected and approved_by in {None, "", actor}:
        raise AliasProtected(
            f"alias {name!r} is protected: someone other than {actor!r} must approve the move"
        )
    done = conn.execute(
        text(
            """
            WITH pointed AS (
                INSERT INTO aliases (model_id, name, version_id) VALUES (:model, :name, :new)
                ON CONFLICT (model_id, name) DO UPDATE
                   SET version_id = excluded.version_id, moved_at = clock_timestamp()
            )
            INSERT INTO alias_moves (model_id, name, kind, from_version_id, to_version_id, actor,
                                     approved_by, reason)
            VALUES (:model, :name, :kind, :old, :new, :actor, :approved_by, :reason)
            RETURNING at, kind, (SELECT number FROM versions WHERE id = from_version_id) AS number
            """
        ),
        {
            "model": model_id,
            "name": name,
            "kind": kind if old is not None else "create",
            "old": None if old is None else old.version_id,
            "new": version_id,
            "actor": actor,
            "approved_by": approved_by,
            "reason": reason,
        },
    ).one()
    # The row above holds the version against collection from here on; before it, one may have
    # come in between.
    versions.demand_files(versions.get(conn, version_id))
    if name == CANDIDATE:
        footing.follow(conn, version, actor=actor, reason=reason)
    moved: list[Moved] = []
    if name in {PRODUCTION, CANDIDATE}:
        moved = _edits_follow(conn, model_id, name, None if old is None else old.version_id)
    audit.append(
        conn,
        f"alias.{kind}",
        actor=actor,
        model_id=model_id,
        subject=f"alias:{model_id}:{name}",
        data={
            "alias": name,
            "approved_by": approved_by,
            "digest": version.digest,
            "from": done.number,
            "gate": version.gate.value,
            "moves": audit.as_moves(moved),
            "overridden_by": version.overridden_by,
            "reason": reason,
            "to": version.number,
        },
        edit_ids=[one for one, _, _ in moved],
    )
    return AliasMove(
        alias=name,
        kind=done.kind,
        from_number=done.number,
        to_number=version.number,
        actor=actor,
        approved_by=approved_by,
        reason=reason,
        at=done.at,
    )


def _line(name: str, start: str) -> str:
    """CTE of a version and its ancestors."""
    return f"""{name} AS (
        SELECT v.id, v.parent_id, v.number FROM versions AS v WHERE v.id = {start}
        UNION ALL
        SELECT v.id, v.parent_id, v.number FROM versions AS v JOIN {name} ON v.id = {name}.parent_id
    )"""  # noqa: S608 - our words


def _alias_of_model(name: str) -> str:
    return f"(SELECT version_id FROM aliases WHERE model_id = :model AND name = '{name}')"  # noqa: S608 - our words


def _newest(line: str) -> str:
    """The last change of each involved edit along a line: it is in the set where that is "add"."""
    return f"""
        SELECT DISTINCT ON (x.edit_id) x.edit_id, x.op FROM version_edits AS x
          JOIN {line} AS line ON line.id = x.version_id
         WHERE x.edit_id IN (SELECT edit_id FROM involved) ORDER BY x.edit_id, line.number DESC"""  # noqa: S608 - our words


def _wanted(moved: str) -> str:
    """Statement: each edit the move can concern, with the state it has and the one it should have.

    Only what the versions between the two ends changed can have come or gone, besides edits of
    versions in the making; so the cost does not grow with the number of live edits.
    """
    return f"""
        WITH RECURSIVE {_line(PRODUCTION, _alias_of_model(PRODUCTION))},
        {_line(CANDIDATE, _alias_of_model(CANDIDATE))},
        {_line("before", "CAST(:before AS bigint)")},
        between_ends AS (
            (SELECT id FROM before EXCEPT SELECT id FROM {moved})
            UNION ALL (SELECT id FROM {moved} EXCEPT SELECT id FROM before)
        ), involved AS (
            SELECT x.edit_id FROM version_edits AS x JOIN between_ends AS b ON b.id = x.version_id
            UNION SELECT id FROM edits WHERE model_id = :model AND state = 'applied'
        ), p AS ({_newest(PRODUCTION)}
        ), c AS ({_newest(CANDIDATE)}
        )
        SELECT e.id, e.state, CASE
            WHEN p.op = 'add' THEN 'live'
            WHEN c.op = 'add' THEN 'applied'
            WHEN e.state = 'applied' AND EXISTS (
                SELECT FROM version_edits AS x JOIN versions AS v ON v.id = x.version_id
                 WHERE x.edit_id = e.id AND x.op = 'add' AND v.overridden_by IS NULL
                   AND v.gate IN ('pending', 'inconclusive')) THEN 'applied'
            WHEN e.superseded_by IS NOT NULL THEN 'superseded'
            ELSE 'reverted' END AS wanted
          FROM involved JOIN edits AS e ON e.id = involved.edit_id
          LEFT JOIN p ON p.edit_id = e.id LEFT JOIN c ON c.edit_id = e.id"""  # noqa: S608 - our words


_WANTED = {name: _wanted(name) for name in (PRODUCTION, CANDIDATE)}


def _edits_follow(conn: Connection, model_id: int, name: str, before: int | None) -> list[Moved]:
    """Bring edits' states in line with production's and the candidate's sets after a move.

    Edits applied in a version that is still to be judged stay as they are.
    """
    wanted = conn.execute(text(_WANTED[name]), {"model": model_id, "before": before})
    groups: dict[str, list[int]] = {}
    for row in wanted:
        if row.state != row.wanted:
            groups.setdefault(row.wanted, []).append(int(row.id))
    moved: list[Moved] = []
    # Whatever leaves "live" goes first: one live edit per fact holds at every moment.
    for state in ("superseded", "reverted", "applied", "live"):
        if state in groups:
            moved += move_edits(
                conn,
                EditState(state),
                "e.id = ANY(:ids) AND e.model_id = :model",
                {"ids": groups[state], "model": model_id},
            )
    return moved
