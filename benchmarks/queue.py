"""What the queue costs: `python -m benchmarks queue [--json] [--quick]`.

Every number is a ratio against raw SQL in the same run, or a time with the server's settings
beside it. Runs on DATABASE_URL where that is set, else on an embedded Postgres of its own in a
temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from ledger import (
    aliases,
    batches,
    bulk,
    chunks,
    edits,
    gates,
    leases,
    migrate,
    models,
    planning,
    queue,
    versions,
)
from ledger.db import engine_from_url, raw, transaction
from ledger.embedded import EmbeddedPostgres
from ledger.events import Listener
from ledger.home import libpq, normalise_url
from ledger.records import FactorRecord, Lease, VersionDraft
from ledger.requests import EditRequest

TARGETS: dict[str, tuple[str, float]] = {
    "bulk_accept_ratio": (">=", 0.5),
    "single_accept_ratio": (">=", 0.6),
    "claim_ratio": ("<=", 1.5),
    "overhead_ms_per_edit": ("<=", 1.0),
    "wake_p99_ms": ("<=", 100.0),
    "memory_growth_mib": ("<=", 8.0),
}
CLAIM = 256
_BASE, _EDITOR = "sha256:" + "b" * 64, "sha256:" + "e" * 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    bulk: int = 20_000
    single: int = 300
    few: int = 1_000
    many: int = 1_000_000
    rounds: int = 10
    wakes: int = 100
    drain: int = 100_000


QUICK = Sizes(bulk=5_000, single=100, many=50_000, rounds=4, wakes=30, drain=5_000)


def main(argv: list[str] | None = None) -> int:
    """Run and print; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="mend bench queue", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    options = parser.parse_args(argv)
    sizes = QUICK if options.quick else Sizes()
    with _server() as url:
        measured = run(url, sizes, say=None if options.json else _say)
    measured["missed"] = missed(measured)
    if options.json:
        print(json.dumps(measured))
    else:
        _table(measured)
    return 1 if measured["missed"] else 0


