"""Bulk submission through COPY.

Requests go straight into `edits` by COPY. Those whose idempotency key or fact is taken (in the
file or in the table) go through the same `submit_edit` as single ones. One audit event names
everything that COPY took, with a digest over their content digests. All in the caller's
transaction.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from uuid import UUID

from psycopg import errors as pg
from sqlalchemy import Connection

from ledger import audit, ranges
from ledger.db import raw, text
from ledger.errors import NoSuchModel, RequestInvalid
from ledger.records import Submitted, SubmittedMany
from ledger.requests import SALT_BYTES, EditRequest
from ledger.states import EditState
from ledger.transitions import lock_submissions

CHUNK = 10_000

# Columns, with the type whose binary form a value has when it is sent. A label of an enum is sent
# as text, a uuid as its bytes, jsonb as text behind the number of its format.
_SENT = {
    "id": "int8",
    "model_id": "int8",
    "state": "text",
    "prompt": "text",
    "target": "text",
    "subject": "text",
    "relation": "text",
    "paraphrases": "bytea",
    "locality": "bytea",
    "portability": "bytea",
    "reason": "text",
    "source": "text",
    "submitted_by": "text",
    "idempotency_key": "text",
    "fact_key": "bytea",
    "salt": "bytea",
    "content_digest": "text",
    "priority": "int2",
    "not_before": "timestamptz",
    "expires_at": "timestamptz",
}
COLUMNS = ", ".join(_SENT)
_JSONB = b"\x01"


def submit_many(
    conn: Connection,
    model_id: int,
    requests: Iterable[EditRequest],
    *,
    actor: str,
    origin: str | None = None,
) -> SubmittedMany:
    """Accept many requests; same rules as `submit`, all or nothing (the caller's transaction).

    * `requests`: Streamed in chunks of `CHUNK`; memory stays flat but for the ids returned.
    * `origin`: Where they came from (file name), for the trail.

    Raises:
        NoSuchModel: No model of this id.
        RequestInvalid: An `expires_at` is past.
    """
    lock_submissions(conn, model_id)
    found = conn.execute(
        text("SELECT approval, clock_timestamp() AS now FROM models WHERE id = :model"),
        {"model": model_id},
    ).one_or_none()
    if found is None:
        raise NoSuchModel(f"no model {model_id}: see 'mend model list'")
    work = _Bulk(conn, model_id, actor, bool(found.approval), found.now)
    stream = iter(requests)
    while chunk := list(itertools.islice(stream, CHUNK)):
        work.take(chunk)
    work.record(origin)
    return SubmittedMany(
        edit_ids=tuple(work.ids),
        accepted=work.accepted,
        duplicates=work.duplicates,
        superseded=work.superseded,
        awaiting_approval=work.awaiting,
    )


class _Bulk:
    """One bulk submission."""

    def __init__(
        self, conn: Connection, model_id: int, actor: str, approval: bool, now: datetime
    ) -> None:
        self._conn = conn
        self._model_id = model_id
        self._actor = actor
        self._approval = approval
        self._usual = EditState.AWAITING_APPROVAL if approval else EditState.QUEUED
        self._now = now
        self._copied: dict[str, list[Sequence[int]]] = {}
        self._repeats = False
        self._digests = hashlib.sha256()
        self.ids: list[int] = []
        self.accepted = self.duplicates = self.superseded = self.awaiting = 0

    def take(self, chunk: Sequence[EditRequest]) -> None:
        """Accept one chunk."""
        for place, request in enumerate(chunk):
            expires_at = request.expires_at
            if expires_at is not None and expires_at <= self._now:
                raise RequestInvalid(
                    "is already past; expected a time to come",
                    field="expires_at",
                    line=len(self.ids) + place + 1,
                )
        facts = [request.fact_key for request in chunk]
        single = self._held(facts)
        if self._repeats or self._approval:
            single |= self._repeated(chunk, facts)
        if not self._copy(chunk, facts, single):
            # The rules' indexes refused: find out which rows. Where a chunk repeats itself, those
            # after it will.
            repeated = self._repeated(chunk, facts)
            self._repeats = bool(repeated)
            single |= repeated | self._taken(chunk, facts)
            copied = self._copy(chunk, facts, single)
            assert copied, "rows that conflict were taken out under the model's lock"

    def _repeated(self, chunk: Sequence[EditRequest], facts: Sequence[str]) -> set[int]:
        """Places whose fact or key comes earlier or later in this chunk: their order matters."""
        keys = [one.idempotency_key for one in chunk if one.idempotency_key is not None]
        if len(set(facts)) == len(facts) and len(set(keys)) == len(keys):
            return set()
        again: set[int] = set()
        seen: dict[str, int] = {}
        for place, (request, fact) in enumerate(zip(chunk, facts, strict=True)):
            names = [f"f{fact}"]
            if request.idempotency_key is not None:
                names.append(f"k{request.idempotency_key}")
            for name in names:
                first = seen.setdefault(name, place)
                if first != place:
                    again |= {first, place}
        return again

    def _held(self, facts: Sequence[str]) -> set[int]:
        """Places whose fact another edit has: a contradiction, or the same request again.

        One that only waits is found by COPY itself, unless the new ones wait for approval: those
        are outside the rule that would refuse them.
        """
        having = "state IN ('claimed', 'applied', 'live', 'quarantined', 'failed', 'rejected')"
        if self._approval:
            having = f"({having} OR state IN ('submitted', 'queued', 'awaiting_approval'))"
        some = self._conn.execute(
            text(f"SELECT EXISTS (SELECT FROM edits WHERE model_id = :model AND {having})"),  # noqa: S608 - our words
            {"model": self._model_id},
        ).scalar_one()
        if not some:
            return set()
        held = _hex(
            self._conn.execute(
                text(
                    f"""
                    SELECT DISTINCT fact_key FROM edits
                     WHERE model_id = :model AND {having}
                       AND fact_key = ANY(CAST(:facts AS uuid[]))
                    """  # noqa: S608 - our words
                ),
                {"model": self._model_id, "facts": list(facts)},
            ).scalars()
        )
        return {place for place, fact in enumerate(facts) if fact in held}

    def _taken(self, chunk: Sequence[EditRequest], facts: Sequence[str]) -> set[int]:
        """Places whose key is known or whose fact has a waiting edit."""
        keys = [one.idempotency_key for one in chunk if one.idempotency_key is not None]
        known = set(
            self._conn.execute(
                text(
                    "SELECT idempotency_key FROM edits "
                    "WHERE model_id = :model AND idempotency_key = ANY(:keys)"
                ),
                {"model": self._model_id, "keys": keys},
            ).scalars()
        )
        waiting = _hex(
            self._conn.execute(
                text(
                    "SELECT fact_key FROM edits WHERE model_id = :model "
                    "AND state IN ('submitted', 'queued') "
                    "AND fact_key = ANY(CAST(:facts AS uuid[]))"
                ),
                {"model": self._model_id, "facts": list(facts)},
            ).scalars()
        )
        return {
            place
            for place, (request, fact) in enumerate(zip(chunk, facts, strict=True))
            if fact in waiting or request.idempotency_key in known
        }

    def _copy(self, chunk: Sequence[EditRequest], facts: Sequence[str], single: set[int]) -> bool:
        """COPY the clean rows, submit the others one by one; False where COPY met a taken name."""
        clean = [place for place in range(len(chunk)) if place not in single]
        # Reserved for all, so that ids follow the order of the requests.
        reserved = self._reserve(len(chunk))
        new_ids = reserved if not single else [reserved[place] for place in clean]
        later: list[int] = []
        sealed: list[bytes] = []
        places = zip(clean, new_ids, strict=True)
        if clean and not self._write(self._rows(chunk, facts, places, later, sealed)):
            return False
        self._digests.update(b"".join(sealed))
        self._note(EditState.SUBMITTED, later)
        self._note(self._usual, sorted({*new_ids}.difference(later)) if later else new_ids)
        self.accepted += len(clean)
        if not single:
            self.ids += new_ids
            return True
        by_place = dict(zip(clean, new_ids, strict=True))
        for place in sorted(single):
            by_place[place] = self._submit(chunk[place], reserved[place]).edit_id
        self.ids += [by_place[place] for place in range(len(chunk))]
        return True

    def _note(self, state: EditState, ids: Sequence[int]) -> None:
        if ids:
            self._copied.setdefault(state.value, []).append(ids)
        if state is EditState.AWAITING_APPROVAL:
            self.awaiting += len(ids)

    def _rows(
        self,
        chunk: Sequence[EditRequest],
        facts: Sequence[str],
        places: Iterable[tuple[int, int]],
        later: list[int],
        digests: list[bytes],
    ) -> Iterator[tuple[object, ...]]:
        """Rows for COPY, made while the server works on those before; notes digests, and who waits.

        * `later`: Receives the ids of those whose time is to come.
        """
        model_id, actor, now = self._model_id, self._actor, self._now
        usual, waits = self._usual.value, EditState.SUBMITTED.value
        salts = os.urandom(SALT_BYTES * len(chunk))
        for place, edit_id in places:
            request = chunk[place]
            paraphrases, locality, portability = request.json_lists
            salt = salts[SALT_BYTES * place : SALT_BYTES * (place + 1)]
            digest = hashlib.sha256(salt + request.content).digest()
            digests.append(digest)
            not_before = request.not_before
            state = usual
            if not_before is not None and not_before > now and not self._approval:
                state = waits
                later.append(edit_id)
            yield (
                edit_id,
                model_id,
                state,
                request.prompt,
                request.target,
                request.subject,
                request.relation,
                _JSONB + paraphrases.encode(),
                _JSONB + locality.encode(),
                _JSONB + portability.encode(),
                request.reason,
                request.source,
                actor,
                request.idempotency_key,
                bytes.fromhex(facts[place]),
                salt,
                digest.hex(),
                request.priority,
                not_before,
                request.expires_at,
            )

    def _write(self, rows: Iterator[tuple[object, ...]]) -> bool:
        try:
            with (
                self._conn.begin_nested(),
                raw(self._conn).cursor() as cursor,
                cursor.copy(f"COPY edits ({COLUMNS}) FROM STDIN (FORMAT binary)") as copy,
            ):
                copy.set_types(list(_SENT.values()))
                for row in rows:
                    copy.write_row(row)
        except pg.UniqueViolation:
            return False
        return True

    def _submit(self, request: EditRequest, edit_id: int) -> Submitted:
        from ledger.edits import submit  # noqa: PLC0415 - edits offers submit_many as its own

        done = submit(self._conn, self._model_id, request, actor=self._actor, edit_id=edit_id)
        if done.duplicate:
            self.duplicates += 1
        else:
            self.accepted += 1
            self.superseded += len(done.superseded)
            self.awaiting += done.state is EditState.AWAITING_APPROVAL
        return done

    def _reserve(self, count: int) -> Sequence[int]:
        """Fresh ids; a range where nobody else drew from the sequence meanwhile."""
        if not count:
            return []
        found = self._conn.execute(
            text(
                """
                SELECT min(id) AS first, CASE WHEN max(id) - min(id) + 1 <> :count
                                              THEN array_agg(id ORDER BY id) END AS every
                  FROM (SELECT nextval('edits_id_seq') AS id
                          FROM generate_series(1, :count)) AS drawn
                """
            ),
            {"count": count},
        ).one()
        return range(found.first, found.first + count) if found.every is None else found.every

    def record(self, origin: str | None) -> None:
        """Append the one event of everything COPY took."""
        moved = {state: ranges.joined(ids) for state, ids in self._copied.items()}
        if not moved:
            return
        every = ranges.joined(moved.values())
        audit.append(
            self._conn,
            "edit.submitted",
            actor=self._actor,
            model_id=self._model_id,
            data={
                "count": len(every),
                "digest": self._digests.hexdigest(),
                "moves": [
                    {"edits": ranges.to_text(ids), "from": None, "to": state}
                    for state, ids in sorted(moved.items())
                ],
                "origin": origin,
            },
            edit_ids=every,
        )


def _hex(keys: Iterable[UUID]) -> set[str]:
    """Fact keys as requests write them."""
    return {one.hex for one in keys}
