"""What a version stands on: base, editor and composition; and moving a model to another footing.

A model's own row names the footing of its candidate, since that is what the next version is built
on. Version 0 and every version after a rebase keep theirs, so that a rollback brings the old base
back with the old edits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from ledger import audit
from ledger.db import text
from ledger.errors import NoSuchVersion
from ledger.models import get as get_model
from ledger.models import get_editor
from ledger.records import Editor, FactorRecord, Model, Version
from ledger.transitions import requeue

SOURCE = "source"
"""Key of a version's `meta` under which the place of its base is kept, where the base is new."""


def of(conn: Connection, version: Version) -> Model:
    """The model as it was for a version: with that version's base, editor and composition.

    Raises:
        NoSuchVersion: The ledger does not know where the version's base is.
    """
    model = get_model(conn, version.model_id)
    if same(version, model):
        return model
    source = model.source
    if version.base_digest != model.base_digest:
        source = _source(conn, version)
    return replace(
        model,
        source=source,
        base_digest=version.base_digest,
        editor=get_editor(conn, version.editor_digest),
        composition=version.composition,
    )


def same(version: Version, model: Model) -> bool:
    """Whether a version stands on a model's present footing; the base itself needs no editor."""
    if version.base_digest != model.base_digest:
        return False
    alike = (version.editor_digest, dict(version.composition)) == (
        model.editor.digest,
        dict(model.composition),
    )
    return alike or not version.edit_count


def shared(a: Version, b: Version) -> bool:
    """Whether two versions' factors may be composed together."""
    if a.base_digest != b.base_digest:
        return False
    alike = (a.editor_digest, dict(a.composition)) == (b.editor_digest, dict(b.composition))
    return alike or not (a.edit_count and b.edit_count)


def keep_factors(
    conn: Connection, base_digest: str, editor: Editor, factors: Iterable[FactorRecord]
) -> None:
    """Note factors computed outside a batch: those of a rebase."""
    conn.execute(
        text(
            """
            INSERT INTO factors (edit_id, base_digest, editor_digest, digest, rows, bytes, clipped,
                                 meta)
            SELECT f.edit_id, :base, :editor, f.digest, f.rows, f.bytes, f.clipped, f.meta
              FROM jsonb_to_recordset(CAST(:factors AS jsonb)) AS f(edit_id bigint, digest text,
                   rows integer, bytes bigint, clipped integer, meta jsonb)
            ON CONFLICT (edit_id, base_digest, editor_digest) DO UPDATE
               SET digest = excluded.digest, rows = excluded.rows, bytes = excluded.bytes,
                   clipped = excluded.clipped, meta = excluded.meta
            """
        ),
        {
            "base": base_digest,
            "editor": editor.digest,
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
                    for one in factors
                ]
            ),
        },
    )


def follow(conn: Connection, version: Version, *, actor: str, reason: str) -> bool:
    """Bring a model onto the footing of the version that just became its candidate.

    What is claimed and not yet in a version goes back to the queue: its factors were made for the
    footing left behind, and whoever holds them finds nothing to commit.

    Returns:
        Whether it stood elsewhere before.
    """
    model = get_model(conn, version.model_id)
    if same(version, model):
        return False
    there = of(conn, version)
    # Version 0 and its line never needed to say where their base is: the model did.
    conn.execute(
        text(
            """
            UPDATE versions SET meta = meta || jsonb_build_object('source', CAST(:source AS text))
             WHERE model_id = :model AND base_digest = :base AND NOT meta ? 'source'
            """
        ),
        {"source": model.source, "model": model.id, "base": model.base_digest},
    )
    conn.execute(
        text(
            "UPDATE models SET source = :source, base_digest = :base, editor_id = :editor, "
            "composition = :composition WHERE id = :model"
        ),
        {
            "source": there.source,
            "base": there.base_digest,
            "editor": there.editor.id,
            "composition": Jsonb(dict(there.composition)),
            "model": model.id,
        },
    )
    moved = requeue(
        conn,
        model.id,
        "e.state = 'claimed' AND e.model_id = :model AND e.batch_id IN "
        "(SELECT b.id FROM batches AS b WHERE b.model_id = :model AND b.state = 'open')",
        {"model": model.id},
    )
    audit.append(
        conn,
        "model.rebased",
        actor=actor,
        model_id=model.id,
        subject=f"model:{model.id}",
        data={
            "from": {"base": model.base_digest, "editor": model.editor.digest},
            "moves": audit.as_moves(moved),
            "number": version.number,
            "reason": reason,
            "to": {"base": there.base_digest, "editor": there.editor.digest},
        },
        edit_ids=[one for one, _, _ in moved],
    )
    return True


def _source(conn: Connection, version: Version) -> str:
    found = conn.execute(
        text(
            "SELECT meta ->> 'source' FROM versions WHERE model_id = :model "
            "AND base_digest = :base AND meta ? 'source' ORDER BY number DESC LIMIT 1"
        ),
        {"model": version.model_id, "base": version.base_digest},
    ).scalar_one_or_none()
    if found is None:
        raise NoSuchVersion(
            f"version {version.number} stands on base {version.base_digest}, and the ledger does "
            "not know where that is"
        )
    return str(found)