def run(url: str, sizes: Sizes, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure everything on a migrated database."""
    tell = say or (lambda _words: None)
    engine = engine_from_url(url)
    try:
        found: dict[str, Any] = {"server": _settings(engine)}
        for title, part in (
            ("bulk accept", _bulk),
            ("single accept", _single),
            ("claims", _claims),
            ("overhead", _overhead),
            ("wake-up", _wake),
            ("memory", _memory),
        ):
            began = time.perf_counter()
            found |= part(engine, url, sizes)
            tell(f"{title}: {time.perf_counter() - began:.1f} s")
        return found
    finally:
        engine.dispose()


def missed(measured: dict[str, Any]) -> list[str]:
    """Names of the targets that were not reached."""
    return [
        name
        for name, (sign, bound) in TARGETS.items()
        if (measured[name] < bound if sign == ">=" else measured[name] > bound)
    ]


# -- parts ----------------------------------------------------------------------------------------


def _bulk(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """submit_many of validated requests against COPY of the very same rows into a bare table."""
    ours: list[float] = []
    bare: list[float] = []
    for number in range(3):
        model_id = _model(engine, f"bulk-{number}-{uuid4()}")
        requests = _requests(sizes.bulk, f"bulk {number}")
        gc.collect()
        began = time.perf_counter()
        with transaction(engine) as conn:
            bulk.submit_many(conn, model_id, requests, actor="bench")
        ours.append(time.perf_counter() - began)
        bare.append(_bare_copy(engine, model_id))
    return {
        "bulk_rows": sizes.bulk,
        "bulk_accept_rows_per_s": sizes.bulk / statistics.median(ours),
        "bare_copy_rows_per_s": sizes.bulk / statistics.median(bare),
        "bulk_accept_ratio": statistics.median(b / o for b, o in zip(bare, ours, strict=True)),
    }


def _bare_copy(engine: Engine, model_id: int) -> float:
    """Seconds of a bare client doing it: format the same rows in Python, COPY, commit."""
    with transaction(engine) as conn:
        conn.execute(text("DROP TABLE IF EXISTS bare"))
        conn.execute(text("CREATE TABLE bare (LIKE edits INCLUDING DEFAULTS, PRIMARY KEY (id))"))
        rows = (
            raw(conn)
            .execute(
                f"SELECT {bulk.COLUMNS} FROM edits WHERE model_id = %s ORDER BY id",  # noqa: S608 - our own column list
                (model_id,),
            )
            .fetchall()
        )
    plain = [
        tuple(json.dumps(one) if isinstance(one, list) else one for one in row) for row in rows
    ]
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


def _single(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """Submit + commit against a bare INSERT + commit of the same columns, turn by turn."""
    model_id = _model(engine, "single")
    requests = _requests(sizes.single, "single")
    with transaction(engine) as conn:
        conn.execute(text("DROP TABLE IF EXISTS bare"))
        conn.execute(text("CREATE TABLE bare (LIKE edits INCLUDING DEFAULTS, PRIMARY KEY (id))"))
    ours: list[float] = []
    bare: list[float] = []
    with psycopg.connect(libpq(url)) as plain:
        for number, request in enumerate(requests):
            began = time.perf_counter()
            with transaction(engine) as conn:
                edits.submit(conn, model_id, request, actor="bench")
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


def _claims(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """Claim of 256 with few rows queued and with very many, rolled back each time."""
    model_id = _model(engine, "claims")
    _fill(engine, model_id, sizes.few)
    few = _claim_seconds(engine, model_id)
    _fill(engine, model_id, sizes.many - sizes.few)
    many = _claim_seconds(engine, model_id)
    return {
        "claim_few_queued": sizes.few,
        "claim_many_queued": sizes.many,
        "claim_few_ms": 1e3 * few,
        "claim_many_ms": 1e3 * many,
        "claim_ratio": many / few,
    }


def _claim_seconds(engine: Engine, model_id: int, times: int = 15) -> float:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM ANALYZE edits"))
    with transaction(engine) as conn:
        lease = leases.take(conn, model_id, uuid4(), ttl=600)
    assert lease is not None
    taken = []
    for _ in range(times):
        with engine.connect() as conn:
            began = time.perf_counter()
            claim = queue.claim(conn, lease, limit=CLAIM)
            taken.append(time.perf_counter() - began)
            assert claim is not None
            assert len(claim.edits) == CLAIM
            conn.rollback()
    with transaction(engine) as conn:
        leases.release(conn, lease)
    return statistics.median(taken)


def _overhead(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """All ledger work from claim to live and closed, for batches of 100, with commits."""
    model_id = _model(engine, "overhead")
    size = 100
    with transaction(engine) as conn:
        bulk.submit_many(conn, model_id, _requests(size * sizes.rounds, "overhead"), actor="bench")
    taken = [_round(engine, model_id, size) for _ in range(sizes.rounds)]
    return {
        "overhead_batch": size,
        "overhead_ms_per_edit": 1e3 * statistics.median(taken) / size,
    }


def _wake(engine: Engine, url: str, sizes: Sizes) -> dict[str, Any]:
    """From before the submitting commit to a claimed batch in an idle, listening worker."""
    model_id = _model(engine, "wake")
    claimed = threading.Event()
    ready = threading.Event()
    stop = threading.Event()

    def worker() -> None:
        me = uuid4()
        with Listener(url) as events:
            ready.set()
            while not stop.is_set():
                if not any(one["kind"] == "edit.submitted" for one in events.wait(0.5)):
                    continue
                with transaction(engine) as conn:
                    lease = leases.take(conn, model_id, me)
                    assert lease is not None
                    claim = queue.claim(conn, lease)
                if claim is None:
                    continue
                claimed.set()
                with transaction(engine) as conn:
                    ids = [one.id for one in claim.edits]
                    problems = dict.fromkeys(ids, "measured")
                    queue.fail(conn, lease, claim.batch.id, problems, actor="bench")
                    batches.finish(conn, lease, claim.batch.id, actor="bench")

    thread = threading.Thread(target=worker)
    thread.start()
    ready.wait()
    taken = []
    for request in _requests(sizes.wakes, "wake"):
        claimed.clear()
        began = time.perf_counter()
        with transaction(engine) as conn:
            edits.submit(conn, model_id, request, actor="bench")
        assert claimed.wait(30), "the worker never woke"
        taken.append(time.perf_counter() - began)
        # An idle default has seconds between edits; let the worker come to rest.
        time.sleep(0.02)
    stop.set()
    thread.join()
    taken.sort()
    return {
        "wake_p50_ms": 1e3 * statistics.median(taken),
        "wake_p99_ms": 1e3 * taken[min(len(taken) - 1, int(len(taken) * 0.99))],
    }


def _memory(engine: Engine, _url: str, sizes: Sizes) -> dict[str, Any]:
    """Growth of this process while it takes very many edits through the queue in batches."""
    model_id = _model(engine, "memory")
    size = 500
    _fill(engine, model_id, sizes.drain)
    warm = max(2, sizes.drain // size // 10)
    for _ in range(warm):
        _round(engine, model_id, size, promote=False)
    gc.collect()
    before = _resident()
    count = sizes.drain // size - warm
    began = time.perf_counter()
    for _ in range(count):
        _round(engine, model_id, size, promote=False)
    gc.collect()
    return {
        "memory_edits": sizes.drain,
        "memory_growth_mib": max(0.0, _resident() - before),
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "drained_edits_per_s": count * size / (time.perf_counter() - began),
    }


# -- helpers --------------------------------------------------------------------------------------


def _round(engine: Engine, model_id: int, size: int, *, promote: bool = True) -> float:
    """One batch from claim to closed, as a worker does it; seconds of ledger calls."""
    me = uuid4()
    began = time.perf_counter()
    with transaction(engine) as conn:
        lease = leases.take(conn, model_id, me)
        assert lease is not None
        claim = queue.claim(conn, lease, limit=size)
    assert claim is not None
    batch_id = claim.batch.id
    while True:
        with transaction(engine) as conn:
            chunk = chunks.take(conn, me, batch_id=batch_id, limit=64)
        if chunk is None:
            break
        made = [FactorRecord(one.id, f"sha256:{one.id:064x}", 2, 100) for one in chunk.edits]
        with transaction(engine) as conn:
            chunks.record(conn, chunk, made)
    version_id, lease = _commit(engine, lease, batch_id)
    with transaction(engine) as conn:
        gates.record(
            conn,
            version_id,
            outcome="pass",
            policy_digest="sha256:p",
            suite_digest="sha256:s",
            checks=[],
            scores={},
            actor="bench",
        )
        if promote:
            aliases.promote(conn, model_id, version_id, actor="bench", reason="bench")
    with transaction(engine) as conn:
        batches.finish(conn, lease, batch_id, actor="bench")
        leases.release(conn, lease)
    return time.perf_counter() - began


def _commit(engine: Engine, lease: Lease, batch_id: int) -> tuple[int, Lease]:
    with transaction(engine) as conn:
        plan = planning.plan(conn, lease, batch_id=batch_id)
    digest = f"sha256:{uuid4().hex}"
    draft = VersionDraft(plan, digest, f"versions/{digest}", batch_id=batch_id)
    with transaction(engine) as conn:
        done = versions.commit(conn, lease, draft, actor="bench")
    return done.version.id, done.lease


def _requests(count: int, name: str) -> list[EditRequest]:
    return [
        EditRequest(
            prompt=f"The capital of {name} country {i} is",
            target=f"City {i}",
            subject=f"{name} country {i}",
            relation="capital",
            paraphrases=(f"What is the capital of {name} country {i}?",),
            locality=("What sports team does Messi play for?",),  # type: ignore[arg-type]  # a validator takes plain text
            idempotency_key=f"{name}-{i}",
            reason="benchmark",
        )
        for i in range(count)
    ]


def _fill(engine: Engine, model_id: int, count: int) -> None:
    """Queue very many edits with one statement (their submission is not what is measured)."""
    with transaction(engine) as conn:
        conn.execute(
            text(
                """
                INSERT INTO edits (model_id, state, prompt, target, source, submitted_by, fact_key,
                                   salt, content_digest, priority)
                SELECT :model, 'queued', 'The capital of country ' || n || ' is', 'City ' || n,
                       'bench', 'bench', md5(:model || '-' || n || '-' || random()),
                       CAST('salt' AS bytea), md5(n::text), n % 5
                  FROM generate_series(1, :count) AS n
                """
            ),
            {"model": str(model_id), "count": count} | {"model": model_id},
        )


def _model(engine: Engine, name: str) -> int:
    with transaction(engine) as conn:
        editor = models.register_editor(
            conn, digest=_EDITOR, kind="ultra", base_digest=_BASE, path="-", actor="bench"
        )
        model = models.register(
            conn,
            name=name,
            source="-",
            base_digest=_BASE,
            editor_id=editor.id,
            composition={},
            version_digest="sha256:0",
            policy={},
            policy_digest="sha256:p",
            actor="bench",
        )
    return model.id


def _resident() -> float:
    """Resident memory of this process, MiB."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _settings(engine: Engine) -> dict[str, str]:
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
    with transaction(engine) as conn:
        return {
            name: str(conn.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar())
            for name in names
        }


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """URL of a fresh migrated database."""
    given = os.environ.get("DATABASE_URL")
    name = f"mend_bench_{os.getpid()}"
    with contextlib.ExitStack() as stack:
        if given:
            admin = normalise_url(given)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mend-bench-"))
            server = EmbeddedPostgres(Path(folder) / "pg" / "pgdata")
            admin = stack.enter_context(server).url("mend")
        with psycopg.connect(libpq(admin), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_url(admin).set(database=name).render_as_string(hide_password=False)
        try:
            migrate.upgrade(url)
            yield url
        finally:
            with psycopg.connect(libpq(admin), autocommit=True) as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _table(measured: dict[str, Any]) -> None:
    print("server:", ", ".join(f"{k}={v}" for k, v in measured["server"].items()))
    for name, value in measured.items():
        if not isinstance(value, int | float):
            continue
        target = ""
        if name in TARGETS:
            sign, bound = TARGETS[name]
            verdict = "MISSED" if name in measured["missed"] else "reached"
            target = f"  target {sign} {bound:g}: {verdict}"
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        print(f"{name:26} {shown:>14}{target}")


if __name__ == "__main__":
    raise SystemExit(main())
