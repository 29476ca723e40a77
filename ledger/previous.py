"""What production was before what it is now: where a rollback goes."""

from __future__ import annotations

from sqlalchemy import Connection

from ledger.db import text
from ledger.errors import NoSuchVersion


def previous(conn: Connection, model_id: int) -> int:
    """Id of the version production was before what it is now.

    A rollback takes back what came after the version it went to, so that the next one goes further
    back instead of forth again.

    Raises:
        NoSuchVersion: There is nothing before it.
    """
    moves = conn.execute(
        text(
            """
            SELECT m.kind, m.to_version_id AS id, v.number FROM alias_moves AS m
              JOIN versions AS v ON v.id = m.to_version_id
             WHERE m.model_id = :model AND m.name = 'production' ORDER BY m.id
            """
        ),
        {"model": model_id},
    ).all()
    line: list[int] = []
    for move in moves:
        if move.kind == "rollback" and move.id in line:
            while line[-1] != move.id:
                line.pop()
        else:
            line.append(int(move.id))
    if len(line) > 1:
        return line[-2]
    others = sorted({move.number for move in moves} - {move.number for move in moves[-1:]})
    if not others:
        raise NoSuchVersion(
            "production was never another version: there is nothing to roll back to"
        )
    raise NoSuchVersion(
        f"production is back at its first version, {moves[-1].number}: there is nothing before it; "
        f"it was version {', '.join(map(str, others))} since: name one to go there"
    )
