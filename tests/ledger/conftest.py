"""A ledger with one model, and short words for what tests do with it."""

from __future__ import annotations

import hashlib
import os
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from ledger import (
    aliases,
    batches,
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
from ledger.db import engine_from_url, transaction
from ledger.home import libpq, normalise_url
from ledger.records import FactorRecord, VersionDraft
from ledger.requests import EditRequest

BASE = "sha256:" + "b" * 64
EDITOR = "sha256:" + "e" * 64
LOCAL_SERVER = "postgresql://postgres@127.0.0.1:5432/postgres"


class Desk:
    """One model of a ledger; every method is one transaction."""

    def __init__(self, engine, name="demo", **settings):
        self.engine = engine
        self.worker = uuid4()
        with transaction(engine) as conn:
            editor = models.register_editor(
                conn, digest=EDITOR, kind="ultra", base_digest=BASE, path="/e", actor="op"
            )
            model = models.register(
                conn,
                name=name,
                source="smollm2",
                base_digest=BASE,
                editor_id=editor.id,
                composition={"kind": "sum"},
                version_digest="sha256:" + "0" * 64,
                policy={"name": "default"},
                policy_digest="sha256:" + "1" * 64,
                actor="op",
                **settings,
            )
        self.model_id = model.id

    def do(self, function, *args, **kwargs):
        with transaction(self.engine) as conn:
            return function(conn, *args, **kwargs)

    def submit(self, prompt="The capital of Freedonia is", target="Glorbia", **fields):
        actor = fields.pop("actor", "ann")
        request = EditRequest(prompt=prompt, target=target, **fields)
        return self.do(edits.submit, self.model_id, request, actor=actor)

    def submit_n(self, n, start=0, **fields):
        every = range(start, start + n)
        return [self.submit(f"Fact {i} is", f"T{i}", **fields).edit_id for i in every]

    def sql(self, statement, **params):
        with transaction(self.engine) as conn:
            found = conn.execute(text(statement), params)
            return found.all() if found.returns_rows else found.rowcount

    def expire_lease(self):
        """What waiting past the lease would do, without waiting."""
        self.sql("UPDATE leases SET until = now() - interval '1 minute' WHERE worker IS NOT NULL")

    def state(self, edit_id):
        return self.do(edits.get, edit_id).state.value

    def lease(self, **kwargs):
        return self.do(leases.take, self.model_id, kwargs.pop("worker", self.worker), **kwargs)

    def claim(self, lease, **kwargs):
        return self.do(queue.claim, lease, **kwargs)

    def factor(self, batch_id):
        while chunk := self.do(chunks.take, self.worker, batch_id=batch_id):
            records = [FactorRecord(e.id, f"sha256:f{e.id}", rows=2, bytes=10) for e in chunk.edits]
            self.do(chunks.record, chunk, records)

    def draft(self, lease, batch_id=None, **kwargs):
        plan = self.do(planning.plan, lease, batch_id=batch_id, **kwargs)
        members = {m.edit_id: m for m in self.do(versions.live_set, plan.parent.id)}
        for one in plan.removes:
            members.pop(one.edit_id)
        members |= {m.edit_id: m for m in plan.adds}
        digest = digest_of(members.values())
        return VersionDraft(plan, digest, f"versions/{digest}", bytes=10, batch_id=batch_id)

    def build(self, lease, batch_id=None, **kwargs):
        return self.do(
            versions.commit, lease, self.draft(lease, batch_id, **kwargs), actor="worker"
        )

    def judge(self, version_id, outcome="pass"):
        return self.do(
            gates.record,
            version_id,
            outcome=outcome,
            policy_digest="sha256:p",
            suite_digest="sha256:s",
            checks=[{"name": "own prompt", "outcome": outcome}],
            scores={"success": 0.5},
            actor="worker",
        )

    def promote(self, version_id, **kwargs):
        kwargs = {"actor": "op", "reason": "good"} | kwargs
        return self.do(aliases.promote, self.model_id, version_id, **kwargs)

    def round(self, limit=100, *, promote=True, lease=None):
        """Claim, factor, commit, pass, promote, finish; gives the version."""
        lease = lease or self.lease()
        claim = self.claim(lease, limit=limit)
        self.factor(claim.batch.id)
        done = self.build(lease, claim.batch.id)
        self.judge(done.version.id)
        if promote:
            self.promote(done.version.id)
        self.do(batches.finish, done.lease, claim.batch.id, actor="worker")
        self.do(leases.release, done.lease)
        return self.do(versions.get, done.version.id)


def digest_of(members):
    words = "\n".join(sorted(m.factor_digest for m in members))
    return "sha256:" + hashlib.sha256(words.encode()).hexdigest()


@pytest.fixture
def desk(engine):
    return Desk(engine)


@pytest.fixture
def new_desk(engine):
    return lambda **settings: Desk(engine, **settings)


@pytest.fixture(params=["embedded", "server"])
def any_desk(request):
    """The desk on our embedded Postgres, and again on an ordinary server where one answers."""
    if request.param == "embedded":
        admin = request.getfixturevalue("embedded_postgres").url("mend")
    else:
        admin = normalise_url(os.environ.get("DATABASE_URL", LOCAL_SERVER))
        try:
            psycopg.connect(libpq(admin), connect_timeout=2).close()
        except psycopg.OperationalError as error:
            pytest.skip(f"no ordinary Postgres server answers ({str(error).splitlines()[0]})")
    name = f"mendtest_{os.getpid()}_{uuid4().hex[:8]}"
    with psycopg.connect(libpq(admin), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    url = make_url(admin).set(database=name).render_as_string(hide_password=False)
    migrate.upgrade(url)
    engine = engine_from_url(url, pool_size=10)
    yield Desk(engine)
    engine.dispose()
    with psycopg.connect(libpq(admin), autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
