"""The audit trail: a hash chain that is written in the transaction it describes.

An event's `body` is canonical JSON (RFC 8785) holding everything, the hash of the event before it
among it; its hash is sha256 over exactly those bytes. The chain's head is one row that every append
locks, so that two appends never follow the same event. Verification needs no database: an export
is the bodies, one a line. Inclusion proofs are RFC 6962 Merkle proofs over the same bodies
(`ledger.merkle`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import rfc8785
from sqlalchemy import Connection

from ledger import ranges
from ledger.db import raw, text
from ledger.errors import AuditBroken
from ledger.merkle import Accumulator, inclusion_proof, leaf_hash, verify_inclusion
from ledger.records import AuditEvent, Version

GENESIS = hashlib.sha256(b"mend audit trail").hexdigest()
PAGE = 5_000
LARGEST_EXACT_INTEGER = 2**53 - 1
"""JSON numbers are doubles (RFC 8785): integers are exact up to here."""
_FIELDS = {"actor", "at", "data", "kind", "model", "prev", "seq", "subject"}


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verified trail amounts to.

    Attributes:
        events: How many events.
        head: Hash of the last event (hex); the genesis hash where there is none.
        root: RFC 6962 Merkle tree hash over all bodies (hex).
    """

    events: int
    head: str
    root: str


def append(
    conn: Connection,
    kind: str,
    *,
    actor: str,
    model_id: int | None = None,
    subject: str | None = None,
    data: Mapping[str, Any] | None = None,
    edit_ids: Iterable[int] = (),
) -> int:
    """Append one event in the caller's transaction; keep it last, it locks the chain until commit.

    * `data`: JSON values only; keys must be ASCII (so that every canonicaliser sorts them alike).
    * `edit_ids`: Edits the event is about, so that `edits.history` finds it.

    Returns:
        The event's sequence number.
    """
    payload = dict(data or {})
    _check_keys(payload)
    ids = edit_ids if isinstance(edit_ids, Sequence) else list(edit_ids)
    row = (
        raw(conn)
        .execute(
            "SELECT audit_append_canonical(%s, %s, %s, %s, %s, %s::int8multirange)",
            (
                kind,
                actor,
                model_id,
                subject,
                rfc8785.dumps(payload).decode(),
                ranges.to_multirange(ids) if ids else None,
            ),
        )
        .fetchone()
    )
    assert row is not None
    return int(row[0])


