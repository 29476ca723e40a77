"""Connections: those that died in the pool, those that die under a request."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from ledger import edits
from ledger.db import alone, raw, transaction
from ledger.errors import DatabaseDown, NoSuchModel
from ledger.requests import EditRequest

ASK = {"prompt": "The capital of Freedonia is", "target": "Glorbia"}


def _kill_the_others(conn):
    conn.execute(
        text(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    )


def _two(engine):
    with transaction(engine) as one, transaction(engine) as other:
        return {c.execute(text("SELECT pg_backend_pid()")).scalar_one() for c in (one, other)}


def test_a_connection_that_died_in_the_pool_is_replaced_unseen(desk):
    before = _two(desk.engine)
    with transaction(desk.engine) as conn:
        _kill_the_others(conn)
    after = _two(desk.engine)
    assert len(after) == 2
    assert len(after & before) <= 1  # who killed lives


def test_a_connection_in_use_is_not_asked_whether_it_lives(desk, monkeypatch):
    asked = []
    ping = desk.engine.dialect.do_ping
    monkeypatch.setattr(desk.engine.dialect, "do_ping", lambda c: asked.append(c) or ping(c))
    for _ in range(3):
        with transaction(desk.engine) as conn:
            conn.execute(text("SELECT 1"))
    assert not asked
    monkeypatch.setattr("ledger.db.RESTED_SECONDS", 0.0)
    with transaction(desk.engine) as conn:
        conn.execute(text("SELECT 1"))
    assert len(asked) == 1


def test_accept_commits_by_itself_and_leaves_the_connection_as_it_was(desk):
    done = edits.accept(desk.engine, desk.model_id, EditRequest(**ASK), actor="ann")
    assert desk.state(done.edit_id) == "queued"
    with pytest.raises(NoSuchModel):
        edits.accept(desk.engine, 999, EditRequest(**ASK), actor="ann")
    with desk.engine.connect() as conn:
        edits.submit(conn, desk.model_id, EditRequest(prompt="B is", target="b"), actor="ann")
        conn.rollback()
    assert len(desk.do(edits.list_edits)) == 1


@pytest.mark.parametrize("committed", [True, False])
def test_a_keyed_request_is_sent_again_where_the_connection_was_lost(desk, monkeypatch, committed):
    submit, tries = edits._submit, []

    def breaking(driver, model_id, request, actor):
        tries.append(driver)
        if len(tries) > 1:
            return submit(driver, model_id, request, actor)
        if committed:
            submit(driver, model_id, request, actor)
        with transaction(desk.engine) as killer:
            _kill_the_others(killer)
        return submit(driver, model_id, EditRequest(prompt="Lost is", target="it"), actor)

    monkeypatch.setattr(edits, "_submit", breaking)
    keyed = EditRequest(**ASK, idempotency_key="k")
    done = edits.accept(desk.engine, desk.model_id, keyed, actor="ann")
    assert len(tries) == 2
    assert done.duplicate is committed
    assert [edit.id for edit in desk.do(edits.list_edits)] == [done.edit_id]


def test_a_connection_left_in_the_middle_is_thrown_away(desk):
    with alone(desk.engine) as driver:
        broken = driver.info.backend_pid
        driver.execute("BEGIN")
    with transaction(desk.engine) as conn:
        assert conn.execute(text("SELECT pg_backend_pid()")).scalar_one() != broken
        assert not raw(conn).autocommit


def test_a_request_without_a_key_is_not_sent_twice(desk, monkeypatch):
    tries = []

    def lost(*_args, **_kwargs):
        tries.append(1)
        raise DatabaseDown("gone")

    monkeypatch.setattr(edits, "_submit", lost)
    with pytest.raises(DatabaseDown):
        edits.accept(desk.engine, desk.model_id, EditRequest(**ASK), actor="ann")
    assert len(tries) == 1
