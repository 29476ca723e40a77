"""Registered models and editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import audit, rows
from ledger.db import text
from ledger.errors import (
    AlreadyExists,
    NoSuchEditor,
    NoSuchModel,
    RequestInvalid,
    WrongState,
)
from ledger.records import Editor, Model

_CHANGEABLE = {
    "editor_id",
    "composition",
    "policy",
    "policy_digest",
    "settings",
    "approval",
    "auto_promote",
    "max_attempts",
}
_MAX_NAME = 200


def register_editor(
    conn: Connection,
    *,
    digest: str,
    kind: str,
    base_digest: str,
    path: str,
    meta: Mapping[str, Any] | None = None,
    actor: str,
) -> Editor:
    """Register an editor file; the same digest again returns the first, with the new path."""
    row = conn.execute(
        text(
            """
            INSERT INTO editors AS d (digest, kind, base_digest, path, meta)
            VALUES (:digest, :kind, :base, :path, :meta)
            ON CONFLICT (digest) DO NOTHING RETURNING d.id
            """
        ),
        {
            "digest": digest,
            "kind": kind,
            "base": base_digest,
            "path": path,
            "meta": Jsonb(meta or {}),
        },
    ).one_or_none()
    if row is None:
        conn.execute(
            text("UPDATE editors SET path = :path WHERE digest = :digest AND path <> :path"),
            {"digest": digest, "path": path},
        )
    else:
        audit.append(
            conn,
            "editor.registered",
            actor=actor,
            subject=f"editor:{row.id}",
            data={"digest": digest, "kind": kind, "base_digest": base_digest},
        )
    return get_editor(conn, digest)


def get_editor(conn: Connection, digest_or_id: str | int) -> Editor:
    """An editor by id, digest or unambiguous digest prefix.

    Raises:
        NoSuchEditor: None, or several begin so.
    """
    if isinstance(digest_or_id, int):
        where, value = "d.id = :value", digest_or_id
    else:
        where, value = "d.digest = :value", digest_or_id  # type: ignore[assignment]  # str here
    found = conn.execute(
        text(f"SELECT {rows.EDITOR_COLUMNS} FROM editors AS d WHERE {where}"),  # noqa: S608 - our words
        {"value": value},
    ).all()
    if not found and isinstance(digest_or_id, str):
        prefix = digest_or_id.removeprefix("sha256:")
        found = conn.execute(
            text(
                f"SELECT {rows.EDITOR_COLUMNS} FROM editors AS d "  # noqa: S608 - our words
                "WHERE starts_with(d.digest, :prefix)"
            ),
            {"prefix": f"sha256:{prefix}"},
        ).all()
    if len(found) != 1:
        why = "no editor is" if not found else f"{len(found)} editors are"
        raise NoSuchEditor(f"{why} registered as {digest_or_id!r}: see 'mend editor list'")
    return rows.editor(found[0])


def list_editors(conn: Connection) -> list[Editor]:
    """All editors, oldest first."""
    found = conn.execute(text(f"SELECT {rows.EDITOR_COLUMNS} FROM editors AS d ORDER BY d.id"))  # noqa: S608 - our words
    return [rows.editor(row) for row in found]


def register(
    conn: Connection,
    *,
    name: str,
    source: str,
    base_digest: str,
    editor_id: int,
    composition: Mapping[str, Any],
    version_digest: str,
    policy: Mapping[str, Any],
    policy_digest: str,
    settings: Mapping[str, Any] | None = None,
    approval: bool = False,
    auto_promote: bool = True,
    max_attempts: int = 5,
    actor: str,
) -> Model:
    """Register a model, its version 0 (the base: empty set, gate passed by definition) and aliases.

    * `version_digest`: Identity of version 0 (`mend_core`'s version_digest of the empty set).

    Raises:
        AlreadyExists: The name is taken.
        NoSuchEditor: No editor of that id.
        RequestInvalid: The editor was made for another base, or the name is no name.
    """
    if not name.strip() or len(name) > _MAX_NAME:
        raise RequestInvalid(f"expected 1 to {_MAX_NAME} characters", field="name")
    editor = get_editor(conn, editor_id)
    if editor.base_digest != base_digest:
        raise RequestInvalid(
            f"editor {editor.digest[:19]} was made for base {editor.base_digest[:19]}, "
            f"the model's base is {base_digest[:19]}: choose an editor made for it",
            field="editor",
        )
    row = conn.execute(
        text(
            """
            INSERT INTO models (name, source, base_digest, editor_id, composition, policy,
                                policy_digest, settings, approval, auto_promote, max_attempts)
            VALUES (:name, :source, :base, :editor, :composition, :policy, :policy_digest,
            :settings,
                    :approval, :auto_promote, :max_attempts)
            ON CONFLICT (name) DO NOTHING RETURNING id
            """
        ),
        {
            "name": name,
            "source": source,
            "base": base_digest,
            "editor": editor_id,
            "composition": Jsonb(dict(composition)),
            "policy": Jsonb(dict(policy)),
            "policy_digest": policy_digest,
            "settings": Jsonb(dict(settings or {})),
            "approval": approval,
            "auto_promote": auto_promote,
            "max_attempts": max_attempts,
        },
    ).one_or_none()
    if row is None:
        raise AlreadyExists(f"model {name!r} is already registered: choose another name")
    model_id = int(row.id)
    conn.execute(text("INSERT INTO leases (model_id) VALUES (:model)"), {"model": model_id})
    version_id = conn.execute(
        text(
            """
            INSERT INTO versions (model_id, number, digest, base_digest, editor_digest, composition,
                                  edit_count, gate, created_by)
            VALUES (:model, 0, :digest, :base, :editor, :composition, 0, 'pass', :actor)
            RETURNING id
            """
        ),
        {
            "model": model_id,
            "digest": version_digest,
            "base": base_digest,
            "editor": editor.digest,
            "composition": Jsonb(dict(composition)),
            "actor": actor,
        },
    ).scalar_one()
    for alias in ("production", "candidate"):
        conn.execute(
            text(
                "INSERT INTO aliases (model_id, name, version_id) VALUES (:model, :alias, :version)"
            ),
            {"model": model_id, "alias": alias, "version": version_id},
        )
        conn.execute(
            text(
                """
                INSERT INTO alias_moves (model_id, name, kind, to_version_id, actor, reason)
                VALUES (:model, :alias, 'create', :version, :actor, 'model registered')
                """
            ),
            {"model": model_id, "alias": alias, "version": version_id, "actor": actor},
        )
    audit.append(
        conn,
        "model.registered",
        actor=actor,
        model_id=model_id,
        subject=f"model:{model_id}",
        data={
            "name": name,
            "source": source,
            "base_digest": base_digest,
            "editor_digest": editor.digest,
            "composition": dict(composition),
            "policy_digest": policy_digest,
            "version_digest": version_digest,
            "approval": approval,
            "auto_promote": auto_promote,
        },
    )
    return get(conn, model_id)


def get(conn: Connection, name_or_id: str | int) -> Model:
    """A model by name or id.

    Raises:
        NoSuchModel: None, with the names there are.
    """
    where = "id = :value" if isinstance(name_or_id, int) else "name = :value"
    row = conn.execute(
        text(f"SELECT * FROM models WHERE {where}"),  # noqa: S608 - one of two words of ours
        {"value": name_or_id},
    ).one_or_none()
    if row is None:
        names = conn.execute(text("SELECT name FROM models ORDER BY id LIMIT 10")).scalars().all()
        known = ", ".join(names) if names else "none yet"
        raise NoSuchModel(f"no model {name_or_id!r}; registered: {known}")
    return rows.model(row, get_editor(conn, int(row.editor_id)))


def list_all(conn: Connection) -> list[Model]:
    """All models, oldest first."""
    ids = conn.execute(text("SELECT id FROM models ORDER BY id")).scalars().all()
    return [get(conn, int(one)) for one in ids]


def lock_footing(conn: Connection, model_id: int) -> None:
    """Keep a rebase, or a rollback of one, from moving the model to another base until commit."""
    conn.execute(text("SELECT FROM models WHERE id = :model FOR SHARE"), {"model": model_id})


def lock_settings(conn: Connection, model_id: int) -> Model:
    """Read a model that nobody else changes until commit: what is read may be written back."""
    conn.execute(
        text("SELECT FROM models WHERE id = :model FOR NO KEY UPDATE"), {"model": model_id}
    )
    return get(conn, model_id)


def pause(conn: Connection, model_id: int, *, actor: str, reason: str) -> None:
    """Stop claims of this model; what is claimed goes on. Paused already: nothing happens."""
    _set_paused(conn, model_id, paused=True, actor=actor, reason=reason)


def resume(conn: Connection, model_id: int, *, actor: str, reason: str) -> None:
    """Let claims of this model go on."""
    _set_paused(conn, model_id, paused=False, actor=actor, reason=reason)


def _set_paused(conn: Connection, model_id: int, *, paused: bool, actor: str, reason: str) -> None:
    get(conn, model_id)
    changed = conn.execute(
        text("UPDATE models SET paused = :paused WHERE id = :model AND paused <> :paused"),
        {"paused": paused, "model": model_id},
    ).rowcount
    if changed:
        audit.append(
            conn,
            "model.paused" if paused else "model.resumed",
            actor=actor,
            model_id=model_id,
            subject=f"model:{model_id}",
            data={"reason": reason},
        )


def set_problem(conn: Connection, model_id: int, problem: str | None) -> bool:
    """Note why no worker can work on a model now, or that one can again.

    Returns:
        True where this is news.
    """
    return bool(
        conn.execute(
            text(
                """
                UPDATE models SET problem = :problem,
                       problem_at = CASE WHEN CAST(:problem AS text) IS NOT NULL
                                         THEN clock_timestamp() END
                 WHERE id = :model AND problem IS DISTINCT FROM CAST(:problem AS text)
                """
            ),
            {
                "problem": None if problem is None else problem.replace("\x00", ""),
                "model": model_id,
            },
        ).rowcount
    )


def configure(
    conn: Connection, model_id: int, *, actor: str, reason: str, **changes: object
) -> Model:
    """Change settings of a model; what changed and from what goes to the trail.

    * `changes`: Any of editor_id, composition, policy with policy_digest, settings, approval,
      auto_promote, max_attempts.

    Raises:
        RequestInvalid: A name that cannot be changed, or an editor for another base.
        WrongState: Edits were composed already: another editor or composition needs a rebase.
    """
    unknown = set(changes) - _CHANGEABLE
    if unknown:
        raise RequestInvalid(
            f"cannot be changed; expected some of {', '.join(sorted(_CHANGEABLE))}",
            field=min(unknown),
        )
    before = get(conn, model_id)
    if (
        changes.keys() & {"editor_id", "composition"}
        and conn.execute(
            text("SELECT EXISTS (SELECT FROM versions WHERE model_id = :model AND number > 0)"),
            {"model": model_id},
        ).scalar_one()
    ):
        raise WrongState(
            f"model {before.name} has versions made with its editor; factors of another do not mix "
            "with theirs: use 'mend rebase --editor'"
        )
    if "editor_id" in changes:
        editor = get_editor(conn, int(str(changes["editor_id"])))
        if editor.base_digest != before.base_digest:
            raise RequestInvalid("was made for another base", field="editor_id")
    shown: dict[str, object] = {}
    for name, value in sorted(changes.items()):
        old = before.editor.id if name == "editor_id" else getattr(before, name)
        if old == value:
            continue
        shown[name] = {"from": old, "to": value}
        conn.execute(
            text(f"UPDATE models SET {name} = :value WHERE id = :model"),  # noqa: S608 - from _CHANGEABLE
            {"value": Jsonb(value) if isinstance(value, Mapping) else value, "model": model_id},
        )
    if shown:
        audit.append(
            conn,
            "model.configured",
            actor=actor,
            model_id=model_id,
            subject=f"model:{model_id}",
            data={"changes": shown, "reason": reason},
        )
    return get(conn, model_id)