def moved(
    conn: Connection,
    kind: str,
    rows: Iterable[tuple[int, str, str]],
    *,
    actor: str,
    model_id: int | None,
    subject: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> int | None:
    """Append the event of moves `(edit id, from, to)`; nothing where nothing moved."""
    found = list(rows)
    if not found:
        return None
    every = [one for one, _, _ in found]
    if subject is None and len(every) == 1:
        subject = f"edit:{every[0]}"
    return append(
        conn,
        kind,
        actor=actor,
        model_id=model_id,
        subject=subject,
        data={**(data or {}), "moves": as_moves(found)},
        edit_ids=every,
    )


def as_moves(rows: Iterable[tuple[int, str, str]]) -> list[dict[str, str]]:
    """Moves `(edit id, from, to)` as events name them: ids grouped and as ranges."""
    groups: dict[tuple[str, str], list[int]] = {}
    for edit_id, before, after in rows:
        groups.setdefault((before, after), []).append(edit_id)
    return [
        {"edits": ranges.to_text(ids), "from": before, "to": after}
        for (before, after), ids in sorted(groups.items())
    ]


def events(
    conn: Connection,
    *,
    after: int = 0,
    limit: int = 1_000,
    model_id: int | None = None,
    subject: str | None = None,
    kinds: Sequence[str] | None = None,
    edit_id: int | None = None,
    version: Version | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    newest_first: bool = False,
) -> list[AuditEvent]:
    """Events after a sequence number, filtered.

    * `version`: Events about it, moves of aliases to it and from it among them.
    * `actor`: Whose events.
    * `since`, `until`: From when on, and before when.
    """
    order = "DESC" if newest_first else "ASC"
    rows = conn.execute(
        text(
            f"""
            SELECT seq, at, kind, actor, model_id, subject, body,
                   encode(prev, 'hex') AS prev, encode(hash, 'hex') AS hash
              FROM audit
             WHERE seq > :after
               AND (CAST(:model AS bigint) IS NULL OR model_id = :model)
               AND (CAST(:subject AS text) IS NULL OR subject = :subject)
               AND (CAST(:kinds AS text[]) IS NULL OR kind = ANY(:kinds))
               AND (CAST(:edit AS bigint) IS NULL OR edits @> CAST(:edit AS bigint))
               AND (CAST(:version AS text) IS NULL OR subject = :version
                    OR (model_id = :of AND kind LIKE 'alias.%'
                        AND :number IN (CAST(body AS jsonb) #>> '{{data,from}}',
                                        CAST(body AS jsonb) #>> '{{data,to}}')))
               AND (CAST(:actor AS text) IS NULL OR actor = :actor)
               AND (CAST(:since AS timestamptz) IS NULL OR at >= :since)
               AND (CAST(:until AS timestamptz) IS NULL OR at < :until)
             ORDER BY seq {order} LIMIT :limit
            """  # noqa: S608 - order is one of two words of ours
        ),
        {
            "after": after,
            "model": model_id,
            "subject": subject,
            "kinds": list(kinds) if kinds is not None else None,
            "edit": edit_id,
            "version": None if version is None else f"version:{version.id}",
            "of": None if version is None else version.model_id,
            "number": None if version is None else str(version.number),
            "actor": actor,
            "since": since,
            "until": until,
            "limit": limit,
        },
    )
    return [
        AuditEvent(
            seq=row.seq,
            at=row.at,
            kind=row.kind,
            actor=row.actor,
            model_id=row.model_id,
            subject=row.subject,
            data=_parsed(row.body)["data"],
            body=row.body,
            prev=row.prev,
            hash=row.hash,
        )
        for row in rows
    ]


def last(conn: Connection) -> int:
    """Sequence number of the newest event; 0 where there is none."""
    return int(conn.execute(text("SELECT seq FROM audit_head WHERE id = 1")).scalar_one())


def verify(conn: Connection) -> Verified:
    """Recompute the chain in the database, columns and head row too.

    Raises:
        AuditBroken: Names the first event that does not hold.
    """
    head_row = conn.execute(
        text("SELECT seq, encode(hash, 'hex') AS hash FROM audit_head WHERE id = 1")
    ).one()
    chain = _Chain()
    for row in _rows(conn):
        event = chain.add(row.body)
        same = (
            row.seq == event["seq"]
            and row.kind == event["kind"]
            and row.actor == event["actor"]
            and row.model_id == event["model"]
            and row.subject == event["subject"]
            and row.at_text == event["at"]
            and row.prev == event["prev"]
        )
        if not same:
            raise AuditBroken(
                f"audit event {event['seq']}: its columns differ from its body; "
                "the row was altered after it was written"
            )
        if row.hash != chain.head:
            raise AuditBroken(f"audit event {event['seq']}: stored hash is not that of its body")
    if head_row.seq != chain.count or head_row.hash != chain.head:
        raise AuditBroken(
            f"the head row says {head_row.seq} events, the trail has {chain.count}: "
            "events were removed from the end or the head was altered"
        )
    return chain.verified()


def export(conn: Connection, out: IO[str]) -> int:
    """Write every body, one a line; returns how many. `verify_export` needs nothing else."""
    count = 0
    for row in _rows(conn):
        out.write(row.body)
        out.write("\n")
        count += 1
    return count


def verify_export(source: Path | Iterable[str]) -> Verified:
    """Verify an export without a database.

    Raises:
        AuditBroken: Names the first line that does not hold.
    """
    chain = _Chain()
    if isinstance(source, Path):
        try:
            with source.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    chain.add(line.removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise AuditBroken(
                f"{source}: line {chain.count + 1} is not UTF-8 text ({error.reason})"
            ) from error
    else:
        for line in source:
            chain.add(line.removesuffix("\n"))
    return chain.verified()


def checkpoint(conn: Connection) -> dict[str, Any]:
    """What to keep outside the database: count, head and root of the trail as it is now.

    A later `verify` whose trail does not contain this checkpoint shows that history was rewritten.
    """
    found = verify(conn)
    at = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
    return {"at": at.isoformat(), "events": found.events, "head": found.head, "root": found.root}


def verify_checkpoint(conn: Connection, kept: Mapping[str, Any]) -> None:
    """Check that the trail still begins as it did when `kept` was made.

    Raises:
        AuditBroken: It does not.
    """
    tree = Accumulator()
    for row in _rows(conn):
        if tree.size == kept["events"]:
            break
        tree.add(row.body.encode())
    if tree.size != kept["events"] or tree.root().hex() != kept["root"]:
        raise AuditBroken(
            f"the trail no longer begins with the {kept['events']} events of the checkpoint of "
            f"{kept.get('at')}: history was rewritten"
        )


def prove(conn: Connection, seq: int) -> dict[str, Any]:
    """An inclusion proof of one event: verifiable with the body and the root alone.

    Raises:
        AuditBroken: No such event.
    """
    leaves: list[bytes] = []
    body = None
    for row in _rows(conn):
        leaves.append(leaf_hash(row.body.encode()))
        if row.seq == seq:
            body = row.body
    if body is None:
        raise AuditBroken(f"no audit event {seq}: the trail has {len(leaves)}")
    path, root = inclusion_proof(leaves, seq - 1)
    return {
        "body": body,
        "index": seq - 1,
        "tree_size": len(leaves),
        "path": [one.hex() for one in path],
        "root": root.hex(),
    }


def verify_proof(proof: Mapping[str, Any]) -> bool:
    """Whether an inclusion proof from `prove` holds."""
    try:
        return verify_inclusion(
            leaf_hash(str(proof["body"]).encode()),
            int(proof["index"]),
            int(proof["tree_size"]),
            [bytes.fromhex(one) for one in proof["path"]],
            bytes.fromhex(proof["root"]),
        )
    except (KeyError, ValueError, TypeError):
        return False


class _Chain:
    """Verifies bodies as they come."""

    def __init__(self) -> None:
        self.count = 0
        self.head = GENESIS
        self._tree = Accumulator()

    def add(self, body: str) -> dict[str, Any]:
        place = self.count + 1
        try:
            event: Any = _parsed(body)
        except ValueError as error:
            raise AuditBroken(f"audit event {place}: not JSON ({error})") from error
        if not isinstance(event, dict) or set(event) != _FIELDS:
            raise AuditBroken(f"audit event {place}: not an event (expected {sorted(_FIELDS)})")
        if event["seq"] != place:
            raise AuditBroken(
                f"audit event {place} is missing: the next one is number {event['seq']}"
            )
        if event["prev"] != self.head:
            raise AuditBroken(
                f"audit event {place} does not follow event {self.count}: "
                "an event was altered, removed or put in"
            )
        if rfc8785.dumps(event) != body.encode():
            raise AuditBroken(f"audit event {place}: its text is not canonical JSON")
        data = body.encode()
        self.head = hashlib.sha256(data).hexdigest()
        self._tree.add(data)
        self.count = place
        return event

    def verified(self) -> Verified:
        return Verified(self.count, self.head, self._tree.root().hex())


def _rows(conn: Connection) -> Iterator[Any]:
    """All events in order, in pages (a long trail does not fit memory)."""
    after = 0
    while True:
        page = conn.execute(
            text(
                """
                SELECT seq, kind, actor, model_id, subject, body, encode(prev, 'hex') AS prev,
                       encode(hash, 'hex') AS hash,
                       to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at_text
                  FROM audit WHERE seq > :after ORDER BY seq LIMIT :page
                """
            ),
            {"after": after, "page": PAGE},
        ).all()
        if not page:
            return
        yield from page
        after = page[-1].seq


def _parsed(body: str) -> Any:
    """An event's text as values; a number beyond exact integers is a float, as it was written."""
    return json.loads(body, parse_int=_number)


def _number(digits: str) -> int | float:
    exact = int(digits)
    return exact if abs(exact) <= LARGEST_EXACT_INTEGER else float(digits)


def _check_keys(value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"audit data has the key {key!r}: keys must be ASCII text")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)
