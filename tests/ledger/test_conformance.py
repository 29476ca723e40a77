"""What must hold on every Postgres we support: embedded, and an ordinary server."""

from __future__ import annotations

import threading
from uuid import uuid4

from ledger import audit, batches, doctor, edits, leases, queue
from ledger.db import transaction
from ledger.requests import EditRequest
from ledger.transitions import lock_submissions


def in_threads(count, function):
    errors, start = [], threading.Barrier(count)

    def body(number):
        try:
            start.wait()
            function(number)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not errors, errors


def test_a_whole_life(any_desk):
    desk = any_desk
    edit_id = desk.submit().edit_id
    desk.round()
    assert desk.state(edit_id) == "live"
    assert desk.do(doctor.check, deep=True) == []


def test_many_workers_get_disjoint_edits_and_one_lease(any_desk):
    desk = any_desk
    desk.submit_n(40)
    seen, lock = [], threading.Lock()

    def work(_number):
        me = uuid4()
        for _ in range(30):
            with transaction(desk.engine) as conn:
                lease = leases.take(conn, desk.model_id, me)
                claim = queue.claim(conn, lease, limit=4) if lease else None
            if lease is None:
                continue
            if claim is not None:
                with lock:
                    seen.extend(one.id for one in claim.edits)
                with transaction(desk.engine) as conn:
                    problems = {one.id: "done" for one in claim.edits}
                    queue.fail(conn, lease, claim.batch.id, problems, actor="t")
                    batches.finish(conn, lease, claim.batch.id, actor="t")
            with transaction(desk.engine) as conn:
                leases.release(conn, lease)

    in_threads(4, work)
    assert len(seen) == len(set(seen))
    fences = desk.sql("SELECT fence FROM batches ORDER BY id")
    assert [f for (f,) in fences] == sorted({f for (f,) in fences})
    assert desk.do(doctor.check, deep=True) == []


def test_concurrent_appends_make_one_chain(any_desk):
    desk = any_desk

    def append(number):
        for step in range(10):
            desk.do(audit.append, "test.event", actor=f"t{number}", data={"step": step})

    in_threads(6, append)
    verified = desk.do(audit.verify)
    assert verified.events == 60 + len(["editor.registered", "model.registered"])


def test_racing_submissions_of_one_key_and_one_fact(any_desk):
    desk = any_desk
    results, lock = [], threading.Lock()

    def submit(number):
        same_key = desk.submit("Fact A is", "X", idempotency_key="k")
        same_fact = desk.submit("Fact B is", f"Y{number}")
        with lock:
            results.append((same_key, same_fact))

    in_threads(6, submit)
    assert len({a.edit_id for a, _ in results}) == 1
    assert sum(not a.duplicate for a, _ in results) == 1
    waiting = desk.do(edits.list_edits, desk.model_id, states=["queued"])
    assert sorted(one.prompt for one in waiting) == ["Fact A is", "Fact B is"]
    assert desk.do(doctor.check, deep=True) == []


def test_bulk_keeps_single_submissions_out_and_loses_none(any_desk):
    desk = any_desk

    def work(number):
        if number == 0:
            many = [EditRequest(prompt=f"Fact {i} is", target="bulk") for i in range(200)]
            desk.do(edits.submit_many, desk.model_id, many, actor="ann")
        else:
            for i in range(10):
                desk.submit(f"Fact {i} is", f"single {number}")

    in_threads(3, work)
    counts = desk.do(edits.counts, desk.model_id)
    assert counts["queued"] == 200
    assert counts["superseded"] == 20
    assert desk.do(doctor.check, deep=True) == []


def test_submissions_wait_for_the_models_lock(any_desk):
    desk = any_desk
    done = threading.Event()

    def submit():
        desk.submit()
        done.set()

    with transaction(desk.engine) as conn:
        lock_submissions(conn, desk.model_id)
        thread = threading.Thread(target=submit)
        thread.start()
        assert not done.wait(0.2)
    thread.join()
    assert done.is_set()
