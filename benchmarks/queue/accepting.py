"""Accepting requests: in bulk against a bare COPY, one by one against a bare INSERT."""

from __future__ import annotations

import gc
import json
import statistics
import time
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Engine, text

from benchmarks.queue.desk import Sizes, new_model, new_requests, settle
from ledger import bulk, edits
from ledger.db import raw, transaction
from ledger.home import libpq

_PLAIN = "LIKE edits INCLUDING DEFAULTS, PRIMARY KEY (id)"
_RULED = "LIKE edits INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES"


def bulk_accept(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """submit_many of validated requests against COPY of the very same rows into a bare table.

    A second figure has them copied into a table with the indexes and checks of `edits`: what
    acceptance costs beyond the rules themselves.
    """
    ours: list[float] = []
    bare: list[float] = []
    ruled: list[float] = []
    for number in range(sizes.bulk_turns):
        model_id = new_model(engine, f"bulk-{number}-{uuid4()}")
        requests = new_requests(sizes.bulk, f"bulk {number}")
        settle(engine)
        gc.collect()
        began = time.perf_counter()
        with transaction(engine) as conn:
            bulk.submit_many(conn, model_id, requests, actor="bench")
        ours.append(time.perf_counter() - began)
        bare.append(_bare_copy(engine, model_id, _PLAIN))
        ruled.append(_bare_copy(engine, model_id, _RULED))
    return {
        "bulk_rows": sizes.bulk,
        "bulk_accept_rows_per_s": sizes.bulk / statistics.median(ours),
        "bare_copy_rows_per_s": sizes.bulk / statistics.median(bare),
        "bulk_accept_ratio": statistics.median(b / o for b, o in zip(bare, ours, strict=True)),
        "bulk_accept_ratio_same_indexes": statistics.median(
            r / o for r, o in zip(ruled, ours, strict=True)
        ),
    }


def _bare_copy(engine: Engine, model_id: int, shape: str) -> float:
    """Seconds of a bare client doing it: format the same rows in Python, COPY, commit.

    Args:
        engine: Of the database that holds the rows.
        model_id: Whose edits are the rows.
        shape: `_PLAIN` or `_RULED`.
    """
    with transaction(engine) as conn:
        conn.execute(text("DROP TABLE IF EXISTS bare"))
        conn.execute(text(f"CREATE TABLE bare ({shape})"))
        rows = (
            raw(conn)
            .execute(
                f"SELECT {bulk.COLUMNS} FROM edits WHERE model_id = %s ORDER BY id",  # noqa: S608 - our own column list
                (model_id,),
            )
            .fetchall()
        )
    plain = [tuple(map(_as_sent, row)) for row in rows]
    settle(engine)
    gc.collect()
    began = time.perf_counter()
    with (
        transaction(engine) as conn,
        raw(conn).cursor() as cursor,
        cursor.copy(f"COPY bare ({bulk.COLUMNS}) FROM STDIN") as copy,
    ):
        for row in plain:
            copy.write_row(row)
    return time.perf_counter() - began


def _as_sent(value: object) -> object:
    """A value read back, as a submission sends it."""
    if isinstance(value, list):
        return json.dumps(value)
    return value.hex if isinstance(value, UUID) else value


def single_accept(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """`edits.accept` against a bare INSERT + commit of the same columns, turn by turn."""
    model_id = new_model(engine, "single")
    requests = new_requests(sizes.single, "single")
    with transaction(engine) as conn:
        conn.execute(text("DROP TABLE IF EXISTS bare"))
        conn.execute(text(f"CREATE TABLE bare ({_PLAIN})"))
    ours: list[float] = []
    bare: list[float] = []
    with psycopg.connect(libpq(url)) as plain:
        for number, request in enumerate(requests):
            began = time.perf_counter()
            edits.accept(engine, model_id, request, actor="bench")
            ours.append(time.perf_counter() - began)
            salt, digest = request.sealed()
            began = time.perf_counter()
            plain.execute(
                "INSERT INTO bare (id, model_id, state, prompt, target, subject, relation, reason,"
                " source, submitted_by, idempotency_key, fact_key, salt, content_digest, priority)"
                " VALUES (%s, %s, 'queued', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    number,
                    model_id,
                    request.prompt,
                    request.target,
                    request.subject,
                    request.relation,
                    request.reason,
                    request.source,
                    "bench",
                    request.idempotency_key,
                    request.fact_key,
                    salt,
                    digest,
                    request.priority,
                ),
            )
            plain.commit()
            bare.append(time.perf_counter() - began)
    return {
        "single_accept_ms": 1e3 * statistics.median(ours),
        "bare_insert_ms": 1e3 * statistics.median(bare),
        "single_accept_ratio": statistics.median(bare) / statistics.median(ours),
    }
